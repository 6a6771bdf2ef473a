"""What the tests share: a teacher small enough to train in seconds, and text for it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "0" if "HF_ENDPOINT" in os.environ else "1")  # no network in the tests

import helpers  # noqa: F401, I001 (before transformers, whose imports it keeps quiet)
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from helpers import data

torch.set_num_threads(1)

WORDS = ["the", "a", "river", "town", "runs", "through", "sings", "baker", "of", "old", "bridge", "stone", "cold"]
WORDS += ["morning", "under", "every", "lantern", "hums"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> BertTokenizer:
    """BERT's special tokens and forty words."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*special, *WORDS, *(f"word{i}" for i in range(40 - len(WORDS)))]) + "\n")
    return BertTokenizer(str(path))


@pytest.fixture
def teacher(tokenizer) -> BertForMaskedLM:
    """A random BERT of 4 layers whose token types matter, so that leaving them out would show."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms start at 0 and 1, which would hide a mix-up
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.bert.embeddings.token_type_embeddings.weight.normal_(std=0.5)
    return model


@pytest.fixture
def cut(tokenizer) -> list[np.ndarray]:
    """Blocks of different lengths."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, size)) for size in random.integers(5, 60, size=40)]
    return data.blocks(texts, tokenizer, 24)
