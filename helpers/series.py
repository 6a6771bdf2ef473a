"""The notebooks as files: what each declares, which ones a run takes, the text generated between markers.

A notebook declares in its metadata, under `series`: `needs`, the numbers of those that must finish before it; `after`,
of those that it waits for, whether they finish or fail;
`times`, whether it times things and so has to run alone; `experiments`, the records it writes.
"""

import ast
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from . import REPOSITORY, ROOT, InputError, profiles

NOTEBOOKS = ROOT / "notebooks"
SET_BY_RUNNER = {"profile": "--profile", "fresh": "--fresh", "overrides": "--set and a key of the profile"}
BLOCK = re.compile(r"<!-- begin (?P<name>\S+) -->(?P<text>.*?)<!-- end (?P=name) -->", re.DOTALL)


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series, and what a run has to know of it."""

    path: Path
    parameters: frozenset[str]  # names assigned in the cell tagged `parameters`
    needs: frozenset[str]  # numbers
    after: frozenset[str]  # numbers
    times: bool
    experiments: frozenset[str]
    imports: frozenset[str]  # modules

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name.split("_")[0]


def read(path: Path) -> Notebook:
    """What a run has to know of the notebook at `path`."""
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    lines = [line for line in ast.parse("\n".join(tagged)).body if isinstance(line, ast.Assign)]
    parameters = frozenset(ast.unparse(target) for line in lines for target in line.targets)
    series = notebook.metadata.get("series", {})
    needs, after, experiments = (frozenset(series.get(key, ())) for key in ("needs", "after", "experiments"))
    imports = frozenset().union(*(_imports(cell.source) for cell in notebook.cells if cell.cell_type == "code"))
    return Notebook(path, parameters, needs, after, series.get("times", False), experiments, imports)


def _imports(source: str) -> set[str]:
    """The modules that a cell imports; for `from a import b`, where `b` may be one itself, `a` and `a.b`."""
    try:
        lines = ast.parse(source).body
    except SyntaxError:  # running the cell will tell
        return set()
    names = {alias.name for line in lines if isinstance(line, ast.Import) for alias in line.names}
    for line in lines:
        if isinstance(line, ast.ImportFrom) and line.module:
            names |= {line.module} | {f"{line.module}.{alias.name}" for alias in line.names}
    return names


def move(name: str) -> list[str]:
    """Write where the project lives into every file that says so, badges and links; which ones those are.

    Raises:
        InputError: not of the form OWNER/NAME.
    """
    if not re.fullmatch(r"[A-Za-z0-9](-?[A-Za-z0-9]){0,38}/[\w.-]{1,100}", name, re.ASCII) or name.endswith(".git"):
        raise InputError(f"--repository {name}: expected OWNER/NAME, as in https://github.com/OWNER/NAME")
    changed = []
    executed = ROOT.glob("results/*/notebooks/*.ipynb")
    for path in (
        ROOT / "helpers/__init__.py",
        ROOT / "README.md",
        *sorted(NOTEBOOKS.glob("*.ipynb")),
        *sorted(executed),
    ):
        text = path.read_text()
        if REPOSITORY in text and name != REPOSITORY:
            path.write_text(text.replace(REPOSITORY, name))
            changed.append(str(path.relative_to(ROOT)))
    return changed


def select(only: str | None = None) -> list[Notebook]:
    """The notebooks to run, in order: all, or those whose numbers or names `only` lists, as in "02,05".

    Raises:
        InputError: no such notebook.
    """
    notebooks = [read(path) for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
    for notebook in notebooks:
        if late := [number for number in notebook.needs | notebook.after if number >= notebook.number]:
            raise InputError(f"{notebook.name} needs {', '.join(late)}, which does not come before it")
    if only is None:
        return notebooks
    wanted = [word.strip().removesuffix(".ipynb").zfill(2) for word in only.split(",")]
    for word in wanted:
        if not any(word in (notebook.number, notebook.name) for notebook in notebooks):
            raise InputError(f"--only: no notebook {word!r}; there are {', '.join(n.name for n in notebooks)}")
    return [notebook for notebook in notebooks if {notebook.number, notebook.name} & set(wanted)]


def sort_settings(settings: list[str], notebooks: list[Notebook]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`KEY=VALUE` each, the value in YAML: overrides of the profile, and parameters that the notebooks have.

    Raises:
        InputError: not of this form, or a key that neither the profile nor one of the notebooks has.
    """
    overrides, parameters = {}, {}
    known = set().union(*(notebook.parameters for notebook in notebooks)) - set(SET_BY_RUNNER)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise InputError(f"--set {setting}: expected KEY=VALUE, as in distillation.training.steps=100")
        if key in SET_BY_RUNNER:
            raise InputError(f"--set {setting}: this one is set with {SET_BY_RUNNER[key]}")
        if profiles.is_key(key):
            overrides[key] = _value(setting, text)
        elif key in known:
            parameters[key] = _value(setting, text)
        else:
            close = difflib.get_close_matches(key, sorted(known.union(profiles.known_keys())))
            hint = f"did you mean {' or '.join(close)}?" if close else "they are listed in helpers/profiles/"
            raise InputError(f"--set {setting}: no {key!r} in the profile or in a selected notebook; {hint}")
    return overrides, parameters


def _value(setting: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"--set {setting}: expected a value in YAML, such as 3, 2e-4 or [0, 1]") from None
    number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value, re.IGNORECASE)
    return float(value) if number else value  # YAML asks for 2.0e-4 where everybody writes 2e-4


def fill(blocks: dict[str, str], check: bool = False) -> list[str]:
    """Put each of `blocks` between its markers, `<!-- begin NAME -->` and its end, in README and notebooks.

    Returns:
        The places that were stale; filled in now, unless this is only a `check`.

    Raises:
        InputError: markers with a name that nothing generates.
    """
    stale = []

    def renew(match: re.Match, path: Path) -> str:
        name, old = match["name"], match["text"]
        if name not in blocks:
            raise InputError(f"{path.name}: nothing generates {name!r}; there are {', '.join(sorted(blocks))}")
        new = blocks[name].strip()
        apart = "\n" if "\n" in old + new else ""  # a table takes lines of its own, a phrase stays in its line
        new = f"{apart}{new}{apart}"
        stale.extend([f"{path.relative_to(ROOT)}: {name}"] if new != old else [])
        return f"<!-- begin {name} -->{new}<!-- end {name} -->"

    for path in (ROOT / "README.md", *sorted(NOTEBOOKS.glob("*.ipynb"))):
        before = len(stale)
        if path.suffix == ".md":
            text = BLOCK.sub(lambda match, path=path: renew(match, path), path.read_text())
        else:
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = BLOCK.sub(lambda match, path=path: renew(match, path), cell.source)
            text = nbformat.writes(notebook) + "\n"
        if len(stale) > before and not check:
            path.write_text(text)
    return stale
