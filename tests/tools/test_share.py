"""A card says what the records say; nothing leaves the machine unless it is asked to; bad input gets a line."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from helpers import ROOT, InputError, profiles
from helpers.measure import records
from helpers.models import checkpoints
from tools import share


@pytest.fixture
def made(tmp_path, teacher, tokenizer):
    """A store with a checkpoint and the record that tells of it."""
    space = records.Workspace(profiles.load("mini"), str(tmp_path))
    folder = space.checkpoints / "glue-sst2-student-seed0-abc"
    checkpoints.save(teacher, tokenizer, folder)
    said, true = np.random.default_rng(0).integers(2, size=(2, 60))
    details = {"predictions": records.pack(said), "references": records.pack(true)}
    scores = {"accuracy": float(np.mean(said == true)), "score": float(np.mean(said == true))}
    data = {"id": "nyu-mll/glue", "config": "sst2", "rows": {"validation": 60}, "revision": "abc"}
    model = {"id": "somebody/bert", "revision": "def"}
    measured = records.Measurement(scores, [data], [model], details | {"checkpoint": checkpoints.file_hash(folder)})
    origin = records.provenance(datetime.now(UTC), [data], [model])
    space.write("glue", {"task": "sst2", "model": "student", "seed": 0}, {"precision": "fp32"}, measured, origin)
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.share", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "HOME": "/"})


def test_a_card_has_what_the_record_has(made):
    (record,) = share.evidence(made)
    card = share.card([record], "me/mine", "apache-2.0")
    data = yaml.safe_load(card.content.split("---")[1])
    (result,) = data["model-index"][0]["results"]
    assert data["base_model"] == "somebody/bert" and data["datasets"] == ["nyu-mll/glue"]
    assert result["dataset"]["config"] == "sst2" and result["dataset"]["split"] == "validation"
    accuracy = record["metrics"]["accuracy"]
    assert [one["value"] for one in result["metrics"]] == [round(accuracy, 4)]
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 60)  # a share's standard error
    low, high = (float(text) for text in card.content.split(f"| {accuracy:.3f} | ")[1].split(" |")[0].split(" to "))
    assert low == pytest.approx(accuracy - half, abs=0.02) and high == pytest.approx(accuracy + half, abs=0.02)
    assert ModelCard(card.content).data.model_name == "mine"
    assert 'pipeline("text-classification", model="me/mine")' in card.content


def test_every_committed_kind_of_record_makes_a_card():
    for experiment in ("distillation", "glue", "squad", "imdb"):
        path = next((ROOT / "results/laptop/records" / experiment).glob("*student-*seed0*.json"))
        made = share.card([records.read_record(path)], "me/mine", "apache-2.0")
        assert "| –\n" not in made.content.split("## How")[0].replace("| – |", "") and "{" not in made.content


def test_nothing_is_pushed_unless_it_is_asked_for(made):
    done = run(str(made), "--to", "me/mine")
    assert done.returncode == 0 and "nothing was pushed; --push would send this card and" in done.stdout
    assert "model.safetensors" in done.stdout and not (made / "README.md").exists()
    done = run(str(made), "--to", "me/mine", "--push")
    assert done.returncode == 2 and done.stderr == (
        "error: --push: no token of the Hub's here: run `hf auth login`, or set HF_TOKEN\n"
    )


def test_bad_input_is_refused_in_a_line(made, tmp_path):
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        share.share(made, "mine", "apache-2.0", push=False)
    with pytest.raises(InputError, match="no such folder"):
        share.share(tmp_path / "nowhere", "me/mine", "apache-2.0", push=False)
    alone = shutil.copytree(made, tmp_path / "else" / "where" / "alone")
    with pytest.raises(InputError, match="no record tells of it"):
        share.share(alone, "me/mine", "apache-2.0", push=False)
    (record,) = share.evidence(made)
    with pytest.raises(InputError, match="no finite value|finite"):
        share.card([record | {"metrics": {"accuracy": float("nan")}}], "me/mine", "apache-2.0")
