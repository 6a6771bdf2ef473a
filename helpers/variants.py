"""What notebooks 06 and 07 have in common: variants of a fine-tuned model, made, kept and measured beside it."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from . import InputError, data, downstream, edge, glue, machine, metrics, models, quantization, records, runners, speed
from .profiles import Profile, as_settings

VERSION = 1  # raised whenever the code changes the numbers it makes
BASE = "fp32"  # the fine-tuned model as it is; all others are compared with it
EDGE = ("onnx", "onnxruntime", "onnxscript")
NEEDS = {"torchao": ("torchao",), "bnb": ("bitsandbytes",), "onnx": EDGE, "openvino": (*EDGE, "openvino", "nncf")}


def packages(variant: str) -> dict[str, str | None]:
    """The versions of what makes a variant of notebook 06."""
    names = ("torch", "transformers", *NEEDS.get(variant.partition("_")[0], ()))
    return {name: records.versions().get(name) for name in names}


class Variants:
    """Units {"task", "model", "variant"}, of the fine-tuned models that notebook 02 has kept.

    They are measured on the processor and, where there is a GPU, once more on it: these have "device": "cuda".
    """

    experiment: str
    variants: list[str]  # BASE first

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, variants that are there already are made again."""
        self.profile, self.space, self.fresh, self.own = profile, space, fresh, profile.quantization
        self.glue = glue.Glue(profile, space)
        self.made: set[Path] = set()  # variants made by this run
        self.answers: dict[tuple[Path, str], np.ndarray] = {}  # fp32's logits on the dev set
        self.tasks, self.models, self.apart = self.own.tasks, self.own.models, self.own.isolated

    def why_not(self, variant: str, device: str = "cpu") -> str | None:
        """Why a variant cannot be had here, on this device; None if it can."""
        raise NotImplementedError

    def make(self, unit: dict, folder: Path) -> None:
        """Make the variant of the fine-tuned model."""
        raise NotImplementedError

    def label(self, variant: str) -> str:
        """What the variant is called in tables and figures."""
        raise NotImplementedError

    @property
    def units(self) -> list[dict]:
        """Every unit, the uncompressed model first."""
        names = [(task, model) for task in self.tasks for model in self.models]
        found = [{"task": task, "model": model, "variant": name} for task, model in names for name in self.variants]
        return found + [unit | {"device": "cuda"} for unit in found if self.glue.device.type == "cuda"]

    @property
    def ready(self) -> list[dict]:
        """The units whose model has been made, and whose variant can be had here."""
        there = [unit for unit in self.units if self.weights(unit["task"], unit["model"])]
        return [unit for unit in there if not self.why_not(unit["variant"], unit.get("device", "cpu"))]

    @property
    def missing(self) -> dict[str, str]:
        """The variants that cannot be had here, each with the reason."""
        return {name: reason for name in self.variants if (reason := self.why_not(name))}

    def plan(self) -> str:
        """What will be run and about how long, in a few lines."""
        todo = [u for u in self.ready if self.fresh or not self.space.find(self.experiment, u, self.settings(u))]
        processes = self.own.repeats * sum(map(self.isolated, todo))
        seconds = (3 if self.profile.name == "mini" else 30) * len(todo) + 4 * processes
        lines = [f"profile {self.profile.name}, threads: {self.own.threads}; results in results/{self.space.name}/"]
        lines += [f"{len(self.ready)} units, of which {len(todo)} have no record yet: about {seconds / 60:.0f} minutes"]
        lines += [f"{self.label(name)}: – {reason}" for name, reason in self.missing.items()]
        absent = {u["model"]: None for u in self.units if not self.weights(u["task"], u["model"])}
        lines += [f"{name}: – run 01 and 02, or set `store` to where their results are" for name in absent]
        return "\n".join(lines)

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        recipe = as_settings(self.glue.recipe(unit))
        how = {name: getattr(self.own, name) for name in ("threads", "length", "batch_size")}
        how |= {"rules": speed.rules(self.profile.name)._asdict(), "cpu": records.cpu()["model"]}
        how |= {"gpu": torch.cuda.get_device_name(0)} if "device" in unit else {}
        how |= {"repeats": self.own.repeats if self.isolated(unit) else 0}
        rows = {name: recipe[name] for name in ("dev_rows", "length")}
        return {"made": self.made_of(unit), "rows": rows, "device": unit.get("device", "cpu")} | how

    def made_of(self, unit: dict) -> dict:
        """All that could change the variant itself."""
        made = {"version": VERSION, "model": self.weights(unit["task"], unit["model"])}
        made["packages"] = packages(unit["variant"])
        return made | {"reduce_range": edge.needs_reduced_range(), "flags": machine.telling_flags()}

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def weights(self, task: str, model: str) -> str | None:
        """What the fine-tuned model is recognised by; None where notebook 02 has not made it, nor left a record."""
        try:
            return self.glue.finetuned_hash(self.fine_tuned(task, model))
        except InputError:
            return None

    def fine_tuned(self, task: str, model: str) -> dict:
        """The unit of notebook 02 that variants are made of."""
        return {"task": task, "model": model, "seed": self.profile.glue.seeds[0]}

    def source(self, task: str, model: str) -> Path:
        """The fine-tuned checkpoint; fine-tuned again if it has gone.

        Raises:
            InputError: what was made again is not what the records speak of.
        """
        expected, own = self.weights(task, model), self.fine_tuned(task, model)
        if not self.glue.checkpoint(own).is_dir():
            self.glue.trained(own)
        folder = self.glue.checkpoint(own)
        if models.file_hash(folder) != expected:
            raise InputError(
                f"{folder.name} came out other than its record says ({expected}): run 02 with fresh = True"
            )
        return folder

    def folder(self, unit: dict) -> Path:
        """Where the variant is kept: made now if it isn't there."""
        unit = {name: value for name, value in unit.items() if name != "device"}
        name = f"{self.experiment}-{records.slug(unit)}-{records.digest(self.made_of(unit))}"
        folder = self.space.checkpoints / name
        if folder not in self.made and (self.fresh or not folder.is_dir()):
            self.make(unit, folder)
            self.made.add(folder)
        return folder

    def measure(self, unit: dict) -> records.Measurement:
        """The variant's answers on the dev set, its size, and its times beside those of fp32 in one run."""
        with runners.threads_kept():
            return self._measured(unit)

    def _measured(self, unit: dict) -> records.Measurement:
        folder, base, device = self.folder(unit), self.folder(unit | {"variant": BASE}), unit.get("device", "cpu")
        run, reference = (runners.load(one, self.own.threads, device) for one in (folder, base))
        examples, labels, source = self.glue.examples(unit["task"], "validation")
        logits = self.predict(run, examples)
        if (base, device) not in self.answers:
            self.answers[base, device] = logits if folder == base else self.predict(reference, examples)
        full = self.answers[base, device]
        guesses, expected = logits.argmax(-1), full.argmax(-1)
        scores = metrics.GlueMetric(unit["task"]).compute(predictions=guesses, references=labels)
        scores |= {"score": metrics.task_score(unit["task"], scores), "agreement": float((guesses == expected).mean())}
        scores |= {"logit_error": float(np.abs(logits - full).mean()), "size_mb": speed.size_mb(folder)}
        if weights := run.touch():
            scores["footprint_mb"] = weights / 1e6
        timed, taken = self.times(run, reference, examples, speed.timer(device))
        alone, apart = self.alone(unit, folder, examples)
        details = {"predictions": downstream.pack(guesses), "references": downstream.pack(labels)}
        details |= {"seconds": taken, "alone": apart, "checkpoint": models.file_hash(folder)}
        plain = quantization.load(base, torch.device("cpu"))
        more, which = self.extras(unit, folder)
        scores |= timed | alone | {"parameters": models.parameters(plain)} | more
        scores = {name: float(value) for name, value in scores.items()}
        return records.Measurement(scores, [source], self.glue.sources(unit, plain), details | which)

    def extras(self, unit: dict, folder: Path) -> tuple[dict, dict]:
        """Metrics and details that only this experiment has."""
        return {}, {}

    def predict(self, run: runners.Runner, examples: Sequence[dict]) -> np.ndarray:
        """Logits [rows, classes], each row asked for alone: quantized inputs share one scale in a batch."""
        return np.concatenate([run(self.batch([example])) for example in examples])

    def batch(self, examples: Sequence[dict]) -> runners.Inputs:
        """Examples as a runner takes them, padded to the longest of them."""
        given = [{n: e[n] for n in ("input_ids", "attention_mask", "token_type_ids")} for e in examples]
        padded = data.Padding(self.glue.pretraining.tokenizer.pad_token_id)(given)
        return {name: values.numpy() for name, values in padded.items()}

    def times(
        self, run: runners.Runner, reference: runners.Runner, examples: Sequence[dict], timer: speed.Timer
    ) -> tuple[dict[str, float], dict[str, dict]]:
        """Latency of one row of `length` tokens, all of them real, and throughput of a batch of real rows, with fp32's.

        Raw seconds beside them.
        """
        ids = np.concatenate([example["input_ids"] for example in examples])
        ids = np.resize(ids, self.own.length)  # gone through again where the dev set has fewer
        one = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        one = {name: values[None] for name, values in one.items()}
        ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
        middle = ordered[max(0, len(ordered) // 2 - self.own.batch_size // 2) :][: self.own.batch_size]
        many, rules = self.batch(middle), speed.rules(self.profile.name)
        found, raw = speed.beside(lambda: run(one), lambda: reference(one), rules, timer)
        batched, raw_batched = speed.beside(lambda: run(many), lambda: reference(many), rules, timer)
        rate = 1e3 / batched["latency_p50_ms"]
        tokens = sum(len(example["input_ids"]) for example in middle)
        found |= {"samples_per_s": len(middle) * rate, "tokens_per_s": tokens * rate}
        for end in ("", "_low", "_high"):
            found[f"throughput_times_as_fast{end}"] = batched[f"latency_times_as_fast{end}"]
        return found, {"latency": raw, "throughput": raw_batched}

    def isolated(self, unit: dict) -> bool:
        """Whether memory and cold start are measured: of the first task's models, since the others' are as large."""
        return unit["task"] == self.tasks[0] and unit["variant"] in (
            self.variants if self.apart is None else self.apart
        )

    def alone(self, unit: dict, folder: Path, examples: Sequence[dict]) -> tuple[dict[str, float], list[dict]]:
        """Memory and cold start in processes of their own, medians and each one; none where none are asked for."""
        if not self.isolated(unit):
            return {}, []
        text = self.glue.pretraining.tokenizer.decode(examples[0]["input_ids"], skip_special_tokens=True)
        given = folder, text, self.own.threads, unit.get("device", "cpu")
        every = [speed.alone(*given) for _ in range(self.own.repeats)]
        names = [name for name in every[0] if name not in ("logits", "footprint_mb")]
        return {name: float(np.median([one[name] for one in every])) for name in names}, every
