"""The notebooks as their readers meet them: alike in anatomy, lean, and run end to end by the command."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from helpers import REPOSITORY, ROOT, profiles
from helpers.compression import onnx, variants
from helpers.measure import records
from tools import notebooks

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tagged(path: Path, tag: str) -> str:
    (cell,) = [cell for cell in cells(path, "code") if tag in cell.metadata.get("tags", [])]
    return cell.source


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_anatomy(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "series" in notebook.metadata
    code, prose = cells(path, "code"), cells(path, "markdown")
    assert not any(cell.outputs or cell.execution_count for cell in code), "sources carry no outputs"
    assert 35 <= len(notebook.cells) <= 60
    assert 1000 <= sum(len(cell.source.split()) for cell in prose) <= 2000
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    text = "\n".join(cell.source for cell in prose)
    assert f"github/{REPOSITORY}/blob/main/notebooks/{path.name}" in prose[0].source
    for heading in ("## What this doesn't show", "## Exercises", "**Next:**"):
        assert heading in text


class Names(ast.NodeVisitor):
    """What a page defines, and what it assigns outside of functions and comprehensions."""

    def __init__(self):
        self.defined, self.assigned = [], set()

    def visit_FunctionDef(self, node):
        self.defined.append(node.name)

    def visit_Name(self, node):
        self.assigned |= {node.id} if isinstance(node.ctx, ast.Store) else set()

    def visit_ListComp(self, node):
        """It keeps its names to itself."""

    visit_ClassDef = visit_FunctionDef
    visit_Lambda = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_what_a_page_defines_keeps_its_name(path):
    """A later cell that calls a function must not find a number in its place."""
    names = Names()
    for cell in cells(path, "code"):
        lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("!", "%"))]
        names.visit(ast.parse("\n".join(lines if "setup" not in cell.metadata.get("tags", []) else [])))
    assert not names.assigned & set(names.defined)
    assert len(set(names.defined)) == len(names.defined), "defined once"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_parameters_are_flat_literals_with_a_comment_each(path):
    source = tagged(path, "parameters")
    for line in source.splitlines():
        name, _, rest = line.partition(" = ")
        value, _, comment = rest.partition("  # ")
        assert name.isidentifier() and comment, line
        ast.literal_eval(value)
    assert {"profile", "overrides", "fresh", "store"} <= notebooks.Notebook(path).parameters
    assert not {name for name in notebooks.Notebook(path).parameters if profiles.is_key(name)}, (
        "a profile's key hides it"
    )


def test_a_notebook_needs_only_those_before_it():
    for notebook in map(notebooks.Notebook, SOURCES):
        assert all(number < notebook.number for number in notebook.needs | notebook.after), notebook.name


def test_the_set_up_cell_is_the_same_everywhere():
    assert len({tagged(path, "setup") for path in SOURCES}) == 1
    assert REPOSITORY in tagged(SOURCES[0], "setup")


def move(clone: Path, *given: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = ["bash", "tools/move.sh", *given]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> Path:
    """A clone of the project, as it is here, that knows where it lives, as others find it."""
    clone = tmp_path_factory.mktemp("moved") / "github.com" / "someone" / "measured"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    for folder in ("notebooks", "helpers", "tools"):
        shutil.rmtree(clone / folder)
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "run_all.sh"):
        shutil.copy(ROOT / name, clone)
    done = move(clone, "someone/measured")
    assert done.returncode == 0 and "notebooks/00_start_here.ipynb" in done.stdout, done.stdout + done.stderr
    return clone


@pytest.mark.slow
def test_the_project_can_move(moved):
    sources = [
        *moved.glob("*.md"),
        *moved.rglob("helpers/*.py"),
        *moved.glob("notebooks/*.ipynb"),
        *moved.glob("results/*/notebooks/*"),
    ]
    texts = {path: path.read_text() for path in sources}
    assert not [path for path, text in texts.items() if REPOSITORY in text]
    links = [path for path, text in texts.items() if "github/someone/measured/blob/main/notebooks/" in text]
    assert {moved / "README.md", *moved.glob("notebooks/*.ipynb")} <= set(links)
    for wrong in ("someone", "some one/x", "https://github.com/a/b", "a-/b", "a/b.git", "a/b/c", ""):
        done = move(moved, wrong)
        assert done.returncode == 2 and done.stderr.startswith("error: "), wrong
        assert done.stderr.count("\n") == 1 and "expected OWNER/NAME" in done.stderr
    assert {path: path.read_text() for path in sources} == texts


def set_up(source: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a set-up cell by IPython, as in Colab, in a folder that is no clone.

    What stands in for the interpreter shows what pip is asked for, and its constraints.
    """
    python = folder / "bin/python3"
    python.parent.mkdir(exist_ok=True)
    shown = 'shift 2; echo "pip $*"; while [ "$1" != -c ]; do shift; done; cat "$2"'
    python.write_text(f'#!/bin/bash\nif [ "$2" = pip ]; then {shown}\nelse exec {sys.executable} "$@"\nfi\n')
    python.chmod(0o755)
    script = "import sys; from IPython.core.interactiveshell import InteractiveShell\n"
    script += "InteractiveShell.instance().run_cell(sys.argv[1]).raise_error()\n"
    script += "import helpers; print('helpers of', helpers.ROOT)"
    plain = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    plain |= {"COLAB_RELEASE_TAG": "stand-in", "PATH": f"{python.parent}:{os.environ['PATH']}"} | environment
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run([sys.executable, "-c", script, source], cwd=folder, env=plain, **pipes)


@pytest.mark.slow
def test_the_set_up_cell_fetches_the_project_and_leaves_torch_alone(moved, tmp_path):
    """As in Colab: in an empty folder, the address standing for a local clone; and once more, with all of it there."""
    place, home = tmp_path / "content", f"file://{moved.parents[1]}/"
    place.mkdir()
    with open(moved / "requirements.txt", "a") as file:
        file.write("no-such-package>=1\n")
    git = ["git", "-C", moved, "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "moved"], check=True)
    instead = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{home}.insteadOf"}
    instead |= {"GIT_CONFIG_VALUE_0": "https://github.com/", "HF_HUB_OFFLINE": "1"}
    cell = tagged(moved / "notebooks/01_pretraining_distillation.ipynb", "setup")
    first, second = set_up(cell, place, **instead), set_up(cell, place, **instead)
    for done in (first, second):
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith(f"helpers of {place}/distilbert-remeasured\n")
        pinned = done.stdout[done.stdout.index("pip install") :].splitlines()
        assert {f"torch=={version('torch')}", f"numpy=={version('numpy')}"} <= set(pinned)
        assert not [line for line in pinned if line.startswith("transformers")], "in Colab, what is there stays"
    unset = set_up(tagged(SOURCES[0], "setup"), tmp_path, **instead)
    assert unset.returncode == 1 and "OWNER/distilbert-remeasured" in unset.stdout


def test_no_widget_is_answered_while_a_notebook_runs_headless():
    """The answer to an Output can hide the kernel's own: the cell then waits for its time limit, and all goes on."""
    for path in [*(ROOT / "helpers").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]:
        found = re.findall(r"widgets\.Output\b|\binteract\w*\(|import .*\bOutput\b", path.read_text())
        assert not found, f"{path.name}: {found}"


def test_links_between_notebooks_lead_to_the_series():
    for path in SOURCES:
        for target in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def run_series(store: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.run", "--set", f"store={store}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def of_the_series(test):
    """Marks a test that needs the whole series, with notebooks that do little but time things."""
    return pytest.mark.alone(pytest.mark.series(test))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Where the series is run: run_tests.sh names one folder to both its runs of pytest, so nothing is run twice."""
    return Path(os.environ.get("SERIES_STORE") or tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def trained(store) -> Path:
    """The notebooks that do little but train, on the mini-world: other tests may run beside them."""
    done = run_series(store, "--only", "01,02,03,04,05,12")
    assert done.returncode == 0, done.stdout + done.stderr
    return store


@pytest.fixture(scope="module")
def executed(store) -> Path:
    """The whole series on the mini-world, by the command that users run: what is on record is not measured again."""
    done = run_series(store)
    assert done.returncode == 0, done.stdout + done.stderr
    return store


@pytest.fixture(scope="module")
def read(store, frame):
    """The series' records of an experiment, as a table."""
    space = records.Workspace(profiles.load("mini"), str(store))
    return lambda experiment: frame(space, experiment)


@of_the_series
def test_the_series_makes_records_tables_and_figures(executed):
    made = {path.relative_to(executed).as_posix() for path in executed.rglob("*") if path.is_file()}
    expected = {"distillation": 10, "ablation": 4 + 4 * 2, "glue": 9 * 5 * 2, "imdb": 4 + 1, "squad": 5}
    expected |= {"glue_on_the_way": 2 * 2, "squad_on_the_way": 2}  # student and twin, two tasks
    expected["squad_longer"] = 6
    expected["speed"] = 1 + 2 + 10  # padding; scoring and reading; large against small
    here = [name for name in variants.TORCH | variants.ONNX if not variants.why_not(variants.parse(name))]
    expected["quantization"] = 2 * len(here)  # the variants; the losses
    # The variants, and the last rung, in 8 bits with embeddings or trimmed; the losses.
    expected["pruning"] = (1 + 1 + 3 + 1 + 1 + 2 + 3) + (1 + 3) + (1 + 1 + 3 + 1) + 2
    expected |= {
        "recovery": 2,
        "eighth_bit": 0 if onnx.needs_reduced_range() else 1,
        "compiled": 0,
        "worst_matrices": 0,
        "finishing": 0,
        "nearer": 2 + 4 * 2 * 2 + 2 * 2 + 1,  # models; on tasks; reviews, questions; longer
        "articles": 1 + 4 * 2,  # the student; on tasks
    }
    expected["edge"] = 2 * 2 * 2 * 2  # heads, pruned or not, in 8 bits or not, formats
    # The grid; the mistakes, most of them at three stages, on two texts.
    expected["perplexity"] = 3 * 5 * 3 + (3 * 7 + 1) * 2 + 1
    for experiment, count in expected.items():
        assert len([path for path in made if path.startswith(f"results/mini/records/{experiment}/")]) == count
    tables = ("00_claims", "01_pretraining", "01_cloze", "01_size", "01_ablation", "02_scores", "02_retention")
    for name in (
        *tables,
        "02_gaps",
        "02_padding",
        "03_imdb",
        "03_truncation",
        "04_squad",
        "05_mistakes",
        "06_variants",
        "07_variants",
        "07_losses",
        "07_together",
        "07_published",
        "08_lengths",
        "08_pass",
        "08_alone",
        "09_operations",
        "09_vocabulary",
        "09_answers_masked_lm",
        "09_sst2_1",
        "11_parts",
        "11_variants",
        "11_speed",
        "12_before",
        "12_mixture",
        "12_losses",
        "12_scores",
        "12_articles",
        "12_ahead",
        "10_ledger",
        "10_trust",
        "10_records",
    ):
        assert f"results/mini/tables/{name}.csv" in made and f"results/mini/tables/{name}.md" in made
    figures = ("00_published_glue", "01_teacher", "01_soft_targets", "01_gap", "01_heldout", "01_ablation")
    for name in (
        *figures,
        "02_glue",
        "03_lengths",
        "03_by_length",
        "03_reading_on",
        "05_surprise",
        "06_latency",
        "06_divergence",
        "07_latency",
        "08_lengths",
        "08_depth",
        "09_shares",
        "09_cold_start",
        "07_shares",
        "11_score_by_size",
        "11_speed_by_length",
        "12_ahead",
        "10_picture",
        "10_reached",
    ):
        assert f"figures/mini/{name}.png" in made
    for path in SOURCES:
        assert f"results/mini/notebooks/{path.name}" in made and f"results/mini/report/{path.stem}.html" in made


@pytest.mark.series
def test_fine_tuned_models_come_out_in_order(trained, read):
    """On tasks with a signal; where the twin falls is left open, and so is every single task of a student."""
    frame = read("glue")
    assert frame.groupby(["task", "model"]).size().eq(2).all()
    score = frame.groupby(["model", "task"]).score.mean()
    chance = {"cola": 0.0, "sst2": 0.5, "mrpc": 0.675, "qqp": 0.3, "stsb": 0.0, "mnli": 0.34, "qnli": 0.5, "rte": 0.5}
    for task, lazy in chance.items():  # what the commonest label gets
        assert score["teacher", task] > lazy + 0.05, task
    mean = score.drop("wnli", level="task").groupby("model").mean()
    assert mean["random"] + 0.05 < mean["student"] <= mean["teacher"]
    reviews = read("imdb").set_index(["model", "length"])
    assert reviews.accuracy["teacher", 128] > 0.6
    squad = read("squad").set_index("model")
    assert squad.f1["teacher"] > 15, "answers are found, not guessed: a passage has dozens of stretches"


@pytest.mark.series
def test_the_models_come_out_in_order(trained, read):
    """Gaps larger than the spread of three seeds; how the twin does in masked-LM loss is left open."""
    frame = read("distillation")
    loss = {model: rows.masked_lm_loss for model, rows in frame.groupby("model")}
    kl = {model: rows.kl_to_teacher for model, rows in frame.groupby("model")}
    assert {model: len(values) for model, values in loss.items()} == {
        "teacher": 1,
        "student": 3,
        "twin": 3,
        "random": 1,
        "dropped": 1,
        "twin_time": 1,
    }
    for model in ("student", "twin", "twin_time"):  # what a training is credited with is more than no training
        assert loss[model].max() < loss["dropped"].min(), model
    assert loss["student"].min() - loss["teacher"].max() > loss["student"].std()
    assert loss["random"].min() - loss["student"].max() > loss["student"].std(), "the random start is of one seed"
    assert kl["twin"].min() - kl["student"].max() > max(kl["student"].std(), kl["twin"].std())
    facts = frame.set_index("model").cloze_accuracy
    assert facts["teacher"] > 0.4, "a teacher that knows nothing of its world can teach nothing"
    assert facts["student"].min() > facts["random"].max()


@pytest.mark.series
def test_perplexities_come_out_in_order(trained, read):
    frame = read("perplexity")
    grid = frame[frame.mistake.isna()].set_index(["model", "stage", "text"])
    loss, pseudo = grid.masked_lm_loss, grid.pseudo_perplexity
    assert loss["teacher", "base", "wikitext"] < loss["student", "base", "wikitext"] < 4 < 7.3  # nats of guessing
    assert loss["student", "wikitext", "wikitext"] < loss["student", "base", "wikitext"] - 0.05
    assert loss["student", "gsm8k", "gsm8k_answers"] < loss["student", "base", "gsm8k_answers"] - 1
    for model in ("teacher", "student", "twin"):
        assert abs(loss[model, "int8", "wikitext"] - loss[model, "base", "wikitext"]) < 0.05
        assert grid.size_mb[model, "int8", "wikitext"] < 0.7 * grid.size_mb[model, "base", "wikitext"]
        assert 0.5 < np.log(pseudo[model, "base", "wikitext"]) / loss[model, "base", "wikitext"] < 1.5
    wrong = frame[frame.mistake.notna() & (frame.stage == "base")].set_index(["mistake", "text"]).perplexity
    assert wrong["nothing masked", "wikitext"] < 1.5 < wrong["right", "wikitext"] < wrong["padding scored", "wikitext"]


@of_the_series
def test_pruned_models_come_out_as_they_must(executed, read):
    frame = read("pruning")
    one = frame[frame.task.notna()].set_index("variant")
    for metric in ("score", "agreement", "logit_error"):  # the same function, cut out or not
        assert one[metric]["masked_50"] == pytest.approx(one[metric]["taylor_50"], abs=1e-5)
    assert one.size_mb["masked_50"] == one.size_mb["fp32"] > one.size_mb["taylor_50"]
    assert one.sparsity["weights_90"] == pytest.approx(0.9, abs=1e-3)
    assert one.size_mb["weights_90"] == one.size_mb["fp32"], "zeros are stored like any number"
    assert one.size_mb["taylor_50_recovered_int8"] < one.size_mb["taylor_50_recovered"]
    assert one.latency_times_as_fast["taylor_50_recovered_int8"] > one.latency_times_as_fast["taylor_50_recovered"]
    whole = read("quantization")
    whole = whole[whole.task.notna()].set_index("variant")
    assert one.logit_error["fp32_int8"] == pytest.approx(whole.logit_error["onnx_int8"], abs=1e-5), "made alike"
    assert one.logit_error["fp32"] == 0 < one.logit_error["fp32_recovered"], "trained again, too"
    loss = frame[frame.task.isna()].set_index("variant").masked_lm_loss
    assert loss["fp32"] < loss["taylor_50"] < loss["random_50"]
    followed = [name for name in loss.index if name.endswith("_int8")]
    assert set(followed) == {"fp32_int8", "taylor_50_int8"}, "the whole model, and what is recovered"
    for name in followed:
        assert loss[name] == pytest.approx(loss[name.removesuffix("_int8")], abs=0.05)


@of_the_series
def test_the_executed_notebooks_can_be_read_anywhere(executed):
    committed = [path for path in (ROOT / "results").glob("*/notebooks/*.ipynb") if "mini" not in path.parts]
    for path in [*(executed / "results/mini/notebooks").glob("*.ipynb"), *committed]:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert "widgets" not in notebook.metadata and "jupyter.widget-view" not in path.read_text(), path
        assert path.stat().st_size < 1_000_000
        assert str(ROOT) not in path.read_text()
        errors = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
        assert not errors, f"{path} is a copy of a run that failed"
        noise = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        assert not noise, noise
    for page in (executed / "results/mini/report").glob("*.html"):
        soup = BeautifulSoup(page.read_text(), "html.parser")
        assert not soup.select("script, link[rel=stylesheet], img[src^=http]")
        assert all(image.get("alt", "").strip() for image in soup.select("img")), page.name
    assert (
        soup is not None and "<math" in (executed / "results/mini/report/01_pretraining_distillation.html").read_text()
    )


def written(cell) -> list[str]:
    """What an executed cell shows, in order: "figure", or text."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text = data.get("text/markdown", "figure" if "image/png" in data else output.get("text", ""))
        shown += [text.strip()] if text.strip() else []
    return shown


def exhibits(path: Path) -> list[tuple[str, str, bool]]:
    """Figures and tables of an executed notebook: the cell, what is seen of it, and whether a finding follows.

    A finding is generated text that is no caption, or – and why; below published numbers, which don't change, prose.
    """
    flow = []  # cell, whether prose, text
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            flow.append((cell, True, cell.source))
        flow += [(cell, False, text) for text in written(cell)]
    found = []
    for place, (cell, prose, text) in enumerate(flow):
        seen = text.partition("<details>")[0]
        if prose or not (text == "figure" or text.startswith("|") or (seen.startswith("*") and seen != text)):
            continue
        after = []
        for _, written_by_hand, said in flow[place + 1 :]:
            if said == "figure" or said.startswith("|") or (written_by_hand and said.startswith("#")):
                break
            caption = said.startswith("*") and not said.startswith("**")
            after.append(not caption and not said.startswith("```") and not written_by_hand)
            if written_by_hand and "_published" in cell.source:
                after.append(True)
        found.append((cell.id, seen, any(after)))
    return found


@of_the_series
def test_every_exhibit_is_followed_by_what_it_shows(executed):
    for path in sorted((executed / "results/mini/notebooks").glob("*.ipynb")):
        for cell, seen, followed in exhibits(path):
            lines = [line.replace("\\|", "") for line in seen.splitlines() if line.startswith("|")]
            assert len(lines) <= 2 + 10, f"{path.stem}, {cell}: {len(lines) - 2} rows on the page"
            assert all(line.count("|") <= 1 + 6 for line in lines), f"{path.stem}, {cell}: too many columns"
            assert followed, f"{path.stem}, {cell}: nothing is said of it"


@of_the_series
def test_a_second_run_measures_nothing_again(executed):
    before = {path: path.stat().st_mtime_ns for path in (executed / "results/mini/records").rglob("*.json")}
    start = time.monotonic()
    done = run_series(executed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing measured again" in done.stdout
    assert time.monotonic() - start < 60
    assert {path: path.stat().st_mtime_ns for path in (executed / "results/mini/records").rglob("*.json")} == before
