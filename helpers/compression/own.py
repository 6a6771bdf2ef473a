"""Anybody's own text classifier, made smaller: what `compress` tries, measures, recommends and hands over."""

import base64
import functools
import html
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset
from matplotlib.figure import Figure
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .. import ROOT, InputError, profiles
from ..data import encoding, hub
from ..measure import machine, metrics, records, timing
from ..measure.sweep import Experiment
from ..models import checkpoints
from ..profiles import Profile, Recipe
from . import pruning, runtimes, variants
from .variants import BASE, COMPILED, EXPORTED, SMALLEST, STATIC, Variant, parse

VERSION = 1  # raised whenever the code changes the numbers it makes
WAYS = ("int8", "bf16", "cut50", "trimmed")  # tried unless said otherwise; cutNN: NN percent of heads and neurons
LENGTHS, BATCH = (8, 32, 128, 512), 32  # at which the finalists are timed: single texts, and batches of the middle ones
FEWEST, MOST = 20, 2000  # rows that are measured on
MOST_READ, MOST_TRAIN = 1_000_000, 20_000  # rows whose words count; rows that are learnt from
RECIPE = Recipe(learning_rate=5e-5, epochs=1)  # of what was cut, towards the original
EIGHT = "onnx_int8_embeddings"
SINGLE = {"int8": Variant(bits=EIGHT), "bf16": Variant(bits="bf16"), "trimmed": Variant(bits=SMALLEST, trimmed=True)}
SINGLE |= {"static": Variant(bits=STATIC), "int4": Variant(bits="onnx_int4"), "compiled": Variant(bits=COMPILED)}


class Rows(NamedTuple):
    """Rows of one's own: texts in columns, and `label`, a class's number or a value; where they come from."""

    dataset: Dataset
    columns: list[str]
    source: dict

    def read_by(self, folder: Path, length: int) -> list[dict]:
        """Examples as a model reads them, so many tokens of each: one that was trimmed has a tokenizer of its own."""
        return encoding.encode_texts(self.dataset, self.columns, AutoTokenizer.from_pretrained(folder), length)


class Own(variants.Source):
    """A classifier of anybody's, in fp32 with its tokenizer in `whole`, and the rows that it may learn from again."""

    rows, recovery = 256, RECIPE

    def __init__(self, root: Path, origin: dict, train: Rows | None, length: int, precision: str):
        """`origin`: its provenance. `length`: tokens that are read; the rest of a text is cut off."""
        super().__init__(root)
        self.whole, self.origin, self.train = root / "original", origin, train
        self.length, self.precision = length, precision

    pad = property(lambda self: AutoTokenizer.from_pretrained(self.whole).pad_token_id)

    @functools.cached_property
    def examples(self) -> list[dict]:
        """The rows to learn from, as the original reads them."""
        few = pruning.drawn(range(len(self.train.dataset)), MOST_TRAIN)
        return self.train._replace(dataset=self.train.dataset.select(few)).read_by(self.whole, self.length)

    def pieces(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        texts = (text for column in self.train.columns for text in self.train.dataset[column][:])
        return pruning.pieces_of(tokenizer, texts, pruning.COMMONEST)


class Smaller(Experiment):
    """Units {"variant"}: the original and the variants `wanted` of it, on rows that it has not learnt from."""

    name = "own"

    def __init__(self, profile: Profile, space: records.Workspace, of: Own, dev: Rows, wanted: list, threads=1):
        super().__init__(profile, space)
        self.of, self.dev, self.wanted, self.threads = of, dev, wanted, threads
        self.config, self.labels = AutoConfig.from_pretrained(of.whole), np.asarray(dev.dataset["label"][:])
        # Accuracy or, of a model that gives a number, the mean of Pearson's and Spearman's correlation.
        self.score = functools.partial(metrics.quick_score, "stsb" if self.config.num_labels == 1 else "sst2")

    @property
    def units(self) -> list[dict]:
        return [{"variant": variant.name} for variant in self.wanted]

    def why_not(self, unit: dict) -> str | None:
        variant = parse(unit["variant"])
        if variant.needs_rows and not self.of.train:
            return "needs --train: rows that tell what can go, and to learn from again"
        if variant.cut and (kind := self.config.model_type) not in pruning.NAMES:
            return f"heads are known of {', '.join(pruning.NAMES)}, and this is a {kind}"
        return variants.why_not(variant)

    def settings(self, unit: dict) -> dict:
        variant, train = parse(unit["variant"]), self.of.train
        made = {"version": VERSION, "model": checkpoints.file_hash(self.of.whole), "length": self.of.length}
        made |= {"packages": variants.packages(variant), "threads": self.threads, "data": self.dev.source["revision"]}
        made["repeats"] = self.profile.quantization.repeats
        if variant.needs_rows:
            made |= {"train": train.source["revision"], "recipe": RECIPE.model_dump()}
            made["commonest"] = pruning.COMMONEST
        return made | records.processor()

    def measure(self, unit: dict) -> records.Measurement:
        """What a variant answers, its size, and what it takes to start and to hold."""
        folder = self.of.folder(parse(unit["variant"]))
        run, examples = runtimes.load(folder, self.threads), self.dev.read_by(folder, self.of.length)
        logits = np.concatenate([run({name: one[name][None] for name in runtimes.NAMES}) for one in examples])
        said = logits[:, 0] if self.config.num_labels == 1 else logits.argmax(-1)
        given = folder, self.dev.dataset[0][self.dev.columns[0]], self.threads
        alone = [runtimes.alone(*given) for _ in range(self.profile.quantization.repeats)]
        scores = {"score": self.score(said, self.labels), "size_mb": timing.size_mb(folder)}
        scores |= runtimes.medians(alone)
        details = {"predictions": records.pack(said), "references": records.pack(self.labels)}
        details |= {"checkpoint": checkpoints.file_hash(folder), "alone": alone}
        scores = {name: float(value) for name, value in scores.items()}
        return records.Measurement(scores, [self.dev.source], [self.of.origin], details)


class Session(Experiment):
    """Units {"batch", "length"}: the original and all that was made of it, timed in turn in one process."""

    name = "own_speed"

    def __init__(self, of: Smaller):
        super().__init__(of.profile, of.space)
        self.of, self.names = of, [unit["variant"] for unit in of.ready]

    @property
    def units(self) -> list[dict]:
        fit = [length for length in LENGTHS if length <= self.of.of.length] or [self.of.of.length]
        return [{"batch": 1, "length": n} for n in fit] + [{"batch": BATCH, "length": n} for n in fit if 8 < n <= 128]

    def settings(self, unit: dict) -> dict:
        files = {name: self.of.record({"variant": name})["details"]["checkpoint"] for name in self.names}
        how = {"threads": self.of.threads, "rules": self.profile.timing.model_dump()}
        return {"version": VERSION, "files": files} | how | records.processor()

    @functools.cached_property
    def runs(self) -> dict[str, tuple[runtimes.Runner, np.ndarray]]:
        """Each model, ready, and the token ids of all rows as it reads them."""
        found, tried = {}, self.of
        for name in self.names:
            examples = tried.dev.read_by(folder := tried.of.folder(parse(name)), tried.of.length)
            ids = np.concatenate([example["input_ids"] for example in examples])
            found[name] = runtimes.load(folder, tried.threads), ids
        return found

    def measure(self, unit: dict) -> records.Measurement:
        """Milliseconds of each, and how many times as fast as the original it is, pair by pair."""
        shape, calls = (unit["batch"], unit["length"]), {}
        for name, (run, ids) in self.runs.items():
            calls[name] = functools.partial(run, runtimes.unpadded(np.resize(ids, shape)))
        taken, found = timing.seconds(calls, self.profile.timing), {}
        for name, own in taken.items():
            found[f"{name}_ms"] = 1e3 * np.median(own)
            found |= timing.ratio(taken[BASE], own).named(f"{name}_times_as_fast")
        return records.Measurement({k: float(v) for k, v in found.items()}, [], [], {"seconds": timing.rounded(taken)})


def read_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text classifier in fp32 and its tokenizer, by its Hub id or folder; InputError for what is none."""
    folder, _ = checkpoints.fetch(name)
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kinds = described.get("architectures") or ["nothing that is named"]
    if "auto_map" in described:
        raise InputError(f"{name} comes with code of its own, which is not run: take a model that transformers has")
    if not any("ForSequenceClassification" in kind for kind in kinds):
        raise InputError(f"{name} is {kinds[0]}: expected a text classifier (…ForSequenceClassification); fine-tune it")
    if described.get("problem_type") == "multi_label_classification":
        raise InputError(f"{name} gives several labels a text: expected one label, or a number")
    if described.get("is_encoder_decoder") or described.get("is_decoder") or "max_position_embeddings" not in described:
        raise InputError(f"{name} is a {described.get('model_type')!r} model: expected an encoder, as BERT or RoBERTa")
    model, missing = checkpoints.load(AutoModelForSequenceClassification, name)
    if missing:
        raise InputError(f"{name}: {missing[0]} is not in it, and would be drawn at random: fine-tune it first")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast or len(tokenizer) > model.config.vocab_size:
        raise InputError(f"{name}: its tokenizer is none of the tokenizers library, or not this model's")
    return model, tokenizer


def read_rows(name: str, split: str, texts: list[str], label: str, most: int, config: PretrainedConfig) -> Rows:
    """Rows with labels as the model numbers them: names decide; numbers only where the model or the data has no names.

    InputError for a label that the model doesn't have, with its row.
    """
    dataset, source = hub.own_rows(name, split, texts, label, most)
    said, feature = dataset[label][:], dataset.features[label]
    if config.num_labels == 1:
        numbers, expected = pd.to_numeric(pd.Series(said), errors="coerce"), "no number, and this model gives one"
    else:
        names = {str(word).strip().casefold(): number for number, word in config.id2label.items()}
        by_number = {str(number): number for number in names.values()}
        nameless = all(re.fullmatch(r"label_\d+", word) for word in names)
        if isinstance(feature, ClassLabel) and not nameless:
            said = [feature.int2str(value) for value in said]
        said = [f"{v:g}" if isinstance(v, float) else str(v).strip().casefold() for v in said]
        table = by_number if not {*said} <= names.keys() and all(map(str.isdigit, said)) else names
        numbers, expected = pd.Series(said).map(table), f"none of {', '.join(table)}"
    if numbers.isna().any():
        row = numbers.isna().argmax()
        raise InputError(f"data {name!r}: label {said[row]!r} of row {row} is {expected}")
    numbers = numbers.to_numpy(np.float32 if config.num_labels == 1 else np.int64)
    made = {f"text{number}": list(map(str, dataset[column][:])) for number, column in enumerate(texts)}
    revision = records.digest({"rows": source["revision"], "labels": numbers.tolist()})
    return Rows(Dataset.from_dict(made | {"label": numbers}), list(made), source | {"revision": revision})


def read_ways(ways: Sequence[str]) -> list[Variant]:
    """The original, and the variants that some ways stand for, one after those that it is compared with."""
    found, trimmed = [Variant(), Variant(bits=EXPORTED)], "trimmed" in ways
    for way in ways:
        if cut := re.fullmatch(r"cut([1-9]\d)", way):  # beside the whole model, trained again alike
            one = Variant("taylor", int(cut[1]), True, SMALLEST)
            found += [Variant(recovered=True, bits=SMALLEST), one] + [one._replace(trimmed=True)] * trimmed
        elif way in SINGLE:
            found.append(SINGLE[way])
        else:
            raise InputError(f"unknown way {way!r}: expected some of {', '.join(SINGLE)}, or cut and any percent")
    return list(dict.fromkeys(found))


def read_goal(goal: str | float) -> float:
    """How many points of a score may go, of a goal in words or a number."""
    if not (found := re.search(r"\d+(\.\d+)?", str(goal))):
        raise InputError(f"goal {goal!r}: expected how much may be lost, as 'no more than 1 point'")
    return float(found[0])


class Compressed(NamedTuple):
    """What `compress` made: a folder, a row a variant, the records of each and of what was timed, what to take."""

    folder: Path
    table: pd.DataFrame
    found: list[dict]
    timed: list[dict]
    recommendation: str


def compress(
    model: str,
    data: str,
    train: str | None = None,
    *,
    text: str = "sentence",
    pair: str | None = None,
    label: str = "label",
    to: Sequence[str] = WAYS,
    out: str | Path = "compressed",
    goal: str | float = "no more than 1 point",
    threads: int = 1,
    profile: Profile | None = None,
    space: records.Workspace | None = None,
) -> Compressed:
    """Make a text classifier smaller in several ways, measure each on `data`, and hand over the one that suits best.

    Args:
        model: Hub id or folder of a …ForSequenceClassification on an encoder; `data`, `train`: files (CSV, TSV, JSON
            lines, parquet) or `id:config` of the Hub, of rows that it has not learnt from, and of such that it may.
        text, pair, label: their columns. to: ways to try. goal: how many points of the score may go.
        out: the folder for model.onnx, tokenizer.json, config.json, use.py, report.md and report.html.
        profile: whose rules things are timed by (laptop's). space: for records, by which a run that was cut off goes
            on, and for what is made on the way (beside `out`, in `out`.work).

    InputError, before anything is written, for what cannot be taken.
    """
    points, wanted, texts, out = read_goal(goal), read_ways(to), [text] + [pair] * (pair is not None), Path(out)
    if out.exists() and not (out / "use.py").exists():
        raise InputError(f"{out} is there, and nothing that was handed over before: name a new folder")
    machine.require_cores("threads", [threads])
    original, tokenizer = read_model(model)
    dev = read_rows(data, "validation", texts, label, MOST, original.config)
    learnt = read_rows(train, "train", texts, label, MOST_READ, original.config) if train else None
    if len(dev.dataset) < FEWEST or len(set(dev.dataset["label"])) < 2:
        given = f"{len(dev.dataset)} rows with labels {sorted(set(dev.dataset['label']))[:9]}"
        raise InputError(f"data {data!r}: {given}: expected at least {FEWEST} rows and two labels")
    longest = min(checkpoints.longest(original.config), tokenizer.model_max_length, LENGTHS[-1])
    profile, origin = profile or profiles.load("laptop"), checkpoints.fetch(model)[1]
    space = space or records.Workspace(profile, out.with_name(f"{out.name}.work"), "own")
    place = space.checkpoints / records.digest({"model": origin["revision"], "train": learnt and learnt.source})
    if not (place / "original").is_dir():
        checkpoints.save(original, tokenizer, place / "original")
    of = Own(place, origin, learnt, longest, machine.precision(profile))
    tried = Smaller(profile, space, of, dev, wanted, threads)
    lengths = [len(ids) for ids in tokenizer(*(dev.dataset[column][:] for column in dev.columns))["input_ids"]]
    remarks = said_of(dev, learnt, original.config, sum(length > longest for length in lengths), longest)
    for name in (unit["variant"] for unit in tried.units):
        remarks += [f"left out: {title(name)}, {reason}"] if (reason := tried.why_not({"variant": name})) else []
    print("\n".join(remarks))
    with runtimes.threads_kept():
        found, session = tried.run(), Session(tried)
        timed = session.run()
    table, at = tabulate(found, timed, tried, float(np.median(lengths)))
    chosen, sentence = recommend(table, points, at)
    hand_over(out, tried, chosen, table, [sentence, *remarks], at)
    return Compressed(out, table, found, timed, sentence)


def said_of(dev: Rows, learnt: Rows | None, config: PretrainedConfig, cut_off: int, longest: int) -> list[str]:
    """What is to be known of the rows: which were left out or not drawn, what is cut off, how labels were read."""
    lines = []
    for rows in filter(None, (dev, learnt)):
        if rows.source["left_out"]:
            lines.append(f"{rows.source['id']}: {rows.source['left_out']} rows without a text or a label are left out")
        lines += [f"{rows.source['id']}: {told}, drawn at random" for told in rows.source.get("capped", {}).values()]
    if learnt and len(learnt.dataset) > MOST_TRAIN:
        lines.append(f"{learnt.source['id']}: what is cut learns from {MOST_TRAIN:,} of {len(learnt.dataset):,} rows")
    lines += [f"{cut_off} of {len(dev.dataset)} texts are longer than {longest} tokens and cut off"] * bool(cut_off)
    if config.num_labels > 1:
        guess = pd.Series(dev.dataset["label"][:]).value_counts(normalize=True).max()
        lines.append(f"always the commonest label would score {100 * guess:.1f}")
        lines.append("labels: " + ", ".join(f"{number} is {word}" for number, word in sorted(config.id2label.items())))
    return lines


def tabulate(found: list[dict], timed: list[dict], tried: Smaller, usual: float) -> tuple[pd.DataFrame, dict]:
    """A row a variant: score, p of its difference, agreement, size, memory, and speed at about the `usual` length.

    Beside them at which length, and on how many rows and threads.
    """
    single = [record for record in timed if record["unit"]["batch"] == 1]
    speed = min(single, key=lambda record: abs(record["unit"]["length"] - usual))
    rows, rule, base = {}, tried.score, records.unpack(found[0]["details"]["predictions"])
    for record in found:
        name, own = record["unit"]["variant"], records.unpack(record["details"]["predictions"])
        fast = [speed["metrics"][f"{name}_times_as_fast{end}"] for end in ("", "_low", "_high")]
        p = metrics.permutation_test(own[None], base[None], tried.labels, rule) if name != BASE else None
        row = {"score": 100 * record["metrics"]["score"], "p": p, "agreement": 100 * np.mean(own == base)}
        row |= {"mb": record["metrics"]["size_mb"], "peak_mb": record["metrics"].get("peak_memory_mb")}
        row |= {"fast": fast[0], "low": fast[1], "high": fast[2], "cold_s": record["metrics"]["cold_start_s"]}
        rows[name] = row
    return pd.DataFrame(rows).T.astype(float), speed["unit"] | {"rows": len(tried.labels), "threads": tried.threads}


def recommend(table: pd.DataFrame, points: float, at: dict) -> tuple[str, str]:
    """The fastest within so many points, of a tie the untrained or better one, in a sentence; else the original."""
    base = table.loc[BASE]
    fit = table[(table.score >= base.score - points - 1e-9) & (table.index != BASE) & (table.low > 1)]
    goal = f"a loss of no more than {points:g} point{'' if points == 1 else 's'}"
    if fit.empty:
        return BASE, f"Keep the original: nothing that was tried is faster at {goal}."
    level = fit[fit.high >= fit.low[fit.fast.idxmax()]]
    own = fit.loc[name := min(level.index, key=lambda name: (parse(name).recovered, -level.score[name]))]
    size = f"{own.mb:.1f} MB instead of {base.mb:.1f}"
    speed = f"{own.fast:.1f} times as fast ({own.low:.1f} to {own.high:.1f}) at {at['length']} tokens"
    worth = f"{own.score:.1f} against {base.score:.1f} on {at['rows']:,} rows (p {metrics.written(own.p)})"
    return name, f"Take “{title(name)}”: {size}, {speed}, score {worth}; the goal was {goal}."


def title(name: str) -> str:
    """A variant's name in the report."""
    return "the original" if name == BASE else variants.label(name)


def hand_over(out: Path, tried: Smaller, chosen: str, table: pd.DataFrame, said: list[str], at: dict) -> None:
    """Write the folder that works by itself: the model for ONNX Runtime, its tokenizer, use.py, and the report.

    `said`: the recommendation, and what is to be known of the rows.
    """
    exported = [name for name in table.index if runtimes.runtime(tried.of.folder(parse(name))) == "onnx"]
    name = chosen if chosen in exported else max(exported, key=lambda one: table.score[one])
    grid = shown(table)
    note = f"Measured on {at['rows']:,} rows; times as fast at {at['length']} tokens, one text at a time, on "
    note += f"{records.cpu()['model']} (threads: {at['threads']}), all in turn in one session. " + "; ".join(said[1:])
    lines = [["", *grid.columns], ["---"] * (1 + grid.shape[1]), *grid.reset_index().values.tolist()]
    told = {"title": f"{tried.of.origin['id']}, made smaller", "sentence": said[0], "note": note}
    text = [f"# {told['title']}", said[0], "\n".join(f"| {' | '.join(line)} |" for line in lines), note]
    page = {name: html.escape(words) for name, words in told.items()} | {"table": grid.to_html(border=0)}
    chart(table).savefig(picture := io.BytesIO(), format="png", dpi=150)
    page["picture"] = base64.b64encode(picture.getvalue()).decode()
    described = tried.config.to_dict() | {"longest": tried.of.length, "variant": name}
    with checkpoints.written(out, folder := tried.of.folder(parse(name))) as building:
        shutil.copy(folder / "model.onnx", building)
        shutil.copy(ROOT / "tools" / "use.py", building)
        (building / "config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        (building / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
        template = (ROOT / "tools" / "own.html").read_text(encoding="utf-8")
        (building / "report.html").write_text(template.format(**page), encoding="utf-8")
        if chosen not in exported and chosen != BASE:  # PyTorch's own is what was recommended
            shutil.copytree(tried.of.folder(parse(chosen)), building / "torch")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is read: a row a variant, by its title."""
    p = ["" if pd.isna(value) else f" (p {metrics.written(value)})" for value in table.p]
    written = {
        "score": table.score.map("{:.1f}".format) + p,
        "same answers (%)": table.agreement.map("{:.1f}".format),
        "MB": table.mb.map("{:.1f}".format),
        "peak MB": table.peak_mb.map("{:.0f}".format).replace("nan", "–"),
        "times as fast": table.apply("{0.fast:.2f} ({0.low:.2f} to {0.high:.2f})".format, axis=1),
        "cold start (s)": table.cold_s.map("{:.2f}".format),
    }
    return pd.DataFrame(written).rename(index=title)


def chart(table: pd.DataFrame) -> Figure:
    """Score against size, with a name at each point."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.add_subplot(xlabel="size on disk (MB, log scale)", ylabel="score", xscale="log")
    axes.margins(x=0.1, y=0.2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    middle = np.sqrt(table.mb.min() * table.mb.max())
    for number, (name, row) in enumerate(table.iterrows()):
        axes.plot(row.mb, row.score, "o", markersize=8)
        side, place = ("right", -8) if row.mb > middle else ("left", 8)
        place = {"xytext": (place, (7, -13)[number % 2]), "textcoords": "offset points", "ha": side, "fontsize": 9}
        axes.annotate(title(name), (row.mb, row.score), **place)
    return figure
