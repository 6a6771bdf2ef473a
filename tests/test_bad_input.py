"""Bad input: what is given, and the one line that says what was wrong. Nothing runs, nothing is left half written."""

import functools
import json
import sys
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import InputError, profiles
from helpers.compression import pruning, variants
from helpers.data import encoding, hub
from helpers.experiments import glue, squad
from helpers.measure import metrics, records
from tools import notebooks, run

COMMANDS = [  # the command's arguments, and what its line must say
    ("--profile maxi", "unknown profile 'maxi'"),
    ("--profile Laptop", "unknown profile 'Laptop'"),
    ("--profile", "expected one argument"),
    ("--only 99", "no notebook '99'"),
    ("--only 1-3", "no notebook"),
    ("--only", "expected one argument"),
    ("--only 01,,02", "no notebook"),
    ("--jobs 0", "expected 1 or more"),
    ("--jobs -1", "expected 1 or more"),
    ("--jobs two", "invalid int value"),
    ("--fast", "unrecognized arguments"),
    ("extra", "unrecognized arguments"),
    ("--unpack ", "expected the name of a file"),
    ("--unpack none.zip", "there is no such file"),
    ("--unpack .", "no whole archive of records"),
    ("--set threads", "expected KEY=VALUE"),
    ("--set =3", "expected KEY=VALUE"),
    ("--set threads=[", "expected a value in YAML"),
    ("--set threads=!!python/object:os.system", "expected a value in YAML"),
    ("--set threads=!!timestamp", "expected a value in YAML"),
    ("--set fresh=true", "set with --fresh"),
    ("--set overrides={}", "set with --set and a key"),
    ("--set profile=t4", "set with --profile"),
    ("--set name=x", "no 'name'"),
    ("--set pauze=1", "no 'pauze'"),
    ("--set distillation.sedes=[0]", "did you mean distillation.seeds"),
    ("--set distillation.seeds.first=0", "no 'distillation.seeds.first'"),
    ("--set store=~nobody-of-this-name", "nobody-of-this-name"),
]
COMMANDS += [
    (f"--set {key}={value}", told)
    for key, value, told in [
        ("precision", "fp7", "precision = 'fp7'"),
        ("device", "tpu", "device = 'tpu'"),
        ("threads", "none", "threads = 'none'"),
        ("threads", "0", "threads = 0"),
        ("threads", "1.5", "threads = 1.5"),
        ("threads", "true", "threads = True"),
        ("threads", "[1]", "threads = [1]"),
        ("hub", "elsewhere", "hub = 'elsewhere'"),
        ("cell_timeout_minutes", "0", "cell_timeout_minutes = 0"),
        ("corpus", "5", "corpus"),
        ("corpus", "[1]", "corpus"),
        ("corpus.block_length", "5000", "block_length = 5000"),
        ("corpus.block_length", "7", "block_length = 7"),
        ("corpus.block_length", "long", "block_length = 'long'"),
        ("corpus.train_blocks", "0", "train_blocks = 0"),
        ("corpus.train_blocks", "-3", "train_blocks = -3"),
        ("corpus.curve_blocks", "null", "curve_blocks = None"),
        ("distillation.snapshots", "[0]", "snapshots"),
        ("distillation.layers", "[0, 0]", "each only once"),
        ("distillation.layers", "0", "layers = 0"),
        ("distillation.layers", "[]", "layers"),
        ("distillation.seeds", "[]", "seeds = []"),
        ("distillation.seeds", "[0, 0]", "each only once"),
        ("distillation.seeds", "[4294967296]", "4294967296"),
        ("mixture", "{}", "mixture = {}"),
        ("mixture", "{own: {id: x, config: y, columns: [text], share: 0}}", "mixture.own.share = 0"),
        ("mixture", "{own: {id: x, config: y, columns: [], share: 0.5}}", "mixture.own.columns = []"),
        ("mixture", "{own: {id: x, config: y, columns: [a, b, c], share: 0.5}}", "columns = ['a', 'b', 'c']"),
        ("mixture", "{own: {id: x, columns: [text], share: 0.5}}", "mixture.own.config"),
        ("mixture.id", "x", "no 'mixture.id'"),
        ("distillation.seeds", "[-1]", "-1"),
        ("distillation.seeds", "0", "seeds = 0"),
        ("distillation.variants", "[student, pupil]", "'pupil'"),
        ("distillation.temperature", "0", "temperature = 0"),
        ("distillation.temperature", ".inf", "temperature = inf"),
        ("distillation.temperature", ".nan", "temperature = nan"),
        ("distillation.weight_cosine", "-1", "weight_cosine = -1"),
        ("distillation.mask_rate", "0", "mask_rate = 0"),
        ("distillation.mask_rate", "1", "mask_rate = 1"),
        ("distillation.positions", "some", "positions = 'some'"),
        ("distillation.training.steps", "0", "steps = 0"),
        ("distillation.training.steps", "1000000000000", "steps = 1000000000000"),
        ("distillation.training.batch_size", "0", "batch_size = 0"),
        ("distillation.training.learning_rate", "0", "learning_rate = 0"),
        ("distillation.training.learning_rate", "fast", "learning_rate = 'fast'"),
        ("teacher_training.whole.steps", "0", "steps = 0"),
        ("teacher_training.architecture.heads", "3", "cannot be shared among 3 heads"),
        ("teacher_training.architecture.layers", "0", "layers = 0"),
        ("glue.tasks", "cola", "tasks = 'cola'"),
        ("glue.tasks", "[]", "tasks = []"),
        ("glue.tasks", "[cola, cola]", "each only once"),
        ("glue.tasks", "[colo]", "'colo'"),
        ("glue.seeds", "[0, 0]", "each only once"),
        ("glue.models", "[teacher, teacher]", "each only once"),
        ("glue.recipes.sst2.length", "5000", "length = 5000"),
        ("glue.recipes.sst2.epochs", "0", "epochs = 0"),
        ("glue.recipes.sst2", "3", "recipes"),
        ("imdb.recipe.length", "5000", "length = 5000"),
        ("imdb.lengths", "[128, 128]", "each only once"),
        ("imdb.lengths", "[4]", "4"),
        ("squad.stride", "0", "stride = 0"),
        ("squad.recipe.length", "1000", "length = 1000"),
        ("pruning.shares", "[1.5]", "1.5"),
        ("pruning.shares", "[0]", "0"),
        ("pruning.importances", "[taste]", "'taste'"),
        ("quantization.threads", "-1", "threads = -1"),
        ("pruning.shares", "[]", "shares = []"),
        ("pruning.importances", "[]", "importances = []"),
        ("quantization.variants", "[]", "variants = []"),
        ("speed.depth_lengths", "[]", "depth_lengths = []"),
        ("speed.depths", "[1]", "depths = [1]"),
        ("edge.threads", "[]", "threads = []"),
        ("teacher", "google-bert/bert-base-uncased", "teacher_training.architecture makes one from nothing"),
    ]
]


read_once = functools.cache(notebooks.Notebook)


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs the command, and gives the line that it says; nothing may have been run or written."""
    monkeypatch.setattr(run, "draw_again", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(run, "run_all", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    monkeypatch.setenv("SERIES_CALLED_FROM", str(tmp_path))
    monkeypatch.setattr(notebooks, "Notebook", read_once)  # twelve notebooks for each of a hundred commands
    monkeypatch.setattr(notebooks, "keep_warm", lambda *_: pytest.fail("kernels were started"))

    def line(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run_all.sh", *arguments])
        try:
            code = run.main()
        except SystemExit as leaving:  # argparse
            code = leaving.code
        out, err = capsys.readouterr()
        assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 600, err
        return err

    return line


@pytest.mark.parametrize(("arguments", "told"), COMMANDS)
def test_a_command_that_makes_no_sense_is_one_line(refused, arguments, told):
    first, space, rest = arguments.partition(" ")
    assert told in refused(first, *([rest] if space else []))


def rows(**columns) -> Dataset:
    return Dataset.from_dict(columns)


def question(**changes) -> Dataset:
    row = {
        "id": "q1",
        "question": "Where?",
        "context": "It is blue here.",
        "answers": {"text": ["here"], "answer_start": [11]},
    }
    return rows(**{name: [value] for name, value in (row | changes).items()})


CALLS = {  # a call, and what it must say
    "a store that is a number": (lambda _: records.Workspace(profiles.load("mini"), 3), "store = 3"),
    "overrides that are a list": (lambda _: profiles.load("mini", [1]), "overrides = [1]"),
    "overrides that are text": (lambda _: profiles.load("mini", "seeds"), "overrides = 'seeds'"),
    "an override without a name": (lambda _: profiles.load("mini", {1: 2}), "unknown profile key '1'"),
    "a part of what has none": (lambda _: profiles.load("mini", {"corpus": 5, "corpus.id": "x"}), "corpus = 5"),
    "no task": (lambda _: glue.GlueMetric("colo"), "unknown task 'colo'"),
    "unequal numbers": (lambda _: glue.GlueMetric("sst2").compute(predictions=[1], references=[1, 0]), "1 predictions"),
    "nothing": (lambda _: glue.GlueMetric("sst2").compute(predictions=[], references=[]), "0 predictions"),
    "no number": (lambda _: glue.GlueMetric("stsb").compute(predictions=[np.nan], references=[1.0]), "diverged?"),
    "hidden labels": (lambda _: glue.GlueMetric("sst2").compute(predictions=[1], references=[-1]), "sst2"),
    "an answer elsewhere": (lambda t: windows(t, answers={"text": ["here"], "answer_start": [3]}), "question q1"),
    "no answer": (lambda t: windows(t, answers={"text": [], "answer_start": []}), "question q1 has no answer"),
    "a blank answer": (
        lambda t: windows(t, answers={"text": [" "], "answer_start": [2]}),
        "its answer ' ' has no word",
    ),
    "no question": (lambda t: windows(t, question=None), "question q1 has no question"),
    "labels that are words": (lambda t: encoded(t, label=["pos", "neg"]), "the label 'pos' of row 0 is no number"),
    "a row without a text": (lambda t: encoded(t, text=["the river", None]), "row 1 has no text"),
    "labels from one on": (lambda _: metrics.check_labels("x", [1, 2, 3], 3), "x: label 3 in row 2, expected 0 to 2"),
    "a label between classes": (
        lambda _: metrics.check_labels("x", [0.5, 1], 2),
        "label 0.5 in row 0, expected 0 to 1",
    ),
    "a label that is missing": (
        lambda _: metrics.check_labels("x", [1, -100], 2),
        "label -100 in row 1, expected 0 to 1",
    ),
    "a score that is none": (
        lambda _: metrics.check_labels("x", [0.1, np.nan], 1),
        "x: label nan in row 1, expected a number",
    ),
    "a long question": (lambda t: windows(t, question="a river town " * 20), "question q1"),
    "too many layers": (lambda _: choose(9), "cannot be taken"),
    "no such variant": (lambda _: variants.parse("taylor_x"), "taylor_x"),
    "an empty corpus": (lambda t: encoding.blocks(["", " "], t, 24), "the corpus is empty"),
    "no such data set": (lambda _: hub.load(profiles.load("mini"), "me/none", "main", "train"), "data set 'me/none'"),
    "no such split": (lambda _: hub.load(profiles.load("mini"), "nyu-mll/glue", "sst2", "dev"), "'dev'"),
}


def windows(tokenizer, **changes):
    return squad.windows(question(**changes), tokenizer, 40, 8)


def encoded(tokenizer, **changes):
    return encoding.encode_texts(
        rows(**{"text": ["the river", "a town"], "label": [0, 1]} | changes), ["text"], tokenizer, 16
    )


def choose(wanted: int):
    from helpers.models import distillation

    return distillation.choose_layers(4, wanted)


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_makes_no_sense_is_one_line(what, tokenizer):
    call, told = CALLS[what]
    with pytest.raises(InputError) as error:
        call(tokenizer)
    assert told in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_the_table_is_long_enough():
    assert len(COMMANDS) + len(CALLS) >= 80


# --- whatever comes: no error but our own, and what holds always

few = settings(max_examples=100, deadline=None)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = profiles.known_keys()


@few
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), values, max_size=3))
def test_a_profile_is_whole_or_refused(overrides):
    try:
        made = profiles.load("mini", overrides)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(made, profiles.Profile) and made.distillation.seeds


@few
@given(st.sampled_from([*KEYS, "store", ""]), st.text(max_size=30))
def test_a_value_of_set_is_read_or_refused(key, text):
    own = [type("Declared", (), {"parameters": {"store"}})]
    try:
        overrides, parameters = notebooks.sort_settings([f"{key}={text}"], own)
    except InputError:
        return
    assert len(overrides) + len(parameters) == 1


@few
@given(st.text() | values.map(json.dumps))
def test_a_record_is_whole_or_refused(text):
    with pytest.raises(InputError, match="^damaged$"):
        records.parse(text, "damaged")


@few
@given(st.text(max_size=60), st.text(max_size=60))
def test_answers_are_compared_whatever_they_hold(one, other):
    assert metrics.normalise(metrics.normalise(one)) == metrics.normalise(one) or "a" in one.lower()
    exact, f1 = metrics.answer_scores(one, [other])
    assert 0 <= f1 <= 1 and exact in (0.0, 1.0) and metrics.token_f1(one, other) == metrics.token_f1(other, one)


@few
@given(st.lists(st.integers(0, 44), min_size=3, max_size=40), st.integers(0, 5), st.floats(0.01, 0.99))
def test_masks_hide_ordinary_tokens_alone(tokenizer, ids, draw, rate):
    whole = np.array(ids, dtype=np.int64)
    masked, labels = encoding.Masking(tokenizer, rate)(whole, draw)
    scored = labels != encoding.IGNORED
    assert (labels[scored] == whole[scored]).all() and (masked[~scored] == whole[~scored]).all()
    assert not set(whole[scored]) & set(tokenizer.all_special_ids)


@few
@given(st.integers(1, 12), st.integers(-2, 14) | st.lists(st.integers(-1, 12), max_size=5))
def test_layers_are_chosen_or_refused(available, wanted):
    from helpers.models import distillation

    try:
        chosen = distillation.choose_layers(available, wanted)
    except InputError:
        return
    assert chosen and all(0 <= layer < available for layer in chosen)
    assert isinstance(wanted, list) or len(set(chosen)) == wanted


@few
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 20), st.floats(0, 0.999), st.randoms())
def test_what_is_cut_leaves_every_layer_something(layers, heads, neurons, share, random):
    importances = [torch.tensor([[random.random() for _ in range(n)] for _ in range(layers)]) for n in (heads, neurons)]
    try:
        kept = pruning.choose(tuple(importances), share)
    except InputError as error:
        assert "leaves some of" in str(error)
        return
    for stay, each in zip(kept, (heads, neurons), strict=True):
        assert all(own == sorted(set(own)) and own and own[-1] < each for own in stay)
        assert sum(map(len, stay)) == layers * each - round(share * layers * each)


@few
@given(st.lists(st.tuples(st.none() | st.text(max_size=12), st.none() | st.integers(-2, 4) | st.text(max_size=3))))
def test_rows_of_a_csv_are_read_or_refused(tokenizer, lines):
    with tempfile.TemporaryDirectory() as folder:
        written = pd.DataFrame(lines, columns=["text", "label"])
        written.to_csv(f"{folder}/own.csv", index=False)
        read = Dataset.from_pandas(pd.read_csv(f"{folder}/own.csv"), preserve_index=False)
    try:
        examples = encoding.encode_texts(read, ["text"], tokenizer, 8)
        metrics.check_labels("own", [example["labels"] for example in examples], 3)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(examples) == len(lines) and all(0 <= example["labels"] <= 2 for example in examples)


@few
@given(st.text(max_size=20))
def test_a_variant_is_known_or_refused(name):
    try:
        assert variants.parse(name).name == name
    except InputError as error:
        assert name in str(error) or repr(name)[1:-1] in str(error)


@few
@given(st.text(alphabet="the river baker sings, é́. \n", max_size=60), st.data())
def test_windows_give_every_answer_back(tokenizer, context, data):
    if not context.strip():
        return
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    row = {"id": "q", "question": "the river", "context": context}
    try:
        cut = squad.windows(
            rows(**{k: [v] for k, v in row.items()}, answers=[{"text": [context[start:end]], "answer_start": [start]}]),
            tokenizer,
            40,
            8,
        )
    except InputError:
        return
    for example, spans in zip(cut.examples, cut.spans, strict=True):
        first, last = example["start_positions"], example["end_positions"]
        if first != squad.NO_ANSWER:  # the answer's own characters, but for blanks and lone accents at its ends
            given = context[start:end]
            assert spans[first, 0] <= start + len(given) - len(given.lstrip(" \n\u0301"))
            assert spans[last, 1] >= start + len(given.rstrip(" \n\u0301"))
