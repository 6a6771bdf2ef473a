"""The models of notebook 01: the teacher, its students and what they are compared with; trained, kept and measured."""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import InputError, cloze, data, machine, miniworld, models, records, students
from .distillation import DistillationTrainer, heldout_losses, train
from .profiles import Distillation, Profile, Training, as_settings

EXPERIMENT = "distillation"
ABLATIONS = {  # what each student of the ablation goes without: values of the recipe
    "no_distillation": {"weight_distillation": 0.0},
    "no_masked_lm": {"weight_masked_lm": 0.0},
    "no_cosine": {"weight_cosine": 0.0},
    "quarter_text": {},  # a quarter of the blocks, gone through four times as often
}
VERSION = 1  # raised whenever the code changes the numbers it makes
TEACHER = {"model": "teacher", "seed": 0}


def experiment_of(unit: dict) -> str:
    """The experiment that the unit's record belongs to."""
    return "ablation" if unit["model"] in ABLATIONS else EXPERIMENT


class Pretraining:
    """The pretraining experiment of one profile.

    A unit is {"model": name, "seed": n}: the `teacher`; the `released` DistilBERT where the profile has one; the
    `student` (its teacher's layers, the triple loss); its undistilled `twin` (the same layers, text and steps, the
    masked-LM loss alone); and `random` (the triple loss from random weights). Those of the ablation, students without
    a part of the recipe, are in ABLATIONS; their records are the experiment `ablation`'s.
    """

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, checkpoints that are already there are made again.

        Raises:
            InputError: a device or precision that isn't to be had here; layers that the teacher doesn't have.
        """
        self.profile, self.space, self.fresh, self.recipe = profile, space, fresh, profile.distillation
        self.device, self.precision = machine.device(profile), machine.precision(profile)
        self.made: set[Path] = set()  # checkpoints made by this run
        if profile.threads:
            torch.set_num_threads(profile.threads)
        shape = profile.teacher_training.architecture
        available = shape.layers if shape else models.load_config(profile.teacher).num_hidden_layers
        self.layers = students.choose_layers(available, self.recipe.layers)

    @property
    def units(self) -> list[dict]:
        """Every unit, in the order in which they need one another."""
        released = [{"model": "released", "seed": 0}] if self.profile.released else []
        students = [{"model": name, "seed": seed} for seed in self.recipe.seeds for name in self.recipe.variants]
        return [TEACHER, *released, *students]

    @property
    def ablations(self) -> list[dict]:
        """The students that go without a part of the recipe."""
        return [{"model": name, "seed": self.recipe.seeds[0]} for name in self.profile.ablation.variants]

    def unmeasured(self, units: list[dict] | None = None) -> list[dict]:
        """Those of the units, by default of notebook 01's models, that have no record with the present settings."""
        units = self.units if units is None else units
        if self.fresh or not self.space.find(EXPERIMENT, TEACHER, self.settings(TEACHER)):
            return units  # the others' settings hold the teacher's hash
        return [unit for unit in units if not self.space.find(experiment_of(unit), unit, self.settings(unit))]

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers.

        Raises:
            InputError: a student's teacher has not been made yet.
        """
        settings = {"version": VERSION, "precision": self.precision, "corpus": as_settings(self.profile.corpus)}
        if self.profile.hub == "miniworld":
            settings["world"] = miniworld.VERSION
        if unit == TEACHER:
            settings |= {"teacher": self.profile.teacher, "revision": self._revision(self.profile.teacher)}
            settings["training"] = as_settings(self.profile.teacher_training)
            recipe = {"mask_rate": self.recipe.mask_rate, "mask_smoothing": self.recipe.mask_smoothing}
        else:
            settings["teacher"] = self.weights(TEACHER)
            recipe = as_settings(self._recipe(unit))
            del recipe["seeds"], recipe["variants"], recipe["layers"]
        if unit["model"] == "released":
            settings |= {"released": self.profile.released, "revision": self._revision(self.profile.released)}
            del recipe["training"]
        elif unit != TEACHER:
            settings["layers"] = self.layers
        if unit["model"] == "quarter_text":
            settings["text"] = "a quarter"
        return _without(settings | {"recipe": recipe}, "save_minutes")  # how often it is saved changes nothing

    def measure(self, unit: dict) -> records.Measurement:
        """Train the unit's model, or load it if that was done, and measure it on all held-out text."""
        model, log = self.trained(unit)
        teacher = None if unit == TEACHER else self.teacher
        corpus = self.profile.corpus
        metrics = self._heldout_losses(model, teacher, corpus.heldout)
        metrics["cloze_accuracy"] = float(np.mean(cloze.knows(model, self.tokenizer, cloze.probes(self.profile))))
        if corpus.train != corpus.heldout:
            other = self._heldout_losses(model, None, corpus.train)
            metrics["masked_lm_loss_on_training_corpus"] = other["masked_lm_loss"]
        metrics |= {"parameters": models.parameters(model), "size_mb": models.size_mb(model)}
        steps = [line for line in log if "tokens" in line]
        if steps:
            seconds, tokens = sum(line["seconds"] for line in steps), sum(line["tokens"] for line in steps)
            metrics |= {"training_minutes": seconds / 60, "training_tokens": tokens, "tokens_per_s": tokens / seconds}
            parts = max(line.get("batch_parts", 1) for line in steps)
            metrics |= {"batch_parts": parts} if parts > 1 else {}  # memory was short
        details = {"curve": log, "checkpoint": self._hash(unit)}
        return records.Measurement(metrics, self.text.sources, self.sources(unit, model), details)

    def trained(self, unit: dict) -> tuple[PreTrainedModel, list[dict]]:
        """The unit's model, from its checkpoint or, where that isn't there, trained now; and its training log."""
        folder = self.checkpoint(unit)
        if folder is None:
            name = self.profile.released if unit["model"] == "released" else self.profile.teacher
            return self._require_head(name).to(self.device), []
        log, unfinished = folder / "training_log.json", folder.with_name(f"{folder.name}.training")
        if folder in self.made or (log.exists() and not self.fresh):
            return models.load_masked_lm(str(folder))[0].to(self.device), json.loads(log.read_text())
        if self.fresh:
            shutil.rmtree(unfinished, ignore_errors=True)
        model, lines = self._train(unit, unfinished)
        models.save(model, self.tokenizer, folder)
        records.write_whole(log, json.dumps(lines))
        shutil.rmtree(unfinished, ignore_errors=True)
        self.made.add(folder)
        return model.eval(), lines

    def checkpoint(self, unit: dict) -> Path | None:
        """The folder of the unit's model, there or not; None for one that is used as it comes from the Hub."""
        if unit["model"] == "released" or (unit == TEACHER and not self.stages(unit)):
            return None
        return self.space.checkpoints / f"{records.slug(unit)}-{records.digest(self.settings(unit))}"

    @functools.cached_property
    def teacher(self) -> PreTrainedModel:
        """The teacher, with its masked-LM head."""
        return self.trained(TEACHER)[0]

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's, which is the student's too."""
        if self.profile.teacher_training.architecture:
            return miniworld.tokenizer(miniworld.write(data.WORLD))
        return models.load_tokenizer(self.profile.teacher)

    def estimated_minutes(self, units: list[dict]) -> float:
        """About how long the units' training takes here, from a few steps at full size on random weights."""
        by_kind = {}
        for unit in units:
            kind = unit["model"] if unit["model"] in ("teacher", "released", "twin") else "student"
            by_kind.setdefault(kind, []).append(unit)
        return sum(len(alike) * self._minutes(alike[0]) for alike in by_kind.values())

    def _minutes(self, unit: dict) -> float:
        teacher = self._blank_teacher().to(self.device)
        student = students.untrained(teacher.config, len(self.layers), seed=0).to(self.device)
        model, guide = (teacher, None) if unit == TEACHER else (student, None if unit["model"] == "twin" else teacher)
        minutes = 0.0
        for stage in self.stages(unit):
            trial = dataclasses.replace(stage, steps=3, accumulation=1, evaluations=0)
            with tempfile.TemporaryDirectory() as folder:
                log = self._run(unit, model, guide, None, trial, Path(folder))
            seconds = [line["seconds"] for line in log if "seconds" in line][1:]  # the first one warms up
            minutes += min(seconds) * stage.accumulation * stage.steps / 60
        return minutes

    def stages(self, unit: dict) -> list[Training]:
        """The trainings of the unit's model; none where it is used as it comes."""
        teacher = self.profile.teacher_training
        if unit == TEACHER:
            return [stage for stage in (teacher.head, teacher.whole) if stage and stage.steps]
        return [] if unit["model"] == "released" else [self.recipe.training]

    def _train(self, unit: dict, folder: Path) -> tuple[PreTrainedModel, list[dict]]:
        name, log = unit["model"], []
        teacher = None if unit == TEACHER else self.teacher
        if unit == TEACHER:
            model = self._untrained_teacher()
        elif name == "random":
            model = students.untrained(teacher.config, len(self.layers), unit["seed"])
        else:
            model = students.from_teacher(teacher, self.layers)
        model.to(self.device)
        for number, stage in enumerate(self.stages(unit)):
            head_alone = unit == TEACHER and stage is self.profile.teacher_training.head
            model.base_model.requires_grad_(not head_alone)
            guide = None if name == "twin" else teacher
            lines = self._run(unit, model, guide, teacher, stage, folder / f"stage-{number}")
            log += [line | {"stage": "head" if head_alone else "whole"} for line in lines]
        if unit == TEACHER and self.profile.teacher_training.architecture:
            models.share_token_types(model)
        return model, log

    def _recipe(self, unit: dict) -> Distillation:
        return dataclasses.replace(self.recipe, **ABLATIONS.get(unit["model"], {}))

    def _run(
        self,
        unit: dict,
        model: PreTrainedModel,
        guide: PreTrainedModel | None,
        reference: PreTrainedModel | None,
        stage: Training,
        folder: Path,
    ) -> list[dict]:
        counts = self.text.counts if self.recipe.mask_smoothing else None
        masking = data.Masking(self.tokenizer, self.recipe.mask_rate, self.recipe.mask_smoothing, counts, unit["seed"])
        total = stage.steps * stage.batch_size * stage.accumulation
        every = 4 if unit["model"] == "quarter_text" else 1
        blocks = data.MaskedBlocks(self.text.blocks[::every], masking, total)
        curve = self.text.heldout(self.profile.corpus.heldout, self.profile.corpus.curve_blocks)
        sides = guide, self._recipe(unit), stage, blocks, curve, reference
        return train(DistillationTrainer(model, *sides, self.tokenizer.pad_token_id, folder, self.precision))

    def _untrained_teacher(self) -> PreTrainedModel:
        if self.profile.teacher_training.architecture:
            model, source = self._blank_teacher(), {"head": False}
        else:
            model, _, source = models.load_masked_lm(self.profile.teacher)
        if not source["head"]:
            models.start_head(model, self.text.counts)
        return model

    @property
    def teacher_config(self) -> PretrainedConfig:
        """The teacher's configuration, of which no weights are needed."""
        shape = self.profile.teacher_training.architecture
        return self._blank_teacher().config if shape else models.load_config(self.profile.teacher)

    def _blank_teacher(self) -> PreTrainedModel:
        if shape := self.profile.teacher_training.architecture:
            return models.new_bert(shape, self.tokenizer, seed=0)
        return AutoModelForMaskedLM.from_config(models.load_config(self.profile.teacher), dtype=torch.float32)

    def _require_head(self, name: str) -> PreTrainedModel:
        model, _, source = models.load_masked_lm(name)
        if not source["head"]:
            raise InputError(f"{name} has no masked-LM head: give it one in teacher_training (head, whole)")
        return model

    @functools.cached_property
    def text(self) -> data.PretrainingText:
        """What is read in training, and what is held out."""
        return data.PretrainingText(self.profile, self.tokenizer)

    def _heldout_losses(self, model, teacher, config: str) -> dict[str, float]:
        blocks = self.text.heldout(config, self.profile.corpus.heldout_blocks)
        return heldout_losses(model, teacher, blocks, self.recipe, self.tokenizer.pad_token_id)

    def sources(self, unit: dict, model: PreTrainedModel) -> list[dict]:
        """Provenance of a model that was made from the unit's weights, or is the unit's own."""
        count = {"parameters": models.parameters(model)}
        ours = {"id": records.slug(unit), "revision": self._hash(unit), "weights": "ours"} | count
        if unit["model"] == "released":
            return [models.fetch(self.profile.released)[1] | count]
        if self.profile.teacher_training.architecture:
            return [ours]
        base = models.fetch(self.profile.teacher)[1] | count
        return [base] if ours["revision"] is None else [base, ours]

    def _hash(self, unit: dict) -> str | None:
        folder = self.checkpoint(unit)
        return models.file_hash(folder) if folder and folder.is_dir() else None

    def weights(self, unit: dict) -> str:
        """What the unit's weights are recognised by; from its record where the checkpoint itself isn't here.

        Raises:
            InputError: it has not been trained yet.
        """
        if not self.stages(unit):
            return self._revision(self.profile.teacher if unit == TEACHER else self.profile.released)
        if found := self._hash(unit):
            return found
        record = self.space.find(experiment_of(unit), unit, self.settings(unit))
        if record is None:
            raise InputError(f"{records.slug(unit)} is not there yet: run notebook 01, or set `store` to where it is")
        return record["details"]["checkpoint"]

    def _revision(self, name: str) -> str | None:
        return None if name == "miniworld" else models.fetch(name)[1]["revision"]


def _without(settings: dict, key: str) -> dict:
    return {k: _without(v, key) if isinstance(v, dict) else v for k, v in settings.items() if k != key}
