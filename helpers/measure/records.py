"""One JSON file per measurement, with its provenance; and reading them back.

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
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import ROOT, InputError

if TYPE_CHECKING:  # who loads a model imports this module, too, and that is timed: nothing heavy up here
    from ..profiles import Profile

PACKAGES = (  # those that numbers may depend on
    *("torch", "transformers", "datasets", "tokenizers", "accelerate", "numpy", "safetensors"),
    *("torchao", "bitsandbytes", "onnx", "onnxruntime", "onnxscript"),
)
# Of a processor's instructions, those that numbers and speeds depend on.
TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
SHAPE = dict.fromkeys(("unit", "metrics", "settings", "provenance", "details"), dict) | {"experiment": str}
ORIGIN = {"started": str, "seconds": int | float, "data": list, "models": list, "versions": dict}  # its provenance
CODE = ("helpers", "tools", "notebooks", "requirements.txt", "constraints.txt", "run_all.sh")  # what `commit` speaks of
DRIVE = Path("/content/drive")  # where Colab mounts Google Drive
RANDOM_REVISION = "0000000000"  # a revision that starts so holds weights drawn at random


class Workspace:
    """Where a run of `profile` keeps what it makes: under `store`, or the project's own folder.

    Runs on randomly drawn weights go to `<profile>-random`, so that they are never taken for the real thing.
    """

    def __init__(self, profile: "Profile", store: str | None = None, name: str | None = None):
        """`name`: of the folder in results/, if not the profile's. InputError if Google Drive is not mounted."""
        if not isinstance(store, str | Path | None):
            raise InputError(f"store = {store!r}: expected the name of a folder")
        self.root, self._profile = Path(store).expanduser() if store else ROOT, profile
        if self.root.is_relative_to(DRIVE) and not (DRIVE / "MyDrive").is_dir():
            command = f"from google.colab import drive; drive.mount('{DRIVE}')"
            raise InputError(f"store = {store!r}: Google Drive is not mounted; run `{command}` in a cell first")
        if name:
            self.name = name

    @functools.cached_property
    def name(self) -> str:
        """Of the folders that hold this run: the profile's, or another where its teacher's weights are random."""
        return self._profile.name + ("-random" if _is_random(self._profile.teacher) else "")

    results = property(lambda self: self.root / "results" / self.name)
    records = property(lambda self: self.results / "records")
    tables = property(lambda self: self.results / "tables")
    notebooks = property(lambda self: self.results / "notebooks")
    report = property(lambda self: self.results / "report")
    figures = property(lambda self: self.root / "figures" / self.name)
    checkpoints = property(lambda self: self.root / "checkpoints" / self.name)

    def path(self, experiment: str, unit: dict, settings: dict) -> Path:
        """The file that holds, or will hold, the record of `unit` measured with `settings`."""
        return self.records / experiment / file_name(unit, settings)

    def sweep(self) -> None:
        """Delete what processes that were killed had half written: their number is in its name."""
        import psutil

        for folder in (self.results, self.figures, self.checkpoints):
            for path in folder.rglob("*.tmp"):
                number = path.suffixes[-2:-1] or [""]
                if number[0][1:].isdigit() and not psutil.pid_exists(int(number[0][1:])):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def find(self, experiment: str, unit: dict, settings: dict) -> dict | None:
        """The record of `unit` with just these settings, if there is one."""
        path = self.path(experiment, unit, settings)
        return read_record(path) if path.exists() else None

    def write(self, experiment: str, unit: dict, settings: dict, measured: "Measurement", provenance: dict) -> dict:
        """Write one record, whole or not at all, and return it; InputError if a metric is not a finite number."""
        for name, value in measured.metrics.items():
            if not math.isfinite(value):
                raise InputError(f"{experiment} {slug(unit)}: {name} is {value}, not a finite number; nothing recorded")
        record = {"experiment": experiment, "unit": unit, "metrics": measured.metrics, "settings": settings}
        record |= {"provenance": provenance, "details": measured.details}
        write_whole(self.path(experiment, unit, settings), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record


class Measurement(NamedTuple):
    """What measuring a unit gives: its metrics, the data and models they come from, and details such as curves."""

    metrics: dict[str, float]
    data: list[dict]
    models: list[dict]
    details: dict = {}


def slug(unit: dict) -> str:
    """A unit as part of a file name: {"model": "student", "seed": 0} is `student-seed0`."""
    words = [str(v) if isinstance(v, str) else f"{k}{v}" for k, v in unit.items()]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words))


def digest(settings: dict) -> str:
    """Eight hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def file_name(unit: dict, settings: dict) -> str:
    """By which a unit's record with these settings is found."""
    return f"{slug(unit)}-{digest(settings)}.json"


def read_record(path: Path) -> dict:
    """A record as written; InputError if the file is damaged."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # a folder
        text = ""
    return parse(text, f"{path}: not a whole record; delete it to have it measured again")


def parse(text: str, problem: str) -> dict:
    """A record from its text; InputError, saying `problem`, if a part is missing, or a metric is no finite number."""
    try:
        record = json.loads(text)
        parts = [(record[name], kind) for name, kind in SHAPE.items()]
        parts += [(record["provenance"][name], kind) for name, kind in ORIGIN.items()]
        numbers = record["metrics"].values()
        if all(isinstance(part, kind) for part, kind in parts) and numbers and all(map(math.isfinite, numbers)):
            return record
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(problem)


def of(found: Sequence[dict], **wanted) -> list[dict]:
    """The records whose unit has these values, as `model="student", stage="base"`."""
    return [r for r in found if all(r["unit"].get(name) == value for name, value in wanted.items())]


def pack(values: np.ndarray) -> str:
    """Predictions or labels as one line of a record: "0 1 1 0", scores with all the digits that fp32 has."""
    return " ".join(f"{value:.9g}" for value in values)


def unpack(line: str) -> np.ndarray:
    """What `pack` put into a record, float [rows], to the last bit."""
    return np.array(line.split(), dtype=np.float32).astype(float)


class Evidence:
    """The records of a run of the series, for claims to be judged by."""

    def __init__(self, space: Workspace):
        self.space, self.problems = space, []

    def __call__(self, experiment: str) -> list[dict]:
        """The newest record of each unit, as they were made; a damaged file is named in `problems` and left out."""
        every = []
        for path in sorted((self.space.records / experiment).glob("*.json")):
            try:
                every.append(read_record(path))
            except InputError as error:
                self.problems = list(dict.fromkeys([*self.problems, str(error)]))
        every.sort(key=lambda record: record["provenance"]["started"])
        found = list({slug(record["unit"]): record for record in every}.values())
        if mixed := _mixed(found):
            one, other, what = mixed
            says = f"{experiment}: {one} and {other} differ in {what}, so nothing here is compared: measure both again"
            self.problems = list(dict.fromkeys([*self.problems, f"{says} with one profile, or delete the older"]))
            return []
        return found


def _mixed(found: Sequence[dict]) -> tuple[str, str, str] | None:
    """Two units that are compared and were not made alike, and in what; None if there are none.

    Models and seeds of a task are compared, so recipe, precision and data must be the same; and of a model, what it
    started from. Students that were pretrained must have had the same teacher, text and steps.
    """
    seen: dict[tuple, tuple[str, str]] = {}
    for record in found:
        unit, settings, data = record["unit"], record["settings"], record["provenance"]["data"]
        told: dict[tuple, Any] = {}
        if {"recipe", "start"} <= settings.keys():  # fine-tuned
            task = slug({name: value for name, value in unit.items() if name not in ("model", "seed")})
            read = [[one.get(key) for key in ("id", "config", "revision", "rows", "capped")] for one in data]
            told = {("recipe", task): settings["recipe"], ("precision", task): settings.get("precision")}
            told |= {("data", task): read, ("start", unit["model"]): settings["start"]}
        elif {"recipe", "layers"} <= settings.keys():  # pretrained students
            told = {(name, ""): settings.get(name) for name in ("teacher", "corpus", "precision")}
            told["training", ""] = settings["recipe"].get("training")
        for key, value in told.items():
            first = seen.setdefault(key, (slug(unit), digest({"": value})))
            if first[1] != digest({"": value}):
                return first[0], slug(unit), key[0]
    return None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part; InputError if it cannot be."""
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
    return {"model": fields.get("model name", platform.machine()), "flags": sorted(filter(telling.match, flags))}


def processor() -> dict[str, Any]:
    """What settings say of the processor that something is timed on: machines of one name differ in these flags.

    They are the instructions that numbers and speeds depend on.
    """
    return {"cpu": cpu()["model"], "flags": [flag for flag in TELLING if flag in cpu()["flags"]]}


def _gpu(torch: Any) -> dict[str, Any] | None:
    if torch is None or not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(0)
    memory = round(gpu.total_memory / 1e9, 1)
    return {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory_gb": memory}


def _commit() -> dict[str, Any]:
    """The last commit that touched the code, and whether the code differs from it; both None outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words, "--", *CODE]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("log", "-1", "--format=%H") or None, "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def revision(repo_id: str, kind: str = "model", pin: str | None = None) -> str | None:
    """The commit that a Hub id, or a pin of it, is: as the Hub says or, without it, as last downloaded; else None."""
    import huggingface_hub as hub  # half a second to import, and not needed by a run that stays at home

    try:
        return hub.HfApi().repo_info(repo_id, repo_type=kind, revision=pin).sha
    except Exception:  # offline, unreachable or unknown: the cache may still know
        cached = Path(hub.constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}"
        if pin and (cached / "snapshots" / pin).is_dir():
            return pin
        return (cached / "refs" / "main").read_text().strip() if (cached / "refs" / "main").exists() else None


@functools.cache
def _is_random(teacher: str) -> bool:
    if teacher == "miniworld" or Path(teacher).is_dir():
        return False
    return (revision(teacher.partition("@")[0]) or "").startswith(RANDOM_REVISION)


# --- all records as one file: packed where they were made, as in Colab, and unpacked into the project at home

LARGEST, MOST = 20_000_000, 500_000_000  # bytes of one record (there are some of a million), and of all together


def archive(space: Workspace) -> Path:
    """All records of a workspace in one file, results/<profile>-records.zip; InputError if there are none."""
    found = sorted(space.records.rglob("*.json"))
    if not found:
        raise InputError(f"no records in {space.records} yet: run a notebook that measures something first")
    path = space.results.with_name(f"{space.name}-records.zip")
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in found:
            packed.write(record, record.relative_to(space.results.parent).as_posix())
    temporary.replace(path)
    return path


def restore(path: Path, results: Path = ROOT / "results") -> dict[str, int]:
    """Put packed records where a run would have put them, all or none: how many came, and were there already.

    A record that is there stays as it is. InputError if any of it is damaged, or no record of ours.
    """
    from ..profiles import NAMES

    run = rf"({'|'.join(NAMES)})(-random)?|gpu-[\w-]+"
    ours = re.compile(rf"({run})/records/\w+/[A-Za-z0-9._-]+-[0-9a-f]{{8}}\.json")
    try:
        with zipfile.ZipFile(path) as packed:
            for one in packed.infolist():
                if not ours.fullmatch(one.filename) or one.file_size > LARGEST:
                    raise InputError(f"{path}: {one.filename} is no record of this project; nothing was unpacked")
            if not 0 < sum(one.file_size for one in packed.infolist()) < MOST:
                raise InputError(f"{path}: no records in it, or over {MOST / 1e6:,.0f} MB of them")
            texts = {name: packed.read(name).decode() for name in packed.namelist()}
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError, RuntimeError) as error:  # damaged, encrypted …
        raise InputError(f"{path}: no whole archive of records ({error}); pack it again") from None
    for name, text in texts.items():
        problem = f"{path}: {name} is no whole record of its unit; nothing was unpacked, pack it again"
        record = parse(text, problem)
        if Path(name).name != file_name(record["unit"], record["settings"]):
            raise InputError(problem)
    new = {name: text for name, text in texts.items() if not (results / name).exists()}
    for name, text in new.items():
        write_whole(results / name, text)
    return {"new": len(new), "there already": len(texts) - len(new)}
