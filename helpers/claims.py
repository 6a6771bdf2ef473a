"""What a claim hangs on, and the one rule by which it holds or not; the claims themselves are in `ledger`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from . import InputError, records, significance, tables

HOLDS, IN_PART, NOT, UNMEASURED = "holds", "holds in part", "does not hold", "not measured here"
ALIKE = 0.05  # of the published effect: what ours may fall short and still count as the same
HALF = 0.5  # of it: what there must be for a claim to hold in part
REPLICATES = 300  # of a bootstrap
TIMED = "median of paired ratios"
RULE = (
    "Every claim is put as numbers, each with the published figure and with what it would be if there were no effect. "
    f'Ours **holds** if its 95% interval leaves out "no effect" and it has at least {1 - ALIKE:.0%} of the published '
    "effect. It **holds in part** if there is at least half of it, or if some of the claim's numbers hold and others "
    "don't; else it **does not hold**. An interval that admits both no effect and the published one is marked *too "
    'wide to tell*: then "does not hold" means no more than that it was not seen here. A claim without a figure is one '
    "of direction, and the interval must lie on its side. A claim that nothing changes holds if it changes by no more "
    f"than {ALIKE:.0%}."
)


class Part(NamedTuple):
    """One number that a claim hangs on: ours with its 95% interval beside the published one."""

    what: str  # with its unit
    printed: float | None  # None: the claim names a direction alone
    none: float  # what it would be without any effect
    ours: float
    low: float
    high: float
    basis: str  # how often, on what
    sign: int = 1  # the direction, where no figure is printed
    decimals: int = 1

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out that there is no effect."""
        return not self.low <= self.none <= self.high

    @property
    def scaled(self) -> tuple[float, float, float] | None:
        """The interval's low end, ours and the high end as shares of the published effect; None where none is."""
        if self.printed is None or self._nothing:
            return None
        shares = [(value - self.none) / (self.printed - self.none) for value in (self.low, self.ours, self.high)]
        return min(shares), shares[1], max(shares)

    @property
    def _nothing(self) -> bool:
        """Whether what is claimed is that nothing changes."""
        return self.printed is not None and abs(self.printed - self.none) <= ALIKE * abs(self.none)

    @property
    def verdict(self) -> str:
        """By the rule that `RULE` states."""
        if self._nothing:
            return HOLDS if abs(self.ours - self.none) <= ALIKE * abs(self.none) else NOT
        if not self.scaled:
            return HOLDS if self.clear and self.sign * (self.ours - self.none) > 0 else NOT
        if not self.clear or self.scaled[1] < HALF:
            return NOT
        return HOLDS if self.scaled[1] >= 1 - ALIKE else IN_PART

    @property
    def undecided(self) -> bool:
        """Whether the interval admits both no effect and the published one."""
        return bool(self.scaled) and not self.clear and self.low <= self.printed <= self.high

    @property
    def text(self) -> str:
        """Ours with its interval, where there is one."""
        ours, low, high = (f"{value:,.{self.decimals}f}" for value in (self.ours, self.low, self.high))
        return ours if self.low == self.high else f"{ours} ({low} to {high})"


class Finding(NamedTuple):
    """What was measured of a claim: its numbers, and the records that they are made from."""

    parts: list[Part]
    records: Sequence[dict]

    @property
    def verdict(self) -> str:
        """That of its numbers, where they agree."""
        found = {part.verdict for part in self.parts}
        return found.pop() if len(found) == 1 else IN_PART


class Evidence:
    """The records of a run of the series, for claims to be judged by."""

    def __init__(self, space: records.Workspace):
        self.space, self.problems = space, []

    def __call__(self, experiment: str) -> list[dict]:
        """The newest record of each unit, as they were made; a damaged file is named in `problems` and left out."""
        every = []
        for path in sorted((self.space.records / experiment).glob("*.json")):
            try:
                every.append(records.read_record(path))
            except InputError as error:
                self.problems = list(dict.fromkeys([*self.problems, str(error)]))
        every.sort(key=lambda record: record["provenance"]["started"])
        return list({records.slug(record["unit"]): record for record in every}.values())


def printed(source: str, table: str, metric: str, model: str, setup: str | None = None) -> float:
    """A published number.

    Raises:
        InputError: there is no such source or table, or its file is missing.
    """
    rows = tables.published(source, table)
    rows = rows[(rows.metric == metric) & (rows.model == model) & ((rows.setup == setup) | (setup is None))]
    return float(rows.value.iloc[0])


def times(record: dict, claimed: float | None, metric: str, what: str) -> Part:
    """How many times as fast something is, by a record that has `metric` with its ends."""
    ours = [record["metrics"][f"{metric}{end}"] for end in ("", "_low", "_high")]
    runs = record["metrics"].get("runs")
    return Part(what, claimed, 1, *ours, f"{runs:.0f} runs, {TIMED}" if runs else TIMED, decimals=2)


def counted(what: str, claimed: float | None, none: float, ours: float, sign: int = 1) -> Part:
    """Something that is counted, and doesn't vary."""
    return Part(what, claimed, none, ours, ours, ours, "counted", sign)


def compared(
    runs: dict[str, np.ndarray],
    truth: np.ndarray,
    score: significance.Score,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
    one: str,
    other: str,
) -> list[float]:
    """Two models' median scores compared, with a 95% bootstrap interval over the same rows of both, in percent.

    `runs` and `score` as for `significance.resample`.
    """
    runs = {name: runs[name] for name in (one, other)}
    drawn = significance.resample(runs, truth, score, REPLICATES, np.random.default_rng(0))
    middle = compare(*(np.median(score(runs[name], truth)) for name in (one, other)))
    return [100 * float(value) for value in (middle, *significance.interval(compare(drawn[one], drawn[other])))]


def basis(runs: np.ndarray) -> str:
    """How many seeds and rows there are; `runs`: [seeds, rows]."""
    return f"{len(runs)} seed{'s' if len(runs) > 1 else ''}, {runs.shape[1]:,} rows"
