"""The experiments on fine-tuned models, at a size of seconds: what they need, keep, refuse and take up again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_pretraining import TINY, run, without_times

from helpers import InputError, downstream, glue, imdb, metrics, models, pretraining, profiles, records, squad, sweep

RECIPE = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "train_rows": 24, "dev_rows": 20, "length": 48}
FEW = TINY | {
    "distillation.variants": ["student", "twin"],
    "glue.tasks": ["mrpc", "stsb", "mnli"],
    "glue.models": ["teacher", "student", "student_d"],
    "glue.seeds": [0, 1],
    "glue.recipes": {task: RECIPE for task in metrics.GLUE},
    "glue.padding": {"rows": 16, "epochs": 1, "seeds": [0, 1, 2], "length": 64},
    "ablation": {"variants": ["no_cosine", "quarter_text"], "tasks": ["sst2"], "seeds": [0]},
    "imdb": {"models": ["student", "twin"], "seeds": [0], "recipe": RECIPE, "lengths": [32]},
    "squad": {"models": ["teacher", "student", "student_d"], "seeds": [0], "recipe": RECIPE | {"length": 96}}
    | {"stride": 16, "longest_answer": 12},
}
RUN = """
import json, sys
from helpers import glue, profiles, records, sweep
profile = profiles.load("mini", json.loads(sys.argv[1]))
made = glue.Glue(profile, records.Workspace(profile, sys.argv[2]))
sweep.run(made.space, "glue", made.units, made.settings, made.measure)
"""
TIMES = {"training_minutes", "examples_per_s", "tokens_per_s"}


def load(kind, store, **overrides):
    profile = profiles.load("mini", FEW | overrides)
    return kind(profile, records.Workspace(profile, str(store)))


def sweep_all(made: downstream.Downstream, units=None) -> list[dict]:
    return sweep.run(made.space, made.experiment, units or made.units, made.settings, made.measure)


def numbers(record: dict) -> dict:
    """A record without what may differ between two runs."""
    plain = without_times(record)
    plain["metrics"] = {name: value for name, value in plain["metrics"].items() if name not in TIMES}
    return plain | {"predictions": record["details"]["predictions"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A workspace in which notebook 01 has run."""
    folder = tmp_path_factory.mktemp("downstream")
    profile = profiles.load("mini", FEW)
    run(pretraining.Pretraining(profile, records.Workspace(profile, str(folder))))
    return folder


@pytest.fixture(scope="module")
def graded(store):
    """The whole of GLUE there, and its records."""
    made = load(glue.Glue, store)
    return made, sweep_all(made)


def test_every_cell_has_its_record(graded):
    made, found = graded
    assert len(found) == 3 * 3 * 2 and made.unmeasured == []
    for record in found:
        task = record["unit"]["task"]
        assert set(metrics.GLUE[task]) <= set(record["metrics"])
        guesses, truth = (downstream.unpack(record["details"][key]) for key in ("predictions", "references"))
        again = metrics.GlueMetric(task).compute(predictions=guesses, references=truth)
        for name, value in again.items():
            assert record["metrics"][name] == pytest.approx(value, abs=1e-9)
        assert record["metrics"]["score"] == pytest.approx(metrics.task_score(task, record["metrics"]))
        assert ("accuracy_mismatched" in record["metrics"]) == (task == "mnli")
        capped = {split: text for d in record["provenance"]["data"] for split, text in d["capped"].items()}
        assert capped["train"].startswith("24 of 1,") and len(guesses) == 20
    seeds = [r["metrics"]["pearson"] for r in found if r["unit"]["task"] == "stsb" and r["unit"]["model"] == "student"]
    assert seeds[0] != seeds[1]


def test_dev_rows_keep_their_order(graded):
    """Predictions are made in order of length; the record has them in the data's."""
    made, found = graded
    unit = {"task": "mrpc", "model": "student", "seed": 0}
    examples, labels, _ = made.examples("mrpc", "validation")
    alone = [np.argmax(made.predict(unit, made.trained(unit), [example])[0]["logits"]) for example in examples]
    record = next(record for record in found if record["unit"] == unit)
    assert downstream.unpack(record["details"]["predictions"]).tolist() == alone
    assert downstream.unpack(record["details"]["references"]).tolist() == labels.tolist()


def test_what_later_notebooks_need_is_kept_and_remade(graded, tmp_path):
    made, found = graded
    folders = {path.name.rsplit("-", 1)[0] for path in made.space.checkpoints.glob("glue-*")}
    teachers = {f"glue-{task}-teacher-seed{seed}" for task in ("mrpc", "stsb", "mnli") for seed in (0, 1)}
    students = {f"glue-{task}-{name}-seed0" for task in ("mrpc", "stsb") for name in ("student", "student_d")}
    assert folders == teachers | students
    shutil.copytree(made.space.results.parent.parent, tmp_path / "store")
    copy = load(glue.Glue, tmp_path / "store")
    unit = {"task": "mrpc", "model": "student_d", "seed": 0}
    folder = copy.checkpoint(unit)
    before = models.file_hash(folder)
    for path in copy.space.checkpoints.glob("*"):  # its teacher's and the pretrained ones too
        shutil.rmtree(path)
    again = load(glue.Glue, tmp_path / "store")
    assert again.unmeasured == [], "hashes are known from the records"
    again.trained(unit)
    assert again.checkpoint(unit) == folder and models.file_hash(folder) == before


def test_killed_in_mid_grid_it_ends_with_the_same_records(store, graded, tmp_path):
    """kill -9 after some cells, then the same command again: no finished cell is repeated."""
    for name in ("checkpoints/mini", "results/mini/records/distillation"):
        shutil.copytree(store / name, tmp_path / name, ignore=shutil.ignore_patterns("glue-*"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", RUN, json.dumps(FEW), str(tmp_path)]
    folder = tmp_path / "results/mini/records/glue"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.json"))) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 4 <= len(written) < 18
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert written.items() <= {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}.items()
    found = [numbers(records.read_record(path)) for path in sorted(folder.glob("*.json"))]
    expected = sorted((numbers(record) for record in graded[1]), key=lambda record: records.slug(record["unit"]))
    assert sorted(found, key=lambda record: records.slug(record["unit"])) == expected


def test_the_ablation_pretrains_and_grades_students_without_a_part(store):
    made = load(glue.Ablation, store)
    assert made.ready == [], "their pretraining comes first"
    start = made.pretraining
    variants = [{"model": name, "seed": 0} for name in ("no_cosine", "quarter_text")]
    trained = sweep.run(made.space, "ablation", variants, start.settings, start.measure)
    assert trained[0]["settings"]["recipe"]["weight_cosine"] == 0 and trained[1]["settings"]["text"] == "a quarter"
    losses = {record["metrics"]["masked_lm_loss"] for record in trained}
    student = start.space.find("distillation", {"model": "student", "seed": 0}, start.settings(start.units[1]))
    assert len(losses | {student["metrics"]["masked_lm_loss"]}) == 3
    found = sweep_all(load(glue.Ablation, store))
    assert [record["unit"]["model"] for record in found] == ["no_cosine", "quarter_text"]
    assert found[0]["settings"]["start"] == trained[0]["details"]["checkpoint"]


def test_the_second_distillation_learns_from_the_fine_tuned_teacher(graded):
    made, found = graded
    unit = {"task": "mrpc", "model": "student_d", "seed": 0}
    teacher = models.file_hash(made.checkpoint(unit | {"model": "teacher"}))
    assert made.settings(unit)["teacher"] == teacher
    by_model = {r["unit"]["model"]: r for r in found if r["unit"]["task"] == "stsb" and r["unit"]["seed"] == 0}
    assert by_model["student_d"]["details"]["predictions"] != by_model["student"]["details"]["predictions"]
    assert by_model["student_d"]["settings"]["start"] == by_model["student"]["settings"]["start"]


def test_padding_is_tried_in_one_run(store):
    (record,) = sweep_all(load(glue.PaddingTrial, store))
    assert {name: len(seconds) for name, seconds in record["details"]["seconds"].items()} == {"ours": 3, "padded": 3}
    times = record["metrics"]
    assert times["times_as_fast_low"] <= times["times_as_fast"] <= times["times_as_fast_high"]
    assert record["settings"]["trial"]["length"] == 64 and record["settings"]["cpu"]


def test_imdb_reads_as_much_of_a_review_as_it_is_told(store):
    made = load(imdb.Imdb, store)
    found = sweep_all(made)
    assert [(r["unit"]["model"], r["unit"]["length"]) for r in found] == [
        ("student", 48),
        ("twin", 48),
        ("student", 32),
    ]
    assert found[2]["metrics"]["truncated"] >= found[0]["metrics"]["truncated"] > 0
    reviews, _ = made.reviews("test")
    truth = downstream.unpack(found[0]["details"]["references"])
    assert truth.tolist() == list(reviews["label"]) and len(truth) == 20


def test_squad_answers_come_from_their_contexts(store):
    made = load(squad.Squad, store)
    found = sweep_all(made)
    questions, cut, _ = made.cut("validation")
    contexts = dict(zip(questions["id"], questions["context"], strict=True))
    for record in found:
        answers = record["details"]["predictions"]
        assert answers.keys() == contexts.keys() and all(answers[name] in contexts[name] for name in contexts)
        golds = [row["text"] for row in questions["answers"]]
        again = metrics.SquadMetric().compute(predictions=[answers[n] for n in questions["id"]], references=golds)
        assert again["f1"] == record["metrics"]["f1"]
        for name in ("exact_match", "f1"):
            assert 100 * downstream.unpack(record["details"][name]).mean() == pytest.approx(record["metrics"][name])
    assert len({record["details"]["checkpoint"] for record in found}) == 3, "distilled again or not"
    kept = {path.name.split("-")[1] for path in made.space.checkpoints.glob("squad-*")}
    assert kept == {"teacher", "student", "student_d"}


def test_without_notebook_01_nothing_is_ready(tmp_path):
    made = load(glue.Glue, tmp_path)
    assert made.ready == [] and made.unmeasured == []
    with pytest.raises(InputError, match="teacher-seed0 is not there yet: run notebook 01, or set `store`"):
        made.settings(made.units[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"glue.tasks": ["sst3"]}, "glue.tasks.0 = 'sst3': input should be 'cola', 'sst2'"),
        ({"glue.models": ["bert"]}, "glue.models.0 = 'bert': input should be 'teacher'"),
        ({"glue.seeds": []}, "glue.seeds = .*: .*at least 1 item"),
        ({"glue.recipes.sst2.learning_rate": 0}, "glue.recipes.sst2.learning_rate = 0"),
        ({"ablation.variants": ["no_teacher"]}, "ablation.variants.0 = 'no_teacher'"),
        ({"squad.recipe.length": 4}, "squad.recipe.length = 4"),
    ],
)
def test_what_the_profile_cannot_mean_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        profiles.load("mini", overrides)


def test_a_task_without_a_recipe_is_refused(store):
    made = load(glue.Glue, store, **{"glue.recipes": {"sst2": RECIPE}})
    with pytest.raises(InputError, match="mrpc: the profile mini has no recipe for it in glue.recipes"):
        made.settings({"task": "mrpc", "model": "teacher", "seed": 0})


def test_hidden_labels_are_refused(store, monkeypatch):
    made = load(glue.Glue, store)
    monkeypatch.setattr(glue.data, "dev_splits", lambda task: ["test"])
    with pytest.raises(sweep.SweepError, match="mrpc, test: label -1 in row 0, expected 0 to 1; GLUE's test labels"):
        sweep_all(made, [{"task": "mrpc", "model": "student", "seed": 7}])
