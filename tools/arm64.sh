#!/usr/bin/env bash
# Sets up, in .arm64, what is needed to run ONNX Runtime's aarch64 build here: a small Debian with Python 3.11, ONNX
# Runtime and NumPy for it, and the same ONNX Runtime for this machine. Needs qemu-user-static and debootstrap, and
# fakeroot where you are not root.
set -euo pipefail
runtime=1.27.0 # the newest that runs in Debian 12's QEMU (7.2); 1.28 to 1.31 end in a segmentation fault on import
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh
set_up requirements.txt
PATH=$PATH:/usr/sbin
as_root=()
[[ $(id -u) -eq 0 ]] || as_root=(fakeroot) # debootstrap asks for root, and needs it only to change owners
for tool in qemu-aarch64-static debootstrap dpkg "${as_root[@]}"; do
  command -v "$tool" >/dev/null || fail "$tool is not installed: apt-get install qemu-user-static debootstrap fakeroot"
done
rm -rf .arm64.part
mkdir .arm64.part
"${as_root[@]}" debootstrap --arch=arm64 --foreign --variant=minbase --include=python3 bookworm .arm64.part/root \
  >.arm64.part/log 2>&1 || fail "debootstrap failed: $(tail -n 1 .arm64.part/log) (all of it is in .arm64.part/log)"
for package in .arm64.part/root/var/cache/apt/archives/*.deb; do
  dpkg -x "$package" .arm64.part/root
done
fetch() { # fetch FOLDER PYTHON PROCESSOR PACKAGES...: wheels, unpacked
  local folder=$1 processor=$3 wheel
  "$python" -m pip download -qq --no-deps --only-binary=:all: --python-version "$2" --implementation cp \
    --platform=manylinux{_2_28,_2_27,2014,_2_17}_"$processor" --dest "$folder.wheels" "${@:4}"
  for wheel in "$folder".wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$folder"
  done
  rm -r "$folder.wheels"
}
numpy=$("$python" -c 'import numpy; print(numpy.__version__)')
fetch .arm64.part/site 3.11 aarch64 "onnxruntime==$runtime" "numpy==$numpy"
fetch .arm64.part/here "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "$(uname -m)" "onnxruntime==$runtime"
rm -rf .arm64
mv .arm64.part .arm64
echo "set up in .arm64: ONNX Runtime $runtime"
