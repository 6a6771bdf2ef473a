"""How sure a comparison of two models is: bootstrap intervals over seeds and rows, and paired tests."""

from collections.abc import Callable, Mapping

import numpy as np

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
