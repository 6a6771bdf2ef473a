"""Experiments: units with a record are not measured again, and what fails or is missing is said."""

import io
import itertools
from datetime import UTC, datetime

import pytest
from tqdm import tqdm

from helpers import InputError, profiles
from helpers.measure import records, sweep

MISSING = "run notebook 01 first"


class Grid(sweep.Experiment):
    """Four units whose measuring can fail, and that counts what is measured."""

    name = "glue"
    units = [{"model": "m", "seed": seed} for seed in range(4)]

    def __init__(self, *given, failing=(), missing=(), version=1):
        super().__init__(*given)
        self.failing, self.missing, self.version, self.calls = failing, missing, version, []

    def settings(self, unit):
        return {"version": self.version}

    def why_not(self, unit):
        return MISSING if unit["seed"] in self.missing else None

    def measure(self, unit):
        self.calls.append(unit["seed"])
        if unit["seed"] in self.failing:
            raise ValueError("it went wrong")
        return records.Measurement({"accuracy": unit["seed"] / 10}, [], [])


@pytest.fixture
def place(tmp_path):
    profile = profiles.load("mini")
    return profile, records.Workspace(profile, str(tmp_path))


def test_what_has_a_record_is_not_measured_again(place):
    grid = Grid(*place)
    first = grid.run()
    assert grid.calls == [0, 1, 2, 3] and [r["metrics"]["accuracy"] for r in first] == [0.0, 0.1, 0.2, 0.3]
    assert grid.run() == first and grid.calls == [0, 1, 2, 3] and not grid.unmeasured()
    fresh = Grid(*place, True)
    assert len(fresh.unmeasured()) == 4
    fresh.run()
    assert fresh.calls == [0, 1, 2, 3]


def test_while_nothing_may_be_measured_records_are_read(place, monkeypatch):
    grid = Grid(*place)
    first = grid.run(grid.units[:2])
    monkeypatch.setenv(sweep.READ_ONLY, "yes")
    assert grid.run(grid.units[:2]) == first
    with pytest.raises(sweep.UnmeasuredError, match="m-seed2"):
        grid.run()
    assert grid.calls == [0, 1] and len(list(place[1].records.glob("*/*.json"))) == 2


def test_other_settings_are_another_measurement(place):
    Grid(*place).run()
    newer = Grid(*place, version=2)
    assert newer.unmeasured() == newer.units
    newer.run(newer.units[:1])
    assert newer.calls == [0] and newer.unmeasured() == newer.units[1:]


def test_what_cannot_be_had_is_left_out_and_said(place):
    grid = Grid(*place, missing=(1, 2))
    assert grid.ready == [grid.units[0], grid.units[3]]
    assert grid.plan().splitlines()[1:] == [
        f"2 units, of which 2 have no record yet: about {2 * sweep.UNKNOWN / 60:.0f} minutes",
        f"m-seed1, m-seed2: – {MISSING}",
    ]
    assert [record["unit"]["seed"] for record in grid.run()] == [0, 3]


def test_where_nothing_can_be_had_the_plan_says_what_to_do(place):
    with pytest.raises(InputError, match=f"^{MISSING}$"):
        Grid(*place, missing=range(4)).plan()


def test_the_plan_goes_by_what_is_on_record(place):
    profile, space = place
    for seed, seconds in enumerate((60, 120, 600)):
        made, took = records.Measurement({"a": 1.0}, [], []), {"seconds": seconds}
        origin = records.provenance(datetime.now(UTC), [], []) | took
        space.write("glue", {"model": "other", "seed": seed}, {}, made, origin)
    assert Grid(*place).minutes([{}, {}, {}]) == 6  # the median, three times


def test_what_it_builds_on_and_is_not_there_yet_is_unmeasured(place):
    grid = Grid(*place)
    grid.settings = lambda unit: (_ for _ in ()).throw(InputError("its teacher is still to be made"))
    assert grid.unmeasured() == grid.units


def test_a_long_unit_says_where_it_is(place, capsys, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))  # the bar is drawn ten times a second at most
    grid = Grid(*place)
    plain = grid.measure
    grid.measure = lambda unit: [sweep.report(f"step {n} of 3") for n in (1, 2, 3)] and plain(unit)
    grid.run()
    shown = capsys.readouterr().out
    assert all(f"m-seed3: step {n} of 3" in shown for n in (1, 2, 3))


def test_a_failed_unit_is_passed_over_and_named(place):
    grid = Grid(*place, failing=(1,))
    with pytest.raises(sweep.SweepError, match=r"1 failed, 3 done: glue m-seed1: ValueError: it went wrong"):
        grid.run()
    again = Grid(*place)
    again.run()
    assert again.calls == [1]


def test_a_bar_stays_in_its_line_beside_bars_of_others(place, capsys):
    """A download's bar that nobody has collected yet moved ours: an executed page showed each of its states."""
    lingering = tqdm(total=7, file=io.StringIO())
    Grid(*place).run()
    assert "\x1b" not in capsys.readouterr().out
    lingering.close()
