#!/usr/bin/env bash
# The tests that need a GPU, then the records of its speed, on a machine whose own PyTorch is used as it is: nothing is
# installed there, nothing fetched. PYTHON names its interpreter, PACK a folder that tests/gpu/pack.sh has made, with
# packages that it lacks. Without CUDA what needs it is skipped, with the reason, and speeds are taken of small shapes and
# kept nowhere: a dry run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-$(command -v python3)}
export HF_HUB_OFFLINE=1
if [[ -n ${PACK:-} ]]; then
  "$python" -m pip install -qq --no-deps --no-index --upgrade --target "$PACK/site" "$PACK"/wheels/*.whl
  export PYTHONPATH=$PACK/site
fi
"$python" - requirements.txt tests/requirements.txt <<'PYTHON'
import re
import sys
from importlib.metadata import PackageNotFoundError, version

lines = [line.partition("#")[0].strip() for file in sys.argv[1:] for line in open(file)]
names = [re.split(r"[<>=!~\[; ]", line)[0] for line in lines if line]


def there(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


missing = [name for name in dict.fromkeys(names) if not there(name)]
print("packages that are missing here, and what needs them is skipped:", ", ".join(missing) or "none")
if without := {"torch", "pytest"} & set(missing):
    sys.exit(f"error: needed and not there: {', '.join(sorted(without))}; PYTHON=… names another interpreter")
PYTHON
exec "$python" -m pytest -p no:cacheprovider -rs --durations=10 tests/gpu "$@"
