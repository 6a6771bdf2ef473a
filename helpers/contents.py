"""The table of notebooks on README's page: what each answers, where it is read and run, and what it took."""

import re

import nbformat
import pandas as pd

from . import REPOSITORY, ROOT, claims, cost, profiles, records, tables

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
READ = "laptop"  # the profile whose executed copies are linked
SHOWN = (READ, "t4")  # profiles whose minutes are shown


def minutes(profile: str) -> dict[str, float]:
    """Minutes by notebook's number that the committed records of a profile took to make; none where there are none."""
    evidence = claims.Evidence(records.Workspace(profiles.load(profile), name=profile))
    spent: dict[str, float] = {}
    for folder in sorted(evidence.space.records.glob("*/")):
        for record in evidence(folder.name):
            number = cost.notebook_of(record)
            spent[number] = spent.get(number, 0) + record["provenance"]["seconds"] / 60
    return spent


def table() -> str:
    """The table in Markdown, with its caption."""
    took, rows = {name: minutes(name) for name in SHOWN}, {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook, number = nbformat.read(path, as_version=4), path.name[:2]
        title = re.match(r"# \d+ · ([^:\n]+)", notebook.cells[0].source)[1]
        copy = f"results/{READ}/notebooks/{path.name}"
        link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name}"
        row = {"the question it answers": notebook.metadata["series"]["question"]}
        row["executed"] = f"[read]({copy})" if (ROOT / copy).exists() else tables.NOTHING
        row["run it"] = f"{BADGE}({link})"
        for name, spent in took.items():
            row[f"minutes, `{name}`"] = f"{spent[number]:.0f}" if number in spent else tables.NOTHING
        rows[f"[{number} · {title}](notebooks/{path.name})"] = row
    caption = (
        "Minutes are those of the committed records; – where none were made, or where nothing is measured. What a "
    )
    caption += "notebook would take on your machine, 00 estimates."
    return tables.Shown(pd.DataFrame(rows).T.rename_axis("notebook"), caption)._repr_markdown_()
