"""The series, headless: papermill over the notebooks, in order or side by side, and what each made."""

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from helpers import ROOT, InputError, profiles
from helpers.measure import records, sweep
from helpers.measure.records import Workspace
from helpers.measure.sweep import READ_ONLY

from . import command, html, notebooks
from .notebooks import Notebook

ADDED_CELLS = {"injected-parameters", "papermill-error-cell-tag"}  # tags of cells that papermill puts in
METER = "{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} notebooks, {elapsed} so far{postfix}"


class Saving(papermill.engines.NotebookExecutionManager):
    """Saves the copy every few seconds, and at the end; papermill's own, at every cell: most of a page's time."""

    def save(self, **_kwargs: Any) -> None:
        if self.end_time or (self.now() - self.last_save_time).total_seconds() > 5:
            super().save()


papermill.engines.NotebookExecutionManager = Saving  # its engine has no other place for it
papermill.iorw.LocalHandler.write = lambda _, text, path: records.write_whole(Path(path), text)  # killed or not


@dataclass
class Runner:
    """Executes notebooks into a workspace, and says what each made."""

    workspace: Workspace
    profile: profiles.Profile
    parameters: dict[str, Any]  # each notebook gets those that it has, and the runner's own
    jobs: int  # how many run side by side, each on as many threads as alone: numbers depend on them

    def execute(self, notebook: Notebook) -> tuple[bool, str]:
        """Run one notebook; whether it went well, and what there is to say about it."""
        copy, limit = self.workspace.notebooks / notebook.path.name, self.profile.cell_timeout_minutes
        source, target = (os.path.relpath(path, ROOT) for path in (notebook.path, copy))
        options = {"kernel_name": "python3", "language": "python", "cwd": ROOT, "execution_timeout": int(limit * 60)}
        options["extra_arguments"] = ["--log-level=50"]  # what the kernel itself logs is of no use here
        options["progress_bar"] = {"desc": notebook.name, "leave": False} if sys.stderr.isatty() else False
        start, problem = time.time(), None
        try:
            known = notebook.parameters | set(notebooks.SET_BY_RUNNER)
            given = {name: value for name, value in self.parameters.items() if name in known}
            papermill.execute_notebook(source, target, given, **options)
        except PapermillExecutionError as error:
            problem = f"{error.ename}: {error.evalue}"
        except CellTimeoutError:
            problem = f"timeout: the cell took longer than cell_timeout_minutes = {limit} allows"
        except DeadKernelError:
            problem = "the kernel died: killed, out of memory, or crashed"
        except (OSError, InputError):  # a full disk, which is not this notebook's trouble alone
            raise
        except Exception as error:  # a kernel that doesn't start, say
            problem = f"{type(error).__name__}: {error}"
        lines = [f"{notebook.name}  {'failed after' if problem else 'done in'} {time.time() - start:.0f} s"]
        if problem is None:
            lines[0] += self._made(notebook, start)
        else:
            lines += [" ".join(problem.split()), f"executed so far: {target}"]
        if copy.exists():
            lines[1:1] = [failing_cell(copy)] if problem else []
            html.tidy(copy)
        return problem is None, "\n    ".join(lines)

    def ended_well(self, notebook: Notebook) -> bool:
        """Whether there is a copy of an earlier run, to the last cell."""
        copy = self.workspace.notebooks / notebook.path.name
        try:
            found = json.loads(copy.read_text(encoding="utf-8"))["metadata"]["papermill"]
        except (OSError, ValueError, KeyError):
            return False
        return found["duration"] is not None and not found["exception"]

    def _made(self, notebook: Notebook, since: float) -> str:
        """How many of its experiments' records, and of its number's tables and figures, have been written since."""
        space, number = self.workspace, f"{notebook.number}_*"
        places = {"record": [(space.records / name, "*.json") for name in notebook.experiments]}
        places |= {"table": [(space.tables, number)], "figure": [(space.figures, number)]}
        counts = {}
        for kind, own in places.items():
            found = (path for folder, names in own for path in folder.glob(names) if path.stat().st_mtime >= since)
            counts[kind] = len({path.with_suffix("") for path in found})
        parts = ["nothing measured again"] if notebook.experiments and not counts["record"] else []
        parts += [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
        return f": {', '.join(parts)}" if parts else ""


def failing_cell(copy: Path) -> str:
    """The cell where an executed notebook stopped: its index in the source, its prompt and its first line."""
    cells = nbformat.read(copy, as_version=4).cells
    cells = [cell for cell in cells if not ADDED_CELLS & set(cell.metadata.get("tags", []))]
    code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
    failed = [i for i, cell in enumerate(cells) if any(o.output_type == "error" for o in cell.get("outputs", []))]
    started = [i for i in code if cells[i].metadata.get("papermill", {}).get("start_time")]
    index = (failed or started[-1:] or code)[0]
    prompt = cells[index].get("execution_count") or "*"
    return f"cell {index}, In [{prompt}]: {cells[index].source.strip().partition(chr(10))[0]}"


def draw_again(chosen: list[Notebook], runner: Runner) -> list[Notebook]:
    """Run those that ended well before side by side, measuring nothing; which are still to be run, in order.

    Those are what came to a unit without a record, and what waits for it; what did not end well before; and what times
    something on its own page.
    """
    before = [one for one in chosen if (one.experiments or not one.times) and runner.ended_well(one)]
    os.environ[READ_ONLY] = "yes"  # the kernels inherit it
    with ThreadPoolExecutor(max(runner.jobs, min(os.cpu_count() + 1, 4))) as pool:
        drawn = dict(zip(before, pool.map(runner.execute, before), strict=True))
    del os.environ[READ_ONLY]
    left = [one for one in chosen if one not in drawn]
    for notebook, (well, line) in drawn.items():
        if well and not (notebook.needs | notebook.after) & {name for one in left for name in (one.number, one.name)}:
            print(line)
        else:
            left.append(notebook)
    return [one for one in chosen if one in left]


def run_all(chosen: list[Notebook], execute: Callable[[Notebook], tuple[bool, str]], jobs: int) -> list[str]:
    """Run the notebooks in order, up to `jobs` side by side; the names of those that failed or were skipped.

    One that times things runs alone. What doesn't need a failed notebook is run all the same; what comes `after` others
    waits for them, however they end.
    """
    pending, running, finished, lost = list(chosen), {}, set(), set()
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(chosen), bar_format=METER, disable=None) as bar:
        while True:
            for notebook in list(pending):
                needed, awaited = (
                    {one.name for one in chosen if {one.number, one.name} & others}
                    for others in (notebook.needs, notebook.after)
                )
                alone = notebook.times or any(one.times for one in running.values())
                if needed & lost:
                    tqdm.write(f"{notebook.name}  skipped: it needs {', '.join(sorted(needed & lost))}", sys.stderr)
                    lost.add(notebook.name)
                    pending.remove(notebook)
                elif not (needed <= finished and awaited <= finished | lost):
                    continue
                elif not running or (len(running) < jobs and not alone):
                    running[pool.submit(execute, notebook)] = notebook
                    pending.remove(notebook)
            bar.n, now = len(finished | lost), ", ".join(notebook.name for notebook in running.values())
            bar.set_postfix_str(now)
            if bar.disable:  # a log has no line to draw over: a new one for each notebook
                print(f"{bar.n}/{len(chosen)} notebooks{now and ', now ' + now}", file=sys.stderr, flush=True)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                well, line = future.result()
                (finished if well else lost).add(running.pop(future).name)
                tqdm.write(line, file=sys.stdout if well else sys.stderr)
    return [notebook.name for notebook in chosen if notebook.name in lost]


def stop(signum: int, _frame: Any) -> NoReturn:
    """On Ctrl-C or SIGTERM: end the kernels, which live in sessions of their own, and leave at once."""
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os.write(2, b"\nstopped, and the kernels with it; run again to take up from here\n")
    os._exit(128 + signum)


def hold(workspace: Workspace) -> IO:
    """Keep other runs out of the workspace until what is returned is closed or this process ends; else OSError."""
    workspace.results.mkdir(parents=True, exist_ok=True)
    lock = open(workspace.results / ".lock", "w")  # noqa: SIM115 - as long as the run
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        where = os.path.relpath(workspace.results, ROOT)
        raise OSError(f"another run is at work in {where}: wait for it, or name another `store`") from None
    return lock


def run(options: argparse.Namespace) -> int:
    """Check all that was asked for, then run it; the exit code."""
    if options.unpack == "":
        raise InputError("--unpack: expected the name of a file, and there is none")
    if options.fill:
        from . import readme  # slow to import, and only needed here

        stale = readme.fill(options.check)
        says = [f"{'stale' if options.check else 'filled in'}: README, {name}" for name in stale]
        print("\n".join(says) or "nothing is stale")
        return 1 if stale and options.check else 0
    if options.cluster:
        sweep.check_cluster(options.cluster)
        os.environ[sweep.CLUSTER] = options.cluster  # the kernels inherit it
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected 1 or more")
    if options.unpack:
        came = records.restore(notebooks.from_caller(options.unpack))
        print(", ".join(f"{kind}: {count}" for kind, count in came.items()))
        return 0
    chosen = notebooks.select(options.only)
    overrides, parameters = notebooks.sort_settings(options.set, chosen)
    profile = profiles.load(options.profile, overrides)
    if profile.hub == "miniworld":
        os.environ["HF_HUB_OFFLINE"] = "1"  # the kernels inherit it; without, each failed call takes 23 s
    if options.download:
        from helpers.data import hub  # slow to import, and only needed here
        from helpers.models import checkpoints

        print(*hub.download(profile), *checkpoints.download(profile), sep="\n")
        return 0
    workspace = Workspace(profile, parameters.get("store"))
    if options.pack:
        print(os.path.relpath(records.archive(workspace), ROOT))
        return 0
    if profile.device == "cuda":
        from helpers.measure import machine  # slow to import, and only asked whether there is one

        machine.device(profile)
    lock = hold(workspace)
    os.environ["SERIES_HELD"] = str(workspace.results)
    workspace.sweep()
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # not another kernel called python3, of the user's own
    os.chdir(ROOT)
    if options.jobs > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that spins while it waits keeps others waiting
    if sys.platform == "linux":
        notebooks.keep_warm(set().union(*(notebook.imports for notebook in chosen)))
    workspace.notebooks.mkdir(parents=True, exist_ok=True)
    parameters |= {"profile": profile.name, "overrides": overrides} | ({"fresh": True} if options.fresh else {})
    runner = Runner(workspace, profile, parameters, options.jobs)
    left = chosen if options.fresh else draw_again(chosen, runner)
    lost = run_all(left, runner.execute, options.jobs) if left else []
    print(f"to read: {os.path.relpath(html.write_pages(workspace), ROOT)}")
    lock.close()
    if lost:
        print(f"error: not finished: {', '.join(lost)} ({len(lost)} of {len(chosen)})", file=sys.stderr)
    return 1 if lost else 0


def main() -> int:
    """The command; its exit code."""
    parser = command.parser("run_all.sh", "Run the series headless.")
    add = parser.add_argument
    add("--profile", default="mini", metavar="NAME", help=f"{', '.join(profiles.NAMES)}; the default is mini")
    add("--only", metavar="02,05", help="run these notebooks, by number or name")
    text = "a value of the profile (distillation.training.steps=100) or a notebook's parameter (store=PATH)"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    add("--jobs", type=int, default=1, metavar="N", help="run up to N notebooks side by side")
    text = "spread what times nothing over a Ray cluster whose nodes share this folder and the store"
    add("--cluster", metavar="HOST:PORT", help=text)
    add("--fresh", action="store_true", help="measure again what has a record")
    add("--download", action="store_true", help="only fetch the profile's models and data sets")
    add("--pack", action="store_true", help="only put the profile's records into one file, to be taken elsewhere")
    add("--unpack", metavar="FILE", help="only bring in records that were packed elsewhere, as in Colab")
    add("--fill", action="store_true", help="only fill in what README says of committed records")
    add("--check", action="store_true", help="with --fill: change nothing, and fail if something is stale")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.stdout.reconfigure(line_buffering=True)  # so that in a log, lines and errors keep their order
    options = parser.parse_args()
    return command.exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
