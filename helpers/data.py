"""Corpora and tasks by name, with their official row counts; tokenised, masked and batched by length."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from . import ROOT, InputError, miniworld, records
from .profiles import Profile

disable_progress_bars()  # conversion takes a second; downloads keep their own bars

OFFICIAL_ROWS = {  # of the Hub's data sets, so that a part is never taken for the whole
    ("nyu-mll/glue", "cola"): {"train": 8_551, "validation": 1_043},
    ("nyu-mll/glue", "sst2"): {"train": 67_349, "validation": 872},
    ("nyu-mll/glue", "mrpc"): {"train": 3_668, "validation": 408},
    ("nyu-mll/glue", "qqp"): {"train": 363_846, "validation": 40_430},
    ("nyu-mll/glue", "stsb"): {"train": 5_749, "validation": 1_500},
    ("nyu-mll/glue", "mnli"): {"train": 392_702, "validation_matched": 9_815, "validation_mismatched": 9_832},
    ("nyu-mll/glue", "qnli"): {"train": 104_743, "validation": 5_463},
    ("nyu-mll/glue", "rte"): {"train": 2_490, "validation": 277},
    ("nyu-mll/glue", "wnli"): {"train": 635, "validation": 71},
    ("openai/gsm8k", "main"): {"train": 7_473, "test": 1_319},
    ("rajpurkar/squad", "plain_text"): {"train": 87_599, "validation": 10_570},
    ("stanfordnlp/imdb", "plain_text"): {"train": 25_000, "test": 25_000},
    ("Salesforce/wikitext", "wikitext-2-v1"): {"train": 36_718, "validation": 3_760, "test": 4_358},
    ("Salesforce/wikitext", "wikitext-2-raw-v1"): {"train": 36_718, "validation": 3_760, "test": 4_358},
}
GLUE = {  # the columns that hold each task's one or two texts
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
WORLD = ROOT / ".data" / f"miniworld-{miniworld.VERSION}"
IGNORED = -100  # the label of a position that is not scored
UNLIKELY = -1e4  # a logit that no answer begins or ends with; fp16 can hold it


def load(profile: Profile, data_id: str, config: str, split: str) -> tuple[Dataset, dict]:
    """One split of a data set, and its provenance: id, config, revision, rows and whether they are a part only.

    Raises:
        InputError: no such data set, configuration or split, or no way to reach it; or no rows in it.
    """
    embedded = profile.hub == "miniworld"
    try:
        dataset = load_dataset(str(miniworld.write(WORLD) / data_id) if embedded else data_id, config, split=split)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"data set {data_id!r}, {config!r}, {split!r}: {reason}") from error
    if not len(dataset):
        raise InputError(f"data set {data_id!r}, {config!r}: the split {split!r} is empty")
    source = {"id": data_id, "config": config, "rows": {split: len(dataset)}}
    if embedded:
        return dataset, source | {"id": f"miniworld:{data_id}", "revision": f"version {miniworld.VERSION}"}
    official = OFFICIAL_ROWS.get((data_id, config), {}).get(split)
    source |= {"revision": records.revision(data_id, "dataset"), "official_rows": {split: official}}
    return dataset, source | {"partial": official is not None and len(dataset) < official}


def sample(profile: Profile, data_id: str, config: str, split: str, rows: int | None = None) -> tuple[Dataset, dict]:
    """`load`, or where there are more than `rows`, so many of them: drawn once, alike for every model and seed."""
    dataset, source = load(profile, data_id, config, split)
    if rows is not None and rows < len(dataset):
        chosen = np.sort(np.random.default_rng(0).choice(len(dataset), rows, replace=False))
        source = source | {"capped": {split: f"{rows:,} of {len(dataset):,} {split} rows"}}
        dataset = dataset.select(chosen)
    return dataset, source


def download(profile: Profile) -> list[str]:
    """Fetch every data set of the profile, so that a later run needs no network; what was fetched, a line each."""
    corpus, lines = profile.corpus, []
    wanted = [(corpus.id, corpus.train, "train"), (corpus.id, corpus.heldout, "validation")]
    wanted += [("nyu-mll/glue", task, split) for task in profile.glue.tasks for split in ("train", *dev_splits(task))]
    wanted += [("stanfordnlp/imdb", "plain_text", split) for split in ("train", "test")]
    wanted += [("rajpurkar/squad", "plain_text", split) for split in ("train", "validation")]
    wanted += [(corpus.id, corpus.heldout, split) for split in ("train", "test")]
    wanted += [("openai/gsm8k", "main", split) for split in ("train", "test")]
    for data_id, config, split in wanted:
        _, source = load(profile, data_id, config, split)
        lines.append(f"{source['id']} {config} {split}: {source['rows'][split]:,} rows")
    return lines


def dev_splits(task: str) -> list[str]:
    """The splits that a GLUE task is measured on; the first one counts."""
    return ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]


def articles(lines: Sequence[str], unknown: str = "[UNK]") -> Iterator[str]:
    """WikiText's rows as whole articles: a new one begins at each ` = Title = `.

    What WikiText's authors did to the text is undone: ` @-@ ` is a hyphen again, and so on. `<unk>` becomes the
    tokenizer's `unknown`.
    """
    article: list[str] = []
    for line in lines:
        if re.fullmatch(r" = [^=].*[^=] = \n?", line) and article:
            yield "".join(article)
            article = []
        if line.strip():
            article.append(re.sub(r" @([-,.])@ ", r"\1", line).replace("<unk>", unknown))
    if article:
        yield "".join(article)


def blocks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[np.ndarray]:
    """Token ids of `documents` in blocks of at most `length`, [CLS] and [SEP] around each.

    A block never crosses from one document into the next, so the last block of a document may be short.

    Raises:
        InputError: there is no text in the documents.
    """
    return blocks_and_documents(documents, tokenizer, length)[0]


def blocks_and_documents(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """`blocks`, and the number of the document that each is from, int [blocks]."""
    if not any(document.strip() for document in documents):
        raise InputError("the corpus is empty: expected at least one document with text in it")
    body = length - 2
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    cut = [(number, ids[i : i + body]) for number, ids in enumerate(encoded) for i in range(0, len(ids), body)]
    whole = [np.array([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id], dtype=np.int64) for _, ids in cut]
    return whole, np.array([number for number, _ in cut])


def corpus_blocks(
    profile: Profile, tokenizer: PreTrainedTokenizerBase, config: str, split: str, cap: int | None = None
) -> tuple[list[np.ndarray], dict]:
    """Blocks of one split of the profile's corpus, and its provenance. `cap`: so many at most, from the beginning."""
    dataset, source = load(profile, profile.corpus.id, config, split)
    cut = blocks(list(articles(dataset["text"], tokenizer.unk_token)), tokenizer, profile.corpus.block_length)
    if cap is not None and cap < len(cut):
        cut, source = cut[:cap], source | {"capped": {split: f"{cap} of {len(cut)} blocks"}}
    return cut, source


def problems(profile: Profile, split: str, answers: bool = True) -> tuple[list[str], dict]:
    """GSM8K's word problems, a text each, with their worked answers or without; and their provenance.

    The calculator's notes inside the answers, `<<48/2=24>>`, are taken out: nobody reads or writes them.
    """
    dataset, source = load(profile, "openai/gsm8k", "main", split)
    if not answers:
        return list(dataset["question"]), source
    worked = [re.sub(r"<<.*?>>", "", answer) for answer in dataset["answer"]]
    return [f"{question}\n{answer}" for question, answer in zip(dataset["question"], worked, strict=True)], source


def token_counts(cut: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """How often each token of the vocabulary occurs in the blocks, int64 [vocabulary]."""
    return np.bincount(np.concatenate(cut), minlength=vocabulary)


class Masking:
    """BERT's masking: of 15% of the tokens, 80% become [MASK], 10% a random token, 10% stay; all of them are scored.

    Special tokens, padding and unknown words are never chosen. With `smoothing` s a token is chosen with a weight of
    its count to the power -s (0.7 in the DistilBERT authors' code), so that rare words are masked more often.

    The choice depends on the seed, the draw and the block's own tokens, not on its place in a batch: the same block
    is masked alike for every model that is compared, and after a resumed run.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rate=0.15, smoothing=0.0, counts: np.ndarray | None = None, seed=0
    ):
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

    def __init__(self, profile: Profile, tokenizer: PreTrainedTokenizerBase):
        self.profile, self.tokenizer, self.corpus = profile, tokenizer, profile.corpus

    @property
    def blocks(self) -> list[np.ndarray]:
        """What is trained on."""
        return self._train[0]

    @property
    def source(self) -> dict:
        """The provenance of what is trained on."""
        return self._train[1]

    @property
    def sources(self) -> list[dict]:
        """The provenance of all that is trained and measured on."""
        configs = dict.fromkeys((self.corpus.heldout, self.corpus.train))
        return [self.source] + [self._heldout(config, self.corpus.heldout_blocks)[1] for config in configs]

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in what is trained on."""
        return token_counts(self.blocks, len(self.tokenizer))

    def heldout(self, config: str, cap: int | None) -> MaskedBlocks:
        """Held-out text of a configuration, masked alike for every model and seed."""
        masking = Masking(self.tokenizer, self.profile.distillation.mask_rate, seed=0)
        return MaskedBlocks(self._heldout(config, cap)[0], masking)

    @cached_property
    def _train(self) -> tuple[list[np.ndarray], dict]:
        return corpus_blocks(self.profile, self.tokenizer, self.corpus.train, "train", self.corpus.train_blocks)

    @cache  # noqa: B019 (there is one of it in a notebook)
    def _heldout(self, config: str, cap: int | None) -> tuple[list[np.ndarray], dict]:
        return corpus_blocks(self.profile, self.tokenizer, config, "validation", cap)


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
