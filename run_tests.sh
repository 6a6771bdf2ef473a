#!/usr/bin/env bash
# Sets up what is missing, then checks the style and passes the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source helpers/environment.sh
set_up requirements.txt tests/requirements.txt
"$python" -m ruff check --output-format concise .
"$python" -m ruff format --check .
# First side by side, a file each; then one by one what may have nothing beside it. A thread that waits must not spin.
beside=0 alone=0
OMP_WAIT_POLICY=passive "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not alone" "$@" || beside=$?
"$python" -m pytest -m alone "$@" || alone=$?
none=5 # of the tests asked for: pytest's exit code
((beside == none)) && exit "$alone"
((alone == none)) && exit "$beside"
exit $((beside || alone))
