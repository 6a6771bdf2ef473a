"""README's generated parts: filled in between their markers, from committed records, and found when they are stale."""

import subprocess
import sys

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


def test_a_badge_stands_where_there_is_an_address():
    assert "colab" not in readme.notebook_table("OWNER/distilbert-remeasured")
    there = readme.notebook_table("someone/measured")
    assert "https://colab.research.google.com/github/someone/measured/blob/main/notebooks/02_glue.ipynb" in there


@pytest.mark.slow
def test_the_committed_page_is_not_stale():
    done = subprocess.run([sys.executable, "-m", "tools.run", "--fill", "--check"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
