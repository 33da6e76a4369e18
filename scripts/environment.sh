# Sourced by the other scripts: which Python runs this checkout, and how they speak.
#
# ENV_DIR is the active environment when i2v is importable there, otherwise `.venv` in the checkout (which may not exist
# yet); ENV_PYTHON is its interpreter.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One mark a line, the ones that the launcher and the checks in Python use too.
say() { printf '[INFO] %s\n' "$*"; }
succeed() { printf '[SUCCESS] %s\n' "$*"; }
warn() { printf '[WARNING] %s\n' "$*" >&2; }
fail() {
  printf '[ERROR] %s\n' "$*" >&2
  exit 1
}

# -I keeps the current folder off the path: the checkout itself must not count as installed.
has_i2v() { "$1" -I -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("i2v") is None)' 2>/dev/null; }

choose_environment() {
  ENV_DIR="$ROOT/.venv"
  local active
  for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [[ -n "$active" && -x "$active/bin/python" ]] && has_i2v "$active/bin/python"; then
      ENV_DIR=$active
      break
    fi
  done
  ENV_PYTHON="$ENV_DIR/bin/python"
}

# For scripts that use the environment but do not make it.
need_environment() {
  choose_environment
  [[ -x "$ENV_PYTHON" ]] || fail "there is no environment yet; run: scripts/install test"
}

# pytest with the given arguments, in several processes (tests/conftest.py says how many). Whichever has nothing left
# takes half of what another has before it.
run_tests() {
  # Asserts in tests and plugins are rewritten once and kept: each process would take seconds over it.
  export PYTHONDONTWRITEBYTECODE=
  exec "$ENV_PYTHON" -m pytest -n auto --dist worksteal "$@"
}
