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
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from helpers import InputError, profiles
from helpers.experiments import glue, pretraining
from helpers.measure import machine, metrics, records, sweep
from helpers.models import checkpoints

RECIPE = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "train_rows": 24, "dev_rows": 20, "length": 48}
FEW = {
    "glue.tasks": ["mrpc", "stsb", "mnli"],
    "glue.models": ["teacher", "student", "student_d"],
    "glue.seeds": [0, 1],
    "glue.recipes": {task: RECIPE for task in metrics.GLUE},
    "glue.padding": {"rows": 16, "epochs": 1, "seeds": [0, 1, 2], "length": 64},
    "ablation": {"variants": ["no_cosine", "quarter_text"], "tasks": ["sst2"], "seeds": [0]},
    "imdb": {"models": ["student", "twin"], "seeds": [0], "recipe": RECIPE, "lengths": [32]},
}
RUN = """
import json, sys
from helpers import profiles
from helpers.experiments import glue
from helpers.measure import records
profile = profiles.load("mini", json.loads(sys.argv[1]))
glue.Glue(profile, records.Workspace(profile, sys.argv[2])).run()
"""
TIMES = {"training_minutes", "examples_per_s", "tokens_per_s"}


@pytest.fixture(scope="module")
def load(tiny):
    def made(kind, store, **overrides):
        profile = profiles.load("mini", tiny | FEW | overrides)
        return kind(profile, records.Workspace(profile, str(store)))

    return made


def numbers(record: dict) -> dict:
    """A record without what may differ between two runs."""
    kept = {name: value for name, value in record["metrics"].items() if name not in TIMES}
    same = {name: record[name] for name in ("unit", "settings")}
    return same | {"metrics": kept, "predictions": record["details"]["predictions"]}


@pytest.fixture(scope="module")
def graded(load, pretrained):
    """The whole of GLUE there, and its records."""
    made = load(glue.Glue, pretrained)
    return made, made.run()


@pytest.mark.slow
def test_every_cell_has_its_record(graded):
    made, found = graded
    assert len(found) == 3 * 3 * 2 and made.unmeasured() == []
    for record in found:
        task = record["unit"]["task"]
        assert set(metrics.GLUE[task].metrics) <= set(record["metrics"])
        guesses, truth = (records.unpack(record["details"][key]) for key in ("predictions", "references"))
        again = glue.GlueMetric(task).compute(predictions=guesses, references=truth)
        for name, value in again.items():
            assert record["metrics"][name] == pytest.approx(value, abs=1e-9)
        own = [record["metrics"][name] for name in metrics.GLUE[task].metrics]
        assert record["metrics"]["score"] == pytest.approx(np.mean(own))
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
    assert records.unpack(record["details"]["predictions"]).tolist() == alone
    assert records.unpack(record["details"]["references"]).tolist() == labels.tolist()


def test_what_later_notebooks_need_is_kept_and_remade(load, graded, tmp_path):
    made, found = graded
    folders = {path.name.rsplit("-", 1)[0] for path in made.space.checkpoints.glob("glue-*")}
    teachers = {f"glue-{task}-teacher-seed{seed}" for task in ("mrpc", "stsb", "mnli") for seed in (0, 1)}
    students = {f"glue-{task}-{name}-seed0" for task in ("mrpc", "stsb") for name in ("student", "student_d")}
    assert folders == teachers | students
    shutil.copytree(made.space.results.parent.parent, tmp_path / "store")
    copy = load(glue.Glue, tmp_path / "store")
    unit = {"task": "mrpc", "model": "student_d", "seed": 0}
    folder = copy.checkpoint(unit)
    before = checkpoints.file_hash(folder)
    for path in copy.space.checkpoints.glob("*"):  # its teacher's and the pretrained ones too
        shutil.rmtree(path)
    again = load(glue.Glue, tmp_path / "store")
    assert again.unmeasured() == [], "hashes are known from the records"
    again.trained(unit)
    assert again.checkpoint(unit) == folder and checkpoints.file_hash(folder) == before


@pytest.mark.slow
def test_killed_in_mid_grid_it_ends_with_the_same_records(tiny, pretrained, graded, tmp_path):
    """kill -9 after some cells, then the same command again: no finished cell is repeated."""
    for name in ("checkpoints/mini", "results/mini/records/distillation"):
        shutil.copytree(pretrained / name, tmp_path / name, ignore=shutil.ignore_patterns("glue-*"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", RUN, json.dumps(tiny | FEW), str(tmp_path)]
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


def test_the_ablation_grades_students_without_a_part(load, pretrained):
    made = load(glue.Ablation, pretrained)
    assert made.ready == [], "their pretraining comes first"
    trained = load(pretraining.Ablated, pretrained).run()
    assert trained[0]["settings"]["recipe"]["weight_cosine"] == 0 and trained[1]["settings"]["text"] == "a quarter"
    losses = {record["metrics"]["masked_lm_loss"] for record in trained}
    start = load(pretraining.Pretraining, pretrained)
    assert len(losses | {start.record({"model": "student", "seed": 0})["metrics"]["masked_lm_loss"]}) == 3
    found = made.run()
    assert [record["unit"]["model"] for record in found] == ["no_cosine", "quarter_text"]
    assert found[0]["settings"]["start"] == trained[0]["details"]["checkpoint"]


def test_the_second_distillation_learns_from_the_fine_tuned_teacher(graded):
    made, found = graded
    unit = {"task": "mrpc", "model": "student_d", "seed": 0}
    teacher = checkpoints.file_hash(made.checkpoint(unit | {"model": "teacher"}))
    assert made.settings(unit)["teacher"] == teacher
    by_model = {r["unit"]["model"]: r for r in found if r["unit"]["task"] == "stsb" and r["unit"]["seed"] == 0}
    assert by_model["student_d"]["details"]["predictions"] != by_model["student"]["details"]["predictions"]
    assert by_model["student_d"]["settings"]["start"] == by_model["student"]["settings"]["start"]


def test_whose_teacher_was_not_kept_can_still_be_guided_by_it(load, pretrained, tmp_path):
    """Notebook 02 run as it is, and then once more with `task_distillation`: its teachers' weights have gone."""
    for name in ("checkpoints/mini", "results/mini/records/distillation"):
        shutil.copytree(pretrained / name, tmp_path / name, ignore=shutil.ignore_patterns("glue-*"))
    few = {"glue.tasks": ["mnli"], "glue.seeds": [0]}
    first = load(glue.Glue, tmp_path, **few | {"glue.models": ["teacher", "student"]})
    (teacher, _) = first.run()
    assert "checkpoint" not in teacher["details"] and not list(first.space.checkpoints.glob("glue-*"))
    then = load(glue.Glue, tmp_path, **few)
    *_, guided = then.run()
    assert guided["unit"]["model"] == "student_d" and list(then.space.checkpoints.glob("glue-mnli-teacher-*"))
    assert load(glue.Glue, tmp_path, **few).unmeasured() == [], "known once more, with the teacher's weights there"
    other = load(glue.Glue, tmp_path, **few | {"glue.recipes": {"mnli": RECIPE | {"learning_rate": 2e-3}}})
    with pytest.raises(InputError, match="has not been fine-tuned yet"):
        other.settings(guided["unit"])


def test_padding_is_tried_in_one_run(load, pretrained, page):
    _, trial = page("02_glue", "both_ways", "PaddingTrial")
    (record,) = load(trial, pretrained).run()
    assert {name: len(seconds) for name, seconds in record["details"]["seconds"].items()} == {"ours": 3, "padded": 3}
    times = record["metrics"]
    assert times["times_as_fast_low"] <= times["times_as_fast"] <= times["times_as_fast_high"]
    assert record["settings"]["trial"]["length"] == 64 and record["settings"]["cpu"]


def test_imdb_reads_as_much_of_a_review_as_it_is_told(load, pretrained):
    made = load(glue.Imdb, pretrained)
    found = made.run()
    assert [(r["unit"]["model"], r["unit"]["length"]) for r in found] == [
        ("student", 48),
        ("twin", 48),
        ("student", 32),
    ]
    assert found[2]["metrics"]["truncated"] >= found[0]["metrics"]["truncated"] > 0
    reviews, _ = made.reviews("test")
    truth = records.unpack(found[0]["details"]["references"])
    assert truth.tolist() == list(reviews["label"]) and len(truth) == 20


def test_without_notebook_01_nothing_is_ready(load, tmp_path):
    made = load(glue.Glue, tmp_path)
    assert made.ready == [] and made.unmeasured() == [] and made.record(made.units[0]) is None
    with pytest.raises(InputError, match="^run notebook 01 first, or set `store` to where its results are$"):
        made.plan()
    with pytest.raises(InputError, match="teacher-seed0 is not there yet: run notebook 01, or set `store`"):
        made.settings(made.units[0])


def test_a_unit_is_planned_by_its_tokens(load, graded, pretrained, monkeypatch):
    made, _ = graded
    assert made.plan().endswith("18 units, of which 0 have no record yet: about 0 minutes")
    layers = []

    def rate(config, device, precision):
        layers.append(config.num_hidden_layers)
        return 100.0

    monkeypatch.setattr(machine, "tokens_per_s", rate)
    longer = load(glue.Glue, pretrained, **{"glue.recipes.mrpc.epochs": 5})
    units = [{"task": "mrpc", "model": model, "seed": 0} for model in ("teacher", "student")]
    tokens = sum(len(example["input_ids"]) for example in longer.examples("mrpc", "train")[0])
    assert [longer.seconds(unit) for unit in units] == [machine.BACKWARD * 5 * tokens / 100] * 2 and layers == [2, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"glue.tasks": ["sst3"]}, "glue.tasks.0 = 'sst3': input should be 'cola', 'sst2'"),
        ({"glue.models": ["bert"]}, "glue.models.0 = 'bert': input should be 'teacher'"),
        ({"glue.seeds": []}, "glue.seeds = .*: .*at least 1 item"),
        ({"glue.recipes.sst2.learning_rate": 0}, "glue.recipes.sst2.learning_rate = 0"),
        ({"ablation.variants": ["no_teacher"]}, "ablation.variants.0 = 'no_teacher'"),
    ],
)
def test_what_the_profile_cannot_mean_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        profiles.load("mini", overrides)


def test_a_task_without_a_recipe_is_refused(load, pretrained):
    made = load(glue.Glue, pretrained, **{"glue.recipes": {"sst2": RECIPE}})
    with pytest.raises(InputError, match="mrpc: the profile mini has no recipe for it in glue.recipes"):
        made.settings({"task": "mrpc", "model": "teacher", "seed": 0})


def test_hidden_labels_are_refused(load, pretrained, monkeypatch):
    made = load(glue.Glue, pretrained)
    monkeypatch.setitem(metrics.GLUE, "mrpc", metrics.GLUE["mrpc"]._replace(rows={"train": 3_668, "test": 1_725}))
    with pytest.raises(sweep.SweepError, match="mrpc, test: label -1 in row 0, expected 0 to 1; GLUE's test labels"):
        made.run([{"task": "mrpc", "model": "student", "seed": 7}])


PAIRS = [("a dog ran", "the dog ran"), ("a dog ran", "snow fell"), ("it is late", "it is late"), ("one", "two words")]


def test_what_costs_nothing_is_as_by_hand(page):
    """The rules of notebook 02's page, against scikit-learn called step by step, and the overlap counted."""
    commonest, counted, shared = page("02_glue", "commonest", "counted", "shared")
    texts, labels = ["good film", "bad film", "good good play", "bad play"] * 5, np.array([1, 0, 1, 0] * 5)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    by_hand = LogisticRegression(C=10, max_iter=1000).fit(words.fit_transform(texts), labels)
    asked = ["a good play", "a bad bad film", "film"]
    said = counted([(text,) for text in texts], labels, [(text,) for text in asked])
    assert said.tolist() == by_hand.predict(words.transform(asked)).tolist() and said[:2].tolist() == [1, 0]
    overlap = shared(PAIRS[:1], np.array([0.5]), PAIRS)
    np.testing.assert_allclose(overlap, [2 * 2 / 6, 0, 1, 0])
    classes = shared(PAIRS * 10, np.array([1, 0, 1, 0] * 10), PAIRS)
    assert classes.tolist() == [1, 0, 1, 0]
    assert commonest(PAIRS, np.array([1, 0, 1]), PAIRS).tolist() == [1] * 4
