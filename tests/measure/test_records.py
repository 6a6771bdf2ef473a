"""Records: found again by unit and settings, written whole or not at all; and brought home in one file."""

import json
import math
import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime

import pytest

from helpers import ROOT, InputError, profiles
from helpers.measure import records

UNIT = {"model": "student", "seed": 0}
SETTINGS = {"version": 1, "steps": 10}
ORIGIN = records.provenance(datetime.now(UTC), [], [])


@pytest.fixture
def space(tmp_path) -> records.Workspace:
    return records.Workspace(profiles.load("mini"), str(tmp_path))


def measured(**metrics) -> records.Measurement:
    return records.Measurement(metrics or {"accuracy": 0.5}, [{"id": "d"}], [{"id": "m"}])


def test_a_record_is_found_by_unit_and_settings(space):
    space.write("glue", UNIT, SETTINGS, measured(), ORIGIN)
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
    space.write("glue", UNIT, SETTINGS, measured(), ORIGIN)

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


def test_a_damaged_record_is_named_and_left_out_of_the_evidence(space):
    space.write("glue", UNIT, SETTINGS, measured(), ORIGIN)
    (space.records / "glue" / "other-00000000.json").write_text('{"experiment": "glue", "un')
    evidence = records.Evidence(space)
    assert [(record["unit"], record["metrics"]) for record in evidence("glue")] == [(UNIT, {"accuracy": 0.5})]
    assert "other-00000000.json: not a whole record; delete it" in evidence.problems[0]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *[("metrics", value) for value in ({}, {"a": math.nan}, {"a": "0.5"}, {"a": None}, [0.5], None)],
        *[("unit", "sst2"), ("settings", None), ("provenance", None), ("details", None), ("experiment", 3)],
        *[
            ("provenance", {name: value for name, value in ORIGIN.items() if name != gone})
            for gone in ("started", "data")
        ],
        ("provenance", ORIGIN | {"seconds": "1.5"}),
        ("provenance", ORIGIN | {"models": {}}),
    ],
)
def test_a_record_of_another_shape_is_damaged(space, part, value):
    path = space.path("glue", UNIT, SETTINGS)
    records.write_whole(path, json.dumps(dict(RECORD, unit=UNIT, settings=SETTINGS)))
    assert space.find("glue", UNIT, SETTINGS)["metrics"] == {"accuracy": 0.9}
    for spoilt in (RECORD | {part: value}, {name: own for name, own in RECORD.items() if name != part}, [], "[" * 5000):
        records.write_whole(path, spoilt if isinstance(spoilt, str) else json.dumps(spoilt))
        with pytest.raises(InputError, match=f"{path.name}: not a whole record; delete it to have it measured again"):
            space.find("glue", UNIT, SETTINGS)


def test_a_folder_in_the_place_of_a_record_is_named(space):
    space.path("glue", UNIT, SETTINGS).mkdir(parents=True)
    with pytest.raises(InputError, match="not a whole record"):
        space.find("glue", UNIT, SETTINGS)


def test_every_committed_record_is_whole():
    found = list((ROOT / "results").glob("*/records/*/*.json"))
    for path in found:
        record = records.read_record(path)
        assert path.name == records.file_name(record["unit"], record["settings"])
    assert len(found) >= 530


def test_what_the_killed_left_is_swept_and_what_is_being_written_is_not(space):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getpid()):
        (space.checkpoints / f"student.{number}.tmp").mkdir(parents=True)
        (space.checkpoints / f"student.{number}.tmp/model.safetensors").touch()
        space.records.mkdir(parents=True, exist_ok=True)
        (space.records / f"a.{number}.tmp").touch()
    (space.checkpoints / "mine.tmp").touch()
    space.sweep()
    left = {path.name for path in space.root.rglob("*.tmp")}
    assert left == {f"student.{os.getpid()}.tmp", f"a.{os.getpid()}.tmp", "mine.tmp"}


@pytest.mark.parametrize("store", [3, ["x"], True, {"a": 1}])
def test_a_store_that_is_no_name_is_refused(store):
    with pytest.raises(InputError, match="expected the name of a folder"):
        records.Workspace(profiles.load("mini"), store)


def test_home_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.Workspace(profiles.load("mini"), "~/measured").results == tmp_path / "measured/results/mini"


def test_the_newest_record_of_a_unit_is_the_evidence(space):
    for version, day in ((1, "2026-01-02"), (2, "2026-01-01")):
        space.write("glue", UNIT, SETTINGS | {"version": version}, measured(), ORIGIN | {"started": day})
    (found,) = records.Evidence(space)("glue")
    assert found["settings"]["version"] == 1
    assert records.of([found], model="student") == [found] and records.of([found], model="twin", seed=0) == []


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


# --- all records as one file

RECORD = {
    "experiment": "glue",
    "unit": {"task": "sst2"},
    "metrics": {"accuracy": 0.9},
    "settings": {},
    "provenance": ORIGIN,
    "details": {},
}


@pytest.fixture
def there(tmp_path) -> records.Workspace:
    """Three records that were made elsewhere."""
    found = records.Workspace(profiles.load("mini"), str(tmp_path / "there"))
    for number in range(3):
        unit = {"task": "sst2", "seed": number}
        records.write_whole(found.path("glue", unit, {}), json.dumps(RECORD | {"unit": unit}))
    return found


def test_what_is_packed_comes_out_once(there, tmp_path):
    home, path = tmp_path / "home", records.archive(there)
    assert path == tmp_path / "there/results/mini-records.zip"
    own = home / "mini/records/glue" / next(there.records.rglob("*seed0*")).name
    records.write_whole(own, "measured here")
    assert records.restore(path, home) == {"new": 2, "there already": 1}
    assert own.read_text() == "measured here", "what is there stays"
    for record in there.records.rglob("*seed[12]*"):
        assert (home / record.relative_to(there.results.parent)).read_text() == record.read_text()
    assert records.restore(path, home) == {"new": 0, "there already": 3}


def test_a_damaged_archive_is_refused_in_one_line(there, tmp_path):
    path = records.archive(there)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[60:90] = bytes(30)
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w"):
        pass
    for content, says in ((bytes(damaged), "no whole archive"), (whole[:80], "no whole archive"), (b"", "no whole")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            records.restore(path, tmp_path / "home")
    for missing, says in ((empty, "no records in it"), (tmp_path / "none.zip", "there is no such file")):
        with pytest.raises(InputError, match=says):
            records.restore(missing, tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("member", "text", "message"),
    [
        ("../../evil.json", "{}", "../../evil.json is no record of this project; nothing was unpacked"),
        ("../mini/records/glue/x-00000000.json", "{}", "x-00000000.json is no record of this project"),
        ("mini/records/glue/../../x-00000000.json", "{}", "is no record of this project"),
        ("mini/tables/01.csv", "a", "is no record of this project"),
        ("huge/records/glue/x-00000000.json", json.dumps(RECORD), "is no record of this project"),
        ("mini/records/glue/x-00000000.json", '{"unit": 1', "x-00000000.json is no whole record"),
        ("mini/records/glue/x-00000000.json", json.dumps(RECORD), "x-00000000.json is no whole record of its unit"),
    ],
)
def test_what_is_no_record_does_not_come_in(there, tmp_path, member, text, message):
    path = records.archive(there)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(member, text)
    with pytest.raises(InputError, match=message):
        records.restore(path, tmp_path / "home")
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("evil*"))


@pytest.mark.slow
def test_the_command(there, tmp_path):
    def command(*options: str) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", "tools.run", *options]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = command("--pack", "--set", f"store={tmp_path / 'there'}")
    assert done.returncode == 0 and done.stdout.strip().endswith("there/results/mini-records.zip"), done.stderr
    empty = command("--pack", "--set", f"store={tmp_path / 'nothing'}")
    assert empty.returncode == 2 and empty.stderr.startswith("error: no records in ") and not empty.stdout
    (tmp_path / "half.zip").write_bytes((tmp_path / "there/results/mini-records.zip").read_bytes()[:200])
    broken = command("--unpack", str(tmp_path / "half.zip"))
    assert broken.returncode == 2 and "no whole archive of records" in broken.stderr and broken.stderr.count("\n") == 1
