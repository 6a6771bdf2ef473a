"""Data sets by name and their text: articles, word problems, samples, and what is refused."""

import re

import pytest
from datasets import Dataset

from helpers import InputError, profiles
from helpers.data import hub


def test_articles_begin_at_titles_not_at_sections():
    lines = [
        "",
        " = Alder = \n",
        "",
        " It is old . \n",
        " = = Bridges = = \n",
        " None . \n",
        " = Birch = \n",
        " New . \n",
    ]
    assert list(hub.articles(lines)) == [
        " = Alder = \n It is old . \n = = Bridges = = \n None . \n",
        " = Birch = \n New . \n",
    ]


def test_what_wikitexts_authors_did_to_the_text_is_undone():
    lines = [" a well @-@ known town of 1 @,@ 234 people , 5 @.@ 6 km from <unk> \n"]
    assert list(hub.articles(lines, "[UNK]")) == [" a well-known town of 1,234 people , 5.6 km from [UNK] \n"]


def test_a_data_set_that_does_not_exist_is_refused():
    profile = profiles.load("mini")
    with pytest.raises(InputError, match="'no/such', 'main', 'train'"):
        hub.load(profile, "no/such", "main", "train")
    with pytest.raises(InputError, match="wikitext-99"):
        hub.load(profile, "Salesforce/wikitext", "wikitext-99", "train")


def test_a_sample_is_drawn_once_and_told():
    profile = profiles.load("mini")
    whole, _ = hub.load(profile, "nyu-mll/glue", "sst2", "train")
    drawn, source = hub.sample(profile, "nyu-mll/glue", "sst2", "train", 50)
    assert len(drawn) == 50 and source["capped"] == {"train": f"50 of {len(whole):,} train rows"}
    assert list(drawn) == list(hub.sample(profile, "nyu-mll/glue", "sst2", "train", 50)[0])
    assert list(drawn["idx"]) == sorted(drawn["idx"]), "in the data set's own order"
    everything, source = hub.sample(profile, "nyu-mll/glue", "sst2", "train", len(whole))
    assert len(everything) == len(whole) and "capped" not in source


def test_word_problems_lose_the_calculators_notes():
    profile = profiles.load("mini")
    worked, source = hub.problems(profile, "test")
    asked, _ = hub.problems(profile, "test", answers=False)
    assert source["id"] == "miniworld:openai/gsm8k" and len(worked) == len(asked) == source["rows"]["test"]
    for text, question in zip(worked, asked, strict=True):
        assert text.startswith(f"{question}\n") and "<<" not in text and re.search(r"#### \d+$", text)


def test_all_that_a_profile_reads_is_downloaded_once():
    lines = hub.download(profiles.load("mini"))
    assert len(lines) == len(set(lines))
    for what in ("glue mnli validation_mismatched", "wikitext wikitext-2-raw-v1 test", "gsm8k main train"):
        assert sum(what in line for line in lines) == 1


# --- text of one's own


def test_rows_of_ones_own_are_documents_and_never_glued_k5():
    """Trouble A5: "before the storm" and "A heron" of two rows became one word, in one document."""
    rows = ["Our teacher counted boats before the storm", "A heron opened the market"]
    assert list(hub.articles(rows)) == rows
    assert list(hub.articles(["one", "two", "", "three\n", "  ", "four"])) == ["one\ntwo", "three", "four"]
    titled = [" = Boats = \n", " A heron . \n", "", " = Storms = \n", " Rain . \n"]
    assert [text.split(" = ")[1] for text in hub.articles(titled)] == ["Boats", "Storms"]


def test_rows_without_text_are_left_out_and_counted_k5(monkeypatch):
    """Trouble A7: a row that says `null` ended in a TypeError; A8: so did a column of another name."""
    own = Dataset.from_dict({"text": ["snow fell", None, "nobody came"], "label": [0, 1, 1]})
    source = {"id": "mine", "config": "default", "rows": {"train": 3}}
    monkeypatch.setattr(hub, "load", lambda *_: (own, source))
    rows, told = hub.corpus_rows(profiles.load("mini"), "default", "train")
    assert rows == ["snow fell", "nobody came"] and told == source | {"without_text": {"train": 1}}
    monkeypatch.setattr(hub, "load", lambda *_: (own.rename_column("text", "content"), source))
    with pytest.raises(InputError, match="mine has no column `text`, but content, label: rename one"):
        hub.corpus_rows(profiles.load("mini"), "default", "train")


def test_an_errors_last_cause_is_said_k7(monkeypatch):
    """Kind K7: "An error occurred while generating the dataset" hid a text in another encoding."""

    def fail(*_, **__):
        try:
            b"\xe9".decode()
        except UnicodeDecodeError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(hub, "load_dataset", fail)
    with pytest.raises(InputError, match="'utf-8' codec can't decode byte 0xe9"):
        hub.load(profiles.load("mini"), "mine", "default", "train")


def test_files_that_are_not_the_pinned_ones_are_refused(tmp_path):
    """A folder of one's own has a hash of its files for a revision."""
    (tmp_path / "train.csv").write_text("text,label\nsnow fell,0\n", encoding="utf-8")
    own, given = str(tmp_path), {"hub": "huggingface"}
    _, source = hub.load(profiles.load("mini", given), own, "default", "train")
    pinned = profiles.load("mini", given | {"revisions": {own: source["revision"]}})
    assert hub.load(pinned, own, "default", "train")[1] == source
    hub._revision.cache_clear()
    (tmp_path / "train.csv").write_text("text,label\nsnow fell,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"is pinned to '{source['revision']}', and here is revision '"):
        hub.load(pinned, own, "default", "train")
