"""The rules of timing with a clock of our own; memory and cold start of real processes."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import DistilBertForSequenceClassification

from helpers import InputError, models, runners, speed, students

pytestmark = pytest.mark.alone


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
        (0.001, speed.Rules(30, 2.0), 2000),  # as many as fill two seconds
        (0.5, speed.Rules(30, 2.0), 30),
        (1.0, speed.Rules(30, 2.0), 20),  # stopped at twenty seconds
        (9.0, speed.Rules(30, 2.0), 5),  # never under five
        (0.001, speed.QUICK, 100),
        (0.5, speed.QUICK, 10),
    ],
)
def test_a_thing_is_timed_as_long_as_the_rules_say(takes, rules, runs):
    clock = Clock()
    taken = speed.seconds({"it": clock.run("it", takes)}, rules, timer=partial(speed.timed, clock=clock))
    assert len(taken["it"]) == pytest.approx(runs, abs=1) and len(clock.called) == len(taken["it"]) + 2
    assert taken["it"] == pytest.approx([takes] * len(taken["it"]))


def test_runs_are_interleaved_and_turned_and_a_slow_one_stops_alone():
    clock = Clock()
    runs = {"slow": clock.run("slow", 4.0), "fast": clock.run("fast", 0.2)}
    taken = speed.seconds(runs, speed.Rules(10, 1.0), warm_up=1, timer=partial(speed.timed, clock=clock))
    assert clock.called[:10] == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert len(taken["slow"]) == 5 and len(taken["fast"]) == 10, "the fast one goes on after the slow one is done"
    assert speed.ratio(taken["slow"], taken["fast"]) == pytest.approx((20, 20, 20))


def test_a_yardstick_is_timed_as_often_as_the_others_need():
    clock = Clock()
    runs = {name: clock.run(name, takes) for name, takes in (("large", 0.25), ("product", 0.001), ("small", 0.125))}
    rules, timer = speed.Rules(10, 2.0), partial(speed.timed, clock=clock)
    taken = speed.seconds(runs, rules, warm_up=0, timer=timer, yardsticks=["product"])
    assert {name: len(own) for name, own in taken.items()} == {"large": 16, "product": 16, "small": 16}
    assert clock.called[:6] == ["large", "product", "small", "small", "product", "large"], "between the two, either way"
    assert len(speed.seconds(runs, rules, warm_up=0, timer=timer)["large"]) > 16, "else it would ask for more rounds"


def test_a_drift_hits_both_alike():
    """The machine gets three times slower in the course of the runs; one thing is twice as fast all the time."""
    random, slow, fast = np.random.default_rng(0), [], []
    for drift in np.linspace(1, 3, 60):
        slow.append(2 * drift * random.lognormal(0, 0.02))
        fast.append(drift * random.lognormal(0, 0.02))
    found = speed.ratio(slow, fast)
    assert found.low < 2 < found.high and found.high - found.low < 0.05


def test_rounds_that_are_alike_make_the_interval_wider():
    """A hundred rounds in two halves are hardly more evidence than a few."""
    halves = np.r_[np.full(50, 1.8), np.full(50, 2.2)] + np.random.default_rng(0).normal(0, 0.01, 100)
    mixed = np.random.default_rng(1).permutation(halves)
    assert speed.ratio(halves, np.ones(100)).low < 1.85 and speed.ratio(halves, np.ones(100)).high > 2.15
    few = speed.ratio([2.0, 2.1, 1.9], [1.0, 1.0, 1.0])
    assert 1.9 <= few.low <= few.median == 2.0 <= few.high <= 2.1
    assert speed.ratio(mixed, np.ones(100)).median == pytest.approx(np.median(mixed))


def test_percentiles_are_in_milliseconds_and_the_last_needs_many_runs():
    times = np.arange(1, 101) / 1000
    few, many = speed.latencies(times), speed.latencies(np.tile(times, 2))
    assert few["latency_p50_ms"] == pytest.approx(50.5) and few["latency_p95_ms"] == pytest.approx(95.05)
    assert few["latency_mean_ms"] == pytest.approx(50.5) and few["runs"] == 100
    assert "latency_p99_ms" not in few and many["latency_p99_ms"] > 98


def test_nothing_to_time_is_refused():
    for runs, rules in (({}, speed.FULL), ({"it": lambda: None}, speed.Rules(0, 0.0))):
        with pytest.raises(InputError, match="expected one or more"):
            speed.seconds(runs, rules)


def test_memory_and_cold_start_are_those_of_a_process_of_its_own(teacher, tokenizer, tmp_path):
    """A model of 20 million parameters: it is read, held once and not twice, and its cold start is no warm one."""
    config = students.configuration(teacher.config, 1)
    config.vocab_size = 600_000  # 32 wide, and three of its rows are asked for
    model = DistilBertForSequenceClassification(config)
    models.save(model, tokenizer, tmp_path / "large")
    weights = speed.size_mb(tmp_path / "large")
    assert weights == pytest.approx(models.size_mb(model), rel=0.02) and weights > 75
    found = speed.alone(tmp_path / "large", "the river runs", threads=1)
    assert weights < found["peak_memory_mb"] < 1.5 * weights, "held once"
    assert found["footprint_mb"] == pytest.approx(weights, rel=0.02)
    with torch.no_grad():
        given = tokenizer(["the river runs"], return_tensors="pt", return_token_type_ids=False)
        assert model.eval()(**given).logits[0].tolist() == pytest.approx(found["logits"], abs=1e-5)
    parts = found["imports_s"] + found["loading_s"] + found["first_s"]
    assert 0 < parts < found["cold_start_s"] < parts + 3, "the interpreter starts in less"
    run = runners.load(tmp_path / "large", threads=1)
    inputs = runners.tokenizer(tmp_path / "large")("the river runs")
    warm = min(speed.seconds({"it": lambda: run(inputs)}, speed.QUICK)["it"])
    assert found["imports_s"] > 0.3 and found["cold_start_s"] > warm + found["loading_s"]


def test_a_process_that_fails_says_why(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="its own process ended with 1: .*no model there"):
        speed.alone(tmp_path, "text", threads=1)
    with pytest.raises(InputError, match="no weights there"):
        speed.size_mb(tmp_path)
