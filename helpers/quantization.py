"""The quantized variants of a model: made from a checkpoint, saved in safetensors, and loaded again as they were."""

import functools
import importlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils.import_utils import is_torchao_available

from . import InputError, models, pruning

# What bitsandbytes leaves as it is: beginnings of names.
HEADS = ["classifier", "pre_classifier", "bert.pooler", "qa_outputs", "cls", "vocab_transform", "vocab_projector"]
LABELS = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "torch_int8": "int8, linear layers (PyTorch dynamic)",
    "torch_int8_embeddings": "int8, linear layers and embeddings (PyTorch dynamic)",
    "torchao_int8": "int8, linear layers (torchao)",
    "bnb_int8": "LLM.int8 (bitsandbytes)",
    "bnb_nf4": "nf4 (bitsandbytes)",
    "bnb_nf4_double": "nf4, double (bitsandbytes)",
    "bnb_fp4": "fp4 (bitsandbytes)",
    "bnb_fp4_double": "fp4, double (bitsandbytes)",
}
TORCHAO = "0.18"  # its tensors can be saved by safetensors from this version on
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEPT = ("tokenizer*", "vocab.txt", "special_tokens_map.json", pruning.FILE)


def save(variant: str, source: Path, target: Path) -> None:
    """Make a variant of the checkpoint in `source` and save it in `target`, whole or not at all.

    Raises:
        InputError: no such variant; it cannot be made here, with the reason; `source` is quantized already.
    """
    if variant not in LABELS:
        raise InputError(f"unknown variant {variant!r}: expected one of {', '.join(LABELS)}")
    if (source / "variant.json").exists():
        raise InputError(f"{source} is {variant_of(source)} already: quantize the checkpoint that it was made from")
    cut = (source / pruning.FILE).exists()
    if reason := why_not(variant, cut):
        raise InputError(f"{LABELS[variant]}: {reason}")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if variant in DTYPES:
        _plain(source, DTYPES[variant]).save_pretrained(temporary)
    elif variant.startswith("torch_"):
        _save_dynamic(dynamic(_plain(source, torch.float32), "embeddings" in variant), temporary)
    elif variant.startswith("torchao"):
        _torchao(source).save_pretrained(temporary)
    else:
        _bitsandbytes(variant, source, torch.device("cpu")).save_pretrained(temporary)
    for pattern in KEPT:
        for path in source.glob(pattern):
            shutil.copy(path, temporary)
    (temporary / "variant.json").write_text(json.dumps({"variant": variant}))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def load(folder: Path, device: torch.device) -> PreTrainedModel:
    """A saved variant, or a plain checkpoint in fp32, ready to predict."""
    variant = variant_of(folder)
    if variant.startswith("torch_"):
        return _load_dynamic(folder)
    if variant.startswith(("bnb", "torchao")):
        prepare(folder)
        return _kind(folder).from_pretrained(folder, device_map={"": str(device)}, use_safetensors=True).eval()
    return _plain(folder, DTYPES[variant]).to(device)


def variant_of(folder: Path) -> str:
    """Which variant is in a folder; fp32 for a plain checkpoint."""
    path = folder / "variant.json"
    return json.loads(path.read_text())["variant"] if path.exists() else "fp32"


def why_not(variant: str, cut: bool = False) -> str | None:
    """Why a variant cannot be had on this machine's processor, of a model that was `cut`; None if it can."""
    if variant.startswith(("bnb", "torchao")) and cut:
        return "transformers loads such a model in its whole shape, and heads were cut out of its matrices"
    if variant.startswith("bnb"):
        return why_no_bits(torch.device("cpu"), 8 if variant == "bnb_int8" else 4)
    if variant.startswith("torchao") and not is_torchao_available(TORCHAO):
        return f"its tensors can be saved by safetensors from torchao {TORCHAO} on, which is not installed here"
    if variant.startswith("torch_") and torch.backends.quantized.engine == "none":
        return "this build of PyTorch has no engine for quantized layers"
    return None


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether a model's layers hold integers, and so cannot be trained."""
    return getattr(model, "hf_quantizer", None) is not None or bool(_quantized_layers(model))


def prepare(folder: Path) -> None:
    """Import all that loading the folder's model will need, so that imports and loading can be timed apart."""
    variant = variant_of(folder)
    _kind(folder)
    if variant.startswith("torch_"):
        import torch.ao.quantization  # noqa: F401
    elif variant.startswith("torchao"):
        import torchao.quantization  # noqa: F401
    elif variant.startswith("bnb"):
        import_bitsandbytes()


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """What a model's weights are in memory: parameters and buffers, scales of bitsandbytes; not what PyTorch packs."""
    found = [part for tensor in (*model.parameters(), *model.buffers()) for part in _parts(tensor)]
    for module in model.modules():
        weight = module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        found += [state.absmax] if state is not None else []
        found += [one for one in (getattr(weight, "SCB", None),) if one is not None]
    return found


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors in one of torchao's: integers, scales."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def packed_bytes(model: nn.Module) -> int:
    """What PyTorch's packed 8-bit layers take, by their shapes: to look at the integers is to copy them."""
    found = 0
    for module in model.modules():
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):  # scale and zero point in 8 bytes, bias in 4
            found += module.out_features * (module.in_features + 8 + 8 + 4)
        elif isinstance(module, torch.ao.nn.quantized.Embedding):  # scale and zero point in 4 bytes
            found += module.num_embeddings * (module.embedding_dim + 4 + 4)
    return found


def _kind(folder: Path) -> type:
    return getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])


def _plain(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return pruning.load(_kind(folder), folder, dtype)


def dynamic(model: PreTrainedModel, embeddings: bool) -> PreTrainedModel:
    """Linear layers, and embeddings if asked for, in 8 bits with a scale a row, in place.

    Inputs are quantized as they come, with one scale for a batch.
    """
    from torch.ao import quantization

    recipe: dict[Callable, object] = {nn.Linear: quantization.per_channel_dynamic_qconfig}
    if embeddings:
        recipe[nn.Embedding] = quantization.float_qparams_weight_only_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, and still the fastest of PyTorch's here
        return quantization.quantize_dynamic(model, recipe, inplace=True)


def _quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    layers = (torch.ao.nn.quantized.dynamic.Linear, torch.ao.nn.quantized.Embedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, layers)}


def _save_dynamic(model: PreTrainedModel, folder: Path) -> None:
    """Each quantized layer as integers, scales and zero points: what PyTorch packs, in a format that is no pickle."""
    layers = _quantized_layers(model)
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if torch.is_tensor(value) and not any(name.startswith(f"{layer}.") for layer in layers)
    }
    for name, layer in layers.items():
        weight = layer.weight()
        tensors[f"{name}.integers"] = weight.int_repr()
        tensors[f"{name}.scales"] = weight.q_per_channel_scales()
        tensors[f"{name}.zero_points"] = weight.q_per_channel_zero_points()
        if hasattr(layer, "bias") and layer.bias() is not None:
            tensors[f"{name}.bias"] = layer.bias()
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}  # some share memory
    save_file(tensors, folder / "model.safetensors")
    model.config.save_pretrained(folder)


def _load_dynamic(folder: Path) -> PreTrainedModel:
    """Each quantized layer from its integers, straight into a model without weights."""
    model = models.skeleton(_kind(folder), AutoConfig.from_pretrained(folder))
    pruning.reshape(model, folder)
    tensors, ao = load_file(folder / "model.safetensors"), torch.ao.nn.quantized
    for name in [key.removesuffix(".integers") for key in tensors if key.endswith(".integers")]:
        weight = torch._make_per_channel_quantized_tensor(
            *(tensors.pop(f"{name}.{part}") for part in ("integers", "scales", "zero_points")), 0
        )
        if isinstance(model.get_submodule(name), nn.Embedding):
            layer = ao.Embedding(*weight.shape, _weight=weight, dtype=torch.quint8)
        else:
            layer = ao.dynamic.Linear(weight.shape[1], weight.shape[0])
            layer.set_weight_bias(weight, tensors.pop(f"{name}.bias", None))
        model.set_submodule(name, layer)
    return models.fill(model, tensors, tie=False)


@functools.cache
def import_bitsandbytes() -> None:
    """Import bitsandbytes, quietly, and without the kernel that it would fetch from the Hub on some processors.

    Raises:
        ImportError: it isn't installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it has a line to say for each layer in each call
    there = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment] # makes its import fail: code comes with packages alone
    try:
        importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        if there is not None:
            sys.modules["kernels"] = there


def _torchao(source: Path) -> PreTrainedModel:
    """Linear layers in 8 bits with a scale a row; inputs are quantized as they come, with one scale a token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from torchao.utils import should_reduce_range

    seven = should_reduce_range(torch.device("cpu"))  # of eight bits, where sums of products would overflow
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(reduce_range=seven))
    given = {"quantization_config": config, "dtype": torch.float32, "device_map": {"": "cpu"}}
    return _kind(source).from_pretrained(source, use_safetensors=True, **given).eval()


def _bitsandbytes(variant: str, source: Path, device: torch.device) -> PreTrainedModel:
    """Encoder matrices in 8 or 4 bits, all else in fp32; loaded afresh, since after a first pass it can't be saved."""
    import_bitsandbytes()
    if variant == "bnb_int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=HEADS)
    else:
        _, kind, *double = variant.split("_")
        four = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": bool(double)}
        config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=HEADS, **four)
    given = {"quantization_config": config, "dtype": torch.float32, "device_map": {"": str(device)}}
    return _kind(source).from_pretrained(source, use_safetensors=True, **given).eval()


@functools.cache
def why_no_bits(device: torch.device, bits: int = 8) -> str | None:
    """Why bitsandbytes' 8 or 4 bits can't be had on the device, found by trying one layer; None if they can."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install -r requirements.txt"
    try:
        import_bitsandbytes()
        layers = sys.modules["bitsandbytes"].nn
        layer = layers.Linear8bitLt(64, 64, has_fp16_weights=False) if bits == 8 else layers.Linear4bit(64, 64)
        layer = layer.to(device)
        with torch.no_grad():
            layer(torch.ones(2, 64, device=device))
    except Exception as error:  # a kernel that this processor or GPU lacks, a library that doesn't load
        first = next(iter(str(error).splitlines()), "no message")
        return f"bitsandbytes does not work here ({type(error).__name__}: {first})"
    return None


def load_int8(folder: str | Path, device: torch.device) -> PreTrainedModel:
    """A plain checkpoint, loaded with its encoder's matrices in 8 bits (bitsandbytes) and all else in fp32.

    Source: LLM.int8(), Dettmers et al. (2022): weights and inputs as 8-bit integers with a scale a row; input columns
    with outliers are multiplied apart, in floating point.

    Raises:
        InputError: bitsandbytes is not installed, or doesn't work here.
    """
    if reason := why_no_bits(device):
        raise InputError(reason)
    return _bitsandbytes("bnb_int8", Path(folder), device)
