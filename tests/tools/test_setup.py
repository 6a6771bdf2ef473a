"""The set-up: what the requirement files promise, and that a broken or foreign environment is dealt with."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ACTIVE = ("VIRTUAL_ENV", "CONDA_PREFIX", "COLAB_RELEASE_TAG")  # set in an environment that is active


def read_requirements(name: str) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_constraints_are_exact_and_within_the_ranges():
    pins = read_requirements("constraints.txt")
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())
    for name, requirement in read_requirements("requirements.txt").items():
        assert requirement.specifier.contains(str(pins[name].specifier)[2:]), name


def test_colab_has_nothing_to_replace():
    requirements, image = (read_requirements(name) for name in ("requirements.txt", "tests/colab-image.txt"))
    there = {name: str(image[name].specifier)[2:] for name in requirements.keys() & image.keys()}
    assert {"torch", "transformers", "datasets", "torchao", "ipywidgets"} <= there.keys()
    assert all(requirements[name].specifier.contains(version) for name, version in there.items())


def test_all_that_is_imported_is_required_and_the_other_way_round():
    sources = [path.read_text() for folder in ("helpers", "tools") for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        sources += map(TransformerManager().transform_cell, cells)  # commands of the shell and magics to Python
    imported = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.partition(".")[0])
    own = sys.stdlib_module_names | {"helpers", "tools", "google", "ray"}  # google.colab is there in Colab; an extra
    distributions = packages_distributions()
    names = {canonicalize_name(distributions.get(module, [module])[0]) for module in imported - own}
    required = set(read_requirements("requirements.txt"))
    assert names <= required
    # accelerate: Trainer's; bitsandbytes: transformers'; ipykernel: papermill's; ipywidgets: a notebook's;
    # onnxscript: torch's exporter's; safetensors: the format of weights
    unseen = {"accelerate", "bitsandbytes", "ipykernel", "ipywidgets", "onnxscript", "pyarrow", "safetensors"}
    assert required - names <= unseen


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A project that requires nothing, with the real set-up."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/environment.sh", tmp_path / "tools")
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "constraints.txt").touch()
    return tmp_path


def set_up(project: Path, **environment: str) -> subprocess.CompletedProcess:
    command = "set -euo pipefail; source tools/environment.sh; set_up requirements.txt; echo $python"
    plain = {name: value for name, value in os.environ.items() if name not in ACTIVE}
    pipes = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(["bash", "-c", command], cwd=project, env=plain | environment, **pipes)


@pytest.mark.slow
def test_an_interrupted_set_up_is_taken_up_again(bare):
    (bare / ".venv/bin").mkdir(parents=True)
    (bare / ".venv/bin/python").symlink_to(sys.executable + "-that-is-gone")
    first, second = set_up(bare), set_up(bare)
    assert first.stdout.strip() == ".venv/bin/python" and "making .venv" in first.stderr
    assert second.stdout == first.stdout and second.stderr == ""
    (bare / "constraints.txt").write_text("# other versions\n")
    assert "installing" in set_up(bare).stderr


def test_an_active_environment_is_used_and_left_alone(bare):
    (bare / "requirements.txt").write_text("pytest>=8\npackaging\n")
    done = set_up(bare, VIRTUAL_ENV=sys.prefix)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.strip() == f"{sys.prefix}/bin/python" and not (bare / ".venv").exists()


def test_what_is_missing_in_an_active_environment_is_installed_beside_what_is_there(bare):
    (bare / "requirements.txt").write_text("pytest>=8\nno-such-package>=1\n")
    (bare / "constraints.txt").write_text("pytest==1.0\nno-such-package==1.5\n")
    python = bare / "env/bin/python"  # stands in for pip, and shows what it is asked for
    python.parent.mkdir(parents=True)
    script = 'if [ "$2" = pip ]; then shift 2; echo "pip $*"; while [ "$1" != -c ]; do shift; done; cat "$2"'
    python.write_text(f'#!/bin/bash\n{script}\nelse exec {sys.executable} "$@"\nfi\n')
    python.chmod(0o755)
    done = set_up(bare, VIRTUAL_ENV=str(bare / "env"))
    assert done.returncode == 0 and "pip install" in done.stdout
    assert "no-such-package==1.5" in done.stdout and "pytest==1.0" not in done.stdout


@pytest.mark.parametrize("place", ["python3", "VIRTUAL_ENV"])
def test_an_old_python_is_refused_in_a_line(bare, place):
    for name in ("python3", "python3.11", "python3.12", "python3.13", "env/bin/python"):
        fake = bare / "bin" / name
        fake.parent.mkdir(parents=True, exist_ok=True)
        fake.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.8.1\nexit 1\n")
        fake.chmod(0o755)
    environment = {"PATH": f"{bare}/bin:{os.environ['PATH']}"}
    environment |= {"VIRTUAL_ENV": f"{bare}/bin/env"} if place == "VIRTUAL_ENV" else {}
    done = set_up(bare, **environment)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "3.11" in done.stderr and not (bare / ".venv").exists()


def test_run_by_itself_it_installs_what_is_missing(bare):
    """As the set-up cell does, from another folder."""
    plain = {name: value for name, value in os.environ.items() if name not in ACTIVE} | {"VIRTUAL_ENV": sys.prefix}
    (bare / "requirements.txt").write_text("pytest>=8\n")
    command = ["bash", str(bare / "tools/environment.sh")]
    done = subprocess.run(command, cwd=bare.parent, env=plain, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "nothing is missing"


def test_the_package_says_what_it_needs_and_holds_its_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11" and "dependencies" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    tracked = subprocess.run(["git", "ls-files", "helpers", "tools"], cwd=ROOT, capture_output=True, text=True)
    for path in map(Path, tracked.stdout.split()):
        assert path.suffix == ".py" or any(path.match(pattern) for pattern in patterns), f"{path} is left out"
