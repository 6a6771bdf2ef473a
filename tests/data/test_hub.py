"""Data sets by name and their text: articles, word problems, samples, and what is refused."""

import re

import pytest

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
