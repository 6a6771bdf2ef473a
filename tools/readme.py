"""README's generated parts, from what is committed alone: answers, what became of claims, the table of notebooks."""

import re

import nbformat
import pandas as pd

from helpers import REPOSITORY, ROOT, InputError, profiles
from helpers.measure.records import Workspace
from helpers.report import tables

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
BLOCK = re.compile(r"<!-- begin (?P<name>\S+) -->(?P<text>.*?)<!-- end (?P=name) -->", re.DOTALL)
READ = "laptop"  # the profile whose executed copies are linked, whose answers and minutes are shown


def fill(check: bool = False) -> list[str]:
    """Put each generated part between its markers in README, `<!-- begin NAME -->` and its end; which were stale.

    With `check` nothing is changed. InputError for markers with a name that nothing generates.
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
    """The generated parts by name, in Markdown."""
    return {"answers": told("answers"), "claims": told("verdicts"), "notebooks": notebook_table()}


def made(name: str) -> pd.DataFrame:
    """A table that a notebook made last."""
    return pd.read_csv(Workspace(profiles.load(READ), name=READ).tables / f"{name}.csv", na_filter=False, dtype=str)


def told(cell_id: str) -> str:
    """What a cell of notebook 10 says, as it stands in its executed copy."""
    page = nbformat.read(Workspace(profiles.load(READ), name=READ).notebooks / "10_report.ipynb", as_version=4)
    (cell,) = (cell for cell in page.cells if cell.id == cell_id)
    return next(output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.get("data", {}))


def minutes() -> dict[str, str]:
    """Minutes that the committed records took to make, by the notebook's number: what notebook 00 made last."""
    known = made("00_cost").set_index("notebook")[f"{READ}: minutes (records)"]
    return {name[:2]: told.partition(" ")[0] for name, told in known.items() if told != tables.NOTHING}


def notebook_table(repository: str = REPOSITORY) -> str:
    """What each notebook asks, what came out, with a link to read it, and what it took; without an address no badge.

    Where a number of the answer is not on record, there is the link alone.
    """
    ours = pd.concat([made("10_ledger").set_index("number").ours, made("10_answers").set_index("number").ours])
    ours = ours.str.extract(r"^([^:( ,]+)")[0].groupby(level=0).first()  # without interval and verdict
    spent, rows = minutes(), {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook, number = nbformat.read(path, as_version=4), path.name[:2]
        title = re.match(r"# \d+ · ([^:,\n]+)", notebook.cells[0].source)[1]
        own = notebook.metadata["series"]  # in an answer, names of notebook 10's numbers stand in brackets
        row, said = {"asks": own["question"]}, own.get("answer", "")
        known = said and set(re.findall(r"{(.+?)}", said)) <= {*ours.index}
        answer = re.sub(r"{(.+?)}", lambda name: ours[name[1]], said) if known else "executed"
        copy = f"results/{READ}/notebooks/{path.name}"
        row["ours"] = f"[{answer}]({copy})" if (ROOT / copy).exists() else tables.NOTHING
        if not repository.startswith("OWNER/"):
            link = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
            row["run"] = f"{BADGE}({link})"
        row[f"minutes, `{READ}`"] = spent.get(number, tables.NOTHING)
        rows[f"[{number} · {title}](notebooks/{path.name})"] = row
    return tables.markdown(pd.DataFrame(rows).T.rename_axis("notebook").reset_index())
