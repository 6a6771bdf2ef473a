"""The generated texts between markers in README and notebooks: answers and tables, from committed records alone."""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import (
    InputError,
    answers,
    claims,
    comparison,
    compression,
    contents,
    deployments,
    language,
    ledger,
    paces,
    profiles,
    records,
    report,
    tables,
    tradeoffs,
)
from .downstream import unpack
from .tables import NOTHING

SHOWN = ("fp32", "fp32_recovered", "weights_80_recovered", "layers_2_recovered")  # of 07, on this page
SHOWN += tuple(f"taylor_{percent}_recovered" for percent in (30, 50, 70))


def blocks() -> dict[str, str]:
    """The generated texts between markers in README and notebooks, by name; from committed records alone.

    Raises:
        InputError: one of them is damaged.
    """
    texts = {"answer-00": _answer_claims(), "notebooks": contents.table()}
    makers = {
        "01": ("distillation", _pretraining),
        "02": ("glue", _glue),
        "03": ("imdb", _imdb),
        "04": ("squad", _squad),
        "05": ("perplexity", _perplexity),
        "06": ("quantization", _quantization),
        "07": ("pruning", _pruning),
        "08": ("speed", _speed),
        "09": ("edge", _edge),
    }
    for number, (experiment, make) in makers.items():
        found = _evidence()(experiment)
        nothing = f"{NOTHING} (no complete committed records yet; run {number} with the profile `laptop`)"
        answer, table = (make(found) if found else None) or (nothing, nothing)
        texts |= {f"answer-{number}": answer, f"results-{number}": table}
    texts |= _report()
    if problems := _evidence().problems:
        raise InputError(problems[0])
    return texts


def _report() -> dict[str, str]:
    evidence = _evidence()
    judged = ledger.judge(evidence)
    answer = f"{report.headline(judged)}\n\n{report.questions(evidence, judged)}"
    table = ledger.table(judged).drop(columns=["n", "notebook"])
    caption = (
        "Profile `laptop`, ours with a 95% interval. Notebook 10 has the rule, and says what each number rests on."
    )
    return {"answer-10": answer, "results-10": _table(table, caption)}


@functools.cache
def _evidence() -> claims.Evidence:
    """The committed records."""
    return claims.Evidence(records.Workspace(profiles.load("laptop"), name="laptop"))


def _table(table: pd.DataFrame, caption: str) -> str:
    return tables.Shown(table, caption)._repr_markdown_()


def _answer_claims() -> str:
    paper = tables.published("sanh2019")

    def printed(model: str, metric: str) -> float:
        return float(paper[(paper.model == model) & (paper.metric == metric)].value.iloc[0])

    times = printed("BERT-base", "full_pass_seconds") / printed("DistilBERT", "full_pass_seconds")
    fewer = 1 - printed("DistilBERT", "parameters") / printed("BERT-base", "parameters")
    kept = printed("DistilBERT", "macro_average") / printed("BERT-base", "macro_average")
    return (
        f"The paper's own tables give {fewer:.0%} fewer parameters, {times:.2f} times the speed and {kept:.1%} of "
        "BERT's GLUE score. What this machine offers and what a run costs is measured below, each time."
    )


def _pretraining(found: Sequence[dict]) -> tuple[str, str]:
    metrics = ("masked_lm_loss", "kl_to_teacher", "cosine_loss", "cloze_accuracy", "parameters", "training_minutes")
    notes = f"{tables.positions_note(found)} {tables.data_note(found)}"
    caption = f"Profile `laptop`, pretraining on WikiText-2. {notes}"
    return _answer_pretraining(found), _table(tables.summary(found, metrics), caption)


def _answer_pretraining(found: Sequence[dict]) -> str:
    by_model = {record["unit"]["model"]: record for record in found}
    teacher, student, twin, random = (by_model[name]["metrics"] for name in ("teacher", "student", "twin", "random"))
    fewer = 1 - student["parameters"] / teacher["parameters"]
    cores = by_model["student"]["provenance"]["cores"]
    return (
        f"On real text, {student['training_minutes']:.0f} minutes on {cores} cores make a student with "
        f"{fewer:.0%} fewer parameters and a held-out masked-LM loss of "
        f"{student['masked_lm_loss']:.2f} nats (teacher {teacher['masked_lm_loss']:.2f}, distilled from random "
        f"weights {random['masked_lm_loss']:.2f}, its undistilled twin {twin['masked_lm_loss']:.2f}). KL to the "
        f"teacher is {student['kl_to_teacher']:.2f}, the twin's {twin['kl_to_teacher']:.2f} (one seed each)."
    )


def _glue(found: Sequence[dict]) -> tuple[str, str] | None:
    graded = comparison.Comparison(found)
    if not {"teacher", "student", "twin"} <= set(graded.models):
        return None
    kept = {name: graded.retention(comparison.MACRO, name) for name in ("student", "twin")}
    bare = {name: graded.retention(comparison.WITHOUT_WNLI, name) for name in kept}
    paper = [comparison.published(name, comparison.MACRO, graded.tasks) for name in ("DistilBERT", "BERT-base")]
    words = {
        name: "{:.1f}% ({:.0f} to {:.0f})".format(*(100 * value for value in share)) for name, share in kept.items()
    }
    count = len(graded.seeds(graded.tasks[0], "student"))
    seeds = f"{count} fine-tuning seed{'s' if count > 1 else ''}"
    answer = (
        f"On {len(graded.tasks)} tasks with real data, {seeds} each, the student "
        f"keeps {words['student']} of its teacher's mean score, {100 * bare['student'][0]:.1f}% without WNLI; its "
        f"undistilled twin {words['twin']}. Published, for the same tasks: {100 * paper[0] / paper[1]:.1f}%."
    )
    caption = "Profile `laptop`, dev scores in percent: median over seeds (range). Two metrics: their mean. Published: "
    return answer, _table(graded.scores_table(), f"{caption}the paper's Table 1. {tables.data_note(found)}")


def _imdb(found: Sequence[dict]) -> tuple[str, str] | None:
    if not {"teacher", "student", "twin"} <= {record["unit"]["model"] for record in found}:
        return None
    paper = tables.published("sanh2019", "2").query("dataset == 'imdb'").set_index("model").value.astype(float)
    length = next(record["unit"]["length"] for record in found if record["unit"]["model"] == "teacher")
    same = [record for record in found if record["unit"]["length"] == length]
    right = {r["unit"]["model"]: 100 * r["metrics"]["accuracy"] for r in same}
    longer = {r["unit"]["length"]: 100 * r["metrics"]["accuracy"] for r in found if r["unit"]["model"] == "student"}
    reads = ", ".join(f"{accuracy:.1f}% with {tokens}" for tokens, accuracy in sorted(longer.items()))
    answer = (
        f"Reading {length} tokens of each review, the teacher gets {right['teacher']:.1f}%, the student "
        f"{right['student']:.1f}%, its twin {right['twin']:.1f}%. By tokens read, the student gets {reads}. "
        f"Published: BERT {paper['BERT-base']:.2f}%, DistilBERT {paper['DistilBERT']:.2f}%."
    )
    runs, truth = comparison.runs_of(same), unpack(same[0]["details"]["references"])
    table = comparison.beside(runs, truth, comparison.share_equal, "accuracy (%)", ["teacher", "twin"])
    return answer, _table(table, f"Profile `laptop`, {length} tokens of each review. {tables.data_note(same)}")


def _squad(found: Sequence[dict]) -> tuple[str, str] | None:
    if not {"teacher", "student", "student_d", "twin"} <= {record["unit"]["model"] for record in found}:
        return None
    paper = tables.published("sanh2019", "2").query("dataset == 'squad'")
    paper = paper.pivot(index="model", columns="metric", values="value").astype(float)
    runs = {metric: comparison.runs_of(found, metric) for metric in ("exact_match", "f1")}
    zeros = np.zeros(next(iter(runs["f1"].values())).shape[1])
    middle = {name: 100 * np.median(seeds.mean(axis=1)) for name, seeds in runs["f1"].items()}
    again = answers.ahead(runs["f1"], zeros, comparison.share_right, "student_d", "student")
    answer = (
        f"Trained on a part of SQuAD, the teacher reaches an F1 of {middle['teacher']:.1f}, the student "
        f"{middle['student']:.1f}, its twin {middle['twin']:.1f}. Distilling a second time changes the student's by "
        f"{again}; published: {paper.f1['DistilBERT (D)'] - paper.f1['DistilBERT']:+z.1f}."
    )
    exact = comparison.beside(runs["exact_match"], zeros, comparison.share_right, "exact match (%)", [])
    table = exact[["exact match (%)"]].join(
        comparison.beside(runs["f1"], zeros, comparison.share_right, "F1 (%)", ["student"])
    )
    return answer, _table(table, f"Profile `laptop`, SQuAD 1.1 dev. {tables.data_note(found)}")


def _perplexity(found: Sequence[dict]) -> tuple[str, str] | None:
    grid = language.grid(found)
    losses = {name: language.of(grid, model=name, stage="base", text="wikitext") for name in ("teacher", "student")}
    changes = [language.change(grid, "student", "wikitext", stage) for stage in ("int8", "wikitext")]
    near = language.nearest_mistakes(found, "student").drop("right", errors="ignore")
    if not all(losses.values()) or not all(changes) or near.empty:
        return None
    teacher, student = (own[0]["metrics"]["perplexity"] for own in losses.values())
    by_it = language.of(found, model="student", stage="base", mistake=near.index[0])
    ours, published = (
        " and ".join(f"{value:,.0f}" for value in values)
        for values in ([record["metrics"]["perplexity"] for record in by_it], language.printed("perplexity"))
    )
    answer = (
        f"On WikiText-2's test text the teacher has a perplexity of {teacher:.1f} over masked tokens and the student "
        f"{student:.1f}. 8 bits change the student's loss by {changes[0]} nats, fine-tuning by {changes[1]}. Of the "
        f"common mistakes, the one that comes nearest to the published {published} is “{near.index[0]}” (our student "
        f"gets {ours} by it)."
    )
    caption = "Profile `laptop`, perplexity over masked tokens and pseudo-perplexity: 95% intervals over documents. "
    return answer, _table(language.wikitext_table(grid), caption + tables.data_note(grid))


def _quantization(found: Sequence[dict]) -> tuple[str, str] | None:
    own = language.of(found, task="sst2", model="student")
    by_variant = {record["unit"]["variant"]: record["metrics"] for record in own}
    if not {"fp32", "bf16", "onnx_int8_embeddings", "bnb_nf4_double"} <= by_variant.keys():
        return None
    base, half, best, four = (by_variant[n] for n in ("fp32", "bf16", "onnx_int8_embeddings", "bnb_nf4_double"))

    def against(scores: dict) -> str:
        return f"{scores['size_mb']:.1f} MB and {scores['latency_times_as_fast']:.1f} times"

    other = tradeoffs.clearly_other(own, "sst2", "student")
    scores = f"the scores of {', '.join(map(compression.LABELS.get, other))} differ" if other else "no score differs"
    at_size = {record["unit"]["variant"]: record["metrics"] for record in _evidence()("fullsize")}
    large = ""
    if "onnx_int8_embeddings" in at_size:
        shown = at_size["onnx_int8_embeddings"]
        size, times = shown["size_mb"], shown["latency_times_as_fast"]
        large = (
            f" At DistilBERT's own size, int8 with the embeddings takes {size:.0f} MB and is {times:.1f} times as fast."
        )
    answer = (
        f"On SST-2, of all variants of the student {scores} clearly from fp32's. Size, and speed for a row against "
        f"fp32's: int8 with the embeddings (ONNX Runtime) {against(best)}; 4 bits without them (nf4, double) "
        f"{against(four)}; bf16 {against(half)}; fp32 has {base['size_mb']:.1f} MB.{large}"
    )
    caption = "Profile `laptop`, SST-2, student; p: of the difference in score from fp32. "
    missing = {
        name: "not measured there: a library or instructions are missing"
        for name in compression.LABELS
        if name not in by_variant
    }
    return answer, _table(tradeoffs.table(found, "sst2", "student", missing), caption + tables.data_note(own))


def _pruning(found: Sequence[dict]) -> tuple[str, str] | None:
    own = language.of(found, task="sst2", model="student")
    by_variant = {record["unit"]["variant"]: record["metrics"] for record in own}
    names = ("fp32_recovered", "weights_80_recovered", "taylor_30_recovered", "taylor_50_recovered_int8")
    if not set(names) <= by_variant.keys():
        return None
    base, zeros, third, both = (by_variant[name] for name in names)

    def gets(scores: dict) -> str:
        return f"{100 * scores['score']:.1f}% at {scores['latency_times_as_fast']:.2f} times the speed for one row"

    answer = (
        f"On SST-2, always after a short training again, the whole student gets {100 * base['score']:.1f}%; with 80% "
        f"of its encoder's weights zero {gets(zeros)}; with 30% of heads and neurons cut out {gets(third)}; with 50% "
        f"cut out, and in 8 bits, {gets(both)}."
    )
    few = [record for record in own if record["unit"]["variant"].removesuffix("_int8") in SHOWN]
    caption = "Profile `laptop`, SST-2, student, a few variants; p: of the difference in score from the whole model. "
    return answer, _table(tradeoffs.table(few, "sst2", "student", {}), caption + tables.data_note(own))


def _speed(found: Sequence[dict]) -> tuple[str, str] | None:
    own = language.of(found, pair="full")
    lengths, passes = language.of(own, batch=1, run=0), language.of(own, text="stsb", threads=1)
    alone = [record for record in own if "alone" in record["unit"]]
    one = paces.frame(language.of(lengths, threads=1))
    if not passes or not alone or not set(profiles.load("laptop").speed.lengths) <= set(one.get("length", ())):
        return None
    span = f"{one.length.min():.0f} to {one.length.max():.0f} tokens"
    scores, sizes = passes[0]["metrics"], alone[0]["metrics"]
    ratio = scores["large_pass_seconds"] / scores["small_pass_seconds"]
    paper = tables.published("sanh2019", "3").query("metric == 'full_pass_seconds'").set_index("model").value
    printed = float(paper["BERT-base"]) / float(paper["DistilBERT"])
    answer = (
        f"DistilBERT has {1 - sizes['small_parameters'] / sizes['large_parameters']:.0%} fewer parameters than "
        f"BERT-base. On one thread it is {one.times_as_fast.min():.2f} to {one.times_as_fast.max():.2f} times as fast "
        f"for one row of {span}, and a pass over STS-B's dev set takes {scores['small_pass_seconds']:.0f} s instead of "
        f"{scores['large_pass_seconds']:.0f}: {ratio:.2f} times as fast, {1 - 1 / ratio:.0%} less time. From the "
        f"paper's Table 3: {printed:.2f} times."
    )
    caption = "Profile `laptop`, shapes of BERT-base and DistilBERT, one row at a time, median of paired ratios. "
    table = paces.by_length(paces.frame(lengths), "BERT-base", "DistilBERT")
    return answer, _table(table, caption + tables.data_note(own))


def _edge(found: Sequence[dict]) -> tuple[str, str] | None:
    one = language.of(found, head="sst2", threads=1, format="onnx")
    scores = {record["unit"]["variant"]: record["metrics"] for record in one}
    names = {"fp32_int8": "8 bits", "taylor_50_recovered_int8": "half of heads and neurons cut and 8 bits"}
    if not {"fp32", *names} <= scores.keys():
        return None
    base, parts = scores["fp32"], []
    for name, words in names.items():
        times, change = scores[name]["latency_times_as_fast"], 100 * (scores[name]["score"] - base["score"])
        parts.append(
            f"{words} leave {scores[name]['size_mb']:.1f} of {base['size_mb']:.1f} MB and {times:.1f} times the speed "
            f"({change:+z.1f} points)"
        )
    answer = f"On SST-2, in ONNX Runtime on one thread, {'; '.join(parts)}. No phone was at hand."
    caption = "Profile `laptop`, the student fine-tuned on SST-2. " + tables.data_note(one)
    return answer, _table(deployments.table(found, "sst2", 1), caption)
