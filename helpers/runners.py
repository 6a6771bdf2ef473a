"""A saved model of any kind, made ready to be asked: PyTorch's, quantized ones, ONNX Runtime's and OpenVINO's.

Nothing heavy is imported before it is needed: what a runtime costs to import is part of what it costs to use.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import InputError

NAMES = ("input_ids", "attention_mask", "token_type_ids")
Inputs = dict[str, np.ndarray]  # input_ids, attention_mask and, for a BERT, token_type_ids: int64 [batch, length]


class Runner(NamedTuple):
    """A model that is ready: called with inputs it gives logits in fp32 [batch, classes] or [batch, length, words].

    answer: all that it gives, the logits first. touch: read every page of its weights, so that all of them are in
    memory, and return their size in bytes (0 where the runtime doesn't tell). inputs: the names of those it takes, in
    its own order; what else it is given is left out.
    """

    answer: Callable[[Inputs], list[np.ndarray]]
    touch: Callable[[], int]
    inputs: list[str]

    def __call__(self, inputs: Inputs) -> np.ndarray:
        return self.answer(inputs)[0]


def runtime(folder: Path) -> str:
    """What runs the model in a folder: "torch", "onnx" or "openvino".

    Raises:
        InputError: there is no model in the folder.
    """
    if list(folder.glob("*.onnx")) + list(folder.glob("*.ort")):
        return "onnx"
    if list(folder.glob("*.xml")):
        return "openvino"
    if list(folder.glob("*.safetensors")):
        return "torch"
    raise InputError(f"{folder}: no model there: expected *.safetensors, *.onnx, *.ort or *.xml")


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Give torch back the threads that it has now, whatever is loaded and whatever fails within."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def imports(folder: Path) -> None:
    """Import what the folder's model needs."""
    if (kind := runtime(folder)) != "torch":
        importlib.import_module({"onnx": "onnxruntime", "openvino": "openvino"}[kind])
        importlib.import_module("tokenizers")
    else:
        from transformers import AutoTokenizer  # noqa: F401 (its parts come when they are asked for)

        from . import quantization

        quantization.prepare(folder)


def tokenizer(folder: Path) -> Callable[[str], Inputs]:
    """The folder's tokenizer, by the library that goes with its runtime: one text to inputs of one row."""
    if runtime(folder) != "torch":
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found.no_truncation()
        found.no_padding()

        def encode(text: str) -> Inputs:
            encoded = found.encode(text)
            rows = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
            return {name: np.array([row]) for name, row in (rows | {"token_type_ids": encoded.type_ids}).items()}

        return encode
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    return lambda text: dict(loaded([text], return_tensors="np", return_token_type_ids=True))


def load(folder: Path, threads: int, device: str = "cpu") -> Runner:
    """The folder's model, on so many threads.

    Raises:
        InputError: more threads than there are cores; a model that its runtime can't load.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InputError(f"{threads} threads on {cores} cores: expected 1 to {cores}")
    kind = runtime(folder)
    if kind == "torch":
        return _torch(folder, threads, device)
    return _onnx(folder, threads) if kind == "onnx" else _openvino(folder, threads)


def _torch(folder: Path, threads: int, device: str) -> Runner:
    import torch

    from . import quantization

    torch.set_num_threads(threads)
    model = quantization.load(folder, torch.device(device))
    unwanted = {"token_type_ids"} if model.config.model_type == "distilbert" else set()

    @torch.inference_mode()
    def run(inputs: Inputs) -> list[np.ndarray]:
        given = {name: torch.from_numpy(values).to(device) for name, values in inputs.items() if name not in unwanted}
        return [model(**given).logits.float().cpu().numpy()]

    def touch() -> int:
        stored = {tensor.data_ptr(): tensor.detach() for tensor in quantization.tensors_of(model)}  # tied ones once
        packed = quantization.packed_bytes(model)  # made when the model was loaded, and so in memory already
        for tensor in stored.values():
            tensor.contiguous().view(-1).view(torch.uint8)[::4096].sum()  # a byte of each page
        return packed + sum(tensor.numel() * tensor.element_size() for tensor in stored.values())

    return Runner(run, touch, [name for name in NAMES if name not in unwanted])


def _onnx(folder: Path, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle, it leaves the cores to others
    path = next(iter([*folder.glob("*.ort"), *folder.glob("*.onnx")]))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each way to fail
        raise InputError(f"{path}: ONNX Runtime cannot load it: {next(iter(str(error).splitlines()), '')}") from None
    wanted: list[str] = [given.name for given in session.get_inputs()]

    def run(inputs: Inputs) -> list[np.ndarray]:
        feed: dict[str, Any] = {name: inputs[name] for name in wanted}
        return session.run(None, feed)

    return Runner(run, lambda: 0, wanted)  # a session reads all of its weights when it starts


def _openvino(folder: Path, threads: int) -> Runner:
    import openvino

    # What is not in 8 bits stays in fp32, as everywhere here; it would take bf16 where the processor has it.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(next(folder.glob("*.xml")), "CPU", options)
    wanted = [given.any_name for given in compiled.inputs]
    request = compiled.create_infer_request()

    def run(inputs: Inputs) -> list[np.ndarray]:
        found = request.infer({name: inputs[name] for name in wanted})
        return [found[given].copy() for given in compiled.outputs]

    return Runner(run, lambda: 0, wanted)  # it packs all of its weights anew when it is compiled
