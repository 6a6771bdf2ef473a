#!/usr/bin/env bash
# Sets up what is missing, then checks the style and passes the tests. Arguments go to pytest; --quick, the first of
# them, leaves out what runs the series, asks the Hub, times things or is slow: for use while working.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
source tools/environment.sh
set_up requirements.txt tests/requirements.txt
"$python" -m ruff check --output-format concise .
"$python" -m ruff format --check .
# One worker more than there are cores: some of a test is waiting for processes that it starts.
workers=$("$python" -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))")
beside() { # beside MARKS ARGUMENTS...: side by side, a file each, in their order; a thread that waits must not spin
  OMP_WAIT_POLICY=passive "$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder -m "$@"
}
if [[ ${1:-} == --quick ]]; then
  beside "not alone and not series and not hub and not slow" "${@:2}"
  exit
fi
SERIES_STORE=$(mktemp -d) # both runs of pytest work on it: what the first trains, the second need not
export SERIES_STORE
trap 'rm -rf "$SERIES_STORE"' EXIT
several=0 alone=0
beside "not alone" "$@" || several=$?
"$python" -m pytest -m alone "$@" || alone=$? # then one by one what may have nothing beside it
none=5 # of the tests asked for: pytest's exit code
((several == none)) && exit "$alone"
((alone == none)) && exit "$several"
exit $((several || alone))
