"""Records: found again by unit and settings, written whole or not at all; and the sweep that fills them in."""

import itertools
import json
import math
from datetime import UTC, datetime

import pytest

from helpers import InputError, profiles, records, sweep

UNIT = {"model": "student", "seed": 0}
SETTINGS = {"version": 1, "steps": 10}


@pytest.fixture
def space(tmp_path) -> records.Workspace:
    return records.Workspace(profiles.load("mini"), str(tmp_path))


def measured(**metrics) -> records.Measurement:
    return records.Measurement(metrics or {"accuracy": 0.5}, [{"id": "d"}], [{"id": "m"}])


def test_a_record_is_found_by_unit_and_settings(space):
    space.write("glue", UNIT, SETTINGS, measured(), {"commit": "c"})
    assert space.find("glue", UNIT, dict(reversed(SETTINGS.items())))["metrics"] == {"accuracy": 0.5}
    assert space.find("glue", UNIT, SETTINGS | {"version": 2}) is None
    assert space.find("glue", UNIT | {"seed": 1}, SETTINGS) is None
    (path,) = (space.records / "glue").iterdir()
    assert path.name == f"student-seed0-{records.digest(SETTINGS)}.json"
    assert set(json.loads(path.read_text())) >= {"experiment", "unit", "metrics", "settings", "provenance"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_not_recorded(space, value):
    with pytest.raises(InputError, match="accuracy is (nan|inf)"):
        space.write("glue", UNIT, SETTINGS, measured(accuracy=value), {})
    assert not space.records.exists()


def test_a_failed_write_leaves_the_old_record_whole(space, monkeypatch):
    space.write("glue", UNIT, SETTINGS, measured(), {})

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full_disk)
    with pytest.raises(InputError, match="cannot write .*No space left on device; free it"):
        space.write("glue", UNIT, SETTINGS, measured(accuracy=0.9), {})
    assert space.find("glue", UNIT, SETTINGS)["metrics"] == {"accuracy": 0.5}
    assert len(list((space.records / "glue").iterdir())) == 1


def test_a_folder_that_cannot_be_written_to_is_named(space):
    space.results.parent.mkdir(parents=True)
    space.results.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot write .*results/mini"):
        space.write("glue", UNIT, SETTINGS, measured(), {})


def test_a_damaged_record_is_named_and_left_out_of_the_table(space, capsys):
    space.write("glue", UNIT, SETTINGS, measured(), {})
    (space.records / "glue" / "other-00000000.json").write_text('{"experiment": "glue", "un')
    table = space.read("glue")
    assert table[["model", "seed", "accuracy"]].values.tolist() == [["student", 0, 0.5]]
    assert "other-00000000.json: not a whole record; delete it" in capsys.readouterr().out


def test_provenance_is_complete():
    origin = records.provenance(datetime.now(UTC), [{"id": "d"}], [{"id": "m"}])
    assert set(origin) == {
        *("commit", "dirty", "started", "seconds", "versions", "cpu", "cpu_flags", "cores", "threads", "gpu"),
        *("data", "models"),
    }
    assert {"python", "torch", "transformers", "datasets"} <= origin["versions"].keys()
    assert origin["cpu"] and 0 <= origin["seconds"] < 60


def test_runs_on_random_weights_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "revision", lambda *_: "0000000000abcdef")
    records._is_random.cache_clear()
    assert records.Workspace(profiles.load("t4"), str(tmp_path)).name == "t4-random"
    records._is_random.cache_clear()
    monkeypatch.setattr(records, "revision", lambda *_: "86b5e0934494bd15c9632b12f734a8a67f723594")
    assert records.Workspace(profiles.load("t4"), str(tmp_path)).name == "t4"


def test_a_drive_that_is_not_mounted_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "DRIVE", tmp_path / "drive")
    store = str(tmp_path / "drive/MyDrive/measured")
    with pytest.raises(
        InputError, match=r"Google Drive is not mounted; run `from google.colab import drive; drive.mount"
    ):
        records.Workspace(profiles.load("mini"), store)
    (tmp_path / "drive/MyDrive").mkdir(parents=True)
    assert records.Workspace(profiles.load("mini"), store).results == tmp_path / "drive/MyDrive/measured/results/mini"
    records._is_random.cache_clear()


def test_slugs_are_file_names():
    assert records.slug({"model": "a/b c", "seed": 3, "length": 128}) == "a_b_c-seed3-length128"


class Grid:
    """A sweep of four units whose measuring can fail, and that counts what is measured."""

    units = [{"model": "m", "seed": seed} for seed in range(4)]

    def __init__(self, space, failing=()):
        self.space, self.failing, self.calls = space, failing, []

    def run(self, **options):
        return sweep.run(self.space, "glue", self.units, lambda unit: SETTINGS, self.measure, **options)

    def measure(self, unit):
        self.calls.append(unit["seed"])
        if unit["seed"] in self.failing:
            raise ValueError("it went wrong")
        return measured(accuracy=unit["seed"] / 10)


def test_a_sweep_measures_what_has_no_record(space):
    grid = Grid(space)
    first = grid.run()
    assert grid.calls == [0, 1, 2, 3] and [r["metrics"]["accuracy"] for r in first] == [0.0, 0.1, 0.2, 0.3]
    assert grid.run() == first and grid.calls == [0, 1, 2, 3]
    grid.run(fresh=True)
    assert grid.calls == [0, 1, 2, 3] * 2


def test_a_long_unit_says_where_it_is(space, capsys, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))  # the bar is drawn ten times a second at most
    grid = Grid(space)
    plain = grid.measure
    grid.measure = lambda unit: [sweep.report(f"step {n} of 3") for n in (1, 2, 3)] and plain(unit)
    grid.run()
    shown = capsys.readouterr().out
    assert all(f"m-seed3: step {n} of 3" in shown for n in (1, 2, 3))


def test_a_sweep_goes_past_a_failed_unit_and_names_it(space):
    grid = Grid(space, failing=(1,))
    with pytest.raises(sweep.SweepError, match="1 failed, 3 done: glue m-seed1: ValueError: it went wrong"):
        grid.run()
    again = Grid(space)
    again.run()
    assert again.calls == [1]
