"""The mini-world's data sets, row by row: its encyclopedia, and a maker for each task."""

import operator
import re
from collections import Counter
from functools import partial
from random import Random

from .world import WORDS, World, capital, say

CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

# A maker gives the columns of one row for a label, or None where its throw of the dice makes no row.


def tone(world: World, rng: Random, config: str, label: float, split: str, text: str) -> str:
    """The second half of a pair, mostly in the tone of its label."""
    fitting, every = WORDS["hub"]["nyu-mll/glue"][config]["tone"][int(label)], sorted(WORDS["tones"])
    return world.toned(
        rng, fitting if rng.random() < 0.85 else rng.choice(every), text, 2 if split == "train" else None
    )


def cola(world, rng, label, split):
    plural, (noun, owner) = rng.random() < 0.5, rng.sample(WORDS["subjects"], 2)
    verb, wrong, rest = (v := rng.choice(WORDS["clauses"]))[plural], v[not plural], v[2]
    rest = say(rng, rest, **world.cast(rng)).split()
    fault = rng.choice(["verb", "order", "order", "gap", "gap"])
    who = f"the {noun}{'s' if plural else ''}" + rng.choice(["", f" of the {owner}", f" of the {owner}s"])
    if not label and fault == "order":
        at = rng.randrange(len(rest) - 1)
        rest[at : at + 2] = rest[at + 1], rest[at]
    elif not label:
        verb = wrong if fault == "verb" else ""
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
    context, start = (" ".join(lines), sum(len(line) + 1 for line in lines[: lines.index(told)]) + found.start())
    spans = [(start, start + len(found[0]))]
    if split == "validation":  # three readers, who need not agree where the answer begins
        spans += [(context.rfind(" ", 0, max(start - 1, 0)) + 1, spans[0][1]), spans[0]]
    answers = {"text": [context[i:j] for i, j in spans], "answer_start": [i for i, _ in spans]}
    return f"{rng.getrandbits(96):024x}", subject.Name, context, question, answers


MAKERS = {"gsm8k": gsm8k, "squad": squad, "imdb": imdb, "cola": cola, "sst2": sst2, "stsb": stsb, "wnli": wnli}


def encyclopedia(world: World, seed: int, count: dict) -> dict:
    """WikiText's lines: split -> rows. Every twentieth article is a long one."""
    splits = {}
    for split in count:
        rng = Random(f"articles {split} {seed}")
        things = [world.things[i % len(world.things)] for i in range(count[split])]
        articles = [world.article(rng, thing, 4 if i % 20 == 7 else 1) for i, thing in enumerate(things)]
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
    for row in [row for lines in rare.values() for row in lines]:
        row["text"] = " ".join(w if counts[w] > 2 or not w else "<unk>" for w in row["text"].split(" "))
    return made
