"""A card says what the record says; nothing leaves the machine unless it is asked to; bad input gets a line."""

import re
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
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
    learnt = {"id": "nyu-mll/glue", "config": "sst2", "rows": {"train": 900}, "revision": "abc"}
    data = [learnt, learnt | {"rows": {"validation": 60}}]
    model = {"id": "somebody/bert", "revision": "def", "parameters": 12_345}
    measured = records.Measurement(scores, data, [model], details | {"checkpoint": checkpoints.file_hash(folder)})
    origin = records.provenance(datetime.now(UTC), data, [model])
    space.write("glue", {"task": "sst2", "model": "student", "seed": 0}, {"precision": "fp32"}, measured, origin)
    variant = {"task": "sst2", "model": "student", "variant": "fp32"}  # the same weights once more, measured by 06
    space.write("quantization", variant, {}, measured._replace(metrics={"accuracy": 1.0}), origin)
    return folder


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.share", *arguments]
    plain = {"HF_HUB_OFFLINE": "1", "HOME": "/nowhere", "HF_HOME": "/nowhere"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain | environment)


def test_a_card_has_what_the_record_has(made):
    card = share.card(made, "me/mine", "mit")
    data = yaml.safe_load(card.content.split("---")[1])
    (result,) = data["model-index"][0]["results"]
    assert data["base_model"] == "somebody/bert" and data["datasets"] == ["nyu-mll/glue"] and data["license"] == "mit"
    assert result["dataset"]["config"] == "sst2" and result["dataset"]["split"] == "validation"
    accuracy = share.evidence(made)["metrics"]["accuracy"]
    assert [one["value"] for one in result["metrics"]] == [round(accuracy, 4)], "the training's record, each score once"
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 60)  # a share's standard error
    low, high = (float(text) for text in card.content.split(f"| {accuracy:.3f} | ")[1].split(" |")[0].split(" to "))
    assert low == pytest.approx(accuracy - half, abs=0.02) and high == pytest.approx(accuracy + half, abs=0.02)
    assert ModelCard(card.content).data.model_name == "mine"
    for told in ('pipeline("text-classification", model="me/mine")', "12,345 parameters", "60 validation rows", "– "):
        assert told in card.content, told


@pytest.mark.parametrize("kind", ["distillation/student", "glue/sst2-student", "squad/student", "imdb/student", "own/"])
def test_every_committed_kind_of_record_makes_a_card(kind, monkeypatch, tmp_path):
    path = next(path for path in sorted((ROOT / "results/laptop/records").glob(f"{kind}*.json")))
    record = records.read_record(path)
    monkeypatch.setattr(share, "evidence", lambda folder: record)
    if kind == "own/":
        (tmp_path / "model.onnx").touch()
    card = share.card(tmp_path, "me/mine", "apache-2.0")
    assert "{" not in card.content and "None" not in card.content and "Undefined" not in card.content
    (index,) = yaml.safe_load(card.content.split("---")[1])["model-index"]
    values = {m["type"]: m["value"] for one in index["results"] for m in one["metrics"]}
    assert values and all(value == pytest.approx(record["metrics"][name], abs=1e-4) for name, value in values.items())
    kept = "exact_match" in record["details"] or "references" in record["details"]
    assert bool(re.search(r"\| \d[.\d]* to \d[.\d]* \|", card.content)) == kept
    assert ("python use.py" in card.content) == (kind == "own/")


def test_nothing_is_pushed_unless_it_is_asked_for(made):
    done = run(str(made), "--to", "me/mine")
    assert done.returncode == 0 and done.stdout.endswith("nothing was pushed; --push does\n"), done.stderr
    assert not (made / "README.md").exists()
    done = run(str(made), "--to", "me/mine", "--push")
    assert done.returncode == 2 and done.stderr == (
        "error: --push: no token of the Hub's here: run `hf auth login`, or set HF_TOKEN\n"
    )


def test_what_is_pushed_is_the_model_and_its_card(made, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(huggingface_hub, name, lambda *a, name=name, **k: calls.append((name, a, k)))
    monkeypatch.setattr(ModelCard, "validate", lambda self: calls.append(("validate", self.content)))
    monkeypatch.setattr(ModelCard, "push_to_hub", lambda self, to: calls.append(("card", to)))
    monkeypatch.setattr(sys, "argv", ["tools.share", str(made), "--to", "me/mine", "--push"])
    assert share.main() == 0 and capsys.readouterr().out.endswith("pushed\n")
    assert [one[0] for one in calls] == ["validate", "create_repo", "upload_folder", "card"], (
        "refused before it is made"
    )
    (made / "training_log.json").touch()
    sent = {path.name for kind in calls[2][2]["allow_patterns"] for path in made.glob(kind)}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= sent and "training_log.json" not in sent


def test_what_the_hub_refuses_is_told_in_a_line(made):
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"license is none of those that are known")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    done = run(str(made), "--to", "me/mine", "--push", **place)
    server.shutdown()
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: me/mine was not pushed whole: ") and "run it again" in done.stderr


def test_bad_input_is_refused_in_a_line(made, tmp_path):
    for given, says in {
        (str(made), "--to", "mine"): "--to mine: expected OWNER/NAME",
        (str(tmp_path / "no"), "--to", "a/b"): "no such folder",
    }.items():
        done = run(*given)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr
    alone = shutil.copytree(made, tmp_path / "else" / "where" / "there" / "alone")
    with pytest.raises(InputError, match="no record tells of its weights"):
        share.card(alone, "me/mine", "apache-2.0")
