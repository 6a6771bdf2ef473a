"""Models side by side: medians over seeds, what a student keeps of its teacher, and paired tests."""

from collections.abc import Sequence
from functools import cache, lru_cache, partial

import numpy as np
import pandas as pd

from ..measure import metrics, records
from . import tables
from .tables import MODELS, Column

MACRO, WITHOUT_WNLI = "mean of all tasks", "… without WNLI"
KEPT = "of the teacher's (%)"
SURE = 0.05  # p-values below this are called clear
POINTS = "{:+z.1f} points, {} ({})"  # how many, whether that is clear, and by what
Runs = dict[str, np.ndarray]  # what is kept of each row, [seeds, rows], by model


class Comparison:
    """Records of GLUE by task, model and seed. Scores are medians over seeds; macro scores are means over tasks.

    Models that lack a task are left out, and then seeds that any cell lacks: what is compared is a whole grid.
    """

    def __init__(self, found: Sequence[dict], replicates: int = metrics.REPLICATES):
        """`replicates` of the bootstrap, over rows and seeds; a permutation test has twice as many rounds."""
        cells: dict[tuple[str, str], list[dict]] = {}
        for record in sorted(found, key=lambda record: record["unit"]["seed"]):
            cells.setdefault((record["unit"]["task"], record["unit"]["model"]), []).append(record)
        self.tasks = [task for task in metrics.GLUE if any(task == key[0] for key in cells)]
        models = [name for name in MODELS if all((task, name) in cells for task in self.tasks)]
        cells = {key: own for key, own in cells.items() if key[1] in models}
        seeds = [{record["unit"]["seed"] for record in own} for own in cells.values()]
        common = set.intersection(*seeds) if seeds else set()
        self.models = models if common else []
        self.cells = {key: [r for r in own if r["unit"]["seed"] in common] for key, own in cells.items() if common}
        self.records = [record for cell in self.cells.values() for record in cell]
        self.replicates = replicates

    def seeds(self, task: str, model: str) -> np.ndarray:
        """The scores of each seed; for a macro score, of each seed over the tasks."""
        own = [self.cells.get((t, model), []) for t in _tasks(task, self.tasks)]
        return np.mean([[record["metrics"]["score"] for record in cell] for cell in own], axis=0)

    def score(self, task: str, model: str) -> float:
        """The median over seeds; for a macro score, the mean of the tasks' medians, as the paper has it."""
        return float(np.mean([np.median(self.seeds(t, model)) for t in _tasks(task, self.tasks)]))

    def retention(self, task: str, model: str) -> tuple[float, float, float] | None:
        """What the model keeps of the teacher's score, with a 95% interval; None where the teacher's may be zero."""
        teacher, drawn = (self.drawn(task, name) for name in ("teacher", model))
        if metrics.interval(teacher)[0] <= 0.01:
            return None
        return self.score(task, model) / self.score(task, "teacher"), *metrics.interval(drawn / teacher)

    def difference(self, task: str, model: str, other: str = "student") -> tuple[float, float, float]:
        """By how much the model is ahead of another, with a 95% bootstrap interval."""
        between = metrics.interval(self.drawn(task, model) - self.drawn(task, other))
        return self.score(task, model) - self.score(task, other), *between

    def drawn(self, task: str, model: str) -> np.ndarray:
        """Bootstrap replicates of the median score over seeds, [replicates]; of all models over the same rows."""
        each = []
        for name in _tasks(task, self.tasks):
            own = self.cells[name, model]
            lines, truth = tuple(r["details"]["predictions"] for r in own), own[0]["details"]["references"]
            each.append(_drawn(name, model, lines, truth, self.replicates))
        return np.mean(each, axis=0)


@lru_cache(1000)  # the same models are compared in several ways
def _drawn(task: str, model: str, lines: Sequence[str], references: str, replicates: int) -> np.ndarray:
    runs, score = {model: np.stack([records.unpack(line) for line in lines])}, partial(metrics.quick_score, task)
    seed = sorted(metrics.GLUE).index(task)
    return metrics.resample(runs, records.unpack(references), score, replicates, seed)[model]


PUBLISHED_ABLATION = {  # how the paper's Table 4 names what ours go without
    "no_distillation": "without cross-entropy distillation loss",
    "no_masked_lm": "without masked LM loss",
    "no_cosine": "without cosine loss",
    "random": "random student initialisation",
}


def runs_of(found: Sequence[dict], detail: str = "predictions") -> Runs:
    """What the records keep of each row, [seeds, rows] by model, in the order of the tables."""
    by_seed = sorted(found, key=lambda record: record["unit"]["seed"])
    own = {name: [r["details"][detail] for r in by_seed if r["unit"]["model"] == name] for name in MODELS}
    return {name: np.stack([records.unpack(line) for line in lines]) for name, lines in own.items() if lines}


def middles(runs: Runs, truth: np.ndarray, score: metrics.Score) -> dict[str, float]:
    """The median score over seeds in percent, by model."""
    return {name: 100 * float(np.median([score(one, truth, None) for one in own])) for name, own in runs.items()}


def beside(runs: Runs, truth: np.ndarray, score: metrics.Score, header: str, against: Sequence[str]) -> pd.DataFrame:
    """A row a model: its score in percent with a 95% bootstrap interval, also as a share of the teacher's, and how far
    it is ahead of some others.

    `runs` and `score` as for `metrics.resample`; what differences are worth is told as in `ahead`.
    """
    drawn, middle = metrics.resample(runs, truth, score), middles(runs, truth, score)

    def with_interval(name: str) -> tuple[float, ...]:
        return middle[name], *(100 * end for end in metrics.interval(drawn[name]))

    def gap(name: str, other: str) -> str | None:
        return ahead(runs, truth, score, name, other, "{0:+z.1f} ({2})") if other in {*runs} - {name} else None

    columns = [Column(header, with_interval, "{:.1f} ({:.1f} to {:.1f})")]
    columns += [Column(KEPT, lambda name: 100 * middle[name] / middle["teacher"] if middle.get("teacher") else None)]
    columns += [Column(f"ahead of the {MODELS[name]} (points)", partial(gap, other=name)) for name in against]
    return tables.build(runs, [*columns, Column("n", lambda name: len(runs[name]), "{}")], MODELS.get, "model")


@cache  # a table and a sentence ask for the same
def p_value(task: str, own: str, other: str, references: str, texts: str | None = None) -> float:
    """Of the difference in score between two models' packed answers, by swapping them row by row, or text by text."""
    answers, truth = [records.unpack(line)[None] for line in (own, other)], records.unpack(references)
    whose = None if texts is None else records.unpack(texts)
    return metrics.permutation_test(*answers, truth, partial(metrics.quick_score, task), texts=whose)


def published(model: str, task: str, tasks: Sequence[str]) -> float:
    """The paper's Table 1, in percent; a macro score is the mean over `tasks` alone, so that it compares with ours."""
    table = tables.published("sanh2019", "1").set_index(["model", "dataset"]).value.astype(float)
    return float(np.mean([table[model, f"glue/{t}"] for t in _tasks(task, tasks)]))


def _tasks(task: str, tasks: Sequence[str]) -> list[str]:
    """Those that a score is the mean of: the task itself or, for a macro score, of these tasks."""
    if task in (MACRO, WITHOUT_WNLI):
        return [t for t in tasks if task == MACRO or t != "wnli"]
    return [task]


def between(runs: Runs, truth: np.ndarray, score: metrics.Score, one: str, other: str, guess=None) -> tuple[float, ...]:
    """By how many points one median score is ahead of another, with a 95% interval over rows and seeds.

    With what a guess scores: the share in percent that one keeps of the other's lead over it.
    """
    drawn = metrics.resample({name: runs[name] for name in (one, other)}, truth, score)
    own, rival = (np.append(np.median([score(run, truth) for run in runs[n]]), drawn[n]) for n in (one, other))
    gaps = 100 * (own - rival if guess is None else (own - guess) / (rival - guess))  # the first is of all rows
    return float(gaps[0]), *metrics.interval(gaps[1:])


def ahead(runs: Runs, truth: np.ndarray, score: metrics.Score, one: str, other: str, form: str = POINTS) -> str:
    """By how many points one model is ahead of another, and whether that is clear.

    Where both were trained once, by a paired permutation test, which knows of no other training; else by a 95%
    bootstrap interval over rows and seeds. `form` takes the points, whether it is clear, and p or interval.
    """
    both = {name: runs[name] for name in (one, other)}
    first, second = middles(both, truth, score).values()
    if max(map(len, both.values())) == 1:
        p = metrics.permutation_test(*both.values(), truth, score)
        how, clear, worth = "over rows alone", p < SURE, f"p {metrics.written(p)}"
    else:
        _, low, high = between(runs, truth, score, one, other)
        how = "over rows and seeds" + " of one of the two" * (min(map(len, both.values())) == 1)
        clear, worth = low > 0 or high < 0, f"{low:+z.1f} to {high:+z.1f}"
    return form.format(first - second, f"{'clear' if clear else 'not clear'} {how}", worth)
