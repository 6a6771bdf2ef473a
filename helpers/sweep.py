"""Walks a grid of units: skips what has a record, shows progress, keeps going past a failed cell and reports it."""

import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from . import records


class SweepError(RuntimeError):
    """Some units failed; the message names each with its reason. The others have their records."""


def run(
    space: records.Workspace,
    experiment: str,
    units: Iterable[dict],
    settings: Callable[[dict], dict],
    measure: Callable[[dict], records.Measurement],
    fresh: bool = False,
) -> list[dict]:
    """The record of each unit, in order: read where there is one with the same settings, else measured and written.

    `settings(unit)` gives all that could change the unit's numbers, `measure(unit)` its numbers.

    Raises:
        SweepError: at the end, if any unit failed.
    """
    found, failures = [], []
    for unit in units:
        name = f"{experiment} {records.slug(unit)}"
        try:
            current = settings(unit)
            record = None if fresh else space.find(experiment, unit, current)
            if record:
                print(f"{name}: has a record, not measured again")
            else:
                started = datetime.now(UTC)
                measured = measure(unit)
                origin = records.provenance(started, measured.data, measured.models)
                record = space.write(experiment, unit, current, measured, origin)
                print(f"{name}: measured in {origin['seconds']:.0f} s")
            found.append(record)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip()} ({_place(error)})")
            print(f"{name}: FAILED: {error}")
    if failures:
        raise SweepError(f"{len(failures)} failed, {len(found)} done: " + "; ".join(failures))
    return found


def _place(error: Exception) -> str:
    """The last line of our own that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent.name == "helpers"] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"
