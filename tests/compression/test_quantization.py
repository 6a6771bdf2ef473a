"""Every quantized variant: near its original, smaller, and the same after saving and loading."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, DistilBertForMaskedLM

from helpers import ROOT, InputError
from helpers.compression import quantization, runtimes, variants
from helpers.data import encoding
from helpers.measure import timing
from helpers.models import checkpoints, distillation, finetuning, masked_lm
from helpers.profiles import Recipe


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT of two layers, saved; wide enough for 4 bits, with some weights that stand out."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    model = BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=3, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("classifier") / "plain"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    return {
        "input_ids": random.integers(5, 300, (6, 12)),
        "attention_mask": np.ones((6, 12), dtype=np.int64),
        "token_type_ids": np.zeros((6, 12), dtype=np.int64),
    }


NEAR = {"fp32": 1e-6, "bf16": 0.05, "fp16": 0.01, "torch_int8": 0.1, "torch_int8_embeddings": 0.1, "bnb_int8": 0.1}
NEAR |= {"torchao_int8": 0.1}
NEAR |= {f"bnb_{kind}{double}": near for kind, near in (("nf4", 0.6), ("fp4", 0.9)) for double in ("", "_double")}


@pytest.mark.parametrize("variant", list(variants.TORCH))
def test_a_variant_is_near_its_original_and_the_same_after_loading_twice(classifier, inputs, tmp_path, variant):
    if reason := quantization.why_not(variant):
        pytest.skip(reason)
    model, plain = classifier
    quantization.save(variant, plain, tmp_path / "made")
    first, second = (runtimes.load(tmp_path / "made", threads=1)(inputs) for _ in range(2))
    original = runtimes.load(plain, threads=1)(inputs)
    np.testing.assert_array_equal(first, second)
    spread = original.std()
    assert (variant != "fp32") * 1e-7 <= np.abs(first - original).max() < NEAR[variant] * spread
    assert first.dtype == np.float32 and quantization.bits_of(tmp_path / "made") == variant
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt")), "no pickle"


@pytest.mark.slow
def test_the_compiled_one_is_compiled_once_for_all_lengths_and_no_farther_off(classifier, inputs, tmp_path):
    variant = "torchao_int8_compiled"
    if reason := quantization.why_not(variant):
        pytest.skip(reason)
    _, plain = classifier
    for name in (variant, "torchao_int8"):
        quantization.save(name, plain, tmp_path / name)
    assert quantization.bits_of(tmp_path / variant) == variant
    with runtimes.threads_kept():
        folders = plain, tmp_path / "torchao_int8", tmp_path / variant
        whole, eager, compiled = (runtimes.load(folder, threads=1) for folder in folders)
        torch._dynamo.utils.counters.clear()
        for length in (12, 7, 5):
            given = {name: values[:, :length].copy() for name, values in inputs.items()}
            expected = whole(given)  # both round, and not alike to the last bit
            off = [np.abs(run(given) - expected).mean() for run in (compiled, eager)]
            assert off[0] < 1.5 * off[1] and off[0] < 0.05 * expected.std()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(quantization.shutil, "which", lambda _: None)
    assert "no g++ here" in variants.why_not(variants.parse("torchao_int8_compiled"))
    assert "no g++" not in str(variants.why_not(variants.parse("torchao_int8")))


def test_loading_gives_the_numbers_of_the_model_that_was_saved(classifier, inputs, tmp_path):
    """PyTorch's own quantized model, before it was taken apart for saving."""
    model, plain = classifier
    for embeddings, variant in ((False, "torch_int8"), (True, "torch_int8_embeddings")):
        whole = quantization.dynamic(copy.deepcopy(model), embeddings)
        with torch.inference_mode():
            expected = whole(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits.numpy()
        quantization.save(variant, plain, tmp_path / variant)
        np.testing.assert_array_equal(runtimes.load(tmp_path / variant, threads=1)(inputs), expected)


KINDS = (torch.nn.Linear, torch.nn.Embedding)


def test_sizes_are_as_counted_by_hand(classifier, tmp_path):
    model, plain = classifier
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    embedded = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    heads = model.classifier.weight.numel() + model.bert.pooler.dense.weight.numel()  # stay as they are
    every = checkpoints.parameters(model)
    sizes = {}
    for variant in ("fp32", "bf16", "torch_int8", "torch_int8_embeddings", "bnb_int8", "bnb_nf4"):
        quantization.save(variant, plain, tmp_path / variant)
        sizes[variant] = 1e6 * timing.size_mb(tmp_path / variant)
    header = 12_000  # names, types and shapes
    rows = {kind: sum(len(m.weight) for m in model.modules() if isinstance(m, kind)) for kind in KINDS}
    assert 0 < sizes["fp32"] - 4 * every < header and 0 < sizes["bf16"] - 2 * every < header
    whole = 4 * every - 3 * linear + 16 * rows[torch.nn.Linear]  # a scale and a zero point a row, 8 bytes each
    assert 0 < sizes["torch_int8"] - whole < header
    assert 0 < sizes["torch_int8_embeddings"] - whole + 3 * embedded - 8 * rows[torch.nn.Embedding] < header
    assert sizes["bnb_int8"] == pytest.approx(4 * every - 3 * (linear - heads), rel=0.03)
    assert sizes["bnb_nf4"] < sizes["bnb_int8"] < sizes["torch_int8"] * 1.2


def test_a_loaded_model_is_the_one_that_was_saved(classifier, inputs, tmp_path):
    """bitsandbytes' own model, asked before it was ever saved; double quantization and fp4 are what they say."""
    _, plain = classifier
    given = {name: torch.from_numpy(values) for name, values in inputs.items()}
    logits, scales = {}, {}
    for variant in ("bnb_int8", "bnb_nf4", "bnb_nf4_double", "bnb_fp4"):
        quantization.save(variant, plain, tmp_path / variant)
        with torch.inference_mode():
            whole = quantization.load_in_bits(variant, plain, torch.device("cpu"))(**given).logits.numpy()
        logits[variant] = runtimes.load(tmp_path / variant, threads=1)(inputs)
        np.testing.assert_allclose(logits[variant], whole, atol=2e-3)  # double: its scales are packed twice
        scales[variant] = {
            k: v.dtype for k, v in load_file(tmp_path / variant / "model.safetensors").items() if "absmax" in k
        }
    name = "bert.encoder.layer.0.output.dense.weight.absmax"
    assert scales["bnb_nf4"][name] == torch.float32 and scales["bnb_nf4_double"][name] == torch.uint8
    assert np.abs(logits["bnb_fp4"] - logits["bnb_nf4"]).max() > 0.01


@pytest.mark.parametrize("variant", ["fp32", "bf16", "torch_int8", "torch_int8_embeddings", "torchao_int8", "bnb_int8"])
@pytest.mark.parametrize("distilled", [False, True])
def test_masked_language_models_with_tied_weights(classifier, inputs, tmp_path, variant, distilled):
    torch.manual_seed(0)
    config = classifier[0].config
    model = (
        DistilBertForMaskedLM(distillation.configuration(config, 2)) if distilled else BertForMaskedLM(config)
    ).eval()
    model.save_pretrained(tmp_path / "plain")
    quantization.save(variant, tmp_path / "plain", tmp_path / "made")
    found, full = (runtimes.load(tmp_path / name, threads=1)(inputs) for name in ("made", "plain"))
    assert found.shape == (6, 12, 300) and np.abs(found - full).max() < 0.2 * full.std()


def test_the_footprint_counts_every_weight_once(classifier, tmp_path):
    model, plain = classifier
    every = checkpoints.parameters(model)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert runtimes.load(plain, threads=1).touch() == 4 * every + buffers
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    quantization.save("torch_int8", plain, tmp_path / "made")
    small = runtimes.load(tmp_path / "made", threads=1).touch()
    assert 0 < small - (4 * every - 3 * linear + buffers) < 50_000, "scales and zero points"
    quantization.save("torchao_int8", plain, tmp_path / "ao")
    assert 0 <= runtimes.load(tmp_path / "ao", threads=1).touch() - (4 * every - 3 * linear + buffers) < 50_000


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp32", "torch_int8", "torchao_int8", "bnb_int8"])
def test_loading_imports_nothing_that_imports_did_not(classifier, tmp_path, variant):
    """What a library takes, in time and memory, is no model's; BERT's own modules included.

    What only experiments need is not imported at all: it would count as PyTorch's cold start, and as its memory.
    """
    quantization.save(variant, classifier[1], tmp_path / "made")
    script = "import sys; from pathlib import Path; from helpers.compression import runtimes\n"
    script += f"folder = Path({str(tmp_path / 'made')!r}); runtimes.imports(folder); before = set(sys.modules)\n"
    script += "runtimes.load(folder, threads=1); new = {n for n in sys.modules if n not in before}\n"
    script += "print(sorted(n for n in new if n.split('.')[0] not in {m.split('.')[0] for m in before}))\n"
    script += "print(sorted(n for n in new if 'modeling_' in n or n.startswith('torch.ao.quantization')))\n"
    script += "print({'pandas', 'pydantic', 'datasets', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]", "set()"], done.stdout + done.stderr


def test_an_old_torchao_is_no_crash(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "is_torchao_available", lambda version: False)
    wanted = r"torchao_int8: its tensors can be saved by safetensors from torchao 0\.18 on, which is not installed here"
    with pytest.raises(InputError, match=wanted):
        quantization.save("torchao_int8", classifier[1], tmp_path / "x")


def test_a_distilbert_takes_the_same_inputs(classifier, inputs, tmp_path):
    """token_type_ids are left out for it, not swallowed."""
    config = distillation.configuration(classifier[0].config, 1)
    config.num_labels = 3
    from transformers import DistilBertForSequenceClassification

    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "plain")
    quantization.save("torch_int8", tmp_path / "plain", tmp_path / "made")
    assert runtimes.load(tmp_path / "made", threads=1)(inputs).shape == (6, 3)


@pytest.mark.slow
def test_no_code_is_fetched_for_bitsandbytes():
    """On processors with AVX512-BF16 it asks `kernels` for code from the Hub; here it finds no such package."""
    script = "import sys, types; from helpers.compression import quantization\n"
    script += "k = types.ModuleType('kernels'); k.get_kernel = lambda *a, **more: print('FETCHED')\n"
    script += "sys.modules['kernels'] = k; quantization.import_bitsandbytes()\n"
    script += "assert sys.modules['kernels'] is k and 'bitsandbytes' in sys.modules; print('done')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "done" and "kernels-community" not in done.stderr, done.stderr


@pytest.mark.parametrize("variant", ["torch_int8", "torchao_int8", "bnb_nf4"])
def test_a_quantized_model_is_not_trained(classifier, inputs, tmp_path, variant):
    quantization.save(variant, classifier[1], tmp_path / "made")
    model = quantization.load(tmp_path / "made", torch.device("cpu"))
    examples = [{name: values[0] for name, values in inputs.items()} | {"labels": 0}]
    recipe = Recipe(learning_rate=1e-3, epochs=1)
    with pytest.raises(InputError, match="is quantized: fine-tune the one that it was made from"):
        finetuning.FineTuner(model, examples, recipe, 0, tmp_path / "t", "fp32", pad_id=0)


def test_bad_input_is_refused_in_one_line(classifier, inputs, tmp_path, monkeypatch):
    _, plain = classifier
    with pytest.raises(InputError, match="unknown variant 'int3': expected one of fp32, bf16"):
        quantization.save("int3", plain, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    quantization.save("torch_int8", plain, tmp_path / "made")
    with pytest.raises(InputError, match="is torch_int8 already: quantize the checkpoint that it was made from"):
        quantization.save("bnb_nf4", tmp_path / "made", tmp_path / "x")
    with pytest.raises(InputError, match=r"99 threads on \d+ cores: expected 1 to"):
        runtimes.load(plain, threads=99)
    with pytest.raises(InputError, match="no model there: expected"):
        runtimes.load(tmp_path / "nowhere", threads=1)
    monkeypatch.setattr(
        quantization, "why_no_bits", lambda device, bits: "bitsandbytes is not installed: pip install …"
    )
    with pytest.raises(InputError, match="bnb_nf4: bitsandbytes is not installed"):
        quantization.save("bnb_nf4", plain, tmp_path / "x")
    assert not (tmp_path / "x").exists() and json.loads((tmp_path / "made/variant.json").read_text())


@pytest.mark.parametrize("distilled", [False, True])
def test_eight_bits_are_near_and_leave_the_head_alone(teacher, tokenizer, cut, tmp_path, distilled):
    model = distillation.from_teacher(teacher, [0, 3]) if distilled else teacher
    checkpoints.save(model, tokenizer, tmp_path / "m")
    small = quantization.load_in_bits("bnb_int8", tmp_path / "m", torch.device("cpu"))
    kinds = {name: values.dtype for name, values in small.named_parameters()}
    inner = [name for name in kinds if "layer" in name and name.endswith("weight") and "norm" not in name.lower()]
    assert {kinds[name] for name in inner if not name.startswith("vocab")} == {torch.int8}
    assert {kinds[name] for name in kinds if name.startswith(("cls", "vocab")) or "embed" in name} == {torch.float32}
    blocks = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer))
    ours, theirs = (np.concatenate(masked_lm.masked_losses(m, blocks, tokenizer)) for m in (small, model))
    assert 1e-6 < np.abs(ours - theirs).mean() < 0.01
    full = dict(model.named_modules())
    for name, layer in small.named_modules():
        if type(layer).__name__ == "Linear8bitLt":
            step = layer.state.SCB[:, None] / 127  # a row has its largest weight at 127 steps
            assert ((layer.weight.data * step - full[name].weight).abs() <= 0.6 * step).all(), (
                name
            )  # half a step, and fp16


@pytest.mark.parametrize("broken", [False, True])
def test_without_bitsandbytes_eight_bits_are_refused(monkeypatch, tmp_path, broken):
    quantization.why_no_bits.cache_clear()
    if broken:
        monkeypatch.setattr("bitsandbytes.nn.Linear8bitLt.forward", lambda *_: 1 / 0)
        reason = r"bitsandbytes does not work here \(ZeroDivisionError: division by zero\)"
    else:
        monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
        reason = "bitsandbytes is not installed: pip install -r requirements.txt"
    assert re.fullmatch(reason, quantization.why_no_bits(torch.device("cpu")))
    quantization.why_no_bits.cache_clear()


def test_pytorch_quantizes_inputs_to_seven_bits_b9():
    """Point B9: notebook 06 said eight, and blamed outliers for what the missing bit does, too."""
    identity = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    identity[0].weight.data = torch.eye(64)
    made = torch.ao.quantization.quantize_dynamic(identity, {torch.nn.Linear})
    levels = made(torch.linspace(-1, 1, 64 * 400).reshape(400, 64)).unique()
    assert 127 <= len(levels) <= 129
