#!/usr/bin/env bash
# tools/move.sh OWNER/NAME: writes where the project lives on GitHub into badges, links and set-up cells.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
if [[ ! ${1:-} =~ ^[A-Za-z0-9](-?[A-Za-z0-9]){0,38}/[A-Za-z0-9._-]{1,100}$ || $1 == *.git ]]; then
  echo "error: ${1:-nothing} was given: expected OWNER/NAME, as in https://github.com/OWNER/NAME" >&2
  exit 2
fi
old=$(sed -n 's/^REPOSITORY = "\(.*\)"$/\1/p' helpers/__init__.py)
{ grep -rlF --include='*.ipynb' "$old" notebooks results || true; echo README.md; echo helpers/__init__.py; } |
  while read -r file; do
    OLD=$old NEW=$1 perl -pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/g' "$file"
    echo "$file"
  done
exec ./run_all.sh --fill # the README's table of notebooks has links, too
