"""What the report says beside its ledger: answers to a stranger's questions, slips, trust, one picture."""

from collections import Counter
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from . import InputError, comparison, metrics, tables
from .choices import MODEL, TASK
from .claims import HOLDS, IN_PART, NOT, UNMEASURED, Evidence
from .language import of
from .ledger import Judged
from .variants import BASE

COLOURS = {HOLDS: (0.0, 0.45, 0.70), IN_PART: (0.90, 0.62, 0.0), NOT: (0.35, 0.35, 0.35)}
COUNTED = {HOLDS: "hold", IN_PART: "hold in part", NOT: "do not hold", UNMEASURED: "were not measured"}
EIGHT, CUT, BOTH = "onnx_int8_embeddings", "taylor_50_recovered", "taylor_50_recovered_int8"
# What the rows of `answers` are called.
BOTH_WAYS = {"int8": "int8", "cut": "half of heads and neurons cut", "both": "half cut, and int8"}
KEPT, BARE = "kept of the teacher's mean GLUE score (%)", "… without WNLI (%)"
SCOPES = (comparison.MACRO, comparison.WITHOUT_WNLI)
GAP = "student ahead of its twin, mean of GLUE (points)"
CLOSE, TWIN = "KL to the teacher, student (nats)", "KL to the teacher, twin (nats)"


def headline(judged: Sequence[Judged]) -> str:
    """How many claims came out how, in a sentence."""
    counts = Counter(one.verdict for one in judged)
    says = [f"{counts[verdict]} {words}" for verdict, words in COUNTED.items() if counts[verdict]]
    return f"Of {len(judged)} claims, {', '.join(says)}."


def in_words(judged: Sequence[Judged]) -> str:
    """How many claims hold, in part, or not, and which."""
    lines = []
    for verdict in (HOLDS, IN_PART, NOT, UNMEASURED):
        names = [one.claim.text for one in judged if one.verdict == verdict]
        if names:
            lines.append(f"- {verdict.capitalize()} ({len(names)}): {'; '.join(names)}.")
    return "\n".join(lines)


def answers(evidence: Evidence, judged: Sequence[Judged]) -> pd.DataFrame:
    """The numbers that `questions` answers with, a row each; those that were not measured are left out."""
    counts = Counter(one.verdict for one in judged)
    rows = {"claims": len(judged)} | {f"… that {words}": counts[verdict] for verdict, words in COUNTED.items()}
    rows |= _int8_or_pruning(evidence) | _is_it_97(judged) | _distillation(evidence)
    return pd.DataFrame({"ours": pd.Series(rows, dtype=object)}).rename_axis("number")


def questions(evidence: Evidence, judged: Sequence[Judged]) -> str:
    """Three questions that a stranger would ask, answered in numbers; what was not measured is said to be missing."""
    own = answers(evidence, judged).ours
    int8 = whole = taught = tables.MISSING
    if f"{BOTH_WAYS['both']}: times as fast" in own:
        gains = {
            name: f"{own[f'{label}: times as fast']} times as fast with {own[f'{label}: size (%)']}% of the size, "
            f"{own[f'{label}: SST-2 (points)']} points on SST-2"
            for name, label in BOTH_WAYS.items()
        }
        faster = float(own[f"{BOTH_WAYS['int8']}: times as fast"]) > float(own[f"{BOTH_WAYS['cut']}: times as fast"])
        first = "Int8 first: it needs no training, and is" if faster else "Cutting is faster, but needs training. Int8:"
        int8 = (
            f"{first} {gains['int8']} (ONNX Runtime, embeddings too). Half of heads and neurons cut and recovered: "
            f"{gains['cut']}. Both: {gains['both']} (the embeddings in fp32)."
        )
    if KEPT in own:
        verdict = next(one.verdict for one in judged if one.claim.name == "glue")
        whole = (
            f"It {verdict} here: our student keeps {_with_unit(own[KEPT], '%')} of its teacher's mean score, and "
            f"{_with_unit(own[BARE], '%')} without WNLI, where guessing alone would keep "
            f"{own[f'{KEPT}, by guessing']}% and {own[f'{BARE}, by guessing']}%. The paper's own table gives "
            f"{own[f'{KEPT}, published']}% and {own[f'{BARE}, published']}%."
        )
    if GAP in own:
        low, high = (float(end) for end in own[GAP].partition("(")[2].removesuffix(")").split(" to "))
        clear = "clear of chance" if low > 0 or high < 0 else "not clear of chance"
        taught = (
            "Against a twin that keeps the same layers of the teacher and learns from the same text without it, "
            f"{_with_unit(own[GAP], ' points')} of the mean GLUE score, {clear}."
        )
        if CLOSE in own:
            taught += f" As a language model it is {own[CLOSE]} nats from its teacher (KL), the twin {own[TWIN]}."
    lines = {
        "Should I use int8 or structured pruning on a CPU?": int8,
        "Is 97% true?": whole,
        "What does distillation buy over just dropping layers?": taught,
    }
    return "\n".join(f"- **{question}** {answer}" for question, answer in lines.items())


def _with_unit(value: str, unit: str) -> str:
    """The unit after the value, and before its interval."""
    return value.replace(" (", f"{unit} (", 1)


def _int8_or_pruning(evidence: Evidence) -> dict[str, str]:
    quantized, pruned = (of(evidence(name), task=TASK, model=MODEL) for name in ("quantization", "pruning"))
    base = of(quantized, variant=BASE)
    found = of(quantized, variant=EIGHT), of(pruned, variant=CUT), of(pruned, variant=BOTH)
    if not base or not all(found):
        return {}
    whole, rows = base[0]["metrics"], {}
    for label, (record,) in zip(BOTH_WAYS.values(), found, strict=True):
        scores = record["metrics"]
        rows[f"{label}: times as fast"] = f"{scores['latency_times_as_fast']:.1f}"
        rows[f"{label}: size (%)"] = f"{100 * scores['size_mb'] / whole['size_mb']:.0f}"
        rows[f"{label}: SST-2 (points)"] = f"{100 * (scores['score'] - whole['score']):+z.1f}"
    return rows


def _is_it_97(judged: Sequence[Judged]) -> dict[str, str]:
    glue = next((one for one in judged if one.claim.name == "glue"), None)
    rows = {}
    for name, part, scope in (
        zip((KEPT, BARE), glue.finding.parts, SCOPES, strict=True) if glue and glue.finding else ()
    ):
        paper = [comparison.published(model, scope, list(metrics.GLUE)) for model in ("DistilBERT", "BERT-base")]
        rows[name] = part.text
        rows[f"{name}, by guessing"] = f"{part.none:.0f}"
        rows[f"{name}, published"] = f"{100 * paper[0] / paper[1]:.1f}"
    return rows


def _distillation(evidence: Evidence) -> dict[str, str]:
    graded = comparison.Comparison(evidence("glue"))
    if not {"student", "twin"} <= set(graded.models):
        return {}
    ahead = (100 * value for value in graded.difference(comparison.MACRO, "student", "twin"))
    rows = {GAP: "{:+z.1f} ({:+z.1f} to {:+z.1f})".format(*ahead)}
    first = sorted(evidence("distillation"), key=lambda record: -record["unit"]["seed"])
    close = {
        record["unit"]["model"]: record["metrics"]["kl_to_teacher"]
        for record in first
        if "teacher" not in record["unit"]["model"]
    }
    if {"student", "twin"} <= close.keys():
        rows |= {CLOSE: f"{close['student']:.2f}", TWIN: f"{close['twin']:.2f}"}
    return rows


def slips() -> pd.DataFrame:
    """What the paper and its code print that doesn't fit together, from the notes on the published numbers."""
    try:
        numbers = tables.every_published()
    except InputError:
        return pd.DataFrame()
    own = numbers[numbers.note.notna() & numbers.source.isin(["sanh2019", "distilbert-code-readme"])]
    where = own.source + ", " + own.table.where(~own.table.str.isdigit(), "table " + own.table)
    what = own.model + ": " + own.metric.str.replace("_", " ")
    return pd.DataFrame({"where": where, "what": what, "printed": own.value, "note": own.note}).set_index("where")


def doubts() -> str:
    """The notes on what others published, one a source and note, with how many numbers each is about."""
    try:
        numbers = tables.every_published()
    except InputError as error:
        return f"{tables.NOTHING} {error}"
    others = numbers[numbers.note.notna() & ~numbers.source.isin(["sanh2019", "distilbert-code-readme"])]
    counts = others.groupby(["source", "note"], sort=False).size()
    return "Of the other sources' numbers:\n\n" + "\n".join(
        f"- {source} ({count} number{'s' if count > 1 else ''}): {note}." for (source, note), count in counts.items()
    )


def holdings(evidence: Evidence) -> pd.DataFrame:
    """A row an experiment: its records, how long they took to make, how many are of part of a data set."""
    rows = {}
    for folder in sorted(path for path in evidence.space.records.glob("*") if path.is_dir()):
        own = [record["provenance"] for record in evidence(folder.name)]
        days = sorted(one["started"][:10] for one in own)
        partial = sum(any(source.get("partial") for source in one["data"]) for one in own)
        rows[folder.name] = {
            "records": f"{len(own)}",
            "hours": f"{sum(one['seconds'] for one in own) / 3600:.1f}",
            "of a part of the data": f"{partial}",
            "made": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else tables.NOTHING,
        }
    return pd.DataFrame(rows).T.rename_axis("experiment")


def trust(judged: Sequence[Judged]) -> pd.DataFrame:
    """A row a claim: how many records and seeds it rests on, where they were measured, and what was partial."""
    rows = {}
    for claim, finding in judged:
        if not finding:
            continue
        provenance = [record["provenance"] for record in finding.records]
        sources = [source for own in provenance for source in own["data"]]
        partial = sorted({f"{source['id']} {source['config']}" for source in sources if source.get("partial")})
        seeds = {record["unit"]["seed"] for record in finding.records if "seed" in record["unit"]}
        drawn = {model.get("weights") == "random" for own in provenance for model in own["models"]}
        machines = {tables.describe_machine(r["provenance"], r.get("settings", {})) for r in finding.records}
        rows[claim.text] = {
            "verdict": Judged(claim, finding).verdict,
            "records": f"{len(provenance)}",
            "seeds": f"{len(seeds)}" if seeds else tables.NOTHING,
            "only a part of": ", ".join(partial) or tables.NOTHING,
            "weights": "trained" + "; random for size and speed" * (True in drawn) if False in drawn else "random",
            "clean code": "no" if any(own["dirty"] for own in provenance) else "yes",
            "measured on": "; ".join(sorted(machines)),
        }
    return pd.DataFrame(rows).T.rename_axis("claim")


def reached(judged: Sequence[Judged]) -> Figure:
    """Every number with a published figure: ours as a share of the published effect, with its interval."""
    rows = [(one.claim, part) for one in judged if one.finding for part in one.finding.parts if part.scaled]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    for place, (_, part) in enumerate(rows):
        low, middle, high = part.scaled
        colour = COLOURS[part.verdict]
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(middle, place, "o", color=colour, markersize=6)
    for verdict in (HOLDS, IN_PART, NOT):
        axes.plot([], [], "o-", color=COLOURS[verdict], label=verdict)
    for at, style in ((0, ":"), (1, "-")):
        axes.axvline(at, color="black", linewidth=0.8, linestyle=style)
    axes.set_yticks(range(len(rows)), [f"{claim.text}:\n{part.what}" for claim, part in rows], fontsize=8)
    axes.set_xlim(-1.1, 4.1)
    axes.invert_yaxis()
    axes.set_xlabel("share of the published effect")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
