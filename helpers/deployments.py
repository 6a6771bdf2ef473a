"""Records of notebook 09 side by side: exported models by format and threads, and a table of a phone's beside them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from . import comparison, models, pruned, tables
from .deployed import FORMATS, HEADS, TASK
from .language import of
from .variants import BASE

MIB = 2**20 / 1e6  # MB
_ENDS = (("", ""), ("_low", "_high"), ("_high", "_low"))  # of a time, and of the speed that it is one over


def label(variant: str, kind: str) -> str:
    """A row of a table: what was done to the model, and the format that it is in."""
    return f"{pruned.way(variant).label} ({FORMATS[kind]})"


def table(found: Sequence[dict], head: str, threads: int) -> pd.DataFrame:
    """A row a variant and format on so many threads: size, latency, memory and cold start; medians of processes."""
    rows = {}
    for record in of(found, head=head, threads=threads):
        scores, unit = record["metrics"], record["unit"]
        shares = [scores.get(f"latency_{name}_ms", np.nan) for name in ("mean", "p50", "p90", "p99")]
        row = {"size (MB)": f"{scores['size_mb']:,.1f}"}
        row["mean, p50, p90, p99 (ms)"] = ", ".join(tables.NOTHING if np.isnan(v) else f"{v:.2f}" for v in shares)
        row["the whole model beside it (ms)"] = f"{1e3 * np.median(record['details']['seconds']['reference']):.2f}"
        ends = (scores[f"latency_times_as_fast{end}"] for end in ("", "_low", "_high"))
        row["times as fast"] = tables.with_ends(*ends)
        row["n"] = f"{scores['runs']:.0f}"
        row["peak memory (MB)"] = f"{scores['peak_memory_mb']:,.0f}"
        row["cold start (s)"] = f"{scores['cold_start_s']:.2f}"
        rows[label(unit["variant"], unit["format"])] = row
    return pd.DataFrame(rows).T.rename_axis(f"{HEADS[head]}, threads: {threads}")


def answers(found: Sequence[dict], head: str) -> pd.DataFrame:
    """A row a variant and format: how good its answers are, and how near to those of the PyTorch model."""
    own = [record for record in of(found, head=head) if "score" in record["metrics"]]
    base = next((r for r in own if (r["unit"]["variant"], r["unit"]["format"]) == (BASE, "onnx")), None)
    rows = {}
    for record in own:
        scores, name = record["metrics"], label(record["unit"]["variant"], record["unit"]["format"])
        rows[name] = {
            "accuracy (%)" if head == TASK else "masked tokens right (%)": f"{100 * scores['score']:.1f}",
            "p": tables.NOTHING if record is base or base is None else _p(p_value(record, base)),
            "loss (nats)": f"{scores['loss']:.3f}",
            "same as the PyTorch model it was made from (%)": f"{100 * scores['agreement']:.1f}",
            "largest difference of a logit": f"{scores['largest_difference']:.1g}",
        }
    return pd.DataFrame(rows).T.rename_axis(HEADS[head])


def p_value(record: dict, reference: dict) -> float:
    """Of the difference in accuracy between two records, by swapping their answers text by text."""
    lines = [one["details"]["predictions"] for one in (record, reference)]
    return comparison.p_value(TASK, *lines, *(record["details"][name] for name in ("references", "texts")))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def relative(found: Sequence[dict], head: str, threads: int, kind: str = "onnx") -> pd.DataFrame:
    """A row a variant: its latency and its size as a share of the whole fp32 model's, `latency`, with ends, and `size`.

    From ratios that were measured in one run.
    """
    own = of(found, head=head, threads=threads, format=kind)
    base = next((r["metrics"] for r in own if r["unit"]["variant"] == BASE), None)
    rows = {}
    for record in own if base else ():
        scores = record["metrics"]
        row = {f"latency{end}": 1 / scores[f"latency_times_as_fast{by}"] for end, by in _ENDS}
        rows[record["unit"]["variant"]] = row | {"size": scores["size_mb"] / base["size_mb"]}
    return pd.DataFrame(rows).T


def published() -> pd.DataFrame:
    """The table that was measured on Android's emulator: a row a variant, MB and milliseconds, and as shares."""
    numbers = tables.published("reproducibility-extension-challenge", "android")
    made = numbers.pivot_table(index="model", columns="metric", values="value", aggfunc="first", sort=False)
    made = made.astype(float).assign(size_mb=lambda own: own.model_size.astype(float) * MIB)
    whole = made.loc["baseline"]
    return made.assign(latency=made.latency_p50 / whole.latency_p50, size=made.size_mb / whole.size_mb)


def with_a_second_vocabulary() -> tuple[float, float]:
    """What DistilBERT with its masked-LM head takes in fp32, in MB; and with the vocabulary's matrix stored twice."""
    with torch.device("meta"):
        model = DistilBertForMaskedLM(DistilBertConfig())
    vocabulary = model.get_input_embeddings().weight.numel()
    return 4e-6 * models.parameters(model), 4e-6 * (models.parameters(model) + vocabulary)


def gains(found: Sequence[dict], head: str, threads: int) -> pd.DataFrame:
    """A row a variant in ONNX format: the size it leaves of the whole fp32 model's, its speed, its score's change."""
    own = of(found, head=head, threads=threads, format="onnx")
    base = next((record["metrics"] for record in own if record["unit"]["variant"] == BASE), None)
    right, rows = "accuracy" if head == TASK else "masked tokens right", {}
    for record in own if base else ():
        scores, variant = record["metrics"], record["unit"]["variant"]
        if variant != BASE:
            row = {"size left (%)": f"{100 * scores['size_mb'] / base['size_mb']:.0f}"}
            ends = (scores[f"latency_times_as_fast{end}"] for end in ("", "_low", "_high"))
            row["times as fast"] = tables.with_ends(*ends)
            change = 100 * (scores["score"] - base["score"]) if "score" in scores else None
            row[f"{right} (points)"] = tables.NOTHING if change is None else f"{change:+z.1f}"
            rows[pruned.way(variant).label] = row
    return pd.DataFrame(rows).T.rename_axis(f"{HEADS[head]}, threads: {threads}")


def mobile(found: Sequence[dict], threads: int) -> pd.DataFrame:
    """A row a head: how long models in the mobile format load and start, in percent of the same in ONNX; medians."""
    rows = {}
    for head, name in HEADS.items():
        own = of(found, head=head, threads=threads)
        by_name = {(r["unit"]["variant"], r["unit"]["format"]): r["metrics"] for r in own}
        pairs = [(by_name[v, "ort"], scores) for (v, kind), scores in by_name.items() if kind == "onnx"]
        if pairs:
            rows[name] = {"models": f"{len(pairs)}"}
            for what, metric in (("loading (%)", "loading_s"), ("cold start (%)", "cold_start_s")):
                rows[name][what] = f"{100 * np.median([ort[metric] / onnx[metric] for ort, onnx in pairs]):.0f}"
    return pd.DataFrame(rows).T.rename_axis("mobile format, against ONNX")
