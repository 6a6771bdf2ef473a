"""The experiments of notebook 07: fine-tuned models with weights, heads, neurons or layers taken away."""

import dataclasses
import functools
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from . import InputError, compression, data, edge, finetuning, models, pruning, quantization, records
from .profiles import Profile, Pruning, Recipe, as_settings
from .variants import BASE, Variants, packages

METHODS = {
    BASE: "whole model",
    "weights": "{}% of weights zero",
    "masked": "{}% of heads and neurons zero (Taylor)",
    "taylor": "{}% of heads and neurons cut (Taylor)",
    "magnitude": "{}% of heads and neurons cut (magnitude)",
    "random": "{}% of heads and neurons cut (at random)",
    "layers": "layers left: {}",
}
NAME = re.compile(rf"({BASE}|({'|'.join(list(METHODS)[1:])})_(\d+))(_recovered)?(_int8)?")


class Way(NamedTuple):
    """How a variant is made; its name is these parts in a row: `taylor_50_recovered_int8`, `fp32_int8`."""

    method: str
    amount: int = 0  # percent that goes or, of layers, how many stay; nothing of the whole model, fp32
    recovered: bool = False  # trained again for a while, the whole model teaching
    int8: bool = False  # and then in 8 bits, by ONNX Runtime

    @property
    def name(self) -> str:
        amount = [] if self.method == BASE else [str(self.amount)]
        parts = [self.method, *amount] + ["recovered"] * self.recovered + ["int8"] * self.int8
        return "_".join(parts)

    @property
    def label(self) -> str:
        """In words, as in tables and figures."""
        return METHODS[self.method].format(self.amount) + ", recovered" * self.recovered + ", int8" * self.int8


def way(variant: str) -> Way:
    """The parts of a variant's name.

    Raises:
        InputError: it is no such name.
    """
    found = NAME.fullmatch(variant)
    if not found:
        form = f"{BASE} or METHOD_AMOUNT, then _recovered, then _int8"
        raise InputError(f"unknown variant {variant!r}: expected {form}, METHOD one of {', '.join(list(METHODS)[1:])}")
    _, method, amount, recovered, int8 = found.groups()
    return Way(method or BASE, int(amount or 0), bool(recovered), bool(int8))


def ways(own: Pruning) -> list[Way]:
    """What a profile takes away, each as it is then: not recovered, not in 8 bits."""
    found = [Way("weights", _percent(share)) for share in own.weights]
    found += [Way(method, _percent(share)) for method in own.importances for share in own.shares]
    return found + [Way("layers", left) for left in own.layers]


def in_int8(own: Pruning) -> list[Way]:
    """What is followed by 8 bits as well: the whole model, and what is recovered."""
    return [one for one in (Way(BASE), *ways(own)) if one.method in (BASE, *own.recovered)]


def label(variant: str) -> str:
    """What a variant of notebook 06 or 07 is called in tables and figures."""
    return compression.LABELS.get(variant) or way(variant).label  # the whole model's is among the former


def packages_of(variant: str) -> dict[str, str | None]:
    """The versions of what makes a variant of this notebook: its 8 bits are ONNX Runtime's."""
    return packages("onnx_int8" if way(variant).int8 else BASE)


def take_away(model: PreTrainedModel, how: Way, importances: Callable[[str], tuple[Tensor, Tensor]]) -> None:
    """Prune a whole model in place; `importances(criterion)` of heads and of neurons, where they are needed."""
    if how.method == "weights":
        pruning.zero_weights(model, how.amount / 100)
    elif how.method == "layers":
        pruning.drop_layers(model, how.amount)
    elif how.method != BASE:
        kept = pruning.choose(importances("taylor" if how.method == "masked" else how.method), how.amount / 100)
        (pruning.mask if how.method == "masked" else pruning.cut)(model, kept)


class Pruned(Variants):
    """The models with something taken away: as they are then, recovered, and followed by 8 bits."""

    experiment = "pruning"

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        super().__init__(profile, space, fresh)
        own = profile.pruning
        self.tasks, self.models, self.apart = own.tasks, own.models, own.isolated
        found = [Way(BASE), *ways(own)]
        followed = in_int8(own)
        again = [one._replace(recovered=True) for one in followed]
        eight = [one._replace(int8=True) for one in followed + again[1:]]  # not of the whole model, trained once more
        masked = [Way("masked", _percent(share)) for share in own.masked]
        self.variants = [one.name for one in found + masked + again + eight]
        for name in (*(self.apart or ()), *(own.elsewhere or ())):  # those that are no variants here are left out
            way(name)

    @property
    def units(self) -> list[dict]:
        few = self.profile.pruning.elsewhere
        plain = {name: way(name)._replace(recovered=False, int8=False).name for name in self.variants}
        every = few is None
        return [u for u in super().units if every or u["task"] == self.tasks[0] or plain[u["variant"]] in (BASE, *few)]

    def label(self, variant: str) -> str:
        return label(variant)

    def why_not(self, variant: str, device: str = "cpu") -> str | None:
        if not way(variant).int8:
            return None
        return edge.why_not() if device == "cpu" else "for processors"

    def made_of(self, unit: dict) -> dict:
        made, how, own = super().made_of(unit), way(unit["variant"]), self.profile.pruning
        made["packages"] = packages_of(unit["variant"])
        if how.method in ("taylor", "masked"):
            made["calibration_rows"] = own.calibration_rows
        if how.recovered:
            made["recovery"] = as_settings(self.recovery(unit)) | {"precision": self.glue.precision}
        return made

    def in_onnx(self, task: str, model: str) -> Path:
        """Where notebook 06 keeps the whole model in ONNX format: made now if it isn't there."""
        quantized = compression.Compression(self.profile, self.space, self.fresh)
        return quantized.folder({"task": task, "model": model, "variant": "onnx_fp32"})

    def recovery(self, unit: dict) -> Recipe:
        """How the unit's model is trained again: its task's recipe, for as long as the profile says."""
        own = self.profile.pruning.recovery
        return dataclasses.replace(self.glue.recipe(unit), epochs=own.epochs, learning_rate=own.learning_rate)

    def make(self, unit: dict, folder: Path) -> None:
        source = self.source(unit["task"], unit["model"])
        if unit["variant"] == BASE:
            quantization.save(BASE, source, folder)
            return
        how = way(unit["variant"])
        if how == Way(BASE, int8=True):
            edge.quantize(self.in_onnx(unit["task"], unit["model"]), folder)
            return
        if how.int8:
            before = self.folder(unit | {"variant": how._replace(int8=False).name})
            with tempfile.TemporaryDirectory(dir=folder.parent) as exported:
                edge.export(quantization.load(before, torch.device("cpu")), before, Path(exported) / "model")
                edge.quantize(Path(exported) / "model", folder)
            return
        if how.recovered:
            model = self.recover(unit, self.folder(unit | {"variant": how._replace(recovered=False).name}), folder)
        else:
            model = quantization.load(source, self.glue.device)
            take_away(model, how, functools.partial(self.importances, unit["task"], unit["model"]))
        pruning.save(model.to("cpu"), self.glue.pretraining.tokenizer, folder)

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def importances(self, task: str, model: str, criterion: str) -> tuple[Tensor, Tensor]:
        """Of each head [layers, heads] and each neuron [layers, neurons], of the fine-tuned model."""
        whole = quantization.load(self.source(task, model), self.glue.device)
        examples = self.glue.train_examples({"task": task})[0] if criterion == "taylor" else []
        return judged(whole, criterion, examples, self.profile.pruning.calibration_rows, self.pad)

    @property
    def pad(self) -> int:
        return self.glue.pretraining.tokenizer.pad_token_id

    def recover(self, unit: dict, pruned: Path, folder: Path) -> PreTrainedModel:
        """Train a pruned model again, on its task and towards the whole model's logits; zeros stay zero."""
        model = quantization.load(pruned, self.glue.device)
        unfinished = folder.with_name(f"{folder.name}.training")
        if self.fresh:
            shutil.rmtree(unfinished, ignore_errors=True)
        examples = self.taught(unit["task"], unit["model"])
        seed = self.fine_tuned(unit["task"], unit["model"])["seed"]
        options = self.recovery(unit), seed, unfinished, self.glue.precision, self.pad
        trainer = finetuning.FineTuner(model, examples, *options)
        if way(unit["variant"]).method == "weights":
            trainer.add_callback(KeepZeros(model))
        finetuning.fine_tune(trainer)
        shutil.rmtree(unfinished, ignore_errors=True)
        return model

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def taught(self, task: str, model: str) -> list[dict]:
        """The task's training examples with what the whole model says of them."""
        whole = quantization.load(self.source(task, model), self.glue.device)
        examples, _ = self.glue.train_examples({"task": task})
        size = self.glue.recipe({"task": task}).evaluation_batch_size
        return finetuning.guided(whole, examples, size, self.pad)

    def extras(self, unit: dict, folder: Path) -> tuple[dict, dict]:
        """What is left: parameters, zeros, and the size if zeros weren't stored; which heads and neurons stayed."""
        if way(unit["variant"]).int8:
            folder = self.folder(unit | {"variant": way(unit["variant"])._replace(int8=False).name})
            return {"parameters": models.parameters(quantization.load(folder, torch.device("cpu")))}, {}
        model = quantization.load(folder, torch.device("cpu"))
        scores = {"parameters": models.parameters(model), "sparsity": pruning.sparsity(model)}
        scores["sparse_size_mb"] = pruning.sparse_size_mb(model)
        kept = getattr(model, "kept", None)
        return scores, {"heads": kept.heads, "neurons": [len(own) for own in kept.neurons]} if kept else {}


class KeepZeros(TrainerCallback):
    """Sets back to zero, after each step of a training, the encoder's weights that are zero now."""

    def __init__(self, model: PreTrainedModel):
        weights = [matrix.weight for layer in pruning.matrices(model) for matrix in layer.values()]
        self.zeros = [(weight, weight == 0) for weight in weights]

    def on_step_end(self, args, state, control, **_):
        with torch.no_grad():
            for weight, zero in self.zeros:
                weight.masked_fill_(zero, 0)


class Losses(compression.Losses):
    """The pretrained student's losses with something taken away, as it is then and followed by 8 bits."""

    experiment = "pruning"

    @property
    def variants(self) -> list[str]:
        own = self.profile.pruning
        followed = [] if edge.why_not() else in_int8(own)
        found = [(one, one in followed) for one in (Way(BASE), *ways(own))]
        return [one._replace(int8=int8).name for one, eight in found for int8 in (False, True)[: 1 + eight]]

    def settings(self, unit: dict) -> dict:
        own = {"packages": packages_of(unit["variant"]), "calibration_rows": self.profile.pruning.calibration_rows}
        own |= {"head": "int8"} if way(unit["variant"]).int8 else {}  # not so in records of before
        return super().settings(unit) | own

    def make(self, variant: str, folder: Path) -> None:
        source = self.pretraining.checkpoint(self.unit)
        if variant == BASE:
            return super().make(variant, folder)
        if variant == Way(BASE, int8=True).name:
            return edge.quantize(self.exported, folder)
        how, model = way(variant), quantization.load(source, torch.device("cpu"))
        take_away(model, how, self.importances)
        if not how.int8:
            pruning.save(model, self.pretraining.tokenizer, folder)
            return
        edge.export(model, source, folder.with_name("exported"), hidden=True)
        edge.quantize(folder.with_name("exported"), folder)

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def importances(self, criterion: str) -> tuple[Tensor, Tensor]:
        """Of each head and each neuron of the pretrained student, by its own masked-LM loss."""
        whole = quantization.load(self.pretraining.checkpoint(self.unit), torch.device("cpu"))
        rows = self.profile.pruning.calibration_rows
        blocks = self.masked_blocks(rows) if criterion == "taylor" else []
        return judged(whole, criterion, blocks, rows, self.pretraining.tokenizer.pad_token_id)


def judged(
    whole: PreTrainedModel, criterion: str, examples: Sequence[dict], rows: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Importances by a criterion; for Taylor's, by the model's own loss on so many of the examples."""
    if criterion == "magnitude":
        return pruning.magnitude(whole)
    if criterion == "random":
        return pruning.at_random(whole, seed=0)
    drawn = np.random.default_rng(0).permutation(len(examples))[:rows]
    few, padding = [examples[row] for row in drawn], data.Padding(pad_id)
    # One at a time: a masked-LM loss is a mean over tokens, which would weigh the examples of a batch unequally.
    batches = (padding([one]) for one in few)
    return pruning.taylor(whole, batches, lambda batch: whole(**finetuning.accepted(whole, batch)).loss)


def _percent(share: float) -> int:
    if abs(100 * share - round(100 * share)) > 1e-9:
        raise InputError(f"share {share} in the profile's pruning: expected whole percents")
    return round(100 * share)
