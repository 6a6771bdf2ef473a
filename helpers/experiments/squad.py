"""Question answering (notebook 04): contexts in overlapping windows, answers mapped to tokens and back to text."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from .. import InputError
from ..data import hub
from ..measure import records
from ..measure.metrics import answer_scores
from ..profiles import Recipe
from . import glue

NO_ANSWER = 0  # the position of [CLS], which stands for "not in this window"


class Windows(NamedTuple):
    """Questions with stretches of their contexts, as a model reads them.

    examples: input_ids, attention_mask, token_type_ids [tokens], start_positions and end_positions (of the first
        answer's first and last token; [CLS] where it isn't whole in this window).
    rows: the question's row, for each window.
    spans: for each window [tokens, 2], where in the context each token begins and ends; -1 outside the context.
    """

    examples: list[dict]
    rows: list[int]
    spans: list[np.ndarray]


class Answer(NamedTuple):
    """An answer: its text, where in the context it begins, and its share among the n best (they add up to 1)."""

    text: str
    start: int
    share: float


def windows(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int) -> Windows:
    """Cut each context into windows that fit, with the question, into `length` tokens and share `stride` of them.

    InputError if an answer isn't where its row says, or a question is so long that no window gets ahead.
    """
    check_answers(dataset)
    questions = [question.strip() for question in dataset["question"][:]]  # some have spaces in front
    for name, ids in zip(dataset["id"][:], tokenizer(questions, add_special_tokens=False)["input_ids"], strict=True):
        room = max(length - 3 - len(ids), 0)
        if room <= stride:
            took = f"its {len(ids)} tokens leave room for {room} of the context in a window of {length}"
            more = f"a stride of {stride} needs more: raise length, lower stride"
            raise InputError(f"question {name}: {took}, and {more}")
    options = {f"return_{name}": True for name in ("overflowing_tokens", "offsets_mapping", "token_type_ids")}
    options |= {"truncation": "only_second", "max_length": length, "stride": stride}
    contexts = dataset["context"][:]
    encoded = tokenizer(questions, contexts, **options)
    examples, spans, rows = [], [], list(encoded["overflow_to_sample_mapping"])
    golds = [(answers["answer_start"][0], answers["text"][0]) for answers in dataset["answers"][:]]
    for place, row in enumerate(rows):
        span = np.asarray(encoded["offset_mapping"][place])
        span[np.array(encoded.sequence_ids(place)) != 1] = -1
        span[:, 1] = _with_marks(span[:, 1], contexts[row])
        start, text = golds[row]
        first, last = locate(span, start, start + len(text)) or (NO_ANSWER, NO_ANSWER)
        names = ("input_ids", "attention_mask", "token_type_ids")
        example = {name: np.asarray(encoded[name][place], dtype=np.int64) for name in names}
        examples.append(example | {"start_positions": np.int64(first), "end_positions": np.int64(last)})
        spans.append(span)
    return Windows(examples, rows, spans)


def _with_marks(ends: np.ndarray, context: str) -> np.ndarray:
    """Where tokens end when the accents that follow a letter as characters of their own are its own, too."""
    if context.isascii():
        return ends
    beyond = list(range(len(context) + 1))
    for place in reversed(range(len(context))):
        if unicodedata.combining(context[place]):
            beyond[place] = beyond[place + 1]
    return np.array([*beyond, -1])[ends]


def check_answers(dataset: Dataset) -> None:
    """See that every answer is where its row says; InputError if one is not, or a row has none, or no question."""
    columns = (dataset[name][:] for name in ("id", "question", "context", "answers"))
    for name, question, context, answers in zip(*columns, strict=True):
        if question is None or context is None:
            raise InputError(f"question {name} has no {'question' if question is None else 'context'}: leave it out")
        if not answers["text"]:
            raise InputError(f"question {name} has no answer; SQuAD 1.1 has one for each")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if not text.strip():
                raise InputError(f"question {name}: its answer {text!r} has no word")
            if context[start : start + len(text)] != text:
                raise InputError(f"question {name}: its answer {text!r} is not at character {start} of its context")


def locate(span: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and last token [tokens, 2] that hold the characters from `start` to `end`; None if some are outside."""
    inside = np.flatnonzero(span[:, 0] >= 0)
    if not len(inside) or span[inside[0], 0] > start or span[inside[-1], 1] < end:
        return None
    held = inside[(span[inside, 1] > start) & (span[inside, 0] < end)]
    return (int(held[0]), int(held[-1])) if len(held) else None  # none: an accent alone, which tokenizers drop


def best_spans(
    start_logits: np.ndarray, end_logits: np.ndarray, span: np.ndarray, longest: int, n_best: int
) -> list[tuple[float, int, int]]:
    """The `n_best` spans of at most `longest` tokens in one window's context: (score, first token, last token).

    The score is the sum of both logits; every span is looked at, not only those between the likeliest ends.
    """
    outside = span[:, 0] < 0
    start, end = (np.where(outside, -np.inf, logits).astype(np.float64) for logits in (start_logits, end_logits))
    ends = np.lib.stride_tricks.sliding_window_view(np.pad(end, (0, longest - 1), constant_values=-np.inf), longest)
    scores = (start[:, None] + ends).ravel()  # [first token, how many more]
    top = np.argsort(-scores, kind="stable")[:n_best]
    found = [(float(scores[place]), *map(int, divmod(place, longest))) for place in top if scores[place] > -np.inf]
    return [(score, first, first + more) for score, first, more in found]


def answers(
    dataset: Dataset, cut: Windows, logits: Sequence[dict[str, np.ndarray]], longest: int = 30, n_best: int = 20
) -> list[list[Answer]]:
    """The n best answers to each question over all of its windows, the best first.

    `logits`: start_logits and end_logits [tokens] of each window. A span that two windows share counts once, with its
    better score. A question without any possible answer (none arises on real contexts) gets an empty one.
    """
    scored: list[dict[tuple[int, int], float]] = [{} for _ in range(len(dataset))]
    for row, span, said in zip(cut.rows, cut.spans, logits, strict=True):
        for score, first, last in best_spans(said["start_logits"], said["end_logits"], span, longest, n_best):
            place = int(span[first, 0]), int(span[last, 1])
            scored[row][place] = max(score, scored[row].get(place, -np.inf))
    found = []
    for context, places in zip(dataset["context"], scored, strict=True):
        best = sorted(places.items(), key=lambda item: -item[1])[:n_best]
        weights = np.exp([score - best[0][1] for _, score in best])
        shares = weights / weights.sum() if best else []
        listed = [Answer(context[i:j], i, float(share)) for ((i, j), _), share in zip(best, shares, strict=True)]
        found.append(listed or [Answer("", 0, 1.0)])
    return found


class Squad(glue.Downstream):
    """SQuAD 1.1: units {"model", "seed"}, which a subclass may give `epochs` of their own."""

    name, data_id = "squad", "rajpurkar/squad"
    auto = AutoModelForQuestionAnswering

    @property
    def units(self) -> list[dict]:
        squad = self.profile.squad
        return [{"model": name, "seed": seed} for seed in squad.seeds for name in squad.models]

    def recipe(self, unit: dict) -> Recipe:
        own = self.profile.squad.recipe
        return own.model_copy(update={"epochs": unit.get("epochs", own.epochs)})

    def settings(self, unit: dict) -> dict:
        return super().settings(unit) | self.profile.squad.model_dump(include={"stride", "longest_answer"})

    def keeps(self, unit: dict) -> bool:
        return unit["seed"] == self.profile.squad.seeds[0] or unit["model"] == "teacher"

    def train_examples(self, unit: dict) -> tuple[list[dict], list[dict]]:
        _, cut, source = self.examples("train")
        return cut.examples, [source]

    def score(self, unit: dict, model: PreTrainedModel) -> tuple[dict, dict, list[dict]]:
        dataset, cut, source = self.examples("validation")
        said = self.predict(unit, model, cut.examples)
        guesses = [best[0].text for best in answers(dataset, cut, said, self.profile.squad.longest_answer)]
        golds = [row["text"] for row in dataset["answers"]]
        exact, overlap = zip(*map(answer_scores, guesses, golds), strict=True)
        details = {"predictions": dict(zip(dataset["id"], guesses, strict=True))}
        details |= {"exact_match": records.pack(exact), "f1": records.pack(overlap)}
        return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}, details, [source]

    def read(self, split: str) -> tuple[Dataset, Windows, dict]:
        """The questions of a split, cut into windows, and their provenance."""
        squad, recipe = self.profile.squad, self.profile.squad.recipe
        rows = recipe.train_rows if split == "train" else recipe.dev_rows
        dataset, source = hub.sample(self.profile, self.data_id, "plain_text", split, rows)
        return dataset, windows(dataset, self.pretraining.tokenizer, recipe.length, squad.stride), source
