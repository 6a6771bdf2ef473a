# Sourced by run_all.sh, run_tests.sh and .ci/run, with the repository's root as working directory; run by itself, as
# notebooks do on Colab, it installs what is missing.
#
# `set_up FILE...` sees to a Python environment that meets these requirement files, and sets $python to its
# interpreter: Colab's own, the active environment's, or that of .venv, which it makes where there is none.

fail() {
  echo "error: $*" >&2
  exit 1
}

set_up() {
  if [[ -n ${COLAB_RELEASE_TAG:-} ]] || { [[ -d /content ]] && python3 -c 'import google.colab' 2>/dev/null; }; then
    python=$(command -v python3)
    complete_active_environment Colab "$@"
  elif [[ -n ${VIRTUAL_ENV:-} && ! $VIRTUAL_ENV -ef .venv ]]; then
    python=$VIRTUAL_ENV/bin/python
    complete_active_environment "$VIRTUAL_ENV" "$@"
  elif [[ -z ${VIRTUAL_ENV:-} && -n ${CONDA_PREFIX:-} ]]; then
    python=$CONDA_PREFIX/bin/python
    complete_active_environment "$CONDA_PREFIX" "$@"
  else
    python=.venv/bin/python
    make_own_environment "$@"
  fi
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

install() { # install WHAT WHERE ARGUMENTS...: pip says nothing but errors
  local size=""
  if [[ " $1 " == *" torch "* || " $1 " == *" requirements.txt "* ]]; then
    size=" (about 300 MB where a CPU wheel of torch is at hand, several GB of CUDA packages otherwise)"
  fi
  echo "installing $1 into $2$size, once" >&2
  "$python" -m pip install -qq --disable-pip-version-check "${@:3}" ||
    fail "the installation failed, for the reason that pip gives above; run this again to go on"
}

# .venv is ours: exactly the versions of constraints.txt. A stamp says which state of the files is installed, and is
# written last, so an interrupted installation is taken up again.
make_own_environment() {
  local file stamp candidate missing=()
  for file in "$@"; do
    stamp=.venv/${file//\//-}.installed
    [[ -f $stamp && $(<"$stamp") == "$(cat constraints.txt "$file" | cksum)" ]] || missing+=("$file")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    for candidate in python3 python3.13 python3.12 python3.11 ""; do
      is_recent "$candidate" && break
    done
    [[ -n $candidate ]] || fail "Python 3.11 or newer is needed; python3 is $(python3 --version 2>&1 || true)"
    echo "making .venv" >&2
    "$candidate" -m venv --clear .venv >/dev/null 2>&1 ||
      fail "$candidate cannot make .venv: its venv module is missing (on Debian, Ubuntu: apt install python3-venv)" \
        "or this folder cannot be written"
  fi
  is_recent "$python" || fail ".venv has a Python older than 3.11; delete the folder to have it made anew"
  install "${missing[*]}" .venv "${missing[@]/#/-r}" -c constraints.txt
  for file in "$@"; do
    cat constraints.txt "$file" | cksum >".venv/${file//\//-}.installed"
  done
}

# An active environment is somebody's: only what is missing is installed, and what is there stays. What is missing
# comes in the version of constraints.txt; in Colab in any that suits, since its packages change from month to month.
complete_active_environment() {
  local where=$1 pins
  shift
  is_recent "$python" || fail "$where has no Python, or one older than 3.11"
  "$python" -c 'import pip' 2>/dev/null || fail "$where has no pip; \`$python -m ensurepip\` puts it there"
  pins=$("$python" - "$where" "$@" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

from pip._vendor.packaging.requirements import Requirement


def read(file):
    lines = [line.partition("#")[0].strip() for line in open(file)]
    return [Requirement(line) for line in lines if line]


def meets(requirement):
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


where, *files = sys.argv[1:]
wanted = [requirement for file in files for requirement in read(file)]
missing = [requirement.name for requirement in wanted if not meets(requirement)]
if missing:
    kept = [name for name in ("torch", "numpy") if name not in missing]
    print(*(f"{name}=={version(name)}" for name in kept), sep="\n")
    for pin in [] if where == "Colab" else read("constraints.txt"):
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or pin.name in missing:
            print(pin)
    print("#", *missing)
PYTHON
  ) || fail "could not see what is installed in $where"
  [[ -n $pins ]] || return 0
  install "${pins##*# }" "$where" "${@/#/-r}" -c <(echo "$pins")
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then # run by itself
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  set_up requirements.txt
fi
