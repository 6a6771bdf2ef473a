"""What this machine offers: processor, memory, disk, GPU, the precision that pays on it, how fast it multiplies."""

import os
import shutil
import time
from pathlib import Path

import torch

from . import models, records
from .profiles import Profile

TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def offers(folder: Path) -> dict[str, str]:
    """What a reader has to know of this machine to compare timings: a name and its value each. `folder`: whose disk."""
    flags = [flag for flag in TELLING if flag in records.cpu()["flags"]]
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
    taken, device = models.precision(profile), models.device(profile).type
    if profile.precision != "auto":
        return f"{taken}, as the profile {profile.name} asks for"
    if device == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        why = "has bf16 in hardware" if taken == "bf16" else "has no bf16 in hardware, but fast fp16"
        return f"{taken}: the GPU, of compute capability {capability}, {why}"
    why = "has" if taken == "bf16" else "lacks"
    return f"{taken}: the processor {why} instructions for bf16 (avx512_bf16 or amx_bf16)"


def hardware_precisions(profile: Profile) -> list[str]:
    """The precisions that the device truly has, not those it emulates: fp32, bf16 where real, fp16 on a GPU."""
    if models.device(profile).type == "cuda":
        return ["fp32", "fp16"] + (["bf16"] if torch.cuda.get_device_capability()[0] >= 8 else [])
    return ["fp32"] + (["bf16"] if {"avx512_bf16", "amx_bf16"} & set(records.cpu()["flags"]) else [])


def matmul_rates(profile: Profile, precision: str, repeats: int = 7) -> list[float]:
    """Rates of one product of two square matrices on the profile's device, in GFLOP/s (2 n³ operations), run by run.

    Two runs go before the measured ones. n is 1024 on a processor and 8192 on a GPU, large enough to keep either busy.
    """
    device = models.device(profile)
    n = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return [2 * n**3 / taken / 1e9 for taken in seconds[2:]]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # a GPU works on after the call has returned
        torch.cuda.synchronize(device)


def _existing(folder: Path) -> Path:
    return next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
