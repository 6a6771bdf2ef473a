"""The claims about what models know, as numbers from records: GLUE, IMDb, SQuAD, the loss's terms, perplexity."""

from collections.abc import Sequence

import numpy as np

from . import comparison, metrics, significance, tables
from .claims import REPLICATES, Evidence, Finding, Part, basis, compared, printed, times
from .comparison import MACRO, WITHOUT_WNLI, Comparison
from .downstream import unpack
from .language import BENCHMARK, change, grid, of

PAPER = "sanh2019"


def glue(evidence: Evidence) -> Finding | None:
    """What the student keeps of its teacher's mean score; without an effect, what guessing would."""
    found = evidence("glue")
    graded, parts = Comparison(found, REPLICATES), []
    if not {"teacher", "student"} <= set(graded.models):
        return None
    claimed = printed(PAPER, "abstract", "retention_of_bert_base", "DistilBERT")
    truths = {task: unpack(graded.cells[task, "teacher"][0]["details"]["references"]) for task in graded.tasks}
    for scope, words in ((MACRO, f"{len(graded.tasks)} tasks"), (WITHOUT_WNLI, "… without WNLI")):
        tasks = [task for task in graded.tasks if scope == MACRO or task != "wnli"]
        guessed = 100 * np.mean([metrics.by_guessing(task, truths[task]) for task in tasks])
        none = guessed / graded.score(scope, "teacher")
        kept = [100 * value for value in graded.retention(scope, "student")]
        what = f"kept of the teacher's mean score, {words} (%)"
        parts.append(Part(what, claimed, none, *kept, f"{len(graded.seeds(tasks[0], 'student'))} seeds"))
    return Finding(parts, found)


def close_behind(evidence: Evidence) -> Finding | None:
    """What the student keeps of its teacher's lead over guessing, on IMDb and on SQuAD."""
    reviews, parts = evidence("imdb"), []
    length = {record["unit"]["length"] for record in of(reviews, model="teacher")}
    reviews, answers = [r for r in reviews if r["unit"]["length"] in length], evidence("squad")
    for found, name, metric, guess in ((reviews, "IMDb", "accuracy", 0.5), (answers, "SQuAD", "f1", 0.0)):
        runs = comparison.runs_of(found, "f1" if name == "SQuAD" else "predictions") if found else {}
        if not {"teacher", "student"} <= set(runs):
            continue
        if name == "SQuAD":
            truth, score = np.zeros(runs["student"].shape[1]), comparison.share_right
        else:
            truth, score = unpack(found[0]["details"]["references"]), comparison.share_equal
        paper = [printed(PAPER, "2", metric, model) / 100 for model in ("DistilBERT", "BERT-base")]

        def kept(one: np.ndarray, other: np.ndarray, guess: float = guess) -> np.ndarray:
            return (one - guess) / (other - guess)

        ours = compared(runs, truth, score, kept, "student", "teacher")
        what = f"{name}: kept of the teacher's {'lead over guessing' if guess else 'F1'} (%)"
        parts.append(Part(what, 100 * kept(*paper), 0, *ours, basis(runs["student"])))
    return Finding(parts, [*reviews, *answers]) if parts else None


def second_distillation(evidence: Evidence) -> Finding | None:
    """F1 on SQuAD of the student that is distilled once more, against the one that isn't."""
    found = evidence("squad")
    runs = comparison.runs_of(found, "f1") if found else {}
    if not {"student", "student_d"} <= set(runs):
        return None
    truth = np.zeros(runs["student"].shape[1])
    ours = compared(runs, truth, comparison.share_right, np.subtract, "student_d", "student")
    claimed = printed(PAPER, "2", "f1", "DistilBERT (D)") - printed(PAPER, "2", "f1", "DistilBERT")
    return Finding([Part("SQuAD: F1 with it, less without (points)", claimed, 0, *ours, basis(runs["student"]))], found)


def loss_terms(evidence: Evidence) -> Finding | None:
    """What the mean score loses without each term of the triple loss."""
    return _without(evidence, ("no_distillation", "no_masked_lm", "no_cosine"))


def layers(evidence: Evidence) -> Finding | None:
    """What the mean score loses if the student starts from random weights."""
    return _without(evidence, ("random",))


def less_text(evidence: Evidence) -> Finding | None:
    """What CoLA and STS-B lose by a quarter of the text, beyond what SST-2 does."""
    graded, found = _ablated(evidence, ("quarter_text",))
    if graded is None or "sst2" not in graded.tasks:
        return None
    parts = []
    for task in [task for task in ("cola", "stsb") if task in graded.tasks]:
        drawn = [graded.drawn(name)["quarter_text"] - graded.drawn(name)["student"] for name in (task, "sst2")]
        low, high = significance.interval(100 * (drawn[0] - drawn[1]))
        ours = [100 * graded.difference(name, "quarter_text")[0] for name in (task, "sst2")]
        what = f"change on {task}, less that on sst2 (points)"
        parts.append(Part(what, None, 0, ours[0] - ours[1], low, high, _seeds(graded), sign=-1))
    return Finding(parts, found) if parts else None


def fine_tuned(evidence: Evidence) -> Finding | None:
    """How fine-tuning on WikiText-2 changes the student's masked-LM loss there."""
    return _changed(evidence, "wikitext", "masked-LM loss, fine-tuned less pretrained (nats)")


def won_back(evidence: Evidence) -> Finding | None:
    """How far fine-tuning and 8 bits together are from the student as pretrained."""
    return _changed(evidence, "wikitext_int8", "masked-LM loss, fine-tuned and in 8 bits, less pretrained (nats)")


def throughput(evidence: Evidence) -> Finding | None:
    """How fast the student reads in 8 bits."""
    own = of(evidence("speed"), comparison="stages")
    if not own or "times_as_fast_student_int8" not in own[0]["metrics"]:
        return None
    claimed = 1 + printed(BENCHMARK, "takeaways", "throughput_gain", "8-bit") / 100
    return Finding([times(own[0], claimed, "times_as_fast_student_int8", "reading in LLM.int8: times as fast")], own)


def _seeds(graded: Comparison) -> str:
    return f"{len(graded.seeds(graded.tasks[0], 'student'))} fine-tuning seeds, {len(graded.tasks)} tasks"


def _ablated(evidence: Evidence, names: Sequence[str]) -> tuple[Comparison | None, list[dict]]:
    """The students that go without something, on the tasks that judge them, beside the whole recipe's."""
    own = [r for r in evidence("ablation") if "task" in r["unit"] and r["unit"]["model"] in names]
    graded = evidence("glue")
    tasks = {record["unit"]["task"] for record in own or graded}
    own += [r for r in graded if r["unit"]["task"] in tasks and r["unit"]["model"] in ("student", *names)]
    made = Comparison(own, REPLICATES)
    return (made, own) if {"student", *names} <= set(made.models) else (None, [])


def _without(evidence: Evidence, names: Sequence[str]) -> Finding | None:
    graded, found = _ablated(evidence, names)
    if graded is None:
        return None
    parts = []
    for name in names:
        claimed = printed(PAPER, "4", "macro_average_delta", comparison.PUBLISHED_ABLATION[name])
        ours = [100 * value for value in graded.difference(MACRO, name)]
        what = f"{tables.MODELS[name]}: change of the mean (points)"
        parts.append(Part(what, claimed, 0, *ours, _seeds(graded), decimals=2))
    return Finding(parts, found)


def _changed(evidence: Evidence, stage: str, what: str) -> Finding | None:
    found = grid(evidence("perplexity"))
    made = change(found, "student", "wikitext", stage)
    if made is None:
        return None
    part = Part(what, None, 0, made.mean, made.low, made.high, "WikiText-2, by documents", sign=-1, decimals=3)
    return Finding([part], of(found, model="student", text="wikitext"))
