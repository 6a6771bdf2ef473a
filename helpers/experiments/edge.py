"""The experiment of notebook 09: the student exported for ONNX Runtime, as an application would run it on a phone."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .. import InputError
from ..compression import onnx, quantization, runtimes, variants
from ..compression.variants import BASE, EXPORTED, FORMATS, HEADS, INT8, MODEL, TASK, Variant, parse
from ..data import encoding, hub
from ..measure import machine, records, timing
from ..measure.sweep import Experiment
from ..models import checkpoints
from ..profiles import Profile, as_settings
from . import compression

VERSION = 2  # raised whenever the code changes the numbers it makes
SENTENCE = "a story that is told with warmth and without hurry ."  # asked for in a process of its own


class Deployed(Experiment):
    """Units {"head", "variant", "format", "threads"}, of the student fine-tuned on SST-2 and of the pretrained one.

    The variants are those of notebook 07, and each of them in 8 bits, matrices and embeddings. The pretrained student
    is pruned without being trained again. What the answers are compared with is on notebook 09's page, which fills in
    `answers`: of a unit and its runner the metrics, the details and the provenance of what was asked.
    """

    name = "edge"
    answers: Callable[[dict, runtimes.Runner], tuple[dict, dict, list[dict]]]

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, models that are there already are exported again; InputError for wrong variants or threads."""
        super().__init__(profile, space, fresh)
        self.own, self.pruned = profile.edge, compression.Compression(profile, space, name="pruning")
        self.losses, self.tuned = compression.Losses(profile, space, name="pruning"), self.pruned.source(TASK, MODEL)
        self.pretraining = self.losses.pretraining
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
        absent = self.weights[unit["head"]] is None
        return "run notebooks 01 and 02 first, or set `store` to where their results are" if absent else None

    @functools.cached_property
    def weights(self) -> dict[str, str | None]:
        """What each head's whole model is recognised by; None where it has not been made, nor left a record."""
        pretrained = self.pretraining.known(self.losses.unit)
        return {TASK: self.tuned.weights, "masked_lm": pretrained}

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        how = {"threads": unit["threads"], "length": self.own.length, "repeats": self.own.repeats, "device": "cpu"}
        how |= {"rules": as_settings(self.profile.timing)} | records.processor()
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
            recipe = as_settings(self.pruned.glue.recipe({"task": TASK}))
            return {name: recipe[name] for name in ("dev_rows", "length")}
        corpus = as_settings(self.profile.corpus)
        text = {name: corpus[name] for name in ("id", "heldout", "block_length")}
        return text | {"blocks": self.own.blocks, "mask_rate": self.profile.distillation.mask_rate}

    def made_of(self, unit: dict) -> dict:
        """All that could change the exported model itself."""
        variant, guesses_words = parse(unit["variant"]), unit["head"] != TASK
        exported = {"version": VERSION, "opset": onnx.OPSET, "packages": variants.packages(Variant(bits=EXPORTED))}
        if variant.bits == INT8:
            exported["reduce_range"] = onnx.needs_reduced_range()
        rows = self.profile.pruning.calibration_rows
        whole = {"model": self.weights["masked_lm"], "calibration_rows": rows} if guesses_words else None
        return {"whole": whole or self.tuned.made_of(variant.plain), "exported": exported}

    def folder(self, unit: dict) -> Path:
        """Where the unit's model is kept: made now if it isn't there. The format may be "torch", too: the original."""
        variant, name = parse(unit["variant"]), {key: unit[key] for key in ("head", "variant", "format")}
        if unit["format"] == "torch" and unit["head"] == TASK:
            return self.tuned.folder(variant.plain)
        folder = self.space.checkpoints / f"edge-{records.slug(name)}-{records.digest(self.made_of(unit))}"
        if folder not in self.made and (self.fresh or not folder.is_dir()):
            self._make(name, variant, folder)
            self.made.add(folder)
        return folder

    def _make(self, unit: dict, variant: Variant, folder: Path) -> None:
        if unit["format"] == "torch":
            self.losses.make(variant, folder)
        elif unit["format"] == "ort":
            onnx.mobile(self.folder(unit | {"format": "onnx"}), folder)
        elif variant.bits == INT8:
            onnx.quantize(self.folder(unit | {"variant": variant.plain.name}), folder, embeddings=True)
        else:
            plain = self.original(unit)
            onnx.export(quantization.load(plain, torch.device("cpu")), plain, folder)

    def original(self, unit: dict) -> Path:
        """The PyTorch model, in fp32, that the unit's was exported from."""
        return self.folder(unit | {"variant": parse(unit["variant"]).plain.name, "format": "torch"})

    @runtimes.threads_kept()
    def measure(self, unit: dict) -> records.Measurement:
        """Time beside the whole fp32 model's in ONNX format, size, memory, cold start, and how good the answers are."""
        folder, base = self.folder(unit), self.folder(unit | {"variant": BASE, "format": "onnx"})
        run, reference = (runtimes.load(one, unit["threads"]) for one in (folder, base))
        row = np.resize(np.concatenate(self.heldout[0]), (1, self.own.length)).astype(np.int64)
        row, sources = runtimes.unpadded(row), []
        scores, seconds = timing.beside(lambda: run(row), lambda: reference(row), self.profile.timing)
        details = {"seconds": seconds}
        if self.judged(unit):
            answered, said, sources = self.answers(unit, run)
            scores, details = scores | answered, details | said
        details["alone"] = [runtimes.alone(folder, SENTENCE, unit["threads"]) for _ in range(self.own.repeats)]
        plain = quantization.load(self.original(unit), torch.device("cpu"))
        scores |= runtimes.medians(details["alone"])
        scores |= {"size_mb": timing.size_mb(folder), "parameters": checkpoints.parameters(plain)}
        if unit["head"] == TASK:
            origin = self.pruned.glue.sources(self.tuned.unit, plain)
        else:
            origin = self.pretraining.sources(self.losses.unit, plain)
        return records.Measurement({name: float(value) for name, value in scores.items()}, sources, origin, details)

    @functools.cached_property
    def heldout(self) -> tuple[list[np.ndarray], dict]:
        """Held-out text in blocks of tokens, and its provenance."""
        config, tokenizer = self.profile.corpus.heldout, self.pretraining.tokenizer
        return encoding.corpus_blocks(self.profile, tokenizer, config, "validation", self.own.blocks)
