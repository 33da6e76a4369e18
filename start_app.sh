#!/usr/bin/env bash
# One command from a fresh checkout to a running server:
#
#   bash start_app.sh [--host H] [--port P] [--model M] [--config FILE] ...     (--help lists every flag)
#
# Makes the environment when there is none, checks the machine, writes logs/app_*.log, and starts the server again when
# it asks for it with exit code 86. Relative paths in flags count from the folder of this file. Ctrl-C ends everything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh

choose_environment
for flag in "$@"; do
  [[ "$flag" == --help && ! -x "$ENV_PYTHON" ]] || continue # nothing is installed for a question
  printf '%s\n' "bash start_app.sh [flags]: make the environment (once), check this machine, start the server" \
    "  --host ADDRESS   address to listen on (127.0.0.1); 0.0.0.0 opens the server to the network" \
    "  --port PORT      port to listen on (7860); 0 takes a free one" \
    "  --model MODEL    auto, demo, fake, a hub id, or a diffusers folder" \
    "  --config FILE    settings file (YAML)" \
    "Every flag: docs/operations.md, or this again once the environment is there."
  exit 0
done
[[ " $* " == *" --help "* ]] || bash scripts/install
choose_environment
exec "$ENV_PYTHON" -m i2v.launcher "$@"
