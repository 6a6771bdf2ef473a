"""Kills the mini series again and again, lets it go on, and looks for what was lost, damaged, repeated or left behind.

`python tests/chaos.py --kills 20`, from the project's root, in the environment that run_all.sh made; not part of
run_tests.sh, since it takes as long as the series does, twice, and some more. The moments are drawn from --seed: when
so many records are there, and some seconds later.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import nbformat
import PIL.Image
import psutil
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from helpers.measure import records  # noqa: E402 - of this checkout, wherever Python was started
from tests.comparing import differences  # noqa: E402

MARK = "SERIES_CHAOS"  # in the environment of all that this starts


def start(store: Path, arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "tools.run", "--set", f"store={store}", *arguments]
    log = open(store / "log.txt", "a")  # noqa: SIM115 - as long as the process
    environment = os.environ | {MARK: store.name}
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True)


def survivors(store: Path) -> list[psutil.Process]:
    """What still runs of all that was started on the store."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == store.name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def measured(store: Path) -> list[Path]:
    """The records of a store."""
    return list(store.glob("results/*/records/*/*.json"))


def look(path: Path) -> None:
    """Read a file to its end; an error if it is not whole."""
    text = "" if path.suffix in (".png", ".safetensors") else path.read_text()
    if path.suffix == ".ipynb":
        nbformat.validate(nbformat.reads(text, as_version=4))
    elif path.suffix == ".json":
        records.read_record(path) if "records" in path.parts else json.loads(text)
    elif path.suffix == ".png":
        PIL.Image.open(path).load()
    elif path.suffix == ".safetensors":
        load_file(path)
    elif not text.rstrip().endswith("</html>") if path.suffix == ".html" else not text.endswith("\n"):
        raise ValueError("cut off")


def damaged(store: Path) -> tuple[int, list[str]]:
    """How many files were looked at, and those that are not whole."""
    spoilt, count = [], 0
    for path in store.rglob("*"):
        building = any(part.endswith((".tmp", ".training")) for part in path.parts)  # and not taken for finished
        if building or path.suffix not in (".json", ".ipynb", ".png", ".html", ".csv", ".md", ".safetensors"):
            continue
        count += 1
        try:
            look(path)
        except Exception as error:
            spoilt.append(f"{path.relative_to(store)}: {type(error).__name__}: {error}")
    return count, spoilt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="these notebooks, as run_all.sh takes them")
    parser.add_argument("--whole", type=Path, help="the store of a run that was not interrupted, if there is one")
    options = parser.parse_args()
    moments, chosen = random.Random(options.seed), ["--only", options.only] if options.only else []
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    whole, store = options.whole or folder / f"whole-{uuid.uuid4().hex}", folder / f"killed-{uuid.uuid4().hex}"
    store.mkdir()
    if not options.whole:
        whole.mkdir()
        if start(whole, chosen).wait():
            print(f"the uninterrupted run failed: {whole}/log.txt")
            return 1
    problems, made, looked, struck = [], {}, 0, 0
    places = range(max(len(measured(whole)) - 10, options.kills))
    by_then = sorted(moments.sample(places, options.kills))  # so many records, spread over the whole series
    for kill in range(options.kills + 1):
        process, begun = start(store, chosen), time.monotonic()
        if kill < options.kills:
            while process.poll() is None and len(measured(store)) < by_then[kill]:
                time.sleep(0.1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0.5, 4))
        if kill < options.kills and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        struck += code == -signal.SIGKILL
        after, deadline = time.monotonic() - begun, time.monotonic() + 30
        while (left := survivors(store)) and time.monotonic() < deadline:
            time.sleep(0.2)
        problems += [f"still running after kill {kill}: {process.pid}" for process in left]
        count, spoilt = damaged(store)
        looked += count
        problems += [f"damaged after kill {kill}: {name}" for name in spoilt]
        now = {path: path.stat().st_mtime_ns for path in measured(store)}
        problems += [f"lost: {path.name}" for path in made if path not in now]
        problems += [f"measured again: {path.name}" for path in made if now.get(path, made[path]) != made[path]]
        done, made = len(now) - len(made), now
        ending = {-signal.SIGKILL: "killed", 0: "ended by itself"}.get(code, f"ended with {code}")
        print(f"{kill}: {ending} after {after:.0f} s, {done} more records, {len(now)} in all", flush=True)
    problems += [f"the last run ended with {code}: {store}/log.txt"] * bool(code)
    litter = [path for path in store.rglob("*") if path.name.endswith((".tmp", ".training"))]
    problems += [f"left behind: {path.relative_to(store)}" for path in litter]
    apart = differences(whole, store)
    problems += apart
    print("\n".join(problems))
    print(f"{struck} kills, {looked:,} files looked at, {len(made)} records; {len(problems)} problems: ", end="")
    print(f"litter {len(litter)}, records that differ {len(apart)}. {folder}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
