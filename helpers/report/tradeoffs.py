"""Compressed variants, of notebooks 06, 07 and 09: what each costs in accuracy and buys in size, memory and time."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from ..compression import variants
from ..measure import metrics, records
from ..measure.records import of, unpack
from . import comparison, tables
from .tables import INTERVAL, Column, ends

NEAR = 1.0  # points: what a variant may lose and still be advised
SCORE, SIZE = Column("score (%)", "score", "{:.1f}", 100), Column("size (MB)", "size_mb")
AGAINST, AHEAD = "against the whole model (points)", "{:+z.1f} (p {})"  # that was trained as long
GAP = "{:+z.1f} points (95% interval {:+z.1f} to {:+z.1f})"
TIMES = "latency_times_as_fast"  # as fp32, for one row
FOLDED = {"p50 (ms)": "latency_p50_ms", "p95 (ms)": "latency_p95_ms", "rows/s, batch": "samples_per_s"}
FOLDED |= {"weights in memory (MB)": "footprint_mb", "cold start (s)": "cold_start_s", "of it imports (s)": "imports_s"}


def label(record: dict) -> str:
    """What the record's variant is called."""
    return variants.label(record["unit"]["variant"])


def frame(found: Sequence[dict]) -> pd.DataFrame:
    """A row a record: its unit, its metrics, the label and the family of its variant, its score in percent."""
    rows = [one["unit"] | one["metrics"] | {"rows": len(one["details"]["references"].split())} for one in found]
    made = pd.DataFrame(rows)
    if len(made):
        # All latencies on one scale: fp32's in each task and model, by the ratio that was measured in one run.
        base = made[made.variant == variants.BASE].set_index(["task", "model"]).latency_p50_ms
        own = pd.Series([base.get((row.task, row.model), np.nan) for row in made.itertuples()], made.index)
        for end, by in (("", ""), ("_low", "_high"), ("_high", "_low")):
            made[f"latency_ms{end}"] = own / made[f"{TIMES}{by}"]
        made["label"] = made.variant.map(variants.label)
        made["family"] = made.variant.map(variants.family)
        made["score"] = 100 * made.score
    return made


def p_value(record: dict, reference: dict) -> float:
    """Of the difference in score between a variant and fp32, by swapping their answers row by row."""
    lines = [one["details"]["predictions"] for one in (record, reference)]
    return comparison.p_value(record["unit"]["task"], *lines, record["details"]["references"])


def between(record: dict, reference: dict, score: metrics.Score) -> tuple[float, float, float]:
    """By how many points a variant is ahead of another, with the 95% interval over the rows that they share."""
    runs = {name: unpack(one["details"]["predictions"])[None] for name, one in (("", record), ("other", reference))}
    own, other = metrics.resample(runs, unpack(record["details"]["references"]), score).values()
    return points(record, reference), *metrics.interval(100 * (own - other))


def rival(record: dict, found: Sequence[dict]) -> dict:
    """What a variant's answers are judged against, of the records: the whole model in fp32, trained as long.

    A variant that was trained again has had more training than fp32, which gains by that, too.
    """
    unit, control = record["unit"], f"{variants.BASE}_recovered"
    again = variants.parse(unit["variant"]).recovered and unit["variant"] != control
    alike = of(found, **unit | {"variant": control}) if again else []
    return (alike or of(found, **unit | {"variant": variants.BASE}))[0]


def points(record: dict, reference: dict) -> float:
    """By how much the record's score is ahead of the other's."""
    return 100 * (record["metrics"]["score"] - reference["metrics"]["score"])


def against(found: Sequence[dict], record: dict) -> tuple[float, str] | None:
    """By how many points a record is ahead of its rival among those found, and p; None of the rival itself."""
    whole = rival(record, found)
    return None if whole is record else (points(record, whole), metrics.written(p_value(record, whole)))


def table(found: Sequence[dict], task: str, model: str, missing: dict[str, str]) -> pd.DataFrame:
    """A row a variant of one model on one task. `missing`: variants that can't be had here, with the reason."""
    own = of(found, task=task, model=model)
    memory = "peak_gpu_memory_mb" if any("device" in one["unit"] for one in own) else "peak_memory_mb"
    columns = [  # a page shows the first five
        Column(AGAINST, partial(against, own), AHEAD),
        Column("same answers (%)", "agreement", "{:.1f}", 100),
        SIZE,
        Column("peak memory (MB)", memory, "{:,.0f}"),
        Column("times as fast, one row", ends(TIMES), INTERVAL),
        SCORE,
        Column("times as fast, batch", ends("throughput_times_as_fast"), INTERVAL),
    ]
    columns += [Column(header, metric, "{:,.2f}") for header, metric in FOLDED.items()]
    made = tables.build(own, columns, label, "variant")
    for variant, reason in missing.items() if own else ():
        made.loc[f"{variants.label(variant)} (– {reason})"] = tables.NOTHING
    return made


def finalists(found: Sequence[dict], task: str, model: str) -> list[str]:
    """Labels of fp32, and of the fastest variants for one row that lose no more than `NEAR`: ten at the most."""
    own = of(found, task=task, model=model)
    near = [one for one in own if points(one, rival(one, own)) > -NEAR - 1e-9]
    near.sort(key=lambda one: (one["unit"]["variant"] != variants.BASE, -one["metrics"][TIMES]))
    return list(map(label, near[: tables.ROWS]))


def full_size(found: Sequence[dict]) -> pd.DataFrame:
    """A row a variant of DistilBERT's architecture: what it takes and how fast it is, whatever it knows."""
    columns = [Column("parameters (million)", "parameters", "{:.1f}", 1e-6), SIZE, Column("p50 (ms)", "latency_p50_ms")]
    columns += [Column("times as fast", ends(TIMES), INTERVAL), Column("runs", "runs", "{:.0f}")]
    return tables.build(found, columns, label, "variant")


def losses_table(found: Sequence[dict]) -> pd.DataFrame:
    """A row a variant of the pretrained student: its held-out losses and its size."""
    base = next((record["metrics"]["masked_lm_loss"] for record in of(found, variant=variants.BASE)), np.nan)
    columns = [tables.COLUMNS[name] for name in ("masked_lm_loss", "kl_to_teacher", "cosine_loss")]
    change = Column("change of masked-LM loss (nats)", lambda r: r["metrics"]["masked_lm_loss"] - base, "{:+z.3f}")
    return tables.build(found, [*columns, change, SIZE], label, "variant")


def everything(found: Sequence[dict]) -> pd.DataFrame:
    """A row a variant; of each task and model fp32's score, the points that others are ahead of it, size and speed.

    Below them, what always giving the commoner answer would score.
    """
    rows, lazy, ahead = {}, {}, Column(AGAINST, partial(against, found), AHEAD)
    for record in found:
        name = f"{record['unit']['task']}, {tables.MODELS[record['unit']['model']]}"
        score = SCORE if record["unit"]["variant"] == variants.BASE else ahead
        row = rows.setdefault(label(record), {})
        row |= {name: score.cell(record), f"{name}: size (MB)": SIZE.cell(record)}
        row[f"{name}: times as fast"] = f"{record['metrics'][TIMES]:.2f}"
        truth = unpack(record["details"]["references"])
        lazy[name] = f"{100 * metrics.by_guessing(record['unit']['task'], truth):.1f}"
    rows |= {"always the commoner answer": lazy} if found else {}
    return pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("variant")


def repeats(found: Sequence[dict]) -> float:
    """By how many percent, at most, ratios of speed are apart that were measured twice, on two tasks; NaN if none."""
    rows = frame(found)
    ratios = rows.pivot_table(index=["model", "variant"], columns="task", values=TIMES).dropna() if len(rows) else rows
    return 100 * (ratios.max(axis=1) / ratios.min(axis=1) - 1).max() if ratios.shape[1] > 1 else np.nan


def instructions(found: Sequence[dict]) -> str:
    """The processor's instructions that speeds in few bits hang on, as the records have them."""
    flags = [flag for flag in records.TELLING if any(flag in one["provenance"]["cpu_flags"] for one in found)]
    return f"Of its instructions, these matter here: {', '.join(flags) or 'none'}. " if found else ""


def in_words(found: Sequence[dict], task: str, model: str) -> str:
    """Which variants are worth it, in sentences that follow the numbers whichever way they fall."""
    by_name = {record["unit"]["variant"]: record for record in of(found, task=task, model=model)}
    if not by_name.keys() > {variants.BASE}:
        return ""
    base, says = by_name.pop(variants.BASE), []
    size, rest = base["metrics"]["size_mb"], frame(list(by_name.values()))
    rivals = {name: rival(record, [base, *by_name.values()]) for name, record in by_name.items()}
    rest["points"] = [points(record, rivals[name]) for name, record in by_name.items()]
    level = rest[rest.points > -NEAR - 1e-9]  # a model that guesses is faster still
    best: dict[int, list[str]] = {}  # of one variant, perhaps
    for what, metric, pick in (("fastest", TIMES, "idxmax"), ("smallest", "size_mb", "idxmin")) if len(level) else ():
        best.setdefault(getattr(level[metric], pick)(), []).append(what)
    for place, titles in best.items():
        row, what = level.loc[place], f"{' and '.join(titles)} that loses no more than {NEAR:g} point"
        gain = f"{row[TIMES]:.1f} times as fast as fp32 for one row, {row.size_mb:.1f} MB against {size:.1f}"
        gap = GAP.format(*between(by_name[row.variant], rivals[row.variant], partial(metrics.quick_score, task)))
        says.append(f"- The {what}: {row.label}, {gain}, {gap}.")
    slow = rest[rest[f"{TIMES}_high"] < min(1, base["metrics"][f"{TIMES}_low"])]  # than fp32 against itself
    says += [f"- Slower than fp32 for one row: {'; '.join(slow.label)}."] if len(slow) else []
    clear = metrics.holm({name: p_value(record, rivals[name]) for name, record in by_name.items()})
    apart = rest[rest.variant.isin(clear)].sort_values("points", ascending=False)
    listed = [f"{row.label} ({row.points:+z.1f})" for row in apart.itertuples()]
    named = "; ".join(listed) if len(listed) < 4 else f"from {listed[0]} to {listed[-1]}"
    of_all = f"{len(listed)} of {len(rest)} (Holm)" + (f": {named}" if listed else "")
    says.append(f"- Clearly apart in score from the whole model, trained as long: {of_all}.")
    return "\n".join(says)
