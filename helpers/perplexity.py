"""How well a masked language model predicts text: its loss over fixed masks, and pseudo-perplexity.

Such a model reads on both sides of a word, so it has no perplexity from left to right. These two quantities it has.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import InputError, data, models


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[np.ndarray]) -> None:
    """See that the model can predict these texts, token ids [tokens] each.

    Raises:
        InputError: a decoder, or a model without a masked-LM head; another model's tokenizer; a text with nothing to
            predict, or longer than the model takes; no text at all.
    """
    config, kind = model.config, type(model).__name__
    if getattr(config, "is_decoder", False) or "CausalLM" in kind or "LMHead" in kind:
        raise InputError(f"{kind} reads from left to right: give a masked language model, as BertForMaskedLM")
    if config.model_type not in ("bert", "distilbert") or not kind.endswith("ForMaskedLM"):
        raise InputError(f"{kind} has no masked-LM head that is known here: give a BertForMaskedLM or its DistilBERT")
    if (len(tokenizer), tokenizer.pad_token_id) != (config.vocab_size, config.pad_token_id):
        sizes = f"{len(tokenizer):,} tokens, the model predicts {config.vocab_size:,}"
        pads = f"pads with {tokenizer.pad_token_id}, the model with {config.pad_token_id}"
        raise InputError(f"the tokenizer has {sizes}; it {pads}: load both from the same checkpoint")
    if not len(texts):
        raise InputError("there is no text to predict: expected at least one")
    special = np.array(tokenizer.all_special_ids)
    for number, ids in enumerate(texts):
        if len(ids) > config.max_position_embeddings:
            limit = f"the model takes {config.max_position_embeddings}"
            raise InputError(f"text {number} has {len(ids)} tokens, and {limit}: cut it into blocks (data.blocks)")
        if np.isin(ids, special).all():
            raise InputError(f"text {number} is empty, or has only special tokens and padding: leave it out")


@torch.inference_mode()
def masked_losses(
    model: PreTrainedModel, blocks: data.MaskedBlocks, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32
) -> list[np.ndarray]:
    """The negative log-likelihood of each masked token, in nats: one array [masked tokens] a block, in its order.

    The mean over all masked tokens of all blocks is the masked-LM loss, its exponential the perplexity over masked
    tokens. Neither padding nor the order or size of the batches changes them.
    """
    check(model, tokenizer, blocks.cut)
    examples = [blocks[place] for place in range(len(blocks))]
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place]["input_ids"]))
    padding, found = data.Padding(tokenizer.pad_token_id), [np.empty(0)] * len(examples)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = {name: values.to(model.device) for name, values in padding([examples[p] for p in places]).items()}
        ends = (batch["labels"] != data.IGNORED).sum(dim=1).cumsum(dim=0)[:-1].cpu().numpy()
        for place, own in zip(places, np.split(batch_losses(model, batch).cpu().numpy(), ends), strict=True):
            found[place] = own
    return found


def batch_losses(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The negative log-likelihood of a batch's masked tokens in nats [masked tokens], row by row.

    The head runs where a token is masked, and nowhere else.
    """
    masked = batch["labels"] != data.IGNORED
    hidden = models.encode(model, batch["input_ids"], batch["attention_mask"])
    logits = models.vocabulary_logits(model, hidden[masked])
    return F.cross_entropy(logits.float(), batch["labels"][masked], reduction="none")


@torch.inference_mode()
def one_token_at_a_time(
    model: PreTrainedModel, ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, within_word: bool = False
) -> np.ndarray:
    """The log-probability of each token of one text [tokens] in nats, masked alone; NaN for special tokens.

    `within_word`: masked with the pieces that follow it in its word. This is the definition as a plain loop; what is
    used is `pseudo_log_likelihoods`, which gives the same and is faster.
    """
    found, ends = np.full(len(ids), np.nan), word_ends(ids, tokenizer)
    for position, token in enumerate(ids):
        if token not in tokenizer.all_special_ids:
            masked = torch.tensor(ids, device=model.device)[None]
            masked[0, position : ends[position] if within_word else position + 1] = tokenizer.mask_token_id
            logits = model(input_ids=masked).logits[0, position]
            found[position] = logits.float().log_softmax(-1)[token].item()
    return found


class Copy(NamedTuple):
    """A copy of a text in which the tokens from `position` up to `end` are masked, and the first of them is asked."""

    text: int
    position: int
    end: int


class PseudoLikelihoods(NamedTuple):
    """Log-probabilities in nats, one array [tokens] a text, NaN for special tokens.

    alone: each token masked alone. within_word: and with it the pieces that follow it in its word.
    """

    alone: list[np.ndarray]
    within_word: list[np.ndarray]


def word_ends(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """For each token the place where its word ends, exclusively [tokens]: WordPiece marks what continues with ##."""
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    ends = np.arange(1, len(ids) + 1)
    for place in range(len(ids) - 2, -1, -1):
        if pieces[place + 1].startswith("##"):
            ends[place] = ends[place + 1]
    return ends


@torch.inference_mode()
def pseudo_log_likelihoods(
    model: PreTrainedModel,
    texts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int = 8192,
) -> PseudoLikelihoods:
    """The log-probability of each token given all others, for all texts (token ids [tokens] each).

    Sources: Salazar et al. (2020); within words Kauf & Ivanova (2023), since "##ling" gives away "duck" before it.
    All masked copies of all texts go through the model together, the longest first, and the vocabulary is predicted
    where a token is asked for, not everywhere. A copy that both ways need is read once.
    """
    check(model, tokenizer, texts)
    special = set(tokenizer.all_special_ids)
    ends = [word_ends(ids, tokenizer) for ids in texts]
    asked = [(text, place) for text, ids in enumerate(texts) for place, token in enumerate(ids) if token not in special]
    copies = {Copy(text, place, place + 1) for text, place in asked}
    copies |= {Copy(text, place, int(ends[text][place])) for text, place in asked}
    order, found = sorted(copies, key=lambda copy: (-len(texts[copy.text]), copy)), {}
    while order:
        size = max(1, tokens_per_batch // len(texts[order[0].text]))
        now, order = order[:size], order[size:]
        logs = _asked(model, texts, now, tokenizer.mask_token_id, tokenizer.pad_token_id)
        found |= dict(zip(now, logs, strict=True))
    alone, within = ([np.full(len(ids), np.nan) for ids in texts] for _ in range(2))
    for text, place in asked:
        alone[text][place] = found[Copy(text, place, place + 1)]
        within[text][place] = found[Copy(text, place, int(ends[text][place]))]
    return PseudoLikelihoods(alone, within)


def _asked(model, texts, copies: Sequence[Copy], mask_id: int, pad_id: int) -> list[float]:
    """The log-probability of the token that each copy asks for."""
    examples, tokens = [], []
    for text, position, end in copies:
        ids = texts[text].copy()
        ids[position:end] = mask_id
        examples.append({"input_ids": ids})
        tokens.append(texts[text][position])
    batch = {name: values.to(model.device) for name, values in data.Padding(pad_id)(examples).items()}
    hidden = models.encode(model, batch["input_ids"], batch["attention_mask"])
    hidden = hidden[torch.arange(len(copies)), [copy.position for copy in copies]]
    logits = models.vocabulary_logits(model, hidden).float()
    return (-F.cross_entropy(logits, torch.tensor(tokens, device=model.device), reduction="none")).tolist()


def words_of(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many words a text has, as the tokenizer cuts it before it cuts words into pieces: punctuation counts."""
    pieces = tokenizer.convert_ids_to_tokens(
        [token for token in ids.tolist() if token not in tokenizer.all_special_ids]
    )
    return sum(not piece.startswith("##") for piece in pieces)
