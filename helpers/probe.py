"""What `speed.alone` runs in a process of its own: load a model, ask it once, say how long it took and what it held.

python -m helpers.probe FOLDER TEXT THREADS DEVICE STARTED, with STARTED the time at which the process was started.
The last line of its output is JSON.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from . import runners


def resident() -> dict[str, float]:
    """Resident memory in MB of 10^6 bytes: its peak, what is the process' own now, and what could be read again.

    Linux' own count for the process; `getrusage` would start from the peak of the process that started this one.
    """
    names = {"VmHWM": "peak_memory_mb", "RssAnon": "anonymous_mb", "RssFile": "file_backed_mb"}
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {ours: int(lines[name].split()[0]) * 1024 / 1e6 for name, ours in names.items()}  # they come in kB


def main(folder: Path, text: str, threads: int, device: str, started: float) -> dict:
    """Times in seconds, memory in MB of 10^6 bytes beyond what was held before the model came, and the logits.

    What was held before: the interpreter, the libraries and the tokenizer.
    """
    begun = time.time()
    runners.imports(folder)
    imported = time.time()
    inputs = runners.tokenizer(folder)(text)
    with contextlib.suppress(OSError):  # the peak is counted anew from here on, where the system lets it be
        Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    run = runners.load(folder, threads, device)
    loaded = time.time()
    logits = run(inputs).ravel()[:8].tolist()
    ended = time.time()
    held = {name: value - before[name] for name, value in resident().items()}
    weights = run.touch()  # rows of embeddings that nobody asked for are not in memory before
    held |= {"first_peak_memory_mb": held["peak_memory_mb"], "footprint_mb": weights / 1e6}
    held["peak_memory_mb"] = resident()["peak_memory_mb"] - before["peak_memory_mb"]
    if device != "cpu":
        held["peak_gpu_memory_mb"] = sys.modules["torch"].cuda.max_memory_allocated() / 1e6
    times = {"imports_s": imported - begun, "loading_s": loaded - imported, "first_s": ended - loaded}
    return times | {"cold_start_s": ended - started, "logits": logits} | held


if __name__ == "__main__":
    folder, text, threads, device, started = sys.argv[1:]
    print(json.dumps(main(Path(folder), text, int(threads), device, float(started))))
