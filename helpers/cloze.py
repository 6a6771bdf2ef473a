"""Cloze probes: what a model knows, asked fact by fact, with one word masked."""

from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import InputError, miniworld, models
from .profiles import Profile


def probes(profile: Profile) -> list[dict]:
    """Facts with one word masked: {"prompt", "answer"}, of the mini-world or, for real text, of general knowledge."""
    if profile.hub == "miniworld":
        return miniworld.facts()
    lines = yaml.safe_load(Path(__file__).with_name("cloze.yaml").read_text())
    return [{"prompt": prompt, "answer": answer} for prompt, answer in lines.items()]


def knows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: list[dict]) -> list[bool]:
    """Whether the model's first guess is the answer, fact by fact; the mean is the cloze accuracy."""
    guesses = fill_mask(model, tokenizer, [fact["prompt"] for fact in facts], top=1)
    return [guess[0][0] == fact["answer"] for guess, fact in zip(guesses, facts, strict=True)]


@torch.no_grad()
def fill_mask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], top: int = 5
) -> list[list[tuple[str, float]]]:
    """The `top` likeliest tokens for the [MASK] in each prompt, with their probabilities.

    Raises:
        InputError: a prompt that has not exactly one [MASK].
    """
    for prompt in prompts:
        if prompt.count("[MASK]") != 1:
            raise InputError(f"{prompt!r}: expected exactly one [MASK]")
    texts = [prompt.replace("[MASK]", tokenizer.mask_token) for prompt in prompts]
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
    hidden = models.encode(model, batch["input_ids"], batch["attention_mask"])
    logits = models.vocabulary_logits(model, hidden[batch["input_ids"] == tokenizer.mask_token_id])
    shares, tokens = logits.float().softmax(-1).topk(top)
    words = [tokenizer.convert_ids_to_tokens(row) for row in tokens.tolist()]
    return [list(zip(*pair, strict=True)) for pair in zip(words, shares.tolist(), strict=True)]
