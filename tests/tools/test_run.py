"""The runner, on a small series of its own: the real command, real kernels, and nothing that takes long."""

import http.server
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup

from helpers import profiles
from helpers.measure import records
from tools import html, notebooks, run

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
UNIT = """\
from helpers import profiles
from helpers.measure import records, sweep
class Things(sweep.Experiment):
    name, units = "things", [{"model": "NAME"}]
    settings = lambda self, unit: {}
    measure = lambda self, unit: time.sleep(1) or records.Measurement({"score": 1.0}, [], [])
chosen = profiles.load(profile, overrides)
begun = time.time()
Things(chosen, records.Workspace(chosen)).run()
(log / "measured-NAME.json").write_text(json.dumps({"start": begun, "end": time.time()}))"""
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


HOSTILE = """<script>document.title = 'pwned'</script><img src=x onerror="document.title = 'pwned'">
<iframe src="data:text/html,<script>parent.document.title = 'pwned'</script>"></iframe>
<svg onload="document.title = 'pwned'"></svg>
<img src="http://127.0.0.1:PORT/seen.png"><link rel=stylesheet href="http://127.0.0.1:PORT/seen.css">
<a id=go href="javascript:document.title = 'pwned'">a</a><form action="http://127.0.0.1:PORT/"><input autofocus
onfocus="document.title = 'pwned'"></form><style>@import "http://127.0.0.1:PORT/seen.css";</style>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_text_that_a_page_shows_runs_nothing_and_fetches_nothing(tmp_path):
    seen = []

    class Asked(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()

        log_message = None

    server = http.server.HTTPServer(("127.0.0.1", 0), Asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    review = HOSTILE.replace("PORT", str(server.server_port))
    cells = [nbformat.v4.new_markdown_cell(f"# A page\n\n{review}"), nbformat.v4.new_code_cell("0")]
    shown = {"text/markdown": review, "text/html": review}
    cells[1].outputs = [nbformat.v4.new_output("display_data", {kind: text}) for kind, text in shown.items()]
    space = records.Workspace(profiles.load("mini"), str(tmp_path))
    space.notebooks.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), space.notebooks / "01_first.ipynb")
    html.write_pages(space)
    page = space.report / "01_first.html"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    for protected in (True, False):
        if not protected:
            page.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text()))
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60)
        ran = "pwned" in BeautifulSoup(done.stdout, "html.parser").title.text
        assert (ran or bool(seen)) != protected, f"{protected=} {ran=} {seen=}"
    server.shutdown()


def test_code_that_nobody_came_for_is_folded_and_the_lesson_is_not(finished):
    page = BeautifulSoup((finished[0] / "results/mini/report/01_first.html").read_text(), "html.parser")
    folded = [code.get_text() for code in page.select("details .input")]
    assert folded and all("profile" in code for code in folded), "the parameters"
    assert any("display(" in code.get_text() for code in page.select(".input") if not code.find_parent("details"))


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
        (["--unpack", ""], "--unpack"),
        (["--set", "corpus.block_length=!!timestamp foo"], "YAML"),
        (["--set", "corpus.block_length=" + "[" * 3000], "YAML"),
        (["--set", "pauze=" + "1" * 5000], "pauze"),
        (["--set", "store=~nobody-of-this-name/x"], "nobody-of-this-name"),
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
    assert len(error) < 500


def declared(project: Path) -> notebooks.Notebook:
    """A notebook with all the parameters that the series' have."""
    add_notebook(project, "01_first", "store = None")
    path = project / "notebooks/01_first.ipynb"
    path.write_text(path.read_text().replace("pause = 0.0  # seconds", "pause = 0.0\\nstore = None"))
    return notebooks.Notebook(path)


def test_paths_are_taken_as_they_were_meant_where_the_command_was_given(project, monkeypatch, tmp_path):
    monkeypatch.setenv("SERIES_CALLED_FROM", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere/mybert").mkdir(parents=True)
    own, there = [declared(project)], str(tmp_path / "elsewhere")

    def given(setting: str):
        overrides, parameters = notebooks.sort_settings([setting], own)
        return next(iter((overrides | parameters).values()))

    assert given("store=2026-10-01") == f"{there}/2026-10-01" and given("store='20261001'") == f"{there}/20261001"
    assert given("store=~/measured") == str(tmp_path / "home/measured") and given("store=/tmp/a: b") == "/tmp/a: b"
    assert given("store=null") is None and given("released=null") is None
    assert given("teacher=mybert") == given("teacher=./mybert") == f"{there}/mybert"
    assert given("teacher=google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert given("corpus.id=../text") == f"{there}/../text" and given("corpus.train=2026") == "2026"


def test_two_runs_do_not_share_a_folder(project, tmp_path):
    add_notebook(project, "01_first")
    first = start(project, "-m", "tools.run", "--set", "pause=100")
    wait_for(lambda: (project / "log/01_first.json").exists())
    code, out, err = execute(project)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert err.startswith("error: another run is at work in results/mini: wait for it, or name another `store`")
    os.kill(first.pid, signal.SIGKILL)
    finish(first)
    assert execute(project)[0] == 0, "a lock ends with its run"


@pytest.mark.slow
def test_scripts_are_started_from_anywhere_and_through_a_link(tmp_path):
    link = tmp_path / "measure"
    link.symlink_to(ROOT / "run_all.sh")
    for command in (link, ROOT / "run_all.sh"):
        words = [command, "--unpack", "none.zip"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr == f"error: {tmp_path}/none.zip: there is no such file\n"


def test_values_are_read_as_yaml_and_sorted(project, monkeypatch):
    own = [declared(project)]
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
    assert {entry["overrides"]["threads"] for entry in entries.values()} == {4}, "numbers depend on them"


@pytest.mark.slow
def test_what_has_its_records_is_drawn_side_by_side_and_what_has_not_is_measured_alone(project):
    declared = {
        "01_a": {"times": True},
        "02_b": {"times": True, "needs": ["01"]},
        "03_c": {},
        "04_d": {"after": ["03"]},
    }
    for name, said in declared.items():
        add_notebook(project, name, UNIT.replace("NAME", name), experiments=["things"], **said)
    add_notebook(project, "05_watch", times=True)  # it has no record: what it times, it times anew
    found = project / "results/mini/records/things"

    def run_again() -> tuple[str, dict, dict]:
        code, out, err = execute(project, "--set", "pause=1.5")
        assert code == 0, err
        assert [line[:2] for line in sorted(out.splitlines()) if " done in " in line] == ["01", "02", "03", "04", "05"]
        entries = logged(project)
        assert not any(overlap(entries["05_watch"], entries[name]) for name in declared)
        return out, entries, {path.name: path.stat().st_mtime_ns for path in found.iterdir()}

    _, entries, before = run_again()
    assert not any(overlap(entries[a], entries[b]) for a, b in itertools.combinations(declared, 2))
    out, entries, after = run_again()
    assert after == before and out.count("nothing measured again") == 4
    assert any(overlap(entries[a], entries[b]) for a, b in itertools.combinations(declared, 2))
    next(found.glob("01_a*")).unlink()
    out, entries, after = run_again()
    assert {name for name in after if after[name] != before.get(name)} == {name for name in after if "01_a" in name}
    assert out.count("nothing measured again") == 3 and "01_a  done" in out
    for measured in ("01_a", "02_b"):  # what is measured, and what needs it, after the others and apart
        assert entries[measured]["start"] > max(entries["03_c"]["end"], entries["04_d"]["end"])
    assert entries["02_b"]["start"] > entries["01_a"]["end"]


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
