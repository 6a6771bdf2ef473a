"""What this machine offers: its device, cores, the precision that pays on it, and how fast a model reads here."""

import copy
import os
from typing import TYPE_CHECKING

import torch
from torch.utils.benchmark import Timer

from .. import InputError
from ..profiles import Profile
from . import records

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BACKWARD = 3  # learning from a token costs about three times as much as reading it
ROW = 128  # tokens of the rows whose reading is timed
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_rates: dict[tuple[str, str, str], float] = {}  # of each shape, device and precision: every experiment asks


def device(profile: Profile) -> torch.device:
    """The device that the profile asks for; InputError if that is a GPU, and torch sees none."""
    if profile.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device = 'cuda', but torch sees no GPU here{_why_no_gpu()}: in Colab, choose Runtime, Change runtime "
            "type, T4; elsewhere take the profile laptop, or set device to cpu"
        )
    return torch.device("cuda" if torch.cuda.is_available() and profile.device != "cpu" else "cpu")


def precision(profile: Profile) -> str:
    """fp32, bf16 or fp16: what the profile says or else what pays on its device.

    bf16 where the hardware truly has it: a GPU of compute capability 8.0 or more (a T4 emulates it, and
    `torch.cuda.is_bf16_supported()` says True all the same), a CPU with AVX512_BF16 or AMX. Other GPUs take fp16.
    InputError if fp16 training is asked for on a CPU, which has no gradient scaling.
    """
    on = device(profile)
    if profile.precision == "fp16" and on.type == "cpu":
        raise InputError("precision = 'fp16' needs a GPU: set precision to auto, bf16 or fp32")
    if profile.precision != "auto":
        return profile.precision
    if on.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(records.cpu()["flags"]) else "fp32"


def usable_cores() -> int:
    """Cores that this process may use, which in a container or a batch job are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_cores(key: str, threads: list[int]) -> None:
    """Refuse more threads, under this key of the profile, than there are cores, with an InputError."""
    if max(threads) > usable_cores():
        raise InputError(f"{key} has {max(threads)}, and this machine has cores: {usable_cores()}; lower it")


def gpu_precisions() -> list[str]:
    """The precisions that the GPU has instructions for, not those that it emulates."""
    return ["fp32", "fp16"] + (["bf16"] if torch.cuda.get_device_capability()[0] >= 8 else [])


def processor_precisions() -> list[str]:
    """The precisions that the processor has instructions for, x86's and ARM's."""
    flags = set(records.cpu()["flags"])
    real = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
    return ["fp32"] + [name for name, needed in real.items() if needed & flags]


def tokens_per_s(config: "PretrainedConfig", device: torch.device, precision: str) -> float:
    """Rate at which an encoder of this shape, with random weights, reads in training's precision, in tokens a second.

    To plan by, and no more: from one step of learning, forward and backward, on a batch.
    """
    key = config.to_json_string(), str(device), precision
    if key not in _rates:
        from transformers import AutoModel

        model = AutoModel.from_config(copy.deepcopy(config), dtype=torch.float32).to(device)  # which changes it
        batch = torch.full((8 if device.type == "cpu" else 64, ROW), 5, device=device)

        def learn() -> None:
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                loss = model(input_ids=batch).last_hidden_state.float().pow(2).mean()
            loss.backward()

        timer = Timer("learn()", globals={"learn": learn}, num_threads=torch.get_num_threads())  # warms up, and waits
        _rates[key] = BACKWARD * batch.numel() / timer.timeit(1).mean
    return _rates[key]


def _why_no_gpu() -> str:
    """In brackets, what is to be done about a GPU that torch cannot use; nothing where there is none."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: a build without CUDA
        if "driver on your system is too old" in str(error):
            return " (the NVIDIA driver is too old for this torch: update it, or install a torch built for it)"
    return ""
