#!/usr/bin/env bash
# Everything a GPU should answer, in under nine minutes: bench/gpu_suite.sh [FOLDER] (gpu_suite.py says more, README.md how)
#   TOTAL_S=300 bench/gpu_suite.sh          in less time
#   I2V_SUITE=toy bench/gpu_suite.sh        a rehearsal at toy size on a CPU
# It uses the project's environment, or else the Python in PATH (or PYTHON) with the wheels that bench/fetch_wheels fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-.venv/bin/python}"
if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
  python=python3
fi
installed="$(mktemp -d)"
trap 'rm -rf "$installed"' EXIT

# unpack NAME: .wheels/NAME into a folder of its own, where no other environment sees it.
unpack() {
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$installed/$1" ".wheels/$1/"*.whl
}

# They are looked for, not imported: that takes seconds.
has_all() {
  "$python" -c 'from importlib.util import find_spec; import sys; exit(not all(map(find_spec, sys.argv[1:])))' "$@"
}

export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
needed=(accelerate diffusers PIL psutil pydantic pytest torch transformers)
if ! has_all "${needed[@]}" && [ -d .wheels/suite ]; then
  unpack suite
  export PYTHONPATH="$installed/suite:$PYTHONPATH"
fi
has_all "${needed[@]}" || {
  echo "$python lacks one of ${needed[*]}: run scripts/install test here, or bench/fetch_wheels where packages can be had" >&2
  exit 2
}
reference=()
if [ -d .wheels/reference ]; then
  unpack reference
  reference=(--reference "$installed/reference")
fi
export TOTAL_S="$((${TOTAL_S:-520} - SECONDS))"
"$python" bench/gpu_suite.py "${reference[@]}" "$@"
