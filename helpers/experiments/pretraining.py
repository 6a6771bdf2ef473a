"""The models of notebook 01: the teacher, its students and what they are compared with; trained, kept and measured."""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import InputError
from ..data import encoding, hub, miniworld
from ..measure import machine, records
from ..measure.sweep import READ_ONLY, Experiment
from ..models import checkpoints, distillation, masked_lm, training
from ..profiles import Profile, Training

VERSION = 1  # raised whenever the code changes the numbers it makes
TEACHER = {"model": "teacher", "seed": 0}
ONCE = ("random", "dropped", "twin_time")  # of the first seed alone
FOLLOWED = ("student", "twin")  # of which snapshots are kept, units with "part"


class Spec(NamedTuple):
    """A model of notebook 01: its start, who teaches it, and how its recipe differs from the student's."""

    start: str  # "as it comes", "teacher's layers" or "random weights"
    taught: bool = True  # by the teacher, with the triple loss; otherwise the masked-LM loss alone
    changes: dict[str, float] = {}  # values of the recipe
    every: int = 1  # one of so many blocks of the text is read
    trained: bool = True  # or left as it starts


MODELS = {
    "teacher": Spec("as it comes", taught=False),
    "released": Spec("as it comes", taught=False),
    "student": Spec("teacher's layers"),
    "twin": Spec("teacher's layers", taught=False),
    "random": Spec("random weights"),
    "twin_time": Spec("teacher's layers", taught=False),  # for as long as the student, not for as many steps
    "dropped": Spec("teacher's layers", taught=False, trained=False),
    "no_distillation": Spec("teacher's layers", changes={"weight_distillation": 0.0}),
    "no_masked_lm": Spec("teacher's layers", changes={"weight_masked_lm": 0.0}),
    "no_cosine": Spec("teacher's layers", changes={"weight_cosine": 0.0}),
    "quarter_text": Spec("teacher's layers", every=4),  # of the corpus, not of what the steps would read of it
}


class Pretraining(Experiment):
    """The teacher, the released DistilBERT where the profile has one, and the students: {"model": name, "seed": n}.

    A student starts from its teacher's layers and minimises the triple loss; its `twin` has the same layers, text and
    steps, and the masked-LM loss alone; the `random` one has the triple loss, from random weights; `dropped` has these
    layers and no training at all. See MODELS.
    """

    name, spreads = "distillation", True

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, checkpoints are made again, too. InputError if the device, precision or layers can't be had."""
        super().__init__(profile, space, fresh)
        self.recipe, self.shape = profile.distillation, profile.teacher_training.architecture
        self.device, self.precision = machine.device(profile), machine.precision(profile)
        self.made: set[Path] = set()  # checkpoints made by this run
        if profile.threads:
            alone = 1 if READ_ONLY in os.environ else max(1, profile.threads // training.PROCESSES)
            torch.set_num_threads(alone)  # side by side they would collide
        if "twin_time" in self.recipe.variants and not self.recipe.equal_time:
            raise InputError("twin_time in distillation.variants: distillation.equal_time says how many steps it takes")
        self._check_lengths()
        available = self.shape.layers if self.shape else self.teacher_config.num_hidden_layers
        self.layers = distillation.choose_layers(available, self.recipe.layers)

    @property
    def units(self) -> list[dict]:
        """Every unit, in the order in which they need one another."""
        released = [{"model": "released", "seed": 0}] if self.profile.released else []
        seeds, variants = self.recipe.seeds, self.recipe.variants
        pairs = [(name, seed) for seed in seeds for name in variants if seed == seeds[0] or name not in ONCE]
        return [TEACHER, *released, *({"model": name, "seed": seed} for name, seed in pairs)]

    def _check_lengths(self) -> None:
        """See that the model takes texts as long as the profile's; InputError for one that is longer."""
        profile, most = self.profile, self.teacher_config.max_position_embeddings
        asked = {f"glue.recipes.{task}.length": recipe.length for task, recipe in profile.glue.recipes.items()}
        asked["corpus.block_length"] = profile.corpus.block_length
        asked["squad.recipe.length"] = profile.squad.recipe.length
        asked |= {"imdb": max([profile.imdb.recipe.length, *profile.imdb.lengths])}
        for key, length in asked.items():
            if length > most:
                raise InputError(f"{key} = {length}: {profile.teacher} takes {most} tokens; lower it")

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers; InputError if a student's teacher has not been made yet."""
        settings = {"version": VERSION, "precision": self.precision, "corpus": self.profile.corpus.model_dump()}
        settings |= hub.state(self.profile, self.profile.corpus.id)
        spec, recipe = MODELS[unit["model"]], self.recipe.model_dump()
        if spec.start == "as it comes":
            settings |= {unit["model"]: self._given(unit).partition("@")[0], "revision": self._revision(unit)}
        if unit == TEACHER:
            settings["training"] = self.profile.teacher_training.model_dump()
            return settings | {"recipe": {name: recipe[name] for name in ("mask_rate", "mask_smoothing")}}
        settings["teacher"], own = self.weights(TEACHER), ("seeds", "variants", "layers", "snapshots", "equal_time")
        if stages := self.stages(unit):
            settings |= {"layers": self.layers} | ({"steps": stages[0].steps} if unit["model"] == "twin_time" else {})
        else:
            own += ("training",)
        if spec.every > 1:
            settings["text"] = "a quarter"
        return settings | {"recipe": {k: v for k, v in recipe.items() if k not in own} | spec.changes}

    def measure(self, unit: dict) -> records.Measurement:
        """The unit's losses on all held-out text, with its model trained now or, if that was done, loaded."""
        model, log = self.trained(unit)
        teacher, corpus = None if unit == TEACHER else self.teacher, self.profile.corpus
        metrics = self._heldout_losses(model, teacher, corpus.heldout)
        knows = masked_lm.knows(model, self.tokenizer, masked_lm.probes(self.profile, self.tokenizer))
        metrics |= {"cloze_accuracy": float(np.mean(knows))} if knows else {}  # a vocabulary may have none of the words
        one, own = (self.text.heldout(config, corpus.heldout_blocks).cut for config in (corpus.heldout, corpus.train))
        if len(one) != len(own) or not all(map(np.array_equal, one, own)):  # WikiText-103 holds WikiText-2's text out
            other = self._heldout_losses(model, None, corpus.train)
            metrics["masked_lm_loss_on_training_corpus"] = other["masked_lm_loss"]
        metrics |= {"parameters": checkpoints.parameters(model), "size_mb": checkpoints.size_mb(model)}
        if steps := [line for line in log if "tokens" in line]:
            seconds, tokens = (sum(line[name] for line in steps) for name in ("seconds", "tokens"))
            metrics |= {"training_minutes": seconds / 60, "training_tokens": tokens, "tokens_per_s": tokens / seconds}
            parts = max(line.get("batch_parts", 1) for line in steps)
            metrics |= {"batch_parts": parts} if parts > 1 else {}  # memory was short
        details = {"curve": log, "checkpoint": self._hash(unit)}
        if unit["model"] in FOLLOWED and (every := self.recipe.snapshots):
            details["snapshots"] = {str(part): self._hash(unit | {"part": part}) for part in every}
        return records.Measurement(metrics, self.text.sources, self.sources(unit, model), details)

    def seconds(self, unit: dict) -> float:
        """About how long the unit's training takes: its tokens over those that the teacher reads here in a second."""
        share = 1.0 if unit == TEACHER else len(self.layers) / self.teacher_config.num_hidden_layers
        reads = machine.BACKWARD * share + MODELS[unit["model"]].taught  # a token takes as long as so many of these
        blocks = sum(stage.steps * stage.batch_size * stage.accumulation for stage in self.stages(unit))
        rate = machine.tokens_per_s(self.teacher_config, self.device, self.precision)
        return blocks * self.profile.corpus.block_length * reads / rate

    def trained(self, unit: dict) -> tuple[PreTrainedModel, list[dict]]:
        """The unit's model, from its checkpoint or else trained now, and its log; InputError without a head."""
        folder = self.checkpoint(unit)
        if folder is None:
            model, _, source = checkpoints.load_masked_lm(self._given(unit))
            if not source["head"]:
                why = "has no masked-LM head: give it one in teacher_training (head, whole)"
                raise InputError(f"{self._given(unit)} {why}")
            return model.to(self.device), []
        log = folder / "training_log.json"
        again = self.fresh and unit in self.units and folder not in self.made
        if log.exists() and not again:
            return checkpoints.load_masked_lm(str(folder))[0].to(self.device), json.loads(log.read_text("utf-8"))
        with training.unfinished(folder, again) as unfinished:
            model, lines = self._train(unit, unfinished)
            if training.LEADS:
                checkpoints.save(model, self.tokenizer, folder)
                records.write_whole(log, json.dumps(lines))
            training.together()
        self.made.add(folder)
        return model.eval(), lines

    def _train(self, unit: dict, folder: Path) -> tuple[PreTrainedModel, list[dict]]:
        """The model trained through its stages, on the blocks of its text, masked by its seed; and the log of all."""
        spec, model, log = MODELS[unit["model"]], self._start(unit).to(self.device), []
        teacher = None if unit == TEACHER else self.teacher
        recipe = self.recipe.model_copy(update=spec.changes)
        counts = self.text.counts if recipe.mask_smoothing else None
        masking = encoding.Masking(self.tokenizer, recipe.mask_rate, recipe.mask_smoothing, counts, unit["seed"])
        curve = self.text.heldout(self.profile.corpus.heldout, self.profile.corpus.curve_blocks)
        for number, stage in enumerate(self.stages(unit)):
            head_alone = stage is self.profile.teacher_training.head
            model.base_model.requires_grad_(not head_alone)
            sides = teacher if spec.taught else None, recipe, stage, self.text.in_order(masking, stage, spec.every)
            where = curve, teacher, self.tokenizer.pad_token_id, folder / f"stage-{number}", self.precision
            trainer = distillation.DistillationTrainer(model, *sides, *where)
            if unit["model"] in FOLLOWED:
                parts = {round(part * stage.steps): self.checkpoint(unit | {"part": part}) for part in recipe.snapshots}
                trainer.add_callback(training.Keep(parts, self.tokenizer))
            log += [line | {"stage": "head" if head_alone else "whole"} for line in distillation.train(trainer)]
        if unit == TEACHER and self.shape:  # a pair's second text: its vector was drawn, and never trained
            types = model.bert.embeddings.token_type_embeddings.weight.data
            types[1] = types[0]
        return model, log

    def _start(self, unit: dict) -> PreTrainedModel:
        """The unit's model before any training."""
        start = MODELS[unit["model"]].start
        if start == "random weights":
            return distillation.untrained(self.teacher.config, len(self.layers), unit["seed"])
        if start == "teacher's layers":
            return distillation.from_teacher(self.teacher, self.layers)
        if self.shape:
            model, source = checkpoints.new_bert(self.shape, self.tokenizer, seed=0), {"head": False}
        else:
            model, _, source = checkpoints.load_masked_lm(self.profile.teacher)
        if not source["head"]:
            checkpoints.start_head(model, self.text.counts)
        return model

    def stages(self, unit: dict) -> list[Training]:
        """The trainings of the unit's model; none where it is used as it comes."""
        if unit == TEACHER:
            teacher = self.profile.teacher_training
            return [stage for stage in (teacher.head, teacher.whole) if stage]
        spec, stage = MODELS[unit["model"]], self.recipe.training
        if unit["model"] == "twin_time":
            stage = stage.model_copy(update={"steps": round(self.recipe.equal_time * stage.steps)})
        return [stage] if spec.trained and spec.start != "as it comes" else []

    def checkpoint(self, unit: dict) -> Path | None:
        """The folder of the unit's model, there or not; None for one that is used as it comes from the Hub."""
        if not self.stages(unit) and MODELS[unit["model"]].start == "as it comes":
            return None
        if "part" in unit:  # as it was after so much of its training
            return self.checkpoint(_whole(unit)).with_suffix(f".at-{unit['part']}")
        return self.space.checkpoints / f"{records.slug(unit)}-{records.digest(self.settings(unit))}"

    def weights(self, unit: dict) -> str:
        """What the unit's weights are recognised by, from its record if need be; InputError if it is untrained yet."""
        if self.checkpoint(unit) is None:
            return self._revision(unit)
        if found := self._hash(unit):
            return found
        spec, own = MODELS[unit["model"]], self.name if unit["model"] in FOLLOWED else "distillation"
        where = "ablation" if spec.changes or spec.every > 1 else own
        record = self.space.find(where, _whole(unit), self.settings(unit))
        details = record["details"] if record else {}
        kept = details.get("snapshots", {}).get(str(unit["part"])) if "part" in unit else details.get("checkpoint")
        if kept is None:
            raise InputError(f"{records.slug(unit)} is not there yet: run notebook 01, or set `store` to where it is")
        return kept

    def known(self, unit: dict) -> str | None:
        """`weights`; None where the unit's model has not been made, nor left a record. InputError if it is damaged."""
        try:
            return self.weights(unit)
        except checkpoints.DamagedError:
            raise
        except InputError:
            return None

    def start(self, unit: dict) -> str:
        """The folder or Hub id of the unit's model; trained again if it has gone, InputError if another came of it."""
        folder = self.checkpoint(unit)
        if folder is None:
            return self._given(unit)
        if not folder.is_dir():
            known, _ = self.known(unit), self.trained(_whole(unit))
            if known not in (None, self._hash(unit)):  # as with other threads
                says = "is not the model on record: run again to go on with it, or put the old one back"
                raise InputError(f"{records.slug(unit)}, trained again into {folder}, {says}")
        return str(folder)

    def sources(self, unit: dict, model: PreTrainedModel) -> list[dict]:
        """Provenance of a model that was made from the unit's weights, or is the unit's own."""
        given, made = self._given(unit), self._hash(unit)
        found = [] if given == "miniworld" else [checkpoints.fetch(given)[1]]
        if made or not found:
            found.append({"id": records.slug(unit), "revision": made, "weights": "ours"})
        return [source | {"parameters": checkpoints.parameters(model)} for source in found]

    @functools.cached_property
    def teacher(self) -> PreTrainedModel:
        """The teacher, with its masked-LM head."""
        return self.trained(TEACHER)[0]

    @functools.cached_property
    def teacher_config(self) -> PretrainedConfig:
        """The teacher's configuration, of which no weights are needed."""
        if self.shape:
            return checkpoints.new_bert(self.shape, self.tokenizer, seed=0).config
        return checkpoints.load_config(self.profile.teacher)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's, which is the student's too."""
        if self.shape:
            return miniworld.tokenizer(miniworld.write(hub.WORLD))
        return checkpoints.load_tokenizer(self.profile.teacher)

    @functools.cached_property
    def text(self) -> encoding.PretrainingText:
        """What is read in training, and what is held out."""
        return encoding.PretrainingText(self.profile, self.tokenizer)

    def _heldout_losses(self, model: PreTrainedModel, teacher: PreTrainedModel | None, config: str) -> dict[str, float]:
        blocks = self.text.heldout(config, self.profile.corpus.heldout_blocks)
        return distillation.heldout_losses(model, teacher, blocks, self.recipe, self.tokenizer.pad_token_id)

    def _hash(self, unit: dict) -> str | None:
        folder = self.checkpoint(unit)
        return checkpoints.file_hash(folder) if folder and folder.is_dir() else None

    def _given(self, unit: dict) -> str:
        """The checkpoint that the unit's model is, or that it goes back to."""
        return self.profile.released if unit["model"] == "released" else self.profile.teacher

    def _revision(self, unit: dict) -> str | None:
        given = self._given(unit)
        return None if given == "miniworld" else checkpoints.fetch(given)[1]["revision"]


def _whole(unit: dict) -> dict:
    """The unit of a model's whole training, if it is that of a snapshot."""
    return {key: unit[key] for key in ("model", "seed")}


class Ablated(Pretraining):
    """The students that go without a part of the recipe, of the first seed. Their teacher has been trained already."""

    name = "ablation"

    @property
    def units(self) -> list[dict]:
        return [{"model": name, "seed": self.recipe.seeds[0]} for name in self.profile.ablation.variants]
