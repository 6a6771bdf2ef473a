"""Checkpoints by name, and a student built from a teacher's layers.

A teacher is any BERT or DistilBERT encoder; a student is always a DistilBERT, saved and loaded like any other.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import InputError, records
from .profiles import Architecture, Profile

transformers.logging.disable_progress_bar()  # of loading and saving, which take a second
huggingface_hub.utils.enable_progress_bars()  # of downloads, which that has switched off too

FILES = (
    "config.json",
    "*.safetensors",
    "tokenizer*",
    "vocab.txt",
    "special_tokens_map.json",
)  # no pickle, no code

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


def fetch(name: str) -> tuple[Path, dict]:
    """The folder that holds the checkpoint `name` (a Hub id, fetched if need be, or a folder), and its provenance.

    Raises:
        InputError: neither a folder with a checkpoint nor a Hub id that can be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
            raise InputError(f"{name} is no checkpoint: expected a folder with config.json and *.safetensors")
        return folder, {"id": folder.name, "revision": file_hash(folder), "weights": "ours"}
    folder = _snapshot(name)
    random = folder.name.startswith(records.RANDOM_REVISION)
    return folder, {"id": name, "revision": folder.name, "weights": "random" if random else "pretrained"}


@functools.cache
def _snapshot(repo_id: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=FILES))
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.HFValidationError):
        reason = "the Hub has no model of that name (and it is no folder here)"
    except Exception as error:  # no network, a proxy, a server that is down: the library has no one class for these
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = f"the Hub cannot be reached and the model was not fetched before ({first})"
    raise InputError(f"model {repo_id!r}: {reason}; check the name, or fetch it ahead with ./run_all.sh --download")


def download(profile: Profile) -> list[str]:
    """Fetch every checkpoint of the profile, so that a later run needs no network; what was fetched, a line each."""
    names = [name for name in (profile.teacher, profile.released) if name and name != "miniworld"]
    return [f"{source['id']} at {source['revision'][:12]}" for _, source in map(fetch, names)]


def load_config(name: str) -> PretrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        InputError: it is neither a BERT nor a DistilBERT.
    """
    config = AutoConfig.from_pretrained(fetch(name)[0])
    if config.model_type not in ("bert", "distilbert"):
        raise InputError(f"{name} is a {config.model_type!r} model: a teacher must be a BERT or DistilBERT encoder")
    return config


def load_masked_lm(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """A masked language model in fp32, its tokenizer and its provenance.

    `source["head"]` tells whether the checkpoint has a masked-LM head; where it doesn't, a fresh one is there.
    """
    load_config(name)
    folder, source = fetch(name)
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a missing head is reported by us
    model, report = AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    transformers.logging.set_verbosity(before)
    source = source | {"parameters": parameters(model)}
    source["head"] = not any(key.startswith(("cls.", "vocab_")) for key in report["missing_keys"])
    return model.eval(), load_tokenizer(name), source


def load_with_head(kind: type, name: str, seed: int, **config) -> PreTrainedModel:
    """The encoder of a checkpoint in fp32 under a head for a task: a fresh one, drawn from the seed, unless it has one.

    `kind` is an Auto class, as AutoModelForSequenceClassification, `config` goes to the model (num_labels=3).

    Raises:
        InputError: the checkpoint has such a head already, for another number of labels.
    """
    there = load_config(name)
    wanted = config.get("num_labels", there.num_labels)
    if "ForSequenceClassification" in str(there.architectures) and there.num_labels != wanted:
        labels = f"{there.num_labels} labels, and the task has {wanted}"
        raise InputError(f"{name} was fine-tuned for {labels}: give a checkpoint without a head, or one of this task")
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a head that is new is what is wanted here
    torch.manual_seed(seed)
    model = kind.from_pretrained(fetch(name)[0], dtype=torch.float32, use_safetensors=True, **config)
    transformers.logging.set_verbosity(before)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint."""
    return AutoTokenizer.from_pretrained(fetch(name)[0])


def new_bert(shape: Architecture, tokenizer: PreTrainedTokenizerBase, seed: int) -> BertForMaskedLM:
    """A BERT of the given shape with random weights, for the tokenizer's vocabulary.

    Its positions start as sines (Vaswani et al. 2017), near ones alike: read little, it need not first find out that.
    """
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        initializer_range=shape.initializer_range,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config).eval()
    positions = model.bert.embeddings.position_embeddings.weight.data
    angles = torch.arange(len(positions))[:, None] / 10_000 ** (torch.arange(0, shape.width, 2) / shape.width)
    positions.copy_(shape.initializer_range * torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
    return model


@torch.no_grad()
def share_token_types(model: BertForMaskedLM) -> None:
    """Give a pair's second text the token-type vector of the first, for a BERT that has only ever read single texts.

    Its own is still what was drawn at random, and would be noise on half of every pair.
    """
    types = model.bert.embeddings.token_type_embeddings.weight
    types[1] = types[0]


@torch.no_grad()
def start_head(model: PreTrainedModel, counts: np.ndarray) -> None:
    """Give an untrained BERT masked-LM head a good start: pass hidden states on, and guess by word frequency.

    The transform becomes the identity and the bias log p(token), so training need not first learn that "the" is common.
    `counts`: occurrences of each token in the training text [vocabulary].
    """
    predictions = model.cls.predictions
    nn.init.eye_(predictions.transform.dense.weight)
    nn.init.zeros_(predictions.transform.dense.bias)
    smoothed = torch.from_numpy(counts).double() + 0.1  # unseen tokens stay possible
    predictions.bias.copy_((smoothed / smoothed.sum()).log())


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


def student_config(teacher: PretrainedConfig, layers: int) -> DistilBertConfig:
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


def new_student(teacher: PretrainedConfig, layers: int, seed: int) -> DistilBertForMaskedLM:
    """A student with random weights."""
    torch.manual_seed(seed)
    return DistilBertForMaskedLM(student_config(teacher, layers)).eval()


@torch.no_grad()
def student_from_teacher(teacher: PreTrainedModel, layers: Sequence[int]) -> DistilBertForMaskedLM:
    """A student that starts as the teacher with only the listed layers (Sanh et al. 2019, section 3).

    Embeddings and masked-LM head are copied. DistilBERT has no token types: the vector that BERT adds to every token
    of a single text, type 0, is folded into the position embeddings, so with all layers the student is the teacher.

    Raises:
        InputError: layers that the teacher doesn't have.
    """
    layers = choose_layers(teacher.config.num_hidden_layers, layers)
    student = DistilBertForMaskedLM(student_config(teacher.config, len(layers)))
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


def encode(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states [batch, length, width] of a masked language model's encoder; its head is not run."""
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def vocabulary_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The masked-LM head at some positions only: hidden states [..., width] to logits [..., vocabulary]."""
    if model.config.model_type == "bert":
        return model.cls(hidden)
    return model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))))


def parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a checkpoint whole or not at all, for `from_pretrained` to load.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except Exception as error:  # safetensors has its own error for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"cannot save the checkpoint {folder}: {error}") from error


def file_hash(folder: Path) -> str:
    """What a checkpoint's weights are recognised by: twelve hexadecimal digits of the SHA-256 of its weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def size_mb(model: nn.Module) -> float:
    """The weights' size in MB of 10^6 bytes, tied ones counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
