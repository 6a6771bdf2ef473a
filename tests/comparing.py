"""Two runs of the series, record by record: what differs that is not a time."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of metrics and details, by name: what is timed, and the memory that a process took.
TIMED = re.compile(
    r"seconds|minutes|latency|times_as_fast|gflops|memory|anonymous|file_backed|alone|runs|(^|_)m?s(_|$)"
)


def differences(first: Path, second: Path) -> list[str]:
    """What differs between the records of two stores, but for times and where they come from; a line a difference."""
    found = []
    places = ((store, store.glob("results/*/records/*/*.json")) for store in (first, second))
    names = [{path.relative_to(store): path for path in paths} for store, paths in places]
    for name in sorted(names[0].keys() | names[1].keys()):
        if not (name in names[0] and name in names[1]):
            found.append(f"{name}: only in {first if name in names[0] else second}")
            continue
        one, other = (json.loads(own[name].read_text()) for own in names)
        for record in (one, other):
            origin = record.pop("provenance")
            record["made from"] = [origin["data"], origin["models"]]
            if "torchao" in record["unit"].get("variant", ""):  # safetensors writes its header in no fixed order
                record["details"].pop("checkpoint", None)
        found += [f"{name}: {what}" for what in _apart(one, other)]
    return found


def _apart(one: Any, other: Any, where: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if not TIMED.search(key):
                yield from _apart(one.get(key), other.get(key), f"{where}.{key}".strip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from _apart(*pair, f"{where}[{place}]")
    elif one != other:
        yield f"{where} {str(one):.60} and {str(other):.60}"
