"""Models exported for ONNX Runtime, in fp32, 8 and 4 bits; `runtimes` asks them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import InputError
from ..measure import records
from ..models import checkpoints
from ..models.checkpoints import quiet
from . import quantization, runtimes

if TYPE_CHECKING:
    import onnx

OPSET = 20
CALIBRATION_ROWS, BLOCK = 300, 32  # rows that fix scales ahead; weights that share one of 4 bits


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
    of it. InputError if it cannot be.
    """
    model = model.eval()
    inputs = ["input_ids", "attention_mask"]
    inputs += ["token_type_ids"] if getattr(model.config, "type_vocab_size", 0) > 1 else []
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in inputs)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=checkpoints.longest(model.config))}
    with checkpoints.written(folder, tokenizer_from) as building, warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Outputs(model, hidden),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=["logits"] + ["last_hidden_state"] * hidden,
            dynamic_shapes=tuple(free for _ in inputs),
            verbose=False,
        )
        _forget_where(program)
        program.save(building / "model.onnx", external_data=False)
        quantization.note("onnx_fp32", building)


def _forget_where(program: torch.onnx.ONNXProgram) -> None:
    """Take out what the exporter notes for its own debugging: lines of code with the paths of this machine."""
    graph = program.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for noted in (program.model, graph, *graph, *values):
        noted.metadata_props.clear()


def quantize(source: Path, folder: Path, bits="onnx_int8", examples: Sequence[dict] = (), but: Sequence = ()) -> None:
    """An exported model in fewer bits: `bits` is onnx_int8, onnx_int8_embeddings, onnx_int8_static or onnx_int4.

    8 bits have a scale for each output channel of a matrix, and one for a whole table of embeddings. What goes into a
    product is quantized as it comes, and must be looked at first, each time anew; static, by the range that it had on
    `examples` (input_ids, attention_mask, token_type_ids, int [tokens] each). 4 bits have a scale for each `BLOCK` of a
    matrix' weights, beside 8 in embeddings and small heads. A head that shares the embeddings' table gets its own copy:
    what is computed on the way, as the turned table is, stays in fp32. Seven bits of the eight are used on a processor
    that would otherwise overflow in adding up products (`reduce_range`: x86 without VNNI). `but`: names of products
    that stay in fp32. InputError if `source` has no exported model.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    if not (source / "model.onnx").exists():
        raise InputError(f"{source}: no model.onnx there: export the model first")
    graph = onnx.load(source / "model.onnx")
    del graph.graph.value_info[:]  # the exporter's shapes trip ONNX Runtime's own inference of them
    _store_what_is_turned(graph.graph)
    eight = {"per_channel": True, "reduce_range": needs_reduced_range(), "weight_type": QuantType.QInt8}
    eight["nodes_to_exclude"] = list(but)
    kinds = ["MatMul", "Gemm"] + ["Gather"] * (bits in ("onnx_int8_embeddings", "onnx_int4"))
    # On the root logger it advises to preprocess what has been exported clean.
    with checkpoints.written(folder, source) as building, quiet():
        target = building / "model.onnx"
        if bits == "onnx_int8_static":
            wanted = [given.name for given in graph.graph.input]
            rows = ({name: np.asarray(one[name], dtype=np.int64)[None] for name in wanted} for one in examples)
            eight |= {"activation_type": QuantType.QUInt8, "extra_options": {"MatMulConstBOnly": True}}
            reader = SimpleNamespace(get_next=lambda: next(rows, None))
            quantize_static(graph, target, reader, op_types_to_quantize=kinds, **eight)
        else:
            if bits == "onnx_int4":
                with quiet():  # it sets up logging for everybody
                    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
                four = MatMulNBitsQuantizer(graph, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
                four.process()
                graph, eight["extra_options"] = four.model.model, {"DefaultTensorType": onnx.TensorProto.FLOAT}
            quantize_dynamic(graph, target, op_types_to_quantize=kinds, **eight)
        quantization.note(bits, building)


def _store_what_is_turned(graph: "onnx.GraphProto") -> None:
    """Turn stored matrices ahead, and store them so, in the place of operations that would turn them at each call."""
    from onnx.numpy_helper import from_array, to_array

    stored = {one.name: one for one in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in stored]:
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        turned = to_array(stored[node.input[0]]).transpose(order)
        graph.initializer.append(from_array(np.ascontiguousarray(turned), node.output[0]))
        graph.node.remove(node)


def needs_reduced_range() -> bool:
    """Whether 8-bit products overflow in this processor's 16-bit sums: x86 before VNNI."""
    flags = set(records.cpu()["flags"])
    return bool({"avx2", "avx512f"} & flags) and not {"avx512_vnni", "avx_vnni", "amx_int8"} & flags


class MaskedLM(nn.Module):
    """An exported masked language model as `checkpoints.predict` asks one: inputs, chosen → hidden states, logits."""

    device = torch.device("cpu")

    def __init__(self, folder: Path, threads: int):
        """`folder`: a model for ONNX Runtime that gives its hidden states, too."""
        super().__init__()
        self.run = runtimes.load(folder, threads)

    def forward(self, inputs: dict[str, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states [batch, length, width], and the chosen tokens' logits [tokens, vocabulary]."""
        given = {name: values.numpy() for name, values in inputs.items()}
        given["token_type_ids"] = np.zeros_like(given["input_ids"])
        logits, hidden = map(torch.from_numpy, self.run.answer(given))
        return hidden, logits[chosen]
