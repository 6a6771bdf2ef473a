#!/usr/bin/env bash
# Sets up what is missing, then checks the style and passes the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source helpers/environment.sh
set_up requirements.txt tests/requirements.txt
"$python" -m ruff check --output-format concise .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
