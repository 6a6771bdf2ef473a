"""Exported models on another processor, without one: ONNX Runtime's aarch64 build under QEMU's user emulation.

Its answers are those of the kernels that a real one runs, as far as the emulator is right; its times mean nothing.
`arm64.sh` sets it up.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import ROOT, InputError, records, runners
from .deployed import MODEL, Deployed

VERSION = 1  # raised whenever the code changes the numbers it makes
# What arm64.sh makes: root/, a small Debian; site/, its Python packages; here/, the same ONNX Runtime for this machine.
HERE = ROOT / ".arm64"
EMULATOR = "qemu-aarch64-static"
CORE = "cortex-a76"  # as in phones. QEMU 7.2's default core has i8mm instructions; with them, 8 bits come out wrong
ROWS = {"sst2": 20, "masked_lm": 3}  # an answer takes seconds
TIMEOUT = 900  # seconds
# Runs in both interpreters, the emulated one and this one, with nothing but NumPy and ONNX Runtime.
SCRIPT = """
import sys
import numpy
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given, said = numpy.load(sys.argv[2]), {}
for row in sorted({name.split(".")[0] for name in given.files}, key=int):
    said[row] = session.run(None, {one.name: given[f"{row}.{one.name}"] for one in session.get_inputs()})[0]
numpy.savez(sys.argv[3], **said)
print(onnxruntime.__version__)
"""


def why_not() -> str | None:
    """Why nothing can be emulated here; None if it can."""
    if not shutil.which(EMULATOR):
        return f"{EMULATOR} is not installed: apt-get install qemu-user-static debootstrap, then helpers/arm64.sh"
    return None if _python() and (HERE / "site").is_dir() else "the emulated system is not set up: helpers/arm64.sh"


def _python() -> Path | None:
    return next(iter(sorted((HERE / "root/usr/bin").glob("python3.[0-9]*"))), None)


def answers(model: Path, rows: Sequence[runners.Inputs], emulated: bool) -> tuple[list[np.ndarray], str]:
    """What an exported model says to each row, and the version of ONNX Runtime; on arm64 if `emulated`, or here.

    Raises:
        InputError: the interpreter failed, with its last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        script, given, said = (Path(scratch) / name for name in ("ask.py", "given.npz", "said.npz"))
        script.write_text(SCRIPT)
        np.savez(given, **{f"{n}.{name}": values for n, row in enumerate(rows) for name, values in row.items()})
        command = [str(one) for one in (script, model, given, said)]
        if emulated:
            inside = ["-cpu", CORE, "-L", HERE / "root", "-E", f"PYTHONPATH={HERE / 'site'}", _python()]
            command = [EMULATOR, *map(str, inside), *command]
        else:
            command = [sys.executable, *command]
        packages = os.environ | {"PYTHONPATH": str(HERE / "here")}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=packages, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise InputError(f"{model.name}: no answer within {TIMEOUT} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{model.name}: {'the emulated' if emulated else 'its'} process failed: {last}")
        with np.load(said) as found:
            return [found[str(number)] for number in range(len(rows))], done.stdout.strip()


class Emulated:
    """Units {"head", "variant"}: models in ORT format, asked on arm64 and on this processor."""

    experiment = "arm64"

    def __init__(self, exported: Deployed):
        self.exported = exported

    @property
    def ready(self) -> list[dict]:
        """The units that can be had here, or have been measured already."""
        names = dict.fromkeys((unit["head"], unit["variant"]) for unit in self.exported.ready)
        units, here = [{"head": head, "variant": variant} for head, variant in names], not why_not()
        return [u for u in units if here or self.exported.space.find(self.experiment, u, self.settings(u))]

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        made = self.exported.made_of(unit)
        asked = {"rows": ROWS[unit["head"]], "core": CORE}
        return {"version": VERSION, "made": made, **asked, "cpu": records.cpu()["model"]}

    def measure(self, unit: dict) -> records.Measurement:
        """How far the two processors' logits are apart, and whether they decide alike."""
        model = next(self.exported.folder(unit | {"format": "ort"}).glob("*.ort"))
        texts, sources = self.exported.texts(unit["head"])
        texts = texts[: ROWS[unit["head"]]]
        rows = [inputs for inputs, _, _ in texts]
        (theirs, version), (ours, here) = answers(model, rows, emulated=True), answers(model, rows, emulated=False)
        if version != here:
            raise InputError(f"ONNX Runtime {version} on arm64 and {here} here: run helpers/arm64.sh again")
        same = []
        for (_, at, _), one, other in zip(texts, theirs, ours, strict=True):
            chosen = [logits.reshape(-1, logits.shape[-1])[at].argmax(-1) for logits in (one, other)]
            same.append(chosen[0] == chosen[1])
        apart = max(float(np.abs(one - other).max()) for one, other in zip(theirs, ours, strict=True))
        decided = np.concatenate(same)
        scores = {"largest_difference": apart, "agreement": float(decided.mean()), "rows": len(rows)}
        scores |= {"answers": len(decided)}
        origin = [{"id": f"{MODEL}, {unit['head']}", "revision": None, "onnxruntime": version}]
        return records.Measurement(scores, sources, origin, {})
