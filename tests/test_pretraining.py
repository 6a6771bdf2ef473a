"""The pretraining experiment on the mini-world, at a size of seconds: resumed after a kill, remade, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import InputError, cloze, models, pretraining, profiles, records, sweep

TINY = {
    "threads": 1,
    "corpus.train_blocks": 64,
    "corpus.heldout_blocks": 12,
    "corpus.curve_blocks": 4,
    "teacher_training.architecture": {"layers": 2, "width": 32, "heads": 2, "feed_forward": 64},
    "teacher_training.whole.steps": 6,
    "teacher_training.whole.batch_size": 8,
    "distillation.layers": 1,
    "distillation.seeds": [0],
    "distillation.training.steps": 6,
    "distillation.training.batch_size": 8,
}
TIMES = {"training_minutes", "tokens_per_s"}
RUN = """
import json, sys
from helpers import pretraining, profiles, records, sweep
profile = profiles.load("mini", json.loads(sys.argv[1]))
space = records.Workspace(profile, sys.argv[2])
experiment = pretraining.Pretraining(profile, space)
sweep.run(space, "distillation", experiment.units, experiment.settings, experiment.measure)
"""


def experiment(store, fresh=False, **overrides):
    profile = profiles.load("mini", TINY | overrides)
    return pretraining.Pretraining(profile, records.Workspace(profile, str(store)), fresh)


def run(made: pretraining.Pretraining, units=None) -> list[dict]:
    return sweep.run(made.space, "distillation", units or made.units, made.settings, made.measure, made.fresh)


def without_times(record: dict) -> dict:
    return {
        "unit": record["unit"],
        "settings": record["settings"],
        "metrics": {k: v for k, v in record["metrics"].items() if k not in TIMES},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run: its experiment and its records."""
    made = experiment(tmp_path_factory.mktemp("finished"))
    return made, run(made)


def test_every_variant_is_trained_measured_and_kept(finished):
    made, found = finished
    assert [record["unit"]["model"] for record in found] == ["teacher", "student", "twin", "random"]
    metrics = {record["unit"]["model"]: record["metrics"] for record in found}
    assert "kl_to_teacher" not in metrics["teacher"] and all("kl_to_teacher" in metrics[m] for m in ("student", "twin"))
    assert metrics["student"]["parameters"] < metrics["teacher"]["parameters"]
    assert metrics["random"]["kl_to_teacher"] > metrics["student"]["kl_to_teacher"]
    for unit in made.units:
        folder = made.checkpoint(unit)
        assert (folder / "model.safetensors").exists() and not folder.with_name(f"{folder.name}.training").exists()
    student = found[1]
    assert student["settings"]["teacher"] == models.file_hash(made.checkpoint(pretraining.TEACHER))
    assert {m["weights"] for m in student["provenance"]["models"]} == {"ours"}
    assert student["provenance"]["data"][0]["rows"]["train"] > 1000
    terms = [line for line in student["details"]["curve"] if "distillation" in line]
    assert terms and all(line["cosine"] >= 0 for line in terms)


def test_student_and_twin_start_alike_and_random_does_not(finished):
    starts = {
        record["unit"]["model"]: record["details"]["curve"][0]["heldout_kl_to_teacher"] for record in finished[1][1:]
    }
    assert starts["student"] == starts["twin"] < starts["random"]


def test_two_runs_of_the_same_seed_agree_and_another_seed_differs(finished, tmp_path):
    again = run(experiment(tmp_path / "again"))
    assert list(map(without_times, again)) == list(map(without_times, finished[1]))
    other = experiment(tmp_path / "again", **{"distillation.seeds": [1]})
    different = run(other)
    assert different[1]["metrics"]["masked_lm_loss"] != again[1]["metrics"]["masked_lm_loss"]


def test_nothing_is_measured_again(finished, monkeypatch):
    made, found = finished
    assert made.unmeasured() == []
    monkeypatch.setattr(made, "measure", lambda unit: pytest.fail("measured again"))
    assert run(made) == found


def test_changed_settings_are_another_measurement(finished):
    made, _ = finished
    changed = experiment(made.space.results.parent.parent, **{"distillation.temperature": 4.0})
    assert [unit["model"] for unit in changed.unmeasured()] == ["student", "twin", "random"]
    saved_more_often = experiment(made.space.results.parent.parent, **{"distillation.training.save_minutes": 9.0})
    assert saved_more_often.unmeasured() == []


def test_a_checkpoint_that_is_gone_is_remade_and_its_record_stays(finished, tmp_path):
    made, found = finished
    store = tmp_path / "store"
    shutil.copytree(made.space.results.parent.parent, store)
    copy = experiment(store)
    before = {path: path.stat().st_mtime_ns for path in copy.space.records.rglob("*.json")}
    student, teacher = made.units[1], pretraining.TEACHER
    hashes = {unit["model"]: models.file_hash(copy.checkpoint(unit)) for unit in (student, teacher)}
    for unit in (student, teacher):
        shutil.rmtree(copy.checkpoint(unit))
    again = experiment(store)
    assert again.unmeasured() == [], "the teacher's hash is known from its record"
    again.trained(student)
    assert {unit["model"]: models.file_hash(again.checkpoint(unit)) for unit in (student, teacher)} == hashes
    assert {path: path.stat().st_mtime_ns for path in again.space.records.rglob("*.json")} == before


def test_a_folder_can_be_the_teacher(finished, tmp_path):
    made, _ = finished
    folder = made.checkpoint(pretraining.TEACHER)
    overrides = {key: value for key, value in TINY.items() if not key.startswith("teacher_training")}
    profile = profiles.load("mini", overrides | {"teacher": str(folder), "teacher_training": {}})
    space = records.Workspace(profile, str(tmp_path))
    found = run(pretraining.Pretraining(profile, space), [pretraining.TEACHER, {"model": "student", "seed": 0}])
    assert found[0]["metrics"]["masked_lm_loss"] == finished[1][0]["metrics"]["masked_lm_loss"]
    assert without_times(found[1])["metrics"] == without_times(finished[1][1])["metrics"]
    assert found[1]["settings"]["teacher"] == models.file_hash(folder)


def test_fresh_measures_again(finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished[0].space.results.parent.parent, store)
    again = experiment(store, fresh=True)
    assert again.unmeasured() == again.units
    started = {record["unit"]["model"]: record["provenance"]["started"] for record in finished[1]}
    time.sleep(1.1)  # `started` is in whole seconds
    for record in run(again):
        assert record["provenance"]["started"] > started[record["unit"]["model"]]
        assert without_times(record) in [without_times(old) for old in finished[1]]


def test_killed_in_mid_training_it_ends_with_the_same_records(tmp_path):
    """kill -9 while the student trains, then the same command again."""
    settings = TINY | {"distillation.training.steps": 150, "distillation.variants": ["student"]}
    often = settings | {"distillation.training.save_minutes": 0.0001}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}

    def start(store, settings=settings):
        command = [sys.executable, "-c", RUN, json.dumps(settings), str(store)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def found(store):
        paths = sorted((store / "results" / "mini" / "records" / "distillation").glob("*.json"))
        return [without_times(records.read_record(path)) for path in paths]

    process, deadline = start(tmp_path / "cut", often), time.monotonic() + 120
    while not list(
        (tmp_path / "cut").glob("checkpoints/mini/student*.training/stage-0/checkpoint-*/trainer_state.json")
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(found(tmp_path / "cut")) == 1, "the teacher has its record, the student must not have one yet"
    for store in ("cut", "whole"):
        process = start(tmp_path / store)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(found(tmp_path / "whole")) == 2
    assert found(tmp_path / "cut") == found(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"distillation.layers": 3}, "a student of 3 layers cannot be taken from a teacher of 2"),
        ({"distillation.layers": [0, 2]}, r"layers \[0, 2\]: the teacher has layers 0 to 1; not there: \[2\]"),
        ({"corpus.train": "wikitext-103-v1"}, "wikitext-103-v1"),
        ({"teacher_training.architecture": None, "teacher": "no-such-folder/x"}, "model 'no-such-folder/x'"),
        ({"precision": "fp16", "device": "cpu"}, "fp16"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(tmp_path, overrides, line):
    with pytest.raises(InputError, match=line) as refusal:
        experiment(tmp_path, **overrides).text.blocks  # noqa: B018 (loads the corpus)
    assert "\n" not in str(refusal.value)


def test_a_loss_that_turns_nan_leaves_earlier_results_whole(finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished[0].space.results.parent.parent, store)
    before = {path: path.read_bytes() for path in store.rglob("*.json") if "records" in path.parts}
    wild = experiment(store, **{"distillation.training.learning_rate": 1e30, "distillation.training.clip": 1e30})
    with pytest.raises(sweep.SweepError, match="the loss became (nan|inf) by step"):
        run(wild)
    assert {path: path.read_bytes() for path in store.rglob("*.json") if "records" in path.parts} == before


def test_fill_mask_wants_one_mask(finished):
    made, _ = finished
    guesses = cloze.fill_mask(made.teacher, made.tokenizer, ["The river is [MASK].", "[MASK] sings."], top=3)
    assert [len(row) for row in guesses] == [3, 3] and all(0 < share <= 1 for row in guesses for _, share in row)
    with pytest.raises(InputError, match="expected exactly one"):
        cloze.fill_mask(made.teacher, made.tokenizer, ["No gap here."])


def test_the_estimate_of_a_units_minutes_is_made_of_its_steps(finished):
    made, _ = finished
    minutes = made.estimated_minutes(made.units[1:2])
    longer = experiment(made.space.results.parent.parent, **{"distillation.training.steps": 6000})
    assert 0 < minutes < 1 and longer.estimated_minutes(made.units[1:2]) > 50 * minutes
