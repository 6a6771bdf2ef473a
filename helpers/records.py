"""One JSON file per measurement, with its provenance; reading them back as a table.

A record is found again by its unit and its settings: changed settings mean a new measurement, never a stale number.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ROOT, InputError

if TYPE_CHECKING:  # who loads a model imports this module, too, and that is timed: nothing heavy up here
    import pandas as pd

    from .profiles import Profile

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "accelerate",
    "numpy",
    "safetensors",
    "torchao",
    "bitsandbytes",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "nncf",
)
CODE = ("helpers", "notebooks", "requirements.txt", "constraints.txt", "run_all.sh")  # what `commit` speaks of
DRIVE = Path("/content/drive")  # where Colab mounts Google Drive
RANDOM_REVISION = "0000000000"  # a revision that starts so holds weights drawn at random


class Workspace:
    """Where a run of `profile` keeps what it makes: under `store`, or the project's own folder.

    Runs on randomly drawn weights go to `<profile>-random`, so that they are never taken for the real thing.

    Raises:
        InputError: the store is on a Google Drive that is not mounted.
    """

    def __init__(self, profile: "Profile", store: str | None = None, name: str | None = None):
        """`name`: of the folder in results/, instead of the profile's."""
        root = Path(store) if store else ROOT
        if root.is_relative_to(DRIVE) and not (DRIVE / "MyDrive").is_dir():
            command = f"from google.colab import drive; drive.mount('{DRIVE}')"
            raise InputError(f"store = {store!r}: Google Drive is not mounted; run `{command}` in a cell first")
        self.name = name or profile.name + ("-random" if _is_random(profile.teacher) else "")
        self.results = root / "results" / self.name
        self.records, self.tables = self.results / "records", self.results / "tables"
        self.notebooks, self.report = self.results / "notebooks", self.results / "report"
        self.figures, self.checkpoints = root / "figures" / self.name, root / "checkpoints" / self.name

    def path(self, experiment: str, unit: dict, settings: dict) -> Path:
        """The file that holds, or will hold, the record of `unit` measured with `settings`."""
        return self.records / experiment / f"{slug(unit)}-{digest(settings)}.json"

    def find(self, experiment: str, unit: dict, settings: dict) -> dict | None:
        """The record of `unit` with just these settings, if there is one."""
        path = self.path(experiment, unit, settings)
        return read_record(path) if path.exists() else None

    def write(self, experiment: str, unit: dict, settings: dict, measured: "Measurement", provenance: dict) -> dict:
        """Write one record, whole or not at all, and return it.

        Raises:
            InputError: a metric that is not a finite number, or a folder that cannot be written to.
        """
        for name, value in measured.metrics.items():
            if not math.isfinite(value):
                raise InputError(f"{experiment} {slug(unit)}: {name} is {value}, not a finite number; nothing recorded")
        record = {"experiment": experiment, "unit": unit, "metrics": measured.metrics, "settings": settings}
        record |= {"provenance": provenance, "details": measured.details}
        write_whole(self.path(experiment, unit, settings), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record

    def read(self, experiment: str) -> "pd.DataFrame":
        """All records of an experiment, one a row: the unit's and the metrics' names as columns, the whole in `record`.

        A damaged file is named and left out.
        """
        import pandas as pd

        rows = []
        for path in sorted((self.records / experiment).glob("*.json")):
            try:
                record = read_record(path)
            except InputError as error:
                print(error)
                continue
            rows.append(record["unit"] | record["metrics"] | {"record": record})
        return pd.DataFrame(rows)


class Measurement:
    """What measuring a unit gives: its metrics, the data and models they come from, and details such as curves."""

    def __init__(self, metrics: dict[str, float], data: list[dict], models: list[dict], details: dict | None = None):
        self.metrics, self.data, self.models, self.details = metrics, data, models, details or {}


def slug(unit: dict) -> str:
    """A unit as part of a file name: {"model": "student", "seed": 0} is `student-seed0`."""
    words = [str(v) if isinstance(v, str) else f"{k}{v}" for k, v in unit.items()]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))


def digest(settings: dict) -> str:
    """Eight hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read_record(path: Path) -> dict:
    """A record as written.

    Raises:
        InputError: the file is damaged.
    """
    return parse(path.read_text(errors="replace"), str(path))


def parse(text: str, name: str) -> dict:
    """A record from its text; `name`: what to call it.

    Raises:
        InputError: it is damaged.
    """
    try:
        record = json.loads(text)
        if {"experiment", "unit", "metrics", "settings", "provenance"} <= record.keys():
            return record
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{name}: not a whole record; delete it to have it measured again")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        raise InputError(f"cannot write {path}: {error.strerror or error}; free it and run again") from error


@functools.cache
def versions() -> dict[str, str]:
    """The versions of the packages that numbers may depend on; of an optional one, if it is there."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def provenance(started: datetime, data: list[dict], models: list[dict]) -> dict[str, Any]:
    """Where a measurement begun at `started` comes from: code, versions, hardware, data and models."""
    torch = sys.modules.get("torch")
    return {
        **_commit(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "versions": {"python": platform.python_version()} | versions(),
        "cpu": cpu()["model"],
        "cpu_flags": cpu()["flags"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": _gpu(torch),
        "data": data,
        "models": models,
    }


@functools.cache
def cpu() -> dict[str, Any]:
    """The processor's name, and those of its flags that numbers and speed depend on."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return {"model": platform.processor() or platform.machine(), "flags": []}
    fields = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", info, re.MULTILINE))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    telling = re.compile(r"avx|amx|fma|f16c|sse4|asimd|sve|bf16|i8mm")
    return {
        "model": fields.get("model name", platform.machine()),
        "flags": sorted(filter(telling.match, flags)),
    }


def _gpu(torch: Any) -> dict[str, Any] | None:
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    return {
        "name": properties.name,
        "capability": capability,
        "memory_gb": round(properties.total_memory / 1e9, 1),
    }


def _commit() -> dict[str, Any]:
    """The last commit that touched the code, and whether the code differs from it; both None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words, "--", *CODE]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("log", "-1", "--format=%H") or None,
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def revision(repo_id: str, kind: str = "model") -> str | None:
    """The commit that a Hub id stands for: as the Hub says or, without it, as last downloaded; else None."""
    import huggingface_hub as hub  # half a second to import, and not needed by a run that stays at home

    try:
        return hub.HfApi().repo_info(repo_id, repo_type=kind).sha
    except Exception:  # offline, unreachable or unknown: the cache may still know
        cached = Path(hub.constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}" / "refs" / "main"
        return cached.read_text().strip() if cached.exists() else None


@functools.cache
def _is_random(teacher: str) -> bool:
    if teacher == "miniworld" or Path(teacher).is_dir():
        return False
    return (revision(teacher) or "").startswith(RANDOM_REVISION)
