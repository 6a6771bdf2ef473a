"""Notebook 12: what is read of a mixture of texts, in which order, and what of it a teacher is told."""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM

from helpers import InputError, profiles
from helpers.data import encoding, hub, miniworld
from helpers.experiments import pretraining, squad
from helpers.measure import records
from helpers.measure.metrics import GLUE
from helpers.models import checkpoints, distillation


@pytest.fixture(scope="module")
def tokenizer():
    return miniworld.tokenizer(miniworld.write(hub.WORLD))


@pytest.fixture
def nearer(page):
    """What the notebook defines, by name."""
    names = ["plain", "measured_texts", "as_blocks", "blocks_of", "Grouped", "Mixture", "Nearer", "Mixed"]
    names += [
        "Articles",
        "ArticlesOnTasks",
        "Judged",
        "OnReviews",
        "OnQuestions",
        "Longest",
        "StillLonger",
        "LongestOnTasks",
        "LongestOnReviews",
        "LongestAsked",
    ]
    return dict(zip(names, page("12_nearer_text", *names), strict=True))


def halves(block: np.ndarray, sep: int) -> list[tuple[int, ...]]:
    """The token ids of each text of a block, without [CLS] and [SEP]."""
    ends = np.flatnonzero(block == sep)
    return [tuple(ids) for ids in np.split(block[1 : ends[-1]], ends[:-1] - 1)]


def test_nothing_that_is_measured_on_is_read(nearer, tokenizer):
    """Told by token ids, which know of neither case nor spaces; a text that was cut off cannot be looked up."""
    profile = profiles.load("mini")
    stage = profile.distillation.training
    mixture, length = nearer["Mixture"](profile, tokenizer, stage), profile.corpus.block_length
    places = [("nyu-mll/glue", t, s, GLUE[t].columns) for t in profile.glue.tasks for s in GLUE[t].dev_splits]
    places += [("rajpurkar/squad", "plain_text", "validation", ("question", "context"))]
    places += [("stanfordnlp/imdb", "plain_text", "test", ("text",))]
    measured = set()
    for data_id, config, split, columns in places:
        rows, _ = hub.load(profile, data_id, config, split)
        texts = [text for column in columns for text in rows[column][:]]
        measured |= {tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]}
    ordinary = [block for block in mixture.blocks if len(block) < length]
    read = {tuple(i for i in ids if i != tokenizer.sep_token_id) for b in ordinary for ids in halves(b, 3)}
    assert tokenizer.sep_token_id == 3 and len(ordinary) > 1000
    assert not read & measured
    left_out = {name: source["left_out"] for name, (_, source) in mixture.parts.items()}
    assert left_out["qnli"] > 100, "questions of the mini-world's dev rows are in its training rows, too"
    assert {source["id"] for source in mixture.sources} == {
        f"miniworld:{name}" for name in ("Salesforce/wikitext", "stanfordnlp/imdb", "rajpurkar/squad", "nyu-mll/glue")
    }


def test_a_row_with_a_measured_text_is_left_out_whatever_its_case_and_spaces(nearer, tokenizer, monkeypatch):
    rows = {"first": ["Snow fell.", "It rains.", "A dog"], "second": ["yes", "  SNOW\n fell ", "a cat"]}
    source = {"id": "x", "rows": {"train": 3}}
    load = nearer["blocks_of"].__globals__["hub"]
    monkeypatch.setattr(load, "load", lambda *_: (Dataset.from_dict(rows), source))
    part = profiles.Source(id="x", config="y", columns=["first", "second"], share=1.0)
    given = profiles.load("mini"), tokenizer, part, 10**6, {nearer["plain"]("snow fell")}
    cut, told = nearer["blocks_of"](*given)
    assert len(cut) == 2 and told["left_out"] == 1 and told["capped"] == {"train": "2 blocks of 3 train rows"}
    rows["second"][2] = " "
    with pytest.raises(InputError, match="x y: row 2 lacks a text of"):
        nearer["blocks_of"](*given)
    wrong = part.model_copy(update={"columns": ["first", "third"]})
    with pytest.raises(InputError, match="x y has no column 'third', but first, second"):
        nearer["blocks_of"](*given[:2], wrong, *given[3:])


def test_lines_with_blank_ones_between_are_put_together_and_other_rows_are_not(nearer, tokenizer, monkeypatch):
    rows = {
        "text": [" = Snow = ", "", "the river is long", "", " = Rain = ", "a dog"],
        "same": ["the town", "a cat"] * 3,
    }
    monkeypatch.setattr(
        nearer["blocks_of"].__globals__["hub"], "load", lambda *_: (Dataset.from_dict(rows), {"id": "x"})
    )
    for column, texts in (("text", [" = Snow = the river is long", " = Rain = a dog"]), ("same", rows["same"])):
        part = profiles.Source(id="x", config="y", columns=[column], share=1.0)
        cut, told = nearer["blocks_of"](profiles.load("mini"), tokenizer, part, 10**6, set())
        assert sorted(block.tolist()[1:-1] for block in cut) == sorted(
            tokenizer(texts, add_special_tokens=False)["input_ids"]
        )
        assert told["texts"] == len(texts)


def test_pairs_are_one_block_with_types_as_the_tokenizer_has_them(nearer, tokenizer):
    rows = [("the river is long", "a river"), ("a " * 60, "the mountain"), ("snow", "rain fell on the town")]
    cut = nearer["as_blocks"](rows, tokenizer, 48)
    assert len(cut) == 3 and max(map(len, cut)) == 48, "what is too long is cut off the longer text"
    assert halves(cut[1], tokenizer.sep_token_id)[1][1:] == tuple(
        tokenizer("the mountain", add_special_tokens=False)["input_ids"]
    )
    stage = profiles.load("mini").distillation.training.model_copy(update={"steps": 1, "batch_size": 3})
    masking = encoding.Masking(tokenizer, rate=0.01)
    seen = nearer["Grouped"](cut, masking, stage, tokenizer.sep_token_id)
    for index in range(3):
        row, example = seen.rows[index], seen[index]
        theirs = tokenizer(*rows[row], truncation="longest_first", max_length=48, return_token_type_ids=True)
        assert example["token_type_ids"].tolist() == theirs["token_type_ids"]
        assert (example["input_ids"] == cut[row]).mean() > 0.9


def test_an_epoch_has_each_block_once_in_batches_of_like_length(nearer, tokenizer):
    random = np.random.default_rng(0)
    cut = [np.array([2, *random.integers(5, 90, size), 3]) for size in random.integers(4, 60, 330)]
    stage = profiles.load("mini").distillation.training.model_copy(update={"steps": 40, "batch_size": 32})
    seen = nearer["Grouped"](cut, encoding.Masking(tokenizer), stage, 3)
    assert len(seen) == 40 * 32 and seen.whole == 320
    assert len(seen.rows) >= len(seen)
    assert sorted(seen.rows[:320]) == sorted(set(seen.rows[:320])), "none twice"
    sizes = np.array([len(seen[index]["input_ids"]) for index in range(320)]).reshape(-1, 32)
    assert np.sum(sizes.max(axis=1) * 32) / sizes.sum() < 1.1, "hardly any padding"
    again = {seen.rows.index(row, 320): row for row in seen.rows[:20]}
    differ = [np.any(seen[seen.rows.index(row)]["labels"] != seen[at]["labels"]) for at, row in again.items()]
    assert np.mean(differ) > 0.8, "masked anew in the next epoch"
    with pytest.raises(InputError, match="5 blocks are less than a batch of 32"):
        nearer["Grouped"](cut[:5], encoding.Masking(tokenizer), stage, 3)


def test_a_bert_is_told_which_text_a_token_is_in_and_a_distilbert_is_not():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForMaskedLM(BertConfig(vocab_size=50, **shape)).eval()
    batch = {"input_ids": torch.tensor([[2, 7, 8, 3, 9, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    types = torch.tensor([[0, 0, 0, 0, 1, 1]])
    everywhere = torch.ones(1, 6, dtype=torch.bool)
    student = distillation.from_teacher(bert, [0, 1])
    with torch.no_grad():
        hidden, logits = checkpoints.predict(bert, batch | {"token_type_ids": types}, everywhere)
        theirs = bert(**batch, token_type_ids=types, output_hidden_states=True)
        without, _ = checkpoints.predict(bert, batch, everywhere)
        own = [checkpoints.predict(student, batch | more, everywhere)[0] for more in ({}, {"token_type_ids": types})]
    assert torch.allclose(hidden, theirs.hidden_states[-1], atol=1e-6)
    assert torch.allclose(logits, theirs.logits[0], atol=1e-6)
    assert (hidden - without).abs().max() > 1e-2
    assert torch.equal(*own) and torch.allclose(own[0], without, atol=1e-5), "it reads all of it as type 0"


def test_another_mixture_is_another_setting_and_the_teacher_stays(nearer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretraining.Pretraining, "_hash", lambda self, unit: "t" if unit["model"] == "teacher" else None
    )
    profile = profiles.load("mini")
    space = records.Workspace(profile, str(tmp_path))
    made = nearer["Nearer"]
    experiment, plain = made(profile, space), pretraining.Pretraining(profile, space)
    assert experiment.settings(pretraining.TEACHER) == plain.settings(pretraining.TEACHER)
    assert [unit["model"] for unit in experiment.units] == ["student", "twin"]
    unit = experiment.units[0]
    before = experiment.settings(unit)
    assert before["recipe"]["training"]["steps"] == 3 * plain.settings(unit)["recipe"]["training"]["steps"]
    alone, theirs = nearer["Articles"](profile, space), plain.settings(unit)
    assert alone.units == [unit] and type(alone.text) is encoding.PretrainingText
    more = theirs["recipe"]["training"] | {"steps": 3 * theirs["recipe"]["training"]["steps"]}
    assert alone.settings(unit) == theirs | {"recipe": theirs["recipe"] | {"training": more}}, "and all else alike"
    few = profile.model_copy(update={"mixture": {"articles": profile.mixture["articles"]}})
    assert made(few, space).settings(unit)["mixture"] != before["mixture"]
    with pytest.raises(InputError, match="student-seed0 is not there yet"):
        experiment.weights(unit)


def test_tasks_start_from_the_models_of_the_mixture_and_not_from_those_of_articles(nearer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pretraining.Pretraining, "known", lambda self, unit: f"{self.name} {unit['model']} {unit['seed']}"
    )
    profile = profiles.load("mini")
    space = records.Workspace(profile, str(tmp_path))
    for name in ("Judged", "OnReviews", "OnQuestions"):
        made = nearer[name](profile, space)
        starts = {unit["model"]: made.settings(unit)["start"] for unit in made.units}
        assert starts.pop("twin_nearer") == "nearer twin 0"
        assert set(starts.values()) == {"nearer student 0"}, name
        assert made.name == "nearer" and not made.keeps(made.units[0])
    alone = nearer["ArticlesOnTasks"](profile, space)
    assert {alone.settings(unit)["start"] for unit in alone.units} == {"articles student 0"}
    assert {unit["model"] for unit in alone.units} == {"student_articles"} and alone.name == "articles"
    for name in ("LongestOnTasks", "LongestOnReviews", "LongestAsked"):
        made = nearer[name](profiles.load("mini", {"longest": 7}), space)
        starts = {unit["model"]: made.settings(unit)["start"] for unit in made.units if unit["model"][-2:] != "_d"}
        own = {"student_longest": "longest student 0", "twin_longest": "longest twin 0"}
        again = {"student_longest_again": "longest student 1", "twin_longest_again": "longest twin 1"}
        of_one = {"student_longest": own["student_longest"]}
        expected = {"LongestOnTasks": own | again, "LongestAsked": own, "LongestOnReviews": of_one}[name]
        assert starts == expected, "of another pretraining seed"
        assert made.pretraining.units == [{"model": n, "seed": s} for s in (0, 1) for n in ("student", "twin")]
        assert made.name == "longest" and not made.keeps(made.units[0])
        steps = made.pretraining.recipe.training.steps
        assert steps == 7 * profile.distillation.training.steps
    on_tasks, _, asked = (
        nearer[name](profile, space) for name in ("LongestOnTasks", "LongestOnReviews", "LongestAsked")
    )
    judged = {model: {u["task"] for u in on_tasks.units if u["model"] == model} for model in on_tasks.models}
    assert judged["student_longest"] == judged["student_longest_again"] == {*profile.glue.tasks}, "for the mean of all"
    assert judged["twin_longest"] == {"cola", "sst2", "mrpc", "stsb"}
    guided = asked.units[-1]
    assert guided["model"] == "student_longest_d"
    with pytest.raises(InputError, match="teacher-.*has not been fine-tuned yet"):
        asked.settings(guided)
    teacher, theirs = guided | {"model": "teacher"}, squad.Squad(profile, space)
    found = records.Measurement({"f1": 50.0}, [], [], {"checkpoint": "its weights"})
    made = records.provenance(datetime.now(UTC), [], [])
    space.write("squad_longer", teacher, theirs.settings(teacher), found, made)
    assert asked.settings(guided)["teacher"] == "its weights", "notebook 04's, of as many epochs"
    assert asked.settings(guided)["start"] == "longest student 0"
