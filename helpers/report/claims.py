"""The claims made about DistilBERT and its kin: the rule of the verdicts, the numbers each hangs on, the ledger."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from .. import ROOT, InputError
from ..compression.variants import BASE, MODEL, TASK
from ..measure import metrics
from ..measure.records import Evidence, of, slug, unpack
from . import comparison, speeds, tables
from .comparison import MACRO, WITHOUT_WNLI, Comparison
from .language import BENCHMARK as WIKI
from .language import change, grid
from .tables import printed, ratio

HOLDS, IN_PART, NOT, UNMEASURED = "holds", "holds in part", "does not hold", "not measured here"
COUNTED = {HOLDS: "hold", IN_PART: "hold in part", NOT: "do not hold", UNMEASURED: "were not measured"}
PAPER, EDGE, MSC, TINY = "sanh2019", "reproducibility-extension-challenge", "msc-compression", "tinydistilbert"
ALIKE = 0.05  # of the published effect: what ours may fall short and still count as the same
HALF = 0.5  # of it: what there must be for a claim to hold in part
REPLICATES = 300  # of a bootstrap
TIMED = "median of paired ratios"
AS_FAST = "latency_times_as_fast"  # as fp32, one row at a time
ON_CPU = {"task": TASK, "model": MODEL, "device": None}
ON_GPU = [{"task": TASK, "model": model, "device": "cuda"} for model in ("released", MODEL)]  # the first that there is
CUT, EIGHT = "taylor_50_recovered", f"{BASE}_int8"
RULE = (
    "Every claim is put as numbers, each with the published figure and with what it would be if there were no effect. "
    f'Ours **holds** if its 95% interval leaves out "no effect" and it has at least {1 - ALIKE:.0%} of the published '
    "effect. It **holds in part** if there is at least half of it, or if some of the claim's numbers hold and others "
    "don't; else it **does not hold**. An interval that admits both no effect and the published one is marked *too "
    'wide to tell*: then "does not hold" means no more than that it was not seen here. A claim without a figure is one '
    "of direction, and the interval must lie on its side. A claim that nothing changes holds if it changes by no more "
    f"than {ALIKE:.0%}."
)


class Part(NamedTuple):
    """One number that a claim hangs on: ours with its 95% interval beside the published one."""

    what: str  # with its unit
    printed: float | None  # None: the claim names a direction alone
    none: float  # what it would be without any effect
    ours: float
    low: float
    high: float
    basis: str  # how often, on what
    sign: int = 1  # the direction, where no figure is printed
    decimals: int = 1

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out that there is no effect."""
        return not self.low <= self.none <= self.high

    @property
    def scaled(self) -> tuple[float, float, float] | None:
        """The interval's low end, ours and the high end as shares of the published effect; None where none is."""
        if self.printed is None or self._nothing:
            return None
        shares = [(value - self.none) / (self.printed - self.none) for value in (self.low, self.ours, self.high)]
        return min(shares), shares[1], max(shares)

    @property
    def _nothing(self) -> bool:
        """Whether what is claimed is that nothing changes."""
        return self.printed is not None and abs(self.printed - self.none) <= ALIKE * abs(self.none)

    @property
    def verdict(self) -> str:
        """By the rule that `RULE` states."""
        if self._nothing:
            return HOLDS if abs(self.ours - self.none) <= ALIKE * abs(self.none) else NOT
        if not self.scaled:
            return HOLDS if self.clear and self.sign * (self.ours - self.none) > 0 else NOT
        if not self.clear or self.scaled[1] < HALF:
            return NOT
        return HOLDS if self.scaled[1] >= 1 - ALIKE else IN_PART

    @property
    def undecided(self) -> bool:
        """Whether the interval admits both no effect and the published one."""
        return bool(self.scaled) and not self.clear and self.low <= self.printed <= self.high

    @property
    def text(self) -> str:
        """Ours with its interval, where there is one."""
        ours, low, high = (f"{value:,.{self.decimals}f}" for value in (self.ours, self.low, self.high))
        return ours if self.low == self.high else f"{ours} ({low} to {high})"


class Finding(NamedTuple):
    """What was measured of a claim: its numbers, none where it wasn't, and the records that they are made from."""

    parts: Sequence[Part] = ()
    records: Sequence[dict] = ()

    @property
    def verdict(self) -> str:
        """That of its numbers, where they agree."""
        found = {part.verdict for part in self.parts} or {UNMEASURED}
        return found.pop() if len(found) == 1 else IN_PART


class Missing(Exception):
    """The records that a number is made from are not there."""


def the(found: Sequence[dict], *units: dict, **more) -> dict:
    """The record with these values in its unit, of several `units` the first that has one; raises `Missing`."""
    for unit in units or ({},):
        if own := of(found, **unit, **more):
            return own[0]
    raise Missing


# --- numbers of size and speed


def rate(what: str, claimed: float | None, record: dict, metric: str = AS_FAST) -> Part:
    """How many times as fast something is, by a record that has the metric with its ends."""
    ours, runs = [record["metrics"][f"{metric}{end}"] for end in ("", "_low", "_high")], record["metrics"].get("runs")
    basis = f"{runs:.0f} runs, {TIMED}" if runs else TIMED
    return Part(what, claimed, 1, *ours, basis, decimals=2)


def counted(what: str, claimed: float | None, none: float, ours: float) -> Part:
    """Something that is counted, and doesn't vary; without a figure, the claim is that it is less."""
    return Part(what, claimed, none, ours, ours, ours, "counted", sign=-1)


def smaller(evidence: Evidence) -> Finding:
    """Parameters of DistilBERT's shape against BERT-base's."""
    own = the([record for record in evidence("speed") if "alone" in record["unit"]], pair="full")
    fewer = 100 * (1 - own["metrics"]["small_parameters"] / own["metrics"]["large_parameters"])
    claimed = printed(PAPER, "abstract", "size_reduction", "DistilBERT")
    return Finding([counted("parameters, fewer (%)", *claimed, 0, fewer)], [own])


def faster(evidence: Evidence) -> Finding:
    """The pass over STS-B, a row at a time on one thread, of DistilBERT's shape against BERT-base's."""
    own = the(evidence("speed"), pair="full", text="stsb", threads=1)
    claimed = ratio(PAPER, "3", "full_pass_seconds", "BERT-base", "DistilBERT")
    return Finding([rate("pass over STS-B: times as fast", claimed, own, "times_as_fast")], [own])


def pruned(evidence: Evidence, variant: str, size: float | None = None, times: float | None = None) -> Finding:
    """Size and speed of a pruned student against the whole one's, beside the published ones."""
    own, base = (the(evidence("pruning"), ON_CPU, variant=name) for name in (variant, BASE))
    left = 100 * own["metrics"]["size_mb"] / base["metrics"]["size_mb"]
    parts = [counted("size on disk, left (%)", size, 100, left), rate("one row: times as fast", times, own)]
    return Finding(parts, [own, base])


def int8_at_full_size(evidence: Evidence) -> Finding:
    """PyTorch's dynamic int8, as it was published: size and speed at DistilBERT's shape."""
    own, base = (the(evidence("fullsize"), variant=name) for name in ("torch_int8", BASE))
    less = 100 * (1 - own["metrics"]["size_mb"] / base["metrics"]["size_mb"])
    claimed = [ratio(EDGE, "edge", metric, "int8 dynamic", "baseline") for metric in ("model_size", "throughput")]
    size = counted("DistilBERT's size, less (%)", 100 * (1 - claimed[0]), 0, less)
    return Finding([size, rate("DistilBERT, one row: times as fast", claimed[1], own)], [own, base])


def beside_int8(evidence: Evidence) -> Finding:
    """What pruning adds to the speed of int8: zeros, which the claim is about, and cutting."""
    found, parts, used = of(evidence("pruning"), **ON_CPU), [], []
    for cut, words in {"weights_80_recovered": "80% of weights zero", CUT: "half of heads and neurons cut"}.items():
        if own := of(found, variant=f"{cut}_int8"):
            used = [*used, own[0], the(found, variant=EIGHT)]
            one, other = own[0]["metrics"], used[-1]["metrics"]
            ends = [
                one[f"{AS_FAST}{end}"] / other[f"{AS_FAST}{against}"]
                for end, against in (("", ""), ("_low", "_high"), ("_high", "_low"))
            ]
            parts.append(Part(f"{words}: times as fast as int8 alone", None, 1, *ends, TIMED, decimals=2))
    return Finding(parts, used)


def exported(evidence: Evidence) -> Finding:
    """The student that guesses masked words in ONNX Runtime: what 8 bits leave of its latency and its size."""
    found = of(evidence("edge"), head="masked_lm", threads=1, format="onnx")
    used = [the(found, variant=name) for name in (BASE, EIGHT)]
    ours = 100 * speeds.exported_shares(found, "masked_lm", 1).loc[EIGHT]
    paper = speeds.published_on_android().loc["int8"]
    ends = [ours["latency"], *sorted((ours["latency_low"], ours["latency_high"]))]
    latency = Part("latency of one row, left (%)", 100 * float(paper["latency"]), 100, *ends, TIMED)
    return Finding([latency, counted("size on disk, left (%)", 100 * float(paper["size"]), 100, ours["size"])], used)


def int8_on_gpu(evidence: Evidence) -> Finding:
    """LLM.int8 on a GPU, one row."""
    own = the(evidence("quantization"), *ON_GPU, variant="bnb_int8")
    models = [f"DistilBERT {bits}, 0% structured pruning" for bits in ("fp32", "8-bit")]
    claimed = ratio(MSC, "findings", "latency", *models, setup="T4")
    return Finding([rate("one row: times as fast", claimed, own)], [own])


def throughput(evidence: Evidence) -> Finding:
    """How fast the student reads in 8 bits."""
    metric = "times_as_fast_student_int8"
    own = the([record for record in evidence("speed") if metric in record["metrics"]], comparison="stages")
    claimed = 1 + printed(WIKI, "takeaways", "throughput_gain", "8-bit")[0] / 100
    return Finding([rate("reading in LLM.int8: times as fast", claimed, own, metric)], [own])


# --- numbers of answers


def paired(what: str, paper: list[float], answers: tuple, one: str, other: str, guess: float | None = None) -> Part:
    """Two models' median scores compared, in percent, with a 95% bootstrap interval over the same rows of both.

    `paper`: their published scores in percent; `answers`: runs, truth and score, as for `metrics.resample`. With what a
    guess scores, it is the share that one keeps of the other's lead over it; without, the difference.
    """
    (runs, truth, score), names = answers, (one, other)
    if not set(names) <= runs.keys():
        raise Missing

    def compare(own: np.ndarray, rival: np.ndarray) -> np.ndarray:
        return own - rival if guess is None else (own - guess) / (rival - guess)

    drawn = metrics.resample({name: runs[name] for name in names}, truth, score, REPLICATES, np.random.default_rng(0))
    ours = compare(*(np.median(score(runs[name], truth)) for name in names))
    ends = metrics.interval(compare(*(drawn[name] for name in names)))
    seeds, rows = runs[one].shape
    basis, claimed = f"{seeds} seed{'s' if seeds > 1 else ''}, {rows:,} rows", compare(*(one / 100 for one in paper))
    return Part(what, 100 * claimed, 0, *(100 * float(value) for value in (ours, *ends)), basis)


def kept(evidence: Evidence, experiment: str, variant: str, bits: str, gpu: bool = False) -> Finding:
    """Of fp32's lead over guessing on SST-2, what a variant keeps; `bits`: what the published one has, and is cut."""
    found, units, setup = evidence(experiment), ON_GPU if gpu else [ON_CPU], "T4" if gpu else "CPU Xeon"
    own = {name: the(found, *units, variant=name) for name in (variant, BASE)}
    runs = {name: unpack(record["details"]["predictions"])[None] for name, record in own.items()}
    truth = unpack(own[BASE]["details"]["references"])
    names = [f"DistilBERT {one} structured pruning" for one in (bits, "fp32, 0%")]
    paper, guess = printed(MSC, "findings", "accuracy", *names, setup=setup), metrics.by_guessing(TASK, truth)
    what, answers = "SST-2: kept of fp32's lead over guessing (%)", (runs, truth, comparison.share_equal)
    return Finding([paired(what, paper, answers, variant, BASE, guess)], [own[variant]])


def reviews(evidence: Evidence) -> Finding:
    """Of the teacher's lead over guessing on IMDb, what the student keeps."""
    found = evidence("imdb")
    found = of(found, length=the(found, model="teacher")["unit"]["length"])
    answers = comparison.runs_of(found), unpack(found[0]["details"]["references"]), comparison.share_equal
    paper, what = printed(PAPER, "2", "accuracy", "DistilBERT", "BERT-base"), "kept of the teacher's lead over guessing"
    return Finding([paired(f"IMDb: {what} (%)", paper, answers, "student", "teacher", guess=0.5)], found)


def squad(evidence: Evidence, one: str = "student", other: str = "teacher") -> Finding:
    """Two models' F1 on SQuAD: what one keeps of the teacher's, or how far it is ahead of another."""
    found, names = evidence("squad"), {"teacher": "BERT-base", "student": "DistilBERT", "student_d": "DistilBERT (D)"}
    rows = len(unpack(the(found, model=one)["details"]["f1"]))
    answers = comparison.runs_of(found, "f1"), np.zeros(rows), comparison.share_right
    shared = other == "teacher"
    what = "SQuAD: kept of the teacher's F1 (%)" if shared else "SQuAD: F1 with it, less without (points)"
    paper = printed(PAPER, "2", "f1", names[one], names[other])
    return Finding([paired(what, paper, answers, one, other, guess=0.0 if shared else None)], found)


def glue(evidence: Evidence) -> Finding:
    """What the student keeps of its teacher's mean score; without an effect, what guessing would."""
    found = evidence("glue")
    graded, parts = Comparison(found, REPLICATES), []
    if not {"teacher", "student"} <= set(graded.models):
        raise Missing
    claimed = printed(PAPER, "abstract", "retention_of_bert_base", "DistilBERT")
    truths = {task: unpack(graded.cells[task, "teacher"][0]["details"]["references"]) for task in graded.tasks}
    for scope, words in ((MACRO, f"{len(graded.tasks)} tasks"), (WITHOUT_WNLI, "… without WNLI")):
        tasks = [task for task in graded.tasks if scope == MACRO or task != "wnli"]
        guessed = 100 * np.mean([metrics.by_guessing(task, truths[task]) for task in tasks])
        share = [100 * value for value in graded.retention(scope, "student")]
        what, seeds = f"kept of the teacher's mean score, {words} (%)", len(graded.seeds(tasks[0], "student"))
        parts.append(Part(what, *claimed, guessed / graded.score(scope, "teacher"), *share, f"{seeds} seeds"))
    return Finding(parts, found)


def without(evidence: Evidence, *names: str) -> Finding:
    """What the mean score loses by each thing that a student goes without."""
    (graded, found, basis), parts = ablated(evidence, *names), []
    for name in names:
        claimed = printed(PAPER, "4", "macro_average_delta", comparison.PUBLISHED_ABLATION[name])
        ours = [100 * value for value in graded.difference(MACRO, name)]
        what = f"{tables.MODELS[name]}: change of the mean (points)"
        parts.append(Part(what, *claimed, 0, *ours, basis, decimals=2))
    return Finding(parts, found)


def less_text(evidence: Evidence) -> Finding:
    """What CoLA and STS-B lose by a quarter of the text, beyond what SST-2 does."""
    (graded, found, basis), parts = ablated(evidence, "quarter_text"), []
    for task in [task for task in ("cola", "stsb") if {task, TASK} <= set(graded.tasks)]:
        drawn = [graded.drawn(name)["quarter_text"] - graded.drawn(name)["student"] for name in (task, TASK)]
        ours = [100 * graded.difference(name, "quarter_text")[0] for name in (task, TASK)]
        what, ends = f"change on {task}, less that on {TASK} (points)", metrics.interval(100 * (drawn[0] - drawn[1]))
        parts.append(Part(what, None, 0, ours[0] - ours[1], *ends, basis, sign=-1))
    return Finding(parts, found)


def ablated(evidence: Evidence, *names: str) -> tuple[Comparison, list[dict], str]:
    """Students that go without something beside the whole recipe's, on the tasks that judge them, and how often."""
    graded, ablation = evidence("glue"), evidence("ablation")
    own = [record for name in names for record in of(ablation, model=name) if "task" in record["unit"]]
    tasks = {record["unit"]["task"] for record in own or graded}
    own += [r for r in graded if r["unit"]["task"] in tasks and r["unit"]["model"] in ("student", *names)]
    made = Comparison(own, REPLICATES)
    if not {"student", *names} <= set(made.models):
        raise Missing
    return made, own, f"{len(made.seeds(made.tasks[0], 'student'))} fine-tuning seeds, {len(made.tasks)} tasks"


def changed(evidence: Evidence, stage: str) -> Finding:
    """How far a stage of the student is from it as pretrained, in masked-LM loss on WikiText-2."""
    found = of(grid(evidence("perplexity")), model="student", text="wikitext")
    made, words = change(found, "student", "wikitext", stage), "fine-tuned" + " and in 8 bits," * stage.endswith("int8")
    if made is None:
        raise Missing
    what, ours = f"masked-LM loss, {words} less pretrained (nats)", (made.mean, made.low, made.high)
    return Finding([Part(what, None, 0, *ours, "WikiText-2, by documents", sign=-1, decimals=3)], found)


class Claim(NamedTuple):
    """Something that was said, by whom, and how it is measured here."""

    name: str
    text: str
    source: str  # as in results/published/sources.csv
    notebook: str  # its number
    measures: Sequence[Callable[[Evidence], Finding]]  # each gives one or more of the numbers
    needs: str = ""  # what is missing where it is not measured, if it isn't just the notebook


TERMS = ("no_distillation", "no_masked_lm", "no_cosine")
CLAIMS = [
    Claim("smaller", "40% smaller than BERT-base", PAPER, "08", [smaller], "run 08 from laptop up"),
    Claim("faster", "60% faster than BERT-base", PAPER, "08", [faster], "run 08 from laptop up"),
    Claim("glue", "keeps 97% of BERT's score on GLUE", PAPER, "02", [glue]),
    Claim("close", "close behind BERT on IMDb and SQuAD", PAPER, "04", [reviews, squad], "run 03 and 04"),
    Claim("twice", "distilling a second time helps", PAPER, "04", [lambda e: squad(e, "student_d", "student")]),
    Claim("terms", "each term of the loss helps", PAPER, "01", [lambda e: without(e, *TERMS)]),
    Claim(
        *("layers", "the teacher's layers are a good start", PAPER, "01"),
        [lambda e: without(e, "random")],
        "run 01 and 02",
    ),
    Claim("text", "less pretraining text hurts CoLA and STS-B most", TINY, "01", [less_text]),
    Claim(
        *("int8", "int8 is smaller, faster and nearly as accurate", EDGE, "06"),
        [int8_at_full_size, lambda e: kept(e, "quantization", "torch_int8", "8-bit, 0%")],
    ),
    Claim(
        *("four_bits", "4 bits cost nothing on a GPU", MSC, "06"),
        [lambda e: kept(e, "quantization", "bnb_nf4", "4-bit, 0%", gpu=True)],
        "needs a GPU",
    ),
    Claim("gpu", "8 bits are slower than fp32 on a T4", MSC, "06", [int8_on_gpu], "needs a GPU"),
    Claim(
        *("zeros", "unstructured pruning buys neither size nor speed", EDGE, "07"),
        [lambda e: pruned(e, "weights_80", size=100.0, times=1.0)],
    ),
    Claim(
        *("cutting", "structured pruning buys both, with recovery", MSC, "07"),
        [lambda e: pruned(e, CUT), lambda e: kept(e, "pruning", CUT, "8-bit, 50%")],
    ),
    Claim("orthogonal", "pruning adds to what int8 gains", EDGE, "07", [beside_int8]),
    Claim("edge", "int8 makes it ready for a phone", EDGE, "09", [exported]),
    Claim("phone", "71% faster than BERT on a phone, in 207 MB", PAPER, "09", [], "needs a phone"),
    Claim("tuned", "fine-tuning on WikiText lowers perplexity", WIKI, "05", [lambda e: changed(e, "wikitext")]),
    Claim("rate", "8 bits raise throughput by 15 to 20%", WIKI, "05", [throughput]),
    Claim("back", "fine-tuning wins back what 8 bits lost", WIKI, "05", [lambda e: changed(e, "wikitext_int8")]),
]
Judged = Sequence[tuple[Claim, Finding]]


def judge(evidence: Evidence) -> Judged:
    """Every claim, by those of its numbers that have records; what keeps one from it is told in `evidence.problems`."""
    return [(claim, _measured(claim, evidence)) for claim in CLAIMS]


def _measured(claim: Claim, evidence: Evidence) -> Finding:
    found, problems = [], []
    for measure in claim.measures:
        try:
            found.append(measure(evidence))
        except Missing:
            continue
        except InputError as error:
            problems.append(str(error))
        except (KeyError, IndexError) as error:
            lacks = f"a record or published number lacks {error}; measure it again, it is of an older form"
            problems.append(f"{claim.text}: {lacks}")
    evidence.problems = list(dict.fromkeys([*evidence.problems, *problems]))
    used = {(r["experiment"], slug(r["unit"])): r for one in found for r in one.records}
    return Finding([part for one in found for part in one.parts], list(used.values()))


def ledger(judged: Judged) -> pd.DataFrame:
    """Table of the claims: a row a number, published and ours; a claim's first has its verdict, source and notebook."""
    rows = []
    for claim, finding in judged:
        (path,) = (ROOT / "notebooks").glob(f"{claim.notebook}_*.ipynb")
        head = {"claim": f"{claim.text} ({claim.source})", "verdict": f"**{finding.verdict}**"}
        head["notebook"] = f"[{claim.notebook}]({path.name})"
        if not finding.parts:
            rows.append(head | {"ours": f"{tables.NOTHING} {claim.needs or f'run {claim.notebook}'}"})
        for part in finding.parts:
            says = f": {part.verdict}" if len(finding.parts) > 1 else ""
            row = {"number": part.what, "ours": part.text + (", too wide to tell" if part.undecided else says)}
            row["published"] = None if part.printed is None else f"{part.printed:,.{part.decimals}f}"
            rows.append(row | {"n": part.basis} | head)
            head = {"claim": "…", "verdict": "", "notebook": ""}
    columns = ["claim", "verdict", "number", "published", "ours", "n", "notebook"]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna(tables.NOTHING).set_index("claim")


def headline(judged: Judged) -> str:
    """How many claims came out how, in a sentence."""
    counts = Counter(finding.verdict for _, finding in judged)
    says = [f"{counts[verdict]} {words}" for verdict, words in COUNTED.items() if counts[verdict]]
    return f"Of {len(judged)} claims, {', '.join(says)}."


def in_words(judged: Judged) -> str:
    """How many claims hold, in part, or not, and which."""
    names = {verdict: [claim.text for claim, found in judged if found.verdict == verdict] for verdict in COUNTED}
    return "\n".join(f"- {name.capitalize()} ({len(own)}): {'; '.join(own)}." for name, own in names.items() if own)
