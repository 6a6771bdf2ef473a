"""From records to tables, beside the published numbers; and the sentences that README and notebooks quote from them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from . import ROOT, InputError, records

PUBLISHED = ROOT / "results" / "published"
NOTHING = "–"
# What stands where a notebook was opened alone.
MISSING = "– run the notebooks that this one builds on, or set `store` to where their results are"


class Column(NamedTuple):
    """How a metric is shown: its header with the unit, its decimals, and which end is better (None: neither)."""

    header: str
    decimals: int
    best: Callable | None = None
    scale: float = 1.0


COLUMNS = {
    "masked_lm_loss": Column("masked-LM loss (nats)", 3, min),
    "masked_lm_loss_on_training_corpus": Column("… on held-out text with rare words as [UNK] (nats)", 3, min),
    "kl_to_teacher": Column("KL to teacher (nats)", 3, min),
    "cosine_loss": Column("1 − cosine to teacher", 3, min),
    "masked_token_accuracy": Column("masked tokens right (%)", 1, max, 100),
    "cloze_accuracy": Column("cloze facts right (%)", 1, max, 100),
    "parameters": Column("parameters (million)", 2, None, 1e-6),
    "size_mb": Column("weights (MB)", 1, None),
    "training_minutes": Column("training (minutes)", 1, None),
    "training_tokens": Column("tokens seen (million)", 2, None, 1e-6),
    "tokens_per_s": Column("training speed (tokens/s)", 0, None),
    "examples_per_s": Column("training speed (examples/s)", 0, None),
    "accuracy": Column("accuracy (%)", 1, max, 100),
    "truncated": Column("texts cut off (%)", 1, None, 100),
    "exact_match": Column("exact match (%)", 1, max),
    "f1": Column("F1 (%)", 1, max),
}
MODELS = {
    "teacher": "teacher",
    "released": "released DistilBERT",
    "student": "student",
    "student_d": "student, distilled twice (D)",
    "twin": "twin, undistilled",
    "random": "student from random weights",
    "no_distillation": "student without distillation loss",
    "no_masked_lm": "student without masked-LM loss",
    "no_cosine": "student without cosine loss",
    "quarter_text": "student from a quarter of the text",
}


def every_published() -> pd.DataFrame:
    """All published numbers, one a row, as in results/published/.

    Raises:
        InputError: the file is missing.
    """
    path = PUBLISHED / "published_numbers.csv"
    if not path.exists():
        raise InputError(f"{path} is missing: restore it with git checkout")
    return pd.read_csv(path, dtype={"table": str})


def published(source: str, table: str | None = None) -> pd.DataFrame:
    """The published numbers of a source, one a row, as in results/published/.

    Raises:
        InputError: the file is missing, or has no such source or table.
    """
    numbers = every_published()
    chosen = numbers[(numbers.source == source) & ((numbers.table == table) | (table is None))]
    if chosen.empty:
        raise InputError(f"no published numbers of {source!r}, table {table!r}")
    return chosen


def published_beside(source: str, table: str, models: str) -> pd.DataFrame:
    """Published numbers: a row a model and set-up, a column a metric, then notes; `models`: a regular expression."""
    rows = published(source, table)
    rows = rows[rows.model.str.contains(models)].fillna({"unit": "", "setup": ""})
    head = [f"{metric} ({unit})" if unit else metric for metric, unit in zip(rows.metric, rows.unit, strict=True)]
    where = (rows.model + "; " + rows.setup).str.removesuffix("; ")
    named = rows.assign(column=[text.replace("_", " ") for text in head], row=where)
    made = named.pivot_table(index="row", columns="column", values="value", aggfunc="first", sort=False)
    notes = named.dropna(subset="note").groupby("row").note.agg(lambda own: "; ".join(dict.fromkeys(own)))
    return made.assign(note=notes).fillna(NOTHING).rename_axis("published")


def summary(found: Sequence[dict], metrics: Sequence[str]) -> pd.DataFrame:
    """Records of several models and seeds as one row a model: the mean, ± the standard deviation over seeds, and n.

    A metric that a model doesn't have is shown as –; the best mean of a column is bold, the teacher's left out of it.
    """
    names = [name for name in MODELS if any(record["unit"]["model"] == name for record in found)]
    metrics = [metric for metric in metrics if any(metric in record["metrics"] for record in found)]
    rows, means = {}, {}
    for name in names:
        own = [record["metrics"] for record in found if record["unit"]["model"] == name]
        values = {metric: pd.Series([m[metric] for m in own if metric in m], dtype=float) for metric in metrics}
        means[name] = {metric: series.mean() for metric, series in values.items() if len(series)}
        rows[name] = {COLUMNS[m].header: cell(series, COLUMNS[m]) for m, series in values.items()} | {"n": len(own)}
    for metric in metrics:
        column = COLUMNS[metric]
        rivals = {name: means[name][metric] for name in names if metric in means[name] and name != "teacher"}
        if column.best and len(set(rivals.values())) > 1:
            best = column.best(rivals, key=rivals.get)
            rows[best][column.header] = f"**{rows[best][column.header]}**"
    return pd.DataFrame(rows).T.rename(index=MODELS).rename_axis("model")


def cell(values: pd.Series, column: Column) -> str:
    """`mean ± standard deviation` in the column's unit; no spread where n is 1 or nothing varies, – where n is 0."""
    if values.empty:
        return NOTHING
    scaled = values * column.scale
    text = f"{scaled.mean():,.{column.decimals}f}"
    return text if len(values) < 2 or scaled.std() == 0 else f"{text} ± {scaled.std():.{column.decimals}f}"


def with_ends(middle: float, low: float, high: float) -> str:
    """A ratio with the ends of its interval: "2.01 (1.98 to 2.05)"."""
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


class Shown:
    """A table with its caption, which Jupyter shows as HTML and readers of the file as Markdown."""

    def __init__(self, table: pd.DataFrame, caption: str):
        self.table, self.caption = table.reset_index(), caption.strip()

    def _repr_markdown_(self) -> str:
        if self.table.empty:
            return MISSING
        head = list(map(str, self.table.columns))
        body = self.table.astype(str)
        numeric = [body[name].str.fullmatch(r"[*+-]*[\d.,]+( ± [\d.]+)?%?[*]*|–|").all() for name in body.columns]
        lines = [head, ["---:" if right else "---" for right in numeric], *body.values.tolist()]
        rows = "\n".join("| " + " | ".join(item.replace("|", "\\|") for item in line) + " |" for line in lines)
        return f"{rows}\n\n*{self.caption}*"

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.table.to_string(index=False)}"


def show(space: records.Workspace, name: str, table: pd.DataFrame, caption: str) -> Shown:
    """Keep a table as results/<profile>/tables/<name>.csv and .md, and return it for display.

    `name` begins with the notebook's number; the caption says what is to be seen, on what it was measured, and n.
    An empty table is not kept, and shown as what is missing.
    """
    shown = Shown(table, caption)
    if table.empty:
        return shown
    plain = shown.table.map(lambda value: value.strip("*") if isinstance(value, str) else value)
    records.write_whole(space.tables / f"{name}.csv", plain.to_csv(index=False))
    records.write_whole(space.tables / f"{name}.md", shown._repr_markdown_() + "\n")
    return shown


def data_note(found: Sequence[dict]) -> str:
    """What the records were measured on and with: data sets, whether they are complete, hardware, seeds, weights."""
    sets: dict[str, dict[str, dict]] = {}
    for source in (source for record in found for source in record["provenance"]["data"]):
        rows = sets.setdefault(source["id"], {}).setdefault(source["config"], {})
        for split, count in source["rows"].items():
            official = (source.get("official_rows") or {}).get(split)
            part = f", only a part of {official:,}" if source.get("partial") else ""
            rows[source.get("capped", {}).get(split, f"{count:,} {split} rows") + part] = None  # once, in order
    texts = [
        f"{name}: " + "; ".join(f"{config} ({', '.join(rows)})" for config, rows in configs.items())
        for name, configs in sets.items()
    ]
    machines = {describe_machine(record["provenance"], record.get("settings", {})) for record in found}
    seeds = sorted({record["unit"]["seed"] for record in found if "seed" in record["unit"]})
    drawn = f"Seeds: {', '.join(map(str, seeds))}. " if seeds else ""
    random = any(m.get("weights") == "random" for record in found for m in record["provenance"]["models"])
    warning = "Random weights: speed and size only, quality means nothing. " if random else ""
    on = f"Data: {'. '.join(texts)}. " if texts else ""
    return f"{warning}{on}{drawn}Run on {'; '.join(sorted(machines))}."


def positions_note(found: Sequence[dict]) -> str:
    """At which tokens the students of these records were compared with their teacher."""
    where = {record["settings"]["recipe"].get("positions") for record in found} - {None}
    return f"KL is over {' or '.join(sorted(where))} tokens, cosine over all."


def describe_machine(provenance: dict, settings: dict | None = None) -> str:
    """Processor or GPU, threads and torch of one record; its settings may say which it was, and how many threads."""
    settings = settings or {}
    count = settings.get("threads") or provenance["threads"]
    on_cpu = f"{provenance['cpu']}, {count} thread{'s' if count > 1 else ''}"
    gpu = provenance["gpu"] if settings.get("device") != "cpu" else None
    return f"{gpu['name'] if gpu else on_cpu}, torch {provenance['versions']['torch']}"
