"""README's generated parts: filled in between their markers, from committed records, and found when they are stale."""

import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest

from helpers import ROOT, InputError
from tools import readme


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A README of its own, and parts that cost nothing to make."""
    made = {"glance": "| a |\n|---|\n| 1 |"}
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "blocks", lambda: made)
    return tmp_path / "README.md"


def test_generated_text_is_filled_in_and_checked(page):
    page.write_text("Results:\n\n<!-- begin glance -->\n<!-- end glance -->\n\nEnd.\n")
    assert readme.fill(check=True) == ["glance"]
    assert "| 1 |" not in page.read_text()
    assert readme.fill() == ["glance"] and readme.fill(check=True) == []
    glance = "<!-- begin glance -->\n| a |\n|---|\n| 1 |\n<!-- end glance -->"
    assert page.read_text() == f"Results:\n\n{glance}\n\nEnd.\n"


def test_markers_that_nothing_fills_are_refused(page):
    page.write_text("<!-- begin nothing --><!-- end nothing -->")
    with pytest.raises(InputError, match="nothing generates 'nothing'; there are glance"):
        readme.fill()


def test_answers_are_those_of_the_executed_page(tmp_path, monkeypatch):
    said = nbformat.v4.new_output("display_data", {"text/markdown": "- **Is it?** 3 of 4."})
    cells = [nbformat.v4.new_code_cell("…", id=name, outputs=[said] * (name == "answers")) for name in ("a", "answers")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "10_report.ipynb")
    monkeypatch.setattr(readme, "Workspace", lambda *_, **__: SimpleNamespace(notebooks=tmp_path))
    assert readme.told("answers") == "- **Is it?** 3 of 4."


def test_a_notebooks_answer_has_the_reports_numbers():
    """Without interval and verdict; the same fact has one number wherever it stands."""
    ledger, answers = (readme.made(name).set_index("number").ours for name in ("10_ledger", "10_answers"))
    table = readme.notebook_table()
    kept, smaller = answers["kept of the teacher's mean GLUE score (%)"], ledger["parameters, fewer (%)"]
    faster = ledger["pass over STS-B: times as fast"].split(" ")[0]
    rules = answers["kept of the teacher's mean GLUE score (%), what needs no language model (02)"]
    assert f"[keeps {kept.split(' ')[0]}%; no language model {rules}%]" in table
    assert f"[{smaller}% smaller, {faster} times as fast](results/laptop/notebooks/08_speed_and_size.ipynb)" in table
    assert "{" not in table and not re.search(r"\d \(", table)


def test_the_page_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 12_000


def test_a_badge_stands_where_there_is_an_address():
    assert "colab" not in readme.notebook_table("OWNER/distilbert-remeasured")
    there = readme.notebook_table("someone/measured")
    assert "https://colab.research.google.com/github/someone/measured/blob/main/notebooks/02_glue.ipynb" in there


@pytest.mark.slow
def test_the_committed_page_is_not_stale():
    done = subprocess.run([sys.executable, "-m", "tools.run", "--fill", "--check"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_executed_pages_name_no_place_of_whoever_ran_them():
    """`store` is a path of the machine where the page was drawn, and nobody else has it."""
    pages = sorted((ROOT / "results/laptop/notebooks").glob("*.ipynb"))
    cells = [cell for path in pages for cell in nbformat.read(path, as_version=4).cells]
    given = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(given) == len(pages) == 13 and not [text for text in given if "store" in text]
