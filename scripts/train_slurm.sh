#!/usr/bin/env bash
#SBATCH --job-name=videoclip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains under SLURM, a task for each GPU. Put your partition and account above or into the command,
# which is given in the folder that holds scripts/:
#
#   sbatch --nodes 4 scripts/train_slurm.sh RECIPE.ROW [OPTIONS OF videoclip train]
#
# Two minutes before the time is over SLURM sends SIGUSR1. The run saves, ends with status 75, and
# is queued again to go on. srun starts the processes itself instead of torchrun: so the signal
# reaches them, and their status reaches this script.
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/scripts/launch.sh" # SLURM runs a copy of this file
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) python
status=0
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$python" -m videoclip train "$@"
' videoclip "$@" || status=$?
if [ "$status" -eq 75 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
