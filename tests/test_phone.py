"""A folder for a phone: what lies in it, the script with a stand-in for adb and the tool, and what comes back."""

import os
import subprocess

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from helpers import InputError, edge, phone, runners


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny classifier in ORT's format, and in ONNX."""
    torch.manual_seed(0)
    shape = {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "vocab_size": 100, "max_position_embeddings": 32}
    folder = tmp_path_factory.mktemp("exported")
    edge.export(DistilBertForSequenceClassification(DistilBertConfig(**shape)), folder, folder / "onnx")
    edge.mobile(folder / "onnx", folder / "ort")
    return folder


def rows(*lengths: int) -> list[runners.Inputs]:
    found = []
    for length in lengths:
        ids = np.random.default_rng(length).integers(5, 100, (1, length))
        found.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return found


ADB = """#!/usr/bin/env bash
there=/data/local/tmp
mkdir -p "$PHONE"
case $1 in
  get-state) echo device ;;
  push) cp -r "$2" "${3/$there/$PHONE}" ;;
  shell)
    shift
    case $* in
      "getprop ro.build.version.release") printf '14\\r\\n' ;;
      "getprop ro.build.version.sdk") printf '34\\r\\n' ;;
      "getprop ro.product.cpu.abi") printf 'arm64-v8a\\r\\n' ;;
      "getprop ro.boot.qemu") printf '1\\r\\n' ;;
      "getprop ro.product.model") printf 'Pixel, 8\\r\\n' ;;
      "getprop"*) printf '\\r\\n' ;;
      "cat /proc/meminfo") printf 'MemTotal:        4000000 kB\\r\\n' ;;
      *) bash -c "${*//$there/$PHONE}" | sed "s#$PHONE#$there#" ;;
    esac ;;
esac
"""
TOOL = """#!/usr/bin/env bash
# Checks that it is given what the real one needs, and writes what the real one writes.
model=${@: -2:1} times=${@: -1}
[[ -f $model && -f $(dirname "$model")/test_data_set_0/input_0.pb && -f libonnxruntime.so ]] || exit 3
[[ $LD_LIBRARY_PATH == . ]] && echo "$model" >>"$PHONE/../order" || exit 4
for run in 0 1 2; do echo "model,0.0$((run + 1)),1000000,50,$run" >>"$times"; done
printf '\\nP50 Latency is 0.02sec\\n' >>"$times"
"""


def take(bundle, folder, *arguments: str, adb: str | None = ADB, tool: str = TOOL) -> subprocess.CompletedProcess:
    (folder / "bin").mkdir(exist_ok=True)
    if adb:
        (folder / "bin/adb").write_text(adb)
        (folder / "bin/adb").chmod(0o755)
    (folder / "tool").write_text(tool)
    (folder / "tool").chmod(0o755)
    (folder / "libonnxruntime.so").touch()
    environment = os.environ | {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "PHONE": str(folder / "phone")}
    command = [str(bundle / "run.sh"), *(arguments or (str(folder / "tool"), "1", "2"))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_bundle_holds_models_inputs_and_expected_outputs(exported, tmp_path):
    made = phone.bundle({"plain": exported / "onnx", "mobile": exported / "ort"}, rows(5, 9), tmp_path)
    assert {path.name for path in made.iterdir()} == {"run.sh", "plain", "mobile"}
    assert (made / "mobile/model.ort").exists() and (made / "plain/model.onnx").exists()
    for name in ("plain", "mobile"):
        run = runners.load(made / name, threads=1)
        for number, row in enumerate(rows(5, 9)):
            inputs, expected = phone.tensors(made / name / ("answer_1" if number else "test_data_set_0"))
            assert list(inputs) == ["input_ids", "attention_mask"], "in the model's own order, and no more"
            np.testing.assert_array_equal(inputs["input_ids"], row["input_ids"])
            np.testing.assert_allclose(run(inputs), expected, atol=1e-6)
    (made / "phone.csv").write_text("times")
    again = phone.bundle({"plain": exported / "onnx", "mobile": exported / "ort"}, rows(5, 9), tmp_path)
    assert again == made and (made / "phone.csv").exists(), "what a phone sent back stays"
    assert phone.bundle({"plain": exported / "onnx"}, rows(5), tmp_path) != made
    with pytest.raises(InputError, match=r"'a b': the name of a model on a phone has letters, digits and _ only"):
        phone.bundle({"a b": exported / "onnx"}, rows(5), tmp_path)
    assert not list(tmp_path.glob(".phone-*")), "nothing half-made is left"


def test_the_script_times_every_model_and_brings_the_times_back(exported, tmp_path):
    made = phone.bundle({"plain": exported / "onnx", "mobile": exported / "ort"}, rows(5), tmp_path / "made")
    done = take(made, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = phone.read(made / "phone.csv")
    assert len(table) == 5 * 2 * 2 * 3 and set(table.model) == {"plain", "mobile"} and set(table.threads) == {1, 2}
    assert table[["android", "api", "abi", "ram_mb", "device", "name"]].drop_duplicates().values.tolist() == [
        [14, 34, "arm64-v8a", 4096, "emulator", "Pixel 8"]
    ]
    assert not table.duplicated(["model", "threads", "run"]).any()
    order = [line.split("/")[0] for line in (tmp_path / "order").read_text().split()]
    assert order[:8] == ["mobile", "mobile", "plain", "plain", "plain", "plain", "mobile", "mobile"], "to and fro"
    row = phone.summary(table).loc["mobile"].iloc[0]
    assert (row["mean (ms)"], row["p50 (ms)"], row["n"]) == ("20.00", "20.00", 15)
    assert row["on"] == "Pixel 8 (emulator), Android 14 (API 34), arm64-v8a"
    assert not list((tmp_path / "phone").iterdir()), "nothing is left on the phone"


def test_what_goes_wrong_on_the_way_is_one_line(exported, tmp_path):
    made = phone.bundle({"plain": exported / "onnx"}, rows(5), tmp_path / "made")
    for arguments, message in (
        (("/no/tool",), "error: /no/tool: no such file; expected onnxruntime_perf_test, built for Android"),
        ((str(tmp_path / "tool"), "two"), "error: threads: 'two' is not a positive number"),
    ):
        done = take(made, tmp_path, *arguments)
        assert done.returncode == 2 and done.stderr.strip() == message
    silent = take(made, tmp_path, tool="#!/usr/bin/env bash\ntouch times.csv\n")
    assert silent.returncode != 0 and "error: plain: the tool wrote no times" in silent.stderr
    two = "#!/usr/bin/env bash\necho 'error: more than one device' >&2; exit 1\n"
    unseen = take(made, tmp_path, adb=two)
    assert unseen.returncode == 2 and unseen.stderr.startswith("error: adb says 'error: more than one device': plug in")
    assert not (made / "phone.csv").exists() and not (made / "phone.part").exists()


def test_other_tables_are_refused(tmp_path):
    path, head = tmp_path / "phone.csv", ",".join(phone.COLUMNS)
    path.write_text("model,ms\nplain,3\n")  # another tool's
    with pytest.raises(InputError, match=r"phone.csv: columns model, ms: expected model, threads, run, seconds"):
        phone.read(path)
    for text in (
        f"{head}\n",
        f"{head}\nplain,1,0,fast,14,34,arm64,4096,phone,x\n",
        f"{head}\na,1,0,-1,14,34,b,1,phone,x\n",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="not all have a time in seconds"):
            phone.read(path)
    path.write_text("")
    with pytest.raises(InputError, match="not a table"):
        phone.read(path)
