"""The stages, fine-tuned and measured; the ways of getting it wrong, as notebook 05 has them; and the timings."""

import copy
import math

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import ROOT, InputError, profiles
from helpers.data import encoding
from helpers.experiments import perplexity
from helpers.measure import records
from helpers.models import distillation, masked_lm

FEW = {"models": ["student"], "seeds": [0, 1], "draws": 2, "train_blocks": 64, "blocks": 6, "pseudo_blocks": 2}
FEW |= {"mistake_rows": 8, "sentences": 6, "rounds": 3}


def of_notebook(tokenizer) -> dict:
    """What notebook 05's own cells define: the `ways`, and `fresh_head`."""
    cells = nbformat.read(ROOT / "notebooks/05_perplexity.ipynb", as_version=4).cells
    made = {"torch": torch, "F": F, "copy": copy, "tokenizer": tokenizer}
    exec("\n".join(cell.source for cell in cells if "(batch):" in cell.source), made)
    return made


@pytest.fixture(scope="module")
def stages(tiny, pretrained) -> perplexity.Stages:
    profile = profiles.load("mini", tiny | {f"perplexity.{name}": value for name, value in FEW.items()})
    return perplexity.Stages(profile, records.Workspace(profile, str(pretrained)))


@pytest.mark.slow
def test_each_stage_is_learned_once_and_the_first_seed_kept(stages, monkeypatch):
    units = [unit for unit in stages.ready if unit["text"] == "wikitext"]
    tuned = [unit for unit in units if unit["stage"] == "wikitext"]
    assert stages.seconds(tuned[0]) > stages.seconds(units[0]) > 0, "it is to be fine-tuned first"
    found = stages.run(units)
    assert [record["unit"] for record in found] == units and not stages.unmeasured(units)
    assert [stages.checkpoint(unit).is_dir() for unit in tuned] == [True, False]
    for record in found:
        curve = [line for line in record["details"].get("curve", []) if "heldout_masked_lm_loss" in line]
        assert len(curve) == (1 + stages.own.epochs if record["unit"]["stage"] in perplexity.TUNED_ON else 0)
    loss = {(r["unit"]["stage"], r["unit"].get("seed")): r["metrics"]["masked_lm_loss"] for r in found}
    assert loss["wikitext", 0] != loss["wikitext", 1] and loss["wikitext", 0] < loss["base", None]
    learned, real = [], perplexity.train
    monkeypatch.setattr(perplexity, "train", lambda trainer: learned.append(trainer) or real(trainer))
    stages.load(tuned[0])
    assert not learned
    again = perplexity.Stages(stages.profile, stages.space, fresh=True)
    again.load(tuned[0])
    again.load(tuned[0])
    assert len(learned) == 1, "made anew, and once"


def test_a_loss_is_the_mean_over_tokens_and_told_by_part(stages):
    text, model = stages.blocks("gsm8k_answers"), stages.load({"model": "student", "stage": "base"})
    assert len(text.blocks) == FEW["blocks"] and "6 of" in text.source["capped"]["test"]
    scores, details = stages.masked_lm(model, text)
    draws = [encoding.MaskedBlocks(text.blocks, stages.masking(draw)) for draw in range(2)]
    losses = [np.concatenate(masked_lm.masked_losses(model, masked, stages.tokenizer)) for masked in draws]
    assert scores["masked_lm_loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["masked_lm_loss"]), rel=1e-5)
    assert scores["masked_lm_loss_low"] <= scores["masked_lm_loss"] <= scores["masked_lm_loss_high"]
    assert details["draws"] == pytest.approx([own.mean() for own in losses], rel=1e-5)
    assert scores["masked_lm_loss_std_of_draws"] == pytest.approx(np.std(details["draws"], ddof=1))
    total, count = np.concatenate(losses).sum(), sum(map(len, losses))
    for part, groups in (("frequency", len(perplexity.FREQUENCIES)), ("position", perplexity.PARTS)):
        sums, counts = (details[f"by_{part}"][name] for name in ("sums", "counts"))
        assert len(sums) == groups and sum(sums) == pytest.approx(total, rel=1e-5) and sum(counts) == count
    sums, counts = (records.unpack(details[f"document_{name}"]) for name in ("sums", "counts"))
    assert sums.sum() == pytest.approx(total, rel=1e-5) and counts.sum() == count
    found, few = stages.pseudo(model, text), [text.blocks[0], text.blocks[-1]]
    logs = masked_lm.pseudo_log_likelihoods(model, few, stages.tokenizer)
    words = sum(masked_lm.words_of(ids, stages.tokenizer) for ids in few)
    for name, own in (("", logs.alone), ("_within_word", logs.within_word)):
        own = -np.concatenate(own)
        assert found[f"pseudo_perplexity{name}"] == pytest.approx(math.exp(np.nanmean(own)), rel=1e-5)
        assert found[f"pseudo_perplexity{name}_per_word"] == pytest.approx(math.exp(np.nansum(own) / words), rel=1e-5)


def test_what_is_not_there_is_named_and_left_out(stages, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(perplexity.quantization, "why_no_bits", lambda device: "bitsandbytes is not installed")
    assert list(stages.first) == ["base", "wikitext", "gsm8k"]
    assert not any("int8" in unit["stage"] for unit in stages.ready) and "bitsandbytes is not" in stages.plan()
    profile = profiles.load("mini", tiny | {"perplexity.models": ["student"]})
    with pytest.raises(InputError, match="run notebook 01 first"):
        perplexity.Stages(profile, records.Workspace(profile, str(tmp_path))).plan()


def test_each_mistake_has_the_labels_of_its_name(tokenizer):
    cls, sep, pad, mask = (getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad", "mask"))
    text, hidden = [cls, 7, 8, 9, sep, pad], [cls, 7, mask, 9, sep, pad]
    none, ways = encoding.IGNORED, of_notebook(tokenizer)["ways"]
    batch = {"input_ids": hidden, "labels": [none, none, 8, none, none, none], "originals": text}
    batch = {name: torch.tensor([values]) for name, values in batch.items()}
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 0]])
    batch["ordinary"] = torch.tensor([[False, True, True, True, False, False]])

    def made(name: str) -> tuple[list, list]:
        wrong = ways[name]({key: values.clone() for key, values in batch.items()})
        return wrong["input_ids"][0].tolist(), wrong["labels"][0].tolist()

    assert made("nothing masked") == (text, [none, 7, 8, 9, none, none])
    assert made("everything masked") == ([cls, mask, mask, mask, sep, pad], [none, 7, 8, 9, none, none])
    assert made("padding scored") == (hidden, [none, none, 8, none, none, pad])
    assert made("targets shifted by one") == (text, [7, 8, 9, none, none, none])
    assert made("labels copied from the inputs") == (text, text)
    inputs, labels = made("labels shuffled")
    assert inputs == text and sorted(labels[1:4]) == [7, 8, 9] and labels[:1] + labels[4:] == [none] * 3
    assert labels[1:4] != [7, 8, 9]


def test_the_right_way_among_the_mistakes_is_the_masked_lm_loss(teacher, tokenizer, cut, page):
    (padded_losses,) = page("05_perplexity", "padded_losses")
    masked, padding = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer)), encoding.Padding(0, 32)
    given = []
    sums, counts = padded_losses(teacher, masked, padding, lambda batch: given.append(batch) or batch, 3)
    losses = np.concatenate(masked_lm.masked_losses(teacher, masked, tokenizer))
    assert sums.sum() / counts.sum() == pytest.approx(losses.mean(), abs=1e-5) and counts.sum() == len(losses)
    for ids, row in zip(cut, torch.cat([batch["originals"] for batch in given]), strict=True):
        assert row.tolist() == [*ids, *[0] * (32 - len(ids))]
    ordinary = torch.cat([batch["ordinary"] for batch in given]).sum(dim=1).tolist()
    assert ordinary == [len(ids) - 2 for ids in cut], "no padding, and neither [CLS] nor [SEP]"


def test_mistakes_are_made_on_every_stage_and_the_head_on_the_first(stages, page):
    left = {"head left as initialised": of_notebook(stages.tokenizer)["fresh_head"]}
    *_, mistakes = page("05_perplexity", "Trial", "padded_losses", "raw_rows", "mistaken", "Mistakes")
    trial = mistakes(stages, of_notebook(stages.tokenizer)["ways"], left)
    tried = [stages.first[name] for name in ("base", "int8", "wikitext") if name in stages.first]
    assert len(trial.units) == (7 * len(tried) + 1) * 2
    found = {r["unit"]["mistake"]: r["metrics"] for r in trial.run(trial.units[:14] + trial.units[-2:])}
    assert found["nothing masked"]["loss"] != found["right"]["loss"] != found["head left as initialised"]["loss"]
    assert found["labels copied from the inputs"]["scored"] == 8 * stages.profile.corpus.block_length
    batches = np.array([2.0, 0.0, 30.0]), np.array([2, 0, 10])
    trial.measure.__globals__["padded_losses"] = lambda *_: batches
    mean = trial.measure(trial.units[0]).metrics["mean_of_batch_perplexities"]
    assert mean == pytest.approx((math.e + math.e**3) / 2), "a batch without any scored token is no batch"


def test_the_same_masks_leave_less_noise_in_a_difference(stages, monkeypatch, page):
    *_, redrawn = page("05_perplexity", "Trial", "by_draw", "Redrawn")
    base = stages.load({"model": "student", "stage": "base"})
    monkeypatch.setattr(stages, "load", lambda unit: base)
    (unit,) = redrawn(stages).units
    measured = redrawn(stages).measure(unit)
    gaps = measured.details["gaps"]
    assert len(gaps["same"]) == len(gaps["redrawn"]) == 5
    assert np.abs(gaps["same"]).max() < 1e-5 < 0.01 < np.std(gaps["redrawn"]), "they are one and the same model"
    assert measured.metrics["gap_redrawn_std"] == pytest.approx(np.std(gaps["redrawn"], ddof=1))


def test_reading_and_scoring_are_timed_on_the_same_input(stages, page):
    used = "Trial", "every_stage", "in_turn", "speeds", "one_token_at_a_time", "loop_and_together", "draw_sentences"
    *_, throughput, scoring = page("05_perplexity", *used, "Throughput", "Scoring")
    (read,), (scored,) = throughput(stages).run(), scoring(stages).run()
    names = {name for name in stages.first if name != "gsm8k"} | ({"half"} if stages.precision != "fp32" else set())
    assert set(read["details"]["seconds"]) == {f"student {name}" for name in names}
    assert all(len(own) == FEW["rounds"] for own in read["details"]["seconds"].values())
    assert read["metrics"]["times_as_fast_student_base"] == 1 and read["metrics"]["tokens_per_s_student_wikitext"] > 0
    assert scored["metrics"]["sentences"] == FEW["sentences"] and set(scored["details"]["seconds"]) == {
        "plain",
        "together",
    }
    for end in ("", "_within_word"):
        assert scored["metrics"][f"largest_relative_difference{end}"] < 1e-3


@pytest.mark.parametrize("distilled", [False, True])
def test_a_fresh_head_forgets_and_leaves_the_original_alone(teacher, tokenizer, cut, distilled):
    model = distillation.from_teacher(teacher, [0, 3]) if distilled else teacher
    before = {name: values.clone() for name, values in model.state_dict().items()}
    fresh = of_notebook(tokenizer)["fresh_head"](model)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    changed = {name for name, values in fresh.state_dict().items() if not torch.equal(values, before[name])}
    assert changed and all(name.startswith(("cls.predictions", "vocab_")) for name in changed)
    assert not any("embeddings" in name or name == "vocab_projector.weight" for name in changed)
