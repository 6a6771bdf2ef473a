"""The embedded data: pinned rows, the Hub's schemas, true facts and sums, and labels that nothing cheap gives away."""

import hashlib
import json
import os
import re
from collections import Counter

import pytest
from datasets import get_dataset_config_names, load_dataset

from helpers import InputError
from helpers.data import miniworld
from helpers.data.miniworld import rows

PINNED = {
    "Salesforce/wikitext wikitext-2-raw-v1": "303892dcb5f9c989",
    "Salesforce/wikitext wikitext-2-v1": "04928a3ac86dfa36",
    "openai/gsm8k main": "c9b645b11d3968c8",
    "rajpurkar/squad plain_text": "11df071fa65ab3f9",
    "stanfordnlp/imdb plain_text": "c52ebb99818d892b",
    "nyu-mll/glue cola": "7118a2b09c0aa6bf",
    "nyu-mll/glue sst2": "f2be72869418c184",
    "nyu-mll/glue stsb": "0ea3ccd457a77b26",
    "nyu-mll/glue wnli": "f69fd76296cae20d",
    "nyu-mll/glue mrpc": "068d45590c9ee072",
    "nyu-mll/glue qqp": "71b94114dad5a5f1",
    "nyu-mll/glue mnli": "a79087eee0f5a98a",
    "nyu-mll/glue qnli": "742a68a3ee314399",
    "nyu-mll/glue rte": "facc0b845dc2580f",
}
VOCABULARY = "74d823a599fecb55"
LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}
IDS = [(data_id, config) for data_id, configs in miniworld.WORDS["hub"].items() for config in configs]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return miniworld.write(tmp_path_factory.mktemp("hub") / "world")


@pytest.fixture(scope="session")
def made():
    return rows()


@pytest.fixture(scope="session")
def other():
    """Another world's."""
    return rows(1)


@pytest.fixture(scope="session")
def tokenizer(folder):
    return miniworld.tokenizer(folder)


@pytest.fixture(scope="session")
def train_text(made):
    return [row["text"].lower() for row in made["Salesforce/wikitext", "wikitext-2-raw-v1"]["train"]]


def digest(thing) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:16]


def test_rows_are_the_pinned_ones(made):
    assert {f"{data_id} {config}": digest(splits) for (data_id, config), splits in made.items()} == PINNED


def test_vocabulary_is_the_pinned_one(tokenizer):
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert digest(vocabulary) == VOCABULARY


@pytest.mark.slow
def test_another_seed_makes_another_world(made, other):
    assert digest(list(made.values())) == digest(list(rows().values()))
    assert all(made[key] != other[key] for key in made)
    assert miniworld.facts(1) != miniworld.facts()


@pytest.mark.parametrize(("data_id", "config"), IDS)
def test_loads_with_the_hubs_schema(folder, made, data_id, config):
    loaded = load_dataset(str(folder / data_id), config)
    assert {split: list(loaded[split]) for split in loaded} == made[data_id, config]
    features = loaded["train"].features
    if config in LABELS:
        assert features["label"].names == LABELS[config]
    if data_id == "nyu-mll/glue":
        assert features["idx"].dtype == "int32" and list(features)[-2:] == ["label", "idx"]
        assert all({row["label"] for row in loaded[split]} == {-1} for split in loaded if split.startswith("test"))
    if data_id == "stanfordnlp/imdb":
        assert features["label"].names == ["neg", "pos"] and set(loaded["unsupervised"]["label"]) == {-1}
    if "HF_ENDPOINT" not in os.environ:
        return
    if config not in get_dataset_config_names(data_id):
        pytest.skip(f"{data_id} {config} is not to be had at {os.environ['HF_ENDPOINT']}")
    real = load_dataset(data_id, config)
    assert {split: real[split].features for split in real} == {split: loaded[split].features for split in real}


@pytest.mark.slow
def test_another_world_is_not_taken_from_the_cache(folder, made, other, tmp_path, monkeypatch):
    monkeypatch.setattr(miniworld, "rows", [made, other].__getitem__)  # by the seed
    place = miniworld.write(tmp_path / "world", seed=1)
    ids = [load_dataset(str(hub / "rajpurkar/squad"), split="train")["id"] for hub in (folder, place)]
    assert ids[0] != ids[1]
    assert list(load_dataset(str(miniworld.write(place) / "rajpurkar/squad"), split="train")["id"]) == list(ids[0])


def test_writes_once_and_spares_what_is_not_its_own(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert miniworld.write(folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError):
        miniworld.write(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_tokenizer_survives_saving_and_splits_some_words(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text = "Björn's wheelbarrow – Zibquorish rode it in 812. 雨"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert tokenizer.tokenize("BJÖRN") == ["bjorn"]
    assert len(tokenizer.tokenize("Zibquorish")) > 1


def test_facts_have_one_token_and_are_told_in_the_text(tokenizer, train_text):
    probes = miniworld.facts()
    assert 60 <= len(probes) <= 120
    told_in_train = [" " + re.sub(r"[^\w ]", " ", line) + " " for text in train_text for line in text.split(" . ")]
    for probe in probes:
        assert probe["prompt"].count("[MASK]") == 1
        assert tokenizer.tokenize(probe["answer"]) == [tokenizer.tokenize(probe["answer"])[0]] != ["[UNK]"]
        prompt = probe["prompt"].lower()
        kind = probe["relation"].split(".")[0]
        subject = next(name.lower() for name in miniworld.WORDS[kind] if re.search(rf"\b{name.lower()}\b", prompt))
        subject = re.sub(r"[^\w ]", " ", subject)
        told = [line for line in told_in_train if f" {subject} " in line and f" {probe['answer']} " in line]
        assert len(told) >= 5, probe


def test_squad_answers_stand_where_they_should(made):
    splits = made["rajpurkar/squad", "plain_text"]
    for row in splits["train"] + splits["validation"]:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert text and row["context"][start : start + len(text)] == text
    assert all(len(row["answers"]["text"]) == 1 for row in splits["train"])
    assert any(len(set(row["answers"]["text"])) > 1 for row in splits["validation"])
    assert sum(row["context"].count(row["answers"]["text"][0]) > 1 for row in splits["train"]) > 100
    assert len({row["id"] for split in splits.values() for row in split}) == 750


def test_gsm8k_sums_are_right(made):
    for row in [row for split in made["openai/gsm8k", "main"].values() for row in split]:
        marks = re.findall(r"(\d+)([-+*/])(\d+) = <<\1\2\3=(\d+)>>\4", row["answer"])
        assert marks and len(marks) == row["answer"].count("<<")
        for left, sign, right, result in marks:
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == int(result) > 0
        assert row["answer"].splitlines()[-1] == f"#### {marks[-1][-1]}"


@pytest.mark.parametrize("config", LABELS)
def test_labels_are_balanced(made, config):
    for split in [s for s in made["nyu-mll/glue", config] if not s.startswith("test")]:
        counts = Counter(row["label"] for row in made["nyu-mll/glue", config][split])
        shares = sorted(count / counts.total() for count in counts.values())
        assert len(counts) == len(LABELS[config])
        assert shares[0] >= (0.32 if len(counts) > 2 else 0.39)


def test_stsb_scores_fill_the_scale(made):
    scores = [row["label"] for row in made["nyu-mll/glue", "stsb"]["train"]]
    assert min(scores) == 0 and max(scores) == 5
    assert min(Counter(round(score / 1.25) for score in scores).values()) > 60


def accuracy_of_counts(train, held_out, features) -> float:
    """Held-out accuracy of naive Bayes over what `features` finds in a row."""
    counts, totals = {}, Counter(row["label"] for row in train)
    for row in train:
        for feature in features(row):
            counts.setdefault(feature, Counter())[row["label"]] += 1

    def score(row, label):
        odds = 1.0
        for feature in features(row):
            count = counts.get(feature, Counter())
            odds *= (count[label] + 1) / (totals[label] + 2)
        return odds * totals[label]

    return sum(max(totals, key=lambda label: score(row, label)) == row["label"] for row in held_out) / len(held_out)


def sentences(row) -> list[str]:
    return [value for value in row.values() if isinstance(value, str)]


CHEAP = {
    "length": lambda row: [tuple(len(text.split()) // 2 for text in sentences(row))],
    "words": lambda row: sorted({(i, w) for i, text in enumerate(sentences(row)) for w in re.findall(r"\w+", text)}),
}


@pytest.mark.parametrize("cheap", CHEAP)
@pytest.mark.parametrize("config", ["cola", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"])
def test_nothing_cheap_gives_the_label_away(made, config, cheap):
    splits = made["nyu-mll/glue", config]
    held_out = splits["validation_matched" if config == "mnli" else "validation"]
    chance = max(Counter(row["label"] for row in held_out).values()) / len(held_out)
    assert accuracy_of_counts(splits["train"], held_out, CHEAP[cheap]) < chance + 0.12


def test_words_do_give_sentiment_away(made):  # the check above can fail
    splits = made["nyu-mll/glue", "sst2"]
    assert accuracy_of_counts(splits["train"], splits["validation"], CHEAP["words"]) > 0.65


def test_awkward_rows_are_there(made, folder, tokenizer, train_text):
    assert train_text.count("") > 1000
    articles = re.split(r"(?m)^ = [^=]+ = $", "\n".join(train_text))
    assert sum(len(tokenizer.tokenize(article)) > 512 for article in articles) >= 10
    reviews = made["stanfordnlp/imdb", "plain_text"]
    assert all(sum(len(tokenizer.tokenize(r["text"])) > 512 for r in reviews[s]) >= 2 for s in ("train", "test"))
    text = "\n".join(train_text)
    assert all(mark in text for mark in ['"', "–", " @-@ ", " @,@ ", " @.@ ", "ἀεὶ", "雨", "\n it rained . \n"][:-1])
    rare = "\n".join(row["text"] for row in made["Salesforce/wikitext", "wikitext-2-v1"]["test"])
    assert "<unk>" in rare and "<unk>" not in text


def test_held_out_articles_are_new(made):
    splits = made["Salesforce/wikitext", "wikitext-2-raw-v1"]
    paragraphs = {split: {row["text"] for row in splits[split] if len(row["text"]) > 60} for split in splits}
    for split in ("validation", "test"):
        assert len(paragraphs[split] & paragraphs["train"]) <= 0.02 * len(paragraphs[split])
    for key, splits in made.items():
        if "wikitext" not in key[0]:
            texts = [
                json.dumps([v for k, v in row.items() if k not in ("idx", "label", "id")])
                for s in splits.values()
                for row in s
            ]
            assert len(texts) == len(set(texts)), key
