"""Text as what a model reads: token ids in blocks, masked; rows of a task as examples; padded and batched by length."""

import hashlib
import math
from collections import namedtuple
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache, partial

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase as Tokenizer

from .. import InputError
from ..profiles import Profile, Training
from .hub import articles, corpus_rows, problems

IGNORED = -100  # the label of a position that is not scored
UNLIKELY = -1e4  # a logit that no answer begins or ends with; fp16 can hold it
AT_ONCE = 1_000  # documents that are cut together: all of a large corpus would take gigabytes
Blocks = list[np.ndarray]  # token ids [tokens] each
Text = namedtuple("Text", "blocks documents source")  # with the number of the document that each block is from [blocks]


def blocks(
    documents: Sequence[str], tokenizer: Tokenizer, length: int, cap: int | None = None
) -> tuple[Blocks, np.ndarray]:
    """Token ids of `documents` in blocks of at most `length`, [CLS] and [SEP] around each; InputError if they're empty.

    A block never crosses from one document into the next, so the last block of a document may be short. Beside them
    the number of the document that each is from, int [blocks]. `cap`: no more than the first so many.
    """
    if not any(document.strip() for document in documents):
        raise InputError("the corpus is empty: expected at least one document with text in it")
    body, whole, owners = length - 2, [], []
    for first in range(0, len(documents), AT_ONCE):
        if cap is None or len(whole) < cap:
            some = list(documents[first : first + AT_ONCE])
            encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
            cut = [(n, ids[i : i + body]) for n, ids in enumerate(encoded, first) for i in range(0, len(ids), body)]
            whole += [np.array([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id], np.int64) for _, ids in cut]
            owners += [number for number, _ in cut]
    return whole[:cap], np.array(owners[:cap])


def corpus_blocks(
    profile: Profile, tokenizer: Tokenizer, config: str, split: str, cap: int | None
) -> tuple[Blocks, dict]:
    """Blocks of one split of the profile's corpus, and its provenance. `cap`: so many at most, from the beginning."""
    rows, source = corpus_rows(profile, config, split)
    cut, _ = blocks(list(articles(rows, tokenizer.unk_token)), tokenizer, profile.corpus.block_length, cap and cap + 1)
    return cut[:cap], source | ({"capped": {split: f"the first {cap:,} blocks"}} if cap and len(cut) > cap else {})


def drawn_blocks(profile: Profile, tokenizer: Tokenizer, text: str, split: str, cap: int | None) -> Text:
    """Blocks of one split of `wikitext`, `gsm8k_questions` or `gsm8k_answers`; of more than `cap`, so many drawn once.

    The answers come after their questions. WikiText's are of the configuration that is held out, so of raw text.
    """
    corpus = profile.corpus
    if text == "wikitext":
        rows, source = corpus_rows(profile, corpus.heldout, split)
        documents = list(articles(rows, tokenizer.unk_token))
    else:
        documents, source = problems(profile, split, answers=text == "gsm8k_answers")
    cut, owners = blocks(documents, tokenizer, corpus.block_length)
    special = set(tokenizer.all_special_ids)
    chosen = np.flatnonzero([not special.issuperset(ids.tolist()) for ids in cut])  # some: only [UNK]
    if cap is not None and cap < len(chosen):
        source = source | {"capped": {split: f"{cap:,} of {len(chosen):,} {split} blocks of {text}"}}
        chosen = np.sort(np.random.default_rng(0).choice(chosen, cap, replace=False))
    return Text([cut[place] for place in chosen], owners[chosen], source)


class Masking:
    """BERT's masking: of 15% of the tokens, 80% become [MASK], 10% a random token, 10% stay; all of them are scored.

    Special tokens, padding and unknown words are never chosen. With `smoothing` s a token is chosen with a weight of
    its count to the power -s (0.7 in the DistilBERT authors' code), so that rare words are masked more often.

    The choice depends on the seed, the draw and the block's own tokens, not on its place in a batch: the same block
    is masked alike for every model that is compared, and after a resumed run.
    """

    def __init__(self, tokenizer: Tokenizer, rate=0.15, smoothing=0.0, counts: np.ndarray | None = None, seed=0):
        self.rate, self.seed, self.mask_id = rate, seed, tokenizer.mask_token_id
        self.ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        self.weights = np.zeros(len(tokenizer))  # zero: never masked
        occurrences = np.ones(len(tokenizer)) if counts is None else np.maximum(counts[: len(tokenizer)], 1)
        self.weights[self.ordinary] = occurrences[self.ordinary] ** -smoothing

    def __call__(self, ids: np.ndarray, draw: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The masked copy of `ids` [length], and its labels [length]: the token where masked, -100 elsewhere."""
        key = hashlib.sha256(f"{self.seed},{draw},".encode() + ids.tobytes()).digest()
        random = np.random.default_rng(np.frombuffer(key, dtype=np.uint32))
        weights = self.weights[ids]
        candidates = np.flatnonzero(weights)
        count = math.floor(self.rate * len(candidates) + random.random())  # right on average at any length
        # The largest of -Exp(1)/weight are a draw without replacement in proportion to the weights.
        order = np.argsort(random.exponential(size=len(candidates)) / weights[candidates])
        chosen = candidates[order[:count]]
        masked, labels = ids.copy(), np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        fate = random.random(count)
        masked[chosen[fate < 0.8]] = self.mask_id
        swapped = chosen[fate >= 0.9]
        masked[swapped] = random.choice(self.ordinary, len(swapped))
        return masked, labels


class MaskedBlocks(TorchDataset):
    """Blocks in training order, masked anew in every epoch; `total` of them, epoch after epoch.

    With `total` None: each block once, in the order given, always masked alike (for held-out text).
    """

    def __init__(self, cut: Sequence[np.ndarray], masking: Masking, total: int | None = None):
        self.cut, self.masking, self.total = cut, masking, total

    def __len__(self) -> int:
        return len(self.cut) if self.total is None else self.total

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, place = (0, index) if self.total is None else divmod(index, len(self.cut))
        block = self.cut[place if self.total is None else _order(self.masking.seed, epoch, len(self.cut))[place]]
        input_ids, labels = self.masking(block, draw=epoch)
        return {"input_ids": input_ids, "labels": labels}


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class PretrainingText:
    """The profile's corpus in blocks, to train on and held out, with its provenance; each made when it is asked for."""

    def __init__(self, profile: Profile, tokenizer: Tokenizer):
        self.profile, self.tokenizer, self.corpus = profile, tokenizer, profile.corpus
        self._blocks = cache(partial(corpus_blocks, profile, tokenizer))  # and provenance, by configuration, split, cap

    blocks = property(lambda self: self._train[0])  # what is trained on
    source = property(lambda self: self._train[1])  # and its provenance
    _train = property(lambda self: self._blocks(self.corpus.train, "train", self.corpus.train_blocks))

    @property
    def sources(self) -> list[dict]:
        """The provenance of all that is trained and measured on."""
        configs, cap = dict.fromkeys((self.corpus.heldout, self.corpus.train)), self.corpus.heldout_blocks
        return [self.source] + [self._blocks(config, "validation", cap)[1] for config in configs]

    def in_order(self, masking: Masking, stage: Training, every: int = 1) -> MaskedBlocks:
        """What a stage of training reads, one of `every` blocks, in the order in which it does."""
        return MaskedBlocks(self.blocks[::every], masking, stage.steps * stage.batch_size * stage.accumulation)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in what is trained on, int64 [vocabulary]."""
        return np.bincount(np.concatenate(self.blocks), minlength=len(self.tokenizer))

    def heldout(self, config: str, cap: int | None) -> MaskedBlocks:
        """Held-out text of a configuration, masked alike for every model and seed."""
        masking = Masking(self.tokenizer, self.profile.distillation.mask_rate, seed=0)
        return MaskedBlocks(self._blocks(config, "validation", cap)[0], masking)


class Padding:
    """Puts examples of unequal length together: [batch, longest] tensors for what goes by token, [batch] for the rest.

    `fill` names what goes by token, with the value that fills up a shorter example; `length`: pad to this one always.
    """

    def __init__(self, pad_id: int, length: int | None = None):
        self.fill = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
        self.fill |= {"teacher_start": UNLIKELY, "teacher_end": UNLIKELY}
        self.length = length

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        examples = [{"attention_mask": np.ones_like(example["input_ids"])} | example for example in examples]
        longest = self.length or max(len(example["input_ids"]) for example in examples)
        batch = {}
        for name, first in examples[0].items():
            if np.ndim(first) and name in self.fill:
                rows = np.full((len(examples), longest), self.fill[name], dtype=np.asarray(first).dtype)
                for row, example in zip(rows, examples, strict=True):
                    row[: len(example[name])] = example[name]
            else:
                rows = np.stack([example[name] for example in examples])
            batch[name] = torch.from_numpy(rows)
        return batch


def encode_texts(dataset: Dataset, columns: Sequence[str], tokenizer: Tokenizer, length: int) -> list[dict]:
    """One example a row: input_ids, attention_mask and token_type_ids [tokens], and the row's label.

    `columns` are the one or two texts of a row; what goes beyond `length` tokens is cut off, the longer text first.
    InputError for no rows, for one without a text, and for labels that are no numbers.
    """
    texts = [dataset[column][:] for column in columns]
    if not len(dataset):
        raise InputError("there are no rows: expected at least one")
    for column, rows in zip(columns, texts, strict=True):
        if wrong := [row for row, text in enumerate(rows) if not isinstance(text, str)]:
            raise InputError(f"row {wrong[0]} has no {column}: leave it out")
    encoded = tokenizer(*texts, truncation=True, max_length=length, return_token_type_ids=True)
    labels = np.asarray(dataset["label"][:])
    if not np.issubdtype(labels.dtype, np.number):
        raise InputError(f"the label '{labels[0]}' of row 0 is no number: give each class its own, from 0 on")
    labels = labels.astype(np.float32) if np.issubdtype(labels.dtype, np.floating) else labels.astype(np.int64)
    return [
        {name: np.asarray(values[row]) for name, values in encoded.items()} | {"labels": labels[row]}
        for row in range(len(dataset))
    ]


def batches(lengths: Sequence[int], size: int, epochs: int, seed: int, grouped: bool = True) -> list[list[int]]:
    """The rows of every batch, epoch after epoch; `grouped`: rows of about equal length go together.

    Each epoch is shuffled, cut into runs of fifty batches that are sorted by length within, and its batches shuffled
    again. (Trainer's own grouping leaves them sorted: a small data set then runs from long to short in every epoch.)
    All of it is drawn from the seed alone, so a resumed run meets the same batches.
    """
    drawn = []
    for epoch in range(epochs):
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        if grouped:
            pools = [order[start : start + 50 * size] for start in range(0, len(order), 50 * size)]
            order = np.concatenate([sorted(pool, key=lambda row: lengths[row]) for pool in pools])
        cut = [order[start : start + size].tolist() for start in range(0, len(order), size)]
        drawn += [cut[place] for place in random.permutation(len(cut))]
    return drawn
