#!/usr/bin/env bash
# What tests/gpu/run.sh needs on a machine that reaches no network, in one folder: the project as it was last committed,
# and wheels, in the versions of constraints.txt, of what the machine lacks. Its own PyTorch stays.
#   tests/gpu/pack.sh FOLDER NAMES [PYTHON]
# NAMES: a file with what is there, a package a line (`pip list --format freeze` of it). PYTHON: its version (3.12).
# There: tar xf FOLDER/project.tar, and PACK=FOLDER tests/gpu/run.sh
set -euo pipefail
if [[ $# -lt 2 || ! -f $2 ]]; then
  echo "error: expected tests/gpu/pack.sh FOLDER NAMES [PYTHON], with NAMES a file of what is there" >&2
  exit 2
fi
folder=$(realpath -m "$1") names=$(realpath "$2") version=${3:-3.12}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/environment.sh
set_up requirements.txt
most=60 # MB: more is not carried everywhere
unused="torch triton jedi parso debugpy widgetsnbextension jupyterlab-widgets" # there, or of no use without a reader

lacking=$("$python" - "$names" constraints.txt "$unused" <<'PYTHON'
import re
import sys

there, wanted = ([line.partition("#")[0].strip() for line in open(path)] for path in sys.argv[1:3])


def known(line):
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>@~! ]", line)[0]).lower()


names = {known(line) for line in there if line} | {*sys.argv[3].split()}
print(*(line for line in wanted if line and known(line) not in names))
PYTHON
)
mkdir -p "$folder/wheels"
git archive --output "$folder/project.tar" HEAD . ":!figures" ":!results/laptop"
platforms=()
for glibc in 39 34 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
"$python" -m pip download -qq --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
  "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$folder/wheels" $lacking
size=$(du -sm "$folder" | cut -f1)
echo "$folder: the project and $(ls "$folder/wheels" | wc -l) wheels, $size MB"
if ((size >= most)); then
  du -m "$folder"/wheels/* | sort -rn | head -3 >&2
  echo "error: over $most MB: install the largest there, or name them in $2 to go without" >&2
  exit 1
fi
