#!/usr/bin/env bash
# Sets up what is missing, then runs the series headless. ./run_all.sh --help lists the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source helpers/environment.sh
set_up requirements.txt
exec "$python" -m helpers.run "$@"
