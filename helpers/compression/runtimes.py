"""A saved model of any kind, made ready to be asked: PyTorch's, quantized ones and ONNX Runtime's.

Nothing heavy is imported before it is needed: what a runtime costs to import is part of what it costs to use. `alone`
asks a model in a process of its own, python -m helpers.compression.runtimes FOLDER TEXT THREADS DEVICE STARTED, where
STARTED is the time at which the process was started; the last line of its output is JSON.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import ROOT, InputError

NAMES = ("input_ids", "attention_mask", "token_type_ids")
Inputs = dict[str, np.ndarray]  # input_ids, attention_mask and, for a BERT, token_type_ids: int64 [batch, length]


def unpadded(ids: np.ndarray) -> Inputs:
    """Token ids [batch, length], none of them padding, as a runner takes them."""
    return dict(zip(NAMES, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))


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
    """What runs the model in a folder: "torch" or "onnx"; InputError if there is no model in it."""
    for ending, kind in (("onnx", "onnx"), ("ort", "onnx"), ("safetensors", "torch")):
        if any(folder.glob(f"*.{ending}")):
            return kind
    raise InputError(f"{folder}: no model there: expected *.safetensors, *.onnx or *.ort")


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
    """Import what the folder's model and its tokenizer need."""
    if runtime(folder) == "onnx":
        importlib.import_module("onnxruntime")
        importlib.import_module("tokenizers")
    else:
        from transformers import AutoTokenizer  # noqa: F401 (its parts come when they are asked for)

        from . import quantization

        quantization.prepare(folder)


def tokenizer(folder: Path) -> Callable[[str], Inputs]:
    """The folder's tokenizer, by the library that goes with its runtime: one text to inputs of one row."""
    if runtime(folder) == "torch":
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(folder)
        return lambda text: dict(loaded([text], return_tensors="np", return_token_type_ids=True))
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()

    def encode(text: str) -> Inputs:
        encoded = found.encode(text)
        rows = encoded.ids, encoded.attention_mask, encoded.type_ids
        return {name: np.array([row]) for name, row in zip(NAMES, rows, strict=True)}

    return encode


def load(folder: Path, threads: int, device: str = "cpu") -> Runner:
    """The folder's model, on so many threads; InputError for more than the cores, or if its runtime can't load it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InputError(f"{threads} threads on {cores} cores: expected 1 to {cores}")
    return _onnx(folder, threads) if runtime(folder) == "onnx" else _torch(folder, threads, device)


def _torch(folder: Path, threads: int, device: str) -> Runner:
    import torch

    from . import quantization

    torch.set_num_threads(threads)
    model = quantization.load(folder, torch.device(device))
    if quantization.bits_of(folder).endswith("compiled"):
        model.compile(dynamic=True)  # once for all lengths, when it is first asked
    unwanted = {"token_type_ids"} if getattr(model.config, "type_vocab_size", 0) < 2 else set()

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
    wanted = [given.name for given in session.get_inputs()]

    def run(inputs: Inputs) -> list[np.ndarray]:
        return session.run(None, {name: inputs[name] for name in wanted})

    return Runner(run, lambda: 0, wanted)  # a session reads all of its weights when it starts


def alone(folder: Path, text: str, threads: int, device: str = "cpu", timeout: float = 300.0) -> dict:
    """Load a model in a process of its own and ask it once: how long that takes from the process' start, and memory.

    Returns:
        imports_s, loading_s, first_s and cold_start_s (all three, and the interpreter's own start; the file is likely
        in the system's cache); peak_memory_mb, the peak of the resident size once every weight has been read, less what
        was held before the model was loaded, and first_peak_memory_mb, that of the first answer alone (rows of
        embeddings that nobody asked for are not read for it); of what stays, anonymous_mb and file_backed_mb;
        footprint_mb, the weights' own size, 0 where the runtime doesn't tell; logits, for a check; and, on a GPU,
        peak_gpu_memory_mb, the most that was allocated there. InputError with its last line if the process failed.
    """
    given = str(folder), text, str(threads), device, str(time.time())
    try:
        command = [sys.executable, "-m", "helpers.compression.runtimes", *given]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise InputError(f"{folder.name}: no answer within {timeout:.0f} s in a process of its own") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{folder.name}: its own process ended with {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(every: Sequence[dict]) -> dict[str, float]:
    """Of what several processes of `alone` took and held, the medians; nothing of none."""
    names = [name for name in (every[0] if every else ()) if name not in ("logits", "footprint_mb")]
    return {name: float(np.median([one[name] for one in every])) for name in names}


def resident() -> dict[str, float]:
    """Resident memory in MB of 10^6 bytes: its peak, what is the process' own now, and what could be read again.

    Linux' own count for the process; `getrusage` would start from the peak of the process that started this one.
    """
    names = {"VmHWM": "peak_memory_mb", "RssAnon": "anonymous_mb", "RssFile": "file_backed_mb"}
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {ours: int(lines[name].split()[0]) * 1024 / 1e6 for name, ours in names.items()}  # they come in kB


def ask_once(folder: Path, text: str, threads: int, device: str, started: float) -> dict:
    """Times in seconds, memory in MB of 10^6 bytes beyond what was held before the model came, and the logits.

    What was held before: the interpreter, the libraries and the tokenizer.
    """
    begun = time.time()
    imports(folder)
    imported = time.time()
    inputs = tokenizer(folder)(text)
    peaks = ("peak_memory_mb", "first_peak_memory_mb")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        peaks = ()  # they are counted anew from here on; else they would miss what the imports had peaked at
    before = resident()
    run = load(folder, threads, device)
    loaded = time.time()
    logits = run(inputs).ravel()[:8].tolist()
    ended = time.time()
    held = {name: value - before[name] for name, value in resident().items()}
    weights = run.touch()  # rows of embeddings that nobody asked for are not in memory before
    held |= {"first_peak_memory_mb": held["peak_memory_mb"], "footprint_mb": weights / 1e6}
    held["peak_memory_mb"] = resident()["peak_memory_mb"] - before["peak_memory_mb"]
    if device != "cpu":
        held["peak_gpu_memory_mb"] = sys.modules["torch"].cuda.max_memory_allocated() / 1e6
    held = {name: value for name, value in held.items() if name not in peaks}
    times = {"imports_s": imported - begun, "loading_s": loaded - imported, "first_s": ended - loaded}
    return times | {"cold_start_s": ended - started, "logits": logits} | held


if __name__ == "__main__":
    folder, text, threads, device, started = sys.argv[1:]
    print(json.dumps(ask_once(Path(folder), text, int(threads), device, float(started))))
