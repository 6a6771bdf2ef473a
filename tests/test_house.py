"""The house: rooms that import downwards, no circles, and sizes that an eye can take in; README's tree names it all."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["tools", "report", "experiments", "compression", "models", "data", "measure", "profiles"]  # from the top down
READING = {"report", "measure", "profiles"}  # all that making a report takes
NAMES = "helpers.compression.variants"  # … but for this, which knows variants by name, and makes none
PATHS = [*sorted((ROOT / "helpers").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in PATHS}


def room(name: str) -> str:
    """`helpers.report.claims` is in the room `report`; `helpers` itself, which all others use, is in none."""
    parts = name.split(".")
    return parts[0] if parts[0] == "tools" else parts[1] if len(parts) > 1 else ""


def imports(source: str, name: str = "", package: bool = False) -> set[str]:
    """The modules of ours that a module imports, wherever in it the import stands."""
    found, here = set(), name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {one if (one := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return found & MODULES.keys() - {name}


ARROWS = {
    (name, other)
    for name, path in MODULES.items()
    for other in imports(path.read_text(), name, path.name == "__init__.py")
    if room(other)
}


def test_what_an_import_is():
    source = "from . import tables\nfrom ..measure.records import of\nfrom .. import profiles, ROOT\nimport torch\n"
    source += "def later():\n    from ..models import checkpoints"
    found = {"helpers", "helpers.measure.records", "helpers.models.checkpoints", "helpers.profiles"}
    assert imports(source, "helpers.report.claims") == found | {"helpers.report.tables"}


def test_rooms_import_downwards():
    wrong = [
        f"{name} imports {other}"
        for name, other in sorted(ARROWS)
        if name.startswith("helpers.") and room(name) and ROOMS.index(room(other)) < ROOMS.index(room(name))
    ]
    assert not wrong, "a room imports from rooms below it: " + "; ".join(wrong)


def test_a_report_needs_none_of_the_rooms_that_make_records():
    wrong = [f"{a} imports {b}" for a, b in sorted(ARROWS) if room(a) == "report" and room(b) not in READING]
    wrong = [line for line in wrong if not line.endswith(f" {NAMES}")]
    assert not wrong, "; ".join(wrong)


def test_there_are_no_circles():
    left = set(ARROWS)
    while leaves := {b for _, b in left} - {a for a, _ in left}:  # what imports nothing that is left
        left = {(a, b) for a, b in left if b not in leaves}
    assert not left, "in a circle, or above one: " + "; ".join(f"{a} → {b}" for a, b in sorted(left))


def needed(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that a drawing needs: what another way leads to anyway is not drawn."""

    def reached(start: str, without: tuple[str, str]) -> set[str]:
        found, left = set(), [start]
        while left:
            one = left.pop()
            new = {b for a, b in arrows - {without} if a == one} - found
            found |= new
            left += new
        return found

    return {arrow for arrow in arrows if arrow[1] not in reached(arrow[0], arrow)}


def test_the_house_can_be_drawn():
    between = needed({(room(a), room(b)) for a, b in ARROWS if room(a) != room(b)})
    within = needed({(a, b) for a, b in ARROWS if room(a) == room(b)})
    drawn = "; ".join(f"{a} → {b}" for a, b in sorted(between | within))
    assert len(between | within) <= 40, f"{len(between)} arrows between rooms, {len(within)} within: {drawn}"


def test_the_package_is_thin():
    helpers = [name for name in MODULES if name.startswith("helpers")]
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    long = {name: count for name, count in lines.items() if count > 450}
    assert len(helpers) <= 34, f"{len(helpers)} modules"
    assert not long, f"longer than an eye takes in: {long}"
    assert sum(lines.values()) <= 9000, f"{sum(lines.values())} lines"


@pytest.mark.parametrize("name", ["helpers.report.claims", "helpers.measure.sweep", "helpers.measure.timing"])
def test_records_are_read_without_torch(name):
    heavy = "{'torch', 'transformers', 'evaluate', 'huggingface_hub'}"
    script = f"import sys, {name}; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.strip(), f"import {name} loads {done.stdout.strip()}"


def test_tools_serve_the_runner_alone():
    wrong = [f"{a} imports {b}" for a, b in sorted(ARROWS) if a.startswith("helpers") and room(b) == "tools"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        wrong += [path.name] * any(re.search(r"^\s*(from|import) tools\b", cell, re.MULTILINE) for cell in code)
    assert not wrong, wrong


def in_tree(tree: str) -> set[str]:
    """The paths that a tree names with a caption, each line indented under its folder."""
    found, folders = set(), []
    for indent, name in re.findall(r"^( *)(\S+) {2,}\S", tree, re.MULTILINE):
        folders = [*folders[: len(indent) // 2], name]
        found.add("".join(folders))
    return found


def test_every_module_stands_in_the_tree_of_the_readme():
    (tree,) = re.findall(r"```\n(notebooks/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    every = [*PATHS, *(ROOT / "tools").glob("*.sh"), *(ROOT / "tools").glob("*.sbatch")]
    ours = {path.relative_to(ROOT).as_posix().removesuffix("__init__.py") for path in every}
    named = {name for name in in_tree(tree) if name.startswith(("helpers/", "tools/"))}
    folders = {f"helpers/{room}/" for room in ROOMS[1:]} | {"tools/"}
    assert named == ours | folders, f"without a caption: {ours - named}; no longer there: {named - ours - folders}"


def dangers(source: str) -> list[str]:
    """What in a piece of code could run code that came with data: remote code, pickles, a shell, eval."""
    found, plain = [], re.sub(r"^( *)[%!].*$", r"\1pass", source, flags=re.MULTILINE)  # without IPython's own lines
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code", "allow_pickle"):
            found.append(node.arg)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "os.system", "torch.load"):
            found.append(ast.unparse(node.func))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None), *(name.name for name in node.names)}
            found += sorted(names & {"pickle", "marshal", "shelve", "joblib", "dill"})
    return found


@pytest.mark.parametrize("line", ["import pickle", "run(x, shell=True)", "torch.load(p)", "f(trust_remote_code=t)"])
def test_a_danger_is_seen(line):
    assert dangers(line)


def test_nothing_runs_code_that_came_with_data():
    sources = {path.name: path.read_text() for path in PATHS}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        sources[path.name] = "\n\n".join(code)
    wrong = {name: found for name, source in sources.items() if (found := dangers(source))}
    assert not wrong, wrong
