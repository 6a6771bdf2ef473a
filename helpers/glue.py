"""The experiments of notebook 02: GLUE, the ablation that it judges, and what padding costs."""

import dataclasses
import functools

import numpy as np
from transformers import PreTrainedModel

from . import InputError, data, downstream, metrics, records, speed
from .finetuning import encode_texts
from .profiles import Recipe, as_settings

KEPT = ("sst2", "mrpc", "stsb")  # tasks whose first models later notebooks take up


class Glue(downstream.Downstream):
    """GLUE: units {"task", "model", "seed"}."""

    experiment = "glue"

    @property
    def units(self) -> list[dict]:
        glue = self.profile.glue
        return self.grid(glue.models, glue.tasks, glue.seeds)

    def grid(self, names: list[str], tasks: list[str], seeds: list[int]) -> list[dict]:
        """Units of these models, tasks and seeds: all tasks with the first seed, then the next."""
        return [{"task": task, "model": name, "seed": seed} for seed in seeds for task in tasks for name in names]

    def recipe(self, unit: dict) -> Recipe:
        recipe = getattr(self.profile.glue.recipes, unit["task"])
        if recipe is None:
            raise InputError(f"{unit['task']}: the profile {self.profile.name} has no recipe for it in glue.recipes")
        return recipe

    def labels(self, unit: dict) -> dict:
        return {"num_labels": 1} if unit["task"] == "stsb" else {"num_labels": 3 if unit["task"] == "mnli" else 2}

    def keeps(self, unit: dict) -> bool:
        teaches = unit["model"] == "teacher" and downstream.DISTILLED in self.profile.glue.models
        return teaches or (unit["task"] in KEPT and unit["seed"] == self.profile.glue.seeds[0])

    def train_examples(self, unit: dict) -> tuple[list[dict], list[dict]]:
        examples, _, source = self.examples(unit["task"], "train")
        return examples, [source]

    def dev_examples(self, unit: dict) -> list[dict]:
        splits = data.dev_splits(unit["task"])
        return [example for split in splits for example in self.examples(unit["task"], split)[0]]

    def score(self, unit: dict, model: PreTrainedModel) -> tuple[dict, dict, list[dict]]:
        task, scores, sources, details = unit["task"], {}, [], {}
        metric = metrics.GlueMetric(task)
        for place, split in enumerate(data.dev_splits(task)):
            examples, labels, source = self.examples(task, split)
            logits = np.stack([said["logits"] for said in self.predict(unit, model, examples)])
            guesses = logits[:, 0] if task == "stsb" else logits.argmax(-1)
            found = metric.compute(predictions=guesses, references=labels)
            sources.append(source)
            if place:
                scores |= {f"{name}_mismatched": value for name, value in found.items()}
            else:
                scores |= found | {"score": metrics.task_score(task, found)}
                details = {"predictions": downstream.pack(guesses), "references": downstream.pack(labels)}
        return scores, details, sources

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def examples(self, task: str, split: str) -> tuple[list[dict], np.ndarray, dict]:
        """The rows of a task that are used, as a model reads them; their labels; their provenance."""
        recipe = self.recipe({"task": task})
        rows = recipe.train_rows if split == "train" else recipe.dev_rows
        dataset, source = data.sample(self.profile, "nyu-mll/glue", task, split, rows)
        labels = np.asarray(dataset["label"], dtype=float)
        if task != "stsb":
            metrics.check_labels(f"{task}, {split}", labels, self.labels({"task": task})["num_labels"])
        return encode_texts(dataset, data.GLUE[task], self.pretraining.tokenizer, recipe.length), labels, source


class Ablation(Glue):
    """Table 4 judged by tasks: GLUE units of the students whose pretraining went without something."""

    experiment = "ablation"

    @property
    def units(self) -> list[dict]:
        ablation = self.profile.ablation
        return self.grid(ablation.variants, ablation.tasks, ablation.seeds)

    def keeps(self, unit: dict) -> bool:
        return False


class PaddingTrial(Glue):
    """What padding costs: SST-2 fine-tuned as everywhere here, and in fp32 with every sentence padded to one length."""

    experiment = "speed"

    @property
    def units(self) -> list[dict]:
        return [{"comparison": "padding", "task": "sst2", "model": "student"}]

    def settings(self, unit: dict) -> dict:
        cpu = records.cpu()["model"]
        return super().settings(unit) | {"trial": as_settings(self.profile.glue.padding), "cpu": cpu}

    def recipe(self, unit: dict) -> Recipe:
        trial = self.profile.glue.padding
        return dataclasses.replace(super().recipe(unit), train_rows=trial.rows, epochs=trial.epochs)

    def measure(self, unit: dict) -> records.Measurement:
        trial = self.profile.glue.padding
        examples, sources = self.train_examples(unit)
        variants = {"ours": (self.precision, None), "padded": ("fp32", trial.length)}

        def train(name: str, seed: int, rows: list[dict]) -> tuple[float, float]:
            model, cost = self._fine_tune(unit | {"seed": seed}, rows, *variants[name])
            return cost["training_minutes"] * 60, self.score(unit, model)[0]["accuracy"]

        for name in variants:  # warm up
            model, _ = self._fine_tune(unit | {"seed": 0}, examples[:64], *variants[name])
        runs = {name: lambda seed, name=name: train(name, seed, examples) for name in variants}
        taken, right = {}, {}
        for name, found in speed.interleaved(runs, trial.seeds).items():
            taken[name], right[name] = zip(*found, strict=True)
        times = speed.ratio(taken["padded"], taken["ours"])
        scores = {"accuracy": np.mean(right["ours"]), "accuracy_padded": np.mean(right["padded"])}
        done = len(examples) * trial.epochs
        scores |= {"examples_per_s": done / np.median(taken["ours"])}
        scores |= {"examples_per_s_padded": done / np.median(taken["padded"])}
        scores |= {"times_as_fast": times.median, "times_as_fast_low": times.low, "times_as_fast_high": times.high}
        details = {"seconds": taken, "accuracies": right, "precision": {n: v[0] for n, v in variants.items()}}
        scores = {name: float(value) for name, value in scores.items()}
        sources += [self.examples(unit["task"], "validation")[2]]
        return records.Measurement(scores, sources, self.sources(unit, model), details)
