"""Windows over long contexts: every answer is found in them and comes back as it was."""

import itertools

import numpy as np
import pytest
from datasets import Dataset

from helpers import InputError, profiles
from helpers.data import hub, miniworld
from helpers.experiments import squad
from helpers.measure import metrics, records


def rows(*given: tuple[str, str, list[tuple[str, int]]]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "id": f"q{number}",
                "question": question,
                "context": context,
                "answers": {"text": [text for text, _ in golds], "answer_start": [start for _, start in golds]},
            }
            for number, (question, context, golds) in enumerate(given)
        ]
    )


CONTEXT = " ".join(f"word{i % 20}" for i in range(60)) + " the old stone bridge"


def test_windows_overlap_and_cover_the_context(tokenizer):
    dataset = rows(("river town", CONTEXT, [("old stone", CONTEXT.index("old stone"))]))
    cut = squad.windows(dataset, tokenizer, length=21, stride=6)
    room = 21 - 3 - 2
    seen = []
    for example, span in zip(cut.examples, cut.spans, strict=True):
        assert len(example["input_ids"]) <= 21
        inside = np.flatnonzero(span[:, 0] >= 0)
        assert inside[0] == 4 and len(inside) <= room, "[CLS] question [SEP] context [SEP]"
        words = [CONTEXT[i:j] for i, j in span[inside]]
        assert words == tokenizer.convert_ids_to_tokens(example["input_ids"][inside])
        seen.append((span[inside[0], 0], span[inside[-1], 1], words))
    assert seen[0][0] == 0 and seen[-1][1] == len(CONTEXT)
    for (_, _, before), (_, _, after) in itertools.pairwise(seen):
        assert before[-6:] == after[:6]


def test_a_window_without_the_whole_answer_points_to_cls(tokenizer):
    start = CONTEXT.index("old stone")
    cut = squad.windows(rows(("river", CONTEXT, [("old stone", start)])), tokenizer, 21, 6)
    for example, span in zip(cut.examples, cut.spans, strict=True):
        first, last = example["start_positions"], example["end_positions"]
        if (span[:, 0] == start).any() and (span[:, 1] == start + 9).any():
            assert CONTEXT[span[first, 0] : span[last, 1]] == "old stone"
        else:
            assert first == last == squad.NO_ANSWER
    assert sum(example["start_positions"] > 0 for example in cut.examples) >= 1


@pytest.mark.parametrize("text", ["stone", "the old stone bridge", "word0"])
def test_a_context_that_fits_has_one_window(tokenizer, text):
    context = "word0 the old stone bridge"
    cut = squad.windows(rows(("river", context, [(text, context.index(text))])), tokenizer, 40, 30)
    (example,), (span,) = cut.examples, cut.spans
    assert context[span[example["start_positions"], 0] : span[example["end_positions"], 1]] == text


@pytest.mark.parametrize(
    ("dataset", "length", "stride", "message"),
    [
        (rows(("river", "the town", [("bridge", 4)])), 32, 8, "question q0: its answer 'bridge' is not at character 4"),
        (rows(("river", "the town", [("town", 3)])), 32, 8, "question q0: its answer 'town' is not at character 3"),
        (rows(("river", "the town", [])), 32, 8, "question q0 has no answer"),
        (rows(("river " * 9, "the town", [("town", 4)])), 20, 8, "leave room for 8 .* a stride of 8 needs more"),
        (rows(("river " * 90, "the town", [("town", 4)])), 20, 8, "its 90 tokens leave room for 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(tokenizer, dataset, length, stride, message):
    with pytest.raises(InputError, match=message):
        squad.windows(dataset, tokenizer, length, stride)


def test_best_spans_against_every_pair():
    random = np.random.default_rng(0)
    for size, longest in ((9, 4), (30, 5), (6, 30)):
        start, end = random.normal(size=(2, size))
        span = np.array([[-1, -1] if i < 3 or i == size - 1 else [10 * i, 10 * i + 5] for i in range(size)])
        inside = range(3, size - 1)
        pairs = [(start[i] + end[j], i, j) for i in inside for j in inside if i <= j < i + longest]
        expected = sorted(pairs, reverse=True)[:7]
        found = squad.best_spans(start, end, span, longest, 7)
        assert [place[1:] for place in found] == [place[1:] for place in expected]
        assert np.allclose([place[0] for place in found], [place[0] for place in expected])


def test_the_best_answer_comes_from_the_best_window(tokenizer):
    start = CONTEXT.index("old stone")
    dataset = rows(("river", CONTEXT, [("old stone", start)]), ("town", "the bridge", [("bridge", 4)]))
    cut = squad.windows(dataset, tokenizer, 21, 6)
    logits = []
    for example in cut.examples:
        sides = {name: np.zeros(len(example["input_ids"])) for name in ("start_logits", "end_logits")}
        if example["start_positions"]:  # a window that has the answer knows it
            sides["start_logits"][example["start_positions"]] = sides["end_logits"][example["end_positions"]] = 9.0
        sides["start_logits"][0] = sides["end_logits"][0] = 50.0  # [CLS] is no answer
        logits.append(sides)
    first, second = squad.answers(dataset, cut, logits, longest=5, n_best=4)
    assert (first[0].text, first[0].start, second[0].text) == ("old stone", start, "bridge")
    assert len(first) == 4 and sum(answer.share for answer in first) == pytest.approx(1)
    assert len({(answer.start, answer.text) for answer in first}) == 4, "shared by two windows, listed once"
    assert all(len(answer.text.split()) <= 5 for answer in first)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_answer_of_the_mini_world_comes_back(split, page):
    (lost_answers,) = page("04_squad", "lost_answers")
    profile = profiles.load("mini")
    dataset, _ = hub.load(profile, "rajpurkar/squad", "plain_text", split)
    tokenizer = miniworld.tokenizer(miniworld.write(hub.WORLD))
    cut = squad.windows(dataset, tokenizer, profile.squad.recipe.length, profile.squad.stride)
    assert lost_answers(dataset, cut) == []
    assert len(cut.examples) > len(dataset), "some contexts take several windows"


RECIPE = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "train_rows": 24, "dev_rows": 20, "length": 96}
FEW = {"models": ["teacher", "student", "student_d"], "seeds": [0], "recipe": RECIPE, "stride": 16}


def test_answers_come_from_their_contexts(tiny, pretrained):
    profile = profiles.load("mini", tiny | {"squad": FEW | {"longest_answer": 12}})
    made = squad.Squad(profile, records.Workspace(profile, str(pretrained)))
    found = made.run()
    questions, cut, _ = made.examples("validation")
    contexts = dict(zip(questions["id"], questions["context"], strict=True))
    for record in found:
        answers = record["details"]["predictions"]
        assert answers.keys() == contexts.keys() and all(answers[name] in contexts[name] for name in contexts)
        golds = [row["text"] for row in questions["answers"]]
        again = [metrics.answer_scores(answers[n], gold) for n, gold in zip(questions["id"], golds, strict=True)]
        assert np.mean(again, axis=0)[1] * 100 == pytest.approx(record["metrics"]["f1"])
        for name in ("exact_match", "f1"):
            assert 100 * records.unpack(record["details"][name]).mean() == pytest.approx(record["metrics"][name])
    assert len({record["details"]["checkpoint"] for record in found}) == 3, "distilled again or not"
    kept = {path.name.split("-")[1] for path in made.space.checkpoints.glob("squad-*")}
    assert kept == {"teacher", "student", "student_d"}


def test_a_window_too_short_is_refused():
    with pytest.raises(InputError, match="squad.recipe.length = 4"):
        profiles.load("mini", {"squad.recipe.length": 4})


def test_the_rule_takes_a_name_or_number_of_the_nearest_sentence(page):
    by_rule = page("04_squad", "words", "by_rule")[1]
    context = (
        "Amazon forest covers much of Brazil. Its river, the Amazon, is 6,400 km long. Peru has 13% of the forest."
    )
    assert by_rule("How long is the Amazon river?", context) == "6,400"
    assert by_rule("Which country has 13% of it?", context) == "Peru", "and not a number of the question's own"
    assert (
        by_rule("What does the Bank of England do?", "It prints money. The Bank of England sets rates.")
        == "England sets rates."
    )
    assert (
        by_rule("Who led the Army of the North?", "The Army of the North was led by John of Gaunt.") == "John of Gaunt"
    )


@pytest.mark.parametrize(("rule", "says"), [(20.0, "How sure that is"), (40.0, "it is not ahead of it")])
def test_the_page_says_first_whether_a_rule_does_as_well(page, rule, says):
    (in_short,) = page("04_squad", "in_short")
    found = [
        {"unit": {"model": "student", "seed": seed}, "metrics": {"f1": f1}} for seed, f1 in enumerate((29, 30, 31))
    ]
    text = in_short(found, [{"metrics": {"f1": rule}}])
    assert "F1 is 30.0" in text and f"gets {rule}" in text and says in text
    assert in_short([], []).startswith("–") and in_short(found, []).startswith("–")
    longer = [{"unit": {"model": "student", "epochs": 7}, "metrics": {"f1": f1}} for f1 in (40.0, 42.0)]
    assert in_short(found, [{"metrics": {"f1": rule}}], longer) == f"{text} With 7 epochs (4.9): student 41.0."


def test_a_unit_may_have_epochs_of_its_own(tiny, pretrained):
    """Which change the recipe that is trained by and recorded, and nothing else."""
    made = squad.Squad(
        profiles.load("mini", tiny | {"squad": FEW | {"longest_answer": 12}}),
        records.Workspace(profiles.load("mini"), str(pretrained)),
    )
    unit = {"model": "student", "seed": 0}
    once, longer = made.settings(unit), made.settings(unit | {"epochs": 3})
    assert once["recipe"]["epochs"] == 1 and longer["recipe"]["epochs"] == 3
    assert longer | {"recipe": once["recipe"]} == once
    assert once["stride"] == 16 and once["longest_answer"] == 12 and "evaluation_batch_size" not in once["recipe"]


def test_an_accent_of_its_own_belongs_to_its_letter_k12(tokenizer):
    """Trouble A25: tokenizers drop it, and the answer "cafe" was wrong against "café", written with e and an accent."""
    context = "Le cafe\u0301 noir."
    row = {
        "id": "q",
        "question": "the river",
        "context": context,
        "answers": {"text": ["cafe\u0301"], "answer_start": [3]},
    }
    cut = squad.windows(Dataset.from_dict({name: [value] for name, value in row.items()}), tokenizer, 40, 8)
    (example,), (span,) = cut.examples, cut.spans
    assert context[span[example["start_positions"], 0] : span[example["end_positions"], 1]] == "cafe\u0301"


def test_any_model_may_be_distilled_a_second_time(tiny, pretrained):
    """From its own start and recipe, guided by the teacher that was fine-tuned with the same seed."""
    profile = profiles.load("mini", tiny | {"squad": FEW | {"longest_answer": 12}})
    made = squad.Squad(profile, records.Workspace(profile, str(pretrained)))
    teacher, *rest = ({"model": name, "seed": 0} for name in ("teacher", "twin", "twin_d", "student_d"))
    (taught,) = made.run([teacher])
    plain, guided, student = map(made.settings, rest)
    assert guided["start"] == plain["start"] != student["start"]
    assert guided == plain | {"teacher": taught["details"]["checkpoint"], "temperature": profile.squad.temperature}
