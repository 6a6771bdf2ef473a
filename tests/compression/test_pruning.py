"""Pruned models equal the masked ones they came from; shares are hit; importances find what matters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2Model,
)

from helpers import InputError
from helpers.compression import pruning, quantization, runtimes
from helpers.models import checkpoints, distillation


@pytest.fixture(params=["bert", "distilbert"])
def model(request):
    """Three layers of four heads and 48 neurons, with weights that matter."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=60, num_labels=3, max_position_embeddings=32, **shape)
    if request.param == "distilbert":
        config = distillation.configuration(config, 3)
        config.num_labels = 3
        made = DistilBertForSequenceClassification(config).eval()
    else:
        made = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return made


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(5, 60, (8, 12))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(3, (8,))}


def answer(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_a_cut_model_is_the_masked_one(model, batch, share, tmp_path):
    kept = pruning.choose(pruning.magnitude(model), share)
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    pruning.mask(masked, kept)
    pruning.cut(cut, kept)
    torch.testing.assert_close(answer(cut, batch), answer(masked, batch), atol=1e-5, rtol=0)
    assert (answer(cut, batch) - answer(model, batch)).abs().max() > 1e-3
    heads, neurons = sum(map(len, kept.heads)), sum(map(len, kept.neurons))
    assert heads == 12 - round(share * 12) and neurons == 144 - round(share * 144)
    width, size = 32, 8
    gone = (12 - heads) * (4 * size * width + 3 * size) + (144 - neurons) * (2 * width + 1)  # by hand
    assert checkpoints.parameters(cut) == checkpoints.parameters(model) - gone
    zeros = (12 - heads) * 4 * size * width + (144 - neurons) * 2 * width
    assert pruning.sparsity(masked) == pytest.approx(zeros / (3 * (4 * width * width + 2 * width * 48)))
    pruning.save(cut, tmp_path, tmp_path / "cut")
    again = pruning.load(tmp_path / "cut")
    assert torch.equal(answer(again, batch), answer(cut, batch))


def test_a_cut_model_can_be_quantized(model, batch, tmp_path):
    pruning.cut(model, pruning.choose(pruning.magnitude(model), 0.5))
    pruning.save(model, tmp_path, tmp_path / "cut")
    inputs = {name: values.numpy() for name, values in batch.items() if name != "labels"}
    inputs["token_type_ids"] = 0 * inputs["input_ids"]
    for variant in ("fp32", "bf16", "torch_int8"):
        quantization.save(variant, tmp_path / "cut", tmp_path / variant)
        found = runtimes.load(tmp_path / variant, threads=1)(inputs)
        near = answer(model, batch).numpy()
        assert abs(found - near).max() < 0.1 * near.std() + (variant == "fp32") * 1e-5
    with pytest.raises(InputError, match="heads were cut out of its matrices"):
        quantization.save("bnb_nf4", tmp_path / "cut", tmp_path / "x")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_single_weights_go_by_their_size_over_all_layers(model, share):
    with torch.no_grad():
        pruning.matrices(model)[0]["up"].weight.mul_(100)  # all of these are large
    before = copy.deepcopy(model)
    pruning.zero_weights(model, share)
    assert pruning.sparsity(model) == pytest.approx(share, abs=0.001)
    assert (pruning.matrices(model)[0]["up"].weight == 0).float().mean() < share / 2
    named = dict(model.named_parameters())
    assert named.keys() == dict(before.named_parameters()).keys(), "nothing of the mask is left"
    kept = torch.cat([m.weight[m.weight != 0].abs() for layer in pruning.matrices(model) for m in layer.values()])
    for old, new in zip(pruning.matrices(before), pruning.matrices(model), strict=True):
        for part in old:
            assert old[part].weight[new[part].weight == 0].abs().max() <= kept.min()
            assert torch.equal(old[part].bias, new[part].bias)
    assert checkpoints.size_mb(model) == checkpoints.size_mb(before), "masks save nothing"


def test_taylor_importance_finds_the_head_and_the_neuron_that_matter(model, batch):
    """One head's and one neuron's way out is made strong, all others' weak."""
    layer = pruning.matrices(model)[1]
    with torch.no_grad():
        layer["output"].weight[:, :8] *= 0.01
        layer["output"].weight[:, 16:] *= 0.01
        layer["down"].weight[:, torch.arange(48) != 7] *= 0.01

    def loss(given):
        return model(**given).loss

    one = {name: values[:1] for name, values in batch.items()}
    heads, neurons = pruning.taylor(model, [one, one], loss)
    assert heads.shape == (3, 4) and neurons.shape == (3, 48)
    assert heads[1].argmax() == 1 and heads[1, 1] > 5 * heads[1, 0]
    assert not any(module._forward_pre_hooks for module in model.modules()), "no gate is left"
    assert neurons[1].argmax() == 7
    # The gates' gradients by finite differences: a head's and a neuron's way out, a little stronger, a little weaker.
    way_out = pruning.matrices(model.double())[1]
    for part, columns, found in (("output", slice(8, 16), heads[1, 1]), ("down", slice(7, 8), neurons[1, 7])):
        ends = []
        for factor in (1 + 1e-5, (1 - 1e-5) / (1 + 1e-5), 1 / (1 - 1e-5)):  # and back again
            with torch.no_grad():
                way_out[part].weight[:, columns] *= factor
            ends.append(loss(one).item())
        assert found.item() == pytest.approx(abs(ends[0] - ends[1]) / 2e-5, rel=0.001), part


def test_examples_do_not_cancel_in_a_batch(model, batch):
    """The importance over a batch is the mean of those of its examples, however they are batched."""

    def loss(given):
        return model(**given).loss

    singles = [{name: values[place : place + 1] for name, values in batch.items()} for place in range(8)]
    for together, apart in zip(pruning.taylor(model, [batch], loss), pruning.taylor(model, singles, loss), strict=True):
        torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-3)


def test_layers_of_a_cut_model_can_be_dropped_too(model, batch, tmp_path):
    pruning.cut(model, pruning.choose(pruning.magnitude(model), 0.3))
    pruning.drop_layers(model, 2)
    pruning.save(model, tmp_path, tmp_path / "m")
    assert torch.equal(answer(pruning.load(tmp_path / "m"), batch), answer(model, batch))


def test_a_checkpoint_that_lacks_a_weight_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    pruning.cut(model, pruning.choose(pruning.magnitude(model), 0.3))
    pruning.save(model, tmp_path, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    gone = next(name for name in tensors if name.endswith("1.weight") or "intermediate" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, tmp_path / "m/model.safetensors")
    with pytest.raises(InputError, match=f"the checkpoint lacks {gone}: save it again"):
        pruning.load(tmp_path / "m")


def test_no_layer_loses_its_last_head(model):
    heads = torch.tensor([[0.1] * 4, [5.0, 6, 7, 8], [9.0] * 4])
    kept = pruning.choose((heads, torch.rand(3, 48)), 0.7)
    assert [len(own) for own in kept.heads] and all(kept.heads) and sum(map(len, kept.heads)) == 4
    assert 3 in kept.heads[1]
    same = [pruning.choose(pruning.at_random(model, seed), 0.5) for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_layers_are_dropped_evenly(model, batch, tmp_path):
    assert pruning.drop_layers(model, 2) == [0, 2]
    assert model.config.num_hidden_layers == 2 and answer(model, batch).shape == (8, 3)
    model.save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m").eval()
    torch.testing.assert_close(answer(again, batch), answer(model, batch))


def test_bad_input_is_refused_in_one_line(model, tmp_path):
    for share in (-0.1, 1.0, float("nan")):
        for act in (pruning.zero_weights, lambda m, s: pruning.choose(pruning.magnitude(m), s)):
            with pytest.raises(InputError, match="expected at least 0 .* and less than 1"):
                act(model, share)
    with pytest.raises(InputError, match="90% of 12 heads leaves some of 3 layers without any"):
        pruning.choose(pruning.magnitude(model), 0.9)
    with pytest.raises(InputError, match="need at least one head and one neuron each"):
        pruning.cut(model, pruning.Kept([[0], [], [1]], [[0], [1], [2]]))
    zeroed = copy.deepcopy(model)
    pruning.zero_weights(zeroed, 0.5)
    for again in (lambda: pruning.zero_weights(zeroed, 0.8), lambda: pruning.taylor(zeroed, [], None)):
        with pytest.raises(InputError, match="has been pruned already: start from the whole one"):
            again()
    pruning.cut(model, pruning.choose(pruning.magnitude(model), 0.3))
    with pytest.raises(InputError, match="has been pruned already: start from the whole one"):
        pruning.cut(model, pruning.choose(pruning.at_random(model, 0), 0.3))
    with pytest.raises(InputError, match="GPT2Model is none of bert, roberta, electra, distilbert"):
        pruning.layers(GPT2Model(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1)))


def test_the_loss_takes_the_gates_of_a_distilled_loss_too(model, batch):
    """Any loss will do: here the distance from the model's own answers, whose gradient is nothing."""
    own = answer(model, batch)

    def distance(given):
        return F.mse_loss(model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits, own)

    heads, _ = pruning.taylor(model, [batch], distance)
    assert heads.abs().max() < 1e-5
