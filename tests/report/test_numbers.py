"""No number is typed: what prose says in numbers stands in a table made from records, or has been published."""

import csv
import re
from datetime import datetime
from pathlib import Path

import nbformat
import pytest

from helpers import ROOT
from helpers.measure import records
from helpers.report import tables
from tools import readme

LAPTOP = ROOT / "results" / "laptop"
# A number alone: no part of a name (SST-2, int8), of a version or of an address.
NUMBER = re.compile(r"(?<![\w.\-–/])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w/]|[.,]\d)")
UNIT = re.compile(
    rf"({NUMBER.pattern})(?:\s(?:and|to)\s{NUMBER.pattern})?\s?"
    r"(?:%|[kMG]i?B\b|ms\b|s\b|(?:points?|percent|times|seconds?|minutes?|hours?|nats?|million|GFLOP/s|rows/s|tokens/s)\b)"
)
SPELT = r"(two|three|four|five|six|seven|eight|nine|ten|twenty|thirty|fifty|hundred)"
SPELT_UNIT = re.compile(rf"\b{SPELT} (?:points|percent|times as|MB|seconds|minutes|hours|nats)\b", re.IGNORECASE)
# What a method sets and nobody measures: the level of an interval, BERT's shares of masked words, a coin's accuracy.
SET = {"95%", "15%", "80%", "10%", "50%"}
NAMES = re.compile(r"\b\d+ bits?\b|\bTables? \d\b|\bbatch(?:es)? of \d+\b|\b95% ")


def numbers(text: str) -> list[str]:
    return [plain(found) for found in NUMBER.findall(NAMES.sub(" ", text.replace("−", "-")))]


def plain(number: str) -> str:
    return number.replace(",", "").lstrip("+-")


def in_tables(folder: Path, notebook: str) -> set[str]:
    """The numbers in a notebook's committed tables, captions and all."""
    return {one for path in folder.glob(f"{notebook}_*.md") for one in numbers(path.read_text())}


def in_print() -> set[str]:
    """The published numbers, as printed and as percentages, and those in the notes on them."""
    found = set()
    with open(ROOT / "results/published/published_numbers.csv") as file:
        for row in csv.DictReader(file):
            found |= {plain(number) for number in NUMBER.findall(f"{row['value']} {row['setup']} {row['note']}")}
            if re.fullmatch(r"0\.\d+", row["value"]):
                found |= {f"{100 * float(row['value']):.{places}f}" for places in (0, 1, 2)}
    return found | {number.removesuffix(".0") for number in found}


def stands(number: str, there: set[str]) -> bool:
    """Whether a number stands there, or one with more decimals that is rounded to it."""
    if number in there:
        return True
    places = len(number.partition(".")[2])
    longer = [float(one) for one in there if len(one.partition(".")[2]) > places]
    return any(abs(one - float(number)) <= 0.5 * 10**-places + 1e-9 for one in longer)


@pytest.fixture(scope="module")
def printed() -> set[str]:
    return in_print() | in_tables(LAPTOP / "tables", "00")  # 00 does the paper's own arithmetic


def test_what_is_a_number_here():
    text = "SST-2 in int8: 1,234.5 MB, -0.3 points (p < 0.01), 95% intervals; 8 bits of BERT-base, v4.2.1, 2 to 3"
    assert numbers(text) == ["1234.5", "0.3", "0.01", "2", "3"]
    assert stands("4.37", {"4.372"}) and stands("4", {"4"}) and not stands("4.38", {"4.372"})
    assert not stands("4.372", {"4.37"}), "more digits than were measured"
    assert [found.group(1) for found in UNIT.finditer("40% of 67 rows in 3 ms, 1.5 times as fast")] == [
        "40",
        "3",
        "1.5",
    ]


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    return readme.blocks()


@pytest.mark.parametrize("name", ["answers", "claims", "notebooks"])
def test_numbers_in_generated_texts_stand_in_the_tables_of_the_report(name, blocks, printed):
    text, known = blocks[name], printed | in_tables(LAPTOP / "tables", "10")
    if name == "notebooks":  # what came out, and the minutes, which 00 has
        text = "\n".join(" | ".join(line.split(" | ")[2:]) for line in text.splitlines()[2:])
        text, known = re.sub(r"\]\([^)]*\)", "]", text), known | in_tables(LAPTOP / "tables", "00")
    assert numbers(text) and not [number for number in numbers(text) if not stands(number, known)]


def test_a_notebook_takes_as_long_as_some_record_of_it_was_being_made():
    """Records of two experiments may have one file name, and each counts; two that were made side by side count once.

    Here second by second, in the table from where records begin and end.
    """
    with (LAPTOP / "tables" / "00_cost.csv").open() as file:
        rows = {row["notebook"][:2]: row["laptop: minutes (records)"] for row in csv.DictReader(file)}
    busy: dict[str, set[int]] = {}
    made = [records.read_record(path) for path in sorted((LAPTOP / "records").glob("*/*.json"))]
    for record in made:
        begin = datetime.fromisoformat(record["provenance"]["started"]).timestamp()
        seconds = range(int(begin), int(begin + record["provenance"]["seconds"]))
        for name in (tables.notebook_of(record), "al"):
            busy.setdefault(name, set()).update(seconds)
    told = readme.minutes()
    assert len(told) > 9 and rows["al"].endswith(f"({len(made)})")
    for name, seconds in busy.items():
        minutes = rows[name].partition(" ")[0]
        assert float(minutes.replace(",", "")) == pytest.approx(len(seconds) / 60, rel=0.01, abs=1.5)
        assert name == "al" or told[name] == minutes


def prose(path: Path) -> list[str]:
    """The sentences that an executed notebook displays."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.outputs]
    return [text for text in shown if text and not text.startswith(("|", "```"))]


@pytest.mark.parametrize("path", sorted((LAPTOP / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_numbers_in_displayed_prose_stand_in_tables(path, printed):
    """Of the report all of them, of the other notebooks those with a unit."""
    known, missing = printed | in_tables(LAPTOP / "tables", path.stem[:2]), []
    for text in prose(path):
        report = path.stem.startswith("10")
        if text.startswith("Every claim is put as numbers"):
            found = []  # its numbers are the rule's own: it is made from them
        else:
            with_unit = (match.group(1) for match in UNIT.finditer(NAMES.sub(" ", text)))
            found = numbers(text) if report else [plain(number) for number in with_unit]
        missing += [(number, text) for number in found if not stands(number, known)]
    assert not missing


def written(path: Path) -> str:
    """What was written by hand: a page without its generated blocks, links' addresses and code."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n\n".join(c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "markdown")
    text = re.sub(r"```.*?```", " ", readme.BLOCK.sub(" ", text), flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda path: path.stem
)
def test_no_other_sentence_has_a_number_with_a_unit(path):
    """But for what has been published, as printed, and for what a method sets."""
    text, published = written(path), in_print()
    found = [match for match in UNIT.finditer(text) if match.group().replace(" ", "") not in SET]
    typed = [match.group() for match in found if plain(match.group(1)) not in published]
    assert not typed + [match.group() for match in SPELT_UNIT.finditer(text)]
