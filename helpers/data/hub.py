"""Data sets by name, from the Hub or the mini-world in its place: provenance, official row counts, and their text."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, disable_progress_bars, load_dataset

from .. import ROOT, InputError, reason
from ..measure import records
from ..measure.metrics import GLUE
from ..profiles import Profile
from . import miniworld

OFFICIAL_ROWS = {  # of the Hub's data sets, so that a part is never taken for the whole
    **{("nyu-mll/glue", task): spec.rows for task, spec in GLUE.items()},
    ("openai/gsm8k", "main"): {"train": 7_473, "test": 1_319},
    ("rajpurkar/squad", "plain_text"): {"train": 87_599, "validation": 10_570},
    ("stanfordnlp/imdb", "plain_text"): {"train": 25_000, "test": 25_000},
    ("Salesforce/wikitext", "wikitext-2-v1"): {"train": 36_718, "validation": 3_760, "test": 4_358},
    ("Salesforce/wikitext", "wikitext-2-raw-v1"): {"train": 36_718, "validation": 3_760, "test": 4_358},
    ("Salesforce/wikitext", "wikitext-103-raw-v1"): {"train": 1_801_350, "validation": 3_760, "test": 4_358},
}
CACHE = Path(datasets.config.HF_DATASETS_CACHE)
# In the checkout or, where that is not ours to write in, beside what data sets are converted to.
WORLD = (ROOT / ".data" if os.access(ROOT, os.W_OK) else CACHE) / f"miniworld-{miniworld.VERSION}"

disable_progress_bars()  # conversion takes a second; downloads keep their own bars


def load(profile: Profile, data_id: str, config: str, split: str) -> tuple[Dataset, dict]:
    """One split of a data set, and its provenance: id, config, revision, rows and whether they are a part only.

    InputError if there is no such data set, configuration or split, no way to reach it, or no row in it.
    """
    embedded = profile.hub == "miniworld"
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data sets cannot be kept in {CACHE} : set HF_HOME to a folder of yours") from error
    pin = None if embedded else profile.revisions.get(data_id)
    try:
        place = str(miniworld.write(WORLD) / data_id) if embedded else data_id
        dataset = load_dataset(place, config, split=split, revision=pin)
    except Exception as error:
        again = f"; delete {WORLD} to have it made again" if embedded and (WORLD / data_id).is_dir() else ""
        raise InputError(f"data set {data_id!r}, {config!r}, {split!r}: {reason(error)}{again}") from error
    if not len(dataset):
        raise InputError(f"data set {data_id!r}, {config!r}: the split {split!r} is empty")
    source = {"id": data_id, "config": config, "rows": {split: len(dataset)}}
    if embedded:
        return dataset, source | {"id": f"miniworld:{data_id}", "revision": f"version {miniworld.VERSION}"}
    official = OFFICIAL_ROWS.get((data_id, config), {}).get(split)
    source |= {"revision": _revision(data_id, pin), "official_rows": {split: official}}
    return dataset, source | {"partial": official is not None and len(dataset) < official}


def state(profile: Profile, *ids: str) -> dict[str, Any]:
    """What settings say of data sets, since it changes numbers: their revisions, or the mini-world's version.

    A revision settles the rows; a folder of one's own has for one a hash of its files.
    """
    if profile.hub == "miniworld":
        return {"world": miniworld.VERSION}
    return {"data": {data_id: _revision(data_id, profile.revisions.get(data_id)) for data_id in ids}}


@functools.cache  # asked for each unit of an experiment
def _revision(data_id: str, pin: str | None) -> str | None:
    if Path(data_id).is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in Path(data_id).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(data_id)} {path.stat().st_size}\n".encode() + path.read_bytes())
        found = digest.hexdigest()[:12]
    else:
        found = records.revision(data_id, "dataset", pin)
    if pin not in (None, found):
        raise InputError(f"data set {data_id!r} is pinned to {pin!r}, and here is revision {found!r}")
    return found


def sample(profile: Profile, data_id: str, config: str, split: str, rows: int | None = None) -> tuple[Dataset, dict]:
    """`load`, or where there are more than `rows`, so many of them: drawn once, alike for every model and seed."""
    dataset, source = load(profile, data_id, config, split)
    if rows is not None and rows < len(dataset):
        chosen = np.sort(np.random.default_rng(0).choice(len(dataset), rows, replace=False))
        source = source | {"capped": {split: f"{rows:,} of {len(dataset):,} {split} rows"}}
        dataset = dataset.select(chosen)
    return dataset, source


READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def own_rows(name: str, split: str, columns: Sequence[str], label: str, most: int) -> tuple[Dataset, dict]:
    """Rows of one's own: a file (CSV, TSV, JSON lines, parquet) or `id:config` of the Hub; and where they are from.

    Those without a text or a label are left out; of more than `most`, so many are drawn, alike every time; the source
    counts both. InputError if there is no such file, data set or column, or if no row is whole.
    """
    kind = READERS.get(Path(name).suffix.lower())
    try:
        if kind and Path(name).is_file():
            plain = {"keep_default_na": False, "sep": "\t" if name.lower().endswith(".tsv") else ","}  # "NA" is a text
            dataset = load_dataset(kind, data_files=name, split="train", **(plain if kind == "csv" else {}))
        elif kind or Path(name).exists():
            raise InputError(f"no such file, or none of {', '.join(READERS)}")
        else:
            data_id, _, config = name.partition(":")
            dataset = load_dataset(data_id, config or None, split=split)
    except Exception as error:
        raise InputError(f"data {name!r}: {reason(error)}") from error
    if lacking := [column for column in (*columns, label) if column not in dataset.column_names]:
        raise InputError(f"data {name!r} has no column {lacking[0]!r}, but {', '.join(dataset.column_names)}")
    rows = zip(*(dataset[column][:] for column in (*columns, label)), strict=True)
    whole = [number for number, row in enumerate(rows) if all(str("" if v is None else v).strip() for v in row)]
    if not whole:
        raise InputError(f"data {name!r}: none of its {len(dataset)} rows has a text and a label")
    source = {
        "id": Path(name).name if kind else name,
        "config": kind or "of the Hub",
        "rows": {split: len(whole)},
        "left_out": len(dataset) - len(whole),
    }
    if len(whole) > most:
        source["capped"] = {split: f"{most:,} of {len(whole):,} rows"}
        whole = np.sort(np.random.default_rng(0).choice(whole, most, replace=False))
    dataset = dataset.select_columns([*columns, label]).select(whole)
    content = hashlib.sha256(repr([dataset[column][:] for column in (*columns, label)]).encode()).hexdigest()[:12]
    return dataset, source | {"revision": content}


def download(profile: Profile) -> list[str]:
    """Fetch every data set of the profile, so that a later run needs no network; what was fetched, a line each."""
    corpus, lines = profile.corpus, []
    wanted = {(corpus.id, corpus.train): ["train"]} | {(s.id, s.config): ["train"] for s in profile.mixture.values()}
    wanted |= {("nyu-mll/glue", task): ["train", *GLUE[task].dev_splits] for task in profile.glue.tasks}
    for data_id in ("stanfordnlp/imdb", "rajpurkar/squad", "openai/gsm8k"):
        wanted |= {place: list(rows) for place, rows in OFFICIAL_ROWS.items() if place[0] == data_id}
    wanted[corpus.id, corpus.heldout] = ["train", "validation", "test"]
    for (data_id, config), splits in wanted.items():
        for split in splits:
            _, source = load(profile, data_id, config, split)
            lines.append(f"{source['id']} {config} {split}: {source['rows'][split]:,} rows")
    return lines


def corpus_rows(profile: Profile, config: str, split: str) -> tuple[list[str], dict]:
    """The text of each row of the corpus, and its provenance, which counts those without; InputError if none has."""
    dataset, source = load(profile, profile.corpus.id, config, split)
    if "text" not in dataset.column_names:
        raise InputError(f"{source['id']} has no column `text`, but {', '.join(dataset.column_names)}: rename one")
    rows = dataset["text"][:]
    found = [row for row in rows if row is not None]
    return found, source | ({"without_text": {split: len(rows) - len(found)}} if len(found) < len(rows) else {})


def articles(lines: Sequence[str], unknown: str = "[UNK]") -> Iterator[str]:
    """WikiText's rows as whole articles: a new one begins at each ` = Title = `.

    What WikiText's authors did to the text is undone: ` @-@ ` is a hyphen again, and so on. `<unk>` becomes the
    tokenizer's `unknown`. Of any other text each row is a document or, where rows are blank, what stands between them.
    """
    lines = [re.sub(r" @([-,.])@ ", r"\1", line).replace("<unk>", unknown) for line in lines]
    title, article = re.compile(r" = [^=].*[^=] = \n?"), []
    if not any(map(title.fullmatch, lines)):
        parted = any(not line.strip() for line in lines)
        texts = re.split(r"\n\s*\n", "\n".join(line.rstrip("\n") for line in lines)) if parted else lines
        yield from filter(str.strip, texts)
        return
    for line in lines:
        if title.fullmatch(line) and article:
            yield "".join(article)
            article = []
        if line.strip():
            article.append(line)
    if article:
        yield "".join(article)


def problems(profile: Profile, split: str, answers: bool = True) -> tuple[list[str], dict]:
    """GSM8K's word problems, a text each, with their worked answers or without; and their provenance.

    The calculator's notes inside the answers, `<<48/2=24>>`, are taken out: nobody reads or writes them.
    """
    dataset, source = load(profile, "openai/gsm8k", "main", split)
    if not answers:
        return dataset["question"][:], source
    worked = [re.sub(r"<<.*?>>", "", answer) for answer in dataset["answer"]]
    return [f"{question}\n{answer}" for question, answer in zip(dataset["question"], worked, strict=True)], source
