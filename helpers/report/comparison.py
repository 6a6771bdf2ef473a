"""Fine-tuned models side by side: medians over seeds, what a student keeps of its teacher, paired tests."""

import functools
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from ..measure import metrics
from ..measure.records import unpack
from . import tables
from .tables import MODELS, Column

MACRO, WITHOUT_WNLI = "mean of all tasks", "… without WNLI"
KEPT = "of the teacher's (%)"
SURE = 0.05  # p-values below this are called clear
Runs = dict[str, np.ndarray]  # what is kept of each row, [seeds, rows], by model


class Comparison:
    """Records of GLUE by task, model and seed. Scores are medians over seeds; macro scores are means over tasks.

    Models that lack a task are left out, and then seeds that any cell lacks: what is compared is a whole grid.
    """

    def __init__(self, found: Sequence[dict], replicates: int = 300):
        """`replicates` of the bootstrap, over rows and seeds."""
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
        self.replicates, self._drawn = replicates, {}

    def seeds(self, task: str, model: str) -> np.ndarray:
        """The scores of each seed; for a macro score, of each seed over the tasks."""
        own = [self.cells.get((t, model), []) for t in _tasks(task, self.tasks)]
        return np.mean([[record["metrics"]["score"] for record in cell] for cell in own], axis=0)

    def score(self, task: str, model: str) -> float:
        """The median over seeds; for a macro score, the mean of the tasks' medians, as the paper has it."""
        return float(np.mean([np.median(self.seeds(t, model)) for t in _tasks(task, self.tasks)]))

    def retention(self, task: str, model: str) -> tuple[float, float, float] | None:
        """What the model keeps of the teacher's score, with a 95% interval; None where the teacher's may be zero."""
        teacher, drawn = (self._means(task, name) for name in ("teacher", model))
        if metrics.interval(teacher)[0] <= 0.01:
            return None
        return self.score(task, model) / self.score(task, "teacher"), *metrics.interval(drawn / teacher)

    def difference(self, task: str, model: str, other: str = "student") -> tuple[float, float, float]:
        """By how much the model is ahead of another, with a 95% bootstrap interval."""
        between = metrics.interval(self._means(task, model) - self._means(task, other))
        return self.score(task, model) - self.score(task, other), *between

    def gap(self, task: str, one: str, other: str) -> tuple[float, float]:
        """By how much `one` is ahead of `other`, and the p-value that they are equally good (permutation test)."""
        runs, truth = self._runs(task)
        p = metrics.permutation_test(runs[one], runs[other], truth, partial(metrics.quick_score, task), self.replicates)
        return self.score(task, one) - self.score(task, other), p

    def drawn(self, task: str) -> dict[str, np.ndarray]:
        """Bootstrap replicates of each model's median score over seeds, on the same rows: [replicates]."""
        if task not in self._drawn:
            random = np.random.default_rng(sorted(metrics.GLUE).index(task))
            score = partial(metrics.quick_score, task)
            self._drawn[task] = metrics.resample(*self._runs(task), score, self.replicates, random)
        return self._drawn[task]

    def _means(self, task: str, model: str) -> np.ndarray:
        return np.mean([self.drawn(t)[model] for t in _tasks(task, self.tasks)], axis=0)

    def _runs(self, task: str) -> tuple[Runs, np.ndarray]:
        found = [record for name in self.models for record in self.cells[task, name]]
        return runs_of(found), unpack(found[0]["details"]["references"])

    def gaps_table(self, one: str, others: Sequence[str]) -> pd.DataFrame:
        """By how many points `one` is ahead of each of the others, with the p-value of a paired test."""
        columns = []
        for other in others:
            gaps = {task: self.gap(task, one, other) for task in self.tasks}
            points, p = ({task: gap[i] for task, gap in gaps.items()} for i in (0, 1))
            columns.append(Column(f"{MODELS[one]} − {MODELS[other]} (points)", points.get, "{:+z.1f}", 100))
            columns.append(Column(f"p, against the {MODELS[other]}", p.get, "{:.3f}"))
        return tables.build(self.tasks, columns, str, "task")


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
    return {name: np.stack([unpack(line) for line in lines]) for name, lines in own.items() if lines}


def middles(runs: Runs, truth: np.ndarray, score: metrics.Score) -> dict[str, float]:
    """The median score over seeds in percent, by model."""
    return {name: 100 * float(np.median(score(seeds, truth))) for name, seeds in runs.items()}


def beside(
    runs: Runs, truth: np.ndarray, score: metrics.Score, header: str, against: Sequence[str], replicates: int = 300
) -> pd.DataFrame:
    """A row a model: its score in percent with a 95% bootstrap interval, also as a share of the teacher's, and how far
    it is ahead of some others.

    `runs` and `score` as for `metrics.resample`; p-values are of a paired permutation test.
    """
    drawn = metrics.resample(runs, truth, score, replicates, np.random.default_rng(0))
    middle = middles(runs, truth, score)

    def with_interval(name: str) -> tuple[float, ...]:
        return middle[name], *(100 * end for end in metrics.interval(drawn[name]))

    def gap(name: str, other: str) -> tuple[float, float] | None:
        if other not in runs or other == name:
            return None
        p = metrics.permutation_test(runs[name], runs[other], truth, score, replicates)
        return middle[name] - middle[other], p

    columns = [Column(header, with_interval, "{:.1f} ({:.1f} to {:.1f})")]
    columns += [Column(KEPT, lambda name: 100 * middle[name] / middle["teacher"] if middle.get("teacher") else None)]
    for other in against:
        name = f"ahead of the {MODELS[other]} (points)"
        columns.append(Column(name, partial(gap, other=other), "{:+z.1f} (p = {:.3f})"))
    columns += [Column("n", lambda name: len(runs[name]), "{}")]
    return tables.build(runs, columns, MODELS.get, "model")


@functools.cache  # a table and a sentence ask for the same
def p_value(task: str, own: str, other: str, references: str, texts: str | None = None) -> float:
    """Of the difference in score between two models' packed answers, by swapping them row by row, or text by text."""
    answers, truth = [unpack(line)[None] for line in (own, other)], unpack(references)
    whose = None if texts is None else unpack(texts)
    return metrics.permutation_test(*answers, truth, partial(metrics.quick_score, task), rounds=2000, texts=whose)


def share_equal(guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Accuracy, over the last axis."""
    return (guesses == truth).mean(axis=-1)


def share_right(right: np.ndarray, _: np.ndarray) -> np.ndarray:
    """The score of runs that already say, row by row, how right each answer is (0 to 1): the mean of the last axis."""
    return right.mean(axis=-1)


def published(model: str, task: str, tasks: Sequence[str]) -> float:
    """The paper's Table 1, in percent; a macro score is the mean over `tasks` alone, so that it compares with ours."""
    return float(np.mean([_table_1()[model, t] for t in _tasks(task, tasks)]))


def published_share(task: str, tasks: Sequence[str]) -> float:
    """What DistilBERT keeps of BERT-base's score in the paper's Table 1."""
    return published("DistilBERT", task, tasks) / published("BERT-base", task, tasks)


@functools.cache
def _table_1() -> dict[tuple[str, str], float]:
    paper = tables.published("sanh2019", "1")
    return {(row.model, row.dataset.removeprefix("glue/")): float(row.value) for row in paper.itertuples()}


def _tasks(task: str, tasks: Sequence[str]) -> list[str]:
    """Those that a score is the mean of: the task itself or, for a macro score, of these tasks."""
    if task in (MACRO, WITHOUT_WNLI):
        return [t for t in tasks if task == MACRO or t != "wnli"]
    return [task]


def ahead(runs: Runs, truth: np.ndarray, score: metrics.Score, one: str, other: str) -> str:
    """By how many points one model is ahead of another, and whether a paired test finds that clear."""
    p = metrics.permutation_test(runs[one], runs[other], truth, score, rounds=300)
    middle, sure = middles(runs, truth, score), "clear" if p < SURE else "not clear"
    return f"{middle[one] - middle[other]:+z.1f} points, {sure} in a paired test (p = {p:.3f})"
