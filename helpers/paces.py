"""Records of notebook 08 side by side: tables and sentences of a large model against a small one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from . import tables
from .figures import COLOURS as OF_MODELS
from .pace import SIDES

COLOURS = {"large": OF_MODELS["teacher"], "small": OF_MODELS["student"]}


def frame(found: Sequence[dict]) -> pd.DataFrame:
    """A row a record: its unit, its metrics, and the whole in `record`."""
    return pd.DataFrame([record["unit"] | record["metrics"] | {"record": record} for record in found])


def by_length(rows: pd.DataFrame, large: str, small: str) -> pd.DataFrame:
    """A row a length and thread count: both models' milliseconds, and how many times as fast the small one is."""

    return _by_threads(rows[rows.run == 0], "length", "tokens", lambda row: _latencies(row, large, small))


def by_batch(rows: pd.DataFrame, large: str, small: str) -> pd.DataFrame:
    """A row a batch and thread count: rows a second, and how many times as fast the small model is."""

    def cells(row) -> dict[str, str]:
        return {
            f"{large} (rows/s)": f"{row.large_samples_per_s:,.1f}",
            f"{small} (rows/s)": f"{row.small_samples_per_s:,.1f}",
            "times as fast": _ratio(row),
            "runs": f"{row.large_runs:.0f}, {row.small_runs:.0f}",
        }

    return _by_threads(rows, "batch", "rows", cells)


def on_gpu(rows: pd.DataFrame, large: str, small: str) -> pd.DataFrame:
    """A row a precision, batch and length on the GPU: milliseconds, and how many times as fast the small model is."""
    made = {(row.precision, row.batch, row.length): _latencies(row, large, small) for row in rows.itertuples()}
    return _table(made, ["precision", "rows", "tokens"])


def agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a length and thread count: the ratios of the first two runs, and how far they are apart."""
    made = {}
    for (threads, length), own in rows.sort_values("run").groupby(["threads", "length"]):
        if len(own) < 2:
            continue
        first, second = (row for _, row in own.iloc[:2].iterrows())
        meet = (
            first.times_as_fast_low <= second.times_as_fast_high
            and second.times_as_fast_low <= first.times_as_fast_high
        )
        made[int(length), int(threads)] = {
            "first run": _ratio(first),
            "second run": _ratio(second),
            "apart (%)": f"{100 * abs(second.times_as_fast / first.times_as_fast - 1):.1f}",
            "intervals meet": "yes" if meet else "no",
        }
    return _table(made, ["tokens", "threads"])


def passes(rows: pd.DataFrame, large: str, small: str) -> pd.DataFrame:
    """A row a thread count: seconds of a pass over real rows, and the ratios."""
    made = {}
    for row in rows.sort_values("threads").itertuples():
        made[int(row.threads)] = {
            "rows": f"{row.rows:,.0f}",
            f"{large} (s)": f"{row.large_pass_seconds:.2f}",
            f"{small} (s)": f"{row.small_pass_seconds:.2f}",
            f"{large}, 1,000 rows (s)": _or_nothing(row, "large_pass_of_1000_rows_seconds"),
            f"{small}, 1,000 rows (s)": _or_nothing(row, "small_pass_of_1000_rows_seconds"),
            "times as fast, totals": f"{row.large_pass_seconds / row.small_pass_seconds:.2f}",
            "median of rows": _ratio(row),
        }
    return pd.DataFrame(made).T.rename_axis("threads")


def gflops(rows: pd.DataFrame, large: str, small: str) -> pd.DataFrame:
    """A row a length and thread count: arithmetic per second of the models and of a plain product."""

    def cells(row) -> dict[str, str]:
        sides = {large: row.large_gflops, small: row.small_gflops, "plain product": row.product_gflops}
        return {name: f"{value:.1f}" for name, value in sides.items()}

    return _by_threads(rows, "length", "tokens", cells)


def agreement_in_words(rows: pd.DataFrame, shortest: int = 64, longest: int = 256) -> str:
    """How far the ratios of two runs are apart, at most, and at lengths of every day."""
    table = agreement(rows)
    if table.empty:
        return f"{tables.NOTHING} one run in this profile"
    apart = table["apart (%)"].astype(float)
    daily = apart[(apart.index >= shortest) & (apart.index <= longest)]
    met = int((table["intervals meet"] == "yes").sum())
    return (
        f"With {shortest} to {longest} tokens the two runs' ratios are {daily.max():.1f}% apart at most, over all "
        f"lengths {apart.max():.1f}%; the intervals of {met} of {len(table)} points meet."
    )


def alone(row: pd.Series, large: str, small: str) -> pd.DataFrame:
    """A column a model: parameters, size, memory and cold start, and how the small one compares."""
    names = {
        "parameters": ("parameters (million)", 1e-6, 2),
        "parameters_without_embeddings": ("… without embeddings (million)", 1e-6, 2),
        "size_mb": ("on disk, with a head for one score (MB)", 1, 1),
        "footprint_mb": ("weights in memory (MB)", 1, 1),
        "peak_memory_mb": ("peak memory, all weights read (MB)", 1, 1),
        "first_peak_memory_mb": ("peak memory of the first answer (MB)", 1, 1),
        "anonymous_mb": ("… held: its own (MB)", 1, 1),
        "file_backed_mb": ("… held: read from a file (MB)", 1, 1),
        "cold_start_s": ("cold start (s)", 1, 2),
        "imports_s": ("… of which imports (s)", 1, 2),
        "loading_s": ("… of which loading (s)", 1, 2),
        "first_s": ("… of which the first answer (s)", 1, 3),
    }
    made = {}
    for name, (label, scale, decimals) in names.items():
        values = [row[f"{side}_{name}"] * scale for side in SIDES]
        cells = {model: f"{value:,.{decimals}f}" for model, value in zip((large, small), values, strict=True)}
        made[label] = cells | {f"{small} has": f"{values[1] / values[0]:.0%}" if values[0] > 0 else tables.NOTHING}
    return pd.DataFrame(made).T.rename_axis("one process a model")


def in_words(rows: pd.DataFrame, large: str, small: str) -> str:
    """The span of ratios over lengths, and what it means in time saved."""
    first = rows[rows.run == 0]
    says = []
    for threads, own in first.groupby("threads"):
        least, most = own.loc[own.times_as_fast.idxmin()], own.loc[own.times_as_fast.idxmax()]
        on = f"{int(threads)} thread{'s' if threads > 1 else ''}"
        says.append(
            f"- On {on}, {small} is {least.times_as_fast:.2f} times as fast as {large} with {int(least.length)} tokens "
            f"and {most.times_as_fast:.2f} times with {int(most.length)}; the time saved is "
            f"{1 - 1 / least.times_as_fast:.0%} to {1 - 1 / most.times_as_fast:.0%}."
        )
    return "\n".join(says)


def depth_table(rows: pd.DataFrame, lengths: pd.DataFrame) -> pd.DataFrame:
    """A row a length: the fitted line, so much a layer and the rest, and half the layers beside the small model."""
    made = {}
    for _, row in rows.iterrows():
        whole, half = (row.rest_ms + layers * row.layer_ms for layers in (row.layers, row.layers / 2))
        same = lengths[(lengths.length == row.depth) & (lengths.threads == 1) & (lengths.run == 0)]
        made[int(row.depth)] = {
            "a layer (ms)": f"{row.layer_ms:.2f}",
            "the rest (ms)": tables.with_ends(row.rest_ms, row.rest_ms_low, row.rest_ms_high),
            f"the rest, of all {row.layers:.0f} layers' time (%)": f"{100 * row.rest_ms / whole:z.1f}",
            "half the layers, by the line: times as fast": f"{whole / half:.2f}",
            "the small model, measured": f"{same.times_as_fast.iloc[0]:.2f}" if len(same) else tables.NOTHING,
        }
    return pd.DataFrame(made).T.rename_axis("tokens")


def _latencies(row, large: str, small: str) -> dict[str, str]:
    return {
        f"{large} p50, p95 (ms)": f"{row.large_latency_p50_ms:.2f}, {row.large_latency_p95_ms:.2f}",
        f"{small} p50, p95 (ms)": f"{row.small_latency_p50_ms:.2f}, {row.small_latency_p95_ms:.2f}",
        "times as fast": _ratio(row),
        "runs": f"{row.large_runs:.0f}, {row.small_runs:.0f}",
    }


def _ratio(row) -> str:
    return tables.with_ends(row.times_as_fast, row.times_as_fast_low, row.times_as_fast_high)


def _or_nothing(row, name: str) -> str:
    value = getattr(row, name, np.nan)
    return f"{value:.2f}" if np.isfinite(value) else tables.NOTHING


def _by_threads(
    rows: pd.DataFrame, column: str, name: str, cells: Callable[[NamedTuple], dict[str, str]]
) -> pd.DataFrame:
    """A row's cells for each thread count and value of the column, which `name` heads."""
    ordered = rows.sort_values(["threads", column]).itertuples()
    return _table({(int(getattr(row, column)), int(row.threads)): cells(row) for row in ordered}, [name, "threads"])


def _table(made: dict, names: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(made).T
    if len(table):
        table.index = pd.Index([key[0] for key in made], name=names[0])
        for place, name in enumerate(names[1:]):
            table.insert(place, name, [key[place + 1] for key in made])
    return table
