"""Notebook 01's models by two processes: the losses of one, records of the first alone, resumed after a kill."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers import ROOT, profiles
from helpers.experiments import pretraining
from helpers.measure import records
from tools import notebooks
from tools.run import hold

TINY = {
    "threads": 2,
    "corpus.train_blocks": 64,
    "corpus.heldout_blocks": 12,
    "corpus.curve_blocks": 4,
    "teacher_training.architecture.layers": 2,
    "teacher_training.architecture.width": 32,
    "teacher_training.architecture.heads": 2,
    "teacher_training.architecture.feed_forward": 64,
    "teacher_training.whole.steps": 6,
    "teacher_training.whole.batch_size": 8,
    "distillation.variants": ["student"],
    "distillation.snapshots": [],
    "distillation.layers": 1,
    "distillation.seeds": [0],
    "distillation.training.steps": 6,
    "distillation.training.batch_size": 8,
    "distillation.training.accumulation": 2,
    "ablation.variants": ["no_cosine"],
}


def command(store: Path, processes: int, **more) -> list[str]:
    settings = {**TINY, **{key.replace("__", "."): value for key, value in more.items()}, "store": store}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    free = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # a port of its own
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [*launcher, *free, "-m", "tools.distill", "--profile", "mini", *given]


def start(*given, **more) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*given, **more), cwd=ROOT, **pipes)


def curves(store: Path, **more) -> dict[str, list[dict]]:
    overrides = TINY | {key.replace("__", "."): value for key, value in more.items()}
    space = records.Workspace(profiles.load("mini", overrides), str(store))
    evidence = records.Evidence(space)
    found = evidence("distillation") + evidence("ablation")
    return {record["unit"]["model"]: record["details"]["curve"] for record in found}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path):
    profile = profiles.load("mini", TINY)
    space = records.Workspace(profile, str(tmp_path / "one"))
    pretraining.Pretraining(profile, space).run()
    pretraining.Ablated(profile, space).run()
    said, _ = (process := start(tmp_path / "two", 2)).communicate(timeout=300)
    assert process.returncode == 0, said
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert one.keys() == two.keys() == {"teacher", "student", "no_cosine"}
    differ = 0
    for model, lines in one.items():
        for line, other in zip(lines, two[model], strict=True):
            assert line.keys() == other.keys() and line["step"] == other["step"]
            for name in line.keys() - {"seconds", "learning_rate", "epoch", "stage", "grad_norm"}:
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), (model, line["step"], name)
                differ += other[name] != line[name]
    assert differ, "equal to the last bit: were there two?"
    left = [path.name for path in (tmp_path / "two").rglob("*") if path.name.endswith((".tmp", ".training"))]
    assert not left


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_one_alone_goes_on(tmp_path):
    long = {"teacher_training__whole__steps": 600}
    process = start(tmp_path / "store", 2, **long, teacher_training__whole__save_minutes=0.001)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store").glob("checkpoints/mini/*.training/stage-0/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    ranks = [one for one in psutil.Process(process.pid).children(recursive=True) if "tools.distill" in one.cmdline()]
    os.kill(max(one.pid for one in ranks), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode and "SIGKILL" in said
    assert not list((tmp_path / "store").rglob("*.json.tmp")) and "teacher" not in curves(tmp_path / "store", **long)
    said, _ = (process := start(tmp_path / "store", 1, **long)).communicate(timeout=300)
    assert process.returncode == 0, said
    curve = curves(tmp_path / "store", **long)["teacher"]
    steps = [line["step"] for line in curve if "tokens" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 600, "no step twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "processes", "complaint"),
    [
        ({"teacher_training__whole__batch_size": 7}, 2, "batches of 7 for 2 processes: expected a multiple of these"),
        ({"distillation__layers": 9}, 1, "a student of 9 layers cannot be taken from a teacher of 2"),
    ],
)
def test_bad_input_is_said_in_a_line(more, processes, complaint, tmp_path):
    said, _ = (process := start(tmp_path / "store", processes, **more)).communicate(timeout=120)
    assert process.returncode and f"error: {complaint}" in said
    assert not list((tmp_path / "store").rglob("*.safetensors"))


@pytest.mark.slow
def test_processes_that_were_told_different_things_are_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    pair = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = os.environ | own | {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        settings = ["--set", f"store={tmp_path}", "--set", f"distillation.temperature={2 + rank}"]
        given = [sys.executable, "-m", "tools.distill", "--profile", "mini", *settings]
        pair.append(subprocess.Popen(given, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for process in pair:
        _, said = process.communicate(timeout=120)
        assert "error: the processes were given different profiles or settings: start all with the same" in said
        assert process.returncode == 2 and not list(tmp_path.rglob("*.json")), said


def test_notebook_01_starts_it_where_there_are_several_gpus(page, tmp_path):
    """As it would be started: with the notebook's own settings, read back as they were meant."""
    (launch,) = page("01_pretraining_distillation", "launch")
    settings = {"distillation.seeds": [0, 1], "corpus.id": "some/text", "distillation.training.learning_rate": 2e-4}
    given = launch(4, "mini", settings, str(tmp_path))
    assert given[:3] == [sys.executable, "-m", "accelerate.commands.launch"] and "4" in given
    told = [word.removeprefix("--set=") for word in given if word.startswith("--set=")]
    overrides, parameters = notebooks.sort_settings(told, notebooks.select("01"))
    assert overrides == settings and parameters == {"store": str(tmp_path)}


@pytest.mark.slow
def test_a_run_that_holds_the_store_lets_its_own_notebook_train(tmp_path, monkeypatch):
    """Notebook 01, executed by the command on several GPUs, is not another run; one that somebody else starts is."""
    space = records.Workspace(profiles.load("mini", TINY), str(tmp_path))
    lock = hold(space)
    said, _ = (process := start(tmp_path, 1)).communicate(timeout=300)
    assert process.returncode == 1 and "another run is at work" in said
    monkeypatch.setenv("SERIES_HELD", str(space.results))
    said, _ = (process := start(tmp_path, 1)).communicate(timeout=300)
    assert process.returncode == 0, said
    lock.close()
