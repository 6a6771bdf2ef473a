"""The experiment of notebook 09: the student exported for ONNX Runtime, as an application would run it on a phone."""

import functools
import shutil
from pathlib import Path

import numpy as np
import torch

from . import InputError, data, downstream, edge, machine, models, pruned, quantization, records, runners, speed
from .profiles import Profile, as_settings
from .variants import BASE, packages

VERSION = 2  # raised whenever the code changes the numbers it makes
TASK, MODEL = "sst2", "student"
HEADS = {"sst2": "SST-2", "masked_lm": "masked words"}  # what the student is asked for
FORMATS = {"onnx": "ONNX", "ort": "ORT"}
SENTENCE = "a story that is told with warmth and without hurry ."  # asked for in a process of its own


class Deployed:
    """Units {"head", "variant", "format", "threads"}, of the student fine-tuned on SST-2 and of the pretrained one.

    The variants are those of notebook 07, and each of them in 8 bits, matrices and embeddings. The pretrained student
    is pruned without being trained again.
    """

    experiment = "edge"

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, models that are there already are exported again.

        Raises:
            InputError: a variant that doesn't exist, or one in 8 bits; more threads than there are cores.
        """
        self.profile, self.space, self.fresh, self.own = profile, space, fresh, profile.edge
        self.pruned, self.losses = pruned.Pruned(profile, space), pruned.Losses(profile, space)
        self.pretraining = self.losses.pretraining
        self.made: set[Path] = set()  # models exported by this run
        for name in self.own.variants:
            if pruned.way(name).int8:
                raise InputError(f"edge.variants has {name}: leave out _int8, every variant is measured in 8 bits too")
        cores, threads = machine.usable_cores(), max(self.own.threads)
        if threads > cores:
            raise InputError(f"edge.threads has {threads}, and this machine has cores: {cores}; lower it")

    @property
    def units(self) -> list[dict]:
        """Every unit, the model that nothing was taken from first."""
        found = []
        for head in HEADS:
            ways = [pruned.way(name) for name in dict.fromkeys([BASE, *self.own.variants])]
            if head == "masked_lm":
                ways = list(dict.fromkeys(one._replace(recovered=False) for one in ways))
            names = [one._replace(int8=int8).name for one in ways for int8 in (False, True)]
            every = [(name, kind, threads) for name in names for kind in FORMATS for threads in self.own.threads]
            found += [{"head": head, "variant": n, "format": kind, "threads": threads} for n, kind, threads in every]
        return found

    @property
    def ready(self) -> list[dict]:
        """The units whose model has been made; none where ONNX Runtime is missing."""
        return [unit for unit in self.units if self.weights(unit["head"])] if not edge.why_not() else []

    def plan(self) -> str:
        """What will be run, and what cannot be, in a few lines."""
        ready = self.ready
        todo = [u for u in ready if self.fresh or not self.space.find(self.experiment, u, self.settings(u))]
        lines = [f"profile {self.profile.name}: {len(ready)} units, {len(todo)} without a record yet"]
        lines += [f"– {reason}"] if (reason := edge.why_not()) else []
        absent = [name for head, name in HEADS.items() if not self.weights(head)]
        return "\n".join(lines + [f"{name}: – run 01 and 02, or set `store` to where they are" for name in absent])

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def weights(self, head: str) -> str | None:
        """What the whole model is recognised by; None where it has not been made, nor left a record."""
        if head == TASK:
            return self.pruned.weights(TASK, MODEL)
        try:
            return self.pretraining.weights(self.losses.unit)
        except InputError:
            return None

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        own = self.own
        how = {"threads": unit["threads"], "length": own.length, "repeats": own.repeats, "device": "cpu"}
        how |= {"rules": speed.rules(self.profile.name)._asdict(), "cpu": records.cpu()["model"]}
        if self.judged(unit):
            how["judged_on"] = self._judged_on(unit["head"])
        return {"made": self.made_of(unit)} | how

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
        how = pruned.way(unit["variant"])
        whole = {"task": TASK, "model": MODEL, "variant": how._replace(int8=False).name}
        if unit["head"] == TASK:
            made = self.pruned.made_of(whole)
        else:
            made = {"model": self.weights("masked_lm"), "calibration_rows": self.profile.pruning.calibration_rows}
        exported = {"version": VERSION, "opset": edge.OPSET, "packages": packages("onnx_fp32")}
        exported |= {"reduce_range": edge.needs_reduced_range()} if how.int8 else {}
        exported |= {"head": "int8"} if how.int8 and unit["head"] == "masked_lm" else {}  # not so in records of before
        return {"whole": made, "exported": exported}

    def folder(self, unit: dict) -> Path:
        """Where the unit's model is kept: made now if it isn't there. The format may be "torch", too: the original."""
        how, name = pruned.way(unit["variant"]), {key: unit[key] for key in ("head", "variant", "format")}
        if name["format"] == "torch" and unit["head"] == TASK:
            return self.pruned.folder({"task": TASK, "model": MODEL, "variant": how.name})
        folder = self.space.checkpoints / f"edge-{records.slug(name)}-{records.digest(self.made_of(unit))}"
        if folder not in self.made and (self.fresh or not folder.is_dir()):
            self._make(name, how, folder)
            self.made.add(folder)
        return folder

    def _make(self, unit: dict, how: pruned.Way, folder: Path) -> None:
        if unit["format"] == "torch":
            self.losses.make(how.name, folder)
        elif unit["format"] == "ort":
            edge.mobile(self.folder(unit | {"format": "onnx"}), folder)
        elif how.int8:
            edge.quantize(self.folder(unit | {"variant": how._replace(int8=False).name}), folder, embeddings=True)
        elif unit["head"] == TASK and how.method == BASE:
            shutil.copytree(self.pruned.in_onnx(TASK, MODEL), folder)
        else:
            plain = self.folder(unit | {"format": "torch"})
            edge.export(quantization.load(plain, torch.device("cpu")), plain, folder)

    def original(self, unit: dict) -> Path:
        """The PyTorch model, in fp32, that the unit's was exported from."""
        how = pruned.way(unit["variant"])
        return self.folder(unit | {"variant": how._replace(int8=False).name, "format": "torch"})

    def measure(self, unit: dict) -> records.Measurement:
        """Time beside the whole fp32 model's in ONNX format, size, memory, cold start, and how good the answers are."""
        with runners.threads_kept():
            folder, base = self.folder(unit), self.folder(unit | {"variant": BASE, "format": "onnx"})
            run, reference = (runners.load(one, unit["threads"]) for one in (folder, base))
            row = self.row()
            scores, seconds = speed.beside(lambda: run(row), lambda: reference(row), speed.rules(self.profile.name))
            details, sources = {"seconds": seconds}, []
            if self.judged(unit):
                answered, said, sources = self.answers(unit, run)
                scores |= answered
                details |= said
            every = [speed.alone(folder, SENTENCE, unit["threads"]) for _ in range(self.own.repeats)]
            names = [name for name in every[0] if name not in ("logits", "footprint_mb")]
            scores |= {name: float(np.median([one[name] for one in every])) for name in names}
            plain = quantization.load(self.original(unit), torch.device("cpu"))
            scores |= {"size_mb": speed.size_mb(folder), "parameters": models.parameters(plain)}
        if unit["head"] == TASK:
            origin = self.pruned.glue.sources(self.pruned.fine_tuned(TASK, MODEL), plain)
        else:
            origin = self.pretraining.sources(self.losses.unit, plain)
        scores = {name: float(value) for name, value in scores.items()}
        return records.Measurement(scores, sources, origin, details | {"alone": every})

    def row(self) -> runners.Inputs:
        """One row of `length` tokens, all of them real."""
        blocks = self.pretraining.text.heldout(self.profile.corpus.heldout, self.own.blocks).cut
        return _inputs(np.resize(np.concatenate(blocks), self.own.length)[None].astype(np.int64))

    def answers(self, unit: dict, run: runners.Runner) -> tuple[dict, dict, list[dict]]:
        """How good the answers are and how near to those of the PyTorch model that was exported; one text at a time."""
        plain = runners.load(self.original(unit), unit["threads"])
        texts, sources = self.texts(unit["head"])
        losses, guesses, labels, same, apart, whose = [], [], [], [], [], []
        for number, (inputs, at, truth) in enumerate(texts):
            own, expected = (one(inputs) for one in (run, plain))
            own, expected = (logits.reshape(-1, logits.shape[-1])[at] for logits in (own, expected))
            told = torch.log_softmax(torch.from_numpy(own), -1).numpy()
            losses.append(-told[np.arange(len(truth)), truth])
            guesses.append(own.argmax(-1))
            labels.append(truth)
            whose.append(np.full(len(truth), number))
            same.append(guesses[-1] == expected.argmax(-1))
            apart.append(np.abs(own - expected).max())
        losses, guesses, labels, same, whose = map(np.concatenate, (losses, guesses, labels, same, whose))
        scores = {"score": (guesses == labels).mean(), "loss": losses.mean(), "agreement": same.mean()}
        said = {"predictions": guesses, "references": labels, "texts": whose}
        said = {name: downstream.pack(values) for name, values in said.items()}
        return scores | {"largest_difference": max(apart)}, said, sources

    @functools.cache  # noqa: B019
    def texts(self, head: str) -> tuple[list[tuple[runners.Inputs, np.ndarray, np.ndarray]], list[dict]]:
        """What a model is asked: inputs of one row, the places that are scored and their labels; and the sources."""
        if head == TASK:
            examples, labels, source = self.pruned.glue.examples(TASK, "validation")
            rows = zip(examples, labels, strict=True)
            return [(self.pruned.batch([one]), np.array([0]), np.array([int(y)])) for one, y in rows], [source]
        found, tokenizer, config = [], self.pretraining.tokenizer, self.profile.corpus.heldout
        cut, source = data.corpus_blocks(self.profile, tokenizer, config, "validation", self.own.blocks)
        masked = data.MaskedBlocks(cut, data.Masking(tokenizer, self.profile.distillation.mask_rate))
        for number in range(len(masked)):
            ids, labels = (np.asarray(masked[number][name], dtype=np.int64) for name in ("input_ids", "labels"))
            at = np.flatnonzero(labels != data.IGNORED)
            found += [(_inputs(ids[None]), at, labels[at])] if len(at) else []
        return found, [source]


def _inputs(ids: np.ndarray) -> runners.Inputs:
    """Token ids [batch, length], none of them padding, as a runner takes them."""
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
