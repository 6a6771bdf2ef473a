"""The metrics of GLUE and SQuAD as `evaluate.Metric`s that need no network, and GLUE's macro score.

`evaluate.load` fetches a script from the Hub at run time; these classes are the same thing at home. The arithmetic is
scikit-learn's and scipy's, SQuAD's normalisation that of its official script (evaluate-v1.1.py, Rajpurkar et al. 2016).
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from . import InputError

GLUE = {  # each task's metrics; its score is their mean
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
UNKNOWN = -1  # the label of GLUE's test rows, which only its server knows


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of predictions that are right."""
    return float(accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1; 0 where neither predictions nor references have any."""
    return float(f1_score(references, predictions, zero_division=0))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation; 0 where predictions or references are all alike, since nothing can be told from them."""
    alike = np.ptp(predictions) == 0 or np.ptp(references) == 0  # which scikit-learn would warn of
    return 0.0 if alike else float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation; 0 where predictions are all alike, as with Matthews', whom scipy would leave undefined."""
    return _correlation(stats.pearsonr, predictions, references)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; 0 where predictions are all alike."""
    return _correlation(stats.spearmanr, predictions, references)


def _correlation(measure, predictions: np.ndarray, references: np.ndarray) -> float:
    if np.ptp(references) == 0:
        raise InputError(f"all {len(references)} references are {references[0]}: no correlation can be told from them")
    return 0.0 if np.ptp(predictions) == 0 else float(measure(predictions, references).statistic)


FORMULAS = {formula.__name__: formula for formula in (accuracy, f1, matthews_correlation, pearson, spearman)}


def quick_score(task: str, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """`task_score` of predictions [..., rows] against references that broadcast with them: [...].

    From counts, for the many resamples of a bootstrap: scikit-learn takes one at a time and checks its input
    thoroughly, which takes longer than the arithmetic; a test holds both equal.
    """
    if task == "stsb":
        ranks = [stats.rankdata(values, axis=-1) for values in (predictions, references)]
        return (_quick_correlation(predictions, references) + _quick_correlation(*ranks)) / 2
    right = np.mean(predictions == references, axis=-1)
    if GLUE[task] == ("accuracy",):
        return right
    tp = np.sum((predictions == 1) & (references == 1), axis=-1, dtype=float)
    positive, true = (np.sum(values == 1, axis=-1, dtype=float) for values in (predictions, references))
    if task == "cola":  # Matthews' correlation
        n = predictions.shape[-1]
        return _share(n * tp - positive * true, np.sqrt(positive * (n - positive) * true * (n - true)))
    return (right + _share(2 * tp, positive + true)) / 2


def _quick_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    told = (np.ptp(one, axis=-1) > 0) & (np.ptp(other, axis=-1) > 0)  # rounding would hide what is all alike
    one, other = (values - values.mean(axis=-1, keepdims=True) for values in (one, other))
    spread = np.sqrt(np.sum(one**2, axis=-1) * np.sum(other**2, axis=-1))
    return _share(np.sum(one * other, axis=-1), np.where(told, spread, 0))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)


class GlueMetric(evaluate.Metric):
    """The metrics of one GLUE task: `GlueMetric("mrpc").compute(predictions=…, references=…)`.

    Predictions are class numbers, for stsb scores. mnli's matched and mismatched rows are two data sets, measured one
    at a time.

    Raises:
        InputError: an unknown task; nothing to compare, or unequal numbers of it; references that are unknown (-1) or
            no class of the task; predictions that are not finite.
    """

    def __init__(self, task: str, classes: int = 2):
        if task not in GLUE:
            raise InputError(f"unknown task {task!r}: expected one of {', '.join(GLUE)}")
        self.classes = None if task == "stsb" else 3 if task == "mnli" else classes
        super().__init__(config_name=task, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=f"{', '.join(GLUE[self.config_name])} of GLUE's {self.config_name}",
            citation="Wang et al. 2018, GLUE",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def compute(self, *, predictions: Sequence, references: Sequence) -> dict[str, float]:
        """Each metric by name. The input is checked here, since `evaluate` would say less plainly what is wrong."""
        predictions, references = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        task = self.config_name
        if len(predictions) != len(references) or not len(references):
            raise InputError(f"{task}: {len(predictions)} predictions for {len(references)} references")
        if not np.isfinite(predictions).all():
            wrong = np.flatnonzero(~np.isfinite(predictions))
            raise InputError(f"{task}: prediction {wrong[0]} is {predictions[wrong[0]]} ({len(wrong)} such): diverged?")
        if self.classes:
            check_labels(task, references, self.classes)
        return super().compute(predictions=predictions, references=references)

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        both = np.asarray(predictions), np.asarray(references)
        return {name: FORMULAS[name](*both) for name in GLUE[self.config_name]}


def check_labels(task: str, labels: np.ndarray, classes: int) -> None:
    """See that all labels are classes of the task.

    Raises:
        InputError: one is not, or is unknown as in GLUE's test sets.
    """
    wrong = np.flatnonzero(~np.isin(labels, range(classes)))
    if len(wrong):
        value = labels[wrong[0]]
        hint = "; GLUE's test labels are hidden, so measure on validation" if value == UNKNOWN else ""
        raise InputError(f"{task}: label {value:g} in row {wrong[0]}, expected 0 to {classes - 1}{hint}")


def task_score(task: str, metrics: Mapping[str, float]) -> float:
    """What the task enters the macro score with: the mean of its metrics (mnli: matched)."""
    return float(np.mean([metrics[name] for name in GLUE[task]]))


class SquadMetric(evaluate.Metric):
    """Exact match and F1 of SQuAD 1.1, in percent: `SquadMetric().compute(predictions=…, references=…)`.

    Predictions are texts, references lists of texts, of which the one that suits best counts.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="exact match and F1 of SQuAD 1.1",
            citation="Rajpurkar et al. 2016, SQuAD",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Both metrics by name.

        Raises:
            InputError: nothing to compare, unequal numbers of it, or a question without any reference.
        """
        if len(predictions) != len(references) or not len(references):
            raise InputError(f"squad: {len(predictions)} predictions for {len(references)} references")
        for place, gold in enumerate(references):
            if not len(gold):
                raise InputError(f"squad: question {place} has no reference answer; SQuAD 1.1 has one for each")
        return super().compute(predictions=list(predictions), references=[list(gold) for gold in references])

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        matches, overlaps = zip(*map(answer_scores, predictions, references), strict=True)
        return {"exact_match": 100 * float(np.mean(matches)), "f1": 100 * float(np.mean(overlaps))}


def answer_scores(prediction: str, gold: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (0 to 1) of one answer against the gold answer that suits it best."""
    matches = [float(normalise(prediction) == normalise(text)) for text in gold]
    return max(matches), max(token_f1(prediction, text) for text in gold)


def normalise(answer: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces, as in SQuAD's official script."""
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(prediction: str, gold: str) -> float:
    """F1 over the words of two answers, after normalisation; 0 where they share none."""
    own, other = normalise(prediction).split(), normalise(gold).split()
    shared = sum((Counter(own) & Counter(other)).values())
    return 2 * shared / (len(own) + len(other)) if shared else 0.0


def by_guessing(task: str, truth: np.ndarray) -> float:
    """The score on a GLUE task of always giving the answer that is right most often; of a correlation, none."""
    if task in ("cola", "stsb"):
        return 0.0
    guess = np.full(len(truth), np.bincount(truth.astype(int)).argmax(), dtype=float)
    return float(quick_score(task, guess, truth))
