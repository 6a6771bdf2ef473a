"""Latency and size, measured one way everywhere.

Calls are warmed up and interleaved, raw times are kept, and two things are compared by the median of paired ratios.
"""

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from .. import InputError
from ..profiles import Timing

SIDES = ("large", "small")  # of a pair that is compared
FEWEST = 5  # runs, however long they take
T, R = TypeVar("T"), TypeVar("R")
Timer = Callable[[Callable[[], object]], float]  # the seconds that a call takes


class Interval(NamedTuple):
    """A number, as the median of paired ratios of time, with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def named(self, metric: str) -> dict[str, float]:
        """As a record's metrics: `metric`, `metric`_low and `metric`_high."""
        return {f"{metric}{end}": value for end, value in zip(("", "_low", "_high"), self, strict=True)}


def interleaved(runs: Mapping[str, Callable[[T], R]], rounds: Iterable[T]) -> dict[str, list[R]]:
    """Results of each run in each round; every round calls all of them, in turned order, so a drift hits all alike.

    Warm up before. What a run starts on a GPU it must wait for itself.
    """
    found: dict[str, list[R]] = {name: [] for name in runs}
    for number, given in enumerate(rounds):
        for name in list(runs) if number % 2 == 0 else list(runs)[::-1]:
            found[name].append(runs[name](given))
    return found


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes."""
    start = clock()
    call()
    return clock() - start


def timer(device: str) -> Timer:
    """Timer of calls on a device: the clock or, on a GPU, its own events, to the end of all that it does."""
    if device == "cpu":
        return timed
    import torch  # who only reads what was timed goes without

    def timed_on_gpu(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return timed_on_gpu


def seconds(
    runs: Mapping[str, Callable[[], object]],
    rules: Timing,
    warm_up: int = 2,
    timer: Timer = timed,
    yardsticks: Collection[str] = (),
) -> dict[str, list[float]]:
    """Seconds of every call of each run, interleaved, until each has enough of them by the rules.

    A run that has used up its time, and has been called `FEWEST` times, is left out of further rounds, so the first
    rounds are those of all. `yardsticks` name the runs that are timed as often as the others need: one that is short
    would need more rounds than they do. InputError if there is nothing to time.
    """
    if not runs:
        raise InputError("nothing to time: expected one thing or more")
    for call in [*runs.values()] * warm_up:
        call()
    taken: dict[str, list[float]] = {name: [] for name in runs}

    def spent(own: list[float]) -> bool:
        return len(own) >= FEWEST and sum(own) >= rules.most_seconds

    def enough(own: list[float]) -> bool:
        return spent(own) or (len(own) >= rules.least_runs and sum(own) >= rules.least_seconds)

    number, collecting = 0, gc.isenabled()
    gc.collect()
    gc.disable()  # a collection can take longer than a run
    try:
        while not all(enough(own) for name, own in taken.items() if name not in yardsticks):
            names = [name for name, own in taken.items() if not spent(own)]
            for name in names if number % 2 == 0 else names[::-1]:
                taken[name].append(timer(runs[name]))
            number += 1
    finally:
        if collecting:
            gc.enable()
    return taken


def latencies(taken: Sequence[float]) -> dict[str, float]:
    """Latency as a record has it, of raw times in seconds: mean and percentiles in ms, the 99th from 200 runs on, n."""
    times = 1e3 * np.asarray(taken)
    found = {"latency_mean_ms": times.mean(), "latency_std_ms": times.std()}
    for share in (50, 90, 95, 99) if len(times) >= 200 else (50, 90, 95):
        found[f"latency_p{share}_ms"] = np.percentile(times, share)
    return {name: float(value) for name, value in found.items()} | {"runs": float(len(times))}


def middle(values: Sequence[float], replicates: int = 2000) -> Interval:
    """Median of values that were taken one after the other, and its 95% bootstrap interval."""
    drawn, rounds = np.asarray(values), len(values)
    # Neighbours are alike (the machine drifts), so stretches of rounds are drawn, about ten of them.
    stretch = -(-rounds // 10)
    starts = np.random.default_rng(0).integers(rounds - stretch + 1, size=(replicates, -(-rounds // stretch)))
    again = drawn[(starts[..., None] + np.arange(stretch)).reshape(replicates, -1)[:, :rounds]]
    low, high = np.quantile(np.median(again, axis=1), [0.025, 0.975])
    return Interval(float(np.median(drawn)), float(low), float(high))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Interval:
    """Ratio of seconds, paired by round: how many times as fast `fast` is. Rounds that only one has are left out."""
    rounds = min(len(slow), len(fast))
    return middle(np.asarray(slow[:rounds]) / np.asarray(fast[:rounds]))


def beside(
    variant: Callable[[], object], reference: Callable[[], object], rules: Timing, timer: Timer = timed
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Latency of a variant as a record has it, timed in turn with a reference, and the raw seconds of both."""
    taken = seconds({"variant": variant, "reference": reference}, rules, timer=timer)
    found = latencies(taken["variant"]) | ratio(taken["reference"], taken["variant"]).named("latency_times_as_fast")
    return found, rounded(taken)


def rounded(taken: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Raw seconds as a record keeps them, to a tenth of a microsecond."""
    return {name: [round(second, 7) for second in own] for name, own in taken.items()}


def size_mb(folder: Path) -> float:
    """Size of the weights in a folder on disk, in MB of 10^6 bytes; configuration and tokenizer don't count."""
    weights = [path for ending in ("safetensors", "onnx", "ort", "bin") for path in folder.glob(f"*.{ending}")]
    if not weights:
        raise InputError(f"{folder}: no weights there (*.safetensors, *.onnx, *.ort, *.bin)")
    return sum(path.stat().st_size for path in weights) / 1e6
