"""Sentences that follow the numbers, whichever way they fall."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import comparison, tables
from .downstream import unpack
from .tables import MODELS

SURE = 0.05  # p-values below this are called clear


def pretraining_in_words(found: Sequence[dict]) -> str:
    """What the pretraining records say, in sentences that follow the numbers whichever way they fall."""

    def of(model: str, metric: str) -> pd.Series:
        return pd.Series([r["metrics"][metric] for r in found if r["unit"]["model"] == model], dtype=float)

    def text(model: str, metric: str) -> str:
        return tables.cell(of(model, metric), tables.COLUMNS[metric])

    loss, kl = "masked_lm_loss", "kl_to_teacher"
    says = [
        f"- Held-out masked-LM loss: the teacher {text('teacher', loss)} nats, the student {text('student', loss)}."
    ]
    if len(of("random", loss)):
        says.append(f"- Distilled in the same way from random weights, the student gets to {text('random', loss)}.")
    if len(of("twin", loss)) and len(of("student", loss)):
        gap = of("student", loss).mean() - of("twin", loss).mean()
        spread = max(of("student", loss).std(), of("twin", loss).std())
        verdict = "level with" if gap == 0 or abs(gap) < spread else ("better than" if gap < 0 else "worse than")
        how_sure = "over seeds" if len(of("student", loss)) > 1 else "in one run, whose spread is not known"
        says.append(
            f"- The undistilled twin gets {text('twin', loss)}: in plain masked-LM loss the student is "
            f"**{verdict}** it, {how_sure}."
        )
        says.append(f"- KL to the teacher: the student has {text('student', kl)}, the twin {text('twin', kl)}.")
    return "\n".join(says)


def glue_in_words(graded: comparison.Comparison) -> str:
    """What the records say, in sentences that follow the numbers whichever way they fall."""
    says = []
    for name in graded.models[1:]:
        kept, bare = graded.retention(comparison.MACRO, name), graded.retention(comparison.WITHOUT_WNLI, name)
        if kept is None or bare is None:
            continue
        words = "keeps {:.1f}% ({:.0f} to {:.0f}) of its teacher's mean score".format(*(100 * value for value in kept))
        extra = f", {100 * bare[0]:.1f}% without WNLI" if "wnli" in graded.tasks else ""
        says.append(f"- {tables.MODELS[name].capitalize()}: {words}{extra}.")
    ratio = comparison.published("DistilBERT", comparison.MACRO, graded.tasks) / comparison.published(
        "BERT-base", comparison.MACRO, graded.tasks
    )
    says.append(f"- Published, over the same {len(graded.tasks)} tasks: {100 * ratio:.1f}%.")
    if "student" in graded.models:
        shares = {task: graded.retention(task, "student") for task in graded.tasks}
        firm = {task: share[0] for task, share in shares.items() if share}
        if firm:
            worst, best = min(firm, key=firm.get), max(firm, key=firm.get)
            says.append(
                f"- The student loses most on {worst} (keeps {100 * firm[worst]:.0f}%) and least on {best} "
                f"({100 * firm[best]:.0f}%)."
            )
    if {"student", "twin"} <= set(graded.models):
        gaps = {task: graded.gap(task, "student", "twin") for task in graded.tasks}
        clear = [f"{task} ({100 * gap:+z.1f}, p = {p:.3f})" for task, (gap, p) in gaps.items() if p < 0.05]
        mean = 100 * np.mean([gap for gap, _ in gaps.values()])
        says.append(
            f"- Against its undistilled twin the student is {mean:+z.1f} points ahead in the mean; single tasks with "
            f"p < 0.05: {', '.join(clear) or 'none'}."
        )
    return "\n".join(says)


def ablation_in_words(changes: pd.DataFrame) -> str:
    """Which changes (points, low, high, published) are clear, and whether their order is the published one."""
    clear = changes[(changes.low > 0) | (changes.high < 0)]
    listed = ", ".join(f"{name} ({row.points:+z.1f})" for name, row in clear.iterrows())
    says = [f"- Clear, their interval being on one side of zero: {listed or 'none'}."]
    both = changes.dropna()
    if len(both) > 2:
        worst, printed = both.points.idxmin(), both.published.idxmin()
        agreement = both.points.corr(both.published, method="spearman")
        says.append(f"- What costs most: {worst} here, {printed} in the paper; rank correlation {agreement:+z.2f}.")
    return "\n".join(says)


def ahead(runs: dict[str, np.ndarray], truth: np.ndarray, score, one: str, other: str) -> str:
    """By how many points one model is ahead of another, and whether a paired test finds that clear."""
    p = comparison.significance.permutation_test(runs[one], runs[other], truth, score, rounds=300)
    middle = [100 * float(np.median(score(runs[name], truth))) for name in (one, other)]
    sure = "clear" if p < SURE else "not clear"
    return f"{middle[0] - middle[1]:+z.1f} points, {sure} in a paired test (p = {p:.3f})"


def imdb_in_words(found: Sequence[dict], paper: pd.Series) -> str:
    """What the records say of one length, beside the paper's accuracies in percent by model."""
    runs, truth = comparison.runs_of(found), unpack(found[0]["details"]["references"])
    middle = {name: 100 * np.median((seeds == truth).mean(axis=1)) for name, seeds in runs.items()}
    says = [f"- {MODELS[name].capitalize()}: {value:.1f}%." for name, value in middle.items()]
    for other in ("teacher", "twin"):
        if {"student", other} <= runs.keys():
            gap = ahead(runs, truth, comparison.share_equal, "student", other)
            says.append(f"- Student against the {MODELS[other]}: {gap}.")
    if "student" in middle and middle.get("teacher"):
        kept = 100 * middle["student"] / middle["teacher"]
        printed = 100 * paper["DistilBERT"] / paper["BERT-base"]
        says.append(f"- The student keeps {kept:.1f}% of its teacher's accuracy; published: {printed:.1f}%.")
    return "\n".join(says)


def squad_in_words(found: Sequence[dict], paper: pd.DataFrame) -> str:
    """What the records say, beside the paper's exact match and F1 in percent (columns) by model (rows)."""
    runs = comparison.runs_of(found, "f1")
    zeros, says = np.zeros(next(iter(runs.values())).shape[1]), []
    middle = {name: 100 * np.median(seeds.mean(axis=1)) for name, seeds in runs.items()}
    if "student" in runs and middle.get("teacher"):
        kept, printed = middle["student"] / middle["teacher"], paper.f1["DistilBERT"] / paper.f1["BERT-base"]
        says.append(f"- The student keeps {100 * kept:.1f}% of its teacher's F1; published: {100 * printed:.1f}%.")
    if {"student", "twin"} <= runs.keys():
        gap = ahead(runs, zeros, comparison.share_right, "student", "twin")
        says.append(f"- Against its undistilled twin the student's F1 is ahead by {gap}.")
    if {"student", "student_d"} <= runs.keys():
        gap = ahead(runs, zeros, comparison.share_right, "student_d", "student")
        printed = paper.f1["DistilBERT (D)"] - paper.f1["DistilBERT"]
        says.append(f"- The second distillation changes F1 by {gap}; published: {printed:+z.1f} points.")
    return "\n".join(says)
