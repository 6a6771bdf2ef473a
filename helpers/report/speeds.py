"""Times and sizes: a large model against a small one (notebook 08), and models exported for a phone (notebook 09)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..compression import variants
from ..compression.variants import BASE, FORMATS, HEADS, TASK
from ..measure import records
from ..measure.timing import SIDES
from . import comparison, tables
from .tables import INTERVAL, Column, ends

TIMES = Column("times as fast", ends("times_as_fast"), INTERVAL)
EXPORTED_TIMES = Column("times as fast", ends("latency_times_as_fast"), INTERVAL)
RUNS = Column("runs", lambda record: tuple(record["metrics"][f"{side}_runs"] for side in SIDES), "{:.0f}, {:.0f}")
MEMORY = [  # of each of the two models
    Column("parameters (million)", "parameters", "{:,.2f}", 1e-6),
    Column("… without embeddings (million)", "parameters_without_embeddings", "{:,.2f}", 1e-6),
    Column("on disk, with a head for one score (MB)", "size_mb"),
    Column("weights in memory (MB)", "footprint_mb"),
    Column("peak memory, all weights read (MB)", "peak_memory_mb"),
    Column("peak memory of the first answer (MB)", "first_peak_memory_mb"),
    Column("… held: its own (MB)", "anonymous_mb"),
    Column("… held: read from a file (MB)", "file_backed_mb"),
    Column("cold start (s)", "cold_start_s", "{:,.2f}"),
    Column("… of which imports (s)", "imports_s", "{:,.2f}"),
    Column("… of which loading (s)", "loading_s", "{:,.2f}"),
    Column("… of which the first answer (s)", "first_s", "{:,.3f}"),
]


# --- a large model against a small one


def frame(found: Sequence[dict]) -> pd.DataFrame:
    """Records as a frame, to draw from: a row each, its unit and its metrics."""
    return pd.DataFrame([record["unit"] | record["metrics"] for record in found])


def by_threads(rows: Sequence[dict], key: str, name: str, columns: Sequence[Column]) -> pd.DataFrame:
    """Table of the columns, by threads and what the unit has under `key`, which `name` heads."""
    ordered = sorted(rows, key=lambda row: (row["unit"]["threads"], row["unit"][key]))
    return _indexed(ordered, [Column("threads", _unit("threads"), "{}"), *columns], key, name)


def by_length(found: Sequence[dict], large: str, small: str) -> pd.DataFrame:
    """Table of first runs: a row a thread count and length; latencies, and how many times as fast the small one is."""
    return by_threads(records.of(found, run=0), "length", "tokens", [*_latencies(large, small), TIMES, RUNS])


def by_batch(found: Sequence[dict], large: str, small: str) -> pd.DataFrame:
    """Table of throughput: a row a thread count and batch; rows a second, and how many times as fast the small one."""
    return by_threads(found, "batch", "rows", [*_sides(large, small, "{} (rows/s)", "samples_per_s"), TIMES, RUNS])


def gflops(found: Sequence[dict], large: str, small: str) -> pd.DataFrame:
    """Table of arithmetic per second: a row a thread count and length; of the models, and of a plain product."""
    product = Column("plain product", "product_gflops", "{:.1f}")
    return by_threads(found, "length", "tokens", [*_sides(large, small, "{}", "gflops", "{:.1f}"), product])


def on_gpu(found: Sequence[dict], large: str, small: str) -> pd.DataFrame:
    """Table of latencies on the GPU: a row a precision, batch and length."""
    where = [Column("rows", _unit("batch"), "{}"), Column("tokens", _unit("length"), "{}")]
    return _indexed(found, [*where, *_latencies(large, small), TIMES, RUNS], "precision", "precision")


def passes(found: Sequence[dict], large: str, small: str) -> pd.DataFrame:
    """Table of a pass over real rows: a row a thread count; seconds, and the ratios."""
    totals = _sides(large, small, "{} (s)", "pass_seconds", "{:.2f}")
    firsts = _sides(large, small, "{}, 1,000 rows (s)", "pass_of_1000_rows_seconds", "{:.2f}")
    ratio = Column("times as fast, totals", lambda record: totals[0].of(record) / totals[1].of(record), "{:.2f}")
    columns = [Column("rows", "rows", "{:,.0f}"), *totals, *firsts, ratio, TIMES._replace(header="median of rows")]
    return _indexed(sorted(found, key=_unit("threads")), columns, "threads", "threads")


def memory(record: dict, large: str, small: str) -> pd.DataFrame:
    """Table of memory and cold start: a column a model, and how the small one compares."""
    scores = record["metrics"].items()
    one, other = ({"metrics": {key.removeprefix(f"{side}_"): value for key, value in scores}} for side in SIDES)
    columns = [
        Column(large, lambda row: row.cell(one)),
        Column(small, lambda row: row.cell(other)),
        Column(f"{small} has", lambda row: row.of(other) / row.of(one) if row.of(one) > 0 else None, "{:.0%}"),
    ]
    return tables.build(MEMORY, columns, lambda row: row.header, "one process a model")


# --- models exported for a phone


def exported_label(record: dict) -> str:
    """What was done to the model, and the format that it is in."""
    return f"{variants.parse(record['unit']['variant']).label} ({FORMATS[record['unit']['format']]})"


def exported_table(found: Sequence[dict], head: str, threads: int) -> pd.DataFrame:
    """Table of exported models on so many threads: size, latency, memory and cold start; medians of processes."""

    def latencies(record: dict) -> str:
        shares = (f"latency_{share}_ms" for share in ("mean", "p50", "p90", "p99"))
        return ", ".join(Column("", share, "{:.2f}").cell(record) for share in shares)

    columns = [
        Column("size (MB)", "size_mb"),
        Column("mean, p50, p90, p99 (ms)", latencies),
        Column(
            "the whole model beside it (ms)", lambda r: np.median(r["details"]["seconds"]["reference"]), "{:.2f}", 1e3
        ),
        EXPORTED_TIMES,
        Column("n", "runs", "{:.0f}"),
        Column("peak memory (MB)", "peak_memory_mb", "{:,.0f}"),
        Column("cold start (s)", "cold_start_s", "{:.2f}"),
    ]
    own = records.of(found, head=head, threads=threads)
    return tables.build(own, columns, exported_label, f"{HEADS[head]}, threads: {threads}")


def exported_answers(found: Sequence[dict], head: str) -> pd.DataFrame:
    """Table of exported models: how good their answers are, and how near to those of the PyTorch model."""
    own = [record for record in records.of(found, head=head) if "score" in record["metrics"]]
    base = next(iter(records.of(own, variant=BASE, format="onnx")), None)

    def p(record: dict) -> str | None:
        if base is None or record is base:
            return None
        answers = (one["details"]["predictions"] for one in (record, base))
        value = comparison.p_value(TASK, *answers, *(record["details"][name] for name in ("references", "texts")))
        return "< 0.001" if value < 0.001 else f"{value:.3f}"

    columns = [
        Column("accuracy (%)" if head == TASK else "masked tokens right (%)", "score", "{:.1f}", 100),
        Column("p", p),
        Column("loss (nats)", "loss", "{:.3f}"),
        Column("same as the PyTorch model it was made from (%)", "agreement", "{:.1f}", 100),
        Column("largest difference of a logit", "largest_difference", "{:.1g}"),
    ]
    return tables.build(own, columns, exported_label, HEADS[head])


def exported_shares(found: Sequence[dict], head: str, threads: int) -> pd.DataFrame:
    """Shares of the whole fp32 model in ONNX format: a row a variant; `latency` in one run, with ends, and `size`."""
    own = {r["unit"]["variant"]: r["metrics"] for r in records.of(found, head=head, threads=threads, format="onnx")}
    rows = {}
    for name, scores in own.items() if BASE in own else ():
        slow, low, high = (1 / scores[f"latency_times_as_fast{end}"] for end in ("", "_high", "_low"))
        size = scores["size_mb"] / own[BASE]["size_mb"]
        rows[name] = {"latency": slow, "latency_low": low, "latency_high": high, "size": size}
    return pd.DataFrame(rows).T


def published_on_android() -> pd.DataFrame:
    """The table that was measured on Android's emulator: a row a variant, MB and milliseconds, and as shares."""
    numbers = tables.published("reproducibility-extension-challenge", "android")
    made = numbers.pivot_table(index="model", columns="metric", values="value", aggfunc="first", sort=False)
    made = made.astype(float).assign(size_mb=lambda own: own.model_size * 2**20 / 1e6)  # printed in MiB
    whole = made.loc["baseline"]
    return made.assign(latency=made.latency_p50 / whole.latency_p50, size=made.size_mb / whole.size_mb)


def _sides(large: str, small: str, head: str, metric: str, form: str = "{:,.1f}") -> list[Column]:
    """A column for each of the two models, its name put into `head`."""
    names = zip(SIDES, (large, small), strict=True)
    return [Column(head.format(name), f"{side}_{metric}", form) for side, name in names]


def _latencies(large: str, small: str) -> list[Column]:
    def both(side: str) -> Callable[[dict], tuple[float, ...]]:
        return lambda record: tuple(record["metrics"][f"{side}_latency_{share}_ms"] for share in ("p50", "p95"))

    names = zip(SIDES, (large, small), strict=True)
    return [Column(f"{name} p50, p95 (ms)", both(side), "{:.2f}, {:.2f}") for side, name in names]


def _unit(name: str) -> Callable[[dict], int]:
    return lambda row: row["unit"][name]


def _indexed(rows: Sequence[dict], columns: Sequence[Column], key: str, name: str) -> pd.DataFrame:
    """A table of units whose labels, what they have under `key`, come again."""
    made = tables.build(rows, columns, lambda row: records.slug(row["unit"]), name)
    return made.set_axis(pd.Index([row["unit"][key] for row in rows], name=name))
