#!/usr/bin/env bash
# Times the models of this folder on a phone or an emulator, and writes phone.csv here.
#
#   bash run.sh PERF_TEST [THREADS…]
#
# PERF_TEST: ONNX Runtime's benchmark tool, onnxruntime_perf_test, built for the phone's processor (its build for
# Android makes it; libonnxruntime*.so beside it goes along). Needs adb, and a phone that adb sees; ANDROID_SERIAL
# chooses among several. Models take turns, and every other round goes the other way, so a phone that gets hot slows all.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rounds=5 runs=20 there=

stop() { echo "error: $1" >&2; exit 2; }
remote() { adb shell "$1" </dev/null | tr -d '\r'; }
clean() {
  [[ -z $there ]] || remote "pkill -x perf_test; rm -rf $there" >/dev/null 2>&1 || true
  rm -f "$here/phone.part"
}
[[ $# -ge 1 ]] || stop "which benchmark tool? bash run.sh PERF_TEST [THREADS…]"
tool=$1
shift
[[ -f $tool ]] || stop "$tool: no such file; expected onnxruntime_perf_test, built for Android"
[[ $# -gt 0 ]] || set -- 1
for threads; do
  [[ $threads =~ ^[1-9][0-9]*$ ]] || stop "threads: '$threads' is not a positive number"
done
command -v adb >/dev/null || stop "adb is not installed; it comes with Android's platform tools"
state=$(adb get-state 2>&1 </dev/null | tail -n 1 | tr -d '\r' || true)
[[ $state == device ]] || stop "adb says '$state': plug in one phone and allow debugging, or start an emulator"

trap clean EXIT
trap 'exit 130' INT TERM
there=$(remote "mktemp -d -p /data/local/tmp distilbert-XXXXXX")
[[ $there == /data/local/tmp/distilbert-* ]] || { there=; stop "the phone gives no folder to work in"; }
adb push "$tool" "$there/perf_test" >/dev/null
for library in "$(dirname "$tool")"/libonnxruntime*.so; do
  [[ ! -f $library ]] || adb push "$library" "$there/" >/dev/null
done
remote "chmod 755 $there/perf_test"

property() { remote "getprop $1" | tr -d ','; }
ram=$(remote "cat /proc/meminfo" | awk '/^MemTotal/ { print int($2 * 1024 / 1e6) }')
kind=phone
[[ $(property ro.kernel.qemu)$(property ro.boot.qemu) == *1* ]] && kind=emulator
what=$(property ro.build.version.release),$(property ro.build.version.sdk),$(property ro.product.cpu.abi),$ram,$kind
what=$what,$(property ro.product.model)

names=()
for folder in "$here"/*/; do
  names+=("$(basename "$folder")")
  adb push "${folder%/}" "$there/${names[-1]}" >/dev/null
done
echo model,threads,run,seconds,android,api,abi,ram_mb,device,name >"$here/phone.part"
for ((round = 0; round < rounds; round++)); do
  for ((place = 0; place < ${#names[@]}; place++)); do
    name=${names[round % 2 ? ${#names[@]} - 1 - place : place]}
    model=$name/model.ort
    [[ -f $here/$model ]] || model=$name/model.onnx
    for threads; do
      echo "round $((round + 1)) of $rounds: $name, threads: $threads" >&2
      remote "cd $there && rm -f times.csv &&
        LD_LIBRARY_PATH=. ./perf_test -e cpu -m times -r $runs -x $threads -y 1 $model times.csv" >/dev/null
      # The tool writes a line a run: model, seconds, memory, load of the processor, number of the run.
      remote "cat $there/times.csv" | awk -F, -v OFS=, -v name="$name" -v threads="$threads" -v what="$what" \
        -v before=$((round * runs)) 'NF == 5 { print name, threads, before + $5, $2, what; n++ }
        END { if (!n) { print "error: " name ": the tool wrote no times" > "/dev/stderr"; exit 1 } }' >>"$here/phone.part"
    done
  done
done
mv "$here/phone.part" "$here/phone.csv"
echo "wrote $here/phone.csv"
