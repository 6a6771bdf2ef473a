"""The one-off migration: settings are completed from a record's own provenance, whole or not at all."""

import json
from datetime import UTC, datetime

import pytest

from helpers.measure import records
from tests.carry_over import carry_over

ORIGIN = records.provenance(datetime.now(UTC), [], []) | {"cpu": "EPYC", "cpu_flags": ["avx", "avx2", "avx512_vnni"]}


def write(folder, experiment, unit, settings, *sources, **origin):
    record = {"experiment": experiment, "unit": unit, "metrics": {"a": 1.0}, "settings": settings, "details": {}}
    data = [{"id": name, "config": "c", "revision": revision, "rows": {}} for name, revision in sources]
    record["provenance"] = ORIGIN | {"data": data} | origin
    path = folder / experiment / records.file_name(unit, settings)
    records.write_whole(path, json.dumps(record))
    return path


def read(folder, experiment):
    (path,) = (folder / experiment).glob("*.json")
    record = records.read_record(path)
    assert path.name == records.file_name(record["unit"], record["settings"])
    return record


def test_what_is_known_is_added_and_nothing_else(tmp_path):
    before = write(tmp_path, "glue", {"task": "sst2"}, {"version": 1}, ("nyu-mll/glue", "r1"), ("nyu-mll/glue", "r1"))
    write(tmp_path, "speed", {"pair": "p"}, {"cpu": "EPYC", "rules": {}})
    unit = {"model": "student", "stage": "gsm8k", "text": "wikitext"}
    write(tmp_path, "perplexity", unit, {"version": 1}, ("Salesforce/wikitext", "r2"), ("openai/gsm8k", "r3"))
    write(tmp_path, "squad", {"seed": 0}, {"world": 2}, ("miniworld:rajpurkar/squad", "version 2"))
    whole = write(tmp_path, "fullsize", {"variant": "fp32"}, {"cpu": "EPYC", "flags": ["avx2"]})
    made = {"whole": {"head": "w"}, "exported": {"head": "int8", "opset": 20}}
    write(tmp_path, "edge", {"head": "masked_lm"}, {"made": made})
    old = json.loads(before.read_text())
    assert carry_over(tmp_path) == (4, 2)
    new = read(tmp_path, "glue")
    assert new["settings"] == {"version": 1, "data": {"nyu-mll/glue": "r1"}} and not before.exists()
    assert {k: v for k, v in new.items() if k != "settings"} == {k: v for k, v in old.items() if k != "settings"}
    assert read(tmp_path, "speed")["settings"] == {"cpu": "EPYC", "rules": {}, "flags": ["avx2", "avx512_vnni"]}
    assert read(tmp_path, "perplexity")["settings"]["data"] == {"Salesforce/wikitext": "r2", "openai/gsm8k": "r3"}
    assert read(tmp_path, "squad")["settings"] == {"world": 2} and whole.exists()
    assert read(tmp_path, "edge")["settings"] == {"made": {"whole": {"head": "w"}, "exported": {"opset": 20}}}
    assert carry_over(tmp_path) == (0, 6), "once"


def test_where_it_is_not_known_nothing_is_changed(tmp_path):
    paths = [
        write(tmp_path, "glue", {"task": "sst2"}, {"version": 1}, ("nyu-mll/glue", "r1")),
        write(tmp_path, "glue", {"task": "cola"}, {"version": 1}, ("nyu-mll/glue", "r2")),
    ]
    with pytest.raises(ValueError, match="more than one revision"):
        carry_over(tmp_path)
    assert all(path.exists() for path in paths)
    unit = {"model": "student", "stage": "gsm8k", "text": "wikitext"}
    paths[1].unlink()
    paths[1] = write(tmp_path, "perplexity", unit, {"version": 1}, ("Salesforce/wikitext", "r2"))
    with pytest.raises(KeyError, match="openai/gsm8k"):
        carry_over(tmp_path)
    assert all(path.exists() for path in paths)
