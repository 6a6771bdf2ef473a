"""Which variants there are and why not, recovery that keeps zeros, and the full size."""

import pytest
import torch
from transformers import DistilBertForSequenceClassification

from helpers import InputError, profiles
from helpers.compression import pruning, quantization, variants
from helpers.experiments import compression
from helpers.measure import machine, records
from helpers.models import distillation, finetuning
from helpers.profiles import Recipe


def made(store, name: str, **own) -> compression.Compression:
    profile = profiles.load("mini", {f"{name}.{key}": value for key, value in own.items()})
    return compression.Compression(profile, records.Workspace(profile, str(store)), name=name)


def without(monkeypatch, *packages: str) -> None:
    monkeypatch.setattr(variants.importlib.util, "find_spec", lambda name: None if name in packages else object())


def test_the_variants_of_a_profile(tmp_path, monkeypatch):
    own = {"weights": [0.5], "shares": [0.3], "importances": ["taylor", "random"], "masked": [0.5], "layers": [1]}
    experiment = made(tmp_path, "pruning", **own, recovered=["taylor", "layers"])
    plain = ["fp32", "weights_50", "taylor_30", "random_30", "layers_1", "masked_50"]
    followed = ["fp32", "taylor_30", "layers_1"]
    again = [f"{name}_recovered" for name in followed]
    eight = [f"{name}_int8" for name in followed + again if name != "fp32_recovered"]
    words = ["fp32_trimmed", "fp32_trimmed_int8_embeddings"]
    assert list(experiment.variants) == plain + again + eight + words and experiment.ready == []
    half = made(tmp_path, "pruning", **own | {"shares": [0.3, 0.5]}, recovered=["taylor"])
    small = "taylor_50_recovered_int8_embeddings", "taylor_50_recovered_trimmed_int8_embeddings"
    assert list(half.variants)[-4:] == [small[0], *words, small[1]]
    few = {"pruning.tasks": ["sst2", "mrpc"], "pruning.elsewhere": ["taylor_30"]}
    few |= {f"pruning.{name}": value for name, value in own.items()} | {"pruning.recovered": ["taylor"]}
    profile = profiles.load("mini", few)
    units = compression.Compression(profile, records.Workspace(profile, str(tmp_path)), name="pruning").units
    there = ["fp32", "taylor_30", "fp32_recovered", "taylor_30_recovered", "fp32_int8", "taylor_30_int8"]
    assert [u["variant"] for u in units if u["task"] == "mrpc"] == [*there, "taylor_30_recovered_int8"]
    assert len(units) - 7 == len(made(tmp_path, "pruning", **own, recovered=["taylor"]).variants)
    losses = compression.Losses(profile, experiment.space, name="pruning").units
    names = ["fp32", "fp32_int8", "weights_50", "taylor_30", "taylor_30_int8", "random_30", "layers_1"]
    assert [unit["variant"] for unit in losses] == names
    assert not experiment.isolated({"task": "sst2", "variant": "fp32"}), "mini isolates none of them"
    without(monkeypatch, "onnx")
    assert set(experiment.missing) == {*eight, words[1]}
    with pytest.raises(InputError, match="pruning.weights"):
        made(tmp_path, "pruning", weights=[1.0])


def test_recovery_keeps_zeros_and_trains_the_rest(tmp_path, teacher):
    torch.manual_seed(0)
    config = distillation.configuration(teacher.config, 2)
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
    trainer.add_callback(pruning.KeepZeros(model))
    finetuning.fine_tune(trainer)
    assert torch.equal(matrix == 0, zero) and pruning.sparsity(model) == pytest.approx(0.6, abs=1e-3)
    assert (matrix[~zero] != before[~zero]).float().mean() > 0.9


@pytest.mark.alone
def test_at_full_size(monkeypatch, tmp_path, page):
    """The same code at a size that a test can wait for."""
    full_size, _ = page("06_quantization", "FullSize", "at_full_size")
    small = {"dim": 128, "hidden_dim": 512, "n_layers": 2, "n_heads": 4, "vocab_size": 30522}
    whole = compression.DistilBertConfig
    monkeypatch.setattr(compression, "DistilBertConfig", lambda: whole(**small))
    profile = profiles.load("mini", {"quantization.full_size": True, "quantization.length": 16})
    names = ["fp32", "torch_int8", "random_50", "layers_1", "random_50_int8", "onnx_int8", "onnx_int8_static"]
    space = records.Workspace(profile, str(tmp_path))
    experiment = full_size(profile, space)
    experiment.names = [*names, "taylor_50", "random_50_recovered"]
    found = {unit["variant"]: experiment.measure(unit).metrics for unit in experiment.ready}
    assert list(found) == names
    assert found["fp32"]["size_mb"] == pytest.approx(4 * found["fp32"]["parameters"] / 1e6, rel=0.01)
    layer = 4 * 128 * 128 + 2 * 128 * 512  # half of both layers' matrices
    assert found["fp32"]["parameters"] - found["random_50"]["parameters"] == pytest.approx(layer, rel=0.02)
    assert found["random_50_int8"]["size_mb"] < found["onnx_int8"]["size_mb"] < found["fp32"]["size_mb"]
    assert all(one["latency_times_as_fast_low"] <= one["latency_times_as_fast_high"] for one in found.values())
    assert "weights know nothing here" in experiment.plan()
    mini = full_size(profiles.load("mini"), space)
    mini.names = names
    with pytest.raises(InputError, match="too small for it"):
        mini.plan()
    assert mini.run() == []


def test_variants_are_checked_and_fp32_is_always_there(tmp_path, monkeypatch):
    for own in ({"variants": ["int3"]}, {"isolated": ["int3"]}):
        with pytest.raises(InputError, match="unknown variant 'int3': expected one of fp32, bf16"):
            made(tmp_path, "quantization", **own)
    experiment = made(tmp_path, "quantization", variants=["onnx_int8", "bnb_nf4"])
    assert [unit["variant"] for unit in experiment.units[:3]] == ["fp32", "onnx_int8", "bnb_nf4"]
    assert experiment.ready == []
    with pytest.raises(InputError, match="run notebooks 01 and 02 first, or set `store`"):
        experiment.plan()
    monkeypatch.setattr(quantization, "why_no_bits", lambda device, bits: "no bits here")
    without(monkeypatch, "onnx")
    reasons = {"onnx_int8": "onnx not installed: pip install -r requirements.txt", "bnb_nf4": "no bits here"}
    assert experiment.missing == reasons
    monkeypatch.setattr(compression.FineTuned, "weights", "there")
    experiment = made(tmp_path, "quantization", variants=["onnx_int8", "bnb_nf4"])
    assert {unit["variant"] for unit in experiment.ready} == {"fp32"}
    assert "student-bnb_nf4: – no bits here" in experiment.plan()
    monkeypatch.setattr(machine, "processor_precisions", lambda: ["fp32", "bf16"])
    halves = made(tmp_path, "quantization", variants=["bf16", "fp16"]).missing
    assert list(halves) == ["fp16"] and "no instructions for fp16" in halves["fp16"]


def test_a_gpu_is_asked_what_it_has(monkeypatch):
    """What is for processors says so; 16 bits are had where the GPU has them, in whatever is left of a model."""
    monkeypatch.setattr(machine, "gpu_precisions", lambda: ["fp32", "fp16"])
    monkeypatch.setattr(quantization, "why_no_bits", lambda device, bits: f"{bits} bits on {device.type}")
    reasons = {name: variants.why_not(variants.parse(name), "cuda") for name in (*variants.LABELS, "taylor_50")}
    assert [name for name, reason in reasons.items() if not reason] == ["fp32", "fp16", "taylor_50"]
    assert reasons["bf16"] == "this GPU has no bf16 in hardware"
    assert (reasons["bnb_int8"], reasons["bnb_fp4"]) == ("8 bits on cuda", "4 bits on cuda")
    assert set(reasons.values()) - {None} == {*(reasons[n] for n in ("bf16", "bnb_int8", "bnb_nf4")), "for processors"}
