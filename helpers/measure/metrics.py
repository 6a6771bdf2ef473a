"""What a quality is and how sure it is: the nine tasks of GLUE in one table, the metrics of GLUE and SQuAD, intervals
by the bootstrap, and paired tests.

SQuAD's normalisation is that of its official script (evaluate-v1.1.py, Rajpurkar et al. 2016).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

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


def check_labels(what: str, labels: Sequence[float], classes: int | None) -> None:
    """See that labels are classes, 0 to `classes` - 1, or (None or 1) numbers; InputError with the first that isn't."""
    labels, number = np.asarray(labels, dtype=float), classes in (None, 1)
    wrong = np.flatnonzero(~(np.isfinite(labels) if number else np.isin(labels, range(classes))))
    if len(wrong):
        value, expected = labels[wrong[0]], "a number" if number else f"0 to {classes - 1}"
        hint = "; GLUE's test labels are hidden, so measure on validation" if value == -1 else ""
        raise InputError(f"{what}: label {value:g} in row {wrong[0]}, expected {expected}{hint}")


Weights = np.ndarray | None
# Each metric is of answers and references [rows], each row counting as often as `weights` [..., rows] say (None: once),
# so that all resamples of a bootstrap are one call: [...]. Tests hold them equal to scikit-learn's and scipy's.


def share_right(right: np.ndarray, _: np.ndarray, weights: Weights = None) -> np.ndarray:
    """The mean of answers that already say, row by row, how right each is (0 to 1)."""
    return right.mean() if weights is None else weights @ right / weights.sum(axis=-1)


def share_equal(answers: np.ndarray, references: np.ndarray, weights: Weights = None) -> np.ndarray:
    """Accuracy: the share of answers that are right."""
    return share_right(answers == references, references, weights)


def f1(answers: np.ndarray, references: np.ndarray, weights: Weights = None) -> np.ndarray:
    """F1 of class 1; 0 where neither answers nor references have any."""
    _, tp, positive, true = _counts(answers, references, weights)
    return _share(2 * tp, positive + true)


def matthews_correlation(answers: np.ndarray, references: np.ndarray, weights: Weights = None) -> np.ndarray:
    """Matthews' correlation; 0 where answers or references are all alike, since nothing can be told from them."""
    n, tp, positive, true = _counts(answers, references, weights)
    return _share(n * tp - positive * true, np.sqrt(positive * (n - positive) * true * (n - true)))


def pearson(
    answers: np.ndarray, references: np.ndarray, weights: Weights = None, plain: Callable = stats.pearsonr
) -> np.ndarray:
    """Pearson's correlation; 0 where answers or references are all alike, as with Matthews'.

    `plain`: the same to scipy's last digit, which takes one sample at a time.
    """
    if weights is None:
        alike = np.ptp(answers) == 0 or np.ptp(references) == 0  # which scipy would leave undefined
        return np.float64(0 if alike else plain(answers, references).statistic)

    def mean(*factors: np.ndarray) -> np.ndarray:
        return np.einsum(",".join(["...r"] * (1 + len(factors))) + "->...", weights, *factors) / weights.sum(axis=-1)

    one, other = (values - values.mean(axis=-1, keepdims=True) for values in (answers, references))  # to lose no digits
    middles = mean(one), mean(other)
    spreads = [mean(v, v) - middle**2 for v, middle in zip((one, other), middles, strict=True)]
    told = [own > 1e-14 * (mean(v, v) + 1e-300) for v, own in zip((one, other), spreads, strict=True)]  # not rounding
    together = mean(one, other) - middles[0] * middles[1]
    return _share(together, np.sqrt(np.where(told[0] & told[1], spreads[0] * spreads[1], 0)))


def spearman(answers: np.ndarray, references: np.ndarray, weights: Weights = None) -> np.ndarray:
    """Pearson's correlation of the ranks, ties sharing their mean rank; 0 where answers or references are all alike."""
    ranks = [values if weights is None else _ranks(values, weights) for values in (answers, references)]
    return pearson(*ranks, weights, plain=stats.spearmanr)


FORMULAS = {"accuracy": share_equal} | {own.__name__: own for own in (f1, matthews_correlation, pearson, spearman)}


def _counts(answers: np.ndarray, references: np.ndarray, weights: Weights) -> list[np.ndarray]:
    """All rows, and those in which class 1 is answered and true, answered, and true."""
    weights = np.ones(len(references)) if weights is None else weights
    said, true = answers == 1, references == 1
    return [weights @ rows for rows in (np.ones(len(true)), said & true, said, true)]


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rank of each row among all, rows counting as often as `weights` say; ties share their mean rank."""
    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    alike = np.add.reduceat(weights[..., order], np.searchsorted(inverse[order], range(inverse.max() + 1)), axis=-1)
    return (np.cumsum(alike, axis=-1) - (alike - 1) / 2)[..., inverse]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)


def quick_score(task: str, answers: np.ndarray, references: np.ndarray, weights: Weights = None) -> np.ndarray:
    """What a task enters the macro score with, the mean of its metrics, of answers as these take them."""
    return np.mean([FORMULAS[name](answers, references, weights) for name in GLUE[task].metrics], axis=0)


def by_guessing(task: str, truth: np.ndarray) -> float:
    """The score on a GLUE task of always giving the answer that is right most often; of a correlation, none."""
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


REPLICATES, PERMUTATIONS = 5_000, 10_000
AT_ONCE = 200_000  # answers that are scored together: what stays in the processor's cache
# Of answers [rows] and references [rows], each row counting as often as weights [many, rows] say: [many].
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def resample(
    runs: Mapping[str, np.ndarray], references: np.ndarray, score: Score, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Bootstrap replicates of each model's median score over seeds, [replicates].

    `runs`: predictions [seeds, rows] by model, over the same rows. In each replicate rows are drawn with replacement,
    the same ones for every model, and then, for each model and from a stream of its own, seeds: no model's replicates
    depend on what else is compared.
    """
    rows, medians = len(references), {model: [] for model in runs}
    drawing = np.random.default_rng(seed)
    choosing = {name: np.random.default_rng([seed, *name.encode()]) for name in runs}
    for count in _portions(replicates, rows):
        drawn = drawing.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(float)
        for model, own in runs.items():
            scores = np.stack([score(answers, references, weights) for answers in own], axis=1)
            seeds = choosing[model].integers(len(own), size=scores.shape)
            medians[model].append(np.median(np.take_along_axis(scores, seeds, axis=1), axis=1))
    return {model: np.concatenate(parts) for model, parts in medians.items()}


def _portions(times: int, rows: int) -> list[int]:
    """How many times to take at once, portion by portion."""
    most = max(1, AT_ONCE // rows)
    return [min(most, times - start) for start in range(0, times, most)]


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
    rounds: int = PERMUTATIONS,
    seed: int = 0,
    texts: np.ndarray | None = None,
) -> float:
    """Two-sided p-value that two models are equally good, by swapping their predictions row by row.

    Source: approximate randomisation (Noreen 1989), which holds for any score. Predictions [seeds, rows]; a row is
    swapped in all seeds at once, since seeds of one row are no independent evidence; and so are rows that are tokens of
    one text: `texts` [rows] numbers the text of each from 0 on.
    """
    random, rows = np.random.default_rng(seed), len(references)
    texts = np.arange(rows) if texts is None else texts.astype(int)
    both, twice = np.concatenate([first, second], axis=1), np.concatenate([references, references])

    def gap(swap: np.ndarray) -> np.ndarray:  # float [many, rows]
        sides = np.hstack([1 - swap, swap]), np.hstack([swap, 1 - swap])
        medians = [np.median([score(answers, twice, side) for answers in both], axis=0) for side in sides]
        return abs(medians[0] - medians[1])

    seen, as_large = gap(np.zeros((1, rows))), 0
    for count in _portions(rounds, 2 * rows):
        swap = (random.random((count, texts.max() + 1)) < 0.5)[:, texts].astype(float)
        as_large += np.sum(gap(swap) >= seen - 1e-12)
    return float((as_large + 1) / (rounds + 1))


def written(p: float, rounds: int = PERMUTATIONS) -> str:
    """A p-value as it is printed: no smaller than so many rounds can tell."""
    return f"< {1 / rounds:.2g}" if p < 1.5 / (rounds + 1) else f"{p:.3f}" if p >= 0.001 else f"{p:.4f}"


def holm(p_values: dict[str, float], level: float = 0.05) -> set[str]:
    """Which of several differences are clear at a level when so many were looked at (Holm 1979)."""
    found: set[str] = set()
    for number, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > level / (len(p_values) - number):
            break
        found.add(name)
    return found
