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
import torch

from helpers import ROOT, InputError, profiles
from helpers.experiments import pretraining
from helpers.measure import machine, records, sweep
from helpers.models import checkpoints, distillation, masked_lm

VARIANTS = ["student", "twin", "random"]
TIMES = {"training_minutes", "tokens_per_s"}
RUN = """
import json, sys
from helpers import profiles
from helpers.experiments import pretraining
from helpers.measure import records
profile = profiles.load("mini", json.loads(sys.argv[1]))
pretraining.Pretraining(profile, records.Workspace(profile, sys.argv[2])).run()
"""


@pytest.fixture(scope="module")
def experiment(tiny):
    """Makes the experiment in a store, with overrides of the profile."""

    def make(store, fresh=False, kind=pretraining.Pretraining, **overrides):
        profile = profiles.load("mini", tiny | {"distillation.variants": VARIANTS} | overrides)
        return kind(profile, records.Workspace(profile, str(store)), fresh)

    return make


def without_times(record: dict) -> dict:
    return {
        "unit": record["unit"],
        "settings": record["settings"],
        "metrics": {k: v for k, v in record["metrics"].items() if k not in TIMES},
    }


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    """One whole run: its experiment and its records."""
    made = experiment(tmp_path_factory.mktemp("finished"))
    return made, made.run()


def store_of(made: pretraining.Pretraining) -> Path:
    return made.space.results.parent.parent


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
    assert student["settings"]["teacher"] == checkpoints.file_hash(made.checkpoint(pretraining.TEACHER))
    assert {m["weights"] for m in student["provenance"]["models"]} == {"ours"}
    assert student["provenance"]["data"][0]["rows"]["train"] > 1000
    terms = [line for line in student["details"]["curve"] if "distillation" in line]
    assert terms and all(line["cosine"] >= 0 for line in terms)


def test_student_and_twin_start_alike_and_random_does_not(finished):
    starts = {
        record["unit"]["model"]: record["details"]["curve"][0]["heldout_kl_to_teacher"] for record in finished[1][1:]
    }
    assert starts["student"] == starts["twin"] < starts["random"]


@pytest.mark.slow
def test_two_runs_of_the_same_seed_agree_and_another_seed_differs(experiment, finished, tmp_path):
    again = experiment(tmp_path / "again").run()
    assert list(map(without_times, again)) == list(map(without_times, finished[1]))
    other = experiment(tmp_path / "again", **{"distillation.seeds": [1]})
    different = other.run()
    assert different[1]["metrics"]["masked_lm_loss"] != again[1]["metrics"]["masked_lm_loss"]


def test_nothing_is_measured_again(finished, monkeypatch):
    made, found = finished
    assert made.unmeasured() == []
    monkeypatch.setattr(made, "measure", lambda unit: pytest.fail("measured again"))
    assert made.run() == found


def test_changed_settings_are_another_measurement(experiment, finished):
    made, _ = finished
    changed = experiment(store_of(made), **{"distillation.temperature": 4.0})
    assert [unit["model"] for unit in changed.unmeasured()] == ["student", "twin", "random"]
    saved_more_often = experiment(store_of(made), **{"distillation.training.save_minutes": 9.0})
    assert saved_more_often.unmeasured() == []


def test_a_checkpoint_that_is_gone_is_remade_and_its_record_stays(experiment, finished, tmp_path):
    made, found = finished
    store = tmp_path / "store"
    shutil.copytree(store_of(made), store)
    copy = experiment(store)
    before = {path: path.stat().st_mtime_ns for path in copy.space.records.rglob("*.json")}
    student, teacher = made.units[1], pretraining.TEACHER
    hashes = {unit["model"]: checkpoints.file_hash(copy.checkpoint(unit)) for unit in (student, teacher)}
    for unit in (student, teacher):
        shutil.rmtree(copy.checkpoint(unit))
    again = experiment(store)
    assert again.unmeasured() == [], "the teacher's hash is known from its record"
    again.trained(student)
    assert {unit["model"]: checkpoints.file_hash(again.checkpoint(unit)) for unit in (student, teacher)} == hashes
    assert {path: path.stat().st_mtime_ns for path in again.space.records.rglob("*.json")} == before


def test_a_model_that_comes_out_otherwise_is_not_passed_off_as_the_one_on_record(experiment, finished, tmp_path):
    """As it does with other threads: a record of what starts from it would name weights that it never had."""
    shutil.copytree(store_of(finished[0]), tmp_path / "store")
    student = finished[0].units[1]
    (path,) = (tmp_path / "store").rglob("distillation/student-seed0-*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"details": record["details"] | {"checkpoint": "another"}}))
    shutil.rmtree(experiment(tmp_path / "store").checkpoint(student))
    with pytest.raises(InputError, match="student-seed0, trained again into .*, is not the model on record: run again"):
        experiment(tmp_path / "store").start(student)
    again = experiment(tmp_path / "store")
    assert again.weights(student) == checkpoints.file_hash(Path(again.start(student))), "what goes on names the new one"


def test_a_folder_can_be_the_teacher(tiny, finished, tmp_path):
    made, _ = finished
    folder = made.checkpoint(pretraining.TEACHER)
    overrides = {key: value for key, value in tiny.items() if not key.startswith("teacher_training")}
    profile = profiles.load("mini", overrides | {"teacher": str(folder), "teacher_training": {}})
    units = [pretraining.TEACHER, {"model": "student", "seed": 0}]
    found = pretraining.Pretraining(profile, records.Workspace(profile, str(tmp_path))).run(units)
    assert found[0]["metrics"]["masked_lm_loss"] == finished[1][0]["metrics"]["masked_lm_loss"]
    assert without_times(found[1])["metrics"] == without_times(finished[1][1])["metrics"]
    assert found[1]["settings"]["teacher"] == checkpoints.file_hash(folder)


def test_fresh_measures_again(experiment, finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(store_of(finished[0]), store)
    again = experiment(store, fresh=True)
    assert again.unmeasured() == again.units
    started = {record["unit"]["model"]: record["provenance"]["started"] for record in finished[1]}
    time.sleep(1.1)  # `started` is in whole seconds
    for record in again.run():
        assert record["provenance"]["started"] > started[record["unit"]["model"]]
        assert without_times(record) in [without_times(old) for old in finished[1]]


@pytest.mark.slow
def test_killed_in_mid_training_it_ends_with_the_same_records(tiny, tmp_path):
    """kill -9 while the student trains, then the same command again."""
    settings = tiny | {"distillation.training.steps": 150, "distillation.variants": ["student"]}
    often = settings | {"distillation.training.save_minutes": 0.0001}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

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
def test_what_cannot_be_run_is_refused_before_training(experiment, tmp_path, overrides, line):
    with pytest.raises(InputError, match=line) as refusal:
        experiment(tmp_path, **overrides).text.blocks  # noqa: B018 (loads the corpus)
    assert "\n" not in str(refusal.value)


def test_a_loss_that_turns_nan_leaves_earlier_results_whole(experiment, finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(store_of(finished[0]), store)
    before = {path: path.read_bytes() for path in store.rglob("*.json") if "records" in path.parts}
    wild = experiment(store, **{"distillation.training.learning_rate": 1e30, "distillation.training.clip": 1e30})
    with pytest.raises(sweep.SweepError, match="the loss became (nan|inf) by step"):
        wild.run()
    assert {path: path.read_bytes() for path in store.rglob("*.json") if "records" in path.parts} == before


def test_fill_mask_wants_one_mask(finished):
    made, _ = finished
    guesses = masked_lm.fill_mask(made.teacher, made.tokenizer, ["The river is [MASK].", "[MASK] sings."], top=3)
    assert [len(row) for row in guesses] == [3, 3] and all(0 < share <= 1 for row in guesses for _, share in row)
    with pytest.raises(InputError, match="expected exactly one"):
        masked_lm.fill_mask(made.teacher, made.tokenizer, ["No gap here."])


def test_students_without_a_part_of_the_recipe_are_kept_apart(experiment, finished, tmp_path):
    made, found = finished
    shutil.copytree(store_of(made), tmp_path / "store")
    few = {"ablation.variants": ["no_distillation", "quarter_text"]}
    fresh = experiment(tmp_path / "empty", kind=pretraining.Ablated, **few)
    with pytest.raises(InputError, match="teacher-seed0 is not there yet: run notebook 01"):
        fresh.settings(fresh.units[0])
    ablated = experiment(tmp_path / "store", kind=pretraining.Ablated, **few)
    without = ablated.run()
    assert [(r["experiment"], r["unit"]["model"]) for r in without] == [
        ("ablation", m) for m in few["ablation.variants"]
    ]
    recipes = [record["settings"]["recipe"] for record in (found[1], *without)]
    assert [recipe["weight_distillation"] for recipe in recipes] == [5.0, 0.0, 5.0]
    assert "text" not in without[0]["settings"] and without[1]["settings"]["text"] == "a quarter"
    assert without[0]["settings"]["teacher"] == found[1]["settings"]["teacher"]
    curves = [[line["loss"] for line in r["details"]["curve"] if "loss" in line] for r in (found[1], *without)]
    assert curves[0] != curves[1] != curves[2] != curves[0]
    again = experiment(tmp_path / "store", fresh=True, kind=pretraining.Ablated, **few)
    before = again.checkpoint(pretraining.TEACHER).stat().st_mtime_ns
    assert [without_times(record) for record in again.run()] == [without_times(record) for record in without]
    assert again.checkpoint(pretraining.TEACHER).stat().st_mtime_ns == before, "the teacher is another experiment's"
    whole = experiment(tmp_path / "store", **few)
    shutil.rmtree(whole.checkpoint(ablated.units[0]))
    assert whole.weights(ablated.units[0]) == without[0]["details"]["checkpoint"], "known from its own record"


def test_dropped_is_the_start_of_the_others_and_learns_nothing(experiment, finished, tmp_path):
    shutil.copytree(store_of(finished[0]), tmp_path / "store")
    several = experiment(tmp_path / "store", **{"distillation.variants": ["student", "dropped"]})
    dropped = several.run()[-1]
    assert "training_minutes" not in dropped["metrics"] and "training" not in dropped["settings"]["recipe"]
    ours = several.trained({"model": "dropped", "seed": 0})[0].state_dict()
    start = distillation.from_teacher(several.teacher, several.layers).state_dict()
    assert ours.keys() == start.keys() and all(torch.equal(ours[name], start[name]) for name in ours)


def test_the_twin_of_equal_time_takes_the_steps_that_were_measured(experiment, finished, tmp_path):
    made, found = finished
    shutil.copytree(store_of(made), tmp_path / "store")
    longer = {"distillation.variants": ["twin", "twin_time"], "distillation.equal_time": 1.5}
    several = experiment(tmp_path / "store", **longer)
    twin, longer = several.run()[1:]
    assert twin == found[2], "what was measured before equal_time was known is still found"
    assert longer["settings"]["steps"] == 9 and "steps" not in twin["settings"]
    names = {record["unit"]["model"] for record in records.Evidence(several.space)("distillation")}
    assert names >= {"student", "twin", "twin_time"}, "they can stand beside each other"
    assert longer["metrics"]["training_tokens"] == pytest.approx(1.5 * twin["metrics"]["training_tokens"], rel=0.1)
    with pytest.raises(InputError, match="equal_time says how many steps"):
        experiment(tmp_path / "store", **{"distillation.variants": ["twin_time"], "distillation.equal_time": None})


def test_snapshots_are_kept_on_the_way_and_change_nothing(experiment, finished, tmp_path):
    made, _ = finished
    shutil.copytree(store_of(made), tmp_path / "store")
    several = experiment(tmp_path / "store", **{"distillation.snapshots": [0.5]})
    student = {"model": "student", "seed": 0}
    shutil.rmtree(several.checkpoint(student))
    again = several.trained(student)[0].state_dict()
    before = made.trained(student)[0].state_dict()
    assert all(torch.equal(again[name], before[name]) for name in again), "snapshots change no training"
    half = several.start(student | {"part": 0.5})
    third = checkpoints.load_masked_lm(half)[0].state_dict()
    assert any(not torch.equal(third[name], again[name]) for name in again)
    start = distillation.from_teacher(made.teacher, made.layers).state_dict()
    assert any(not torch.equal(third[name], start[name]) for name in again)
    assert several.weights(student | {"part": 0.5}) == checkpoints.file_hash(Path(half))


def test_a_plan_counts_the_tokens_of_each_training(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "tokens_per_s", lambda *_: 1000.0)
    made = experiment(tmp_path)
    seconds = {unit["model"]: made.seconds(unit) for unit in made.units}
    tokens = 6 * 8 * made.profile.corpus.block_length
    # To learn counts three times as much as to read; a student has one of its teacher's two layers.
    expected = {"teacher": 3.0, "student": 1.5 + 1, "twin": 1.5, "random": 1.5 + 1}
    assert seconds == {name: pytest.approx(work * tokens / 1000) for name, work in expected.items()}
    assert f"4 units, of which 4 have no record yet: about {sum(seconds.values()) / 60:.0f} minutes" in made.plan()
