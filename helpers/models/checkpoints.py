"""Checkpoints by name: encoders, masked-LM heads, heads for tasks; saved whole, known by their hash."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import numpy as np
import safetensors
import torch
import transformers
from torch import Tensor, nn
from transformers import BertForMaskedLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import InputError, reason
from ..measure import records

if TYPE_CHECKING:  # who loads a model imports this module, too, and that is timed
    from ..profiles import Architecture, Profile

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")  # no pickle, no code
FILES += ("tokenizer*", "vocab.txt", "vocab.json", "merges.txt", "*.model", "special_tokens_map.json")
TOKENIZER = ("tokenizer*", "vocab.txt", "special_tokens_map.json")  # what of these is the tokenizer's
SAVED = "weights.sha256"  # the hash of a checkpoint of ours as it was saved, so that damage shows
WEIGHTS = {"dtype": torch.float32, "use_safetensors": True}

transformers.logging.disable_progress_bar()  # of loading and saving, which take a second
huggingface_hub.utils.enable_progress_bars()  # of downloads, which that has switched off too


class DamagedError(InputError):
    """A checkpoint of ours is there, and not as it was saved: to be said, and not taken for one that is missing."""


def fetch(name: str) -> tuple[Path, dict]:
    """The folder of the checkpoint `name`, a Hub id or a folder, and its provenance; InputError if it is neither.

    `name@revision` pins it: a commit's hash on the Hub, of a folder the hash of its weights; InputError for another.
    """
    place, _, pin = (name, "", "") if Path(name).is_dir() else name.partition("@")
    folder, source = Path(place), {"id": place}
    if folder.is_dir():
        if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
            raise InputError(f"{name} is no checkpoint: expected a folder with config.json and *.safetensors")
        source = {"id": folder.name, "revision": file_hash(folder), "weights": "ours"}
    else:
        folder = _snapshot(place, pin or None)
        if not list(folder.glob("*.safetensors")):
            raise InputError(f"{name} has no *.safetensors (a pickle is not loaded): convert it, or take another")
        random = folder.name.startswith(records.RANDOM_REVISION)
        source |= {"revision": folder.name, "weights": "random" if random else "pretrained"}
    if not source["revision"].startswith(pin):
        raise InputError(f"{name}: it is pinned, and here is revision {source['revision']}")
    return folder, source


@functools.cache
def _snapshot(repo_id: str, revision: str | None) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=FILES))
    except huggingface_hub.errors.RevisionNotFoundError:
        raise InputError(f"model {repo_id!r}: the Hub has no revision {revision!r} of it") from None
    except huggingface_hub.errors.GatedRepoError:
        raise InputError(f"model {repo_id!r} is gated: ask for access on its page, then `hf auth login`") from None
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.HFValidationError):
        why = "the Hub has no model of that name, or it is private (and it is no folder here)"
    except Exception as error:  # no network, a proxy, a server that is down: the library has no one class for these
        why = f"the Hub cannot be reached and the model was not fetched before ({reason(error)})"
    raise InputError(f"model {repo_id!r}: {why}; check the name, or fetch it ahead with ./run_all.sh --download")


def download(profile: "Profile") -> list[str]:
    """Fetch every checkpoint of the profile, so that a later run needs no network; what was fetched, a line each."""
    names = [name for name in (profile.teacher, profile.released) if name and name != "miniworld"]
    return [f"{source['id']} at {source['revision'][:12]}" for _, source in map(fetch, names)]


def load_config(name: str) -> PretrainedConfig:
    """The configuration of a checkpoint; InputError if it is neither a BERT nor a DistilBERT."""
    try:
        config = transformers.AutoConfig.from_pretrained(fetch(name)[0])
    except (ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: its config.json is damaged, or names no model that transformers has") from error
    if config.model_type not in ("bert", "distilbert"):
        raise InputError(f"{name} is a {config.model_type!r} model: a teacher must be a BERT or DistilBERT encoder")
    return config


def load_masked_lm(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """A masked language model in fp32, its tokenizer and its provenance.

    `source["head"]` tells whether the checkpoint has a masked-LM head; where it doesn't, a fresh one is there.
    """
    load_config(name)
    (model, missing), source = load(transformers.AutoModelForMaskedLM, name), fetch(name)[1]
    head = not any(key.startswith(("cls.", "vocab_")) for key in missing)
    return model.eval(), load_tokenizer(name), source | {"parameters": parameters(model), "head": head}


def load_with_head(kind: type, name: str, seed: int, **config) -> PreTrainedModel:
    """The encoder of a checkpoint in fp32 under a head for a task: a fresh one, drawn from the seed, unless it has one.

    `kind` is an Auto class, as AutoModelForSequenceClassification, `config` goes to the model (num_labels=3).
    InputError if the checkpoint has such a head already, for another number of labels.
    """
    there = load_config(name)
    wanted = config.get("num_labels", there.num_labels)
    if "ForSequenceClassification" in str(there.architectures) and there.num_labels != wanted:
        labels = f"{there.num_labels} labels, and the task has {wanted}"
        raise InputError(f"{name} was fine-tuned for {labels}: give a checkpoint without a head, or one of this task")
    torch.manual_seed(seed)
    return load(kind, name, **config)[0]


def load(kind: type, name: str, **config) -> tuple[PreTrainedModel, list[str]]:
    """A model in fp32, and the weights that were drawn at random; InputError if those are not of a head alone."""
    try:
        with quiet("transformers"):  # of what is missing: that is looked at here
            model, report = kind.from_pretrained(fetch(name)[0], **WEIGHTS, output_loading_info=True, **config)
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: its weights are damaged, or not of its config.json ({reason(error)})") from error
    encoder = [key for key in sorted(report["missing_keys"]) if key.startswith(f"{model.base_model_prefix}.")]
    lacking = [key for key in encoder if ".pooler." not in key]
    of_encoder = re.compile(r"(?!.*_ids)(.*\.)?(layer|embeddings)\.")
    left = list(filter(of_encoder.match, sorted(report["unexpected_keys"])))
    if lacking or left:
        what = f"{len(lacking)} weights of the encoder are not in it" if lacking else f"{len(left)} do not belong to it"
        raise InputError(f"{name}: {what}; {'it has ' + left[0] if left else lacking[0]}: give them the model's names")
    return model, sorted(report["missing_keys"])


@contextlib.contextmanager
def quiet(logger: str | None = None) -> Iterator[None]:
    """Errors alone of a library that says more than there is to say; None: of all, also of what is imported here."""
    said = logging.getLogger(logger)
    level, handlers = said.level, said.handlers[:]
    said.setLevel(logging.ERROR)
    try:
        yield
    finally:
        said.setLevel(level)
        said.handlers[:] = handlers


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; InputError if there is none, or one that is not this model's."""
    folder, config = fetch(name)[0], load_config(name)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"{name} has no tokenizer: expected tokenizer.json or vocab.txt beside its weights")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = [token for token in tokenizer.get_vocab() if token.isalpha() and token not in tokenizer.all_special_tokens]
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{name}: its tokenizer has {len(tokenizer):,} tokens, the model knows {config.vocab_size:,}")
    if tokenizer.tokenize("A") == tokenizer.tokenize("a") and any(word != word.lower() for word in words):
        says = '"do_lower_case": false in tokenizer_config.json keeps them'
        raise InputError(f"{name}: its vocabulary has capitals that its tokenizer never uses; {says}")
    return tokenizer


def new_bert(shape: "Architecture", tokenizer: PreTrainedTokenizerBase, seed: int) -> BertForMaskedLM:
    """A BERT of the given shape with random weights, for the tokenizer's vocabulary.

    Its positions start as sines (Vaswani et al. 2017), near ones alike: read little, it need not first find out that.
    """
    torch.manual_seed(seed)
    config = transformers.BertConfig(
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
def start_head(model: PreTrainedModel, counts: np.ndarray) -> None:
    """Give an untrained BERT masked-LM head a good start: pass hidden states on, and guess by word frequency.

    The transform becomes the identity and the bias log p(token), so training need not first learn that "the" is common.
    `counts`: occurrences of each token in the training text [vocabulary].
    """
    predictions = model.cls.predictions
    nn.init.eye_(predictions.transform.dense.weight)
    nn.init.zeros_(predictions.transform.dense.bias)
    smoothed = torch.full_like(predictions.bias, 0.1, dtype=torch.double)  # unseen tokens stay possible
    smoothed[: len(counts)] += torch.from_numpy(counts)  # there may be more rows than tokens
    predictions.bias.copy_((smoothed / smoothed.sum()).log())


def encode(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, **types: Tensor) -> Tensor:
    """Last hidden states [batch, length, width] of a masked language model's encoder; its head is not run."""
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state


def vocabulary_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The masked-LM head at some positions only: hidden states [..., width] to logits [..., vocabulary]."""
    if model.config.model_type == "bert":
        return model.cls(hidden)
    return model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))))


def predict(model: nn.Module, batch: dict[str, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """A masked language model's last hidden states [batch, length, width], and its logits [tokens, vocabulary].

    `chosen` [batch, length] says of which tokens. A model that isn't transformers' is asked for both at once. Which of
    two texts a token is in, BERT is told where the batch knows it (`token_type_ids`); a DistilBERT has to find out.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if not isinstance(model, PreTrainedModel):
        return model(inputs, chosen)
    if "token_type_ids" in batch and model.config.model_type == "bert":
        inputs["token_type_ids"] = batch["token_type_ids"]
    hidden = encode(model, **inputs)
    few = hidden[chosen]
    if not len(few) and not torch.is_grad_enabled():  # torchao cannot multiply nothing by a matrix
        return hidden, few.new_empty(0, model.config.vocab_size)
    return hidden, vocabulary_logits(model, few)


def parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def written(folder: Path, tokenizer_from: Path | None = None) -> Iterator[Path]:
    """A new folder to write a model into, which then takes `folder`'s place: whole or not at all.

    With the tokenizer of another folder, if one is named. InputError, in a line, if it cannot be made.
    """
    building = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")  # by whose name it is found if that is killed
    try:
        building.mkdir(parents=True, exist_ok=True)
        yield building
        for path in (p for pattern in TOKENIZER for p in tokenizer_from.glob(pattern)) if tokenizer_from else ():
            shutil.copy(path, building)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    except InputError:
        raise
    except Exception as error:  # a full disk; safetensors, exporters and their kin have classes of their own
        raise InputError(f"{folder.name} could not be made: {reason(error)}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a checkpoint whole or not at all, for `from_pretrained` to load; InputError if it cannot be written."""
    with written(folder) as building:
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        (building / SAVED).write_text(file_hash(building), encoding="utf-8")


def file_hash(folder: Path) -> str:
    """What a checkpoint's weights are recognised by: twelve hexadecimal digits of the SHA-256 of its weight files."""
    paths = sorted(path for kind in ("safetensors", "onnx", "ort", "bin") for path in folder.glob(f"*.{kind}"))
    found, saved = _hash_once(*((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)), folder / SAVED
    if not paths or saved.exists() and saved.read_text(encoding="utf-8") != found:
        raise DamagedError(f"{folder}: its weights are not those that were saved; delete it to have them made again")
    return found


@functools.cache  # every unit's settings ask for it, and a model may have half a gigabyte
def _hash_once(*files: tuple[Path, int, int]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def longest(config: PretrainedConfig) -> int:
    """The most tokens that a model takes; a RoBERTa counts its positions from the padding's number on."""
    first = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return config.max_position_embeddings - first


def size_mb(model: nn.Module) -> float:
    """The weights' size in MB of 10^6 bytes, tied ones counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6


def skeleton(kind: type, config: PretrainedConfig) -> PreTrainedModel:
    """A model of the class without any weights, to be filled; nothing is drawn and no memory taken."""
    with torch.device("meta"):
        return kind(config).eval()


def fill(model: PreTrainedModel, tensors: dict[str, Tensor], tie: bool = True) -> PreTrainedModel:
    """Put tensors into a skeleton by name, tie what is tied, compute what isn't saved; InputError if one is missing."""
    for name, value in tensors.items():
        module, leaf = _place(model, name)
        setattr(module, leaf, nn.Parameter(value, requires_grad=value.is_floating_point()))
    if tie:
        model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:  # BERT's and DistilBERT's own: positions count up, token types are 0
            module, leaf = _place(model, name)
            counted = (torch.arange if leaf == "position_ids" else torch.zeros)(buffer.shape[-1], dtype=buffer.dtype)
            setattr(module, leaf, counted.expand(buffer.shape))
    if lacking := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InputError(f"the checkpoint lacks {lacking[0]}: save it again")
    return model


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that PyTorch itself has quantized, by name."""
    layers = (torch.ao.nn.quantized.dynamic.Linear, torch.ao.nn.quantized.Embedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, layers)}
