"""The student for a phone: what is exported, laid out for a real one, and asked on an emulated one."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from helpers import ROOT, InputError, profiles
from helpers.compression import onnx, runtimes, variants
from helpers.experiments import edge
from helpers.measure import machine, records


def made(store, **own) -> edge.Deployed:
    profile = profiles.load("mini", {f"edge.{name}": value for name, value in own.items()})
    return edge.Deployed(profile, records.Workspace(profile, str(store)))


def test_units_cover_what_the_profile_asks_for(tmp_path):
    experiment = made(tmp_path, variants=["weights_90_recovered", "weights_90", "layers_1"], threads=[1, 2])
    names = {head: [u["variant"] for u in experiment.units if u["head"] == head] for head in variants.HEADS}
    assert list(dict.fromkeys(names["sst2"]))[:4] == [
        "fp32",
        "fp32_int8",
        "weights_90_recovered",
        "weights_90_recovered_int8",
    ]
    assert len(names["sst2"]) == 4 * 2 * 2 * 2
    assert len(names["masked_lm"]) == 3 * 2 * 2 * 2, "what is not trained again is there once"
    assert not [name for name in names["masked_lm"] if "recovered" in name]
    assert experiment.ready == []
    with pytest.raises(InputError, match="run notebooks 01 and 02 first, or set `store` to where their results are"):
        experiment.plan()
    assert [u["threads"] for u in experiment.units if experiment.judged(u)] == [1] * (len(experiment.units) // 2)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="edge.variants has fp32_int8: leave out _int8"):
        made(tmp_path, variants=["fp32_int8"])
    with pytest.raises(InputError, match="unknown variant 'sawn_50'"):
        made(tmp_path, variants=["sawn_50"])
    with pytest.raises(InputError, match=f"edge.threads has 999, and this machine has cores: {machine.usable_cores()}"):
        made(tmp_path, threads=[999])
    with pytest.raises(InputError, match="edge.length"):
        made(tmp_path, length=513)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, page) -> Path:
    """A small classifier in fp32 and in 8 bits, in ONNX and in ORT's format."""
    (to_ort,) = page("09_edge", "to_ort")
    torch.manual_seed(0)
    shape = {"dim": 64, "hidden_dim": 256, "n_layers": 2, "n_heads": 2, "vocab_size": 500}
    folder = tmp_path_factory.mktemp("exported")
    onnx.export(DistilBertForSequenceClassification(DistilBertConfig(**shape)), folder, folder / "fp32")
    onnx.quantize(folder / "fp32", folder / "int8", "onnx_int8_embeddings")
    for name in ("fp32", "int8"):
        to_ort(folder / name, folder / f"{name}_ort")
    return folder


def rows(*lengths: int) -> list[runtimes.Inputs]:
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


@pytest.mark.slow
def test_a_bundle_holds_models_inputs_and_expected_outputs(exported, tmp_path, page):
    tensors, for_a_phone, _ = page("09_edge", "tensors", "for_a_phone", "lay_out")
    made = for_a_phone({"plain": exported / "fp32", "mobile": exported / "fp32_ort"}, rows(5, 9), tmp_path)
    assert {path.name for path in made.iterdir()} == {"run.sh", "plain", "mobile"}
    assert (made / "mobile/model.ort").exists() and (made / "plain/model.onnx").exists()
    for name in ("plain", "mobile"):
        run = runtimes.load(made / name, threads=1)
        for number, row in enumerate(rows(5, 9)):
            inputs, expected = tensors(made / name / ("answer_1" if number else "test_data_set_0"))
            assert list(inputs) == ["input_ids", "attention_mask"], "in the model's own order, and no more"
            np.testing.assert_array_equal(inputs["input_ids"], row["input_ids"])
            np.testing.assert_allclose(run(inputs), expected, atol=1e-6)
    (made / "phone.csv").write_text("times")
    again = for_a_phone({"plain": exported / "fp32", "mobile": exported / "fp32_ort"}, rows(5, 9), tmp_path)
    assert again == made and (made / "phone.csv").exists(), "what a phone sent back stays"
    assert for_a_phone({"plain": exported / "fp32"}, rows(5), tmp_path) != made
    assert not list(tmp_path.glob(".phone-*")), "nothing half-made is left"


def test_the_script_times_every_model_and_brings_the_times_back(exported, tmp_path, page):
    read_phone, phone_summary, for_a_phone, _ = page("09_edge", "read_phone", "phone_summary", "for_a_phone", "lay_out")
    made = for_a_phone({"plain": exported / "fp32", "mobile": exported / "fp32_ort"}, rows(5), tmp_path / "made")
    done = take(made, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = read_phone(made / "phone.csv")
    assert len(table) == 5 * 2 * 2 * 3 and set(table.model) == {"plain", "mobile"} and set(table.threads) == {1, 2}
    assert table[["android", "api", "abi", "ram_mb", "device", "name"]].drop_duplicates().values.tolist() == [
        [14, 34, "arm64-v8a", 4096, "emulator", "Pixel 8"]
    ]
    assert not table.duplicated(["model", "threads", "run"]).any()
    order = [line.split("/")[0] for line in (tmp_path / "order").read_text().split()]
    assert order[:8] == ["mobile", "mobile", "plain", "plain", "plain", "plain", "mobile", "mobile"], "to and fro"
    row = phone_summary(table).loc["mobile"].iloc[0]
    assert (row["mean (ms)"], row["p50 (ms)"], row["n"]) == ("20.00", "20.00", 15)
    assert row["on"] == "Pixel 8 (emulator), Android 14 (API 34), arm64-v8a"
    assert not list((tmp_path / "phone").iterdir()), "nothing is left on the phone"


def test_what_goes_wrong_on_the_way_is_one_line(exported, tmp_path, page):
    for_a_phone = page("09_edge", "lay_out", "for_a_phone")[1]
    made = for_a_phone({"plain": exported / "fp32"}, rows(5), tmp_path / "made")
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


def test_other_tables_are_refused(tmp_path, page):
    read_phone, columns = page("09_edge", "read_phone", "PHONE_COLUMNS")
    path, head = tmp_path / "phone.csv", ",".join(columns)
    path.write_text("model,ms\nplain,3\n")  # another tool's
    with pytest.raises(InputError, match=r"phone.csv: columns model, ms: expected model, threads, run, seconds"):
        read_phone(path)
    for text in (
        f"{head}\n",
        f"{head}\nplain,1,0,fast,14,34,arm64,4096,phone,x\n",
        f"{head}\na,1,0,-1,14,34,b,1,phone,x\n",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="not all have a time in seconds"):
            read_phone(path)
    path.write_text("")
    with pytest.raises(InputError, match="not a table"):
        read_phone(path)


ON_ARM64 = ("emulated_python", "why_not_arm64", "ask", "compared", "Emulated")


@pytest.fixture
def arm64(page) -> dict:
    """What notebook 09 defines to ask models on arm64."""
    return page("09_edge", *ON_ARM64)[0].__globals__


def test_another_process_gives_the_same_answers(exported, arm64):
    given = rows(4, 16)
    said, version = arm64["ask"](exported / "fp32_ort/model.ort", given, emulated=False)
    run = runtimes.load(exported / "fp32_ort", threads=1)
    for row, logits in zip(given, said, strict=True):
        np.testing.assert_allclose(logits, run(row), atol=1e-6)
    assert version[0].isdigit()
    with pytest.raises(InputError, match="gone.ort: its process failed: "):
        arm64["ask"](exported / "gone.ort", given, emulated=False)


@pytest.mark.parametrize(("name", "near"), [("fp32_ort", 1e-6), ("int8_ort", 1e-4)])
def test_an_arm_processor_gives_the_same_answers(exported, name, near, arm64):
    if missing := arm64["why_not_arm64"]():
        pytest.skip(missing)
    (theirs, version), (ours, here) = (
        arm64["ask"](exported / name / "model.ort", rows(4, 16), on) for on in (True, False)
    )
    assert version == here
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(one, other, atol=near)


def test_what_is_missing_is_said(monkeypatch, tmp_path, arm64):
    why = arm64["why_not_arm64"]
    arm64["ARM64"] = tmp_path
    monkeypatch.setattr(arm64["shutil"], "which", lambda name: None)
    assert why().startswith("qemu-aarch64-static is not installed")
    monkeypatch.setattr(arm64["shutil"], "which", lambda name: "/usr/bin/qemu")
    assert why() == "the emulated system is not set up: tools/arm64.sh"
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/python3.11").touch()
    (tmp_path / "site").mkdir()
    assert why() is None


def test_the_committed_answers_are_those_of_the_models_they_were_made_from():
    """As notebook 09 asks: 1e-4 in fp32; in 8 bits 3 and the same accuracy to a point."""
    found = [records.read_record(path) for path in (ROOT / "results/laptop/records/edge").glob("*.json")]
    judged = {records.slug(r["unit"]): r["metrics"] for r in found if "score" in r["metrics"]}
    assert len(judged) == 2 * 3 * 2 * 2
    for name, scores in judged.items():
        assert scores["largest_difference"] <= (3 if "_int8-" in name else 1e-4), name
        assert abs(scores["score"] - judged[name.replace("_int8-", "-")]["score"]) <= 0.01, name


def test_a_second_copy_of_the_vocabulary_is_as_large_as_the_matrix(page):
    (with_a_second_vocabulary,) = page("09_edge", "with_a_second_vocabulary")
    once, twice = with_a_second_vocabulary()
    assert once == pytest.approx(66_985_530 * 4e-6) and twice - once == pytest.approx(30_522 * 768 * 4e-6)


def test_what_was_asked_on_arm64_is_there_without_an_emulator(tmp_path, monkeypatch, arm64):
    arm64["why_not_arm64"] = lambda: "no emulator here"
    monkeypatch.setattr(edge.Deployed, "why_not", lambda *_: None)
    profile = profiles.load("mini")
    space = records.Workspace(profile, str(tmp_path))
    arm64["experiment"] = edge.Deployed(profile, space)
    check = arm64["Emulated"](profile, space)
    assert {"head": "sst2", "variant": "fp32_int8"} in check.units and "threads" not in check.units[0]
    assert len(check.units) == len(edge.Deployed(profile, space).units) / (2 * len(profile.edge.threads)), (
        "once a model"
    )
    assert check.run() == [] and {check.why_not(unit) for unit in check.units} == {"no emulator here"}
    first, measured = check.units[0], records.Measurement({"agreement": 1.0}, [], [])
    space.write(check.name, first, check.settings(first), measured, records.provenance(datetime.now(UTC), [], []))
    (found,) = arm64["Emulated"](profile, space, fresh=True).run()
    assert found["unit"] == first and found["metrics"] == {"agreement": 1.0}, "kept, since it could not be asked again"
