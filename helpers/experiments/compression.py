"""Models in fewer bits, with less in them, or both: the experiments of notebooks 06 and 07.

`Compression` measures variants of fine-tuned models, `Losses` those of the pretrained student. `variants.make` makes
them all, each from a source below; what they take at the size of the real DistilBERT, the pages themselves measure.
"""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, DistilBertConfig, PretrainedConfig, PreTrainedModel

from .. import InputError
from ..compression import onnx, pruning, quantization, runtimes, variants
from ..compression.variants import BASE, EXPORTED, LABELS, STATIC, Variant, parse
from ..data import encoding, hub
from ..measure import machine, metrics, records, timing
from ..measure.sweep import Experiment
from ..models import checkpoints
from ..models.distillation import heldout_losses
from ..profiles import Profile, Recipe
from . import glue
from .pretraining import TEACHER, Pretraining

VERSION = 1  # raised whenever the code changes the numbers it makes


def made_by(variant: Variant) -> dict:
    """What makes a variant, as settings have it."""
    made = {"version": VERSION, "packages": variants.packages(variant), "flags": records.processor()["flags"]}
    return made | {"reduce_range": onnx.needs_reduced_range()}


def lacking(of: Experiment, unit: dict) -> str | None:
    """Why the unit's variant cannot be had here; None if it can."""
    if not of.fresh and of.record(unit):
        return None  # measured here before, with the same packages: nothing need be tried, which takes long
    return variants.why_not(parse(unit["variant"]), unit.get("device", "cpu"))


class Compression(Experiment):
    """Units {"task", "model", "variant"}: variants of the fine-tuned models that notebook 02 has kept.

    They are measured on the processor and, where there is a GPU, once more on it: these have "device": "cuda".
    """

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False, name: str = "quantization"):
        """`name`: quantization or pruning, the part of the profile that says what is measured."""
        super().__init__(profile, space, fresh)
        self.name, self.own, self.timed = name, getattr(profile, name), profile.quantization
        self.glue = glue.Glue(profile, space)
        machine.require_cores("quantization.threads", [self.timed.threads])
        self.variants = {one.name: one for one in variants.asked(profile, name)}
        self.elsewhere = getattr(self.own, "elsewhere", None)  # what is taken away on tasks after the first
        list(map(parse, (*(self.own.isolated or ()), *(self.elsewhere or ()))))  # refuses what doesn't exist
        self.answers: dict[tuple[Path, str], np.ndarray] = {}  # the whole model's logits on the dev set
        self.source = functools.cache(functools.partial(FineTuned, self))  # of the variants of a task's model

    @property
    def units(self) -> list[dict]:
        """Every unit, the uncompressed model first."""
        pairs = [(task, model) for task in self.own.tasks for model in self.own.models]
        few = None if self.elsewhere is None else {Variant(), *map(parse, self.elsewhere)}
        found = [
            {"task": task, "model": model, "variant": name}
            for task, model in pairs
            for name, one in self.variants.items()
            if few is None or task == self.own.tasks[0] or one._replace(recovered=False, bits=BASE) in few
        ]
        return found + [unit | {"device": "cuda"} for unit in found if self.glue.device.type == "cuda"]

    def why_not(self, unit: dict) -> str | None:
        if not self.source(unit["task"], unit["model"]).weights:
            return "run notebooks 01 and 02 first, or set `store` to where their results are"
        return lacking(self, unit)

    @property
    def missing(self) -> dict[str, str]:
        """The variants that cannot be had on this processor, each with the reason."""
        unit = {"task": self.own.tasks[0], "model": self.own.models[0]}
        reasons = {name: lacking(self, unit | {"variant": name}) for name in self.variants}
        return {name: reason for name, reason in reasons.items() if reason}

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        recipe, timed = self.glue.recipe(unit).model_dump(), self.timed.model_dump()
        how = {name: timed[name] for name in ("threads", "length", "batch_size")}
        how |= {"rules": self.profile.timing.model_dump()} | records.processor()
        how |= hub.state(self.profile, self.glue.data_id)
        how |= {"gpu": torch.cuda.get_device_name(0)} if "device" in unit else {}
        how |= {"repeats": self.timed.repeats * self.isolated(unit), "device": unit.get("device", "cpu")}
        made = self.source(unit["task"], unit["model"]).made_of(parse(unit["variant"]))
        return {"made": made, "rows": {name: recipe[name] for name in ("dev_rows", "length")}} | how

    @runtimes.threads_kept()
    def measure(self, unit: dict) -> records.Measurement:
        """The variant's answers on the dev set, its size, and its times beside those of fp32 in one run."""
        variant, task, device = parse(unit["variant"]), unit["task"], unit.get("device", "cpu")
        of = self.source(task, unit["model"])
        folder, base = of.folder(variant), of.folder(Variant())
        run, reference = (runtimes.load(one, self.timed.threads, device) for one in (folder, base))
        examples, labels, source = self.glue.examples(task, "validation")
        own = examples
        if variant.trimmed:  # it has a tokenizer of its own
            own, _, _ = self.glue.read(task, "validation", checkpoints.load_tokenizer(str(of.folder(variant.plain))))
        logits = self.predict(run, own)
        if (base, device) not in self.answers:
            self.answers[base, device] = logits if folder == base else self.predict(reference, examples)
        full = self.answers[base, device]
        guesses, expected = logits.argmax(-1), full.argmax(-1)
        scores = glue.GlueMetric(task).compute(predictions=guesses, references=labels)
        scores |= {"score": np.mean([*scores.values()]), "agreement": (guesses == expected).mean()}
        scores |= {"logit_error": np.abs(logits - full).mean(), "size_mb": timing.size_mb(folder)}
        scores |= {"footprint_mb": weights / 1e6} if (weights := run.touch()) else {}
        timed, taken = self.times((run, reference), own, device)
        text = self.glue.pretraining.tokenizer.decode(examples[0]["input_ids"], skip_special_tokens=True)
        given = folder, text, self.timed.threads, device
        alone = [runtimes.alone(*given) for _ in range(self.timed.repeats * self.isolated(unit))]
        left, stayed = _left(quantization.load(of.folder(variant.plain), "cpu"), variant)
        details = {"predictions": records.pack(guesses), "references": records.pack(labels)}
        details |= {"seconds": taken, "alone": alone, "checkpoint": checkpoints.file_hash(folder)} | stayed
        scores = {name: float(v) for name, v in (scores | timed | runtimes.medians(alone) | left).items()}
        return records.Measurement(scores, [source], of.sources(quantization.load(base, "cpu")), details)

    def predict(self, run: runtimes.Runner, examples: Sequence[dict]) -> np.ndarray:
        """Logits [rows, classes], each row asked for alone: quantized inputs share one scale in a batch."""
        return np.concatenate([run(self.batch([example])) for example in examples])

    def batch(self, examples: Sequence[dict]) -> runtimes.Inputs:
        """Examples as a runner takes them, padded to the longest of them."""
        given = [{name: example[name] for name in runtimes.NAMES} for example in examples]
        padded = encoding.Padding(self.glue.pretraining.tokenizer.pad_token_id)(given)
        return {name: values.numpy() for name, values in padded.items()}

    def times(self, runs: Sequence[runtimes.Runner], examples: Sequence[dict], device: str) -> tuple[dict, dict]:
        """Latency of one row of `length` tokens, all of them real, and throughput of a batch of real rows.

        `runs`: the variant and fp32, timed in turn. Raw seconds beside them.
        """

        def beside(given: runtimes.Inputs) -> tuple[dict, dict]:
            calls = [functools.partial(run, given) for run in runs]
            return timing.beside(*calls, self.profile.timing, timing.timer(device))

        ids = np.concatenate([example["input_ids"] for example in examples])
        ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
        middle = ordered[max(0, len(ordered) // 2 - self.timed.batch_size // 2) :][: self.timed.batch_size]
        found, raw = beside(runtimes.unpadded(np.resize(ids, (1, self.timed.length))))  # again where there are fewer
        batched, raw_batched = beside(self.batch(middle))
        rate = 1e3 / batched["latency_p50_ms"]
        tokens = sum(len(example["input_ids"]) for example in middle)
        found |= {"samples_per_s": len(middle) * rate, "tokens_per_s": tokens * rate}
        for end in ("", "_low", "_high"):
            found[f"throughput_times_as_fast{end}"] = batched[f"latency_times_as_fast{end}"]
        return found, {"latency": raw, "throughput": raw_batched}

    def isolated(self, unit: dict) -> bool:
        """Whether memory and cold start are measured: of the first task's models, since the others' are as large."""
        few = self.own.isolated
        return unit["task"] == self.own.tasks[0] and unit["variant"] in (self.variants if few is None else few)


def _left(model: PreTrainedModel, variant: Variant) -> tuple[dict, dict]:
    """What is left of a model: parameters, the share of zeros; which heads and neurons."""
    scores = {"parameters": checkpoints.parameters(model)}
    if variant.bits != BASE:
        return scores, {}
    kept = getattr(model, "kept", None)
    return scores | {"sparsity": pruning.sparsity(model)}, {
        "heads": kept.heads,
        "neurons": [len(own) for own in kept.neurons],
    } if kept else {}


class FineTuned(variants.Source):
    """A model of notebook 02, its importances by its task's training rows, on which it can be trained again."""

    def __init__(self, of: Compression, task: str, model: str):
        super().__init__(of.space.checkpoints, of.fresh)
        self.of, self.glue, self.task = of, of.glue, {"task": task}
        self.unit = self.task | {"model": model, "seed": of.profile.glue.seeds[0]}  # of notebook 02
        self.device, self.precision, self.seed = of.glue.device, of.glue.precision, self.unit["seed"]
        self.rows = of.profile.pruning.calibration_rows

    examples = property(lambda self: self.glue.train_examples(self.task)[0])  # its task's, of training
    pad = property(lambda self: self.glue.pretraining.tokenizer.pad_token_id)

    @functools.cached_property
    def weights(self) -> str | None:
        """What the model is recognised by; None where notebook 02 has not made it, nor left a record."""
        try:
            return self.glue.finetuned_hash(self.unit)
        except checkpoints.DamagedError:
            raise
        except InputError:
            return None

    @functools.cached_property
    def whole(self) -> Path:
        """The fine-tuned checkpoint; fine-tuned again if it has gone, and refused if it came out otherwise then."""
        folder = self.glue.checkpoint(self.unit)
        if not folder.is_dir():
            self.glue.trained(self.unit)
        if checkpoints.file_hash(folder) != self.weights:
            raise InputError(f"{folder.name} came out other than its record says: run 02 with fresh = True")
        return folder

    def made_of(self, variant: Variant) -> dict:
        """All that could change a variant itself."""
        made = made_by(variant) | {"model": self.weights}
        if variant.bits == STATIC:
            made["calibration_rows"] = onnx.CALIBRATION_ROWS
        elif variant.cut in ("taylor", "masked"):
            made["calibration_rows"] = self.rows
        if variant.trimmed:
            made["commonest"] = pruning.COMMONEST
        if variant.recovered:
            made["recovery"] = self.recovery.model_dump() | {"precision": self.precision}
        return made

    def sources(self, model: PreTrainedModel) -> list[dict]:
        """Provenance of a variant."""
        return self.glue.sources(self.unit, model)

    def pieces(self, tokenizer) -> list[int]:
        """By all of its task's training text."""
        rows, _ = hub.load(self.of.profile, self.glue.data_id, self.task["task"], "train")
        columns = metrics.GLUE[self.task["task"]].columns
        return pruning.pieces_of(tokenizer, (text for column in columns for text in rows[column][:]), pruning.COMMONEST)

    @property
    def recovery(self) -> Recipe:
        """How a pruned model is trained again: by its task's recipe, for as long as the profile says."""
        return self.glue.recipe(self.task).model_copy(update=self.of.profile.pruning.recovery.model_dump())

    def path(self, variant: Variant) -> Path:
        unit = self.task | {"model": self.unit["model"], "variant": variant.name}
        kind = "quantization" if variant.name in LABELS else "pruning"  # what both have is made once
        return self.root / f"{kind}-{records.slug(unit)}-{records.digest(self.made_of(variant))}"


class Losses(Experiment):
    """Units {"model", "variant"}: the three terms of the triple loss, of the pretrained model in every variant.

    On held-out text as in notebook 01, block by block: inputs that are quantized together share one scale.
    """

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False, name: str = "quantization"):
        """`name`: quantization or pruning."""
        super().__init__(profile, space, fresh)
        self.name, self.pretraining = name, Pretraining(profile, space)
        model = variants.subject(getattr(profile, name).models) or "student"
        self.unit = {"model": model, "seed": 0 if model == "released" else profile.distillation.seeds[0]}
        self.source = Pretrained(self)

    @property
    def units(self) -> list[dict]:
        """What is neither trained again, trimmed nor masked; what is taken away, and then in 8 bits."""
        every = variants.asked(self.profile, self.name)
        found = [one for one in every if not one.recovered and not one.trimmed and one.cut != "masked"]
        found.sort(key=lambda one: every.index(one.plain))
        return [{"model": self.unit["model"], "variant": one.name} for one in found]

    def why_not(self, unit: dict) -> str | None:
        if not self.source.weights:
            return "run notebook 01 first, or set `store` to where its results are"
        return lacking(self, unit)

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        variant = parse(unit["variant"])
        made = {"version": VERSION, "model": self.pretraining.weights(self.unit), "device": "cpu"}
        made |= {"packages": variants.packages(variant), "flags": records.processor()["flags"]}
        if self.name == "pruning":
            made["calibration_rows"] = self.profile.pruning.calibration_rows
        corpus, how = self.profile.corpus.model_dump(), self.profile.distillation.model_dump()
        recipe = {"positions": how["positions"], "mask_rate": how["mask_rate"]}
        recipe["blocks"] = self.profile.quantization.blocks
        made |= {"teacher": self.pretraining.weights(TEACHER), "corpus": corpus, "recipe": recipe}
        return made | hub.state(self.profile, self.profile.corpus.id)

    def measure(self, unit: dict) -> records.Measurement:
        """The losses against the teacher, and the variant's size."""
        plain, _ = self.pretraining.trained(self.unit)
        with tempfile.TemporaryDirectory() as scratch:
            self.source.root = Path(scratch)  # soon made again, and large
            folder = self.source.folder(parse(unit["variant"]))
            torch_can = runtimes.runtime(folder) == "torch"
            model = quantization.load(folder, "cpu") if torch_can else onnx.MaskedLM(folder, torch.get_num_threads())
            size = timing.size_mb(folder)
        corpus, text = self.profile.corpus, self.pretraining.text
        count = min(self.profile.quantization.blocks, corpus.heldout_blocks or self.profile.quantization.blocks)
        teacher, blocks = self.pretraining.teacher.to("cpu"), text.heldout(corpus.heldout, count)
        sides = model, teacher, blocks, self.profile.distillation
        scores = heldout_losses(*sides, self.pretraining.tokenizer.pad_token_id, batch_size=1) | {"size_mb": size}
        return records.Measurement(scores, text.sources, self.pretraining.sources(self.unit, plain), {})


class Pretrained(variants.Source):
    """The released DistilBERT, or notebook 01's student. Its export stays for both notebooks; all else is in `root`."""

    hidden = True

    def __init__(self, of: Losses):
        super().__init__(of.space.checkpoints)
        self.of, self.pretraining, self.rows = of, of.pretraining, of.profile.pruning.calibration_rows

    whole = property(lambda self: checkpoints.fetch(self.pretraining.start(self.of.unit))[0])
    weights = property(lambda self: self.pretraining.known(self.of.unit))
    pad = property(lambda self: self.pretraining.tokenizer.pad_token_id)
    examples = property(lambda self: self.blocks(self.rows))

    def blocks(self, count: int) -> list[dict]:
        """So many masked blocks of the training text, drawn once for all."""
        masking = encoding.Masking(self.pretraining.tokenizer, self.of.profile.distillation.mask_rate)
        return pruning.drawn(encoding.MaskedBlocks(self.pretraining.text.blocks, masking), count)

    def made_of(self, variant: Variant) -> dict:
        """All that could change a variant itself, as notebook 09 has it."""
        return {"model": self.weights, "calibration_rows": self.rows}

    def sources(self, model: PreTrainedModel) -> list[dict]:
        """Provenance of a variant."""
        return self.pretraining.sources(self.of.unit, model)

    def path(self, variant: Variant) -> Path:
        if variant != Variant(bits=EXPORTED):
            return super().path(variant)
        made = {"model": self.pretraining.weights(self.of.unit), "opset": onnx.OPSET}
        made["packages"] = variants.packages(variant)
        return self.of.space.checkpoints / f"exported-{records.slug(self.of.unit)}-{records.digest(made)}"

    def calibration(self) -> list[dict]:
        return [runtimes.unpadded(block["input_ids"]) for block in self.blocks(onnx.CALIBRATION_ROWS)]


class Random(variants.Source):
    """A DistilBERT of the real one's shape with random weights, on which only cuts that ask nothing make sense."""

    def __init__(self, root: Path, length: int, config: PretrainedConfig | None = None):
        """`length`: of the row of tokens by which scales are fixed, and which is then asked about. `config`: another's
        shape."""
        super().__init__(root)
        self.config = config or DistilBertConfig()
        self.row = runtimes.unpadded(np.random.default_rng(0).integers(1000, self.config.vocab_size, size=(1, length)))

    @functools.cached_property
    def whole(self) -> Path:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(self.config).save_pretrained(self.root / "whole")
        return self.root / "whole"

    def calibration(self) -> list[dict]:
        return [{name: values[0] for name, values in self.row.items()}]
