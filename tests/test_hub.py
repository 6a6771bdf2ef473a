"""Real checkpoints and data by their Hub ids; skipped where no Hub is served to the tests."""

import os

import numpy as np
import pytest
import torch

from helpers import InputError, profiles
from helpers.data import encoding, hub
from helpers.experiments import edge, pretraining, squad
from helpers.measure import machine, metrics, records
from helpers.models import checkpoints, distillation, masked_lm

NO_HUB = "HF_ENDPOINT" not in os.environ
pytestmark = [pytest.mark.hub, pytest.mark.skipif(NO_HUB, reason="HF_ENDPOINT is not set: no Hub to load from")]
FEW = {"corpus.train_blocks": 20, "corpus.heldout_blocks": 4, "corpus.curve_blocks": 2}


@pytest.fixture(scope="module", autouse=True)
def threads():
    """Models of real size gain by all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(machine.usable_cores())
    yield
    torch.set_num_threads(before)


def test_a_checkpoint_without_a_head_is_recognised_and_its_revision_known():
    model, tokenizer, source = checkpoints.load_masked_lm("sentence-transformers/all-MiniLM-L6-v2")
    assert not source["head"] and source["weights"] == "pretrained" and len(source["revision"]) == 40
    assert model.dtype == torch.float32 and len(tokenizer) == 30_522
    with pytest.raises(InputError, match="has no masked-LM head: give it one in teacher_training"):
        profile = profiles.load("laptop", FEW | {"teacher_training": {}})
        pretraining.Pretraining(profile, records.Workspace(profile)).teacher  # noqa: B018


def test_a_part_of_a_data_set_is_marked():
    profile = profiles.load("laptop")
    _, whole = hub.load(profile, "Salesforce/wikitext", "wikitext-2-v1", "train")
    assert whole["rows"] == {"train": 36_718} and whole["partial"] is False and whole["revision"]
    dataset, part = hub.load(profile, "Salesforce/wikitext", "wikitext-2-raw-v1", "train")
    assert part["partial"] is (len(dataset) < 36_718)


def test_what_the_hub_does_not_have_is_refused():
    with pytest.raises(InputError, match="'nobody/nothing': the Hub has no model of that name"):
        checkpoints.fetch("nobody/nothing")
    with pytest.raises(InputError, match="'nobody/nothing'"):
        hub.load(profiles.load("laptop"), "nobody/nothing", "main", "train")


def test_a_revision_can_be_pinned_and_another_stops_the_run():
    """A6.6 of the safety points: what is pinned is what is loaded, and settings say so; what isn't there is refused."""
    model, data = "sentence-transformers/all-MiniLM-L6-v2", "nyu-mll/glue"
    source = checkpoints.fetch(model)[1]
    assert checkpoints.fetch(f"{model}@{source['revision']}")[1] == source
    with pytest.raises(InputError, match="has no revision '1234567'|@1234567: it is pinned"):
        checkpoints.fetch(f"{model}@1234567")
    plain = profiles.load("laptop")
    revision = hub.state(plain, data)["data"][data]
    pinned = profiles.load("laptop", {"revisions": {data: revision}})
    assert hub.state(pinned, data) == hub.state(plain, data)
    assert hub.load(pinned, data, "rte", "validation")[1]["revision"] == revision
    with pytest.raises(InputError, match=f"data set '{data}'"):
        hub.load(profiles.load("laptop", {"revisions": {data: "f" * 40}}), data, "rte", "validation")


def test_unknown_words_are_never_masked():
    profile = profiles.load("laptop", FEW)
    tokenizer = checkpoints.load_tokenizer(profile.teacher)
    blocks, _ = encoding.corpus_blocks(profile, tokenizer, "wikitext-2-v1", "train", cap=200)
    masking = encoding.Masking(tokenizer)
    assert sum((block == tokenizer.unk_token_id).sum() for block in blocks) > 100
    for block in blocks:
        assert (masking(block)[1] != tokenizer.unk_token_id).all()


def test_on_a_phone_it_is_whom_claims_are_judged_by(tmp_path):
    """In t4 the released DistilBERT, as it comes from the Hub; where there is none, our student."""
    t4, laptop = (profiles.load(name, {"device": "cpu"}) for name in ("t4", "laptop"))
    released, ours = (edge.Deployed(one, records.Workspace(one, str(tmp_path))) for one in (t4, laptop))
    assert released.model == "released" and ours.model == "student"
    assert released.losses.source.weights and (released.losses.source.whole / "model.safetensors").exists()
    assert ours.losses.source.weights is None, "notebook 01 has not run here"
    assert {unit["model"] for unit in released.losses.units} == {"released"}


def test_two_steps_of_t4_at_full_size(tmp_path):
    """BERT-base to six layers, as on a T4, on the CPU: the sizes, and a step of the triple loss."""
    settings = FEW | {"distillation.training.steps": 2, "distillation.training.batch_size": 2, "device": "cpu"}
    settings |= {"distillation.training.accumulation": 2, "distillation.variants": ["student"]}
    settings["corpus.train"] = "wikitext-2-raw-v1"  # WikiText-103 takes minutes to load
    profile = profiles.load("t4", settings | {"corpus.block_length": 32, "distillation.training.evaluations": 1})
    space = records.Workspace(profile, str(tmp_path))
    made = pretraining.Pretraining(profile, space)
    measured = made.measure({"model": "student", "seed": 0})
    assert measured.metrics["parameters"] == 66_985_530 and made.layers == [0, 2, 4, 7, 9, 11]
    random = measured.models[0]["revision"].startswith(records.RANDOM_REVISION)
    assert space.name == ("t4-random" if random else "t4")
    assert measured.models[0]["weights"] == ("random" if random else "pretrained")
    assert checkpoints.parameters(made.teacher) == 109_514_298


@pytest.mark.parametrize(("split", "lost"), [("train", 1), ("validation", 62)])
def test_every_answer_of_squad_comes_back_or_ends_within_a_token(split, lost, page):
    """Of 8,079 and of 18,216 different answers; the few that don't are "8" for "18" and the like."""
    profile = profiles.load("laptop")
    tokenizer = checkpoints.load_tokenizer(profile.teacher)
    dataset, _ = hub.load(profile, "rajpurkar/squad", "plain_text", split)
    cut = squad.windows(dataset, tokenizer, profile.squad.recipe.length, profile.squad.stride)
    (lost_answers,) = page("04_squad", "lost_answers")
    missing = lost_answers(dataset, cut)
    assert len(missing) == lost
    for answer, nearest in missing:
        assert answer in nearest and len(nearest) > len(answer), "a token reaches beyond it; none is out of sight"
    if split == "train":  # what a model is trained on are the same places
        contexts, golds = list(dataset["context"]), list(dataset["answers"])
        for row, example, span in zip(cut.rows, cut.examples, cut.spans, strict=True):
            first, last = span[example["start_positions"]], span[example["end_positions"]]
            if first[0] >= 0:
                context, (text,), (start,) = contexts[row], golds[row]["text"], golds[row]["answer_start"]
                assert first[0] <= start and text in context[first[0] : last[1]]


def test_squad_scores_are_torchmetrics_on_the_whole_dev_set():
    """Question by question, on answers cut too short or too long."""
    from torchmetrics.functional.text import squad as reference

    dataset, _ = hub.load(profiles.load("laptop"), "rajpurkar/squad", "plain_text", "validation")
    random, apart, right = np.random.default_rng(0), [], []
    for name, context, gold in zip(dataset["id"], dataset["context"], dataset["answers"], strict=True):
        start, text = gold["answer_start"][-1], gold["text"][-1]
        first = max(0, start - random.choice([0, 0, 0, 4, 30]))
        guess = context[first : start + len(text) + random.choice([-3, 0, 0, 1, 20])]
        found = metrics.answer_scores(guess, gold["text"])
        other = reference([{"prediction_text": guess, "id": name}], [{"answers": gold, "id": name}])
        right.append(found[0])
        if found != pytest.approx((other["exact_match"].item() / 100, other["f1"].item() / 100), abs=1e-5):
            apart.append((guess, found))
    # Where nothing is left of answer and gold, SQuAD 1.1's script gives no F1 and torchmetrics gives all of it.
    assert apart == [(".", (1.0, 0.0))]
    assert 0.2 < np.mean(right) < 0.8 and len(right) == 10_570


def test_real_sentences_all_together_are_one_token_at_a_time(one_by_one, page):
    """200 sentences of WikiText-2, cut short, and a student of a real encoder: both ways against their plain loops."""
    profile = profiles.load("laptop")
    teacher, tokenizer, _ = checkpoints.load_masked_lm(profile.teacher)
    student = distillation.from_teacher(teacher, [0, 5])
    (draw_sentences,) = page("05_perplexity", "draw_sentences")
    cut, _ = draw_sentences(profile, tokenizer, 200)
    assert len(cut) == 200
    shortened = [np.append(ids[:-1][:11], tokenizer.sep_token_id) for ids in cut]
    found = masked_lm.pseudo_log_likelihoods(student, shortened, tokenizer)
    for number, ids in enumerate(shortened):
        alone = one_by_one(student, ids, tokenizer, within_word=False)
        np.testing.assert_allclose(found.alone[number][1:-1], alone[1:-1], rtol=1e-4)
        if any(piece.startswith("##") for piece in tokenizer.convert_ids_to_tokens(ids.tolist())):
            alone = one_by_one(student, ids, tokenizer, within_word=True)
        np.testing.assert_allclose(found.within_word[number][1:-1], alone[1:-1], rtol=1e-4)
