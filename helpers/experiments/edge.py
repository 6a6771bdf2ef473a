"""The experiment of notebook 09: the student exported for ONNX Runtime, as an application would run it on a phone."""

import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from .. import InputError
from ..compression import onnx, quantization, runtimes, variants
from ..compression.variants import BASE, EXPORTED, FORMATS, HEADS, INT8, TASK, Variant, parse
from ..data import hub
from ..measure import machine, records
from ..measure.sweep import Experiment
from ..models import checkpoints
from ..profiles import Profile
from . import compression

VERSION = 2  # raised whenever the code changes the numbers it makes


class Deployed(Experiment):
    """Units {"head", "variant", "format", "threads"}, of a model fine-tuned on SST-2 and of the pretrained one.

    They are the released DistilBERT where there is one, else our student. The variants are those of notebook 07, and
    each of them in 8 bits, matrices and embeddings. The pretrained model is pruned without being trained again. How a
    unit is measured, and put into the mobile format, is on notebook 09's page, which fills in `way` and `mobile`.
    """

    name = "edge"
    way: Callable[[dict], tuple[dict, dict, list[dict]]]  # of a unit its metrics, details, provenance of data
    mobile: Callable[[Path, Path], None]  # from a folder into another

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, models that are there already are exported again; InputError for wrong variants or threads."""
        super().__init__(profile, space, fresh)
        self.own, self.pruned = profile.edge, compression.Compression(profile, space, name="pruning")
        self.losses = compression.Losses(profile, space, name="pruning")
        self.pretraining = self.losses.pretraining
        self.model = self.losses.unit["model"]  # whom claims are judged by
        self.sources = {TASK: self.pruned.source(TASK, self.model), "masked_lm": self.losses.source}  # by head
        self.made: set[Path] = set()  # models exported by this run
        for name in self.own.variants:
            if parse(name).bits != BASE:
                raise InputError(f"edge.variants has {name}: leave out _int8, every variant is measured in 8 bits too")
        machine.require_cores("edge.threads", self.own.threads)

    @property
    def units(self) -> list[dict]:
        """Every unit, the model that nothing was taken from first."""
        found = []
        for head in HEADS:
            cuts = [parse(name) for name in (BASE, *self.own.variants)]
            cuts = dict.fromkeys(cut._replace(recovered=cut.recovered and head == TASK) for cut in cuts)
            for cut, bits, kind, threads in itertools.product(cuts, (BASE, INT8), FORMATS, self.own.threads):
                variant = cut._replace(bits=bits).name
                found.append({"head": head, "variant": variant, "format": kind, "threads": threads})
        return found

    def why_not(self, unit: dict) -> str | None:
        """ONNX Runtime or the unit's model is missing."""
        if reason := variants.why_not(parse(unit["variant"])._replace(bits=EXPORTED)):
            return reason
        absent = self.sources[unit["head"]].weights is None
        return "run notebooks 01 and 02 first, or set `store` to where their results are" if absent else None

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        how = {"threads": unit["threads"], "length": self.own.length, "repeats": self.own.repeats, "device": "cpu"}
        how |= {"rules": self.profile.timing.model_dump()} | records.processor()
        if self.judged(unit):
            how |= {"judged_on": self._judged_on(unit["head"])} | self.read(unit["head"])
        return {"made": self.made_of(unit)} | how

    def read(self, head: str) -> dict:
        """What settings say of the data set that a head is asked about."""
        return hub.state(self.profile, self.pruned.glue.data_id if head == TASK else self.profile.corpus.id)

    def judged(self, unit: dict) -> bool:
        """Whether the unit's answers are looked at: at the first number of threads, on which they don't depend."""
        return unit["threads"] == self.own.threads[0]

    def _judged_on(self, head: str) -> dict:
        if head == TASK:
            recipe = self.pruned.glue.recipe({"task": TASK}).model_dump()
            return {name: recipe[name] for name in ("dev_rows", "length")}
        corpus = self.profile.corpus.model_dump()
        text = {name: corpus[name] for name in ("id", "heldout", "block_length")}
        return text | {"blocks": self.own.blocks, "mask_rate": self.profile.distillation.mask_rate}

    def made_of(self, unit: dict) -> dict:
        """All that could change the exported model itself."""
        variant = parse(unit["variant"])
        exported = {"version": VERSION, "opset": onnx.OPSET, "packages": variants.packages(Variant(bits=EXPORTED))}
        if variant.bits == INT8:
            exported["reduce_range"] = onnx.needs_reduced_range()
        return {"whole": self.sources[unit["head"]].made_of(variant.plain), "exported": exported}

    def folder(self, unit: dict) -> Path:
        """Where the unit's model is kept: made now if it isn't there. The format may be "torch", too: the original."""
        variant, name = parse(unit["variant"]), {key: unit[key] for key in ("head", "variant", "format")}
        if unit["format"] == "torch" and unit["head"] == TASK:
            return self.sources[TASK].folder(variant.plain)
        folder = self.space.checkpoints / f"edge-{records.slug(name)}-{records.digest(self.made_of(unit))}"
        if folder in self.made or (folder.is_dir() and not self.fresh):
            return folder
        if unit["format"] == "torch":
            variants.make(variant, self.losses.source, folder)
        elif unit["format"] == "ort":
            self.mobile(self.folder(unit | {"format": "onnx"}), folder)
        elif variant.bits == INT8:
            onnx.quantize(self.folder(unit | {"variant": variant.plain.name}), folder, "onnx_int8_embeddings")
        else:
            plain = self.original(unit)
            onnx.export(quantization.load(plain, torch.device("cpu")), plain, folder)
        self.made.add(folder)
        return folder

    def original(self, unit: dict) -> Path:
        """The PyTorch model, in fp32, that the unit's was exported from."""
        return self.folder(unit | {"variant": parse(unit["variant"]).plain.name, "format": "torch"})

    @runtimes.threads_kept()
    def measure(self, unit: dict) -> records.Measurement:
        """Measure one unit; beside it how many parameters are left."""
        scores, details, sources = self.way(unit)
        plain = quantization.load(self.original(unit), torch.device("cpu"))
        scores |= {"parameters": checkpoints.parameters(plain)}
        origin = self.sources[unit["head"]].sources(plain)
        return records.Measurement({name: float(value) for name, value in scores.items()}, sources, origin, details)
