"""What a masked language model predicts: its loss over fixed masks, pseudo-perplexity, and the word in a gap.

Such a model reads on both sides of a word, so it has no perplexity from left to right. The first two it has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from .. import InputError
from ..data import encoding, miniworld
from ..profiles import Profile
from . import checkpoints


def check(model: Model, tokenizer: Tokenizer, texts: Sequence[np.ndarray]) -> None:
    """See that the model can predict these texts, token ids [tokens] each.

    InputError: a decoder, or a model without a masked-LM head; another model's tokenizer; a text with nothing to
    predict, or longer than the model takes; no text at all.
    """
    config, kind, special = model.config, type(model).__name__, np.array(tokenizer.all_special_ids)
    if getattr(config, "is_decoder", False) or "CausalLM" in kind or "LMHead" in kind:
        raise InputError(f"{kind} reads from left to right: give a masked language model, as BertForMaskedLM")
    if config.model_type not in ("bert", "distilbert") or not kind.endswith("ForMaskedLM"):
        raise InputError(f"{kind} has no masked-LM head that is known here: give a BertForMaskedLM or its DistilBERT")
    if len(tokenizer) > config.vocab_size:
        sizes = f"{len(tokenizer):,} tokens, the model predicts {config.vocab_size:,}"
        raise InputError(f"the tokenizer has {sizes}: load both from the same checkpoint")
    if not len(texts):
        raise InputError("there is no text to predict: expected at least one")
    longest = config.max_position_embeddings
    for number, ids in enumerate(texts):
        if len(ids) > longest:
            raise InputError(f"text {number} has {len(ids)} tokens, and the model takes {longest}: cut it into blocks")
        if np.isin(ids, special).all():
            raise InputError(f"text {number} is empty, or has only special tokens and padding: leave it out")


@torch.inference_mode()
def masked_losses(model: Model, blocks: encoding.MaskedBlocks, tokenizer: Tokenizer, batch_size=32) -> list[np.ndarray]:
    """The negative log-likelihood of each masked token, in nats: one array [masked tokens] a block, in its order.

    The mean over all masked tokens of all blocks is the masked-LM loss, its exponential the perplexity over masked
    tokens. Neither padding nor the order or size of the batches changes them.
    """
    check(model, tokenizer, blocks.cut)
    examples = [blocks[place] for place in range(len(blocks))]
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place]["input_ids"]))
    padding, found = encoding.Padding(tokenizer.pad_token_id), [np.empty(0)] * len(examples)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = {name: values.to(model.device) for name, values in padding([examples[p] for p in places]).items()}
        ends = (batch["labels"] != encoding.IGNORED).sum(dim=1).cumsum(dim=0)[:-1].cpu().numpy()
        for place, own in zip(places, np.split(batch_losses(model, batch).cpu().numpy(), ends), strict=True):
            found[place] = own
    return found


def batch_losses(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """The negative log-likelihood of a batch's masked tokens in nats [masked tokens], row by row.

    The head runs where a token is masked, and nowhere else.
    """
    masked = batch["labels"] != encoding.IGNORED
    _, logits = checkpoints.predict(model, batch, masked)
    return F.cross_entropy(logits.float(), batch["labels"][masked], reduction="none")


class PseudoLikelihoods(NamedTuple):
    """Log-probabilities in nats, one array [tokens] a text, NaN for special tokens."""

    alone: list[np.ndarray]  # each token masked alone
    within_word: list[np.ndarray]  # and with it the pieces that follow it in its word


def word_ends(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """For each token the place where its word ends, exclusively [tokens]: WordPiece marks what continues with ##."""
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    ends = np.arange(1, len(ids) + 1)
    for place in range(len(ids) - 2, -1, -1):
        if pieces[place + 1].startswith("##"):
            ends[place] = ends[place + 1]
    return ends


@torch.inference_mode()
def pseudo_log_likelihoods(
    model: Model, texts: Sequence[np.ndarray], tokenizer: Tokenizer, tokens_per_batch=8192
) -> PseudoLikelihoods:
    """The log-probability of each token given all others, for all texts (token ids [tokens] each).

    Sources: Salazar et al. (2020); within words Kauf & Ivanova (2023), since "##ling" gives away "duck" before it.
    All masked copies of all texts go through the model together, the longest first, and the vocabulary is predicted
    where a token is asked for, not everywhere. A copy that both ways need is read once.
    """
    check(model, tokenizer, texts)
    special, ends = set(tokenizer.all_special_ids), [word_ends(ids, tokenizer).tolist() for ids in texts]
    asked = [(text, place) for text, ids in enumerate(texts) for place, token in enumerate(ids) if token not in special]
    copies = {(text, place, end) for text, place in asked for end in (place + 1, ends[text][place])}

    def masked(text: int, place: int, end: int) -> dict[str, np.ndarray]:
        ids, labels = texts[text].copy(), np.full_like(texts[text], encoding.IGNORED)
        ids[place:end], labels[place] = tokenizer.mask_token_id, texts[text][place]
        return {"input_ids": ids, "labels": labels}

    order, found = sorted(copies, key=lambda copy: (-len(texts[copy[0]]), copy)), {}
    while order:
        size = max(1, tokens_per_batch // len(texts[order[0][0]]))
        now, order = order[:size], order[size:]
        batch = encoding.Padding(tokenizer.pad_token_id)([masked(*copy) for copy in now])
        losses = batch_losses(model, {name: values.to(model.device) for name, values in batch.items()})
        found |= zip(now, (-losses).tolist(), strict=True)
    both = PseudoLikelihoods(*([np.full(len(ids), np.nan) for ids in texts] for _ in range(2)))
    for text, place in asked:
        both.alone[text][place] = found[text, place, place + 1]
        both.within_word[text][place] = found[text, place, ends[text][place]]
    return both


def words_of(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """How many words a text has, as the tokenizer cuts it before it cuts words into pieces: punctuation counts."""
    pieces = tokenizer.convert_ids_to_tokens(ids[~np.isin(ids, tokenizer.all_special_ids)].tolist())
    return sum(not piece.startswith("##") for piece in pieces)


def probes(profile: Profile, tokenizer: Tokenizer) -> list[dict]:
    """Facts with one word masked: {"prompt", "answer"}, of the mini-world or, for real text, of general knowledge.

    Only those whose answer is one token for this tokenizer, in small letters or with a capital.
    """
    lines = yaml.safe_load((Path(miniworld.__file__).with_name("cloze.yaml")).read_text(encoding="utf-8"))
    general = [{"prompt": prompt, "answer": answer} for prompt, answer in lines.items()]
    known = {word.casefold() for word in tokenizer.get_vocab()}
    return [fact for fact in (miniworld.facts() if profile.hub == "miniworld" else general) if fact["answer"] in known]


def knows(model: Model, tokenizer: Tokenizer, facts: list[dict]) -> list[bool]:
    """Whether the model's first guess is the answer, fact by fact, whatever its capitals; the mean is the accuracy."""
    guesses = fill_mask(model, tokenizer, [fact["prompt"] for fact in facts], top=1)
    return [guess[0][0].casefold() == fact["answer"] for guess, fact in zip(guesses, facts, strict=True)]


@torch.no_grad()
def fill_mask(model: Model, tokenizer: Tokenizer, prompts: list[str], top: int = 5) -> list[list[tuple[str, float]]]:
    """The `top` likeliest tokens for the one [MASK] in each prompt, with their probabilities; InputError if not one."""
    if wrong := [prompt for prompt in prompts if prompt.count("[MASK]") != 1]:
        raise InputError(f"{wrong[0]!r}: expected exactly one [MASK]")
    if not prompts:
        return []
    texts = [prompt.replace("[MASK]", tokenizer.mask_token) for prompt in prompts]
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
    _, logits = checkpoints.predict(model, batch, batch["input_ids"] == tokenizer.mask_token_id)
    shares, tokens = logits.float().softmax(-1).topk(top)
    words = [tokenizer.convert_ids_to_tokens(row) for row in tokens.tolist()]
    return [list(zip(*pair, strict=True)) for pair in zip(words, shares.tolist(), strict=True)]
