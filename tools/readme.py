"""README's generated parts, from committed records alone: the ledger of claims, and the table of notebooks."""

import re

import nbformat
import pandas as pd

from helpers import REPOSITORY, ROOT, InputError, profiles
from helpers.measure.records import Evidence, Workspace
from helpers.report import claims, tables

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
BLOCK = re.compile(r"<!-- begin (?P<name>\S+) -->(?P<text>.*?)<!-- end (?P=name) -->", re.DOTALL)
READ = "laptop"  # the profile whose executed copies are linked, and whose records are judged
SHOWN = (READ, "t4")  # profiles whose minutes are shown


def fill(check: bool = False) -> list[str]:
    """Put each generated part between its markers in README, `<!-- begin NAME -->` and its end; which were stale.

    With `check` nothing is changed. InputError for markers with a name that nothing generates, or a damaged record.
    """
    made, stale, path = blocks(), [], ROOT / "README.md"

    def renew(found: re.Match) -> str:
        name = found["name"]
        if name not in made:
            raise InputError(f"{path.name}: nothing generates {name!r}; there are {', '.join(sorted(made))}")
        new = f"\n{made[name].strip()}\n"
        stale.extend([name] if new != found["text"] else [])
        return f"<!-- begin {name} -->{new}<!-- end {name} -->"

    text = BLOCK.sub(renew, path.read_text(encoding="utf-8"))
    if stale and not check:
        path.write_text(text, encoding="utf-8")
    return stale


def blocks() -> dict[str, str]:
    """The generated parts by name, in Markdown; InputError if a record that they are made from is damaged."""
    evidence = _evidence(READ)
    judged = claims.judge(evidence)
    if evidence.problems:
        raise InputError(evidence.problems[0])
    caption = f"Profile `{READ}`, ours with a 95% interval. Notebook 10 has the rule, and what each number rests on."
    ledger = tables.Shown(claims.ledger(judged).drop(columns=["n", "notebook"]), caption)._repr_markdown_()
    return {"ledger": f"{claims.headline(judged)}\n\n{ledger}", "notebooks": notebook_table()}


def _evidence(profile: str) -> Evidence:
    return Evidence(Workspace(profiles.load(profile), name=profile))


def minutes(profile: str) -> dict[str, float]:
    """Minutes that the committed records of a profile took to make, by the notebook's number."""
    evidence, spent = _evidence(profile), {}
    for record in [one for folder in sorted(evidence.space.records.glob("*/")) for one in evidence(folder.name)]:
        number = tables.notebook_of(record)
        spent[number] = spent.get(number, 0) + record["provenance"]["seconds"] / 60
    return spent


def notebook_table(repository: str = REPOSITORY) -> str:
    """What each notebook answers, where it is read and run, and what it took; no badge while there is no address."""
    took, rows = {name: minutes(name) for name in SHOWN}, {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook, number = nbformat.read(path, as_version=4), path.name[:2]
        title = re.match(r"# \d+ · ([^:\n]+)", notebook.cells[0].source)[1]
        row = {"the question it answers": notebook.metadata["series"]["question"]}
        copy = f"results/{READ}/notebooks/{path.name}"
        row["executed"] = f"[read]({copy})" if (ROOT / copy).exists() else tables.NOTHING
        if not repository.startswith("OWNER/"):
            link = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
            row["run it"] = f"{BADGE}({link})"
        for name, spent in took.items():
            row[f"minutes, `{name}`"] = f"{spent[number]:.0f}" if number in spent else tables.NOTHING
        rows[f"[{number} · {title}](notebooks/{path.name})"] = row
    caption = "Minutes are those of the committed records; – where none were made, or where nothing is measured."
    return tables.Shown(pd.DataFrame(rows).T.rename_axis("notebook"), caption)._repr_markdown_()
