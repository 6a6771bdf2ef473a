"""Compressed models at the size of the real DistilBERT: how fast and how large, whatever the weights know.

Time and size depend on shapes alone, so the weights are drawn at random, and nothing is said about accuracy.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from . import (
    InputError,
    calibration,
    compression,
    edge,
    machine,
    models,
    pruned,
    pruning,
    quantization,
    records,
    runners,
    speed,
)
from .profiles import Profile
from .variants import VERSION, packages

NOT_HERE = "– not measured in this profile, which is too small for it (`quantization.full_size`)"


class FullSize:
    """Units {"shape", "variant"}: the variants of notebook 06, or of 07, each timed beside fp32 in one run."""

    experiment = "fullsize"

    def __init__(self, profile: Profile, names: list[str]):
        """`names`: quantized variants; pruned ones, as `layers_3` or `random_50_int8`."""
        self.profile, self.own, self.names = profile, profile.quantization, names

    @property
    def ready(self) -> list[dict]:
        """The units that can be had here; none where the profile is too small for them."""
        names = [name for name in self.names if not self._why_not(name)] if self.own.full_size else []
        return [{"shape": "distilbert", "variant": name} for name in names]

    def _why_not(self, name: str) -> str | None:
        if name in compression.LABELS:
            return compression.why_not(name)
        return edge.why_not() if pruned.way(name).int8 else None

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        packages_of = packages if unit["variant"] in compression.LABELS else pruned.packages_of
        made = {"version": VERSION, "packages": packages_of(unit["variant"])}
        made |= {"reduce_range": edge.needs_reduced_range(), "flags": machine.telling_flags()}
        how = {"threads": 1, "length": self.own.length, "rules": speed.rules(self.profile.name)._asdict()}
        return made | how | {"device": "cpu", "cpu": records.cpu()["model"]}

    def measure(self, unit: dict) -> records.Measurement:
        """Size, and the latency of one row on one thread beside PyTorch's fp32."""
        with runners.threads_kept(), tempfile.TemporaryDirectory() as scratch:
            whole, folder = Path(scratch) / "whole", Path(scratch) / "variant"
            torch.manual_seed(0)
            model = DistilBertForSequenceClassification(DistilBertConfig()).eval()
            model.save_pretrained(whole)
            ids = np.random.default_rng(0).integers(1000, 20000, size=(1, self.own.length))
            row = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            counted = _make(unit["variant"], model, whole, folder, row)
            run, reference = (runners.load(one, threads=1) for one in (folder, whole))
            scores, seconds = speed.beside(lambda: run(row), lambda: reference(row), speed.rules(self.profile.name))
            scores |= {"size_mb": speed.size_mb(folder), "parameters": counted}
        shape = {"id": "DistilBertConfig()", "revision": None, "weights": "random", "parameters": counted}
        return records.Measurement({n: float(v) for n, v in scores.items()}, [], [shape], {"seconds": seconds})


def _make(
    name: str, model: DistilBertForSequenceClassification, whole: Path, folder: Path, row: dict[str, np.ndarray]
) -> int:
    """Save the variant of the model that is saved in `whole`; how many parameters it has left. `row`: to calibrate."""
    if name in quantization.LABELS:
        quantization.save(name, whole, folder)
        return models.parameters(model)
    how = None if name in compression.LABELS else pruned.way(name)
    if how:
        if how.method not in ("random", "layers") or how.recovered:
            raise InputError(f"{name}: weights know nothing here: expected random_PERCENT or layers_COUNT, and _int8")
        pruned.take_away(model, how, lambda _: pruning.at_random(model, seed=0))
    if how and not how.int8:
        model.save_pretrained(folder)
        pruning.save_shape(model, folder)
    elif name == "onnx_fp32":
        edge.export(model, whole, folder)
    else:
        exported = folder.with_name("exported")
        edge.export(model, whole, exported)
        if name in calibration.LABELS:
            calibration.quantize(exported, folder, [{name: values[0] for name, values in row.items()}])
        else:
            edge.quantize(exported, folder, "embeddings" in name)
    return models.parameters(model)
