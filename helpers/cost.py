"""About how long each notebook of a profile takes here: what its models learn and read, over rates measured here.

To plan by: of the right size, and no more. Downloads come on top.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import AutoModel

from . import compression, data, deployed, machine, pace, pruned, records, runners, speed
from .pretraining import TEACHER, Pretraining
from .profiles import Profile, Recipe
from .variants import Variants

TOKENS = {  # a row of the training split in the mean, in BERT's word pieces with special tokens
    "cola": 11,
    "sst2": 13,
    "mrpc": 53,
    "qqp": 31,
    "stsb": 28,
    "mnli": 39,
    "qnli": 50,
    "rte": 70,
    "wnli": 37,
    "imdb": 320,
    "squad": 177,
}
OWNERS = {"distillation": "01", "ablation": "01", "glue": "02", "imdb": "03", "squad": "04", "perplexity": "05"}
OWNERS |= {"quantization": "06", "pruning": "07", "edge": "09", "arm64": "09"}
BACKWARD = 3  # learning from a token costs about three times as much as reading it
TEXT = 2_000  # blocks of a text that a profile doesn't cap
PROCESS = 6.0  # seconds that a process of its own takes, most of it imports
FULL_SIZE = 15.0  # seconds that a variant of DistilBERT's own shape takes to be made and timed
ROW = 128  # tokens of the row whose time is measured


class Work(NamedTuple):
    """Tokens that the teacher could read on the profile's device in the same time, and plain seconds."""

    tokens: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.seconds + other.seconds)


class Rates(NamedTuple):
    """How fast the teacher's shape is here, with random weights."""

    tokens_per_s: float  # read in training's precision, on the profile's device
    row: float  # seconds that one row takes one thread of the processor
    row_there: float  # and the profile's device


class Cost:
    """What the notebooks of a profile take, from nothing: no record, no checkpoint."""

    def __init__(self, profile: Profile, space: records.Workspace):
        """
        Raises:
            InputError: the teacher's configuration cannot be had.
        """
        self.profile, self.space = profile, space
        self.pretraining = Pretraining(profile, space)
        self.config = self.pretraining.teacher_config
        self.small = len(self.pretraining.layers) / self.config.num_hidden_layers
        self.rates = self._rates()

    def minutes(self) -> dict[str, float]:
        """Of each notebook from 01 on, by its number."""
        work = {"01": self._pretraining(), "02": self._glue(), "03": self._imdb(), "04": self._squad()}
        work |= {"05": self._perplexity(), "06": self._quantization(), "07": self._pruning()}
        work |= {"08": self._pace(), "09": self._edge()}
        return {number: (own.tokens / self.rates.tokens_per_s + own.seconds) / 60 for number, own in work.items()}

    def _rates(self) -> Rates:
        on, precision = self.pretraining.device, self.pretraining.precision
        model = AutoModel.from_config(self.config, dtype=torch.float32).to(on)
        cast = torch.autocast(on.type, machine.DTYPES[precision], enabled=precision != "fp32")
        batch = torch.full((8 if on.type == "cpu" else 64, ROW), 5, device=on)

        def learn() -> None:
            with cast:
                loss = model(input_ids=batch).last_hidden_state.float().pow(2).mean()
            loss.backward()

        def best(call, timer) -> float:
            return min(timer(call) for _ in range(3))  # the first one warms up

        learning = best(learn, speed.timer(on.type))
        with torch.inference_mode(), runners.threads_kept():
            there = best(lambda: model(input_ids=batch[:1]), speed.timer(on.type))
            torch.set_num_threads(1)
            model.to("cpu")
            row = batch[:1].cpu()
            alone = best(lambda: model(input_ids=row), speed.timed)
        return Rates(BACKWARD * batch.numel() / learning, alone, there)

    def _share(self, model: str) -> float:
        """Of the teacher's work, what a model takes."""
        return 1.0 if model == "teacher" else self.small

    def _pretraining(self) -> Work:
        recipe, block, found = self.profile.distillation, self.profile.corpus.block_length, 0.0
        width, vocabulary = self.config.hidden_size, self.config.vocab_size
        head = 2 * width * (width + vocabulary) / (pace.flops(self.config, 1, block) / block)
        units = [*self.pretraining.units, *self.pretraining.ablations]
        for unit in units:
            alone = unit == TEACHER or unit["model"] == "twin"
            scored = 1.0 if recipe.positions == "all" and not alone else recipe.mask_rate
            read = 0.0 if alone else 1 + head * scored
            for stage in self.pretraining.stages(unit):
                tokens = stage.steps * stage.batch_size * stage.accumulation * block
                found += tokens * (BACKWARD * (self._share(unit["model"]) + head * scored) + read)
        ablation = self.profile.ablation
        return Work(found) + self._tasks(ablation.tasks, ablation.variants, len(ablation.seeds))

    def _tuning(self, recipe: Recipe, name: str, rows: dict[str, int], models: Sequence[str], seeds: int = 1) -> Work:
        """Models fine-tuned on a data set with so many rows in each split, and measured on what isn't for training."""
        train, dev = min(rows["train"], recipe.train_rows or rows["train"]), self._dev_rows(rows)
        reads = BACKWARD * train * recipe.epochs + min(dev, recipe.dev_rows or dev)
        shares = sum(map(self._share, models)) + sum(model == "student_d" for model in models)
        return Work(reads * min(TOKENS[name], recipe.length) * shares * seeds)

    def _glue(self) -> Work:
        own, padding = self.profile.glue, self.profile.glue.padding
        found = self._tasks(own.tasks, own.models, len(own.seeds))
        each = BACKWARD * padding.rows * padding.epochs * self.small * len(padding.seeds)
        return found + Work(each * (2 * padding.length + TOKENS["sst2"]))  # the padded one in full precision

    def _tasks(self, tasks: Sequence[str], models: Sequence[str], seeds: int) -> Work:
        found, recipes = Work(), self.profile.glue.recipes
        for task in tasks:
            rows = data.OFFICIAL_ROWS["nyu-mll/glue", task]
            found += self._tuning(getattr(recipes, task), task, rows, models, seeds)
        return found

    def _imdb(self) -> Work:
        own, rows = self.profile.imdb, data.OFFICIAL_ROWS["stanfordnlp/imdb", "plain_text"]
        found = self._tuning(own.recipe, "imdb", rows, own.models, len(own.seeds))
        for length in own.lengths:
            found += self._tuning(dataclasses.replace(own.recipe, length=length), "imdb", rows, ["student"])
        return found

    def _squad(self) -> Work:
        own, rows = self.profile.squad, data.OFFICIAL_ROWS["rajpurkar/squad", "plain_text"]
        return self._tuning(own.recipe, "squad", rows, own.models, len(own.seeds))

    def _perplexity(self) -> Work:
        own, block = self.profile.perplexity, self.profile.corpus.block_length
        learnt = 2 * len(own.seeds) * own.epochs * (own.train_blocks or 5 * TEXT)
        read = own.draws * (own.blocks or TEXT) + own.pseudo_blocks * block
        stages, texts = 3 + 2 * len(own.seeds), 3  # as it is, in 8 bits, fine-tuned on two texts, and then in 8 bits
        return Work((BACKWARD * learnt + stages * texts * read) * block * sum(map(self._share, own.models)))

    def _quantization(self) -> Work:
        losses = compression.Losses(self.profile, self.space)
        timed = self._variants(compression.Compression(self.profile, self.space))
        return timed + self._losses(losses) + self._full_size(len(losses.variants))

    def _pruning(self) -> Work:
        own, experiment, found = self.profile.pruning, pruned.Pruned(self.profile, self.space), Work()
        again = {name for name in experiment.variants if pruned.way(name)[2:] == (True, False)}  # recovered, not int8
        for task in own.tasks:
            recipe = dataclasses.replace(getattr(self.profile.glue.recipes, task), epochs=own.recovery.epochs)
            rows = {"train": data.OFFICIAL_ROWS["nyu-mll/glue", task]["train"]}
            units = [u for u in experiment.units if u["task"] == task and u["variant"] in again and "device" not in u]
            found += self._tuning(recipe, task, rows, [unit["model"] for unit in units])
        losses = pruned.Losses(self.profile, self.space)
        return found + self._variants(experiment) + self._losses(losses) + self._full_size(10)

    def _variants(self, experiment: Variants) -> Work:
        """Each variant beside fp32, for one row and a batch, on the dev set row by row, and in its own processes."""
        own, rules, seconds = self.profile.quantization, speed.rules(self.profile.name), 0.0
        for unit in experiment.units:
            if experiment.why_not(unit["variant"], unit.get("device", "cpu")):
                continue
            one = self._share(unit["model"]) * (self.rates.row_there if "device" in unit else self.rates.row)
            row = one * (1.0 if "device" in unit else TOKENS[unit["task"]] / ROW)  # of the task; a GPU's is all start
            seconds += 2 * _timed(rules, one * own.length / ROW) + 2 * _timed(rules, row * own.batch_size)
            seconds += row * self._dev_rows(data.OFFICIAL_ROWS["nyu-mll/glue", unit["task"]])
            seconds += PROCESS * own.repeats * experiment.isolated(unit)
        return Work(seconds=seconds)

    def _losses(self, experiment: compression.Losses) -> Work:
        """Of the pretrained student in each variant, beside its teacher, on the processor."""
        row = self.rates.row * self.profile.corpus.block_length / ROW
        return Work(seconds=experiment.count * row * (1 + len(experiment.variants) * self.small))

    def _pace(self) -> Work:
        rules, seconds = speed.rules(self.profile.name), 0.0
        experiment = pace.Pace(self.profile, self.space)
        for unit in experiment.ready:
            large, small = experiment.configurations(unit["pair"])
            at = pace.flops(large, 1, ROW) / pace.flops(self.config, 1, ROW)
            both = at * self.rates.row * (1 + small.num_hidden_layers / large.num_hidden_layers)
            if "text" in unit:
                rows = self._dev_rows(data.OFFICIAL_ROWS["nyu-mll/glue", "stsb"])
                seconds += both * TOKENS["stsb"] / ROW * min(rows, self.profile.speed.rows or rows)
            elif "alone" in unit:
                seconds += 2 * PROCESS * unit["alone"]
            elif "depth" in unit:
                seconds += len(experiment.depths(unit["pair"])) * _timed(rules, both * unit["depth"] / ROW)
            else:
                seconds += 2 * _timed(rules, both / 2 * unit["batch"] * unit["length"] / ROW)
        return Work(seconds=seconds)

    def _edge(self) -> Work:
        own, rules, seconds = self.profile.edge, speed.rules(self.profile.name), 0.0
        experiment, row = deployed.Deployed(self.profile, self.space), self.rates.row * self.small
        for unit in experiment.units:
            seconds += 2 * _timed(rules, row * own.length / ROW) + PROCESS * own.repeats
            if experiment.judged(unit):
                rows = self._dev_rows(data.OFFICIAL_ROWS["nyu-mll/glue", "sst2"])
                seconds += row * (own.blocks if unit["head"] == "masked_lm" else rows * TOKENS["sst2"] / ROW)
        return Work(seconds=seconds)

    def _full_size(self, variants: int) -> Work:
        return Work(seconds=FULL_SIZE * variants * self.profile.quantization.full_size)

    def _dev_rows(self, rows: dict[str, int]) -> int:
        dev = sum(count for split, count in rows.items() if split != "train")
        return min(dev, 200) if self.profile.hub == "miniworld" else dev


def notebook_of(record: dict) -> str:
    """The number of the notebook that a record was made in."""
    experiment, unit = record["experiment"], record["unit"]
    if experiment == "speed":
        return {"padding": "02", "stages": "05", "scoring": "05"}.get(unit.get("comparison"), "08")
    if experiment == "fullsize":
        return "06" if unit["variant"] in compression.LABELS else "07"
    return OWNERS[experiment]


def _timed(rules: speed.Rules, once: float) -> float:
    """How long the rules have a thing timed that takes so long once."""
    wanted = max(rules.least_seconds, rules.least_runs * once)
    return max(min(wanted, rules.most_seconds), speed.FEWEST * once)
