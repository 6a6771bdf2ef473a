"""What this machine offers: processor, memory, disk, GPU, the precision that pays on it, how fast it multiplies."""

import os
import shutil
import statistics
import time
from pathlib import Path

import torch

from . import InputError, records
from .profiles import Profile

TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
T4_GFLOPS = 25_000  # about what a T4 reaches at products in fp16 for long, of 65,000 on its data sheet
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device(profile: Profile) -> torch.device:
    """The device that the profile asks for.

    Raises:
        InputError: a GPU is asked for and there is none, or its driver is too old for torch.
    """
    if profile.device == "cuda" and not torch.cuda.is_available():
        times = T4_GFLOPS / statistics.median(_matmul_rates(torch.device("cpu"), torch.float32, repeats=5))
        raise InputError(
            f"device = 'cuda', but torch sees no GPU here{_why_no_gpu()}, and this processor multiplies matrices "
            f"{times:.0f} times as slowly as a T4: an hour of {profile.name} there is {times / 24:.1f} days here. "
            "In Colab, choose Runtime, Change runtime type, T4; or take the profile laptop; or set device to cpu"
        )
    return torch.device("cuda" if torch.cuda.is_available() and profile.device != "cpu" else "cpu")


def precision(profile: Profile) -> str:
    """fp32, bf16 or fp16: what the profile says or else what pays on its device.

    bf16 where the hardware truly has it: a GPU of compute capability 8.0 or more (a T4 emulates it, and
    `torch.cuda.is_bf16_supported()` says True all the same), a CPU with AVX512_BF16 or AMX. Other GPUs take fp16.

    Raises:
        InputError: fp16 training is asked for on a CPU, which has no gradient scaling.
    """
    on = device(profile)
    if profile.precision == "fp16" and on.type == "cpu":
        raise InputError("precision = 'fp16' needs a GPU: set precision to auto, bf16 or fp32")
    if profile.precision != "auto":
        return profile.precision
    if on.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(records.cpu()["flags"]) else "fp32"


def offers(folder: Path) -> dict[str, str]:
    """What a reader has to know of this machine to compare timings: a name and its value each. `folder`: whose disk."""
    flags = telling_flags()
    memory, disk = memory_gb(), shutil.disk_usage(_existing(folder)).free / 1e9
    table = {
        "processor": records.cpu()["model"],
        "telling instructions": ", ".join(flags) or "–",
        "cores, threads that torch uses": f"{usable_cores()}, {torch.get_num_threads()}",
        "memory": f"{memory:.1f} GB" if memory else "–",
        "free disk for results": f"{disk:.0f} GB",
    }
    if not torch.cuda.is_available():
        return table | {"GPU": "none", "torch": torch.__version__}
    gpu = torch.cuda.get_device_properties(0)
    text = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 1e9:.1f} GB"
    return table | {"GPU": text, "torch": torch.__version__}


def telling_flags() -> list[str]:
    """The processor's instructions that numbers and speeds depend on."""
    return [flag for flag in TELLING if flag in records.cpu()["flags"]]


def usable_cores() -> int:
    """Cores that this process may use, which in a container or a batch job are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float | None:
    """Main memory in GB (10^9 bytes), or the container's share of it if that is less; None where it cannot be told."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total / 1e9


def precision_in_words(profile: Profile) -> str:
    """The precision that `profile` takes here, and why."""
    taken, on = precision(profile), device(profile).type
    if profile.precision != "auto":
        return f"{taken}, as the profile {profile.name} asks for"
    if on == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        why = "has bf16 in hardware" if taken == "bf16" else "has no bf16 in hardware, but fast fp16"
        return f"{taken}: the GPU, of compute capability {capability}, {why}"
    why = "has" if taken == "bf16" else "lacks"
    return f"{taken}: the processor {why} instructions for bf16 (avx512_bf16 or amx_bf16)"


def hardware_precisions(profile: Profile) -> list[str]:
    """The precisions that the device truly has, not those it emulates: fp32, bf16 where real, fp16 on a GPU."""
    if device(profile).type == "cuda":
        return ["fp32", "fp16"] + (["bf16"] if torch.cuda.get_device_capability()[0] >= 8 else [])
    return processor_precisions()


def processor_precisions() -> list[str]:
    """The precisions that the processor has instructions for, x86's and ARM's."""
    flags = set(records.cpu()["flags"])
    real = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}
    return ["fp32"] + [name for name, needed in real.items() if needed & flags]


def matmul_rates(profile: Profile, dtype: str, repeats: int = 7) -> list[float]:
    """Rates of one product of two square matrices on the profile's device, in GFLOP/s (2 n³ operations), run by run.

    Two runs go before the measured ones. n is 1024 on a processor and 8192 on a GPU, large enough to keep either busy.
    """
    return _matmul_rates(device(profile), DTYPES[dtype], repeats)


def _matmul_rates(on: torch.device, dtype: torch.dtype, repeats: int) -> list[float]:
    n = 8192 if on.type == "cuda" else 1024
    left, right = (torch.randn(n, n, device=on).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        _wait(on)
        start = time.perf_counter()
        left @ right
        _wait(on)
        seconds.append(time.perf_counter() - start)
    return [2 * n**3 / taken / 1e9 for taken in seconds[2:]]


def _wait(on: torch.device) -> None:
    if on.type == "cuda":  # a GPU works on after the call has returned
        torch.cuda.synchronize(on)


def _why_no_gpu() -> str:
    """In brackets, what is to be done about a GPU that is there and torch cannot use; nothing where there is none."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: a build without CUDA
        if "driver on your system is too old" in str(error):
            return " (the NVIDIA driver is too old for this torch: update it, or install a torch built for it)"
    return ""


def _existing(folder: Path) -> Path:
    return next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
