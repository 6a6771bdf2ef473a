"""What the mini-world holds and what is said of it: its people, towns and dishes, its articles and opinions."""

import re
from pathlib import Path
from random import Random
from types import SimpleNamespace

import yaml

WORDS = yaml.safe_load(Path(__file__).with_name("miniworld.yaml").read_text(encoding="utf-8"))


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
            members = [
                Thing(name=k, **dict(zip(spec.get("columns", []), row, strict=True))) for k, row in table.items()
            ]
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
        if text.endswith("?"):
            return f"{text[:-1]}, {word}?"
        return capital(f"{word}, {self.inside(text)}")

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
        slots = {kind: rng.choice(self.kinds[kind]) for kind in kinds}
        slots |= {word: rng.choice(WORDS[f"{word}s"]) for word in ("thing", "motto", "stone")}
        slots |= {"stranger": capital("".join(rng.sample(WORDS["syllables"], 3))), "year": rng.randint(480, 999)}
        slots |= {"n": rng.randint(2, 9), "m": rng.randint(100, 999), "d": rng.randint(1, 9)}
        return slots | {"p": p, "q": q}

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
        lines = [
            "",
            f" = {title} = \n",
            "",
            f" {spaced(' '.join(self.word(rng, 'adorn', fact) for fact in lead))} \n",
            "",
        ]
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
