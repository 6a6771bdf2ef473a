"""The notebooks as files: what each declares, which ones a run takes, which settings they know; and their kernels.

A notebook declares in its metadata, under `series`: `needs`, the numbers of those that must finish before it; `after`,
of those that it waits for, whether they finish or fail; `times`, whether it times things and so has to run alone, as
long as there is something to measure; `experiments`, the records it writes.

Kernels are warm: each is forked from one process that has imported already what the notebooks import. torch,
transformers, datasets and seaborn take some six seconds to import, the same six for each notebook. Nothing is computed
before the fork, so kernels share code and no state.
"""

import ast
import asyncio
import difflib
import gc
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import nbformat
import yaml
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from helpers import ROOT, InputError, profiles
from helpers.measure.sweep import READ_ONLY

NOTEBOOKS = ROOT / "notebooks"
IMPORT = re.compile(r"^(?:from|import) (\w[\w.]*)(?: import (.+))?", re.MULTILINE)
SET_BY_RUNNER = {"profile": "--profile", "fresh": "--fresh", "overrides": "--set and a key of the profile"}
FOLDERS = ("store", "teacher", "released", "corpus.id")  # these are, or may be, paths
TEXTS = (*FOLDERS, "corpus.train", "corpus.heldout")  # what --set takes as it stands: 2026-10-01 is a name


class Notebook:
    """A notebook of the series, and what a run has to know of it; InputError if the file is damaged.

    parameters: the names assigned in the cell tagged `parameters`. imports: modules. The rest is as declared.
    """

    def __init__(self, path: Path):
        self.path, self.name, self.number = path, path.stem, path.stem.split("_")[0]
        try:
            notebook = nbformat.read(path, as_version=4)
        except ValueError as error:
            raise InputError(f"{path}: no whole notebook; get it from the repository again") from error
        series = notebook.metadata.get("series", {})
        self.needs, self.after, self.experiments = (set(series.get(k, ())) for k in ("needs", "after", "experiments"))
        self.times: bool = series.get("times", False)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        tagged = "\n".join(cell.source for cell in code if "parameters" in cell.metadata.get("tags", []))
        lines = [line for line in ast.parse(tagged).body if isinstance(line, ast.Assign)]
        self.parameters = {ast.unparse(target) for line in lines for target in line.targets}
        self.imports: set[str] = set()  # to be there ahead; of `from a import b`, where b may be a module, a and a.b
        for module, names in IMPORT.findall("\n".join(cell.source for cell in code)):
            self.imports |= {module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))}


def select(only: str | None = None) -> list[Notebook]:
    """The notebooks to run, in order: all, or those that `only` lists, as in "02,05"; InputError if one is unknown."""
    notebooks = [Notebook(path) for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
    if only is None:
        return notebooks
    words = [word.strip().removesuffix(".ipynb") for word in only.split(",")]
    wanted = {word and word.zfill(2) for word in words}
    if unknown := wanted.difference(*({one.number, one.name} for one in notebooks)):
        raise InputError(f"--only: no notebook {min(unknown)!r}; there are {', '.join(one.name for one in notebooks)}")
    return [one for one in notebooks if {one.number, one.name} & wanted]


def sort_settings(settings: list[str], notebooks: list[Notebook]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`KEY=VALUE` each, the value in YAML: overrides of the profile, and parameters that the notebooks have.

    InputError if one is not of this form, or its key is known neither to the profile nor to one of the notebooks.
    """
    overrides, parameters = {}, {}
    known = set().union(*(notebook.parameters for notebook in notebooks)) - set(SET_BY_RUNNER)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise InputError(f"--set {setting:.80}: expected KEY=VALUE, as in distillation.training.steps=100")
        if key in SET_BY_RUNNER:
            raise InputError(f"--set {setting:.80}: this one is set with {SET_BY_RUNNER[key]}")
        if not (profiles.is_key(key) or key in known):
            close = difflib.get_close_matches(key, sorted(known.union(profiles.known_keys())))
            hint = f"did you mean {' or '.join(close)}?" if close else "they are listed in helpers/profiles/"
            raise InputError(f"--set {setting:.80}: no {key!r} in the profile or in a selected notebook; {hint}")
        plain = key in TEXTS and text != "null" and text[:1] not in ("'", '"')
        value = text if plain else _value(setting, text)
        if key in FOLDERS and isinstance(value, str):
            path = from_caller(value)
            value = str(path) if key == "store" or path.is_dir() or value.startswith(("~", "/", "./", "../")) else value
        (overrides if profiles.is_key(key) else parameters)[key] = value
    return overrides, parameters


def from_caller(path: str) -> Path:
    """A path as it was meant where the command was given; `~` is home, and InputError says if there is none."""
    try:
        return Path(os.environ.get("SERIES_CALLED_FROM", ""), Path(path).expanduser())
    except RuntimeError as error:
        raise InputError(f"{path}: {error}") from None


def _value(setting: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except Exception:  # of several families: of a wrong timestamp, of brackets nested too deep
        raise InputError(f"--set {setting:.80}: expected a value in YAML, such as 3, 2e-4 or [0, 1]") from None
    number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value, re.IGNORECASE)
    return float(value) if number else value  # YAML asks for 2.0e-4 where everybody writes 2e-4


# What a fork of the runner needs in any case.
RUNNER = ("tools.uncollected", "ipykernel.kernelapp", "papermill", "tools.html")
# The slow part of a later import, by the module that makes it: of bitsandbytes here, which itself starts CUDA, and what
# has started CUDA cannot be forked.
LATER = {"helpers.compression.quantization": "torch._inductor.compile_fx"}


class WarmKernel(ForkServerProcess):
    """A kernel's process, with what `LocalProvisioner` asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None  # the runner's own

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: str):
        super().__init__()
        self.arguments, self.env, self.cwd = arguments, env, cwd

    def run(self) -> None:
        from ipykernel.kernelapp import launch_new_instance

        gc.freeze()  # what was imported stays: to look through it again takes each collection a quarter of a second
        if READ_ONLY not in self.env:  # what only draws is over before its garbage counts
            gc.enable()
        os.setsid()  # a group of its own, to be ended with the processes that it starts
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        threading.Thread(target=_end_with_the_runner, daemon=True).start()
        sys.argv[:] = ["ipykernel_launcher", *self.arguments]
        launch_new_instance()

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _end_with_the_runner() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class WarmProvisioner(LocalProvisioner):
    """Starts kernels as jupyter_client does, but as forks."""

    async def launch_kernel(self, cmd, **kwargs):
        """`cmd` is a kernelspec's: the interpreter, -m ipykernel_launcher, and the kernel's arguments."""
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        kernel = WarmKernel(arguments, dict(kwargs["env"]), str(kwargs.get("cwd") or os.getcwd()))
        try:
            await asyncio.to_thread(kernel.start)  # the first one waits for the imports
        except (OSError, EOFError):  # an import ended the warm process: let a cell of the notebook say why
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.cwd = kernel, kernel.cwd
        self.pid = self.pgid = kernel.pid
        return self.connection_info


def keep_warm(modules: Iterable[str]) -> None:
    """Let every kernel that this process starts from now on have these modules imported; missing ones are left out."""
    # As ipykernel sets it; matplotlib looks when it is imported.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking whether there is a GPU must not start CUDA
    multiprocessing.set_start_method("forkserver", force=True)  # any other process of the runner may as well be one
    later = {LATER[module] for module in modules if module in LATER}
    multiprocessing.set_forkserver_preload([*RUNNER, *sorted(later.union(modules))])
    forkserver.ensure_running()  # it imports while the runner goes on
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["warm"] = EntryPoint("warm", f"{__name__}:WarmProvisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = "warm"
