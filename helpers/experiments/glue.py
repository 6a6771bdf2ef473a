"""Pretrained models, fine-tuned: what notebooks 02 to 04 share; GLUE, the ablation it judges; IMDb."""

import functools
from collections.abc import Sequence
from pathlib import Path

import datasets
import evaluate
import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from .. import InputError
from ..data import hub
from ..data.encoding import encode_texts
from ..measure import machine, metrics, records
from ..measure.metrics import GLUE
from ..measure.sweep import Experiment
from ..models import checkpoints, distillation, finetuning, training
from ..profiles import Profile, Recipe
from .pretraining import Pretraining

VERSION = 1  # raised whenever the code changes the numbers it makes
GUIDED = "_d"  # ends the name of a model that is distilled a second time, from the fine-tuned teacher
KEPT = ("sst2", "mrpc", "stsb")  # tasks whose first models later notebooks take up


class GlueMetric(evaluate.Metric):
    """The metrics of one GLUE task: `GlueMetric("mrpc").compute(predictions=…, references=…)`.

    Predictions are class numbers, for stsb scores. mnli's matched and mismatched rows are two data sets, measured one
    at a time. InputError if the task is unknown, there is nothing to compare or unequal numbers of it, references are
    unknown (-1) or no class of the task, or predictions are not finite.
    """

    def __init__(self, task: str):
        if task not in GLUE:
            raise InputError(f"unknown task {task!r}: expected one of {', '.join(GLUE)}")
        super().__init__(config_name=task, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("int64" if GLUE[self.config_name].classes else "float64")
        return evaluate.MetricInfo(
            description=f"{', '.join(GLUE[self.config_name].metrics)} of GLUE's {self.config_name}",
            citation="Wang et al. 2018, GLUE",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def compute(self, *, predictions: Sequence, references: Sequence) -> dict[str, float]:
        """Each metric by name. The input is checked here, since `evaluate` would say less plainly what is wrong."""
        predictions, references = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        task = self.config_name
        if len(predictions) != len(references) or not len(references):
            raise InputError(f"{task}: {len(predictions)} predictions for {len(references)} references")
        wrong = np.flatnonzero(~np.isfinite(predictions))
        if len(wrong):
            raise InputError(f"{task}: prediction {wrong[0]} is {predictions[wrong[0]]} ({len(wrong)} such): diverged?")
        metrics.check_labels(task, references, GLUE[task].classes)
        if not GLUE[task].classes and np.ptp(references) == 0:
            alike = f"all {len(references)} references are {references[0]}"
            raise InputError(f"{task}: {alike}: no correlation can be told from them")
        return super().compute(predictions=predictions, references=references)

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        both = np.asarray(predictions), np.asarray(references)
        return {name: float(metrics.FORMULAS[name](*both)) for name in GLUE[self.config_name].metrics}


class Downstream(Experiment):
    """Fine-tuned models. A unit has a `model`, a `seed` (of the fine-tuning) and what a subclass adds.

    The models are those of notebook 01, with its first pretraining seed; NAME_d is NAME guided by the fine-tuned
    teacher, which comes first. A subclass gives its units; `recipe(unit)`; `read(which, split)`: rows as a model reads
    them, their labels and provenance; `score(unit, model)`: metrics, details and provenance of data of a tuned model.
    """

    auto: type = AutoModelForSequenceClassification
    by: str  # what of a unit says which rows it is about
    spreads = True
    data_id: str  # of the data set
    teaching = property(lambda self: self)  # the experiment whose fine-tuned teachers guide

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        super().__init__(profile, space, fresh)
        self.pretraining = Pretraining(profile, space)
        self.device, self.precision = machine.device(profile), machine.precision(profile)
        self.temperature = profile.squad.temperature  # of the second distillation, in all experiments
        self.examples = functools.cache(self.read)  # each split is read once
        self._starts: dict[str, str] = {}  # hashes, by model

    def labels(self, unit: dict) -> dict:
        """What the model's head is made for: by default two classes or, in a text, where an answer begins and ends."""
        return {"num_labels": 2}

    def keeps(self, unit: dict) -> bool:
        """Whether the fine-tuned model stays on disk."""
        return False

    def train_examples(self, unit: dict) -> tuple[list[dict], list[dict]]:
        """What the unit is trained on, and its provenance."""
        examples, _, source = self.examples(unit[self.by], "train")
        return examples, [source]

    def why_not(self, unit: dict) -> str | None:
        """What the unit starts from is neither there nor on record."""
        reason = "run notebook 01 first, or set `store` to where its results are"
        return None if self.start_hash(unit["model"]) else reason

    def seconds(self, unit: dict) -> float:
        """About as long as a model of this shape takes to learn from its tokens; predicting is left out."""
        tokens = sum(len(example["input_ids"]) for example in self.train_examples(unit)[0])
        return machine.BACKWARD * self.recipe(unit).epochs * tokens / self.rate(unit)

    def rate(self, unit: dict) -> float:
        """How many tokens a model of the unit's shape reads here in a second."""
        config = self.pretraining.teacher_config
        if unit["model"] != "teacher":
            config = distillation.configuration(config, len(self.pretraining.layers))
        return machine.tokens_per_s(config, self.device, self.precision)

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers; InputError if its start or its teacher isn't made yet."""
        recipe = self.recipe(unit).model_dump(exclude={"evaluation_batch_size"})  # which changes nothing but the time
        start = self.start_hash(unit["model"]) or self.pretraining.weights(self.origin(unit["model"]))
        settings = {"version": VERSION, "precision": self.precision, "recipe": recipe, "start": start}
        settings |= hub.state(self.profile, self.data_id)
        if unit["model"].endswith(GUIDED):
            settings |= {"teacher": self.teaching.guide(unit | {"model": "teacher"}), "temperature": self.temperature}
        return settings

    def checkpoint(self, unit: dict) -> Path:
        """The folder of the unit's fine-tuned model, there or not."""
        return self.space.checkpoints / f"{self.name}-{records.slug(unit)}-{records.digest(self.settings(unit))}"

    def trained(self, unit: dict) -> PreTrainedModel:
        """The unit's model, from its checkpoint or, where that isn't there, fine-tuned now and kept."""
        folder = self.checkpoint(unit)
        if folder.is_dir():
            return checkpoints.load_with_head(self.auto, str(folder), 0).to(self.device).eval()
        with training.unfinished(folder, self.fresh) as unfinished:
            model, _ = self.fine_tune(unit, self.train_examples(unit)[0], self.precision, unfinished)
            checkpoints.save(model, self.pretraining.tokenizer, folder)
        return model

    def measure(self, unit: dict) -> records.Measurement:
        """Fine-tune the unit's model and measure it."""
        (examples, sources), folder = self.train_examples(unit), self.checkpoint(unit)
        with training.unfinished(folder, self.fresh) as unfinished:  # whoever is cut off while scoring has that still
            model, cost = self.fine_tune(unit, examples, self.precision, unfinished)
            scores, details, measured_on = self.score(unit, model)
            if self.keeps(unit):
                checkpoints.save(model, self.pretraining.tokenizer, folder)
                details["checkpoint"] = checkpoints.file_hash(folder)
        return records.Measurement(scores | cost, sources + measured_on, self.sources(unit, model), details)

    def fine_tune(
        self, unit: dict, examples: list[dict], precision: str, unfinished: Path, pad_to: int | None = None
    ) -> tuple[PreTrainedModel, dict[str, float]]:
        """The unit's model, trained now, and what that cost. `pad_to`: every batch, if not to its longest row."""
        recipe, pad = self.recipe(unit), self.pretraining.tokenizer.pad_token_id
        if unit["model"].endswith(GUIDED):
            teacher = self.teaching.trained(unit | {"model": "teacher"})
            examples = finetuning.guided(teacher, examples, recipe.evaluation_batch_size, pad)
        start = self.start(unit["model"])
        model = checkpoints.load_with_head(self.auto, start, unit["seed"], **self.labels(unit)).to(self.device)
        options = unfinished, precision, pad, self.temperature, pad_to
        return model, finetuning.fine_tune(finetuning.FineTuner(model, examples, recipe, unit["seed"], *options))

    def sources(self, unit: dict, model: PreTrainedModel) -> list[dict]:
        """Provenance of the unit's model."""
        return self.pretraining.sources(self.origin(unit["model"]), model)

    def predict(self, unit: dict, model: PreTrainedModel, examples: list[dict]) -> list[dict[str, np.ndarray]]:
        """The model's logits for each example, in batches of the unit's recipe."""
        size, pad = self.recipe(unit).evaluation_batch_size, self.pretraining.tokenizer.pad_token_id
        return finetuning.predict(model, examples, size, pad)

    def origin(self, model: str) -> dict:
        """The unit of notebook 01 that a model starts from; student@0.25 is the student after so much of it."""
        name, _, part = model.partition("@")
        seed = 0 if name in ("teacher", "released") else self.profile.distillation.seeds[0]
        unit = {"model": name.removesuffix(GUIDED), "seed": seed}
        return unit | {"part": float(part)} if part else unit

    def start_hash(self, model: str) -> str | None:
        """What the weights that a model starts from are recognised by; None where they have not been made yet."""
        if model not in self._starts and (found := self.pretraining.known(self.origin(model))):
            self._starts[model] = found
        return self._starts.get(model)

    def start(self, model: str) -> str:
        """The folder or Hub id of the pretrained model that a model starts from; trained again if it has gone."""
        return self.pretraining.start(self.origin(model))

    def guide(self, teacher: dict) -> str:
        """What such a model's teacher is recognised by: its weights or, if those on record are lost, its recipe."""
        record = self.record(teacher)
        lost = record and "checkpoint" not in record["details"]
        return records.digest(record["settings"]) if lost else self.finetuned_hash(teacher)

    def finetuned_hash(self, unit: dict) -> str:
        """What a fine-tuned model is recognised by, if need be from its record; InputError if it has not been made."""
        folder = self.checkpoint(unit)
        if folder.is_dir():
            return checkpoints.file_hash(folder)
        record = self.space.find(self.name, unit, self.settings(unit))
        if record is None or "checkpoint" not in record["details"]:
            raise InputError(f"{records.slug(unit)} has not been fine-tuned yet, and it is to teach")
        return record["details"]["checkpoint"]


class Glue(Downstream):
    """GLUE: units {"task", "model", "seed"}."""

    name, by, data_id = "glue", "task", "nyu-mll/glue"

    @property
    def units(self) -> list[dict]:
        glue = self.profile.glue
        return self.grid(glue.models, glue.tasks, glue.seeds)

    def grid(self, names: list[str], tasks: list[str], seeds: list[int]) -> list[dict]:
        """Units of these models, tasks and seeds: all tasks with the first seed, then the next."""
        return [{"task": task, "model": name, "seed": seed} for seed in seeds for task in tasks for name in names]

    def recipe(self, unit: dict) -> Recipe:
        """How the unit's task is learned, by every model alike; InputError if the profile has no recipe for it."""
        task, recipes = unit["task"], self.profile.glue.recipes
        if task not in recipes:
            raise InputError(f"{task}: the profile {self.profile.name} has no recipe for it in glue.recipes")
        return recipes[task]

    def labels(self, unit: dict) -> dict:
        return {"num_labels": GLUE[unit["task"]].classes or 1}

    def keeps(self, unit: dict) -> bool:
        teaches = unit["model"] == "teacher" and f"student{GUIDED}" in self.profile.glue.models
        return teaches or (unit["task"] in KEPT and unit["seed"] == self.profile.glue.seeds[0])

    def score(self, unit: dict, model: PreTrainedModel) -> tuple[dict, dict, list[dict]]:
        task, scores, sources, details = unit["task"], {}, [], {}
        for split in GLUE[task].dev_splits:
            examples, labels, source = self.examples(task, split)
            logits = np.stack([said["logits"] for said in self.predict(unit, model, examples)])
            guesses = logits.argmax(-1) if GLUE[task].classes else logits[:, 0]
            found = GlueMetric(task).compute(predictions=guesses, references=labels)
            if sources:
                scores |= {f"{name}_mismatched": value for name, value in found.items()}
            else:
                scores |= found | {"score": float(np.mean([*found.values()]))}
                details = {"predictions": records.pack(guesses), "references": records.pack(labels)}
            sources.append(source)
        return scores, details, sources

    def read(self, task: str, split: str, tokenizer=None) -> tuple[list[dict], np.ndarray, dict]:
        """With `tokenizer`, as a model with a vocabulary of its own reads them."""
        recipe, spec = self.recipe({"task": task}), GLUE[task]
        rows = recipe.train_rows if split == "train" else recipe.dev_rows
        dataset, source = hub.sample(self.profile, self.data_id, task, split, rows)
        labels = np.asarray(dataset["label"][:], dtype=float)
        metrics.check_labels(f"{task}, {split}", labels, spec.classes)
        examples = encode_texts(dataset, spec.columns, tokenizer or self.pretraining.tokenizer, recipe.length)
        return examples, labels, source


class Ablation(Glue):
    """Table 4 judged by tasks: GLUE units of the students whose pretraining went without something."""

    name = "ablation"

    @property
    def units(self) -> list[dict]:
        ablation = self.profile.ablation
        return self.grid(ablation.variants, ablation.tasks, ablation.seeds)

    def keeps(self, unit: dict) -> bool:
        return False


class Imdb(Downstream):
    """IMDb: units {"model", "length", "seed"}, the length being the tokens that a model gets to read of a review."""

    name, by, data_id = "imdb", "length", "stanfordnlp/imdb"

    @property
    def units(self) -> list[dict]:
        imdb = self.profile.imdb
        pairs = [(name, imdb.recipe.length) for name in imdb.models]
        pairs += [("student", length) for length in imdb.lengths if "student" in imdb.models]
        return [{"model": name, "length": length, "seed": seed} for seed in imdb.seeds for name, length in pairs]

    def recipe(self, unit: dict) -> Recipe:
        return self.profile.imdb.recipe.model_copy(update={"length": unit["length"]})

    def keeps(self, unit: dict) -> bool:
        imdb = self.profile.imdb
        own = (unit["length"], unit["seed"]) == (imdb.recipe.length, imdb.seeds[0])
        return own and unit["model"] in ("teacher", "student")

    def score(self, unit: dict, model: PreTrainedModel) -> tuple[dict, dict, list[dict]]:
        examples, labels, source = self.examples(unit["length"], "test")
        guesses = np.stack([said["logits"] for said in self.predict(unit, model, examples)]).argmax(-1)
        longer, _, _ = self.examples(unit["length"] + 1, "test")
        cut = np.mean([len(example["input_ids"]) > unit["length"] for example in longer])
        details = {"predictions": records.pack(guesses), "references": records.pack(labels)}
        return {"accuracy": float(metrics.share_equal(guesses, labels)), "truncated": float(cut)}, details, [source]

    def reviews(self, split: str) -> tuple[datasets.Dataset, dict]:
        """The reviews of a split that are used, and their provenance."""
        recipe = self.profile.imdb.recipe
        rows = recipe.train_rows if split == "train" else recipe.dev_rows
        return hub.sample(self.profile, self.data_id, "plain_text", split, rows)

    def read(self, length: int, split: str) -> tuple[list[dict], np.ndarray, dict]:
        """The reviews of a split, so many tokens of each; their labels; their provenance."""
        dataset, source = self.reviews(split)
        labels = np.asarray(dataset["label"][:])
        metrics.check_labels(f"imdb, {split}", labels, 2)
        return encode_texts(dataset, ["text"], self.pretraining.tokenizer, length), labels, source
