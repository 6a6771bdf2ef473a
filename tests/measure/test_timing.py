"""The rules of timing, with a clock of our own; what is said of times; and the size of weights."""

from functools import partial

import numpy as np
import pytest

from helpers import InputError, profiles
from helpers.measure import timing
from helpers.profiles import Timing

QUICK = profiles.load("mini").timing


class Clock:
    """A clock that moves only when something is run: each run takes as long as it is told to."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, takes: float):
        def call():
            self.now += takes
            self.called.append(name)

        return call


@pytest.mark.parametrize(
    ("takes", "rules", "runs"),
    [
        (0.001, Timing(least_runs=30, least_seconds=2.0), 2000),  # as many as fill two seconds
        (0.5, Timing(least_runs=30, least_seconds=2.0), 30),
        (1.0, Timing(least_runs=30, least_seconds=2.0), 20),  # stopped at twenty seconds
        (9.0, Timing(least_runs=30, least_seconds=2.0), 5),  # never under five
        (0.001, QUICK, 100),
        (0.5, QUICK, 10),
    ],
)
def test_a_thing_is_timed_as_long_as_the_rules_say(takes, rules, runs):
    clock = Clock()
    taken = timing.seconds({"it": clock.run("it", takes)}, rules, timer=partial(timing.timed, clock=clock))
    assert len(taken["it"]) == pytest.approx(runs, abs=1) and len(clock.called) == len(taken["it"]) + 2
    assert taken["it"] == pytest.approx([takes] * len(taken["it"]))


def test_runs_are_interleaved_and_turned_and_a_slow_one_stops_alone():
    clock = Clock()
    runs = {"slow": clock.run("slow", 4.0), "fast": clock.run("fast", 0.2)}
    rules, timer = Timing(least_runs=10, least_seconds=1.0), partial(timing.timed, clock=clock)
    taken = timing.seconds(runs, rules, warm_up=1, timer=timer)
    assert clock.called[:10] == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert len(taken["slow"]) == 5 and len(taken["fast"]) == 10, "the fast one goes on after the slow one is done"
    assert timing.ratio(taken["slow"], taken["fast"]) == pytest.approx((20, 20, 20))


def test_a_yardstick_is_timed_as_often_as_the_others_need():
    clock = Clock()
    runs = {name: clock.run(name, takes) for name, takes in (("large", 0.25), ("product", 0.001), ("small", 0.125))}
    rules, timer = Timing(least_runs=10, least_seconds=2.0), partial(timing.timed, clock=clock)
    taken = timing.seconds(runs, rules, warm_up=0, timer=timer, yardsticks=["product"])
    assert {name: len(own) for name, own in taken.items()} == {"large": 16, "product": 16, "small": 16}
    assert clock.called[:6] == ["large", "product", "small", "small", "product", "large"], "between the two, either way"
    assert len(timing.seconds(runs, rules, warm_up=0, timer=timer)["large"]) > 16, "else it would ask for more rounds"


def test_a_drift_hits_both_alike():
    """The machine gets three times slower in the course of the runs; one thing is twice as fast all the time."""
    random, slow, fast = np.random.default_rng(0), [], []
    for drift in np.linspace(1, 3, 60):
        slow.append(2 * drift * random.lognormal(0, 0.02))
        fast.append(drift * random.lognormal(0, 0.02))
    found = timing.ratio(slow, fast)
    assert found.low < 2 < found.high and found.high - found.low < 0.05


def test_rounds_that_are_alike_make_the_interval_wider():
    """A hundred rounds in two halves are hardly more evidence than a few."""
    halves = np.r_[np.full(50, 1.8), np.full(50, 2.2)] + np.random.default_rng(0).normal(0, 0.01, 100)
    mixed = np.random.default_rng(1).permutation(halves)
    assert timing.ratio(halves, np.ones(100)).low < 1.85 and timing.ratio(halves, np.ones(100)).high > 2.15
    few = timing.ratio([2.0, 2.1, 1.9], [1.0, 1.0, 1.0])
    assert 1.9 <= few.low <= few.value == 2.0 <= few.high <= 2.1
    assert timing.ratio(mixed, np.ones(100)).value == pytest.approx(np.median(mixed))


def test_percentiles_are_in_milliseconds_and_the_last_needs_many_runs():
    times = np.arange(1, 101) / 1000
    few, many = timing.latencies(times), timing.latencies(np.tile(times, 2))
    assert few["latency_p50_ms"] == pytest.approx(50.5) and few["latency_p95_ms"] == pytest.approx(95.05)
    assert few["latency_mean_ms"] == pytest.approx(50.5) and few["runs"] == 100
    assert "latency_p99_ms" not in few and many["latency_p99_ms"] > 98


def test_the_middle_of_a_drifting_series_has_an_interval_that_holds_it():
    values = np.random.default_rng(0).normal(5, 1, 200)
    found = timing.middle(values)
    assert found.value == np.median(values) and found.low < found.value < found.high < found.low + 0.8
    assert found.named("rest_ms") == {"rest_ms": found.value, "rest_ms_low": found.low, "rest_ms_high": found.high}


def test_a_variant_is_timed_beside_its_reference():
    clock = Clock()
    runs, timer = (clock.run("it", 0.2), clock.run("reference", 0.4)), partial(timing.timed, clock=clock)
    scores, seconds = timing.beside(*runs, Timing(least_runs=10, least_seconds=0.0), timer)
    assert scores["latency_p50_ms"] == pytest.approx(200) and scores["latency_times_as_fast"] == pytest.approx(2)
    assert scores["latency_times_as_fast_low"] <= 2 <= scores["latency_times_as_fast_high"] and scores["runs"] == 10
    assert seconds == {"variant": [0.2] * 10, "reference": [0.4] * 10}, "rounded"


def test_nothing_to_time_is_refused():
    with pytest.raises(InputError, match="expected one thing or more"):
        timing.seconds({}, QUICK)


def test_a_profile_says_how_long_a_thing_is_timed():
    assert QUICK.model_dump() == {"least_runs": 10, "least_seconds": 0.1, "most_seconds": 20.0}
    for name in ("laptop", "t4", "paper"):
        full = {"least_runs": 30, "least_seconds": 2.0, "most_seconds": 20.0}
        assert profiles.load(name).timing.model_dump() == full
    assert profiles.load("mini", {"timing.least_runs": 30}).timing == Timing(least_runs=30, least_seconds=0.1)
    with pytest.raises(InputError, match="timing.least_runs = 0"):
        profiles.load("mini", {"timing.least_runs": 0})


def test_weights_have_a_size_and_all_else_has_none(tmp_path):
    for name, size in {"model.onnx": 2_000_000, "model.ort": 500_000, "tokenizer.json": 9_000_000}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert timing.size_mb(tmp_path) == 2.5
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no weights there"):
        timing.size_mb(tmp_path / "empty")
