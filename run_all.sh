#!/usr/bin/env bash
# Sets up what is missing, then runs the series headless. ./run_all.sh --help lists the options.
set -euo pipefail
export SERIES_CALLED_FROM=$PWD PYTHONUTF8=1
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
source tools/environment.sh
set_up requirements.txt
exec "$python" -m tools.run "$@"
