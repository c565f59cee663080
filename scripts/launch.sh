# What the launchers share; they read it with `source`. After `activate` plain python does, or PYTHON
# names another one.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python}"
if [ -z "${PYTHON:-}" ] && [ -x "$root/.venv/bin/python" ]; then python="$root/.venv/bin/python"; fi

# Without -h the arguments go to `videoclip train`; the comment on top of a launcher is its help.
if [ $# -eq 0 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  sed -n '2,/^[^#]/ { /^#SBATCH/d; s/^# \{0,1\}//p; }' "$0"
  exit $((!$#))
fi

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Workers that are started again would find the addresses of the dead ones (pytorch#135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Asked to end by a scheduler, workers save first; a worker that hangs is killed after so many
# seconds.
elastic=(
  -m torch.distributed.run --max-restarts "${RESTARTS:-3}" --shutdown-timeout "${PATIENCE:-50}"
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
)
