"""The claims made about DistilBERT and its kin, and what became of each: a row a number, with a verdict."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from . import ROOT, InputError, qualities, savings, tables
from .claims import UNMEASURED, Evidence, Finding

PAPER, WIKI, EDGE, MSC = savings.PAPER, qualities.BENCHMARK, savings.EDGE, savings.MSC
TINY, GPU = "tinydistilbert", "needs a GPU"


class Claim(NamedTuple):
    """Something that was said, by whom, and how it is measured here."""

    name: str
    text: str
    source: str  # as in results/published/sources.csv
    notebook: str  # its number
    measure: Callable[[Evidence], Finding | None]
    needs: str  # what is missing where it is not measured


CLAIMS = [
    Claim(*row)
    for row in (
        ("smaller", "40% smaller than BERT-base", PAPER, "08", savings.smaller, "run 08 from laptop up"),
        ("faster", "60% faster than BERT-base", PAPER, "08", savings.faster, "run 08 from laptop up"),
        ("glue", "keeps 97% of BERT's score on GLUE", PAPER, "02", qualities.glue, "run 02"),
        ("close", "close behind BERT on IMDb and SQuAD", PAPER, "04", qualities.close_behind, "run 03 and 04"),
        ("twice", "distilling a second time helps", PAPER, "04", qualities.second_distillation, "run 04"),
        ("terms", "each term of the loss helps", PAPER, "01", qualities.loss_terms, "run 01"),
        ("layers", "the teacher's layers are a good start", PAPER, "01", qualities.layers, "run 01 and 02"),
        ("text", "less pretraining text hurts CoLA and STS-B most", TINY, "01", qualities.less_text, "run 01"),
        ("int8", "int8 is smaller, faster and nearly as accurate", EDGE, "06", savings.int8, "run 06"),
        ("four_bits", "4 bits cost nothing on a GPU", MSC, "06", savings.four_bits, GPU),
        ("gpu", "8 bits are slower than fp32 on a T4", MSC, "06", savings.slower_on_a_gpu, GPU),
        ("zeros", "unstructured pruning buys neither size nor speed", EDGE, "07", savings.zeros, "run 07"),
        ("cutting", "structured pruning buys both, with recovery", MSC, "07", savings.cutting, "run 07"),
        ("orthogonal", "pruning adds to what int8 gains", EDGE, "07", savings.orthogonal, "run 07"),
        ("edge", "int8 makes it ready for a phone", EDGE, "09", savings.edge_ready, "run 09"),
        ("phone", "71% faster than BERT on a phone, in 207 MB", PAPER, "09", savings.never, "needs a phone"),
        ("tuned", "fine-tuning on WikiText lowers perplexity", WIKI, "05", qualities.fine_tuned, "run 05"),
        ("rate", "8 bits raise throughput by 15 to 20%", WIKI, "05", qualities.throughput, "run 05"),
        ("back", "fine-tuning wins back what 8 bits lost", WIKI, "05", qualities.won_back, "run 05"),
    )
]


class Judged(NamedTuple):
    """A claim with what was found, if anything."""

    claim: Claim
    finding: Finding | None

    @property
    def verdict(self) -> str:
        return self.finding.verdict if self.finding else UNMEASURED


def judge(evidence: Evidence) -> list[Judged]:
    """Every claim, measured if its records are there; what keeps one from it is told in `evidence.problems`."""
    return [Judged(claim, _measured(claim, evidence)) for claim in CLAIMS]


def _measured(claim: Claim, evidence: Evidence) -> Finding | None:
    try:
        return claim.measure(evidence)
    except InputError as error:
        problem = str(error)
    except (KeyError, IndexError) as error:
        problem = f"{claim.text}: a record or published number lacks {error}; measure it again, it is of an older form"
    evidence.problems = list(dict.fromkeys([*evidence.problems, problem]))
    return None


def table(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row a number, published and ours side by side; a claim's first row has its verdict, source and notebook."""
    rows = []
    for one in judged:
        claim, parts = one.claim, one.finding.parts if one.finding else ()
        head = {"claim": f"{claim.text} ({claim.source})", "verdict": f"**{one.verdict}**"}
        (path,) = (ROOT / "notebooks").glob(f"{claim.notebook}_*.ipynb")
        head["notebook"] = f"[{claim.notebook}]({path.name})"
        if not parts:
            rows.append(head | {"ours": f"{tables.NOTHING} {claim.needs}"})
        for number, part in enumerate(parts):
            row = head if number == 0 else {"claim": "…", "notebook": "", "verdict": ""}
            printed = tables.NOTHING if part.printed is None else f"{part.printed:,.{part.decimals}f}"
            alone = "" if len(parts) == 1 else f": {part.verdict}"
            ours = f"{part.text}{', too wide to tell' if part.undecided else alone}"
            rows.append({"number": part.what, "published": printed, "ours": ours, "n": part.basis} | row)
    columns = ["claim", "verdict", "number", "published", "ours", "n", "notebook"]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna(tables.NOTHING).set_index("claim")
