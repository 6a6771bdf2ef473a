"""Pruning: single weights set to zero, whole heads and feed-forward neurons cut out, layers dropped.

Only what is cut out makes a model smaller and faster; zeros inside a matrix are stored and multiplied like any number.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import InputError, models, students

NAMES = {  # of one layer's matrices, by architecture
    "bert": {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
    "distilbert": {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
    },
}
FILE = "pruned.json"


class Kept(NamedTuple):
    """What is left of a model: for each layer the heads, and the feed-forward neurons, by their first numbers."""

    heads: list[list[int]]
    neurons: list[list[int]]


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The model's layers.

    Raises:
        InputError: neither a BERT nor a DistilBERT.
    """
    kind = getattr(model.config, "model_type", None)
    if kind not in NAMES:
        raise InputError(f"{type(model).__name__} is neither a BERT nor a DistilBERT: its heads are not known here")
    body = model.base_model
    return list(body.encoder.layer if kind == "bert" else body.transformer.layer)


def matrices(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """Each layer's matrices by their part: query, key, value, output, up and down."""
    found = layers(model)
    names = NAMES[model.config.model_type]
    return [{part: layer.get_submodule(name) for part, name in names.items()} for layer in found]


def whole_matrices(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """`matrices` of a model from which nothing has been cut, and in which nothing has been set to zero.

    Raises:
        InputError: something has.
    """
    found, width = matrices(model), model.config.num_attention_heads * head_size(model)
    cut = hasattr(model, "kept") or any(layer["query"].out_features != width for layer in found)
    unread = found[0]["query"].weight.is_meta  # a skeleton, to be filled from a file
    if cut or (not unread and sparsity(model) > 0.01):  # training leaves hardly a weight at zero
        raise InputError("the model has been pruned already: start from the whole one, and cut as much as is wanted")
    return found


def head_size(model: PreTrainedModel) -> int:
    """The width of one head."""
    return model.config.hidden_size // model.config.num_attention_heads


# --- single weights


def zero_weights(model: PreTrainedModel, share: float) -> None:
    """Set a share of the encoder's weights to zero, in place: the smallest of all its matrices together.

    Source: global magnitude pruning, as in Han et al. (2015). Biases, embeddings and heads for tasks stay.

    Raises:
        InputError: a share below 0 or not below 1; a model that has been pruned before.
    """
    _check_share(share)
    parts = [(matrix, "weight") for layer in whole_matrices(model) for matrix in layer.values()]
    prune.global_unstructured(parts, prune.L1Unstructured, amount=share)
    for matrix, name in parts:
        prune.remove(matrix, name)


def sparsity(model: PreTrainedModel) -> float:
    """The share of zeros among the weights of the encoder's matrices."""
    weights = [matrix.weight for layer in matrices(model) for matrix in layer.values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def sparse_size_mb(model: PreTrainedModel) -> float:
    """What the weights would take if zeros of the encoder's matrices weren't stored, in MB: a bit each says where."""
    encoder = [matrix.weight for layer in matrices(model) for matrix in layer.values()]
    dense = 4 * (sum(p.numel() for p in model.parameters()) - sum(weight.numel() for weight in encoder))
    return (dense + sum(4 * int((weight != 0).sum()) + weight.numel() / 8 for weight in encoder)) / 1e6


# --- heads and neurons


def magnitude(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """How large the weights of each head [layers, heads] and of each neuron [layers, neurons] are: their L2 norm."""
    size, heads, neurons = head_size(model), [], []
    for layer in whole_matrices(model):
        ways_in = [layer[part].weight.view(-1, size, layer[part].in_features) for part in ("query", "key", "value")]
        way_out = layer["output"].weight.T.reshape(-1, size, layer["output"].out_features)
        heads.append(sum(part.pow(2).sum((1, 2)) for part in [*ways_in, way_out]).sqrt())
        neurons.append((layer["up"].weight.pow(2).sum(1) + layer["down"].weight.pow(2).sum(0)).sqrt())
    return torch.stack(heads).detach(), torch.stack(neurons).detach()


def taylor(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], loss: Callable[[dict[str, Tensor]], Tensor]
) -> tuple[Tensor, Tensor]:
    """By how much the loss would change, to first order, without each head [layers, heads] and neuron.

    Source: Taylor importance, Molchanov et al. (2017), for heads Michel et al. (2019): each output is multiplied by a
    gate of one, and the importance is the mean over examples of the absolute gradient at the gate. Each example has
    gates of its own, since gradients of several would cancel; `loss(batch)` is the mean over the batch's examples.
    """
    size, found, sums, count = head_size(model), whole_matrices(model), {}, 0
    for batch in batches:
        gates, hooks = {}, []
        rows = len(batch["input_ids"])
        for number, layer in enumerate(found):
            for part, width in (("output", size), ("down", 1)):
                gate = torch.ones(rows, 1, layer[part].in_features // width, device=model.device, requires_grad=True)
                gates[part, number] = gate
                hooks.append(layer[part].register_forward_pre_hook(_gated(gate, width)))
        gradients = torch.autograd.grad(loss(batch), list(gates.values()))
        for hook in hooks:
            hook.remove()
        for key, gradient in zip(gates, gradients, strict=True):
            sums[key] = sums.get(key, 0) + rows * gradient.abs().sum(dim=(0, 1))  # the loss is a mean: undo its 1/rows
        count += rows
    return tuple(torch.stack([sums[part, n] for n in range(len(found))]) / count for part in ("output", "down"))


def _gated(gate: Tensor, width: int) -> Callable:
    return lambda module, inputs: (inputs[0] * gate.repeat_interleave(width, dim=-1),)


def at_random(model: PreTrainedModel, seed: int) -> tuple[Tensor, Tensor]:
    """Importances drawn at random, as a control."""
    generator = torch.Generator().manual_seed(seed)
    heads, neurons = magnitude(model)
    return tuple(torch.rand(scores.shape, generator=generator) for scores in (heads, neurons))


def choose(importances: tuple[Tensor, Tensor], share: float) -> Kept:
    """What stays when a share of all heads, and of all neurons, goes: the least important, over all layers together.

    Importances are made comparable by each layer's own norm, and no layer is left without a head or a neuron.

    Raises:
        InputError: a share that would leave some layer without a head.
    """
    _check_share(share)
    kept = []
    for what, scores in zip(("head", "neuron"), importances, strict=True):
        scores = scores.detach().cpu()
        scores = scores / scores.norm(dim=1, keepdim=True).clamp(min=1e-12)
        go = round(share * scores.numel())
        if scores.numel() - go < len(scores):
            raise InputError(f"{share:.0%} of {scores.numel()} {what}s leaves some of {len(scores)} layers without any")
        scores.scatter_(1, scores.argmax(dim=1, keepdim=True), torch.inf)  # the best of each layer stays
        gone = torch.zeros(scores.numel(), dtype=torch.bool)
        gone[scores.flatten().argsort(stable=True)[:go]] = True
        kept.append([torch.nonzero(~row).flatten().tolist() for row in gone.view_as(scores)])
    return Kept(*kept)


def cut(model: PreTrainedModel, kept: Kept) -> None:
    """Cut a model's matrices down to the heads and neurons that are kept, in place.

    Raises:
        InputError: it has been cut before, or a layer would be left without a head or a neuron.
    """
    size, found = head_size(model), whole_matrices(model)
    if len(kept.heads) != len(found) or not all(kept.heads) or not all(kept.neurons):
        raise InputError(f"{len(found)} layers need at least one head and one neuron each: lower the share")
    for layer, heads, neurons in zip(found, kept.heads, kept.neurons, strict=True):
        rows = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
        for part, stay, dim in _places(rows, torch.tensor(neurons)):
            _slice(layer[part], stay, dim)
    model.kept = kept


@torch.no_grad()
def mask(model: PreTrainedModel, kept: Kept) -> None:
    """Set to zero, in place, what `cut` would cut out: the same answers, and nothing saved."""
    size = head_size(model)
    for layer, heads, neurons in zip(whole_matrices(model), kept.heads, kept.neurons, strict=True):
        rows = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
        for part, stay, dim in _places(rows, torch.tensor(neurons)):
            gone = torch.ones(layer[part].weight.shape[dim], dtype=torch.bool)
            gone[stay] = False
            layer[part].weight.index_fill_(dim, gone.nonzero().flatten().to(layer[part].weight.device), 0)
            if dim == 0:
                layer[part].bias[gone] = 0


def _places(rows: Tensor, neurons: Tensor) -> list[tuple[str, Tensor, int]]:
    """Which rows (dimension 0) or columns (1) of each part stay, by those of the heads and of the neurons."""
    heads = [(part, rows, 0) for part in ("query", "key", "value")] + [("output", rows, 1)]
    return heads + [("up", neurons, 0), ("down", neurons, 1)]


@torch.no_grad()
def _slice(matrix: nn.Linear, stay: Tensor, dim: int) -> None:
    matrix.weight = nn.Parameter(matrix.weight.index_select(dim, stay.to(matrix.weight.device)).contiguous())
    if dim == 0:
        matrix.bias = nn.Parameter(matrix.bias[stay].contiguous())
    matrix.out_features, matrix.in_features = matrix.weight.shape


# --- layers


def drop_layers(model: PreTrainedModel, stay: int) -> list[int]:
    """Leave only so many of a model's layers, in place, spread evenly; which ones, by their first numbers."""
    found = layers(model)
    chosen = students.choose_layers(len(found), stay)
    parent = model.base_model.encoder if model.config.model_type == "bert" else model.base_model.transformer
    parent.layer = nn.ModuleList([found[number] for number in chosen])
    model.config.num_hidden_layers = stay
    if kept := getattr(model, "kept", None):
        model.kept = Kept(*([own[number] for number in chosen] for own in kept))
    return chosen


# --- on disk


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model and what was cut out of it, whole or not at all, for `load`."""
    building = folder.with_name(f"{folder.name}.{os.getpid()}.building")
    models.save(model, tokenizer, building)
    save_shape(model, building)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)


def save_shape(model: PreTrainedModel, folder: Path) -> None:
    """Note beside a saved model what was cut out of it; `from_pretrained` alone would refuse its shapes."""
    if kept := getattr(model, "kept", None):
        (folder / FILE).write_text(json.dumps(kept._asdict()))


def reshape(model: PreTrainedModel, folder: Path) -> None:
    """Give a whole model, whatever its weights, the shapes of what is saved in a folder."""
    if (folder / FILE).exists():
        cut(model, Kept(**json.loads((folder / FILE).read_text())))


def load(kind: type, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A saved model, cut or whole, ready to predict; `kind` is its class."""
    if not (folder / FILE).exists():
        return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    model = models.skeleton(kind, AutoConfig.from_pretrained(folder))
    reshape(model, folder)
    return models.fill(model, load_file(folder / "model.safetensors")).to(dtype)


def _check_share(share: float) -> None:
    if not 0 <= share < 1 or np.isnan(share):
        raise InputError(f"share = {share}: expected at least 0 (nothing goes) and less than 1")
