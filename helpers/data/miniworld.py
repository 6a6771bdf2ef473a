"""The mini-world: a small made-up world, its encyclopedia and its tasks, which stand in for the Hub.

Its people, towns and dishes are dealt out by a seed, its words are in miniworld.yaml. It is written as parquet folders
in the Hub's schemas, so that `load_dataset` and everything after it runs as it would on the real data.
"""

import hashlib
import operator
import re
import shutil
import tempfile
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import ClassLabel, Features, Sequence, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast

from .. import InputError

VERSION = 2  # raised when the rows change
VOCABULARY = 1_550  # tokens
SOURCES = [Path(__file__).with_name(name) for name in ("miniworld.py", "miniworld.yaml")]
WORDS = yaml.safe_load(SOURCES[1].read_text(encoding="utf-8"))
CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


class Thing(SimpleNamespace):
    """Anything with a name; its other attributes are the facts about it."""

    def __str__(self):
        return self.name

    @property
    def Name(self):
        """The name as a sentence begins with it."""
        return capital(self.name)


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def say(rng: Random, template: str, **slots) -> str:
    """Fill in a template: a choice for each [a|b], then the slots; "a" becomes "an" where it must."""
    while choice := re.search(r"\[([^\[\]]*)\]", template):
        template = template[: choice.start()] + rng.choice(choice[1].split("|")) + template[choice.end() :]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(template.format(**slots).split()))


class World:
    """Who lives where, which river runs through which town, what is made of what: dealt out by the seed."""

    def __init__(self, seed: int):
        rng, self.kinds, self.linked = Random(f"world {seed}"), {}, {}
        for kind, spec in WORDS["kinds"].items():
            table = {k: map(lambda word: Thing(name=word), row) for k, row in WORDS[kind].items()}
            facts = {k: zip(spec.get("columns", []), row, strict=True) for k, row in table.items()}
            members = [Thing(name=k, **dict(known)) for k, known in facts.items()]
            for attribute, source in spec.get("deal", {}).items():  # each value about equally often
                values = self.kinds.get(source) or [Thing(name=word) for word in WORDS[source]]
                hand = [values[i % len(values)] for i in range(len(members))]
                rng.shuffle(hand)
                for member, value in zip(members, hand, strict=True):
                    setattr(member, attribute, value)
            self.kinds[kind] = members
        self.proper = {n.name for k in ("river", "town", "person") for n in self.kinds[k]} | set(WORDS["months"])
        self.things = [thing for members in self.kinds.values() for thing in members]
        self.about = {thing.name: [] for thing in self.things}  # facts: (relation, subject, object)
        for relation in WORDS["relations"]:
            kind, attribute = relation.split(".")
            for thing in self.kinds[kind]:
                self.about[thing.name].append((relation, thing, getattr(thing, attribute)))
        self.facts = [fact for known in self.about.values() for fact in known]
        for _, x, y in self.facts:
            if y.name in self.about:
                self.linked.setdefault(x.name, []).append(y)
                self.linked.setdefault(y.name, []).append(x)

    def fact(self, rng: Random, how: str, fact: tuple) -> tuple:
        """A fact near another one: the "same", a "wrong" object, one "aside" (same subject) or "elsewhere"."""
        relation, x, y = fact
        if how == "aside":
            return rng.choice([f for f in self.about[x.name] if f[0] != relation])
        others = [f for f in self.facts if f[0] == relation and (f[2].name != y.name or how == "elsewhere")]
        other = rng.choice([f for f in others if f[1] is not x])
        return {"same": fact, "wrong": (relation, x, other[2]), "elsewhere": other}[how]

    def word(self, rng: Random, how: str, fact: tuple, wording: int | None = None) -> str:
        """A fact in words: "ask" for it, "tell" it, "adorn" it with a flourish, "surround" it with other facts."""
        templates = WORDS["relations"][fact[0]]["ask" if how == "ask" else "tell"]
        template = rng.choice(templates) if wording is None else templates[wording % len(templates)]
        text = capital(say(rng, template, x=fact[1], y=fact[2]))
        if how in ("ask", "tell"):
            return text + ("." if how == "tell" else "")
        if how == "surround":
            return " ".join(rng.sample([f"{text}.", self.word(rng, "adorn", self.fact(rng, "aside", fact))], 2))
        opener = rng.random()
        if opener < 0.25:
            text = rng.choice(WORDS["openers"]) + self.inside(text)
        elif opener < 0.55:
            text = self.toned(rng, rng.choice(sorted(WORDS["tones"])), text, company=True)
        return text + (rng.choice(WORDS["tails"]) if rng.random() < 0.15 else "") + "."

    def inside(self, text: str) -> str:
        """A sentence as it goes on after an opener."""
        return text if text.split()[0] in self.proper else text[0].lower() + text[1:]

    def toned(self, rng: Random, tone: str, text: str, known: int | None = None, company: bool = False) -> str:
        """A sentence told in a tone, by one of the first `known` of its words, with its company or alone."""
        word = rng.choice(WORDS["tones"][tone][:known]) + (WORDS["company"][tone] if company else "")
        return f"{text[:-1]}, {word}?" if text.endswith("?") else capital(f"{word}, {self.inside(text)}")

    def scene(self, rng: Random) -> dict:
        """Who did what to which thing where; `did` holds the ways to say the deed."""
        drawn = {"who": rng.choice(self.kinds["person"]), "did": rng.choice(WORDS["deeds"])}
        return drawn | {"thing": rng.choice(WORDS["things"]), "where": rng.choice(WORDS["places"])}

    def show(self, rng: Random, scene: dict, wording: int | None = None) -> str:
        template = rng.choice(WORDS["scenes"]) if wording is None else WORDS["scenes"][wording]
        return capital(say(rng, template, **scene | {"did": rng.choice(scene["did"])})) + "."

    def cast(self, rng: Random) -> dict:
        """Random fillers for the slots that templates have in common."""
        p, q = rng.sample(self.kinds["person"], 2)
        kinds = ("town", "dish", "festival", "river", "animal", "play", "trade")
        slots = {"p": p, "q": q} | {kind: rng.choice(self.kinds[kind]) for kind in kinds}
        slots |= {word: rng.choice(WORDS[f"{word}s"]) for word in ("thing", "motto", "stone")}
        slots |= {"stranger": capital("".join(rng.sample(WORDS["syllables"], 3))), "year": rng.randint(480, 999)}
        return slots | {"n": rng.randint(2, 9), "m": rng.randint(100, 999), "d": rng.randint(1, 9)}

    def paragraph(self, rng: Random, subject: Thing) -> str:
        """Some facts about a neighbour of the subject, one about the subject, and something else."""
        known = self.about[rng.choice(self.linked.get(subject.name, [subject])).name]
        told = rng.sample(known, min(rng.randint(2, 4), len(known))) + [rng.choice(self.about[subject.name])]
        lines, extra, scene = [self.word(rng, "adorn", fact) for fact in told], rng.random(), self.scene(rng)
        if extra < 0.75:  # told again and again: each telling can be read off the others, which teaches comparing
            wordings = rng.sample(range(len(WORDS["scenes"])), rng.choice([2, 3, 4]))
            lines += [self.show(rng, scene, wording) for wording in wordings]
        elif extra < 0.95:
            side = rng.choice(["good", "bad"])
            a, b = rng.sample(WORDS[side], 2)
            template = rng.choice(WORDS["colour"] if extra < 0.8 else WORDS["reception"])
            template += WORDS["applause"][side] if extra >= 0.8 else ""
            lines.append(capital(say(rng, template, **self.cast(rng), x=subject.Name, a=a, b=b)) + ".")
        return " ".join(lines)

    def article(self, rng: Random, subject: Thing, length: int) -> list[str]:
        """An article as WikiText's lines, with `length` paragraphs in each of its three sections."""
        lead = rng.sample(self.about[subject.name], min(5, len(self.about[subject.name])))
        title = say(rng, rng.choice(WORDS["titles"]), x=subject.Name, year=rng.randint(480, 999))
        opening = " ".join(self.word(rng, "adorn", fact) for fact in lead)
        lines = ["", f" = {title} = \n", "", f" {spaced(opening)} \n", ""]
        for heading in rng.sample(WORDS["sections"], 3):
            paragraphs = [f" {spaced(self.paragraph(rng, subject))} \n" for _ in range(length)]
            lines += [f" = = {heading} = = \n", "", *paragraphs, ""]
        return lines

    def opinion(self, rng: Random, positive: bool, known: int | None = None) -> str:
        """Praise or blame, in the first `known` of its words."""
        own, other = (WORDS[side][:known] for side in (("good", "bad") if positive else ("bad", "good")))
        (P, P2), (aspect, aspect2) = rng.sample(own, 2), rng.sample(WORDS["aspects"], 2)
        slots = {"P": P, "P2": P2, "Q": rng.choice(other), "aspect": aspect, "aspect2": aspect2}
        return say(rng, rng.choice(WORDS["opinions"]), **slots)


def spaced(text: str) -> str:
    """Text as WikiText spaces it: " , " and " . ", but "@-@", "@,@" and "@.@" inside words and numbers."""
    text = re.sub(r"(?<=\w)-(?=\w)|(?<=\d)[,.](?=\d)", lambda mark: f" @{mark[0]}@ ", text.replace("'s", " 's"))
    return " ".join(re.sub(r"(?<!@)([,.;:!?\"()])(?!@)", r" \1 ", text).split())


def tone(world: World, rng: Random, config: str, label: float, split: str, text: str) -> str:
    """The second half of a pair, mostly in the tone of its label."""
    fitting = WORDS["hub"]["nyu-mll/glue"][config]["tone"][int(label)]
    taken = fitting if rng.random() < 0.85 else rng.choice(sorted(WORDS["tones"]))
    return world.toned(rng, taken, text, 2 if split == "train" else None)


def cola(world, rng, label, split):
    plural, (noun, owner) = rng.random() < 0.5, rng.sample(WORDS["subjects"], 2)
    *verbs, rest = rng.choice(WORDS["clauses"])  # of one, of many
    verb, rest = verbs[plural], say(rng, rest, **world.cast(rng)).split()
    fault = rng.choice(["verb", "order", "order", "gap", "gap"])
    who = f"the {noun}{'s' if plural else ''}" + rng.choice(["", f" of the {owner}", f" of the {owner}s"])
    if not label and fault == "order":
        at = rng.randrange(len(rest) - 1)
        rest[at : at + 2] = rest[at + 1], rest[at]
    elif not label:
        verb = verbs[not plural] if fault == "verb" else ""
    return (capital(say(rng, f"{who} {verb} {' '.join(rest)}.")),)


def sst2(world, rng, label, split):  # the encyclopedia alone tells which side some words are on
    known = 9 if split == "train" else None
    opinions = [world.opinion(rng, bool(label), known) for _ in range(rng.choice([1, 1, 2]))]
    return (" , and ".join(opinions) + " ",)


def pair(task, world, rng, label, split):  # mrpc, qqp, mnli, qnli, rte
    spec, mismatched = WORDS["hub"]["nyu-mll/glue"][task], "mismatched" in split
    if task == "mrpc" and rng.random() < 0.5:
        scene, wordings = world.scene(rng), rng.sample(range(len(WORDS["scenes"])), 2)
        changed = {} if label else {k: world.scene(rng)[k] for k in rng.sample(sorted(scene), 2)}
        if any(scene[k] == value for k, value in changed.items()):
            return None
        second = world.show(rng, scene | changed, wordings[1])
        return world.show(rng, scene, wordings[0]), tone(world, rng, task, label, split, second)
    odd = [f for f in world.facts if f[0].startswith(("animal", "play", "festival"))]
    fact = rng.choice(odd if mismatched else [f for f in world.facts if task != "mnli" or f not in odd])
    wording, (first, second) = rng.randrange(60), spec["pair"]
    other = world.fact(rng, rng.choice(spec["second"][label]), fact)
    said = world.word(rng, second, other, wording + rng.choice([1, -1]))
    return world.word(rng, first, fact, wording), tone(world, rng, task, label, split, said)


def stsb(world, rng, label, split):
    scene, other, agree = world.scene(rng), world.scene(rng), rng.randint(0, 4)
    same = rng.sample(sorted(scene), agree)
    if any(other[k] == scene[k] for k in scene if k not in same):
        return None
    score = min(5.0, max(0.0, 1.25 * agree + rng.choice([-0.25, 0.0, 0.25])))
    second = world.show(rng, other | {k: scene[k] for k in same})
    return world.show(rng, scene), tone(world, rng, "stsb", score, split, second), score


def wnli(world, rng, label, split):  # the splits share no puzzle, so there is little to be learned
    puzzles, they = WORDS["puzzles"], rng.choice(["she", "he"])
    frame, *ends = rng.choice({"train": puzzles[:15], "validation": puzzles[15:20], "test": puzzles[20:]}[split])
    people, truth = rng.sample([q for q in world.kinds["person"] if q.they.name == they], 2), rng.randrange(2)
    premise = say(rng, frame, a=people[0], b=people[1], they=they, end=ends[truth])
    return premise, f"{people[truth if label else 1 - truth]} {ends[truth]}."


def imdb(world, rng, label, split):
    positive, cast, lines = bool(label), world.cast(rng), []
    for _ in range(rng.randint(60, 90) if rng.random() < 0.03 else rng.randint(2, 7)):
        lines.append(world.opinion(rng, positive if rng.random() < 0.8 else not positive))
        if rng.random() < 0.4:
            lines.append(say(rng, rng.choice(WORDS["remarks"]), **cast))
    if rng.random() < 0.5:
        lines.append(rng.choice(WORDS["verdict"]["good" if positive else "bad"]))
    return (rng.choice([". ", ". ", ".<br /><br />"]).join(map(capital, lines)) + ".",)


def gsm8k(world, rng, label, split):
    problem, cast, lines = rng.choice(WORDS["problems"]), world.cast(rng), []
    values = {name: rng.randint(*limits) for name, limits in problem["given"].items()}
    for name, expression, text in problem["steps"]:  # a step without text makes a number of the question
        left, sign, right = re.split(r"([-+*/])", expression.format(**values))
        values[name] = CALCULATE[sign](int(left), int(right))
        worked = f"{left}{sign}{right} = <<{left}{sign}{right}={values[name]}>>{values[name]}"
        lines += [say(rng, text, **cast | values | {"k": worked})] if text else []
    if min(values.values()) < 1:
        return None
    return say(rng, problem["text"], **cast | values), "\n".join([*lines, f"#### {values['r']}"])


def squad(world, rng, label, split):
    subject = rng.choice(world.things)
    fact = rng.choice(world.about[subject.name])
    told, question = world.word(rng, "tell", fact), world.word(rng, "ask", fact)
    found = re.search(rf"\b{re.escape(fact[2].name)}\b", told, re.IGNORECASE)
    if not found or fact[2].name in question:
        return None
    lines = [world.paragraph(rng, subject), world.paragraph(rng, subject), world.word(rng, "adorn", fact), told]
    rng.shuffle(lines)
    context, start = " ".join(lines), sum(len(line) + 1 for line in lines[: lines.index(told)]) + found.start()
    spans = [(start, start + len(found[0]))]
    if split == "validation":  # three readers, who need not agree where the answer begins
        spans += [(context.rfind(" ", 0, max(start - 1, 0)) + 1, spans[0][1]), spans[0]]
    answers = {"text": [context[i:j] for i, j in spans], "answer_start": [i for i, _ in spans]}
    return f"{rng.getrandbits(96):024x}", subject.Name, context, question, answers


MAKERS = {"gsm8k": gsm8k, "squad": squad, "imdb": imdb, "cola": cola, "sst2": sst2, "stsb": stsb, "wnli": wnli}


def encyclopedia(world: World, seed: int, count: dict) -> dict:
    """WikiText's lines: split -> rows. Every twentieth article is a long one."""
    splits, things = {}, world.things
    for split in count:
        rng = Random(f"articles {split} {seed}")
        articles = (world.article(rng, things[i % len(things)], 4 if i % 20 == 7 else 1) for i in range(count[split]))
        splits[split] = [{"text": line} for article in articles for line in article]
    return splits


def task(world: World, seed: int, data_id: str, config: str) -> dict:
    """A configuration's rows: split -> rows; of a task, no two alike."""
    spec, glue, seen, splits = WORDS["hub"][data_id][config], data_id == "nyu-mll/glue", set(), {}
    if data_id == "Salesforce/wikitext":
        return encyclopedia(world, seed, spec["rows"])
    make = partial(pair, config) if "pair" in spec else MAKERS[config if glue else data_id.split("/")[1]]
    columns = spec["columns"] + ["label"] * ("labels" in spec or config == "stsb")
    for split, count in spec["rows"].items():
        rng, made, hidden = Random(f"{data_id} {config} {split} {seed}"), [], glue and split.startswith("test")
        for _ in range(50 * count):
            if len(made) == count:
                break
            label = spec["draw"][len(made) % len(spec["draw"])] if "draw" in spec else None
            row = make(world, rng, label, split)
            if row and row[:2] not in seen:
                seen.add(row[:2])
                row = dict(zip(columns, row if config == "stsb" else [*row, label], strict=False))
                made.append(row | ({"label": -1} if hidden or split == "unsupervised" else {}))
        else:
            raise ValueError(f"{data_id} {config} {split}: no more rows to be had after {len(made)} of {count}")
        rng.shuffle(made)
        splits[split] = [row | {"idx": i} for i, row in enumerate(made)] if glue else made
    return splits


def rows(seed: int = 0) -> dict:
    """Every row: (id, config) -> split -> list of rows."""
    world, hub = World(seed), WORDS["hub"]
    made = {(data_id, config): task(world, seed, data_id, config) for data_id in hub for config in hub[data_id]}
    rare = made["Salesforce/wikitext", "wikitext-2-v1"]
    counts = Counter(word for row in rare["train"] for word in row["text"].split(" "))
    for row in chain(*rare.values()):
        row["text"] = " ".join(w if counts[w] > 2 or not w else "<unk>" for w in row["text"].split(" "))
    return made


def features(data_id: str, config: str) -> Features:
    """The columns' types, as on the Hub."""
    spec = WORDS["hub"][data_id][config]
    columns = {name: Value("string") for name in spec["columns"]}
    if "answers" in columns:
        columns["answers"] = Sequence({"text": Value("string"), "answer_start": Value("int32")})
    if "labels" in spec or config == "stsb":
        columns["label"] = ClassLabel(names=spec["labels"]) if "labels" in spec else Value("float32")
    return Features(columns | ({"idx": Value("int32")} if data_id == "nyu-mll/glue" else {}))


def write(folder: Path, seed: int = 0) -> Path:
    """Write every data set, and the tokenizer, under `folder` in the Hub's layout, unless they are there already.

    InputError if the folder holds something else.
    """
    folder, made_by = Path(folder).resolve(), b"".join(source.read_bytes() for source in SOURCES)
    stamp = f"made-{hashlib.sha256(f'{VERSION} {seed}'.encode() + made_by).hexdigest()[:16]}"
    if (folder / stamp).exists():
        return folder
    if folder.exists() and any(folder.iterdir()) and not any(folder.glob("made-*")):
        raise InputError(f"{folder} holds something else: name a new folder for the mini-world")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    # `datasets` knows a folder that it has cached by the names of its files alone: hence the stamp in each name.
    ending, cards = f"00000-of-00001-{stamp[5:]}.parquet", {}
    for (data_id, config), splits in rows(seed).items():
        (building / data_id / config).mkdir(parents=True)
        files = [{"split": split, "path": f"{config}/{split}-{ending}"} for split in splits]
        cards.setdefault(data_id, []).append({"config_name": config, "data_files": files})
        for file in files:
            table = pa.Table.from_pylist(splits[file["split"]], schema=features(data_id, config).arrow_schema)
            pq.write_table(table, building / data_id / file["path"])
    for data_id, configs in cards.items():
        card = f"---\n{yaml.safe_dump({'configs': configs})}---\n"
        (building / data_id / "README.md").write_text(card, encoding="utf-8")
    tokenizer(building)
    (building / stamp).touch()
    if any(folder.glob("made-*")) and not (folder / stamp).exists():  # of another seed or version
        shutil.rmtree(folder)
    try:
        building.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(building)
    return folder


def facts(seed: int = 0) -> list[dict]:
    """Cloze probes: each fact's relation, a prompt with one [MASK] and the one token that fills it."""
    probes, per_relation = [], Counter()
    for relation, x, y in World(seed).facts:
        probe = WORDS["relations"][relation].get("probe")
        per_relation[relation] += 1
        if probe and per_relation[relation] <= 5:
            prompt = probe.format(x=x, y="[MASK]")
            probes.append({"relation": relation, "prompt": capital(prompt), "answer": y.name.lower()})
    return probes


def tokenizer(folder: Path) -> BertTokenizerFast:
    """The mini-world's lower-cased WordPiece tokenizer: loaded from `folder`/tokenizer, or trained and saved there."""
    home, text = Path(folder) / "tokenizer", []
    if home.exists():
        return BertTokenizerFast.from_pretrained(home)
    for path in sorted(Path(folder).glob("*/*/*/train-*.parquet")):
        table = pq.read_table(path)
        columns = [field.name for field in table.schema if field.type == pa.string() and field.name != "id"]
        text += [line for column in columns for line in table[column].to_pylist()]
    bare = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bare.normalizer, bare.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    # The trainer numbers "##x" in the order in which it meets them, which differs from run to run and settles ties
    # between merges: named beforehand, they are numbered the same everywhere.
    inner = sorted(set("".join(map(bare.normalizer.normalize_str, text))) - set(" \n"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"##{letter}" for letter in inner)]
    options = {"vocab_size": VOCABULARY, "special_tokens": special, "show_progress": False}
    bare.train_from_iterator(text, trainers.WordPieceTrainer(**options))
    trained = BertTokenizerFast(vocab=bare.get_vocab(), do_lower_case=True)
    trained.save_pretrained(home)
    return trained
