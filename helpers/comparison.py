"""Fine-tuned models side by side on GLUE: medians over seeds, what a student retains of its teacher, paired tests."""

import functools
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from . import metrics, significance, tables
from .downstream import unpack

MACRO, WITHOUT_WNLI = "mean of all tasks", "… without WNLI"
KEPT = "of the teacher's (%)"
METRIC = {  # as table headers say them
    "matthews_correlation": "Matthews",
    "accuracy": "accuracy",
    "f1": "F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
}


class Comparison:
    """Records of GLUE by task, model and seed. Scores are medians over seeds; macro scores are means over tasks.

    Models that lack a task are left out, and then seeds that any cell lacks: what is compared is a whole grid.
    """

    def __init__(self, found: Sequence[dict], replicates: int = 300):
        """`replicates` of the bootstrap, over rows and seeds."""
        by_seed = sorted(found, key=lambda record: record["unit"]["seed"])
        self.tasks = [task for task in metrics.GLUE if any(task == record["unit"]["task"] for record in found)]
        seeds = {}
        for unit in (record["unit"] for record in by_seed):
            seeds.setdefault((unit["task"], unit["model"]), set()).add(unit["seed"])
        models = [name for name in tables.MODELS if all((task, name) in seeds for task in self.tasks)]
        cells = [seeds[task, name] for task in self.tasks for name in models]
        common = set.intersection(*cells) if cells else set()
        self.models = models if common else []
        self.cells = {
            (task, name): [r for r in by_seed if (r["unit"]["task"], r["unit"]["model"]) == (task, name)]
            for task in self.tasks
            for name in self.models
        }
        self.cells = {key: [r for r in own if r["unit"]["seed"] in common] for key, own in self.cells.items()}
        self.replicates = replicates

    def seeds(self, task: str, model: str) -> np.ndarray:
        """The scores of each seed; for a macro score, of each seed over the tasks."""
        if task in (MACRO, WITHOUT_WNLI):
            return np.mean([self.seeds(t, model) for t in self._of(task)], axis=0)
        return np.array([record["metrics"]["score"] for record in self.cells.get((task, model), [])])

    def score(self, task: str, model: str) -> float:
        """The median over seeds; for a macro score, the mean of the tasks' medians, as the paper has it."""
        if task in (MACRO, WITHOUT_WNLI):
            return float(np.mean([self.score(t, model) for t in self._of(task)]))
        return float(np.median(self.seeds(task, model)))

    def retention(self, task: str, model: str) -> tuple[float, float, float] | None:
        """What the model keeps of the teacher's score, with a 95% interval; None where the teacher's may be zero."""
        drawn = {name: np.mean([self.drawn(t)[name] for t in self._of(task)], axis=0) for name in ("teacher", model)}
        if significance.interval(drawn["teacher"])[0] <= 0.01:
            return None
        low, high = significance.interval(drawn[model] / drawn["teacher"])
        return self.score(task, model) / self.score(task, "teacher"), low, high

    def difference(self, task: str, model: str, other: str = "student") -> tuple[float, float, float]:
        """By how much the model is ahead of another, with a 95% bootstrap interval."""
        drawn = {name: np.mean([self.drawn(t)[name] for t in self._of(task)], axis=0) for name in (model, other)}
        low, high = significance.interval(drawn[model] - drawn[other])
        return self.score(task, model) - self.score(task, other), low, high

    def gap(self, task: str, one: str, other: str) -> tuple[float, float]:
        """By how much `one` is ahead of `other`, and the p-value that they are equally good (permutation test)."""
        runs, truth = self._runs(task)
        p = significance.permutation_test(
            runs[one], runs[other], truth, partial(metrics.quick_score, task), self.replicates
        )
        return self.score(task, one) - self.score(task, other), p

    def _of(self, task: str) -> list[str]:
        if task in (MACRO, WITHOUT_WNLI):
            return [t for t in self.tasks if task == MACRO or t != "wnli"]
        return [task]

    def _runs(self, task: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        runs = {
            model: np.stack([unpack(record["details"]["predictions"]) for record in self.cells[task, model]])
            for model in self.models
        }
        return runs, unpack(self.cells[task, self.models[0]][0]["details"]["references"])

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def drawn(self, task: str) -> dict[str, np.ndarray]:
        """Bootstrap replicates of each model's median score over seeds, on the same rows: [replicates]."""
        runs, truth = self._runs(task)
        random = np.random.default_rng(sorted(metrics.GLUE).index(task))
        return significance.resample(runs, truth, partial(metrics.quick_score, task), self.replicates, random)

    def scores_table(self) -> pd.DataFrame:
        """Scores in percent, a row a task: the published ones, then each model's median with the seeds' range."""
        rows = {}
        for task in [*self.tasks, MACRO, WITHOUT_WNLI]:
            paper = {name: published(name, task, self.tasks) for name in ("BERT-base", "DistilBERT")}
            row = {f"{name}, published": f"{score:.1f}" for name, score in paper.items()}
            best = max((self.score(task, name) for name in self.models if name != "teacher"), default=None)
            for name in self.models:
                text = range_cell(self.score(task, name), self.seeds(task, name))
                row[tables.MODELS[name]] = (
                    f"**{text}**" if name != "teacher" and self.score(task, name) == best else text
                )
            rows[f"{task} ({', '.join(METRIC[m] for m in metrics.GLUE[task])})" if task in metrics.GLUE else task] = row
        return pd.DataFrame(rows).T.rename_axis("task")

    def retention_table(self) -> pd.DataFrame:
        """Student / teacher in percent with its interval, a row a task, beside the published ratio."""
        rows = {}
        for task in [*self.tasks, MACRO, WITHOUT_WNLI]:
            ratio = published("DistilBERT", task, self.tasks) / published("BERT-base", task, self.tasks)
            rows[task] = {"published": f"{100 * ratio:.1f}"}
            for name in self.models[1:]:
                kept = self.retention(task, name)
                text = tables.NOTHING if kept is None else "{:.1f} ({:.0f} to {:.0f})".format(*(100 * v for v in kept))
                rows[task][tables.MODELS[name]] = text
        return pd.DataFrame(rows).T.rename_axis("task")

    def gaps_table(self, one: str = "student", others: Sequence[str] = ("teacher", "twin")) -> pd.DataFrame:
        """By how many points `one` is ahead of each of the others, with the p-value of a paired test."""
        rows = {}
        for task in self.tasks:
            rows[task] = {}
            for other in others:
                ahead, p = self.gap(task, one, other)
                rows[task][f"{tables.MODELS[one]} − {tables.MODELS[other]} (points)"] = f"{100 * ahead:+z.1f}"
                rows[task][f"p, against the {tables.MODELS[other]}"] = f"{p:.3f}"
        return pd.DataFrame(rows).T.rename_axis("task")


PUBLISHED_ABLATION = {  # how the paper's Table 4 names what ours go without
    "no_distillation": "without cross-entropy distillation loss",
    "no_masked_lm": "without masked LM loss",
    "no_cosine": "without cosine loss",
    "random": "random student initialisation",
}


def ablation_table(pretrained: Sequence[dict], graded: Comparison) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each student goes without, and what that changes against the whole recipe.

    `pretrained`: records of the students' held-out losses; `graded`: their scores on tasks.

    Returns:
        The table to show, and the changes of the mean score as numbers: points, low, high, published.
    """
    paper = tables.published("sanh2019", "4").set_index("model").value.astype(float)
    first = min(record["unit"]["seed"] for record in pretrained)
    losses = {record["unit"]["model"]: record["metrics"] for record in pretrained if record["unit"]["seed"] == first}
    rows, changes = {}, {}
    for name in [name for name in graded.models if name in losses]:
        columns = {metric: tables.COLUMNS[metric] for metric in ("masked_lm_loss", "kl_to_teacher", "cosine_loss")}
        row = {c.header: f"{losses[name][metric]:.{c.decimals}f}" for metric, c in columns.items()}
        row |= {task: f"{100 * graded.score(task, name):.1f}" for task in graded.tasks}
        row["mean"] = f"{100 * graded.score(MACRO, name):.1f}"
        if name != "student":
            points, low, high = (100 * value for value in graded.difference(MACRO, name))
            printed = paper.get(PUBLISHED_ABLATION.get(name))
            changes[tables.MODELS[name]] = {"points": points, "low": low, "high": high, "published": printed}
            row["change"] = f"{points:+z.1f} ({low:+z.1f} to {high:+z.1f})"
            row["published"] = tables.NOTHING if printed is None else f"{printed:+z.2f}"
        rows[tables.MODELS[name]] = row
    table = pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("model")
    return table, pd.DataFrame(changes).T.astype(float)


def runs_of(found: Sequence[dict], detail: str = "predictions") -> dict[str, np.ndarray]:
    """What the records keep of each row, [seeds, rows] by model, in the order of the tables."""
    names = [name for name in tables.MODELS if any(record["unit"]["model"] == name for record in found)]
    by_seed = sorted(found, key=lambda record: record["unit"]["seed"])
    own = {name: [r["details"][detail] for r in by_seed if r["unit"]["model"] == name] for name in names}
    return {name: np.stack([unpack(line) for line in lines]) for name, lines in own.items()}


def beside(
    runs: dict[str, np.ndarray],
    truth: np.ndarray,
    score: significance.Score,
    header: str,
    against: Sequence[str],
    replicates: int = 300,
) -> pd.DataFrame:
    """A row a model: its score in percent with a 95% bootstrap interval, also as a share of the teacher's, and how far
    it is ahead of some others.

    `runs` and `score` as for `significance.resample`; p-values are of a paired permutation test.
    """
    drawn = significance.resample(runs, truth, score, replicates, np.random.default_rng(0))
    middle = {name: 100 * float(np.median(score(seeds, truth))) for name, seeds in runs.items()}
    rows = {}
    for name, seeds in runs.items():
        low, high = (100 * value for value in significance.interval(drawn[name]))
        row = {header: f"{middle[name]:.1f} ({low:.1f} to {high:.1f})", KEPT: tables.NOTHING}
        if middle.get("teacher"):
            row[KEPT] = f"{100 * middle[name] / middle['teacher']:.1f}"
        for other in against:
            text = tables.NOTHING
            if other in runs and other != name:
                p = significance.permutation_test(seeds, runs[other], truth, score, replicates)
                text = f"{middle[name] - middle[other]:+z.1f} (p = {p:.3f})"
            row[f"ahead of the {tables.MODELS[other]} (points)"] = text
        rows[tables.MODELS[name]] = row | {"n": len(seeds)}
    return pd.DataFrame(rows).T.rename_axis("model")


@functools.cache  # a table and a sentence ask for the same
def p_value(task: str, own: str, other: str, references: str, texts: str | None = None) -> float:
    """Of the difference in score between two models' packed answers, by swapping them row by row, or text by text."""
    answers, truth = [unpack(line)[None] for line in (own, other)], unpack(references)
    whose = None if texts is None else unpack(texts)
    return significance.permutation_test(*answers, truth, partial(metrics.quick_score, task), rounds=2000, texts=whose)


def share_equal(guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Accuracy, over the last axis."""
    return (guesses == truth).mean(axis=-1)


def share_right(right: np.ndarray, _: np.ndarray) -> np.ndarray:
    """The score of runs that already say, row by row, how right each answer is (0 to 1): the mean of the last axis."""
    return right.mean(axis=-1)


def range_cell(middle: float, seeds: np.ndarray) -> str:
    """A median in percent with the range of its seeds: "81.2 (80.1 to 82.0)"."""
    text = f"{100 * middle:.1f}"
    return text if len(seeds) < 2 else f"{text} ({100 * seeds.min():.1f} to {100 * seeds.max():.1f})"


@functools.cache
def _table_1() -> dict[tuple[str, str], float]:
    paper = tables.published("sanh2019", "1")
    return {(row.model, row.dataset.removeprefix("glue/")): float(row.value) for row in paper.itertuples()}


def published(model: str, task: str, tasks: Sequence[str]) -> float:
    """The paper's Table 1, in percent; a macro score is the mean over `tasks` alone, so that it compares with ours."""
    printed = _table_1()
    if task in (MACRO, WITHOUT_WNLI):
        return float(np.mean([printed[model, t] for t in tasks if task == MACRO or t != "wnli"]))
    return printed[model, task]
