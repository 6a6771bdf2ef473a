"""What tables say of records: where they were made, and on what."""

import pandas as pd
from bs4 import BeautifulSoup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from helpers import profiles
from helpers.measure import records
from helpers.report import tables


def test_every_committed_record_belongs_to_a_notebook():
    space = records.Workspace(profiles.load("laptop"))
    found = {tables.notebook_of(records.read_record(path)) for path in space.records.rglob("*.json")}
    assert found == {f"0{number}" for number in range(1, 10)} | {"11", "12"}


def test_the_processor_is_named_where_a_gpu_stands_idle():
    origin = {"cpu": "Xeon", "threads": 8, "gpu": {"name": "Tesla T4"}, "versions": {"torch": "2.11"}}
    assert tables.describe_machine(origin) == "Tesla T4, torch 2.11"
    assert tables.describe_machine(origin, {"device": "cpu", "threads": 1}) == "Xeon, 1 thread, torch 2.11"


def test_a_note_names_both_ways_in_which_a_data_set_is_used():
    sources = [
        {"id": "gsm8k", "config": "main", "rows": {"test": 100}, "capped": {"test": f"{n} blocks"}} for n in (4, 9)
    ]
    origin = {"cpu": "a cpu", "gpu": None, "threads": 2, "versions": {"torch": "2"}, "models": [], "data": sources}
    assert "main (4 blocks, 9 blocks)" in tables.data_note([{"provenance": origin, "unit": {}}])


def test_text_of_a_data_set_stays_text_f10():
    """F10: `<img onerror=…>` and `<iframe>` of a review stayed in the page; a newline ended the table."""
    review = "<img src=x onerror=alert(1)> it cost $5,\nor $6 | <br />more < 3 <script>x</script>"
    markdown = tables.folded(pd.DataFrame({"text": [review], "p": ["< 0.0001"]}), "A caption.")
    assert len(markdown.split("\n\n")[0].splitlines()) == 3 and "< 0.0001" in markdown
    page = BeautifulSoup(MarkdownWithMath(renderer=IPythonRenderer(escape=False)).render(markdown), "html.parser")
    assert not page.select("img, br, script, iframe, math") and page.td.get_text() == " ".join(review.splitlines())


def test_a_large_table_is_folded_below_the_part_that_a_page_shows():
    """Ten rows and six columns are what a person reads; the rest is there to be opened, and as CSV."""
    small = pd.DataFrame({"b": range(10)}, index=pd.Index(range(10), name="a"))
    assert "<details>" not in tables.folded(small.reset_index(), "Said.")
    wide = pd.DataFrame({f"c{n}": range(3) for n in range(6)}).rename_axis("a")
    for large in (pd.concat([small, small]), wide):
        shown, _, folded = tables.folded(large.reset_index(), "Said.", large.iloc[:2, :2]).partition("<details>")
        assert len([line for line in shown.splitlines() if line.startswith("|")]) == 4 and "*Said.*" in shown
        page = MarkdownWithMath(renderer=IPythonRenderer(escape=False)).render(f"<details>{folded}")
        whole = BeautifulSoup(page, "html.parser").select_one("details table")
        assert len(whole.select("tbody tr")) == len(large)
        assert not tables.folded(large.reset_index(), "Said.").startswith("|"), "nothing above without a part"


def test_numbers_stand_to_the_right_whatever_goes_with_them():
    right = ["1,234", "+0.1 (+0.0 to +0.2; ±0.3)", "27.5 (3 seeds)", "**3.9 ± 0.1**", "–", "< 0.0001*", "1.2 (p 0.03)"]
    left = ["a text", "3 of 4", "80.1 (student)"]
    for told, dashes in ((right, "---:"), (left, "---")):
        for value in told:
            head, rule, row = tables.markdown(pd.DataFrame({"what": [value]})).splitlines()
            assert rule == f"| {dashes} |" and row == f"| {value} |"


def test_a_finding_is_said_where_its_condition_holds():
    assert tables.say("Always.", (1 > 2, "Never."), (1 < 2, "This.")).data == "Always. This."
    assert tables.say((False, "Never.")).data.startswith(tables.NOTHING)
