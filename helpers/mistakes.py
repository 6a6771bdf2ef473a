"""Perplexity as it is often got wrong, each way in a few lines: for notebook 05 to run and to warn of."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import data, perplexity

Batch = dict[str, Tensor]  # input_ids, attention_mask, labels, and originals: the text before masking [batch, length]


def right(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """15% of the tokens are masked, and these are scored."""
    return batch


def nothing_masked(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The model sees every token that it has to say."""
    labels = batch["originals"].masked_fill(~_real(batch, tokenizer), data.IGNORED)
    return batch | {"input_ids": batch["originals"], "labels": labels}


def labels_copied(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The labels are a copy of the padded input: nothing is masked, and every position is scored, padding too."""
    return batch | {"input_ids": batch["originals"], "labels": batch["originals"]}


def padding_scored(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Padding keeps its own id as its label, not -100; an attention mask does not take it out of the loss."""
    labels = batch["labels"].masked_fill(batch["attention_mask"] == 0, tokenizer.pad_token_id)
    return batch | {"labels": labels}


def shifted_targets(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Each position is scored on the next token, as for a decoder; this model says there what it sees there."""
    labels = nothing_masked(batch, tokenizer)["labels"]
    following = F.pad(labels[:, 1:], (0, 1), value=data.IGNORED)
    return nothing_masked(batch, tokenizer) | {"labels": following}


def shuffled_labels(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Nothing is masked, and labels have lost their places, as when texts and labels are sorted apart."""
    labels, real = nothing_masked(batch, tokenizer)["labels"], _real(batch, tokenizer)
    labels[real] = labels[real][torch.randperm(int(real.sum()), generator=torch.Generator().manual_seed(0))]
    return nothing_masked(batch, tokenizer) | {"labels": labels}


def everything_masked(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """The model sees nothing and has to say all."""
    hidden = batch["originals"].masked_fill(_real(batch, tokenizer), tokenizer.mask_token_id)
    return nothing_masked(batch, tokenizer) | {"input_ids": hidden}


WAYS: dict[str, Callable[[Batch, PreTrainedTokenizerBase], Batch]] = {
    "right": right,
    "nothing masked": nothing_masked,
    "everything masked": everything_masked,
    "padding scored": padding_scored,
    "labels copied from the inputs": labels_copied,
    "targets shifted by one": shifted_targets,
    "labels shuffled": shuffled_labels,
}
FRESH_HEAD = "head left as initialised"  # not a way to make batches, but a model that lacks something


def _real(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Where there is an ordinary token."""
    return ~torch.isin(batch["originals"], torch.tensor(tokenizer.all_special_ids))


@torch.inference_mode()
def batch_losses(
    model: PreTrainedModel,
    texts: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    way: Callable[[Batch, PreTrainedTokenizerBase], Batch],
    length: int,
    masking: data.Masking,
    batch_size: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed losses in nats and numbers of scored positions, both [batches], every text padded to `length`.

    The ordinary way through the model: all positions through the whole head, the loss from `labels`.
    """
    masked, padding = data.MaskedBlocks(texts, masking), data.Padding(tokenizer.pad_token_id, length)
    sums, counts = [], []
    for start in range(0, len(texts), batch_size):
        places = range(start, min(start + batch_size, len(texts)))
        batch = padding([masked[place] for place in places])
        batch["originals"] = padding([{"input_ids": texts[place]} for place in places])["input_ids"]
        given = {name: values.to(model.device) for name, values in way(batch, tokenizer).items()}
        logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        scored = given["labels"] != data.IGNORED
        sums.append(F.cross_entropy(logits[scored].float(), given["labels"][scored], reduction="sum").item())
        counts.append(int(scored.sum()))
    return np.array(sums), np.array(counts)


def mean_of_perplexities(sums: np.ndarray, counts: np.ndarray) -> float:
    """The mean of the batches' perplexities, in which a hard batch or one with few scored tokens weighs too much."""
    return float(np.mean([np.exp(total / count) for total, count in zip(sums, counts, strict=True) if count]))


def gaps(
    one: PreTrainedModel,
    other: PreTrainedModel,
    blocks: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    maskings: Sequence[data.Masking],
) -> dict[str, list[float]]:
    """By how much the masked-LM loss of `one` exceeds that of `other`, in nats, draw by draw of the masks.

    same: both read the same masks. redrawn: `other` reads those of the next draw, as when each run draws its own.
    """

    def mean(model: PreTrainedModel, masking: data.Masking) -> float:
        masked = data.MaskedBlocks(blocks, masking)
        return float(np.concatenate(perplexity.masked_losses(model, masked, tokenizer)).mean())

    ones, others = ([mean(model, masking) for masking in maskings] for model in (one, other))
    turned = others[1:] + others[:1]
    return {
        "same": [a - b for a, b in zip(ones, others, strict=True)],
        "redrawn": [a - b for a, b in zip(ones, turned, strict=True)],
    }


def fresh_head(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose vocabulary head is as it was initialised, which a checkpoint without one gets with a warning."""
    copied = copy.deepcopy(model)
    if model.config.model_type == "bert":
        head = list(copied.cls.predictions.transform.modules())
    else:
        head = [copied.vocab_transform, copied.vocab_layer_norm]
    torch.manual_seed(0)
    for module in head:
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(std=model.config.initializer_range)
            module.bias.data.zero_()
        elif isinstance(module, torch.nn.LayerNorm):
            module.reset_parameters()
    copied.get_output_embeddings().bias.data.zero_()
    return copied
