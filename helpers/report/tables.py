"""Tables: from records, built from a list of columns, beside published numbers, and kept as CSV and Markdown.

Every model's name and colour, and every metric's heading and unit, stand here.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from IPython.display import Markdown

from .. import ROOT, InputError
from ..measure import records

PUBLISHED = ROOT / "results" / "published"
NOTHING = "–"
ROWS, WIDE = 10, 6  # rows and columns of the largest table that a page shows whole
MISSING = "– run the notebooks that this one builds on, or set `store` to where their results are"


class Column(NamedTuple):
    """A column of a table, from rows that are records, groups of records, or anything else.

    header: with the unit. value: a metric's name, or what makes a number, a text, a tuple or None (–) of a row. form:
    how a number, or a tuple's members, are written. scale: what a number is multiplied by. best: which end is the
    better one, min or max.
    """

    header: str
    value: str | Callable[[Any], Any]
    form: str = "{:,.1f}"
    scale: float = 1.0
    best: Callable | None = None

    def of(self, row: Any) -> Any:
        """The row's value, scaled; None where it has none."""
        found = row["metrics"].get(self.value) if isinstance(self.value, str) else self.value(row)
        if found is None or isinstance(found, str) or self.scale == 1:
            return found
        return tuple(self.scale * value for value in found) if isinstance(found, tuple) else self.scale * found

    def cell(self, row: Any) -> str:
        """The row's value, written."""
        found = self.of(row)
        if found is None or found != found:
            return NOTHING
        return found if isinstance(found, str) else self.form.format(*found if isinstance(found, tuple) else (found,))


INTERVAL = "{:.2f} ({:.2f} to {:.2f})"  # a median or mean with its ends


def ends(metric: str) -> Callable[[dict], tuple[float, ...] | None]:
    """Of a record, a metric with the ends of its interval, for a column of the form `INTERVAL`; None without one."""
    names = [f"{metric}{end}" for end in ("", "_low", "_high")]
    return lambda record: tuple(map(record["metrics"].get, names)) if metric in record["metrics"] else None


def build(rows: Iterable, columns: Sequence[Column], label: Callable[[Any], str], name: str) -> pd.DataFrame:
    """Table of rows, each called by `label`, under the columns; `name` heads the labels. Empty without rows."""
    lines = {label(row): [column.cell(row) for column in columns] for row in rows}
    heads = [column.header for column in columns]
    return pd.DataFrame.from_dict(lines, orient="index", columns=heads, dtype=object).rename_axis(name)


COLUMNS = {
    "masked_lm_loss": Column("masked-LM loss (nats)", "masked_lm_loss", "{:,.3f}", best=min),
    "masked_lm_loss_on_training_corpus": Column(
        "… on the training corpus' own held-out text (nats)", "masked_lm_loss_on_training_corpus", "{:,.3f}", best=min
    ),
    "kl_to_teacher": Column("KL to teacher (nats)", "kl_to_teacher", "{:,.3f}", best=min),
    "cosine_loss": Column("1 − cosine to teacher", "cosine_loss", "{:,.3f}", best=min),
    "masked_token_accuracy": Column("masked tokens right (%)", "masked_token_accuracy", "{:,.1f}", 100, best=max),
    "cloze_accuracy": Column("cloze facts right (%)", "cloze_accuracy", "{:,.1f}", 100, best=max),
    "training_minutes": Column("training (minutes)", "training_minutes", "{:,.1f}"),
    "tokens_per_s": Column("training speed (tokens/s)", "tokens_per_s", "{:,.0f}"),
    "accuracy": Column("accuracy (%)", "accuracy", "{:,.1f}", 100, best=max),
    "truncated": Column("texts cut off (%)", "truncated", "{:,.1f}", 100),
}

CAST = {  # what a model is called, and its colour, everywhere
    "teacher": ("teacher", "#404040"),
    "released": ("released DistilBERT", "#cc78bc"),
    "student": ("student", "#0173b2"),
    "student_d": ("student (D)", "#56b4e9"),
    "twin": ("twin (no teacher)", "#de8f05"),
    "twin_time": ("twin, as many minutes", "#8c3b6d"),
    "student_nearer": ("student of the mixture", "#004d80"),
    "twin_nearer": ("twin of the mixture", "#a35f00"),
    "student_articles": ("student of articles alone", None),
    "student_longest": ("longest student", None),
    "student_longest_d": ("longest student (D)", None),
    "twin_longest": ("longest twin", None),
    "student_longest_again": ("longest student, second seed", None),
    "twin_longest_again": ("longest twin, second seed", None),
    "random": ("random start", "#029e73"),
    "dropped": ("teacher with layers dropped", "#b2182b"),
    "dropped_d": ("layers dropped (D)", "#ef8a62"),
    "rule": ("a rule that has learnt nothing", "#949494"),
    "words": ("words counted", "#949494"),
    "no_distillation": ("student without distillation loss", None),
    "no_masked_lm": ("student without masked-LM loss", None),
    "no_cosine": ("student without cosine loss", None),
    "quarter_text": ("student from a quarter of the corpus", None),
}
MODELS = {key: name for key, (name, _) in CAST.items()}
COLOURS = {key: colour for key, (_, colour) in CAST.items() if colour}


def published(source: str | None = None, table: str | None = None) -> pd.DataFrame:
    """The published numbers, one a row, as in results/published/: all, or of a source, or of one of its tables.

    InputError if there are none of these, or the file is missing.
    """
    path = PUBLISHED / "published_numbers.csv"
    if not path.exists():
        raise InputError(f"{path} is missing: restore it with git checkout")
    numbers = pd.read_csv(path, dtype={"table": str})
    for column, wanted in (("source", source), ("table", table)):
        numbers = numbers[(numbers[column] == wanted) | (wanted is None)]
    if numbers.empty:
        raise InputError(f"no published numbers of {source!r}, table {table!r}")
    return numbers


def printed(source: str, table: str, metric: str, *models: str, setup: str | None = None) -> list[float]:
    """The published numbers of some models, as they are printed."""
    rows = published(source, table)
    rows = rows[(rows.metric == metric) & ((rows.setup == setup) | (setup is None))]
    return [float(rows[rows.model == model].value.iloc[0]) for model in models]


def ratio(source: str, table: str, metric: str, *models: str, setup: str | None = None) -> float:
    """The published number of one model by that of another."""
    one, other = printed(source, table, metric, *models, setup=setup)
    return one / other


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


def cell(values: pd.Series, column: Column) -> str:
    """`mean ± standard deviation` in the column's unit; no spread where n is 1 or nothing varies, – where n is 0."""
    if values.empty:
        return NOTHING
    scaled = values * column.scale
    text = column.form.format(scaled.mean())
    return text if len(values) < 2 or scaled.std() == 0 else f"{text} ± {column.form.format(scaled.std())}"


def folded(table: pd.DataFrame, caption: str, part: pd.DataFrame | None = None) -> str:
    """A table with its caption in Markdown: one that is larger than `ROWS` × `WIDE` is folded, its `part` above it."""
    if table.empty:
        return MISSING
    (rows, columns), whole, said = table.shape, markdown(table), f"*{caption.strip()}*"
    if rows <= ROWS and columns <= WIDE:
        return f"{whole}\n\n{said}"
    above = "" if part is None else markdown(part.reset_index()) + "\n\n"
    return f"{above}{said}\n\n<details><summary>The whole table: {rows} × {columns}</summary>\n\n{whole}\n\n</details>"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its numbers to the right."""
    body = table.astype(str)
    value = r"[*+-]*(< )?[\d.,]+( ± [\d.,]+)?%?( \((p [<\d. ]+|\d+ seeds?|[-+\d.,; ±to]+)\))?[*]*|–|"
    numeric = [body[name].str.fullmatch(value).all() for name in body.columns]
    lines = [table.columns, ["---:" if right else "---" for right in numeric], *body.values.tolist()]
    return "\n".join(f"| {' | '.join(_plain(str(cell)) for cell in line)} |" for line in lines)


def _plain(cell: str) -> str:
    """A cell in Markdown: text of a data set's makes no column, no line, no formula and no HTML of its own."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(cell.splitlines())).replace("|", "\\|").replace("$", "\\$")


def show(
    space: records.Workspace, name: str, table: pd.DataFrame, caption: str, part: pd.DataFrame | None = None
) -> Markdown:
    """Keep a table as results/<profile>/tables/<name>.csv and .md, and return it for display.

    `name` begins with the notebook's number; the caption says what is to be seen, on what it was measured, and n.
    `part`: what of a large table the page shows. An empty table is not kept, and shown as what is missing.
    """
    plain = table.reset_index()
    text = folded(plain, caption, part)
    if not table.empty:
        bare = plain.map(lambda value: value.strip("*") if isinstance(value, str) else value)
        records.write_whole(space.tables / f"{name}.csv", bare.to_csv(index=False))
        records.write_whole(space.tables / f"{name}.md", text + "\n")
    return Markdown(text)


def say(*findings: str | tuple[Any, str]) -> Markdown:
    """What an exhibit shows, in sentences; of a condition and a sentence, the sentence where the condition holds."""
    pairs = [(True, one) if isinstance(one, str) else one for one in findings]
    return Markdown(" ".join(text for holds, text in pairs if holds) or f"{NOTHING} nothing that is clear")


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


def describe_machine(provenance: dict, settings: dict | None = None) -> str:
    """Processor or GPU, threads and torch of one record; its settings may say which it was, and how many threads."""
    settings = settings or {}
    count = settings.get("threads") or provenance["threads"]
    on_cpu = f"{provenance['cpu']}, {count} thread{'s' if count > 1 else ''}"
    gpu = provenance["gpu"] if settings.get("device") != "cpu" else None
    return f"{gpu['name'] if gpu else on_cpu}, torch {provenance['versions']['torch']}"


# The notebook in which an experiment's records are made.
HAS = {"02": "glue", "03": "imdb", "09": "edge arm64", "11": "own own_speed staircase", "12": "nearer longest articles"}
HAS |= {"01": "distillation ablation", "04": "squad squad_longer squad_on_the_way glue_on_the_way", "05": "perplexity"}
HAS |= {"06": "quantization fullsize eighth_bit worst_matrices compiled", "07": "pruning recovery finishing"}
OWNERS = {name: number for number, names in HAS.items() for name in names.split()}


def notebook_of(record: dict) -> str:
    """The number of the notebook that a record was made in."""
    experiment, unit = record["experiment"], record["unit"]
    if experiment == "speed":
        return {"padding": "02", "stages": "05", "scoring": "05"}.get(unit.get("comparison"), "08")
    return OWNERS.get(unit["task"], "02") if experiment == "trivial" else OWNERS[experiment]


def source(function: Callable) -> Markdown:
    """A function's code, to be read in a notebook; a long one is folded."""
    code = f"```python\n{inspect.getsource(function)}```"
    if code.count("\n") < 18:
        return Markdown(code)
    return Markdown(f"<details><summary>{function.__qualname__}</summary>\n\n{code}\n\n</details>")
