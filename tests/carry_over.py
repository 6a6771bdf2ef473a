"""Once: gives records the settings that they lacked, from their own provenance, and the names that go with these.

Data sets' revisions and the processor's flags became part of settings. Every record says both in its provenance, so
nothing has to be measured again and nothing is guessed: `python tests/carry_over.py results/laptop/records`. A record
whose provenance does not say what is needed stops this before anything is changed.
"""

import copy
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.experiments.perplexity import TUNED_ON  # noqa: E402 - of this checkout
from helpers.measure import records  # noqa: E402

WIKITEXT, GSM8K = "Salesforce/wikitext", "openai/gsm8k"


def revisions(found: list[dict]) -> dict[str, str]:
    """The one revision of each data set that the records name; ValueError if one has two."""
    seen: dict[str, set] = {}
    for source in (source for record in found for source in record["provenance"]["data"]):
        seen.setdefault(source["id"].removeprefix("miniworld:"), set()).add(source["revision"])
    if several := {name: values for name, values in seen.items() if len(values) > 1}:
        raise ValueError(f"more than one revision: {several}")
    return {name: values.pop() for name, values in seen.items()}


def completed(record: dict, known: dict[str, str]) -> dict:
    """The record's settings with what they lack."""
    settings, unit, origin = copy.deepcopy(record["settings"]), record["unit"], record["provenance"]
    if "cpu" in settings and "flags" not in settings:
        settings["flags"] = [flag for flag in records.TELLING if flag in origin["cpu_flags"]]
    for part in (settings, (settings.get("made") or {}).get("exported", {})):
        part.pop("head", None)  # said "int8", always, so that older records stayed valid
    ids = {source["id"].removeprefix("miniworld:") for source in origin["data"]}
    if record["experiment"] == "perplexity":  # a trial's data are its own; its model may have learnt from others
        names = {unit["text"], TUNED_ON.get(unit.get("stage"), unit["text"])}
        ids = {WIKITEXT if name == "wikitext" else GSM8K for name in names}
    if any(source["id"].startswith("miniworld:") for source in origin["data"]):
        (version,) = {known[name] for name in ids}
        settings["world"] = int(version.removeprefix("version "))
    elif ids:
        settings["data"] = {name: known[name] for name in ids}
    return settings


def carry_over(folder: Path) -> tuple[int, int]:
    """Complete every record under a folder; how many were completed, and how many needed nothing."""
    found = {path: records.read_record(path) for path in sorted(folder.glob("*/*.json"))}
    known = revisions(list(found.values()))
    settings = {path: completed(record, known) for path, record in found.items()}
    done = 0
    for path, record in found.items():
        if settings[path] == record["settings"]:
            continue
        new = path.with_name(records.file_name(record["unit"], settings[path]))
        if new.exists():
            raise ValueError(f"{new} is there already")
        records.write_whole(new, json.dumps(record | {"settings": settings[path]}, indent=1, ensure_ascii=False) + "\n")
        path.unlink()
        done += 1
    return done, len(found) - done


if __name__ == "__main__":
    print("completed {}, as they were {}".format(*carry_over(Path(sys.argv[1]))))
