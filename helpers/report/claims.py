"""The claims made about DistilBERT and its kin, and the numbers each hangs on; notebook 10 has the verdicts' rule.

A claim is judged by the released DistilBERT where it has records, else by our student; each row says by which.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from .. import InputError
from ..compression.variants import BASE, SUBJECTS, TASK, subject
from ..measure import metrics
from ..measure.records import Evidence, of, slug, unpack
from . import comparison, language, tables
from .comparison import MACRO, WITHOUT_WNLI, Comparison
from .language import BENCHMARK as WIKI
from .tables import MODELS, printed, ratio

PAPER, EDGE, MSC = "sanh2019", "reproducibility-extension-challenge", "msc-compression"
TIMED = "median of paired ratios"
AS_FAST = "latency_times_as_fast"  # as fp32, one row at a time
EIGHT = f"{BASE}_int8"
HARDWARE = {  # that claims name: whether a record was made on it
    "a T4": lambda record: "T4" in ((record["provenance"].get("gpu") or {}).get("name") or ""),
    "a phone": lambda record: False,  # phones send times back as a table, which notebook 09 shows
}


class Part(NamedTuple):
    """One number that a claim hangs on: ours with its 95% interval beside the published one."""

    what: str  # with its unit
    printed: float | None  # None: the claim names a direction alone
    none: float  # what it would be without any effect
    ours: float
    low: float
    high: float
    basis: str  # whose, how often, on what
    sign: int = 1  # the direction, where no figure is printed
    decimals: int = 1
    whole: float | None = None  # what it would be if nothing were lost, where something is said to be kept
    seeds: int | None = None  # trainings that it rests on, where it is about any
    beside: bool = False  # measured on other hardware than the claim is about


class Finding(NamedTuple):
    """What was measured of a claim: its numbers, none where it wasn't, and just the records that they are made from."""

    parts: Sequence[Part] = ()
    records: Sequence[dict] = ()


class Missing(Exception):
    """The records that a number is made from are not there."""


def the(found: Sequence[dict], **unit) -> dict:
    """The record with these values in its unit; raises `Missing`."""
    if own := of(found, **unit):
        return own[0]
    raise Missing


def judged_by(found: Sequence[dict]) -> str:
    """Whom a claim about DistilBERT is judged by, of these records; raises `Missing`."""
    if name := subject({record["unit"].get("model") for record in found}):
        return name
    raise Missing


def variants_of(evidence: Evidence, experiment: str, *names: str, device: str | None = None) -> tuple[str, list[dict]]:
    """Whom a claim about variants on SST-2 is judged by, and the record of each variant; raises `Missing`."""
    found = of(evidence(experiment), task=TASK, device=device)
    model = judged_by(found)
    return model, [the(found, model=model, variant=name) for name in names]


# --- numbers of size and speed


def rate(what: str, claimed: float | None, record: dict, metric: str = AS_FAST, whose: str = "", sign=1) -> Part:
    """How many times as fast something is, by a record that has the metric with its ends."""
    ours, runs = [record["metrics"][f"{metric}{end}"] for end in ("", "_low", "_high")], record["metrics"].get("runs")
    basis = (f"{whose}; " if whose else "") + (f"{runs:.0f} runs, {TIMED}" if runs else TIMED)
    return Part(what, claimed, 1, *ours, basis, sign, decimals=2)


def counted(what: str, claimed: float | None, none: float, ours: float, whose: str = "") -> Part:
    """Something that is counted, and doesn't vary."""
    return Part(what, claimed, none, ours, ours, ours, f"{whose}; counted" if whose else "counted")


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


def zeros(evidence: Evidence) -> Finding:
    """Size and speed of a model of whose weights most are zero against the whole one's, beside the published ones."""
    name, (own, base) = variants_of(evidence, "pruning", "weights_80", BASE)
    names = "pruned, global unstructured magnitude", "baseline"
    size, times = (ratio(EDGE, "edge", metric, *names) for metric in ("model_size", "throughput"))
    left = 100 * own["metrics"]["size_mb"] / base["metrics"]["size_mb"]
    parts = [counted("size on disk, left (%)", 100 * size, 100, left, whose=MODELS[name])]
    return Finding([*parts, rate("one row: times as fast", times, own, whose=MODELS[name])], [own, base])


def int8_at_full_size(evidence: Evidence) -> Finding:
    """PyTorch's dynamic int8: size and speed at DistilBERT's shape, and what masked words lose by it."""
    own, base = (the(evidence("fullsize"), variant=name) for name in ("torch_int8", BASE))
    less = 100 * (1 - own["metrics"]["size_mb"] / base["metrics"]["size_mb"])
    (claimed,) = printed(EDGE, "conclusion", "size_reduction", "int8 dynamic")
    what = f"a classifier of DistilBERT's shape, smaller by (%); the source's masked-LM model: {claimed:.1f}"
    times = ratio(EDGE, "edge", "throughput", "int8 dynamic", "baseline")
    return Finding([counted(what, None, 0, less), rate("the same, one row: times as fast", times, own)], [own, base])


def int8_loss(evidence: Evidence) -> Finding:
    """What the pretrained model's masked-LM loss rises by in PyTorch's dynamic int8."""
    found = [record for record in evidence("quantization") if "task" not in record["unit"]]
    name = judged_by(found)
    own, base = (the(found, model=name, variant=one) for one in ("torch_int8", BASE))
    (int8, fp32) = printed(EDGE, "edge", "mlm_loss", "int8 dynamic", "baseline")
    rise = own["metrics"]["masked_lm_loss"] - base["metrics"]["masked_lm_loss"]
    what, basis = "masked-LM loss, higher by (nats)", f"{MODELS[name]}; the same masked words"
    return Finding([Part(what, int8 - fp32, 0, rise, rise, rise, basis, decimals=3, whole=0)], [own, base])


def beside_int8(evidence: Evidence) -> Finding:
    """What zeros add to the speed of int8."""
    name, (own, base) = variants_of(evidence, "pruning", "weights_80_int8", EIGHT)
    one, other = own["metrics"], base["metrics"]
    ends = [one[f"{AS_FAST}{a}"] / other[f"{AS_FAST}{b}"] for a, b in (("", ""), ("_low", "_high"), ("_high", "_low"))]
    what = "80% of weights zero, in int8: times as fast as int8 alone"
    return Finding([Part(what, None, 1, *ends, f"{MODELS[name]}; {TIMED}", decimals=2)], [own, base])


def exported(evidence: Evidence) -> Finding:
    """What 8 bits leave of the size and the latency of a masked-LM model in ONNX Runtime.

    The published model has its vocabulary stored twice, as ours has in ORT's own format.
    """
    found = of(evidence("edge"), head="masked_lm", threads=1)
    used = [the(found, variant=name, format=kind) for kind in ("ort", "onnx") for name in (EIGHT, BASE)]
    left = 100 * used[0]["metrics"]["size_mb"] / used[1]["metrics"]["size_mb"]
    size, latency = (100 * ratio(EDGE, "android", one, "int8", "baseline") for one in ("model_size", "latency_p50"))
    ends = [100 / used[2]["metrics"][f"{AS_FAST}{end}"] for end in ("", "_high", "_low")]
    parts = [counted("size, vocabulary stored twice, left (%)", size, 100, left)]
    return Finding([*parts, Part("latency of one row, left (%)", latency, 100, *ends, TIMED)], used)


def throughput(evidence: Evidence) -> Finding:
    """How fast DistilBERT reads in 8 bits."""
    own = the(evidence("speed"), comparison="stages")
    (gain,) = printed(WIKI, "takeaways", "throughput_gain", "8-bit")
    for name in SUBJECTS:
        if (metric := f"times_as_fast_{name}_int8") in own["metrics"]:
            what = "reading in LLM.int8: times as fast"
            return Finding([rate(what, 1 + gain / 100, own, metric, MODELS[name])], [own])
    raise Missing


# --- numbers of answers


def paired(part: Part, answers: tuple, one: str, other: str, guess: float | None = None) -> Part:
    """The part with ours: two models compared; `answers` (runs, truth, score), `guess`: as in `comparison.between`."""
    runs = answers[0]
    if not {one, other} <= runs.keys():
        raise Missing
    ours, low, high = comparison.between(*answers, one, other, guess)
    seeds, rows = runs[one].shape
    basis = f"{part.basis}; {seeds} seed{'s' if seeds > 1 else ''}, {rows:,} rows"
    return part._replace(ours=ours, low=low, high=high, basis=basis)


def in_few_bits(
    evidence: Evidence, variant: str, bits: str, setup="CPU Xeon", experiment="quantization", sign=0, answers=True
) -> Finding:
    """A variant against fp32 on SST-2: its speed for one row if that has a `sign`, and what it keeps of the answers.

    `bits`: what the published one has, and what is cut of it. Of its speeds the source is quoted for those on a T4.
    """
    name, (own, base) = variants_of(evidence, experiment, variant, BASE, device="cuda" if setup == "T4" else None)
    parts, printed_as = [], [f"DistilBERT {one} structured pruning" for one in ("fp32, 0%", bits)]
    if sign:
        claimed = ratio(MSC, "findings", "latency", *printed_as, setup=setup) if setup == "T4" else None
        parts.append(rate("one row: times as fast", claimed, own, whose=MODELS[name], sign=sign))
    if answers:
        lines, truth = ([unpack(one["details"][kind]) for one in (own, base)] for kind in ("predictions", "references"))
        guess, what = metrics.by_guessing(TASK, truth[1]), "SST-2: kept of fp32's lead over guessing (%)"
        whole, few = (score / 100 for score in printed(MSC, "findings", "accuracy", *printed_as, setup=setup))
        kept = 100 * (few - guess) / (whole - guess)  # by what is lost: that much and no more, or that much at least
        ends = {"none": 100, "whole": None} if sign < 0 else {"none": 0, "whole": 100}
        part = Part(what, kept, ours=0, low=0, high=0, basis=MODELS[name], **ends)
        runs = {variant: lines[0][None], BASE: lines[1][None]}
        parts.append(paired(part, (runs, truth[1], metrics.share_equal), variant, BASE, guess))
    return Finding(parts, [own, base])


def asked(evidence: Evidence, experiment: str, *names: str) -> tuple[list[dict], str]:
    """Records of these models, those trained for longer if all were, and whose a claim is; raises `Missing`."""
    for found, how in ((evidence(f"{experiment}_longer"), ", trained for longer"), (evidence(experiment), "")):
        length = next((record["unit"].get("length") for record in of(found, model="teacher")), None)
        used = [record for name in names for record in of(found, model=name, length=length)]
        if {*names} <= {record["unit"]["model"] for record in used}:
            return used, MODELS[names[-1]] + how
    raise Missing


def behind(evidence: Evidence, experiment: str, score: str) -> Finding:
    """How many points DistilBERT is behind its teacher, where the paper's text says within how many."""
    used, whose = asked(evidence, experiment, "teacher", name := judged_by(evidence(experiment)))
    teacher, (within,) = of(used, model="teacher"), printed(PAPER, "text", f"{score}_within", "DistilBERT")
    if score == "f1":
        truth, answers, share = np.zeros(len(unpack(teacher[0]["details"]["f1"]))), "f1", metrics.share_right
        rule = of(evidence("trivial"), task="squad")
        guess, whole = rule[0]["metrics"]["f1"] if rule else 0.0, teacher[0]["metrics"]["f1"]
    else:
        truth, answers, share = unpack(teacher[0]["details"]["references"]), "predictions", metrics.share_equal
        guess, whole = 100 * max(truth.mean(), 1 - truth.mean()), 100 * teacher[0]["metrics"]["accuracy"]
    what = f"{'SQuAD' if score == 'f1' else 'IMDb'}: ahead of its teacher (points)"
    part = Part(what, -within, guess - whole, 0, 0, 0, whose, whole=0, seeds=len(used) - len(teacher))
    return Finding([paired(part, (comparison.runs_of(used, answers), truth, share), name, "teacher")], used)


def twice(evidence: Evidence) -> Finding:
    """How far the student that is distilled a second time is ahead of the one that isn't."""
    used, whose = asked(evidence, "squad", "student_d", "student")
    runs, (one, other) = comparison.runs_of(used, "f1"), printed(PAPER, "2", "f1", "DistilBERT (D)", "DistilBERT")
    seeds, rows = runs["student_d"].shape
    part = Part("SQuAD: F1 with it, less without (points)", one - other, 0, 0, 0, 0, whose, seeds=seeds)
    return Finding([paired(part, (runs, np.zeros(rows), metrics.share_right), "student_d", "student")], used)


def glue(evidence: Evidence) -> Finding:
    """What DistilBERT keeps of its teacher's mean score, beside the paper's table over the same tasks."""
    name = judged_by(evidence("glue"))
    used = [*of(evidence("glue"), model="teacher"), *of(evidence("glue"), model=name)]
    graded, parts = Comparison(used), []
    if graded.models != ["teacher", name]:
        raise Missing
    truths = {task: unpack(graded.cells[task, "teacher"][0]["details"]["references"]) for task in graded.tasks}
    for scope, words in ((MACRO, f"{len(graded.tasks)} tasks"), (WITHOUT_WNLI, "… without WNLI")):
        tasks = [task for task in graded.tasks if scope == MACRO or task != "wnli"]
        small, large = (comparison.published(name, scope, graded.tasks) for name in ("DistilBERT", "BERT-base"))
        guessed = 100 * np.mean([metrics.by_guessing(task, truths[task]) for task in tasks])
        share = [100 * value for value in graded.retention(scope, name)]
        what, seeds = f"kept of the teacher's mean score, {words} (%)", len(graded.seeds(tasks[0], name))
        trained = seeds if name == "released" else 1  # of ours, one pretraining is fine-tuned
        none, basis = guessed / graded.score(scope, "teacher"), f"{MODELS[name]}; {seeds} fine-tuning seeds"
        parts.append(Part(what, 100 * small / large, none, *share, basis, whole=100, seeds=trained))
    return Finding(parts, graded.records)


def without(evidence: Evidence, names: Sequence[str]) -> Finding:
    """What the mean score loses by each thing that a student goes without."""
    (graded, basis), parts = ablated(evidence, *names), []
    for name in names:
        claimed = printed(PAPER, "4", "macro_average_delta", comparison.PUBLISHED_ABLATION[name])
        ours = [100 * value for value in graded.difference(MACRO, name)]
        what = f"{MODELS[name]}: change of the mean (points)"
        parts.append(Part(what, *claimed, 0, *ours, basis, decimals=2, seeds=1))
    return Finding(parts, graded.records)


def less_text(evidence: Evidence) -> Finding:
    """What CoLA and STS-B lose by less text, beyond what SST-2 does."""
    (graded, basis), parts = ablated(evidence, "quarter_text"), []
    for task in [task for task in ("cola", "stsb") if {task, TASK} <= set(graded.tasks)]:
        drawn = [graded.drawn(name, "quarter_text") - graded.drawn(name, "student") for name in (task, TASK)]
        ours = [100 * graded.difference(name, "quarter_text")[0] for name in (task, TASK)]
        what, ends = f"change on {task}, less that on {TASK} (points)", metrics.interval(100 * (drawn[0] - drawn[1]))
        parts.append(Part(what, None, 0, ours[0] - ours[1], *ends, basis, sign=-1, seeds=1))
    return Finding(parts, graded.records)


def ablated(evidence: Evidence, *names: str) -> tuple[Comparison, str]:
    """Students that go without something beside the whole recipe's, on the tasks that all have, and how often."""
    found = [r for r in [*evidence("glue"), *evidence("ablation")] if "task" in r["unit"]]
    own = {name: {r["unit"]["task"] for r in of(found, model=name)} for name in ("student", *names)}
    tasks = set.intersection(*own.values())
    made = Comparison([r for r in found if r["unit"]["model"] in own and r["unit"]["task"] in tasks])
    if set(made.models) != set(own):
        raise Missing
    seeds = len(made.seeds(made.tasks[0], "student"))
    return made, f"{seeds} fine-tuning seeds, one pretraining, {len(made.tasks)} tasks"


def changed(evidence: Evidence, stage: str) -> Finding:
    """How far a stage of DistilBERT is from it as pretrained, in loss on WikiText-2: in 8 bits up, else down."""
    found = of(evidence("perplexity"), text="wikitext", mistake=None)
    name = judged_by(found)
    made, tuned = language.change(found, name, "wikitext", stage), of(found, model=name, stage=stage)
    if made is None:
        raise Missing
    what, basis = f"masked-LM loss {language.STAGES[stage]}: change (nats)", f"{MODELS[name]}; WikiText-2, by documents"
    if stage in language.BENCHMARK_STAGES:
        claimed = float(language.printed(stage=stage)["wikitext"] - language.printed()["wikitext"])
        basis += f"; published: {claimed:+.3f}"
    seeds, sign = len(tuned) if "seed" in tuned[0]["unit"] else None, 1 if stage == "int8" else -1
    part = Part(what, None, 0, made.mean, made.low, made.high, basis, sign=sign, decimals=3, seeds=seeds)
    return Finding([part], [*of(found, model=name, stage="base"), *tuned])


MEASURES: dict[str, Sequence[Callable[[Evidence], Finding]]] = {  # by a claim's name in results/published/claims.csv
    "smaller": [smaller],
    "faster": [faster],
    "glue": [glue],
    "imdb": [partial(behind, experiment="imdb", score="accuracy")],
    "squad": [partial(behind, experiment="squad", score="f1")],
    "twice": [twice],
    "terms": [partial(without, names=("no_distillation", "no_masked_lm", "no_cosine"))],
    "layers": [partial(without, names=("random",))],
    "text": [less_text],
    "int8": [int8_at_full_size, int8_loss],
    "eight": [partial(in_few_bits, variant="torch_int8", bits="8-bit, 0%")],
    "four_bits": [partial(in_few_bits, variant="bnb_nf4", bits="4-bit, 0%", setup="T4", sign=1)],
    "gpu": [partial(in_few_bits, variant="bnb_int8", bits="8-bit, 0%", setup="T4", sign=1, answers=False)],
    "zeros": [zeros],
    "cutting": [partial(in_few_bits, variant="taylor_50_int8", bits="8-bit, 50%", experiment="pruning", sign=-1)],
    "orthogonal": [beside_int8],
    "edge": [exported],
    "phone": [],
    "tuned": [partial(changed, stage="wikitext")],
    "rate": [throughput],
    "back": [partial(changed, stage="int8"), partial(changed, stage="wikitext_int8")],
}


# What was said, by whom (a source's name), and how it is measured here: the notebook's number; the hardware that it is
# about, of `HARDWARE` (what isn't counted was to be measured there); what to run, if it isn't just the notebook.
CLAIMS = list(pd.read_csv(tables.PUBLISHED / "claims.csv", dtype=str, keep_default_na=False).itertuples(False, "Claim"))


def judge(evidence: Evidence) -> Sequence[tuple[NamedTuple, Finding]]:
    """Every claim, by those of its numbers that have records; what keeps one from it is told in `evidence.problems`."""
    return [(claim, _measured(claim, evidence)) for claim in CLAIMS]


def _measured(claim: NamedTuple, evidence: Evidence) -> Finding:
    found, problems = [], []
    for measure in MEASURES[claim.name]:
        try:
            own = measure(evidence)
            there = all(map(HARDWARE.get(claim.hardware, bool), own.records))
            parts = [part if there or "counted" in part.basis else part._replace(beside=True) for part in own.parts]
            found.append(own._replace(parts=parts))
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
