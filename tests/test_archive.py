"""Records come home in one file: whole, once, and nothing else with them."""

import json
import subprocess
import sys
import zipfile

import pytest

from helpers import ROOT, InputError, archive, profiles, records

RECORD = {
    "experiment": "glue",
    "unit": {"task": "sst2"},
    "metrics": {"accuracy": 0.9},
    "settings": {},
    "provenance": {},
}


@pytest.fixture
def space(tmp_path) -> records.Workspace:
    found = records.Workspace(profiles.load("mini"), str(tmp_path / "there"))
    for number in range(3):
        unit = {"task": "sst2", "seed": number}
        records.write_whole(found.path("glue", unit, {}), json.dumps(RECORD | {"unit": unit}))
    return found


def test_what_is_packed_comes_out_once(space, tmp_path):
    home, path = tmp_path / "home", archive.pack(space)
    assert path == tmp_path / "there/results/mini-records.zip"
    own = home / "mini/records/glue" / next(space.records.rglob("*seed0*")).name
    records.write_whole(own, "measured here")
    assert archive.unpack(path, home) == {"new": 2, "there already": 1}
    assert own.read_text() == "measured here", "what is there stays"
    for record in space.records.rglob("*seed[12]*"):
        assert (home / record.relative_to(space.results.parent)).read_text() == record.read_text()
    assert archive.unpack(path, home) == {"new": 0, "there already": 3}


@pytest.mark.parametrize(
    ("member", "text", "message"),
    [
        ("../../evil.json", "{}", "../../evil.json is no record of this project; nothing was unpacked"),
        ("mini/records/glue/../../x-00000000.json", "{}", "is no record of this project"),
        ("mini/tables/01.csv", "a", "is no record of this project"),
        ("huge/records/glue/x-00000000.json", json.dumps(RECORD), "is no record of this project"),
        ("mini/records/glue/x-00000000.json", '{"unit": 1', "x-00000000.json: not a whole record"),
    ],
)
def test_what_is_no_record_does_not_come_in(space, tmp_path, member, text, message):
    path = archive.pack(space)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(member, text)
    with pytest.raises(InputError, match=message):
        archive.unpack(path, tmp_path / "home")
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("evil*"))


def test_the_command(space, tmp_path):
    def command(*options: str) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", "helpers.run", *options]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = command("--pack", "--set", f"store={tmp_path / 'there'}")
    assert done.returncode == 0 and done.stdout.strip().endswith("there/results/mini-records.zip"), done.stderr
    empty = command("--pack", "--set", f"store={tmp_path / 'nothing'}")
    assert empty.returncode == 2 and empty.stderr.startswith("error: no records in ") and not empty.stdout
    (tmp_path / "half.zip").write_bytes((tmp_path / "there/results/mini-records.zip").read_bytes()[:200])
    broken = command("--unpack", str(tmp_path / "half.zip"))
    assert broken.returncode == 2 and "no whole archive of records" in broken.stderr and broken.stderr.count("\n") == 1
