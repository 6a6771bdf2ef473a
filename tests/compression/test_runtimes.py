"""Models in processes of their own: what they hold in memory, how long a cold start takes, and how one fails."""

import time

import pytest
import torch
from transformers import DistilBertForSequenceClassification

from helpers import InputError, profiles
from helpers.compression import runtimes
from helpers.measure import timing
from helpers.models import checkpoints, distillation

pytestmark = pytest.mark.alone


def test_memory_and_cold_start_are_those_of_a_process_of_its_own(teacher, tokenizer, tmp_path):
    """A model of 20 million parameters: it is read, held once and not twice, and its cold start is no warm one."""
    config = distillation.configuration(teacher.config, 1)
    config.vocab_size = 600_000  # 32 wide, and three of its rows are asked for
    model = DistilBertForSequenceClassification(config)
    checkpoints.save(model, tokenizer, tmp_path / "large")
    weights = timing.size_mb(tmp_path / "large")
    assert weights == pytest.approx(checkpoints.size_mb(model), rel=0.02) and weights > 75
    found = runtimes.alone(tmp_path / "large", "the river runs", threads=1)
    assert weights < found["peak_memory_mb"] < 1.5 * weights, "held once"
    assert found["footprint_mb"] == pytest.approx(weights, rel=0.02)
    with torch.no_grad():
        given = tokenizer(["the river runs"], return_tensors="pt", return_token_type_ids=False)
        assert model.eval()(**given).logits[0].tolist() == pytest.approx(found["logits"], abs=1e-5)
    parts = found["imports_s"] + found["loading_s"] + found["first_s"]
    assert 0 < parts < found["cold_start_s"] < parts + 3, "the interpreter starts in less"
    run = runtimes.load(tmp_path / "large", threads=1)
    inputs = runtimes.tokenizer(tmp_path / "large")("the river runs")
    warm = min(timing.seconds({"it": lambda: run(inputs)}, profiles.load("mini").timing)["it"])
    assert found["imports_s"] > 0.3 and found["cold_start_s"] > warm + found["loading_s"]


def test_a_process_that_fails_says_why(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="its own process ended with 1: .*no model there"):
        runtimes.alone(tmp_path, "text", threads=1)


def test_where_a_peak_cannot_be_counted_anew_there_is_none_c(teacher, tokenizer, tmp_path, monkeypatch):
    """Point C: where /proc/self/clear_refs can't be written, the peak missed what the imports had peaked at."""
    model = DistilBertForSequenceClassification(distillation.configuration(teacher.config, 1))
    checkpoints.save(model, tokenizer, tmp_path / "small")
    given = tmp_path / "small", "the river runs", 1, "cpu", time.time()
    assert runtimes.ask_once(*given).keys() >= {"peak_memory_mb", "first_peak_memory_mb", "anonymous_mb"}
    monkeypatch.setattr(runtimes.Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
    found = runtimes.ask_once(*given)
    assert "anonymous_mb" in found and not {"peak_memory_mb", "first_peak_memory_mb"} & found.keys()
