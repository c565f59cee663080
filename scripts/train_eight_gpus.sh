#!/usr/bin/env bash
# Trains on the eight GPUs of one machine, or on another number of them.
#
#   scripts/train_eight_gpus.sh RECIPE.ROW [OPTIONS OF videoclip train]
#   GPUS=2 scripts/train_eight_gpus.sh RECIPE.ROW --run.engine deepspeed
#
# GPUS      processes, one for each GPU; without GPUs they share the processor (8)
# RESTARTS  how often all start again, from the newest state, after one has died (3)
# PATIENCE  seconds that the others have to end by themselves then (50)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
exec "$python" "${elastic[@]}" --standalone --nproc-per-node "${GPUS:-8}" -m videoclip train "$@"
