"""Models for ONNX Runtime: exported, optimised, quantized, and in its mobile format; `runners` asks them."""

import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import InputError, quantization, records

if TYPE_CHECKING:
    import onnx

OPSET = 20
LABELS = {
    "onnx_fp32": "fp32 (ONNX Runtime)",
    "onnx_int8": "int8, linear layers (ONNX Runtime)",
    "onnx_int8_embeddings": "int8, linear layers and embeddings (ONNX Runtime)",
}


class _Outputs(nn.Module):
    """A model as a function of tensors alone, which is what can be exported."""

    def __init__(self, model: PreTrainedModel, hidden: bool):
        super().__init__()
        self.model, self.hidden = model, hidden

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        given = {"input_ids": input_ids, "attention_mask": attention_mask} | types
        found = self.model(**given, output_hidden_states=self.hidden)
        return (found.logits, found.hidden_states[-1]) if self.hidden else (found.logits,)


def export(model: PreTrainedModel, tokenizer_from: Path, folder: Path, hidden: bool = False) -> None:
    """Export a model with free batch size and length to `folder`/model.onnx, in fp32, with its tokenizer.

    It gives logits and, with `hidden`, its last hidden states. A model that has been cut is exported as what is left
    of it.

    Raises:
        InputError: the model cannot be exported.
    """
    model = model.eval()
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if model.config.model_type == "bert" else [])
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in inputs)
    length = torch.export.Dim("length", max=model.config.max_position_embeddings)
    free = {0: torch.export.Dim("batch"), 1: length}

    def write(path: Path) -> None:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says that torchvision isn't there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Outputs(model, hidden),
                example,
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=["logits"] + ["last_hidden_state"] * hidden,
                dynamic_shapes=tuple(free for _ in inputs),
                external_data=False,
                verbose=False,
            )

    make(folder, "onnx_fp32", tokenizer_from, write)


def quantize(source: Path, folder: Path, embeddings: bool = False) -> None:
    """An exported model with its matrices, and embeddings if asked for, in 8 bits; inputs are quantized as they come.

    A scale for each output channel of a matrix, one for a whole table of embeddings. A head that shares the embeddings'
    table gets its own copy: what is computed on the way, as the turned table is, stays in fp32. Seven bits of the eight
    are used on a processor that would otherwise overflow in adding up products (`reduce_range`: x86 without VNNI).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(only(source))
    del graph.graph.value_info[:]  # the exporter's shapes trip ONNX Runtime's own inference of them
    _store_what_is_turned(graph.graph)
    kinds = ["MatMul", "Gemm"] + (["Gather"] if embeddings else [])

    def write(path: Path) -> None:
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=kinds,
            per_channel=True,
            reduce_range=needs_reduced_range(),
            weight_type=QuantType.QInt8,
        )

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises, on the root logger, to preprocess what has been exported clean
    try:
        make(folder, "onnx_int8_embeddings" if embeddings else "onnx_int8", source, write)
    finally:
        root.setLevel(level)


def _store_what_is_turned(graph: "onnx.GraphProto") -> None:
    """Turn stored matrices ahead, and store them so, in the place of operations that would turn them at each call."""
    from onnx.numpy_helper import from_array, to_array

    stored = {one.name: one for one in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in stored]:
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        turned = to_array(stored[node.input[0]]).transpose(order)
        graph.initializer.append(from_array(np.ascontiguousarray(turned), node.output[0]))
        graph.node.remove(node)


def why_not() -> str | None:
    """Why nothing can be exported here; None if it can."""
    absent = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install -r requirements.txt" if absent else None


def needs_reduced_range() -> bool:
    """Whether 8-bit products overflow in this processor's 16-bit sums: x86 before VNNI."""
    flags = set(records.cpu()["flags"])
    return bool({"avx2", "avx512f"} & flags) and not {"avx512_vnni", "avx_vnni", "amx_int8"} & flags


def mobile(source: Path, folder: Path) -> None:
    """An exported model in ONNX Runtime's mobile format, `folder`/model.ort: optimised ahead, smaller to run."""
    import onnxruntime

    def write(path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path.with_suffix(".ort"))
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(only(source)), options, providers=["CPUExecutionProvider"])

    make(folder, quantization.variant_of(source), source, write)


def only(folder: Path) -> Path:
    """The exported model in a folder.

    Raises:
        InputError: there is none, or more than one.
    """
    found = list(folder.glob("*.onnx"))
    if len(found) != 1:
        raise InputError(f"{folder}: expected one exported model (*.onnx), found {len(found)}: export it first")
    return found[0]


def operations(path: Path) -> list[str]:
    """The kinds of an exported model's operations, in its own order."""
    import onnx

    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def weights(path: Path) -> list[tuple[str, tuple[int, ...], str, float]]:
    """An exported model's weights, the largest first: name, shape, kind of number, and MB of 10^6 bytes."""
    import onnx

    stored = onnx.load(path).graph.initializer
    kinds = [onnx.helper.tensor_dtype_to_np_dtype(one.data_type) for one in stored]
    found = [
        (one.name, tuple(one.dims), kind.name, math.prod(one.dims) * kind.itemsize / 1e6)
        for one, kind in zip(stored, kinds, strict=True)
    ]
    return sorted(found, key=lambda one: -one[-1])


def make(folder: Path, variant: str, tokenizer_from: Path, write: Callable[[Path], None]) -> None:
    """Write a model and what belongs to it into a folder, whole or not at all.

    Raises:
        InputError: it cannot be made, with the first line of the reason.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(building / "model.onnx")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (tokenizer_from / name).exists():
                shutil.copy(tokenizer_from / name, building)
        (building / "variant.json").write_text(json.dumps({"variant": variant}))
        building.chmod(0o755)  # mkdtemp's are closed to others
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    except InputError:
        raise
    except Exception as error:  # the exporter, onnx and ONNX Runtime have many classes of their own
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder.name}: {variant} could not be made: {first}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
