#!/usr/bin/env bash
# Times the models of this folder on a phone or an emulator, and writes phone.csv here.
#
#   ./run.sh PERF_TEST [THREADS…]
#
# PERF_TEST: ONNX Runtime's benchmark tool, onnxruntime_perf_test, built for the phone's processor (its Android build
# makes it). It needs adb, and a phone that adb sees; ANDROID_SERIAL chooses among several.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
there=/data/local/tmp/distilbert
runs=100

stop() { echo "error: $1" >&2; exit 2; }
[[ $# -ge 1 ]] || stop "which benchmark tool? ./run.sh PERF_TEST [THREADS…]"
tool=$1
shift
[[ -f $tool ]] || stop "$tool: no such file; expected onnxruntime_perf_test, built for Android"
command -v adb >/dev/null || stop "adb is not installed; it comes with Android's platform tools"
adb get-state >/dev/null 2>&1 || stop "adb sees no phone: plug one in and allow debugging, or start an emulator"
[[ $# -gt 0 ]] || set -- 1
for threads; do
  [[ $threads =~ ^[1-9][0-9]*$ ]] || stop "threads: '$threads' is not a positive number"
done

property() { adb shell getprop "$1" | tr -d '\r,'; }
android=$(property ro.build.version.release)
api=$(property ro.build.version.sdk)
abi=$(property ro.product.cpu.abi)
ram=$(adb shell cat /proc/meminfo | tr -d '\r' | awk '/^MemTotal/ { print int($2 * 1024 / 1e6) }')
device=phone
[[ $(property ro.kernel.qemu)$(property ro.boot.qemu) == *1* ]] && device=emulator

adb shell "rm -rf $there && mkdir -p $there"
trap 'adb shell "rm -rf $there" || true; rm -f "$here/phone.part"' EXIT
adb push "$tool" "$there/perf_test" >/dev/null
adb shell chmod 755 "$there/perf_test"
echo model,threads,run,seconds,android,api,abi,ram_mb,device >"$here/phone.part"
for folder in "$here"/*/; do
  name=$(basename "$folder")
  adb push "$folder" "$there/$name" >/dev/null
  model=model.ort
  [[ -f $folder/$model ]] || model=model.onnx
  for threads; do
    echo "$name, $threads thread(s)" >&2
    adb shell "cd $there && rm -f times.csv && ./perf_test -e cpu -m times -r $runs -x $threads -y 1 $name/$model times.csv" >/dev/null
    # The tool writes a line a run: model, seconds, memory, load of the processor, number of the run.
    adb shell cat "$there/times.csv" | tr -d '\r' | awk -F, -v OFS=, -v name="$name" -v threads="$threads" \
      -v phone="$android,$api,$abi,$ram,$device" 'NF == 5 { print name, threads, $5, $2, phone; n++ }
      END { if (!n) { print "error: " name ": the tool wrote no times" > "/dev/stderr"; exit 1 } }' >>"$here/phone.part"
  done
  adb shell "rm -rf $there/$name"
done
mv "$here/phone.part" "$here/phone.csv"
echo "wrote $here/phone.csv"
