"""Masked-LM loss and pseudo-perplexity against plain loops, uniform and all-knowing models."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import InputError, profiles
from helpers.data import encoding, hub, miniworld
from helpers.models import checkpoints, distillation, masked_lm


@pytest.fixture(scope="module")
def pieces():
    """The mini-world's tokenizer, which cuts words into pieces."""
    return miniworld.tokenizer(miniworld.write(hub.WORLD))


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


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 8192])
def test_all_copies_together_are_one_at_a_time(one_by_one, reader, texts, pieces, tokens_per_batch, page):
    (one_token_at_a_time,) = page("05_perplexity", "one_token_at_a_time")
    found = masked_lm.pseudo_log_likelihoods(reader, texts, pieces, tokens_per_batch)
    for number, ids in enumerate(texts):
        np.testing.assert_allclose(found.alone[number], one_by_one(reader, ids, pieces, False), rtol=1e-4)
        np.testing.assert_allclose(found.within_word[number], one_by_one(reader, ids, pieces, True), rtol=1e-4)
        np.testing.assert_allclose(
            one_token_at_a_time(reader, ids, pieces),
            one_by_one(reader, ids, pieces, False),
            rtol=1e-4,
        )
    differ = [~np.isclose(a, w, equal_nan=True) for a, w in zip(found.alone, found.within_word, strict=True)]
    assert sum(map(np.sum, differ)) > 5, "there are words of several pieces among them"


def test_words_end_where_the_next_begins(pieces):
    ids = np.array(pieces("Kettlewick, zzq")["input_ids"])
    words = pieces.convert_ids_to_tokens(ids.tolist())
    ends = masked_lm.word_ends(ids, pieces)
    assert words[1] == "kettlewick" and words[3] == "z" and words[4].startswith("##"), words
    assert ends.tolist() == [1, 2, 3, *[len(ids) - 1] * (len(ids) - 4), len(ids)]
    assert masked_lm.words_of(ids, pieces) == 3


def test_order_batches_and_padding_change_no_loss(teacher, tokenizer, cut):
    masking = encoding.Masking(tokenizer, seed=3)
    found = masked_lm.masked_losses(teacher, encoding.MaskedBlocks(cut, masking), tokenizer, batch_size=7)
    for size, order in (
        (1, range(len(cut))),
        (64, range(len(cut))),
        (5, np.random.default_rng(0).permutation(len(cut))),
    ):
        turned = masked_lm.masked_losses(
            teacher, encoding.MaskedBlocks([cut[place] for place in order], masking), tokenizer, size
        )
        for own, place in zip(turned, order, strict=True):
            np.testing.assert_allclose(own, found[place], atol=1e-5)


def test_masked_losses_are_those_of_the_whole_model(teacher, tokenizer, cut):
    blocks = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer, 0.3))
    for number, own in enumerate(masked_lm.masked_losses(teacher, blocks, tokenizer)):
        masked = blocks[number]
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor(masked["input_ids"])[None]).logits[0].double()
        at = np.flatnonzero(masked["labels"] != encoding.IGNORED)
        assert own == pytest.approx([-logits[p].log_softmax(-1)[masked["labels"][p]].item() for p in at], abs=1e-5)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(teacher, tokenizer, cut, distilled):
    model = distillation.from_teacher(teacher, [0, 3]) if distilled else teacher
    norm = model.vocab_layer_norm if distilled else model.cls.predictions.transform.LayerNorm
    with torch.no_grad():  # nothing of the text reaches the decoder
        norm.weight.zero_()
        norm.bias.zero_()
        model.get_output_embeddings().bias.zero_()
    losses = np.concatenate(
        masked_lm.masked_losses(model, encoding.MaskedBlocks(cut, encoding.Masking(tokenizer)), tokenizer)
    )
    assert math.exp(losses.mean()) == pytest.approx(len(tokenizer), rel=1e-5)
    found = masked_lm.pseudo_log_likelihoods(model, cut[:3], tokenizer)
    assert np.exp(-np.nanmean(np.concatenate(found.within_word))) == pytest.approx(len(tokenizer), rel=1e-5)


def test_a_model_that_knows_the_text_has_a_perplexity_of_one(teacher, tokenizer, monkeypatch):
    """It says at each place what belongs there, so a prediction taken from any other place would show."""
    by_place = np.random.default_rng(0).permutation(np.arange(5, len(tokenizer)))
    known = [np.array([tokenizer.cls_token_id, *by_place[:size], tokenizer.sep_token_id]) for size in (30, 4, 17)]

    def places(model, input_ids, attention_mask):
        return torch.arange(input_ids.shape[1])[None, :, None].expand(len(input_ids), -1, 1)

    def certain(model, hidden):
        return 1e4 * torch.nn.functional.one_hot(torch.tensor(by_place)[hidden[..., 0] - 1], len(tokenizer))

    monkeypatch.setattr(checkpoints, "encode", places)
    monkeypatch.setattr(checkpoints, "vocabulary_logits", certain)
    blocks = encoding.MaskedBlocks(known, encoding.Masking(tokenizer, 0.4))
    assert np.concatenate(masked_lm.masked_losses(teacher, blocks, tokenizer)).max() == 0
    found = masked_lm.pseudo_log_likelihoods(teacher, known, tokenizer)
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
        for score in (masked_lm.pseudo_log_likelihoods, lambda *given: masked_lm.check(given[0], given[2], given[1])):
            with pytest.raises(InputError, match=complaint):
                score(teacher, wrong, tokenizer)
    masked = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer))
    with pytest.raises(InputError, match="1,550 tokens, the model predicts 45: load both from the same checkpoint"):
        masked_lm.masked_losses(teacher, masked, pieces)
    for headless in (BertModel(BertConfig(vocab_size=45)), T5ForConditionalGeneration(T5Config(vocab_size=45, d_ff=8))):
        with pytest.raises(InputError, match="has no masked-LM head that is known here: give a BertForMaskedLM"):
            masked_lm.masked_losses(headless, masked, tokenizer)
    decoder = BertLMHeadModel(BertConfig(**teacher.config.to_dict() | {"is_decoder": True}))
    for model in (decoder, GPT2LMHeadModel(GPT2Config(vocab_size=45, n_embd=8, n_layer=1, n_head=1))):
        with pytest.raises(InputError, match="LMHeadModel reads from left to right: give a masked language model"):
            masked_lm.masked_losses(model, masked, tokenizer)


def test_rows_beyond_the_tokens_and_another_pad_are_sound_k9(tokenizer):
    """Trouble A14, A13: many BERTs have rows up to a multiple of eight; the mask tells padding, not the model's id."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    plain = BertForMaskedLM(BertConfig(vocab_size=48, pad_token_id=7, **shape)).eval()
    checkpoints.start_head(plain, np.full(len(tokenizer), 1000))
    cut, _ = encoding.blocks(["the bird sings", "a bird sings in the old town"], tokenizer, 16)
    masked = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer, 0.5))
    losses = masked_lm.masked_losses(plain, masked, tokenizer)
    assert losses and np.isfinite(np.concatenate(losses)).all()
    shares = plain.cls.predictions.bias.exp()
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    assert shares[len(tokenizer) :].max() < shares[: len(tokenizer)].min() / 1000


def test_a_cased_vocabulary_knows_its_capitals_k8(tmp_path):
    """Trouble A11: "France" was wrong where "france" was expected; what is no single token cannot be asked."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Rome", "is", "the", "river", "of", ".", "France", "east"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    cased = BertTokenizer.from_pretrained(str(tmp_path), do_lower_case=False)
    facts = masked_lm.probes(profiles.load("laptop"), cased)
    assert [fact["answer"] for fact in facts] == ["france", "east"]
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(words), **shape)).eval()
    model.cls.predictions.bias.data[words.index("France")] = 100
    assert masked_lm.knows(model, cased, facts) == [True, False]
    assert masked_lm.knows(model, cased, []) == []
