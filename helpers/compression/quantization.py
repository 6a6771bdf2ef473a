"""Models in 16, 8 and 4 bits by PyTorch's libraries: made from a checkpoint, saved in safetensors, loaded again."""

import functools
import importlib
import importlib.util
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils.import_utils import is_torchao_available

from .. import InputError
from ..models import checkpoints
from . import pruning

# What bitsandbytes leaves as it is: beginnings of names.
HEADS = ["classifier", "pre_classifier", "bert.pooler", "qa_outputs", "cls", "vocab_transform", "vocab_projector"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TORCHAO = "0.18"  # its tensors can be saved by safetensors from this version on


def save(bits: str, source: Path, target: Path) -> None:
    """Make the checkpoint in `source` anew in other bits, and save it in `target`, whole or not at all.

    InputError for no such bits, for bits that cannot be had here (the reason is told), and if `source` is quantized.
    """
    if bits_of(source) != "fp32":
        raise InputError(f"{source} is {bits_of(source)} already: quantize the checkpoint that it was made from")
    if bits not in DTYPES and (reason := why_not(bits, cut=(source / pruning.FILE).exists())):
        raise InputError(f"{bits}: {reason}")
    with checkpoints.written(target, source) as building:
        if bits in DTYPES:
            pruning.load(source, DTYPES[bits]).save_pretrained(building)
        elif bits.startswith("torch_"):
            _save_dynamic(dynamic(pruning.load(source), "embeddings" in bits), building)
        elif bits.startswith("torchao"):
            _torchao(source).save_pretrained(building)
        elif bits.startswith("bnb_"):
            load_in_bits(bits, source, torch.device("cpu")).save_pretrained(building)
        else:
            raise InputError(f"unknown variant {bits!r}: expected one of {', '.join(DTYPES)}, torch… or bnb_…")
        if (source / pruning.FILE).exists():
            shutil.copy(source / pruning.FILE, building)
        note(bits, building)


def load(folder: Path, device: str | torch.device) -> PreTrainedModel:
    """A model in whatever bits it was saved, or a plain checkpoint in fp32, ready to predict."""
    bits = bits_of(folder)
    if bits.startswith("torch_"):
        return _load_dynamic(folder)
    if bits.startswith(("bnb", "torchao")):
        prepare(folder)
        return pruning.kind(folder).from_pretrained(folder, device_map={"": str(device)}, use_safetensors=True).eval()
    return pruning.load(folder, DTYPES[bits]).to(device)


def note(bits: str, folder: Path) -> None:
    """Say beside a saved model in which bits it is."""
    (folder / "variant.json").write_text(json.dumps({"variant": bits}))


def bits_of(folder: Path) -> str:
    """In which bits a saved model is; fp32 for a plain checkpoint."""
    path = folder / "variant.json"
    return json.loads(path.read_text())["variant"] if path.exists() else "fp32"


def why_not(bits: str, device: str = "cpu", cut: bool = False) -> str | None:
    """Why bits of PyTorch, of a model that was `cut`, cannot be had on a device, or are only emulated; None if not."""
    from ..measure import machine

    if bits.startswith(("bnb", "torchao")) and cut:
        return "transformers loads such a model in its whole shape, and heads were cut out of its matrices"
    if bits.startswith("bnb"):
        return why_no_bits(torch.device(device), 8 if bits == "bnb_int8" else 4)
    if device != "cpu":
        no = f"this GPU has no {bits} in hardware" if bits in DTYPES else "for processors"
        return None if bits in machine.gpu_precisions() else no
    if bits in DTYPES and bits not in machine.processor_precisions():
        return f"this processor has no instructions for {bits}: it would unpack each number, and gain nothing"
    if bits.startswith("torchao") and not is_torchao_available(TORCHAO):
        return f"its tensors can be saved by safetensors from torchao {TORCHAO} on, which is not installed here"
    if bits.startswith("torch_") and torch.backends.quantized.engine == "none":
        return "this build of PyTorch has no engine for quantized layers"
    if bits.endswith("compiled") and not shutil.which("g++"):
        return "torch.compile needs a C++ compiler, and there is no g++ here"
    return None


def prepare(folder: Path) -> None:
    """Import all that loading the folder's model will need, so that imports and loading can be timed apart."""
    pruning.kind(folder)
    kind = bits_of(folder).partition("_")[0]
    if kind == "bnb":
        import_bitsandbytes()
    elif library := {"torch": "torch.ao.quantization", "torchao": "torchao.quantization"}.get(kind):
        importlib.import_module(library)


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """What a model's weights are in memory: parameters and buffers, scales of bitsandbytes; not what PyTorch packs."""
    found = [part for tensor in (*model.parameters(), *model.buffers()) for part in _parts(tensor)]
    for weight in (module._parameters.get("weight") for module in model.modules()):
        found += [getattr(getattr(weight, "quant_state", None), "absmax", None), getattr(weight, "SCB", None)]
    return [tensor for tensor in found if tensor is not None]


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors in one of torchao's: integers, scales."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def packed_bytes(model: nn.Module) -> int:
    """What PyTorch's packed 8-bit layers take, by their shapes: to look at the integers is to copy them."""
    found = 0
    for layer in checkpoints.quantized_layers(model).values():
        if isinstance(layer, torch.ao.nn.quantized.Embedding):  # a scale and a zero point in 4 bytes
            found += layer.num_embeddings * (layer.embedding_dim + 4 + 4)
        else:  # scale and zero point in 8 bytes, bias in 4
            found += layer.out_features * (layer.in_features + 8 + 8 + 4)
    return found


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


def _save_dynamic(model: PreTrainedModel, folder: Path) -> None:
    """Each quantized layer as integers, scales and zero points: what PyTorch packs, in a format that is no pickle."""
    layers = checkpoints.quantized_layers(model)
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
    model = pruning.skeleton(folder)
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
    return checkpoints.fill(model, tensors, tie=False)


@functools.cache
def import_bitsandbytes() -> None:
    """Import bitsandbytes, quietly, and without the kernel that it would fetch from the Hub on some processors."""
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
    return pruning.kind(source).from_pretrained(source, use_safetensors=True, **given).eval()


def load_in_bits(bits: str, source: Path, device: torch.device) -> PreTrainedModel:
    """A plain checkpoint with its encoder's matrices in bitsandbytes' 8 or 4 bits, all else in fp32.

    Loaded afresh each time, since after a first pass it can't be saved. Source of the 8: LLM.int8(), Dettmers et al.
    (2022): weights and inputs as integers with a scale a row; columns with outliers are multiplied apart, in floats.
    """
    import_bitsandbytes()
    if bits == "bnb_int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=HEADS)
    else:
        _, kind, *double = bits.split("_")
        four = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": bool(double)}
        config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=HEADS, **four)
    given = {"quantization_config": config, "dtype": torch.float32, "device_map": {"": str(device)}}
    return pruning.kind(source).from_pretrained(source, use_safetensors=True, **given).eval()


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
