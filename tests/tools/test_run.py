"""The runner, on a small series of its own: the real command, real kernels, and nothing that takes long."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup

from helpers import profiles
from tools import notebooks, run

ROOT = Path(__file__).parents[2]
SETUP = """\
import json, os, time
from pathlib import Path

start = time.time()
log = Path("log")
log.mkdir(exist_ok=True)"""
PARAMETERS = """\
profile = "t4"  # which defaults
overrides = {}  # of the profile
fresh = False  # measure again
pause = 0.0  # seconds"""
BODY = """\
entry = dict(profile=profile, overrides=overrides, fresh=fresh, pause=pause, pid=os.getpid())
(log / "NAME.json").write_text(json.dumps(entry))
time.sleep(pause)
entry |= dict(start=start, end=time.time(), offline=os.environ.get("HF_HUB_OFFLINE"))
(log / "NAME.json").write_text(json.dumps(entry))"""
MEASURE = """\
for folder, file in ("records/things", "a.json"), ("records/things", "b.json"), ("tables", "01_things.csv"):
    path = Path("results/mini") / folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text("{}")"""
SHOW = """\
import base64, sys
from IPython.display import HTML, display
display(HTML('<script src="https://example.org/x.js"></script><link rel="stylesheet" href="https://a.b/c.css">'))
display({"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "W"}, raw=True)
print(Path.cwd() / "somewhere", file=sys.stderr)"""
TEXT = """\
# First & foremost

A formula $e^{x_i}$, not one: `$a$ and $b$`; the [second](02_second.ipynb#there), the [README](../README.md).

$$\\mathcal{L}_{ce} = \\alpha \\sum_i t_i \\log s_i$$

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x)
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/y)
![a picture](../picture.png)"""


def add_notebook(project: Path, name: str, *sources: str, text: str = "# A title", **declared) -> None:
    codes = [SETUP, PARAMETERS, BODY.replace("NAME", name), *sources]
    cells = [nbformat.v4.new_markdown_cell(text), *map(nbformat.v4.new_code_cell, codes)]
    cells[2].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"series": declared})
    nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")


def new_project(folder: Path) -> Path:
    """A series without notebooks, with a copy of the code, which takes its own place for the root."""
    for name in ("helpers", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return new_project(tmp_path)


def start(project: Path, *command: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=project, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def execute(project: Path, *arguments: str) -> tuple[int, str, str]:
    return finish(start(project, "-m", "tools.run", *arguments))


def logged(project: Path) -> dict[str, dict]:
    """What each notebook wrote down as it was executed."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((project / "log").glob("*.json"))}


def overlap(a: dict, b: dict) -> bool:
    return a["start"] < b["end"] and b["start"] < a["end"]


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[tuple[int, str, str]]]:
    """A series of two, run twice without a hitch."""
    project = new_project(tmp_path_factory.mktemp("series"))
    (project / "picture.png").write_bytes(b"not really a picture")
    add_notebook(project, "01_first", MEASURE, SHOW, text=TEXT, experiments=["things"])
    add_notebook(project, "02_second", needs=["01"], text="# Second\n\nBack to [the first](01_first.ipynb).")
    settings = ("--set", "precision=fp32", "--set", "pause=1e-1")
    return project, [
        execute(project, *settings),
        execute(project, "--only", "1", "--fresh"),
    ]


@pytest.mark.slow
def test_a_run_goes_in_order_and_says_what_it_made(finished):
    project, [(code, out, err), (again, out_again, _)] = finished
    assert (code, again) == (0, 0)
    lines = out.splitlines()
    assert lines[0].startswith("01_first  done in ") and lines[0].endswith(" s: 2 records, 1 table")
    assert lines[1].startswith("02_second  done in ") and lines[1].endswith(" s")
    assert "0/2 notebooks" in err and "2/2 notebooks" in err
    assert "nothing measured again" in out_again and "02_second" not in out_again
    entries = logged(project)
    assert entries["01_first"]["start"] > entries["02_second"]["start"]  # it ran again, alone


def test_parameters_reach_the_notebooks(finished):
    entries = logged(finished[0])
    assert entries["02_second"]["overrides"] == {"precision": "fp32"}
    assert entries["02_second"]["pause"] == 0.1 and entries["02_second"]["fresh"] is False
    assert entries["01_first"]["fresh"] is True and entries["01_first"]["overrides"] == {}
    assert {(entry["profile"], entry["offline"]) for entry in entries.values()} == {("mini", "1")}


def test_executed_copies_hold_nothing_of_this_machine(finished):
    project, _ = finished
    for path in (project / "results/mini/notebooks").glob("*.ipynb"):
        assert str(project) not in path.read_text() and str(Path.home()) + "/" not in path.read_text()
        assert "widgets" not in nbformat.read(path, as_version=4).metadata
    assert "somewhere" in (project / "results/mini/notebooks/01_first.ipynb").read_text()


def test_a_badge_that_leads_nowhere_is_left_out_of_what_is_read(finished):
    project, _ = finished
    assert "/OWNER/" in (project / "notebooks/01_first.ipynb").read_text()
    for path in ("notebooks/01_first.ipynb", "report/01_first.html"):
        text = (project / "results/mini" / path).read_text()
        assert "OWNER" not in text and "colab.research.google.com/x" in text


def test_pages_read_without_network(finished):
    report = finished[0] / "results/mini/report"
    page = BeautifulSoup((report / "01_first.html").read_text(), "html.parser")
    assert not page.select("script, link") and all(image["src"].startswith("data:") for image in page("img"))
    assert {math["display"] for math in page("math")} == {"inline", "block"}
    assert page.find("code", string="$a$ and $b$") and "$$" not in page.get_text()
    assert page.title.string == "First & foremost"


def test_links_between_pages_lead_somewhere(finished):
    project, _ = finished
    (project / "README.md").touch()
    report = project / "results/mini/report"
    for path in report.glob("*.html"):
        links = [a["href"].partition("#")[0] for a in BeautifulSoup(path.read_text(), "html.parser")("a")]
        local = [link for link in links if link and not link.startswith("https:")]
        assert local and all((report / link).exists() for link in local)
        assert path.name == "index.html" or "index.html" in local
    assert "README.md" in (report / "01_first.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--profile", "maxi"], "maxi"),
        (["--only", "01,99"], "99"),
        (["--set", "pauze=1"], "pause"),  # a close match is named
        (["--set", "distillation.sedes=[0]"], "distillation.seeds"),
        (["--set", "precision=fp7"], "precision"),
        (["--set", "threads=none at all"], "threads"),
        (["--set", "threads"], "KEY=VALUE"),
        (["--set", "threads=["], "YAML"),
        (["--set", "fresh=true"], "--fresh"),
        (["--set", "overrides={}"], "overrides"),
        (["--jobs", "0"], "--jobs"),
        (["--jobs", "two"], "--jobs"),
        (["--fast"], "--fast"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(project, monkeypatch, capsys, arguments, told):
    add_notebook(project, "01_first")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", project / "notebooks")
    monkeypatch.setattr(run, "run_all", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["run_all.sh", *arguments])
    try:
        code = run.main()
    except SystemExit as leaving:  # argparse
        code = leaving.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and told in error


def test_values_are_read_as_yaml_and_sorted(project, monkeypatch):
    add_notebook(project, "01_first")
    own = [notebooks.Notebook(project / "notebooks/01_first.ipynb")]
    settings = ["distillation.seeds=[0, 1]", "distillation.training.learning_rate=2e-4", "pause=null"]
    overrides, parameters = notebooks.sort_settings(settings, own)
    assert overrides == {"distillation.seeds": [0, 1], "distillation.training.learning_rate": 2e-4}
    assert parameters == {"pause": None}
    assert profiles.load("mini", overrides).distillation.seeds == [0, 1]


@pytest.mark.slow
def test_failures_are_named_and_the_rest_goes_on(project):
    add_notebook(project, "01_bad", "def load():\n    raise ValueError('no such\\nthing')", "load()  # here")
    add_notebook(project, "02_killed", "os.kill(os.getpid(), 9)")
    add_notebook(project, "03_after", needs=["01"])
    add_notebook(project, "04_after_that", needs=["03_after"])
    add_notebook(project, "05_apart")
    code, out, err = execute(project)
    assert code == 1 and "05_apart  done" in out
    assert set(logged(project)) == {"01_bad", "02_killed", "05_apart"}
    failure = err[err.index("01_bad  failed") :].splitlines()
    assert failure[1].strip() == "cell 5, In [6]: load()  # here"
    assert failure[2].strip() == "ValueError: no such thing"
    assert failure[3].strip() == "executed so far: results/mini/notebooks/01_bad.ipynb"
    assert nbformat.read(project / "notebooks/01_bad.ipynb", as_version=4).cells[5].source == "load()  # here"
    assert "ValueError" in (project / "results/mini/notebooks/01_bad.ipynb").read_text()
    assert re.search(r"cell 4, In \[.\]: os\.kill.*\n    the kernel died", err)
    assert "03_after  skipped: it needs 01_bad" in err and "04_after_that  skipped: it needs 03_after" in err
    assert err.splitlines()[-1].startswith("error: ") and "02_killed" in err.splitlines()[-1]
    assert "failed" in (project / "results/mini/report/index.html").read_text()


@pytest.mark.slow
def test_side_by_side_but_what_times_things_runs_alone(project):
    for name, declared in {
        "01_a": {},
        "02_timing": {"times": True},
        "03_b": {},
        "04_c": {"needs": ["01"]},
    }.items():
        add_notebook(project, name, **declared)
    code, _, err = execute(project, "--jobs", "2", "--set", "pause=1.5", "--set", "threads=4")
    entries = logged(project)
    assert code == 0, err
    assert overlap(entries["01_a"], entries["03_b"])
    assert not any(overlap(entries["02_timing"], entries[name]) for name in ("01_a", "03_b", "04_c"))
    assert entries["04_c"]["start"] > entries["01_a"]["end"]
    assert {name: entry["overrides"]["threads"] for name, entry in entries.items()}["02_timing"] == 4


def test_threads_are_shared_among_those_side_by_side(project):
    add_notebook(project, "01_a")
    add_notebook(project, "02_timing", times=True)
    plain, timing = (
        notebooks.Notebook(project / "notebooks/01_a.ipynb"),
        notebooks.Notebook(project / "notebooks/02_timing.ipynb"),
    )
    runner = run.Runner(None, profiles.load("mini", {"threads": 4}), {"overrides": {}}, jobs=2)
    assert runner.given(plain) == {"overrides": {"threads": 2}} and runner.given(timing) == {"overrides": {}}


@pytest.mark.slow
def test_a_cell_has_its_time(project):
    add_notebook(project, "01_slow", "time.sleep(60)  # too long")
    seconds = "dict(vars(load(*given)), cell_timeout_minutes=1 / 30)"
    patched = "from types import SimpleNamespace; from helpers import profiles; from tools import run; "
    patched += f"load = profiles.load; profiles.load = lambda *given: SimpleNamespace(**{seconds}); "
    patched += "raise SystemExit(run.main())"
    code, _, err = finish(start(project, "-c", patched))
    assert code == 1 and "timeout: " in err and "time.sleep(60)  # too long" in err
    assert (project / "results/mini/notebooks/01_slow.ipynb").exists()


def test_a_folder_that_cannot_be_written(project):
    add_notebook(project, "01_first")
    (project / "results").write_text("a file where a folder should be")
    code, _, err = execute(project)
    assert code == 1 and err.startswith("error: ") and "results" in err and err.count("\n") == 1
    assert not logged(project)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_kernel_outlives_the_runner(project, number):
    def gone(pid: int) -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    add_notebook(project, "01_first")
    process = start(project, "-m", "tools.run", "--set", "pause=100")
    wait_for(lambda: (project / "log/01_first.json").exists() and (project / "log/01_first.json").read_text())
    kernel = logged(project)["01_first"]["pid"]
    os.kill(process.pid, number)
    code, _, err = finish(process)
    wait_for(lambda: gone(kernel))
    if number != signal.SIGKILL:
        assert code == 128 + number and "stopped" in err


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forks on Linux only")
def test_kernels_share_imported_modules_and_no_state(project):
    (project / "helpers/slow.py").write_text("import os\nprint(os.getpid(), file=open('imported', 'a'))\nmark = None\n")
    spoil = "from helpers import slow\nassert slow.mark is None and 'MARK' not in os.environ and not Path('x').exists()"
    spoil += "\nslow.mark = os.environ['MARK'] = 'left behind'\nos.chdir('notebooks')\nPath('x').touch()"
    for name in ("01_first", "02_second"):
        add_notebook(project, name, spoil)
    code, _, err = execute(project)
    assert code == 0, err
    kernels = {entry["pid"] for entry in logged(project).values()}
    (imported_in,) = (project / "imported").read_text().split()
    assert len(kernels) == 2 and int(imported_in) not in kernels


@pytest.mark.slow
def test_a_broken_module_is_the_notebooks_own_failure(project):
    (project / "helpers/broken.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    add_notebook(project, "01_bad", "from helpers import broken")
    add_notebook(project, "02_good")
    code, out, err = execute(project)
    assert code == 1 and "02_good  done" in out
    assert "OSError: libcudart.so.12" in err and "from helpers import broken" in err
