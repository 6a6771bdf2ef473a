"""Notebook 05's records side by side: perplexities by model and stage, what changes from one to another, in words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from . import mistakes, significance, tables
from .downstream import unpack

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


def of(found: Sequence[dict], **wanted) -> list[dict]:
    """The records whose unit has these values, as `model="student", stage="base"`."""
    return [r for r in found if all(r["unit"].get(name) == value for name, value in wanted.items())]


def grid(found: Sequence[dict]) -> list[dict]:
    """The records of models and stages, scored rightly."""
    return [record for record in found if "mistake" not in record["unit"]]


def wrong_ways(found: Sequence[dict]) -> list[dict]:
    """The records of the ways of scoring."""
    ways = {*mistakes.WAYS, mistakes.FRESH_HEAD}
    return [record for record in found if record["unit"].get("mistake") in ways]


class Change(NamedTuple):
    """A change of the masked-LM loss in nats: its mean and 95% interval, and its own spread (None where n is 1)."""

    mean: float
    low: float
    high: float
    spread: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def change(found: Sequence[dict], model: str, text: str, stage: str, before: str = "base") -> Change | None:
    """By how much a model's masked-LM loss changes from one stage to another; None if either has no record.

    Both stages are asked for the same tokens, so the interval is that of the difference, whole documents being drawn,
    and the spread its standard deviation over draws of the masks and seeds. Of two fine-tuned stages the seeds that
    both have are compared.
    """
    old, new = (of(found, model=model, text=text, stage=name) for name in (before, stage))
    seeds = [{record["unit"].get("seed") for record in side} for side in (old, new)]
    if None not in seeds[0] | seeds[1]:
        old, new = ([r for r in side if r["unit"]["seed"] in seeds[0] & seeds[1]] for side in (old, new))
    if not old or not new:
        return None
    sums = [np.mean([unpack(record["details"]["document_sums"]) for record in side], axis=0) for side in (old, new)]
    counts, rest = unpack(old[0]["details"]["document_counts"]), sums[1] - sums[0]
    low, high = significance.mean_interval(rest[counts > 0], counts[counts > 0])
    draws = [np.array([record["details"]["draws"] for record in side]) for side in (old, new)]
    draws = draws[1] - draws[0].mean(axis=0)
    return Change(rest.sum() / counts.sum(), low, high, float(draws.std(ddof=1)) if draws.size > 1 else None)


def has_read(record: dict) -> str:
    """Whether the record's model has been trained on WikiText-2."""
    ours = any(model["weights"] == "ours" for model in record["provenance"]["models"])
    tuned = record["unit"]["stage"].startswith("wikitext")
    return "yes, again" if ours and tuned else "yes" if ours or tuned else "Wikipedia at large"


def _rows(found: Sequence[dict]) -> list[tuple[str, list[dict]]]:
    """Name and records of each model and stage that there is."""
    every = [(m, s, of(found, model=m, stage=s)) for m in tables.MODELS for s in STAGES]
    return [(f"{tables.MODELS[model]}, {STAGES[stage]}", own) for model, stage, own in every if own]


def wikitext_table(found: Sequence[dict]) -> pd.DataFrame:
    """A row a model and stage, on WikiText-2: loss, perplexity over masked tokens, pseudo-perplexity, size."""
    rows = {}
    for name, every in _rows(found):
        own = of(every, text="wikitext")
        spread = np.mean([record["metrics"]["masked_lm_loss_std_of_draws"] for record in own])
        rows[name] = {
            "loss (nats, ± over draws)": f"{mean_of(own, 'masked_lm_loss'):.3f} ± {spread:.3f}",
            "perplexity over masked tokens": _with_interval(own, "perplexity"),
            "pseudo-perplexity": _with_interval(own, "pseudo_perplexity"),
            "weights (MB)": f"{own[0]['metrics']['size_mb']:,.1f}",
            "has read WikiText-2": has_read(own[0]),
            "fine-tuning seeds": len(own) if "seed" in own[0]["unit"] else tables.NOTHING,
        }
    return pd.DataFrame(rows).T.rename_axis("model")


def gsm8k_table(found: Sequence[dict]) -> pd.DataFrame:
    """A row a model and stage: perplexity over masked tokens of GSM8K's questions, alone and with their answers."""
    texts = ("gsm8k_questions", "gsm8k_answers")
    rows = {n: {TEXTS[t]: _with_interval(of(own, text=t), "perplexity") for t in texts} for n, own in _rows(found)}
    return pd.DataFrame(rows).T.rename_axis("model")


def mean_of(found: Sequence[dict], metric: str) -> float:
    """The mean over seeds; of a perplexity, that of its logarithm, exponentiated."""
    values = np.array([record["metrics"][metric] for record in found])
    return float(np.exp(np.log(values).mean()) if "perplexity" in metric else values.mean())


def _with_interval(found: Sequence[dict], metric: str) -> str:
    if not found:
        return tables.NOTHING
    return "{:,.1f} ({:,.1f} to {:,.1f})".format(*(mean_of(found, f"{metric}{end}") for end in ("", "_low", "_high")))


def changes(found: Sequence[dict]) -> pd.DataFrame:
    """What each stage changes in the masked-LM loss (nats) of each text, against the model as pretrained."""
    rows = {}
    for model in tables.MODELS:
        for stage in STAGES:
            cells = {title: change(found, model, text, stage) for text, title in TEXTS.items()}
            if stage != "base" and any(cells.values()):
                rows[f"{tables.MODELS[model]}, {STAGES[stage]}"] = {t: str(c) for t, c in cells.items() if c}
    return pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("model")


def printed(metric: str = "loss", stage: str = "base") -> pd.Series:
    """What the published benchmark gives for a stage, by text: loss (nats), perplexity or throughput (samples/s)."""
    numbers = tables.published(BENCHMARK, "results").query(f"metric == '{metric}'")
    chosen = numbers[numbers.model == f"distilbert-base-uncased, {BENCHMARK_STAGES[stage]}"]
    return chosen.assign(text=chosen.dataset.replace("gsm8k", "gsm8k_questions")).set_index("text").value.astype(float)


def mistakes_table(found: Sequence[dict], model: str) -> pd.DataFrame:
    """A row a way of scoring the model as pretrained: loss in nats (perplexity) on each text, the published ones last.

    Beside them, how far their losses are from the published ones, as `nearest_mistakes` has it. `mean of batches'
    perplexities` is the right way's, averaged last instead of first.
    """
    rows: dict[str, dict] = {}
    for record in of(wrong_ways(found), model=model, stage="base"):
        scores, text, way = record["metrics"], TEXTS[record["unit"]["text"]], record["unit"]["mistake"]
        rows.setdefault(way, {})[text] = f"{scores['loss']:.2f} ({scores['perplexity']:,.1f})"
        if way == "right":
            mean = scores["mean_of_batch_perplexities"]
            rows.setdefault("mean of batches' perplexities", {})[text] = f"{np.log(mean):.2f} ({mean:,.1f})"
    values = {metric: printed(metric) for metric in ("loss", "perplexity")}
    rows["published, DistilBERT"] = {
        TEXTS[text]: f"{values['loss'][text]:.2f} ({values['perplexity'][text]:,.1f})" for text in values["loss"].index
    }
    for way, off in nearest_mistakes(found, model).items():
        rows[way]["off the published losses (nats)"] = f"{off:.2f}"
    return pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("way of scoring")


def mistakes_by_stage(found: Sequence[dict], model: str) -> pd.DataFrame:
    """A row a way of scoring: how much its loss (nats) changes from the pretrained model to its other stages."""
    rows: dict[str, dict] = {}
    for record in of(wrong_ways(found), model=model):
        unit = record["unit"]
        (before,) = of(wrong_ways(found), model=model, stage="base", mistake=unit["mistake"], text=unit["text"])
        if unit["stage"] != "base":
            gap = record["metrics"]["loss"] - before["metrics"]["loss"]
            rows.setdefault(unit["mistake"], {})[f"{TEXTS[unit['text']]}: {STAGES[unit['stage']]}"] = f"{gap:+z.2f}"
    for stage in ("int8", "wikitext"):
        gaps = printed(stage=stage) - printed()
        row = {f"{TEXTS[text]}: {STAGES[stage]}": f"{gap:+z.2f}" for text, gap in gaps.items()}
        rows["published, DistilBERT"] = rows.get("published, DistilBERT", {}) | row
    return pd.DataFrame(rows).T.fillna(tables.NOTHING).rename_axis("way of scoring")


def nearest_mistakes(found: Sequence[dict], model: str) -> pd.Series:
    """How far each way of scoring is from the published base losses, in nats over the texts, the nearest first."""
    gaps: dict[str, list[float]] = {}
    for record in of(wrong_ways(found), model=model, stage="base"):
        gap = abs(record["metrics"]["loss"] - printed()[record["unit"]["text"]])
        gaps.setdefault(record["unit"]["mistake"], []).append(gap)
    return pd.Series({mistake: np.mean(gap) for mistake, gap in gaps.items()}, dtype=float).sort_values()


def mistakes_in_words(found: Sequence[dict], model: str) -> str:
    """Which way of scoring most likely made the published numbers, and how far that can be trusted."""
    near = nearest_mistakes(found, model)
    first, second = near.drop("right").index[:2]
    says = [
        f"Nearest to the published losses of both texts: **{first}**, off by {near[first]:.2f} nats in the mean; "
        f"then {second} ({near[second]:.2f}). The right way is off by {near['right']:.2f}."
    ]
    if near[first] > 1:
        says.append("None comes within a nat, so on this model the question stays open.")
    if model != "released":
        says.append("The model here is not the benchmark's, so this is a hint, no more; `t4` has DistilBERT itself.")
    return " ".join(says)


def in_words(found: Sequence[dict]) -> str:
    """What the records say of the stages, in sentences that follow the numbers whichever way they fall."""
    says = []
    for model, name in tables.MODELS.items():
        own = of(found, model=model, stage="base", text="wikitext")
        if not own or model == "twin":
            continue
        loss, middle = own[0]["metrics"]["masked_lm_loss"], own[0]["metrics"]["perplexity"]
        says.append(f"- **{name.capitalize()}**: {loss:.3f} nats a token, a perplexity of {middle:.1f}, on WikiText-2;")
        for stage, text, before, what in (
            ("int8", "wikitext", "base", "8 bits change its loss by"),
            ("wikitext", "wikitext", "base", "fine-tuning on WikiText-2 changes it by"),
            ("wikitext_int8", "wikitext", "base", "fine-tuned and then in 8 bits, it is away from the start by"),
            ("wikitext", "gsm8k_answers", "base", "fine-tuning on WikiText-2 changes its loss on GSM8K by"),
            ("gsm8k", "gsm8k_answers", "base", "fine-tuning on GSM8K changes that by"),
            ("gsm8k", "wikitext", "base", "… and its loss on WikiText-2 by"),
        ):
            if made := change(found, model, text, stage, before):
                says.append(f"    - {what} {_verdict(made)};")
        says[-1] = says[-1].removesuffix(";") + "."
    return "\n".join(says)


def _verdict(made: Change) -> str:
    says = f"{made} nats: {'clear' if made.clear else 'not clear'}"
    if made.spread is None:
        return says
    wide = "more" if abs(made.mean) > 2 * made.spread else "no more"
    return f"{says}, and {wide} than twice its spread over draws and seeds"


def speeds(record: dict) -> pd.DataFrame:
    """A row a model and stage of the timing: samples and tokens a second, and how many times as fast as pretrained."""
    scores, rows = record["metrics"], {}
    for key in record["details"]["seconds"]:
        (model, stage), label = key.split(), key.replace(" ", "_")
        times = [scores[f"times_as_fast_{label}{end}"] for end in ("", "_low", "_high")]
        row = {"samples/s": f"{scores[f'samples_per_s_{label}']:,.1f}"}
        row["tokens/s"] = f"{scores[f'tokens_per_s_{label}']:,.0f}"
        row["times as fast as pretrained"] = "–" if stage == "base" else tables.with_ends(*times)
        rows[f"{tables.MODELS[model]}, {STAGES[stage]}"] = row
    return pd.DataFrame(rows).T.rename_axis("model")


def points(record: dict, found: Sequence[dict]) -> pd.DataFrame:
    """For `figures.speed_against_perplexity`: each timed model and stage with its perplexity on WikiText-2."""
    rows = []
    for key, taken in record["details"]["seconds"].items():
        model, stage = key.split()
        own = of(found, model=model, stage=stage, text="wikitext")
        if own:
            rates = record["details"]["tokens"] / np.quantile(taken, [0.5, 0.75, 0.25])
            row = dict(zip(("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high"), rates, strict=True))
            row |= {name: mean_of(own, name) for name in ("perplexity", "perplexity_low", "perplexity_high")}
            rows.append({"model": model, "stage": stage} | row)
    return pd.DataFrame(rows)


def speed_in_words(record: dict) -> str:
    """How many times as fast the models read in 8 bits, beside what the published benchmark found."""
    scores, says = record["metrics"], []
    for model, name in tables.MODELS.items():
        times = [scores.get(f"times_as_fast_{model}_int8{end}") for end in ("", "_low", "_high")]
        if times[0]:
            clear = "faster" if times[1] > 1 else "slower" if times[2] < 1 else "neither clearly faster nor slower"
            words = "{:.2f} times as fast ({:.2f} to {:.2f}), {}.".format(*times, clear)
            says.append(f"- {name.capitalize()}: in 8 bits {words}")
    base, words = printed("throughput"), []
    for what, stage in (("in 8 bits", "int8"), ("fine-tuned", "wikitext")):
        ratios = printed("throughput", stage) / base
        words.append(f"{' and '.join(f'{ratio:.2f}' for ratio in ratios)} times as fast {what}")
    says.append(
        f"- Published, on a T4 (WikiText and GSM8K): {', '.join(words)}. Fine-tuning changes neither shapes nor "
        "number formats, so it should make nothing faster: what it gains is noise, and 8 bits gain about as much."
    )
    return "\n".join(says)


def by_part(found: Sequence[dict], part: str, labels: Sequence[str]) -> pd.DataFrame:
    """The mean loss of each pretrained model on WikiText-2 by a part of the masked tokens, and their number n."""
    table, counts = {}, np.zeros(len(labels))
    for record in of(found, stage="base", text="wikitext"):
        groups = record["details"][f"by_{part}"]
        counts = np.array(groups["counts"])
        table[record["unit"]["model"]] = np.array(groups["sums"]) / np.maximum(counts, 1)
    table = pd.DataFrame(table, index=labels).assign(n=counts.astype(int))
    return table[table.n > 0]
