"""Variants with something taken away: their names, which there are, recovery that keeps zeros, and the full size."""

from functools import partial

import pytest
import torch
from transformers import DistilBertForSequenceClassification

from helpers import (
    InputError,
    compression,
    edge,
    finetuning,
    fullsize,
    profiles,
    pruned,
    pruning,
    records,
    speed,
    students,
)
from helpers.profiles import Recipe


def test_names_have_parts_and_labels():
    how = pruned.way("taylor_50_recovered_int8")
    assert how == ("taylor", 50, True, True) and how.name == "taylor_50_recovered_int8"
    assert pruned.way("layers_2") == ("layers", 2, False, False)
    assert pruned.label("weights_90_recovered") == "90% of weights zero, recovered"
    assert pruned.label("layers_1_int8") == "layers left: 1, int8"
    whole = pruned.way("fp32_recovered_int8")
    assert whole == ("fp32", 0, True, True) and whole.name == "fp32_recovered_int8"
    assert pruned.label("fp32") == "fp32" and pruned.label(whole.name) == "whole model, recovered, int8"
    for name in ("fp32_50", "taylor", "sawn_50", "taylor_half", "taylor_50_int8_recovered", "taylor_50_fast", ""):
        with pytest.raises(InputError, match="unknown variant"):
            pruned.way(name)


def made(store, **own) -> pruned.Pruned:
    profile = profiles.load("mini", {f"pruning.{name}": value for name, value in own.items()})
    return pruned.Pruned(profile, records.Workspace(profile, str(store)))


def test_the_variants_of_a_profile(tmp_path, monkeypatch):
    own = {"weights": [0.5], "shares": [0.3], "importances": ["taylor", "random"], "masked": [0.5], "layers": [1]}
    experiment = made(tmp_path, **own, recovered=["taylor", "layers"])
    plain = ["fp32", "weights_50", "taylor_30", "random_30", "layers_1", "masked_50"]
    followed = ["fp32", "taylor_30", "layers_1"]
    again = [f"{name}_recovered" for name in followed]
    eight = [f"{name}_int8" for name in followed + again if name != "fp32_recovered"]
    assert experiment.variants == plain + again + eight and experiment.ready == []
    few = {"pruning.tasks": ["sst2", "mrpc"], "pruning.elsewhere": ["taylor_30"]}
    few |= {f"pruning.{name}": value for name, value in own.items()} | {"pruning.recovered": ["taylor"]}
    profile = profiles.load("mini", few)
    units = pruned.Pruned(profile, records.Workspace(profile, str(tmp_path))).units
    there = ["fp32", "taylor_30", "fp32_recovered", "taylor_30_recovered", "fp32_int8", "taylor_30_int8"]
    assert [u["variant"] for u in units if u["task"] == "mrpc"] == [*there, "taylor_30_recovered_int8"]
    assert len(units) - 7 == len(made(tmp_path, **own, recovered=["taylor"]).variants)
    losses = pruned.Losses(profile, experiment.space).variants
    assert losses == ["fp32", "fp32_int8", "weights_50", "taylor_30", "taylor_30_int8", "random_30", "layers_1"]
    assert not experiment.isolated({"task": "sst2", "variant": "fp32"}), "mini isolates none of them"
    monkeypatch.setattr(edge, "why_not", lambda: "onnx not installed")
    assert set(experiment.missing) == set(eight)
    with pytest.raises(InputError, match="pruning.weights"):
        made(tmp_path, weights=[1.0])


def test_recovery_keeps_zeros_and_trains_the_rest(tmp_path, teacher):
    torch.manual_seed(0)
    config = students.configuration(teacher.config, 2)
    model = DistilBertForSequenceClassification(config).eval()
    pruning.zero_weights(model, 0.6)
    matrix = pruning.matrices(model)[0]["up"].weight
    before, zero = matrix.detach().clone(), matrix == 0
    ids = torch.randint(5, 40, (12, 8))
    examples = [
        {"input_ids": row.numpy(), "attention_mask": torch.ones(8, dtype=int).numpy(), "labels": n % 2}
        | {"token_type_ids": torch.zeros(8, dtype=int).numpy()}
        for n, row in enumerate(ids)
    ]
    recipe = Recipe(learning_rate=1e-3, epochs=2, batch_size=4, length=8)
    trainer = finetuning.FineTuner(model, examples, recipe, 0, tmp_path / "t", "fp32", pad_id=0)
    trainer.add_callback(pruned.KeepZeros(model))
    finetuning.fine_tune(trainer)
    assert torch.equal(matrix == 0, zero) and pruning.sparsity(model) == pytest.approx(0.6, abs=1e-3)
    assert (matrix[~zero] != before[~zero]).float().mean() > 0.9


@pytest.mark.alone
def test_at_full_size(monkeypatch, tmp_path):
    """The same code at a size that a test can wait for."""
    small = {"dim": 128, "hidden_dim": 512, "n_layers": 2, "n_heads": 4, "vocab_size": 30522}
    whole = fullsize.DistilBertConfig
    monkeypatch.setattr(fullsize, "DistilBertConfig", lambda: whole(**small))
    profile = profiles.load("mini", {"quantization.full_size": True, "quantization.length": 16})
    names = ["fp32", "torch_int8", "random_50", "layers_1", "random_50_int8", "onnx_int8"]
    names += [] if compression.why_not("openvino_int8") else ["openvino_int8"]
    experiment = fullsize.FullSize(profile, names)
    found = {unit["variant"]: experiment.measure(unit).metrics for unit in experiment.ready}
    assert list(found) == names
    assert found["fp32"]["size_mb"] == pytest.approx(4 * found["fp32"]["parameters"] / 1e6, rel=0.01)
    layer = 4 * 128 * 128 + 2 * 128 * 512  # half of both layers' matrices
    assert found["fp32"]["parameters"] - found["random_50"]["parameters"] == pytest.approx(layer, rel=0.02)
    assert found["random_50_int8"]["size_mb"] < found["onnx_int8"]["size_mb"] < found["fp32"]["size_mb"]
    assert all(one["latency_times_as_fast_low"] <= one["latency_times_as_fast_high"] for one in found.values())
    assert fullsize.FullSize(profiles.load("mini"), names).ready == []


def test_one_beside_another():
    """Three ticks against one, and raw seconds of both."""
    clock = iter(range(10**6))
    ticks = {"slow": lambda: [next(clock) for _ in range(2)], "fast": lambda: None}
    timer = partial(speed.timed, clock=lambda: float(next(clock)))
    scores, raw = speed.beside(ticks["fast"], ticks["slow"], speed.Rules(6, 0.0, 1e9), timer)
    assert scores["latency_times_as_fast"] == 3.0 and scores["latency_p50_ms"] == 1000.0
    assert set(raw) == {"variant", "reference"} and len(raw["variant"]) == 6
