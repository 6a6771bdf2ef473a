"""Blocks, masks and padding: what is learnt from and what is scored."""

import numpy as np
import pytest
import torch

from helpers import InputError
from helpers.data import encoding
from tests.conftest import WORDS


def binomial_bounds(n: int, p: float) -> tuple[float, float]:
    """Five standard deviations either way: a right implementation fails once in 1.7 million times."""
    spread = 5 * np.sqrt(p * (1 - p) / n)
    return p - spread, p + spread


def test_blocks_hold_every_token_once_and_cross_no_document(tokenizer):
    texts = ["the old baker " * 20, "river", "a bridge of stone " * 9]
    cut, _ = encoding.blocks(texts, tokenizer, 16)
    bodies = [block[1:-1].tolist() for block in cut]
    assert all(block[0] == tokenizer.cls_token_id and block[-1] == tokenizer.sep_token_id for block in cut)
    assert all(len(block) <= 16 for block in cut)
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [token for body in bodies for token in body] == [token for ids in expected for token in ids]
    assert len(bodies[5]) == 1, "the second document is a block of its own"
    baker = set(expected[0])
    assert not any(baker & set(body) and not set(body) <= baker for body in bodies)


def test_no_more_documents_are_cut_than_are_asked_for(tokenizer, monkeypatch):
    """Two at a time: the same blocks as all at once, and what is beyond the cap is not even read."""
    texts, read = ["the old baker " * n for n in (20, 1, 9, 30, 2)], []
    whole, owners = encoding.blocks(texts, tokenizer, 16)
    monkeypatch.setattr(encoding, "AT_ONCE", 2)

    class Counting:
        cls_token_id, sep_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id

        def __call__(self, some, **options):
            read.append(len(some))
            return tokenizer(some, **options)

    for cap, reads in ((None, [2, 2, 1]), (1, [2]), (len(whole) - 1, [2, 2]), (1_000, [2, 2, 1])):
        cut, whose = encoding.blocks(texts, Counting(), 16, cap)
        assert [block.tolist() for block in cut] == [block.tolist() for block in whole[:cap]]
        assert whose.tolist() == owners[:cap].tolist() and read == reads
        read.clear()


def test_an_empty_corpus_is_refused(tokenizer):
    with pytest.raises(InputError, match="corpus is empty"):
        encoding.blocks([], tokenizer, 16)
    with pytest.raises(InputError, match="corpus is empty"):
        encoding.blocks(["", "  "], tokenizer, 16)


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_mask_rates(tokenizer, smoothing):
    """15% of ordinary tokens; 80% [MASK], 10% random, 10% kept; nothing special, nothing unknown."""
    random = np.random.default_rng(1)
    words = random.choice([*WORDS, "unseenword"], 60_000)
    cut, _ = encoding.blocks([" ".join(words[i : i + 50]) for i in range(0, 60_000, 50)], tokenizer, 24)
    counts = np.bincount(np.concatenate(cut), minlength=len(tokenizer))
    masking = encoding.Masking(tokenizer, smoothing=smoothing, counts=counts, seed=5)
    ordinary = chosen = masked = kept = swapped = 0
    for block in cut:
        inputs, labels = masking(block)
        special = np.isin(block, tokenizer.all_special_ids)
        picked = labels != -100
        assert not (picked & special).any() and (inputs[special] == block[special]).all()
        assert (inputs[~picked] == block[~picked]).all() and (labels[picked] == block[picked]).all()
        ordinary, chosen = ordinary + (~special).sum(), chosen + picked.sum()
        masked += (inputs[picked] == tokenizer.mask_token_id).sum()
        kept += (inputs[picked] == block[picked]).sum()
        swapped += (~np.isin(inputs[picked], [tokenizer.mask_token_id]) & (inputs[picked] != block[picked])).sum()
        assert not np.isin(inputs[picked][inputs[picked] != tokenizer.mask_token_id], tokenizer.all_special_ids).any()
    for share, expected, n in ((chosen / ordinary, 0.15, ordinary), (masked / chosen, 0.8, chosen)):
        low, high = binomial_bounds(n, expected)
        assert low < share < high
    same_by_chance = 0.1 / (len(tokenizer) - 5)  # a random token that happens to be the old one
    low, high = binomial_bounds(chosen, 0.1 + same_by_chance)
    assert low < kept / chosen < high
    low, high = binomial_bounds(chosen, 0.1 - same_by_chance)
    assert low < swapped / chosen < high


def test_every_ordinary_position_is_masked_equally_often(tokenizer):
    block = encoding.blocks([" ".join(WORDS[:10])], tokenizer, 24)[0][0]
    hits = sum((encoding.Masking(tokenizer, seed=seed)(block)[1] != -100).astype(int) for seed in range(4000))
    assert hits[0] == hits[-1] == 0
    low, high = binomial_bounds(4000, 0.15)
    assert (low < hits[1:-1] / 4000).all() and (hits[1:-1] / 4000 < high).all()


def test_smoothing_masks_rare_words_more_often_in_proportion(tokenizer):
    """With one position to choose among a word seen 1 and one seen 100 times, the odds are 100^0.7 to 1."""
    block = encoding.blocks(["the river"], tokenizer, 24)[0][0]
    counts = np.ones(len(tokenizer), dtype=int)
    counts[tokenizer.convert_tokens_to_ids("the")] = 100
    hits = np.zeros(2)
    for seed in range(6000):
        labels = encoding.Masking(tokenizer, 0.3, 0.7, counts, seed)(block)[1][1:-1]
        hits += labels != -100
    share = hits[0] / hits.sum()
    low, high = binomial_bounds(int(hits.sum()), 1 / (1 + 100**0.7))
    assert low < share < high


def test_masks_depend_on_seed_draw_and_tokens_alone(tokenizer, cut):
    masking = encoding.Masking(tokenizer, seed=1)
    forwards = encoding.MaskedBlocks(cut, masking)
    backwards = encoding.MaskedBlocks(cut[::-1], masking)
    for i in range(len(cut)):
        assert (forwards[i]["labels"] == backwards[len(cut) - 1 - i]["labels"]).all()
    block = max(cut, key=len)
    assert (masking(block)[1] != masking(block, draw=1)[1]).any()
    assert (masking(block)[1] != encoding.Masking(tokenizer, seed=2)(block)[1]).any()


def test_training_order_takes_each_block_once_an_epoch_and_shuffles(tokenizer, cut):
    blocks = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer, rate=0.01), total=2 * len(cut))
    seen = [
        tuple(np.where(e["labels"] != -100, e["labels"], e["input_ids"]))
        for e in (blocks[i] for i in range(len(blocks)))
    ]
    originals = sorted(tuple(block) for block in cut)
    assert sorted(seen[: len(cut)]) == originals and sorted(seen[len(cut) :]) == originals
    assert seen[: len(cut)] != seen[len(cut) :] and seen[: len(cut)] != [tuple(block) for block in cut]


def test_padding_is_neither_attended_to_nor_scored(tokenizer, cut):
    short, long = min(cut, key=len), max(cut, key=len)
    examples = [{"input_ids": b, "labels": b.copy()} for b in (short, long)]
    batch = encoding.Padding(tokenizer.pad_token_id)(examples)
    assert batch["input_ids"].shape == (2, len(long))
    assert batch["attention_mask"].sum(1).tolist() == [len(short), len(long)]
    assert (batch["labels"][0, len(short) :] == -100).all()
    assert (batch["input_ids"][0, len(short) :] == tokenizer.pad_token_id).all()
    assert torch.equal(batch["labels"][1], torch.from_numpy(long))
