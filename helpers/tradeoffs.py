"""Compressed variants side by side: what each costs in accuracy and buys in size, memory and time."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import comparison, machine, metrics, pruned, tables
from .downstream import unpack
from .language import of
from .variants import BASE

FAMILIES = {"fp32": "half or full precision", "bf16": "half or full precision", "fp16": "half or full precision"}
BY_START = {"torch": "PyTorch int8", "torchao": "PyTorch int8", "bnb": "bitsandbytes", "onnx": "ONNX Runtime"}
BY_START["openvino"] = "OpenVINO"
BY_START |= {"weights": "weights set to zero", "masked": "masked, not cut", "layers": "layers dropped"}
BY_START |= dict.fromkeys(("taylor", "magnitude", "random"), "heads and neurons cut")
BOTH = "pruned, and int8"
NEAR = 1.0  # points: what a variant may lose and still be advised
HARDLY = 3.0  # points: no more than this above knowing nothing
LATENCY = "latency p50, p95; fp32's beside it (ms)"


def family(variant: str) -> str:
    """The technique that a variant belongs to; each has its colour in the figures."""
    if variant in FAMILIES:
        return FAMILIES[variant]
    start = variant.split("_")[0]
    if start == BASE:
        return BY_START["onnx"] if pruned.way(variant).int8 else FAMILIES[BASE]
    return BOTH if start in pruned.METHODS and pruned.way(variant).int8 else BY_START[start]


def frame(found: Sequence[dict]) -> pd.DataFrame:
    """A row a record: its unit, its metrics, the label and the family of its variant, its score in percent."""
    rows = [
        record["unit"] | record["metrics"] | {"rows": len(record["details"]["references"].split())} for record in found
    ]
    made = pd.DataFrame(rows)
    if len(made):
        # All latencies on one scale: fp32's in each task and model, by the ratio that was measured in one run.
        base = made[made.variant == BASE].set_index(["task", "model"]).latency_p50_ms
        own = pd.Series([base.get((row.task, row.model), np.nan) for row in made.itertuples()], made.index)
        for end, by in (("", ""), ("_low", "_high"), ("_high", "_low")):
            made[f"latency_ms{end}"] = own / made[f"latency_times_as_fast{by}"]
        made["label"] = made.variant.map(pruned.label)
        made["family"] = made.variant.map(family)
        made["score"] = 100 * made.score
    return made


def p_value(record: dict, reference: dict) -> float:
    """Of the difference in score between a variant and fp32, by swapping their answers row by row."""
    lines = [one["details"]["predictions"] for one in (record, reference)]
    return comparison.p_value(record["unit"]["task"], *lines, record["details"]["references"])


def table(found: Sequence[dict], task: str, model: str, missing: dict[str, str]) -> pd.DataFrame:
    """A row a variant of one model on one task. `missing`: variants that can't be had here, with the reason."""
    own = of(found, task=task, model=model)
    base = next((record for record in own if record["unit"]["variant"] == BASE), None)
    rows = {}
    for record in own:
        scores, variant = record["metrics"], record["unit"]["variant"]
        row = {"score (%)": f"{100 * scores['score']:.1f}", "agrees with fp32 (%)": f"{100 * scores['agreement']:.1f}"}
        other = record is not base and base is not None
        change = 100 * (scores["score"] - base["metrics"]["score"]) if other else 0
        row["against fp32 (points)"] = f"{change:+z.1f}" if other else tables.NOTHING
        row["p"] = _p(p_value(record, base)) if other else tables.NOTHING
        row["size (MB)"] = f"{scores['size_mb']:,.1f}"
        row["weights in memory (MB)"] = _number(scores, "footprint_mb", 1)
        row["peak memory (MB)"] = _number(scores, "peak_memory_mb", 0)
        if "device" in record["unit"]:
            row["… on the GPU (MB)"] = _number(scores, "peak_gpu_memory_mb", 0)
        row[LATENCY] = _latency(record)
        row["times as fast, one row"] = _ratio(scores, "latency")
        row["rows/s, batch"] = f"{scores['samples_per_s']:,.0f}"
        row["times as fast, batch"] = _ratio(scores, "throughput")
        if "imports_s" in scores:
            row["cold start, of it imports (s)"] = f"{scores['cold_start_s']:.2f}, {scores['imports_s']:.2f}"
        rows[pruned.label(variant)] = row
    for variant, reason in missing.items() if own else ():
        rows[f"{pruned.label(variant)} (– {reason})"] = {"score (%)": tables.NOTHING}
    return pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("variant")


def together(found: Sequence[dict], task: str, model: str) -> pd.DataFrame:
    """A row a pruned variant in 8 bits: what its two parts would give if gains multiplied and losses added up.

    Both parts are measured alone, beside the whole model in fp32; score changes are in points.
    """
    own = frame(of(found, task=task, model=model))
    by_name = {row.variant: row for row in own.itertuples()} if len(own) else {}
    base, eight, rows = by_name.get(BASE), by_name.get(f"{BASE}_int8"), {}
    for name, both in by_name.items() if base and eight else ():
        alone = by_name.get(name.removesuffix("_int8"))
        if not name.endswith("_int8") or both is eight or alone is None:
            continue
        times = [row.latency_times_as_fast for row in (alone, eight, both)]
        changes = [row.score - base.score for row in (alone, eight, both)]
        rows[alone.label] = {
            "alone": f"{times[0]:.2f}",
            "int8 alone": f"{times[1]:.2f}",
            "product": f"{times[0] * times[1]:.2f}",
            "measured": _ratio(both._asdict(), "latency"),
            "sum of changes (points)": f"{changes[0] + changes[1]:+z.1f}",
            "measured (points)": f"{changes[2]:+z.1f}",
        }
    return pd.DataFrame(rows).T.rename_axis("what is pruned")


def full_size(found: Sequence[dict]) -> pd.DataFrame:
    """A row a variant of DistilBERT's architecture: what it takes and how fast it is, whatever it knows."""
    rows = {}
    for record in found:
        scores = record["metrics"]
        rows[pruned.label(record["unit"]["variant"])] = {
            "parameters (million)": f"{scores['parameters'] / 1e6:.1f}",
            "size (MB)": f"{scores['size_mb']:.1f}",
            LATENCY: _latency(record),
            "times as fast": _ratio(scores, "latency"),
            "runs": f"{scores['runs']:.0f}",
        }
    return pd.DataFrame(rows).T.rename_axis("variant")


def losses_table(found: Sequence[dict]) -> pd.DataFrame:
    """A row a variant of the pretrained student: its held-out losses and its size."""
    rows, base = {}, next((record["metrics"] for record in found if record["unit"]["variant"] == BASE), None)
    for record in found:
        columns = {name: tables.COLUMNS[name] for name in ("masked_lm_loss", "kl_to_teacher", "cosine_loss")}
        values = {c.header: tables.cell(pd.Series([record["metrics"][n]]), c) for n, c in columns.items()}
        if base:
            change = record["metrics"]["masked_lm_loss"] - base["masked_lm_loss"]
            values["change of masked-LM loss (nats)"] = f"{change:+z.3f}"
        rows[pruned.label(record["unit"]["variant"])] = values | {"size (MB)": f"{record['metrics']['size_mb']:.1f}"}
    return pd.DataFrame(rows).T.rename_axis("variant")


def everything(found: Sequence[dict]) -> pd.DataFrame:
    """A row a variant, for every task and model: score with its p-value, size, and speed for one row against fp32.

    Below them, what always giving the commoner answer would score.
    """
    rows, commoner = {}, {}
    for record in found:
        unit, scores = record["unit"], record["metrics"]
        name, (base,) = f"{unit['task']}, {tables.MODELS[unit['model']]}", of(found, **unit | {"variant": BASE})
        p = "" if record is base else f" (p {_p(p_value(record, base))})"
        cells = {"score (%)": f"{100 * scores['score']:.1f}{p}", "size (MB)": f"{scores['size_mb']:.1f}"}
        cells["times as fast"] = f"{scores['latency_times_as_fast']:.2f}"
        row = rows.setdefault(pruned.label(unit["variant"]), {})
        row |= {f"{name}: {header}": cell for header, cell in cells.items()}
        commoner[f"{name}: score (%)"] = f"{_commoner(record):.1f}"
    if rows:
        rows["always the commoner answer"] = commoner
    return pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("variant")


def hardly_better(found: Sequence[dict]) -> str:
    """On which tasks the whole model is so near to always giving the commoner answer that scores say little."""
    says = []
    for record in of(found, variant=BASE):
        unit, score, lazy = record["unit"], 100 * record["metrics"]["score"], _commoner(record)
        if score - lazy < HARDLY:
            says.append(
                f"- On {unit['task']} the {tables.MODELS[unit['model']]} in fp32 scores {score:.1f}, and the commoner "
                f"answer, always given, {lazy:.1f}: there is little to lose, so a score there says little."
            )
    return "\n".join(says)


def _commoner(record: dict) -> float:
    """The score in percent of always giving the answer that is right most often."""
    return 100 * metrics.by_guessing(record["unit"]["task"], unpack(record["details"]["references"]))


def repeats(found: Sequence[dict]) -> pd.DataFrame:
    """A row a model: how far ratios of speed are apart that were measured twice, the same shapes on two tasks."""
    rows = frame(found)
    if not len(rows) or rows.task.nunique() < 2:
        return pd.DataFrame()
    ratios = rows.pivot_table(index=["model", "variant"], columns="task", values="latency_times_as_fast").dropna()
    apart = (100 * (ratios.max(axis=1) / ratios.min(axis=1) - 1)).groupby("model")
    made = {"variants": apart.size(), "median (%)": apart.median().round(1), "at most (%)": apart.max().round(1)}
    return pd.DataFrame(made).rename(index=tables.MODELS).rename_axis("apart")


def instructions(found: Sequence[dict]) -> str:
    """The processor's instructions that speeds in few bits hang on, as the records have them."""
    every = [set(record["provenance"]["cpu_flags"]) for record in found]
    flags = [flag for flag in machine.TELLING if any(flag in own for own in every)]
    return f"Of its instructions, these matter here: {', '.join(flags) or 'none'}. " if every else ""


def _latency(record: dict) -> str:
    """The median, the 95th percentile, and fp32's median beside it."""
    scores, reference = record["metrics"], record["details"]["seconds"]
    reference = reference.get("latency", reference)["reference"]
    middle = f"{scores['latency_p50_ms']:.1f}, {scores['latency_p95_ms']:.1f}"
    return f"{middle}; {1e3 * float(np.median(reference)):.1f}"


def _p(value: float) -> str:
    return "< 0.01" if value < 0.01 else f"{value:.2f}"


def _number(scores: dict, metric: str, decimals: int) -> str:
    return f"{scores[metric]:,.{decimals}f}" if metric in scores else tables.NOTHING


def _ratio(scores: dict, what: str) -> str:
    return tables.with_ends(*(scores[f"{what}_times_as_fast{end}"] for end in ("", "_low", "_high")))


def front(points: pd.DataFrame, cost: str, gain: str = "score") -> pd.DataFrame:
    """The rows that no other one beats: none costs less and gains as much (the Pareto front), the cheapest first."""
    ordered = points.sort_values([cost, gain], ascending=[True, False])
    return ordered[ordered[gain] > ordered[gain].astype(float).cummax().shift(fill_value=-np.inf)]


def holm(p_values: dict[str, float], level: float = 0.05) -> set[str]:
    """Which of several differences are clear at a level when so many were looked at (Holm 1979)."""
    found: set[str] = set()
    for number, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > level / (len(p_values) - number):
            break
        found.add(name)
    return found


def clearly_other(found: Sequence[dict], task: str, model: str) -> list[str]:
    """The variants whose score differs clearly from fp32's, so many being compared."""
    by_name = {record["unit"]["variant"]: record for record in of(found, task=task, model=model)}
    base = by_name.pop(BASE)
    return sorted(holm({name: p_value(record, base) for name, record in by_name.items()}))


def in_words(found: Sequence[dict], task: str, model: str) -> str:
    """Which variants are worth it, in sentences that follow the numbers whichever way they fall."""
    own = frame(of(found, task=task, model=model))
    if not len(own) or set(own.variant) == {BASE} or BASE not in set(own.variant):
        return ""
    base, rest = own[own.variant == BASE].iloc[0], own[own.variant != BASE]
    by_name = {record["unit"]["variant"]: record for record in of(found, task=task, model=model)}
    says = []
    for what, metric, best, text in (
        ("fastest for one row", "latency_times_as_fast", "max", "{:.1f} times as fast as fp32"),
        ("fastest for a batch", "throughput_times_as_fast", "max", "{:.1f} times as fast as fp32"),
        ("smallest", "size_mb", "min", "{:.1f} MB, where fp32 has " + f"{base.size_mb:.1f}"),
    ):
        row = rest.loc[rest[metric].idxmax() if best == "max" else rest[metric].idxmin()]
        p = _p(p_value(by_name[row.variant], by_name[BASE]))
        says.append(
            f"- The {what}: {row.label}, {text.format(row[metric])}, {row.score - base.score:+z.1f} points (p {p})."
        )
    peaks = rest.dropna(subset="peak_memory_mb") if "peak_memory_mb" in rest else rest[:0]
    if len(peaks) > 1:
        least, most = (peaks.loc[peaks.peak_memory_mb.idxmin()], peaks.loc[peaks.peak_memory_mb.idxmax()])
        says.append(
            f"- Peak memory runs from {least.peak_memory_mb:.0f} MB ({least.label}) to {most.peak_memory_mb:.0f} MB "
            f"({most.label}); fp32 has {base.peak_memory_mb:.0f}."
        )
    slow = rest[rest.latency_times_as_fast_high < 1]
    if len(slow):
        says.append(f"- Slower than fp32 for one row: {'; '.join(slow.label)}.")
    clear = clearly_other(found, task, model)
    listed = [f"{r.label} ({r.score - base.score:+z.1f})" for r in rest.itertuples() if r.variant in clear]
    says.append(f"- Scores clearly other than fp32's (Holm, {len(rest)} comparisons): {'; '.join(listed) or 'none'}.")
    level = rest[rest.score > base.score - NEAR - 1e-9]
    if len(level):
        best = [
            level.loc[level[metric].idxmax()].label for metric in ("latency_times_as_fast", "throughput_times_as_fast")
        ]
        says.append(
            f"- **To choose by**, among those that lose no more than {NEAR:g} point: the smallest is "
            f"{level.loc[level.size_mb.idxmin()].label}; the fastest, for one row and for a batch, "
            f"{' and '.join(dict.fromkeys(best))}; the one that gives fp32's answer most often "
            f"{level.loc[level.agreement.idxmax()].label} ({100 * level.agreement.max():.1f}%)."
        )
    return "\n".join(says)
