"""Masked-LM loss and pseudo-perplexity against plain loops, uniform and all-knowing models; the mistakes, labelled."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import (
    InputError,
    data,
    language,
    miniworld,
    mistakes,
    models,
    perplexity,
    profiles,
    quantization,
    students,
    tables,
)
from helpers.significance import mean_interval


@pytest.fixture(scope="module")
def pieces():
    """The mini-world's tokenizer, which cuts words into pieces."""
    return miniworld.tokenizer(miniworld.write(data.WORLD))


@pytest.fixture(scope="module")
def reader(pieces) -> BertForMaskedLM:
    """A random BERT for it whose guesses are far from uniform."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(pieces), max_position_embeddings=64, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def texts(pieces) -> list[np.ndarray]:
    """Texts of unequal length with words of one, two and more pieces."""
    random, ordinary = np.random.default_rng(0), np.arange(5, len(pieces))
    cut = [random.choice(ordinary, size) for size in (1, 2, 9, 30, 17, 9)]
    return [np.array([pieces.cls_token_id, *ids, pieces.sep_token_id]) for ids in cut]


def hidden_one_by_one(model, ids, tokenizer, within_word: bool) -> np.ndarray:
    """Pseudo-log-likelihoods by definition, one copy at a time."""
    found = np.full(len(ids), np.nan)
    words = tokenizer.convert_ids_to_tokens(ids.tolist())
    head = getattr(model, "vocab_transform", None) or model.cls  # it scores each token by itself: one is enough
    for place in range(1, len(ids) - 1):
        copied, end = ids.copy(), place + 1
        while within_word and words[end].startswith("##"):
            end += 1
        copied[place:end] = tokenizer.mask_token_id
        with torch.no_grad(), head.register_forward_pre_hook(lambda _, given, at=place: (given[0][:, [at]],)):
            logits = model(input_ids=torch.tensor(copied)[None], attention_mask=torch.ones(1, len(ids))).logits
        found[place] = logits[0, 0].double().log_softmax(-1)[ids[place]].item()
    return found


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 8192])
def test_all_copies_together_are_one_at_a_time(reader, texts, pieces, tokens_per_batch):
    found = perplexity.pseudo_log_likelihoods(reader, texts, pieces, tokens_per_batch)
    for number, ids in enumerate(texts):
        np.testing.assert_allclose(found.alone[number], hidden_one_by_one(reader, ids, pieces, False), rtol=1e-4)
        np.testing.assert_allclose(found.within_word[number], hidden_one_by_one(reader, ids, pieces, True), rtol=1e-4)
        np.testing.assert_allclose(
            perplexity.one_token_at_a_time(reader, ids, pieces),
            hidden_one_by_one(reader, ids, pieces, False),
            rtol=1e-4,
        )
    differ = [~np.isclose(a, w, equal_nan=True) for a, w in zip(found.alone, found.within_word, strict=True)]
    assert sum(map(np.sum, differ)) > 5, "there are words of several pieces among them"


def test_words_end_where_the_next_begins(pieces):
    ids = np.array(pieces("Kettlewick, zzq")["input_ids"])
    words = pieces.convert_ids_to_tokens(ids.tolist())
    ends = perplexity.word_ends(ids, pieces)
    assert words[1] == "kettlewick" and words[3] == "z" and words[4].startswith("##"), words
    assert ends.tolist() == [1, 2, 3, *[len(ids) - 1] * (len(ids) - 4), len(ids)]
    assert perplexity.words_of(ids, pieces) == 3


def test_order_batches_and_padding_change_no_loss(teacher, tokenizer, cut):
    masking = data.Masking(tokenizer, seed=3)
    found = perplexity.masked_losses(teacher, data.MaskedBlocks(cut, masking), tokenizer, batch_size=7)
    for size, order in (
        (1, range(len(cut))),
        (64, range(len(cut))),
        (5, np.random.default_rng(0).permutation(len(cut))),
    ):
        turned = perplexity.masked_losses(
            teacher, data.MaskedBlocks([cut[place] for place in order], masking), tokenizer, size
        )
        for own, place in zip(turned, order, strict=True):
            np.testing.assert_allclose(own, found[place], atol=1e-5)


def test_masked_losses_are_those_of_the_whole_model(teacher, tokenizer, cut):
    blocks = data.MaskedBlocks(cut, data.Masking(tokenizer, 0.3))
    for number, own in enumerate(perplexity.masked_losses(teacher, blocks, tokenizer)):
        masked = blocks[number]
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor(masked["input_ids"])[None]).logits[0].double()
        at = np.flatnonzero(masked["labels"] != data.IGNORED)
        assert own == pytest.approx([-logits[p].log_softmax(-1)[masked["labels"][p]].item() for p in at], abs=1e-5)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(teacher, tokenizer, cut, distilled):
    model = students.from_teacher(teacher, [0, 3]) if distilled else teacher
    norm = model.vocab_layer_norm if distilled else model.cls.predictions.transform.LayerNorm
    with torch.no_grad():  # nothing of the text reaches the decoder
        norm.weight.zero_()
        norm.bias.zero_()
        model.get_output_embeddings().bias.zero_()
    losses = np.concatenate(perplexity.masked_losses(model, data.MaskedBlocks(cut, data.Masking(tokenizer)), tokenizer))
    assert math.exp(losses.mean()) == pytest.approx(len(tokenizer), rel=1e-5)
    found = perplexity.pseudo_log_likelihoods(model, cut[:3], tokenizer)
    assert np.exp(-np.nanmean(np.concatenate(found.within_word))) == pytest.approx(len(tokenizer), rel=1e-5)


def test_a_model_that_knows_the_text_has_a_perplexity_of_one(teacher, tokenizer, monkeypatch):
    """It says at each place what belongs there, so a prediction taken from any other place would show."""
    by_place = np.random.default_rng(0).permutation(np.arange(5, len(tokenizer)))
    known = [np.array([tokenizer.cls_token_id, *by_place[:size], tokenizer.sep_token_id]) for size in (30, 4, 17)]

    def places(model, input_ids, attention_mask):
        return torch.arange(input_ids.shape[1])[None, :, None].expand(len(input_ids), -1, 1)

    def certain(model, hidden):
        return 1e4 * torch.nn.functional.one_hot(torch.tensor(by_place)[hidden[..., 0] - 1], len(tokenizer))

    monkeypatch.setattr(models, "encode", places)
    monkeypatch.setattr(models, "vocabulary_logits", certain)
    blocks = data.MaskedBlocks(known, data.Masking(tokenizer, 0.4))
    assert np.concatenate(perplexity.masked_losses(teacher, blocks, tokenizer)).max() == 0
    found = perplexity.pseudo_log_likelihoods(teacher, known, tokenizer)
    assert all(np.isfinite(logs).sum() == len(ids) - 2 for logs, ids in zip(found.alone, known, strict=True))
    assert np.nanmin(np.concatenate(found.alone + found.within_word)) == 0


def test_bad_input_is_refused_in_one_line(teacher, tokenizer, pieces, cut):
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    for wrong, complaint in (
        ([], "there is no text to predict"),
        ([cut[0], np.array([cls, sep])], "text 1 is empty, or has only special tokens and padding: leave it out"),
        ([np.array([pad, pad, pad])], "text 0 is empty, or has only special tokens and padding"),
        ([np.full(65, 7)], "text 0 has 65 tokens, and the model takes 64: cut it into blocks"),
    ):
        for score in (perplexity.pseudo_log_likelihoods, lambda *given: perplexity.check(given[0], given[2], given[1])):
            with pytest.raises(InputError, match=complaint):
                score(teacher, wrong, tokenizer)
    masked = data.MaskedBlocks(cut, data.Masking(tokenizer))
    with pytest.raises(InputError, match="1,550 tokens, the model predicts 45; .* load both from the same checkpoint"):
        perplexity.masked_losses(teacher, masked, pieces)
    teacher.config.pad_token_id = 7
    with pytest.raises(InputError, match="it pads with 0, the model with 7: load both from the same checkpoint"):
        perplexity.masked_losses(teacher, masked, tokenizer)
    for headless in (BertModel(BertConfig(vocab_size=45)), T5ForConditionalGeneration(T5Config(vocab_size=45, d_ff=8))):
        with pytest.raises(InputError, match="has no masked-LM head that is known here: give a BertForMaskedLM"):
            perplexity.masked_losses(headless, masked, tokenizer)
    decoder = BertLMHeadModel(BertConfig(**teacher.config.to_dict() | {"is_decoder": True}))
    for model in (decoder, GPT2LMHeadModel(GPT2Config(vocab_size=45, n_embd=8, n_layer=1, n_head=1))):
        with pytest.raises(InputError, match="LMHeadModel reads from left to right: give a masked language model"):
            perplexity.masked_losses(model, masked, tokenizer)


def test_each_mistake_has_the_labels_of_its_name(tokenizer):
    cls, sep, pad, mask = (getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad", "mask"))
    text, hidden = [cls, 7, 8, 9, sep, pad], [cls, 7, mask, 9, sep, pad]
    none = data.IGNORED
    batch = {"input_ids": hidden, "labels": [none, none, 8, none, none, none], "originals": text}
    batch = {name: torch.tensor([values]) for name, values in batch.items()}
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 0]])

    def made(name: str) -> tuple[list, list]:
        wrong = mistakes.WAYS[name]({key: values.clone() for key, values in batch.items()}, tokenizer)
        return wrong["input_ids"][0].tolist(), wrong["labels"][0].tolist()

    assert made("right") == (hidden, [none, none, 8, none, none, none])
    assert made("nothing masked") == (text, [none, 7, 8, 9, none, none])
    assert made("everything masked") == ([cls, mask, mask, mask, sep, pad], [none, 7, 8, 9, none, none])
    assert made("padding scored") == (hidden, [none, none, 8, none, none, pad])
    assert made("targets shifted by one") == (text, [7, 8, 9, none, none, none])
    assert made("labels copied from the inputs") == (text, text)
    inputs, labels = made("labels shuffled")
    assert inputs == text and sorted(labels[1:4]) == [7, 8, 9] and labels[:1] + labels[4:] == [none] * 3
    assert labels[1:4] != [7, 8, 9]


def test_the_right_way_among_the_mistakes_is_the_masked_lm_loss(teacher, tokenizer, cut):
    masking = data.Masking(tokenizer)
    sums, counts = mistakes.batch_losses(teacher, cut, tokenizer, mistakes.right, 32, masking, batch_size=3)
    losses = np.concatenate(perplexity.masked_losses(teacher, data.MaskedBlocks(cut, masking), tokenizer))
    assert sums.sum() / counts.sum() == pytest.approx(losses.mean(), abs=1e-5) and counts.sum() == len(losses)
    mean = mistakes.mean_of_perplexities(np.array([2.0, 0.0, 30.0]), np.array([2, 0, 10]))
    assert mean == pytest.approx((math.e + math.e**3) / 2), "a batch without any scored token is no batch"


def test_the_same_masks_leave_less_noise_in_a_difference(teacher, tokenizer, cut):
    maskings = [data.Masking(tokenizer, seed=draw) for draw in range(4)]
    found = mistakes.gaps(teacher, students.from_teacher(teacher, [0, 1, 2, 3]), cut, tokenizer, maskings)
    assert len(found["same"]) == len(found["redrawn"]) == 4
    assert np.abs(found["same"]).max() < 1e-5 < 0.01 < np.std(found["redrawn"]), "they are one and the same model"


@pytest.mark.parametrize("distilled", [False, True])
def test_a_fresh_head_forgets_and_leaves_the_original_alone(teacher, tokenizer, cut, distilled):
    model = students.from_teacher(teacher, [0, 3]) if distilled else teacher
    before = {name: values.clone() for name, values in model.state_dict().items()}
    fresh = mistakes.fresh_head(model)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    changed = {name for name, values in fresh.state_dict().items() if not torch.equal(values, before[name])}
    assert changed and all(name.startswith(("cls.predictions", "vocab_")) for name in changed)
    assert not any("embeddings" in name or name == "vocab_projector.weight" for name in changed)


def test_the_interval_of_a_mean_over_tokens_takes_whole_texts():
    random = np.random.default_rng(0)
    counts = random.integers(5, 50, 400)
    means = random.normal(3, 1, 400)  # all tokens of a text are alike: its tokens are one piece of evidence
    low, high = mean_interval(means * counts, counts)
    spread = np.sqrt(np.sum(counts**2 * (means - 3) ** 2)) / counts.sum()
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1) and low < 3.1 and high > 2.9


def test_problems_come_with_their_answers_and_without_the_calculator():
    profile = profiles.load("mini")
    asked, source = data.problems(profile, "test", answers=False)
    worked, _ = data.problems(profile, "test")
    assert len(asked) == len(worked) == source["rows"]["test"] == 100
    assert all(text.startswith(question + "\n") for question, text in zip(asked, worked, strict=True))
    assert "<<" not in "".join(worked) and "#### " in worked[0] and "=" in worked[0]


@pytest.mark.parametrize("distilled", [False, True])
def test_eight_bits_are_near_and_leave_the_head_alone(teacher, tokenizer, cut, tmp_path, distilled):
    model = students.from_teacher(teacher, [0, 3]) if distilled else teacher
    models.save(model, tokenizer, tmp_path / "m")
    small = quantization.load_int8(tmp_path / "m", torch.device("cpu"))
    kinds = {name: values.dtype for name, values in small.named_parameters()}
    inner = [name for name in kinds if "layer" in name and name.endswith("weight") and "norm" not in name.lower()]
    assert {kinds[name] for name in inner if not name.startswith("vocab")} == {torch.int8}
    assert {kinds[name] for name in kinds if name.startswith(("cls", "vocab")) or "embed" in name} == {torch.float32}
    blocks = data.MaskedBlocks(cut, data.Masking(tokenizer))
    ours, theirs = (np.concatenate(perplexity.masked_losses(m, blocks, tokenizer)) for m in (small, model))
    assert 1e-6 < np.abs(ours - theirs).mean() < 0.01
    full = dict(model.named_modules())
    for name, layer in small.named_modules():
        if type(layer).__name__ == "Linear8bitLt":
            step = layer.state.SCB[:, None] / 127  # a row has its largest weight at 127 steps
            assert ((layer.weight.data * step - full[name].weight).abs() <= 0.6 * step).all(), (
                name
            )  # half a step, and fp16


@pytest.mark.parametrize("broken", [False, True])
def test_without_bitsandbytes_eight_bits_are_refused(monkeypatch, tmp_path, broken):
    quantization.why_no_bits.cache_clear()
    if broken:
        monkeypatch.setattr("bitsandbytes.nn.Linear8bitLt.forward", lambda *_: 1 / 0)
        reason = r"bitsandbytes does not work here \(ZeroDivisionError: division by zero\)"
    else:
        monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
        reason = "bitsandbytes is not installed: pip install -r requirements.txt"
    with pytest.raises(InputError, match=reason):
        quantization.load_int8(tmp_path, torch.device("cpu"))
    quantization.why_no_bits.cache_clear()


def scored(model: str, stage: str, sums: list, draws: list, seed: int | None = None, text: str = "wikitext") -> dict:
    """A record of the grid, as far as comparing needs it."""
    unit = {"model": model, "stage": stage, "text": text} | ({} if seed is None else {"seed": seed})
    details = {"document_sums": " ".join(map(str, sums)), "document_counts": "10 0 30", "draws": draws}
    return {"unit": unit, "metrics": {"masked_lm_loss_std_of_draws": 0.5}, "details": details}


def test_a_change_is_paired_and_takes_the_seeds_that_both_have():
    found = [scored("student", "base", [30, 0, 90], [3.0, 3.2])]
    found += [scored("student", "wikitext", [20, 0, 60], [2.0, 2.2], seed=0)]
    found += [scored("student", "wikitext", [10, 0, 30], [1.0, 1.2], seed=1)]
    found += [scored("student", "wikitext_int8", [21, 0, 63], [2.1, 2.3], seed=0)]
    tuned = language.change(found, "student", "wikitext", "wikitext")
    assert tuned[:3] == pytest.approx((-1.5, -1.5, -1.5)) and tuned.clear, "both documents change alike"
    assert tuned.spread == pytest.approx(np.std([-1, -1, -2, -2], ddof=1)), "of the differences, not of the losses"
    after = language.change(found, "student", "wikitext", "wikitext_int8", before="wikitext")
    assert after[:3] == pytest.approx((0.1, 0.1, 0.1)) and after.spread == pytest.approx(0, abs=1e-9)
    assert language.change(found, "student", "wikitext", "gsm8k") is None
    assert language.change(found, "twin", "wikitext", "wikitext") is None
    for record in found:
        record["metrics"] |= {"masked_lm_loss": 3.0, "perplexity": 20.0}
    words = language.in_words(found)
    assert (
        "fine-tuning on WikiText-2 changes it by -1.500 (-1.500 to -1.500) nats: clear, and more than twice its"
        in words
    )
    one_draw = [
        record | {"details": record["details"] | {"draws": record["details"]["draws"][:1]}} for record in found[:2]
    ]
    assert language.in_words(one_draw).endswith("nats: clear."), "no spread is known"


def test_the_nearest_mistake_is_found_among_all_records():
    def record(way: str, text: str, loss: float, stage: str = "base") -> dict:
        unit = {"model": "student", "stage": stage, "mistake": way, "text": text}
        scores = {"loss": loss, "perplexity": math.exp(loss), "mean_of_batch_perplexities": 1.0}
        return {"unit": unit, "metrics": scores}

    published = language.printed()
    assert published.to_dict() == {"wikitext": 9.84, "gsm8k_questions": 7.18}
    found = [scored("student", "base", [30, 0, 90], [3.0, 3.2])]
    found += [{"unit": {"mistake": "masks redrawn", "model": "student"}}]
    for way, off in {"right": 0.1, "padding scored": -0.4, "labels shuffled": 2.0}.items():
        found += [record(way, text, loss + off) for text, loss in published.items()]
    found += [record("padding scored", "wikitext", 0.0, stage="int8")]
    near = language.nearest_mistakes(found, "student")
    assert near.to_dict() == pytest.approx({"right": 0.1, "padding scored": 0.4, "labels shuffled": 2.0})
    words = language.mistakes_in_words(found, "student")
    assert "Nearest to the published losses of both texts: **padding scored**, off by 0.40" in words and "hint" in words
    table = language.mistakes_table(found, "student")
    assert table.loc["published, DistilBERT", "WikiText-2"] == "9.84 (18,764.7)"
    assert table.loc["padding scored", "off the published losses (nats)"] == "0.40"
    assert language.mistakes_by_stage(found, "student").loc["padding scored", "WikiText-2: in 8 bits"] == "-9.44"
    assert language.grid(found) == found[:1]


def test_a_note_names_both_ways_in_which_a_data_set_is_used():
    sources = [
        {"id": "gsm8k", "config": "main", "rows": {"test": 100}, "capped": {"test": f"{n} blocks"}} for n in (4, 9)
    ]
    origin = {"cpu": "a cpu", "gpu": None, "threads": 2, "versions": {"torch": "2"}, "models": [], "data": sources}
    assert "main (4 blocks, 9 blocks)" in tables.data_note([{"provenance": origin, "unit": {}}])
