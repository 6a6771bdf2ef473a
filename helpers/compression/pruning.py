"""Pruning: single weights set to zero, whole heads and feed-forward neurons cut out, layers dropped.

Only what is cut out makes a model smaller and faster; zeros inside a matrix are stored and multiplied like any number.
"""

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from .. import InputError
from ..models import checkpoints  # and no more: who loads a model imports this, and that is timed

PARTS = ("query", "key", "value", "output", "up", "down")  # of a layer: its matrices
ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
NAMES = {  # of the parts, by architecture
    **dict.fromkeys(("bert", "roberta", "electra"), (*ATTENTION, "intermediate.dense", "output.dense")),
    "distilbert": (*(f"attention.{part}_lin" for part in "qkv"), "attention.out_lin", "ffn.lin1", "ffn.lin2"),
}
FILE = "pruned.json"
COMMONEST = 500  # pieces that stay in a trimmed vocabulary although the training text has none of them


class Kept(NamedTuple):
    """What is left of a model: for each layer the heads, and the feed-forward neurons, by their first numbers."""

    heads: list[list[int]]
    neurons: list[list[int]]


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's layers; InputError if its architecture is none of `NAMES`."""
    kind = getattr(model.config, "model_type", None)
    if kind not in NAMES:
        raise InputError(f"{type(model).__name__} is none of {', '.join(NAMES)}: its heads are not known here")
    return (model.base_model.transformer if kind == "distilbert" else model.base_model.encoder).layer


def matrices(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """Each layer's matrices by their part: query, key, value, output, up and down."""
    found = layers(model)
    names = dict(zip(PARTS, NAMES[model.config.model_type], strict=True))
    return [{part: layer.get_submodule(name) for part, name in names.items()} for layer in found]


def weights(model: PreTrainedModel) -> list[Tensor]:
    """The weights of all these matrices."""
    return [matrix.weight for layer in matrices(model) for matrix in layer.values()]


def whole_matrices(model: PreTrainedModel) -> list[dict[str, nn.Linear]]:
    """`matrices` of a model that has not been pruned: nothing cut, nothing set to zero; InputError if it has."""
    found, width = matrices(model), model.config.num_attention_heads * head_size(model)
    cut = hasattr(model, "kept") or any(layer["query"].out_features != width for layer in found)
    unread = found[0]["query"].weight.is_meta  # a skeleton, to be filled from a file
    if cut or (not unread and sparsity(model) > 0.01):  # training leaves hardly a weight at zero
        raise InputError("the model has been pruned already: start from the whole one, and cut as much as is wanted")
    return found


def head_size(model: PreTrainedModel) -> int:
    """The width of one head."""
    return model.config.hidden_size // model.config.num_attention_heads


def zero_weights(model: PreTrainedModel, share: float) -> None:
    """Set a share of the encoder's weights to zero, in place: the smallest of all its matrices together.

    Source: global magnitude pruning, as in Han et al. (2015). Biases, embeddings and heads for tasks stay. InputError
    for a share below 0 or not below 1, and for a model that has been pruned before.
    """
    _check_share(share)
    parts = [(matrix, "weight") for layer in whole_matrices(model) for matrix in layer.values()]
    prune.global_unstructured(parts, prune.L1Unstructured, amount=share)
    for matrix, name in parts:
        prune.remove(matrix, name)


def sparsity(model: PreTrainedModel) -> float:
    """The share of zeros among the weights of the encoder's matrices."""
    found = weights(model)
    return sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found)


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
        gates, hooks, rows = {}, [], len(batch["input_ids"])
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
    both = ([sums[part, number] for number in range(len(found))] for part in ("output", "down"))
    return tuple((torch.stack(one) / count).cpu() for one in both)


def _gated(gate: Tensor, width: int) -> Callable:
    return lambda module, inputs: (inputs[0] * gate.repeat_interleave(width, dim=-1),)


def at_random(model: PreTrainedModel, seed: int) -> tuple[Tensor, Tensor]:
    """Importances drawn at random, as a control."""
    generator = torch.Generator().manual_seed(seed)
    heads, neurons = magnitude(model)
    return tuple(torch.rand(scores.shape, generator=generator) for scores in (heads, neurons))


def drawn(rows: Sequence, count: int) -> list:
    """So many of the rows, drawn once for all."""
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:count]]


def by_loss(whole: PreTrainedModel, examples: Sequence[dict], rows: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Taylor importances by the model's own loss on so many of the examples, which have labels; drawn once for all."""
    from ..data import encoding
    from ..models import finetuning

    # One at a time: a masked-LM loss is a mean over tokens, which would weigh the examples of a batch unequally.
    batches = (encoding.Padding(pad_id)([example]) for example in drawn(examples, rows))
    return taylor(whole, batches, lambda batch: whole(**finetuning.accepted(whole, batch)).loss)


def choose(importances: tuple[Tensor, Tensor], share: float) -> Kept:
    """What stays when a share of all heads, and of all neurons, goes: the least important, over all layers together.

    Importances are made comparable by each layer's own norm. No layer is left without a head or a neuron: InputError
    for a share that would leave too few for that.
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


@torch.no_grad()
def cut(model: PreTrainedModel, kept: Kept) -> None:
    """Cut a model's matrices down to the heads and neurons that are kept, in place.

    InputError if it has been cut before, or if a layer would be left without a head or a neuron.
    """
    for matrix, stay, dim in _places(model, kept):
        matrix.weight = nn.Parameter(matrix.weight.index_select(dim, stay.to(matrix.weight.device)))
        if dim == 0:
            matrix.bias = nn.Parameter(matrix.bias[stay])
        matrix.out_features, matrix.in_features = matrix.weight.shape
    model.kept = kept


@torch.no_grad()
def mask(model: PreTrainedModel, kept: Kept) -> None:
    """Set to zero, in place, what `cut` would cut out: the same answers, and nothing saved."""
    for matrix, stay, dim in _places(model, kept):
        gone = torch.ones(matrix.weight.shape[dim], dtype=torch.bool)
        gone[stay] = False
        matrix.weight.index_fill_(dim, gone.nonzero().flatten().to(matrix.weight.device), 0)
        if dim == 0:
            matrix.bias[gone] = 0


def _places(model: PreTrainedModel, kept: Kept) -> list[tuple[nn.Linear, Tensor, int]]:
    """Each matrix, which of its rows (dimension 0) or columns (1) stay, and which of the two it is."""
    size, found, places = head_size(model), whole_matrices(model), []
    if len(kept.heads) != len(found) or not all(kept.heads) or not all(kept.neurons):
        raise InputError(f"{len(found)} layers need at least one head and one neuron each: lower the share")
    for layer, heads, neurons in zip(found, kept.heads, map(torch.tensor, kept.neurons), strict=True):
        rows = (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()
        places += [(layer[part], rows, 0) for part in ("query", "key", "value")]
        places += [(layer["output"], rows, 1), (layer["up"], neurons, 0), (layer["down"], neurons, 1)]
    return places


def drop_layers(model: PreTrainedModel, stay: int) -> list[int]:
    """Leave only so many of a model's layers, in place, spread evenly; which ones, by their first numbers."""
    from ..models import distillation

    found = layers(model)
    chosen = distillation.choose_layers(len(found), stay)
    for number in sorted({*range(len(found))} - {*chosen}, reverse=True):
        del found[number]
    model.config.num_hidden_layers = stay
    if kept := getattr(model, "kept", None):
        model.kept = Kept(*([own[number] for number in chosen] for own in kept))
    return chosen


def pieces_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], commonest: int = 0) -> list[int]:
    """The tokens that stay when a vocabulary is trimmed to some texts, ids in their own order.

    What the texts are cut into, special tokens, single characters and their continuations, so that other words still
    fall into pieces; of the rest the first `commonest`, since vocabularies begin with what is common; and what all of
    these are merged from, where a tokenizer merges pairs.
    """
    vocabulary, described = tokenizer.get_vocab(), json.loads(tokenizer.backend_tokenizer.to_str())
    used = {token for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in ids}
    used |= {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    used |= {token for piece, token in vocabulary.items() if len(piece.removeprefix("##").removeprefix("▁")) <= 1}
    words = {token for piece, token in vocabulary.items() if not piece.startswith("[unused")}
    used |= set(sorted(words - used)[:commonest])
    merges = described["model"].get("merges", ())  # none unless it is of byte pairs
    made_of = {vocabulary["".join(pair)]: [vocabulary[part] for part in pair] for pair in merges}
    left = list(used)
    while left:
        new = set(made_of.get(left.pop(), ())) - used
        used |= new
        left += new
    return sorted(used)


def trim(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stay: list[int]) -> PreTrainedTokenizerBase:
    """Leave only some tokens in a model's vocabulary, in place: embeddings and masked-LM head; the tokenizer for it.

    A text all of whose pieces stay is cut as before: of byte pairs because what they are merged from stays, too, of
    others because they take the longest or likeliest piece there is. InputError for a kind of tokenizer that is not
    known, and if the padding's number would change where positions count from it (RoBERTa).
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    new, kind = {old: place for place, old in enumerate(stay)}, described["model"]["type"]
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise InputError(f"the vocabulary of a {kind} tokenizer cannot be trimmed here")
    pad = getattr(model.config, "pad_token_id", None)
    if model.config.model_type == "roberta" and new.get(pad) != pad:
        raise InputError(f"positions are counted from the padding's number, {pad}, which would change")
    vocabulary = described["model"]["vocab"]
    if kind == "Unigram":
        described["model"] |= {"vocab": [vocabulary[old] for old in stay if old < len(vocabulary)]}
        described["model"]["unk_id"] = new[described["model"]["unk_id"]]
    else:
        described["model"]["vocab"] = {piece: new[old] for piece, old in vocabulary.items() if old in new}
        left = described["model"]["vocab"].keys()
        if kind == "BPE":
            pairs = [pair for pair in described["model"].get("merges", ()) if {*pair, "".join(pair)} <= left]
            described["model"]["merges"] = pairs
    for token in described["added_tokens"]:
        token["id"] = new[token["id"]]
    described |= {"padding": None, "truncation": None}  # of the caller, and not its own
    described["post_processor"] = _renumbered(described["post_processor"], new)
    made = copy.deepcopy(tokenizer)
    made._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(described))
    rows = torch.tensor(stay)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings.weight = nn.Parameter(embeddings.weight.detach()[rows])
    embeddings.num_embeddings = len(stay)
    embeddings.padding_idx = new.get(embeddings.padding_idx)
    if head is not None:
        head.weight, head.out_features = nn.Parameter(head.weight.detach()[rows]), len(stay)
        for holder in [module for module in model.modules() if getattr(module, "bias", None) is head.bias]:
            holder.bias = nn.Parameter(head.bias.detach()[rows])  # some hold it by two names, which are tied below
    model.config.vocab_size = len(stay)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        if getattr(model.config, name, None) is not None:
            setattr(model.config, name, new.get(getattr(model.config, name)))
    model.tie_weights()
    return made


def _renumbered(part: Any, new: dict[int, int]) -> Any:
    """A part of tokenizer.json with new numbers for tokens: `"ids": [101]`, and pairs as `["[CLS]", 101]`."""
    if isinstance(part, dict):
        return {k: [new[i] for i in v] if k == "ids" else _renumbered(v, new) for k, v in part.items()}
    if isinstance(part, list):
        pair = len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int)
        return [part[0], new[part[1]]] if pair else [_renumbered(one, new) for one in part]
    return part


class KeepZeros(TrainerCallback):
    """Sets back to zero, after each step of a training, the encoder's weights that are zero now."""

    def __init__(self, model: PreTrainedModel):
        self.zeros = [(weight, weight == 0) for weight in weights(model)]

    @torch.no_grad()
    def on_step_end(self, args, state, control, **_):
        for weight, zero in self.zeros:
            weight.masked_fill_(zero, 0)


def save(model: PreTrainedModel, tokenizer_from: Path, folder: Path) -> None:
    """Save a model and what was cut out of it, with the tokenizer of another folder, for `load`."""
    with checkpoints.written(folder, tokenizer_from) as building:
        model.save_pretrained(building)
        if kept := getattr(model, "kept", None):  # `from_pretrained` alone would refuse its shapes
            (building / FILE).write_text(json.dumps(kept._asdict()))


def kind(folder: Path) -> type:
    """The class of a saved model."""
    return getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])


def skeleton(folder: Path) -> PreTrainedModel:
    """A model without weights, in the shapes of what is saved in a folder, cut or whole."""
    model = checkpoints.skeleton(kind(folder), AutoConfig.from_pretrained(folder))
    if (folder / FILE).exists():
        cut(model, Kept(**json.loads((folder / FILE).read_text())))
    return model


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A saved model, cut or whole, ready to predict."""
    if not (folder / FILE).exists():
        return kind(folder).from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    return checkpoints.fill(skeleton(folder), load_file(folder / "model.safetensors")).to(dtype)


def _check_share(share: float) -> None:
    if not 0 <= share < 1 or np.isnan(share):
        raise InputError(f"share = {share}: expected at least 0 (nothing goes) and less than 1")
