"""What a quality is and how sure it is: the nine tasks of GLUE in one table, the metrics of GLUE and SQuAD, intervals
by the bootstrap, and paired tests.

The arithmetic is scikit-learn's and scipy's, SQuAD's normalisation that of its official script (evaluate-v1.1.py,
Rajpurkar et al. 2016).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from .. import InputError


class Task(NamedTuple):
    """A task of GLUE: the columns with its one or two texts, its metrics (their mean is its score), its classes (None:
    it asks for a number), and the official rows of each split, so that a part is never taken for the whole."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    classes: int | None
    rows: dict[str, int]

    @property
    def dev_splits(self) -> list[str]:
        """The splits that it is measured on; the first one counts."""
        return [split for split in self.rows if split != "train"]


PAIR, ACCURACY, BOTH = ("sentence1", "sentence2"), ("accuracy",), ("accuracy", "f1")
MNLI = {"train": 392_702, "validation_matched": 9_815, "validation_mismatched": 9_832}
GLUE = {
    "cola": Task(("sentence",), ("matthews_correlation",), 2, {"train": 8_551, "validation": 1_043}),
    "sst2": Task(("sentence",), ACCURACY, 2, {"train": 67_349, "validation": 872}),
    "mrpc": Task(PAIR, BOTH, 2, {"train": 3_668, "validation": 408}),
    "qqp": Task(("question1", "question2"), BOTH, 2, {"train": 363_846, "validation": 40_430}),
    "stsb": Task(PAIR, ("pearson", "spearman"), None, {"train": 5_749, "validation": 1_500}),
    "mnli": Task(("premise", "hypothesis"), ACCURACY, 3, MNLI),
    "qnli": Task(("question", "sentence"), ACCURACY, 2, {"train": 104_743, "validation": 5_463}),
    "rte": Task(PAIR, ACCURACY, 2, {"train": 2_490, "validation": 277}),
    "wnli": Task(PAIR, ACCURACY, 2, {"train": 635, "validation": 71}),
}


def check_labels(task: str, labels: np.ndarray, classes: int | None) -> None:
    """See that all labels are classes of the task (None: it asks for a number); InputError if not, or if unknown."""
    wrong = np.flatnonzero(~np.isin(labels, range(classes))) if classes else ()
    if len(wrong):
        value = labels[wrong[0]]
        hint = "; GLUE's test labels are hidden, so measure on validation" if value == -1 else ""
        raise InputError(f"{task}: label {value:g} in row {wrong[0]}, expected 0 to {classes - 1}{hint}")


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


def task_score(task: str, metrics: Mapping[str, float]) -> float:
    """What the task enters the macro score with: the mean of its metrics (mnli: matched)."""
    return float(np.mean([metrics[name] for name in GLUE[task].metrics]))


def quick_score(task: str, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """`task_score` of predictions [..., rows] against references that broadcast with them: [...].

    From counts, for the many resamples of a bootstrap: scikit-learn takes one at a time and checks its input
    thoroughly, which takes longer than the arithmetic; a test holds both equal.
    """
    if GLUE[task].classes is None:
        ranks = [stats.rankdata(values, axis=-1) for values in (predictions, references)]
        return (_quick_correlation(predictions, references) + _quick_correlation(*ranks)) / 2
    right = np.mean(predictions == references, axis=-1)
    if GLUE[task].metrics == ACCURACY:
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


def by_guessing(task: str, truth: np.ndarray) -> float:
    """The score on a GLUE task of always giving the answer that is right most often; of a correlation, none."""
    if task in ("cola", "stsb"):
        return 0.0
    guess = np.full(len(truth), np.bincount(truth.astype(int)).argmax(), dtype=float)
    return float(quick_score(task, guess, truth))


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


Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of predictions [..., rows] against references: [...]
AT_ONCE = 2_000_000  # predictions that are scored together, to bound memory


def resample(
    runs: Mapping[str, np.ndarray], references: np.ndarray, score: Score, replicates: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Bootstrap replicates of each model's median score over seeds, [replicates].

    `runs`: predictions [seeds, rows] by model, over the same rows. In each replicate rows are drawn with replacement,
    the same ones for every model, and then, for each model, seeds.
    """
    rows = len(references)
    chosen = np.empty((replicates, rows), dtype=int)
    seeds = {model: np.empty((replicates, len(own)), dtype=int) for model, own in runs.items()}
    for replicate in range(replicates):
        chosen[replicate] = random.integers(rows, size=rows)
        for drawn in seeds.values():
            drawn[replicate] = random.integers(drawn.shape[1], size=drawn.shape[1])
    truth, medians = references[chosen], {}
    for model, own in runs.items():
        scores = np.stack([score(predictions[chosen], truth) for predictions in own], axis=1)
        medians[model] = np.median(np.take_along_axis(scores, seeds[model], axis=1), axis=1)
    return medians


def interval(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The middle `share` of bootstrap replicates."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def mean_interval(sums: np.ndarray, counts: np.ndarray, replicates: int = 2000) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean over tokens, texts being drawn: each text's sum and count, both [texts].

    Tokens of one text are no independent evidence, so texts are drawn, with all that they have.
    """
    drawn = np.random.default_rng(0).integers(len(sums), size=(replicates, len(sums)))
    return interval(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))


def permutation_test(
    first: np.ndarray,
    second: np.ndarray,
    references: np.ndarray,
    score: Score,
    rounds: int = 1000,
    seed: int = 0,
    texts: np.ndarray | None = None,
) -> float:
    """Two-sided p-value that two models are equally good, by swapping their predictions row by row.

    Source: approximate randomisation (Noreen 1989), which holds for any score. Predictions [seeds, rows]; a row is
    swapped in all seeds at once, since seeds of one row are no independent evidence; and so are rows that are tokens of
    one text: `texts` [rows] numbers the text of each from 0 on.
    """
    random = np.random.default_rng(seed)
    texts = np.arange(len(references)) if texts is None else texts.astype(int)

    def gap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return abs(np.median(score(one, references), axis=-1) - np.median(score(other, references), axis=-1))

    seen, as_large, done = gap(first, second), 0, 0
    while done < rounds:
        count = min(rounds - done, max(1, AT_ONCE // first.size))
        swap = (random.random((count, 1, texts.max() + 1)) < 0.5)[..., texts]
        as_large += np.sum(gap(np.where(swap, second, first), np.where(swap, first, second)) >= seen - 1e-12)
        done += count
    return float((as_large + 1) / (rounds + 1))


def holm(p_values: dict[str, float], level: float = 0.05) -> set[str]:
    """Which of several differences are clear at a level when so many were looked at (Holm 1979)."""
    found: set[str] = set()
    for number, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > level / (len(p_values) - number):
            break
        found.add(name)
    return found
