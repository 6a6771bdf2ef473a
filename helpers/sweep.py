"""Walks a grid of units: skips what has a record, shows progress, keeps going past a failed cell and reports it."""

import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from . import records

METER = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} in {elapsed}{postfix}"
_bar: tqdm | None = None  # of the sweep that is running


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

    `settings(unit)` gives all that could change the unit's numbers, `measure(unit)` its numbers. One plain progress
    bar, which reads well in a saved page too, shows where it is.

    Raises:
        SweepError: at the end, if any unit failed.
    """
    global _bar
    units, found, failures, measured_now = list(units), [], [], 0
    bar = {"bar_format": METER, "file": sys.stdout, "miniters": 0}  # 0: `report` shows within a unit, too
    with tqdm(total=len(units), desc=experiment, **bar) as _bar:
        for unit in units:
            name = records.slug(unit)
            _bar.set_postfix_str(name)
            try:
                current = settings(unit)
                record = None if fresh else space.find(experiment, unit, current)
                if not record:
                    started = datetime.now(UTC)
                    measured = measure(unit)
                    origin = records.provenance(started, measured.data, measured.models)
                    record = space.write(experiment, unit, current, measured, origin)
                    measured_now += 1
                found.append(record)
            except Exception as error:
                failures.append(f"{experiment} {name}: {type(error).__name__}: {str(error).strip()} ({_place(error)})")
                _bar.write(f"{experiment} {name}: FAILED: {error}", file=sys.stdout)
            _bar.update()
        there = f"; {len(found) - measured_now} had a record" if len(found) > measured_now else ""
        _bar.set_postfix_str(f"{measured_now} measured{there}")
    _bar = None
    if failures:
        raise SweepError(f"{len(failures)} failed, {len(found)} done: " + "; ".join(failures))
    return found


def report(where: str) -> None:
    """Say on the bar of the sweep that is running, if one is, where its present unit is."""
    if _bar is not None:
        unit = (_bar.postfix or "").partition(":")[0]
        _bar.set_postfix_str(f"{unit}: {where}", refresh=False)
        _bar.update(0)


def _place(error: Exception) -> str:
    """The last line of our own that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent.name == "helpers"] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"
