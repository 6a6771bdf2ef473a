"""What is exported gives PyTorch's answers at any batch size and length; int8 is near and small."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
)

from helpers import ROOT, InputError
from helpers.compression import onnx, pruning, runtimes
from helpers.measure import records, timing
from helpers.models import checkpoints, distillation


def make(kind: str):
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    config = BertConfig(vocab_size=2000, num_labels=3, max_position_embeddings=64, **shape)
    distilled = distillation.configuration(config, 2)
    distilled.num_labels = 3
    model = {
        "bert": lambda: BertForSequenceClassification(config),
        "distilbert": lambda: DistilBertForSequenceClassification(distilled),
        "masked_lm": lambda: DistilBertForMaskedLM(distilled),
    }[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs(batch: int, length: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(batch * length)
    mask = np.ones((batch, length), dtype=np.int64)
    mask[0, length // 2 :] = 0  # padding
    types = np.zeros((batch, length), dtype=np.int64)
    types[:, length // 3 :] = 1
    return {"input_ids": random.integers(5, 2000, (batch, length)), "attention_mask": mask, "token_type_ids": types}


def answer(model, given) -> np.ndarray:
    names = ("input_ids", "attention_mask") + (("token_type_ids",) if model.config.model_type == "bert" else ())
    with torch.no_grad():
        return model(**{name: torch.from_numpy(given[name]) for name in names}).logits.numpy()


@pytest.mark.slow
def test_an_exported_language_model_gives_its_hidden_states_too(tmp_path):
    """In the place of a PyTorch one: at the chosen tokens its logits, and all of its last hidden states."""
    model, given = make("masked_lm"), {name: torch.from_numpy(values) for name, values in inputs(3, 21).items()}
    del given["token_type_ids"]
    onnx.export(model, tmp_path, tmp_path / "both", hidden=True)
    chosen = torch.rand(3, 21, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        hidden, logits = checkpoints.predict(model, given, chosen)
    ours = checkpoints.predict(onnx.MaskedLM(tmp_path / "both", threads=1), given, chosen)
    for one, other in zip(ours, (hidden, logits), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert len(logits) == chosen.sum() and hidden.shape == (3, 21, 128)


@pytest.mark.slow
def test_what_is_exported_does_not_say_where_f15(tmp_path):
    """The same model is the same file wherever it was made, and tells nobody how this machine's folders are called."""
    model, made = make("distilbert"), {}
    for name in ("here", "in_a_folder_with_a_long_name"):
        onnx.export(model, tmp_path, tmp_path / name / "fp32")
        onnx.quantize(tmp_path / name / "fp32", tmp_path / name / "int8", "onnx_int8_embeddings")
        made[name] = [(tmp_path / name / bits / "model.onnx").read_bytes() for bits in ("fp32", "int8")]
    for one, other in zip(*made.values(), strict=True):
        assert one == other
        assert not any(word in one for word in (b".py", b"torch.onnx", str(ROOT).encode(), str(tmp_path).encode()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "distilbert", "masked_lm"])
def test_what_is_exported_gives_the_same_answers(kind, tmp_path, capfd, page):
    model, (weights, to_ort) = make(kind), page("09_edge", "weights", "to_ort")
    if kind == "distilbert":  # one that has been cut, too
        pruning.cut(model, pruning.choose(pruning.magnitude(model), 0.5))
    onnx.export(model, tmp_path, tmp_path / "fp32")
    to_ort(tmp_path / "fp32", tmp_path / "ort")
    assert not capfd.readouterr().err, "an export says nothing"
    assert {path.name for path in (tmp_path / "ort").iterdir()} == {"model.ort", "variant.json"}
    for folder in ("fp32", "ort"):
        run = runtimes.load(tmp_path / folder, threads=1)
        for shape in ((1, 3), (2, 16), (5, 33)):
            np.testing.assert_allclose(run(inputs(*shape)), answer(model, inputs(*shape)), atol=1e-4)
    onnx.quantize(tmp_path / "fp32", tmp_path / "int8")
    onnx.quantize(tmp_path / "fp32", tmp_path / "small", "onnx_int8_embeddings")
    for folder in ("int8", "small"):
        found, full = runtimes.load(tmp_path / folder, threads=1)(inputs(5, 33)), answer(model, inputs(5, 33))
        assert 1e-6 < np.abs(found - full).mean() < 0.1 * full.std(), folder
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    embedded = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    sizes = {folder: 1e6 * timing.size_mb(tmp_path / folder) for folder in ("fp32", "int8", "small")}
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    eight = [one for one in weights(tmp_path / "int8/model.onnx") if one[2] == "int8" and len(one[1]) == 2]
    assert len(eight) == len(linear), "every matrix, and that of a head which shares the embeddings' table"
    if kind != "masked_lm":  # there, the head is the embeddings' twin
        assert sizes["fp32"] - sizes["int8"] == pytest.approx(3 * matrices, rel=0.1)
        assert sizes["int8"] - sizes["small"] == pytest.approx(3 * embedded, rel=0.1)
    assert sizes["small"] < (0.5 if kind == "masked_lm" else 0.4) * sizes["fp32"]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")], "nothing half-made is left"


@pytest.mark.parametrize(
    ("flags", "reduced"),
    [(["avx2", "avx512_vnni"], False), (["avx2", "avx_vnni"], False), (["avx2"], True), (["asimd"], False)],
)
def test_seven_bits_where_eight_overflow(flags, reduced, monkeypatch):
    monkeypatch.setattr(records, "cpu", lambda: {"flags": flags, "model": "a cpu"})
    assert onnx.needs_reduced_range() is reduced


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "largest"), [(["avx2", "avx512_vnni"], 127), (["avx2"], 64)])
def test_eight_bits_have_a_scale_for_each_output_channel(flags, largest, tmp_path, monkeypatch):
    """What is stored, read back: so many scales as columns, and seven bits where eight would overflow."""
    import onnx as library

    monkeypatch.setattr(records, "cpu", lambda: {"flags": flags, "model": "a cpu"})
    onnx.export(make("distilbert"), tmp_path, tmp_path / "fp32")
    onnx.quantize(tmp_path / "fp32", tmp_path / "int8")
    stored = {
        one.name: library.numpy_helper.to_array(one)
        for one in library.load(tmp_path / "int8/model.onnx").graph.initializer
    }
    eight = {name: values for name, values in stored.items() if values.dtype == np.int8 and values.ndim == 2}
    assert len(eight) == 2 * 6 + 2, "the matrices of two layers, and of the head"
    for name, values in eight.items():
        assert stored[name.replace("_quantized", "_scale")].shape == values.shape[1:], name
        assert np.abs(values).max() == pytest.approx(largest, abs=1), name


def test_bad_input_is_refused_in_one_line(tmp_path, page):
    with pytest.raises(InputError, match=r"no model\.onnx there: export the model first"):
        onnx.quantize(tmp_path, tmp_path / "int8")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"half of a model")
    with pytest.raises(InputError, match="model.onnx: ONNX Runtime cannot load it: "):
        runtimes.load(broken, threads=1)
    (broken / "variant.json").write_text('{"variant": "onnx_fp32"}')
    with pytest.raises(InputError, match="could not be made: "):
        page("09_edge", "to_ort")[0](broken, tmp_path / "ort")
    assert not (tmp_path / "ort").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["onnx_int8_static", "onnx_int4"])
def test_other_bits_are_what_they_say(bits, tmp_path):
    """Read back from the file: scales of inputs that are stored, or two weights a byte and a scale for each block."""
    import onnx as library

    model, given = make("distilbert"), inputs(8, 16)
    given["attention_mask"][:] = 1
    rows = [{part: values[row] for part, values in given.items()} for row in range(8)]
    onnx.export(model, tmp_path, tmp_path / "fp32")
    onnx.quantize(tmp_path / "fp32", tmp_path / bits, bits, rows)
    run, full = runtimes.load(tmp_path / bits, threads=1), answer(model, given)
    apart = np.abs(run(given) - full).mean() / full.std()
    assert 1e-4 < apart < (0.1 if "int8" in bits else 0.5) and run(inputs(3, 7)).shape == (3, 3)
    graph = library.load(tmp_path / bits / "model.onnx").graph
    stored = {one.name: library.numpy_helper.to_array(one) for one in graph.initializer}
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if bits == "onnx_int4":
        four = [node for node in graph.node if node.op_type == "MatMulNBits"]
        encoder = model.distilbert.transformer
        weights = sum(one.weight.numel() for one in encoder.modules() if isinstance(one, torch.nn.Linear))
        assert sum(stored[node.input[1]].nbytes for node in four) == weights / 2
        assert sum(stored[node.input[2]].size for node in four) == weights / onnx.BLOCK
        others = [model.pre_classifier, model.classifier, *model.distilbert.embeddings.modules()]
        eight = sum(one.weight.numel() for one in others if isinstance(one, torch.nn.Linear | torch.nn.Embedding))
        assert sum(v.nbytes for v in stored.values() if v.dtype in (np.int8, np.uint8) and v.ndim == 2) == eight
    else:
        eight = [v for v in stored.values() if v.dtype == np.int8 and v.ndim == 2]
        assert len(eight) == len(matrices)
        kinds = [node.op_type for node in graph.node]
        assert "DynamicQuantizeLinear" not in kinds and kinds.count("QuantizeLinear") >= 2
        onnx.quantize(tmp_path / "fp32", tmp_path / "few", bits, [{part: row[:4] for part, row in rows[0].items()}])
        again = library.load(tmp_path / "few" / "model.onnx").graph.initializer
        few = {one.name: library.numpy_helper.to_array(one) for one in again}
        changed = [name for name in few if few[name].ndim == 0 and not np.array_equal(few[name], stored[name])]
        assert changed, "the ranges of other rows are others"


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["onnx_int8", "onnx_int8_static"])
def test_products_that_are_left_out_stay_in_fp32(bits, tmp_path, page):
    """As notebook 06 leaves out one in turn: its matrix is the model's own, and all the others have 8 bits."""
    import onnx as library

    model, given = make("distilbert"), inputs(8, 16)
    given["attention_mask"][:] = 1
    rows = [{part: values[row] for part, values in given.items()} for row in range(8)]
    onnx.export(model, tmp_path, tmp_path / "fp32")
    (multiplied,) = page("06_quantization", "multiplied")
    names = multiplied(tmp_path / "fp32")
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(names) == len(set(names)) == len(linear)
    place = 3  # of the first layer: query, key, value, and then the way out
    onnx.quantize(tmp_path / "fp32", tmp_path / bits, bits, rows, [names[place]])
    stored = [library.numpy_helper.to_array(v) for v in library.load(tmp_path / bits / "model.onnx").graph.initializer]
    assert sum(v.dtype == np.int8 and v.ndim == 2 for v in stored) == len(linear) - 1
    own = model.distilbert.transformer.layer[0].attention.out_lin.weight.detach().numpy().T
    same = [v for v in stored if v.dtype == np.float32 and v.shape == own.shape]
    assert len(same) == 1 and np.array_equal(same[0], own), "the product that was named, and in full"
