#!/usr/bin/env bash
# Trains on several machines that share the run folder. With torchrun, started on each of them:
#
#   NODES=2 HOST=node1 scripts/train_nodes.sh RECIPE.ROW [OPTIONS OF videoclip train]
#
# With DeepSpeed's launcher and a file of lines like `node1 slots=8`, started on the first machine,
# which starts the others by ssh; or on each of them, where there is no ssh, by its NODE from 0 on:
#
#   HOSTFILE=hosts scripts/train_nodes.sh RECIPE.ROW --run.engine deepspeed
#   HOSTFILE=hosts HOST=node1 NODE=0 scripts/train_nodes.sh RECIPE.ROW --run.engine deepspeed
#
# NODES     machines
# HOST      one of them, where all meet
# PORT      a port that is free there (29400)
# GPUS      processes of each machine with torchrun (8)
# RUN       a name for this training, where several meet at one port (videoclip)
# RESTARTS  how often all start again, from the newest state, after one has died (3); torchrun only
# PATIENCE  seconds that the others have to end by themselves then (50)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
port="${PORT:-29400}"
if [ -n "${HOSTFILE:-}" ]; then
  nodes=(--hostfile "$HOSTFILE" --master_port "$port")
  if [ -n "${HOST:-}" ]; then nodes+=(--master_addr "$HOST"); fi
  if [ -n "${NODE:-}" ]; then nodes+=(--no_ssh --node_rank "$NODE"); fi
  # The number of a process stands in its environment, so it need not be an argument.
  exec "$python" -m deepspeed.launcher.runner "${nodes[@]}" --no_local_rank \
    --module videoclip train "$@"
fi
exec "$python" "${elastic[@]}" --nnodes "${NODES:?how many machines?}" \
  --nproc-per-node "${GPUS:-8}" --rdzv-backend c10d --rdzv-id "${RUN:-videoclip}" \
  --rdzv-endpoint "${HOST:?which machine do all meet at?}:$port" -m videoclip train "$@"
