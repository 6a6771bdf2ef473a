"""Notebook 05's records side by side: its stages and texts, what changes from one to another, what was published."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..measure import metrics, records
from . import tables

STAGES = {
    "base": "as pretrained",
    "half": "as pretrained, half precision",
    "int8": "in 8 bits",
    "wikitext": "fine-tuned on WikiText-2",
    "wikitext_int8": "fine-tuned on WikiText-2, then 8 bits",
    "gsm8k": "fine-tuned on GSM8K",
}
TEXTS = {"wikitext": "WikiText-2", "gsm8k_questions": "GSM8K, questions", "gsm8k_answers": "GSM8K, with answers"}
BENCHMARK = "wikitext-gsm8k-benchmark"
BENCHMARK_STAGES = {"base": "base", "int8": "8-bit", "wikitext": "fine-tuned on wikitext"}


class Change(NamedTuple):
    """A change of the masked-LM loss in nats: its mean and 95% interval, and its own spread (None where n is 1)."""

    mean: float
    low: float
    high: float
    spread: float | None


def change(found: Sequence[dict], model: str, text: str, stage: str, since: str = "base") -> Change | None:
    """By how much a model's masked-LM loss changes to a stage, since another of the same seeds; None without a record.

    The interval is of the paired difference, whole documents being drawn; the spread, over draws of masks and seeds.
    """
    old, new = (records.of(found, model=model, text=text, stage=name) for name in (since, stage))
    old = [one for one in old if one["unit"].get("seed") in {None, *(other["unit"].get("seed") for other in new)}]
    if not old or not new:
        return None
    sums = [np.mean([records.unpack(r["details"]["document_sums"]) for r in side], axis=0) for side in (old, new)]
    counts, rest = records.unpack(old[0]["details"]["document_counts"]), sums[1] - sums[0]
    low, high = metrics.mean_interval(rest[counts > 0], counts[counts > 0])
    draws = np.array([record["details"]["draws"] for record in new]) - old[0]["details"]["draws"]
    return Change(rest.sum() / counts.sum(), low, high, float(draws.std(ddof=1)) if draws.size > 1 else None)


def printed(metric: str = "loss", stage: str = "base") -> pd.Series:
    """What the published benchmark gives for a stage, by text: loss (nats), perplexity or throughput (samples/s)."""
    numbers = tables.published(BENCHMARK, "results").query(f"metric == '{metric}'")
    chosen = numbers[numbers.model == f"distilbert-base-uncased, {BENCHMARK_STAGES[stage]}"]
    return chosen.assign(text=chosen.dataset.replace("gsm8k", "gsm8k_questions")).set_index("text").value.astype(float)
