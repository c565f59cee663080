#!/usr/bin/env bash
# Sets everything up if that is still to be done, then runs the linter and the tests (what CI runs).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check .
# One thread a process: the tests' tensors are tiny, and two processes use two cores better.
OMP_NUM_THREADS=1 exec "$python" -m pytest -q -n "${WORKERS:-2}" "$@"
