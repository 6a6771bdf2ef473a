"""A student built from a teacher's layers.

A teacher is any BERT or DistilBERT encoder; a student is always a DistilBERT, saved and loaded like any other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM, PretrainedConfig, PreTrainedModel

from . import InputError

# Where a BERT layer's and head's parameters live in a DistilBERT.
LAYER_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
HEAD_NAMES = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions.decoder": "vocab_projector",
}


def choose_layers(available: int, wanted: int | Sequence[int]) -> list[int]:
    """Which of the teacher's layers a student takes: those listed, or `wanted` many spread evenly from first to last.

    Six of twelve are 0, 2, 4, 7, 9, 11, as in the DistilBERT authors' code.

    Raises:
        InputError: the teacher doesn't have such layers.
    """
    if isinstance(wanted, int):
        if not 1 <= wanted <= available:
            raise InputError(f"a student of {wanted} layers cannot be taken from a teacher of {available}")
        return [int(i) for i in np.linspace(0, available - 1, wanted).round()]
    wrong = [i for i in wanted if not 0 <= i < available]
    if wrong or not wanted:
        raise InputError(f"layers {list(wanted)}: the teacher has layers 0 to {available - 1}; not there: {wrong}")
    return list(wanted)


def configuration(teacher: PretrainedConfig, layers: int) -> DistilBertConfig:
    """The configuration of a DistilBERT as wide as its teacher."""
    distilled = teacher.model_type == "distilbert"
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        n_layers=layers,
        n_heads=teacher.num_attention_heads,
        dim=teacher.hidden_size,
        hidden_dim=teacher.hidden_dim if distilled else teacher.intermediate_size,
        dropout=teacher.dropout if distilled else teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_dropout if distilled else teacher.attention_probs_dropout_prob,
        activation=teacher.activation if distilled else teacher.hidden_act,
        initializer_range=teacher.initializer_range,
        pad_token_id=teacher.pad_token_id,
    )


def untrained(teacher: PretrainedConfig, layers: int, seed: int) -> DistilBertForMaskedLM:
    """A student with random weights."""
    torch.manual_seed(seed)
    return DistilBertForMaskedLM(configuration(teacher, layers)).eval()


@torch.no_grad()
def from_teacher(teacher: PreTrainedModel, layers: Sequence[int]) -> DistilBertForMaskedLM:
    """A student that starts as the teacher with only the listed layers (Sanh et al. 2019, section 3).

    Embeddings and masked-LM head are copied. DistilBERT has no token types: the vector that BERT adds to every token
    of a single text, type 0, is folded into the position embeddings, so with all layers the student is the teacher.

    Raises:
        InputError: layers that the teacher doesn't have.
    """
    layers = choose_layers(teacher.config.num_hidden_layers, layers)
    student = DistilBertForMaskedLM(configuration(teacher.config, len(layers)))
    given, copied = teacher.state_dict(), {}
    if teacher.config.model_type == "distilbert":
        names = {
            f"distilbert.transformer.layer.{i}.": f"distilbert.transformer.layer.{n}." for n, i in enumerate(layers)
        }
        names |= {prefix: prefix for prefix in ("distilbert.embeddings.", "vocab_")}
    else:
        names = {"bert.embeddings.": "distilbert.embeddings."}
        names |= {f"{bert}.": f"{ours}." for bert, ours in HEAD_NAMES.items()}
        for n, i in enumerate(layers):
            for bert, ours in LAYER_NAMES.items():
                names[f"bert.encoder.layer.{i}.{bert}."] = f"distilbert.transformer.layer.{n}.{ours}."
        types = given.pop("bert.embeddings.token_type_embeddings.weight")
        positions = "bert.embeddings.position_embeddings.weight"
        given[positions] = given[positions] + types[0]
    for old, new in names.items():
        copied |= {new + key[len(old) :]: value for key, value in given.items() if key.startswith(old)}
    student.load_state_dict(copied)
    return student.eval()
