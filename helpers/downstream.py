"""What the experiments of notebooks 02 to 04 have in common: pretrained models, fine-tuned, kept and measured."""

import functools
import shutil
from pathlib import Path

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from . import InputError, finetuning, machine, miniworld, models, records
from .pretraining import TEACHER, Pretraining
from .profiles import Profile, Recipe, as_settings

VERSION = 1  # raised whenever the code changes the numbers it makes
DISTILLED = "student_d"  # the student, distilled a second time from the fine-tuned teacher


class Downstream:
    """An experiment on fine-tuned models. A unit has a `model`, a `seed` (of the fine-tuning) and what they add.

    The models are those of notebook 01, with its first pretraining seed, and `student_d`.
    """

    experiment: str
    auto: type = AutoModelForSequenceClassification

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        self.profile, self.space, self.fresh = profile, space, fresh
        self.pretraining = Pretraining(profile, space)
        self.device, self.precision = machine.device(profile), machine.precision(profile)

    @property
    def units(self) -> list[dict]:
        """Every unit, a model after those that it learns from."""
        raise NotImplementedError

    def recipe(self, unit: dict) -> Recipe:
        """How the unit is fine-tuned."""
        raise NotImplementedError

    def train_examples(self, unit: dict) -> tuple[list[dict], list[dict]]:
        """What the unit is trained on, and its provenance."""
        raise NotImplementedError

    def dev_examples(self, unit: dict) -> list[dict]:
        """What the unit is measured on."""
        raise NotImplementedError

    def score(self, unit: dict, model: PreTrainedModel) -> tuple[dict, dict, list[dict]]:
        """The unit's metrics, details and provenance of data, measured with a fine-tuned model."""
        raise NotImplementedError

    def labels(self, unit: dict) -> dict:
        """What the model's head is made for."""
        return {}

    def keeps(self, unit: dict) -> bool:
        """Whether the fine-tuned model stays on disk."""
        return False

    @property
    def ready(self) -> list[dict]:
        """The units whose start is there, or can be made again from what was recorded of it."""
        return [unit for unit in self.units if self.start_hash(unit["model"])]

    @property
    def unmeasured(self) -> list[dict]:
        """The ready units that have no record with the present settings."""
        waiting = []
        for unit in self.ready:
            try:
                known = not self.fresh and self.space.find(self.experiment, unit, self.settings(unit))
            except InputError:  # its fine-tuned teacher is still to be made
                known = None
            waiting += [] if known else [unit]
        return waiting

    def plan(self) -> str:
        """What will be run and about how long, and which models cannot be, in a few lines."""
        todo, ready = self.unmeasured, self.ready
        lines = [
            f"profile {self.profile.name} on {self.device}, {self.precision}; results in results/{self.space.name}/"
        ]
        minutes = self.estimated_minutes(todo)
        lines += [f"{len(ready)} units, of which {len(todo)} have no record yet: about {minutes:.0f} minutes"]
        missing = {unit["model"]: None for unit in self.units if unit not in ready}
        return "\n".join(lines + [f"{name}: – run 01, or set `store` to where its results are" for name in missing])

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers.

        Raises:
            InputError: what it starts from, or its teacher, has not been made yet.
        """
        recipe = as_settings(self.recipe(unit))
        del recipe["evaluation_batch_size"]  # changes nothing but the time
        start = self.start_hash(unit["model"]) or self.pretraining.weights(self.origin(unit["model"]))
        settings = {"version": VERSION, "precision": self.precision, "recipe": recipe, "start": start}
        if self.profile.hub == "miniworld":
            settings["world"] = miniworld.VERSION
        if unit["model"] == DISTILLED:
            settings |= {"teacher": self.finetuned_hash(unit | {"model": "teacher"}), "temperature": self.temperature}
        return settings

    @property
    def temperature(self) -> float:
        """Of the second distillation, in all experiments."""
        return self.profile.squad.temperature

    def checkpoint(self, unit: dict) -> Path:
        """The folder of the unit's fine-tuned model, there or not."""
        name = f"{self.experiment}-{records.slug(unit)}-{records.digest(self.settings(unit))}"
        return self.space.checkpoints / name

    def trained(self, unit: dict) -> PreTrainedModel:
        """The unit's model, from its checkpoint or, where that isn't there, fine-tuned now and kept."""
        folder = self.checkpoint(unit)
        if folder.is_dir():
            return models.load_with_head(self.auto, str(folder), 0).to(self.device).eval()
        model, _ = self._fine_tune(unit, self.train_examples(unit)[0], self.precision)
        models.save(model, self.pretraining.tokenizer, folder)
        return model

    def measure(self, unit: dict) -> records.Measurement:
        """Fine-tune the unit's model and measure it."""
        examples, sources = self.train_examples(unit)
        model, cost = self._fine_tune(unit, examples, self.precision)
        scores, details, measured_on = self.score(unit, model)
        if self.keeps(unit):
            models.save(model, self.pretraining.tokenizer, self.checkpoint(unit))
            details["checkpoint"] = models.file_hash(self.checkpoint(unit))
        return records.Measurement(scores | cost, sources + measured_on, self.sources(unit, model), details)

    def estimated_minutes(self, units: list[dict]) -> float:
        """About how long these units take here, from a few steps of a large and of a small model.

        Predicting counts a third of training; rates are taken on the first unit of either kind.
        """
        rates, minutes = {}, 0.0
        for unit in units:
            kind = "teacher" if unit["model"] == "teacher" else "student"
            examples, recipe = self.train_examples(unit)[0], self.recipe(unit)
            if kind not in rates:
                plain = unit | {"model": unit["model"].removesuffix("_d")}
                few = examples[:: max(1, len(examples) // (4 * recipe.batch_size))]
                rates[kind] = self._fine_tune(plain, few, self.precision)[1]["tokens_per_s"]
            tokens = recipe.epochs * sum(len(e["input_ids"]) for e in examples)
            tokens += sum(len(e["input_ids"]) for e in self.dev_examples(unit)) / 3
            minutes += tokens / rates[kind] / 60
        return minutes

    def _fine_tune(
        self, unit: dict, examples: list[dict], precision: str, pad_to: int | None = None
    ) -> tuple[PreTrainedModel, dict[str, float]]:
        recipe, pad, folder = self.recipe(unit), self.pretraining.tokenizer.pad_token_id, self.checkpoint(unit)
        if unit["model"] == DISTILLED:
            teacher = self.trained(unit | {"model": "teacher"})
            examples = finetuning.guided(teacher, examples, recipe.evaluation_batch_size, pad)
        unfinished = folder.with_name(f"{folder.name}.training")
        if self.fresh:
            shutil.rmtree(unfinished, ignore_errors=True)
        start = self.start(unit["model"])
        model = models.load_with_head(self.auto, start, unit["seed"], **self.labels(unit)).to(self.device)
        options = pad, self.temperature, pad_to
        trainer = finetuning.FineTuner(model, examples, recipe, unit["seed"], unfinished, precision, *options)
        cost = finetuning.fine_tune(trainer)
        shutil.rmtree(unfinished, ignore_errors=True)
        return model, cost

    def sources(self, unit: dict, model: PreTrainedModel) -> list[dict]:
        return self.pretraining.sources(self.origin(unit["model"]), model)

    def predict(self, unit: dict, model: PreTrainedModel, examples: list[dict]) -> list[dict[str, np.ndarray]]:
        """The model's logits for each example, in batches of the unit's recipe."""
        size, pad = self.recipe(unit).evaluation_batch_size, self.pretraining.tokenizer.pad_token_id
        return finetuning.predict(model, examples, size, pad)

    def origin(self, model: str) -> dict:
        """The unit of notebook 01 that a model starts from."""
        if model in ("teacher", "released"):
            return {"model": model, "seed": 0}
        name = "student" if model == DISTILLED else model
        return {"model": name, "seed": self.profile.distillation.seeds[0]}

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def start_hash(self, model: str) -> str | None:
        """What the weights that a model starts from are recognised by; None where they have not been made yet."""
        try:
            return self.pretraining.weights(self.origin(model))
        except InputError:
            return None

    def start(self, model: str) -> str:
        """The folder or Hub id of the pretrained model that a model starts from; trained again if it has gone."""
        unit = self.origin(model)
        folder = self.pretraining.checkpoint(unit)
        if folder is None:
            return self.profile.teacher if unit == TEACHER else self.profile.released
        if not folder.is_dir():
            self.pretraining.trained(unit)
        return str(folder)

    def finetuned_hash(self, unit: dict) -> str:
        """What a fine-tuned model is recognised by, from its record where its checkpoint isn't there.

        Raises:
            InputError: it has not been made yet.
        """
        folder = self.checkpoint(unit)
        if folder.is_dir():
            return models.file_hash(folder)
        record = self.space.find(self.experiment, unit, self.settings(unit))
        if record is None or "checkpoint" not in record["details"]:
            raise InputError(f"{records.slug(unit)} has not been fine-tuned yet, and it is to teach")
        return record["details"]["checkpoint"]


def pack(values: np.ndarray) -> str:
    """Predictions or labels as one line of a record: "0 1 1 0", scores with all the digits that fp32 has."""
    return " ".join(f"{value:.9g}" for value in values)


def unpack(line: str) -> np.ndarray:
    """What `pack` put into a record, float [rows], to the last bit."""
    return np.array(line.split(), dtype=np.float32).astype(float)
