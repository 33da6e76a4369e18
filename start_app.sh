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

bash scripts/install
choose_environment
exec "$ENV_PYTHON" -m i2v.launcher "$@"
