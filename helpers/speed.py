"""Timing, memory and size, measured one way everywhere.

Times are warmed up and interleaved, raw times are kept, and two things are compared by the median of paired ratios.
Memory and cold start come from a process of their own.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from . import ROOT, InputError

T, R = TypeVar("T"), TypeVar("R")
Timer = Callable[[Callable[[], object]], float]  # the seconds that a call takes


class Rules(NamedTuple):
    """How long a thing is timed: at least so many runs and seconds, but no longer than `most_seconds` once it has
    `FEWEST` runs."""

    least_runs: int
    least_seconds: float
    most_seconds: float = 20.0


FULL, QUICK = Rules(30, 2.0), Rules(10, 0.1)
FEWEST = 5


def rules(profile: str) -> Rules:
    """The rules of a profile, by its name."""
    return QUICK if profile == "mini" else FULL


class Ratio(NamedTuple):
    """How many times as fast, or how long: a median, and its 95% bootstrap interval."""

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


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds that one call takes."""
    start = clock()
    call()
    return clock() - start


def timer(device: str) -> Timer:
    """How calls are timed on a device: by the clock or, on a GPU, by its own events, to the end of all that it does."""
    if device == "cpu":
        return timed
    import torch

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
    rules: Rules,
    warm_up: int = 2,
    timer: Timer = timed,
    yardsticks: Collection[str] = (),
) -> dict[str, list[float]]:
    """The seconds of every call of each run, interleaved, until each has enough of them by the rules.

    A run that has used up its time is left out of further rounds, so the first rounds are those of all. `yardsticks`
    name the runs that are timed as often as the others need: one that is short would need more rounds than they do.

    Raises:
        InputError: there is nothing to time.
    """
    if not runs or rules.least_runs < 1:
        raise InputError(f"{len(runs)} things to time, at least {rules.least_runs} runs each: expected one or more")
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
    """What a record says of raw times in seconds: mean and percentiles in ms, the 99th from 200 runs on, and n."""
    times = 1e3 * np.asarray(taken)
    found = {"latency_mean_ms": times.mean(), "latency_std_ms": times.std()}
    for share in (50, 90, 95, 99) if len(times) >= 200 else (50, 90, 95):
        found[f"latency_p{share}_ms"] = np.percentile(times, share)
    return {name: float(value) for name, value in found.items()} | {"runs": float(len(times))}


def middle(values: Sequence[float], replicates: int = 2000) -> Ratio:
    """The median of values that were taken one after the other, and its 95% bootstrap interval."""
    drawn, rounds = np.asarray(values), len(values)
    # Neighbours are alike (the machine drifts), so stretches of rounds are drawn, about ten of them.
    stretch = -(-rounds // 10)
    starts = np.random.default_rng(0).integers(rounds - stretch + 1, size=(replicates, -(-rounds // stretch)))
    again = drawn[(starts[..., None] + np.arange(stretch)).reshape(replicates, -1)[:, :rounds]]
    low, high = np.quantile(np.median(again, axis=1), [0.025, 0.975])
    return Ratio(float(np.median(drawn)), float(low), float(high))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """How many times as fast `fast` is as `slow`; seconds, paired by round (rounds that only one has are left out)."""
    rounds = min(len(slow), len(fast))
    return middle(np.asarray(slow[:rounds]) / np.asarray(fast[:rounds]))


def beside(
    variant: Callable[[], object], reference: Callable[[], object], rules: Rules, timer: Timer = timed
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What a record says of a variant's latency, timed in turn with a reference, and the raw seconds of both."""
    taken = seconds({"variant": variant, "reference": reference}, rules, timer=timer)
    found = latencies(taken["variant"])
    times = zip(("", "_low", "_high"), ratio(taken["reference"], taken["variant"]), strict=True)
    found |= {f"latency_times_as_fast{end}": value for end, value in times}
    return found, {name: [round(second, 7) for second in own] for name, own in taken.items()}


def size_mb(folder: Path) -> float:
    """What the weights in a folder take on disk, in MB of 10^6 bytes; configuration and tokenizer don't count."""
    weights = [path for ending in ("safetensors", "onnx", "ort", "bin") for path in folder.glob(f"*.{ending}")]
    if not weights:
        raise InputError(f"{folder}: no weights there (*.safetensors, *.onnx, *.ort, *.bin)")
    return sum(path.stat().st_size for path in set(weights)) / 1e6


def alone(folder: Path, text: str, threads: int, device: str = "cpu", timeout: float = 300.0) -> dict:
    """Load a model in a process of its own and ask it once: how long that takes from the process' start, and memory.

    Returns:
        imports_s, loading_s, first_s and cold_start_s (all three, and the interpreter's own start; the file is likely
        in the system's cache, and a disk would add its own time); peak_memory_mb, the peak of the resident size once
        every weight has been read, less what was held before the model was loaded (weights are mapped from their file,
        and rows of embeddings that nobody asked for come last: first_peak_memory_mb is the peak of the first answer
        alone); of what stays after the answer, anonymous_mb and file_backed_mb; footprint_mb, the weights' own size in
        memory, 0 where the runtime doesn't tell; logits, for a check; and, on a GPU, peak_gpu_memory_mb, the most that
        was allocated there.

    Raises:
        InputError: the process failed, with its last line.
    """
    command = [sys.executable, "-m", "helpers.probe", str(folder), text, str(threads), device, str(time.time())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise InputError(f"{folder.name}: no answer within {timeout:.0f} s in a process of its own") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{folder.name}: its own process ended with {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])
