#!/usr/bin/env bash
# Trains on one GPU, or on the processor where there is none.
#
#   scripts/train_one_gpu.sh RECIPE.ROW [OPTIONS OF videoclip train]
#
# The same command goes on where an earlier one was stopped. Status 75 means that it was asked to end
# and has saved: start it again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
exec "$python" -m videoclip train "$@"
