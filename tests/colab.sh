#!/usr/bin/env bash
# The series as in Google Colab, without Colab: Python 3.12 with the packages of its image (tests/colab-image.txt), a
# module google.colab, the set-up cell run in an empty folder, then the series on the mini-world. The address on GitHub
# stands for a clone of this project as committed. Takes about 20 minutes, several GB of disk, and a network for pip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

python=${PYTHON:-$(command -v python3.12 || true)}
[[ -n $python ]] || fail "Colab has Python 3.12, and it is not here: install it, or set PYTHON to one"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0="url.file://$work/github/.insteadOf"
export GIT_CONFIG_VALUE_0=https://github.com/

echo "making the image in $work" >&2
"$python" -m venv "$work/image"
image=$work/image/bin/python
"$image" -m pip install -q --disable-pip-version-check -r tests/colab-image.txt
mkdir -p "$("$image" -c 'import site; print(site.getsitepackages()[0])')/google/colab"
touch "$("$image" -c 'import site; print(site.getsitepackages()[0])')/google/colab/__init__.py"
"$image" -m pip freeze >"$work/before.txt"

git clone -q . "$work/github/someone/distilbert"
clone=$work/github/someone/distilbert
grep -rlZ OWNER/distilbert-remeasured "$clone/helpers/__init__.py" "$clone/notebooks" |
  xargs -0 sed -i 's|OWNER/distilbert-remeasured|someone/distilbert|'
git -C "$clone" -c user.name=someone -c user.email=someone@example.org commit -qam "It lives here"

echo "running the set-up cell in an empty folder" >&2
mkdir "$work/content"
cat >"$work/cell.py" <<'PYTHON'
import json, sys
from IPython.core.interactiveshell import InteractiveShell

cells = json.load(open(sys.argv[1]))["cells"]
(cell,) = ("".join(cell["source"]) for cell in cells if "setup" in cell["metadata"].get("tags", []))
sys.path.insert(0, "")  # a kernel's: wherever it stands
InteractiveShell.instance().run_cell(cell).raise_error()
import helpers
PYTHON
export PATH=$work/image/bin:$PATH COLAB_RELEASE_TAG=stand-in
(cd "$work/content" && PYTHONPATH=. "$image" "$work/cell.py" "$clone/notebooks/00_start_here.ipynb")
"$image" -m pip freeze >"$work/after.txt"
changed=$(grep -vxFf "$work/after.txt" "$work/before.txt" || true)
[[ -z $changed ]] || fail "the set-up cell changed what the image has:" $changed
echo "what the image has is as it was; beside it now:" $(grep -vxFf "$work/before.txt" "$work/after.txt") >&2

cd "$work/content/distilbert-remeasured"
./run_all.sh
[[ -z $(git status --porcelain) ]] || fail "the run left something that git sees: $(git status --porcelain)"
