#!/usr/bin/env bash
# Makes .venv with the pins of environment.yml; does nothing where that is already done.
# PYTHON=python3.12 chooses the interpreter (3.11 or later).
# TORCH_INDEX=https://... takes torch and torchvision from another index, a smaller CPU build say.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
wanted="$(cat environment.yml pyproject.toml scripts/setup.sh | sha256sum)"
[ "$(cat "$venv/.ready" 2>/dev/null || true)" = "$wanted" ] && exit 0

python="${PYTHON:-}"
for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
  [ -n "$python" ] && break
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python="$candidate"
  fi
done
if [ -z "$python" ]; then
  echo "setup: no Python 3.11 or later was found; install one or set PYTHON=/path/to/python" >&2
  exit 1
fi

echo "setup: installing into $venv; the first time this takes a few minutes and some gigabytes" >&2
"$python" -m venv "$venv"
requirements="$venv/requirements.txt"
sed -n 's/^ *- \([A-Za-z0-9_.-]*==[^ ]*\).*/\1/p' environment.yml >"$requirements"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
if [ -n "${TORCH_INDEX:-}" ]; then
  grep -E '^torch(vision)?==' "$requirements" | xargs "${pip[@]}" --index-url "$TORCH_INDEX"
fi
# Wheels of decord exist for x86-64 only; decord2 is imported by the same name.
[ "$(uname -m)" = x86_64 ] || sed -i.bak 's/^decord==.*/decord2>=3.4/' "$requirements"
"${pip[@]}" -r "$requirements" 2> >(grep -v 'is ignored: it is neither' >&2)
"${pip[@]}" --no-deps --editable . 2> >(grep -v 'is ignored: it is neither' >&2)
echo "$wanted" >"$venv/.ready"
