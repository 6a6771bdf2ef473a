"""Timing, done one way everywhere: warmed up, interleaved, raw times kept, compared by the median of paired ratios."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T, R = TypeVar("T"), TypeVar("R")


class Ratio(NamedTuple):
    """How many times as fast: the median of paired ratios, and its 95% bootstrap interval."""

    median: float
    low: float
    high: float


def interleaved(runs: Mapping[str, Callable[[T], R]], rounds: Iterable[T]) -> dict[str, list[R]]:
    """What each run returns in each round; every round calls all of them, in turned order, so a drift hits all alike.

    Warm up before. What a run starts on a GPU it must wait for itself.
    """
    found: dict[str, list[R]] = {name: [] for name in runs}
    for number, given in enumerate(rounds):
        for name in list(runs) if number % 2 == 0 else list(runs)[::-1]:
            found[name].append(runs[name](given))
    return found


def ratio(slow: Sequence[float], fast: Sequence[float], replicates: int = 2000) -> Ratio:
    """How many times as fast `fast` is as `slow`; seconds, paired by round."""
    ratios = np.asarray(slow) / np.asarray(fast)
    drawn = np.random.default_rng(0).choice(ratios, (replicates, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))
