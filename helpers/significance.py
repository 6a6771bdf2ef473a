"""How sure a comparison of two models is: bootstrap intervals over seeds and rows, and paired tests."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]  # of predictions against references, both [rows]


def resample(
    runs: Mapping[str, np.ndarray], references: np.ndarray, score: Score, replicates: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Bootstrap replicates of each model's median score over seeds, [replicates].

    `runs`: predictions [seeds, rows] by model, over the same rows. In each replicate rows are drawn with replacement,
    the same ones for every model, and then, for each model, seeds.
    """
    rows = len(references)
    drawn = {model: np.empty(replicates) for model in runs}
    for replicate in range(replicates):
        chosen = random.integers(rows, size=rows)
        for model, predictions in runs.items():
            scores = [score(seed[chosen], references[chosen]) for seed in predictions]
            drawn[model][replicate] = np.median(random.choice(scores, len(scores)))
    return drawn


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
    first: np.ndarray, second: np.ndarray, references: np.ndarray, score: Score, rounds: int = 1000, seed: int = 0
) -> float:
    """Two-sided p-value that two models are equally good, by swapping their predictions row by row.

    Source: approximate randomisation (Noreen 1989), which holds for any score. Predictions [seeds, rows]; a row is
    swapped in all seeds at once, since seeds of one row are no independent evidence.
    """
    random = np.random.default_rng(seed)

    def gap(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
        return abs(np.median([score(p, references) for p in one]) - np.median([score(p, references) for p in other]))

    seen, as_large = gap(first, second), 0
    for _ in range(rounds):
        swap = random.random(len(references)) < 0.5
        as_large += gap(np.where(swap, second, first), np.where(swap, first, second)) >= seen - 1e-12
    return (as_large + 1) / (rounds + 1)
