"""Anybody's own checkpoint, made smaller: six foreign ones from end to end, what is handed over, and bad input."""

import copy
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from helpers.compression import own, pruning
from helpers.measure import timing
from tools import compress as command

WORDS = ["good", "bad", "fine", "poor", "superb", "dull", "lively", "limp", "warm", "cold"]
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
KINDS = {  # a foreign checkpoint: configuration, tokenizer, what its CSV's labels are, how it is saved
    "cased BERT": (transformers.BertConfig, "cased", ["bad", "good"], {}),
    "DistilBERT": (transformers.DistilBertConfig, "uncased", ["bad", "good"], {"dtype": torch.float16}),
    "RoBERTa": (transformers.RobertaConfig, "bytes", ["bad", "good"], {"max_shard_size": "60KB"}),
    "ELECTRA": (transformers.ElectraConfig, "uncased", ["bad", "good"], {}),
    "three classes": (transformers.BertConfig, "uncased", ["bad", "<i>so so", "good"], {}),  # a page shows it
    "regression": (transformers.BertConfig, "uncased", None, {}),
}


def texts(count: int) -> tuple[list[str], np.ndarray]:
    """Sentences of a few words, and how many of them praise, less how many don't."""
    random = np.random.default_rng(0)
    drawn = random.integers(len(WORDS), size=(count, 5))
    return [" ".join(WORDS[word] for word in row).capitalize() for row in drawn], np.where(drawn % 2, -1, 1).sum(1)


def tokenizer_of(kind: str, folder):
    if kind == "bytes":
        made = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        made.train_from_iterator(texts(500)[0] + [f" {w} {w}ly" for w in WORDS], vocab_size=400, special_tokens=special)
        made.save_model(str(folder))
        return transformers.RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    pieces = [*WORDS, *(word.capitalize() for word in WORDS)] if kind == "cased" else WORDS
    letters = sorted({letter for word in pieces for letter in word})
    vocabulary = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text(
        "\n".join(dict.fromkeys([*vocabulary, *pieces, "never", "##ing"])), encoding="utf-8"
    )
    return transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=kind != "cased")


@pytest.fixture
def foreign(tmp_path):
    """Makes a checkpoint of one of the kinds and CSVs for it; what it learnt of them is enough to tell labels apart."""

    def make(kind: str):
        config, tokens, names, saved = KINDS[kind]
        (tmp_path / "model").mkdir()
        tokenizer = tokenizer_of(tokens, tmp_path)
        labels = {"num_labels": 1} if names is None else {"id2label": dict(enumerate(names)), "num_labels": len(names)}
        shape = (
            SHAPE
            if config is not transformers.DistilBertConfig
            else {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
        )
        torch.manual_seed(0)
        more = {"embedding_size": 32} if kind == "ELECTRA" else {}
        config = config(
            vocab_size=len(tokenizer) + 5,
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=66,
            **shape,
            **labels,
            **more,
        )
        model = AutoModelForSequenceClassification.from_config(config)
        given, values = texts(256)
        truth = values.astype(float) if names is None else np.digitize(values, [0] if len(names) == 2 else [-1, 2])
        optimizer, inputs = (
            torch.optim.Adam(model.parameters(), 2e-3),
            tokenizer(given, padding=True, return_tensors="pt"),
        )
        target = torch.tensor(truth, dtype=torch.float32 if names is None else torch.int64)
        for _ in range(60):
            loss = model(**inputs, labels=target).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.to(saved.get("dtype", torch.float32)).save_pretrained(
            tmp_path / "model", max_shard_size=saved.get("max_shard_size", "5GB")
        )
        tokenizer.save_pretrained(tmp_path / "model")
        said = truth if names is None else [names[label].upper() for label in truth]
        frame = pd.DataFrame({"review": given, "verdict": said})
        frame[:64].to_csv(tmp_path / "dev.csv", index=False)
        frame[64:].to_csv(tmp_path / "train.csv", index=False)
        return tmp_path, frame[:64].assign(truth=truth[:64])

    return make


@pytest.fixture
def quick(monkeypatch):
    """Everything is timed, but not for long; of fewer runs, whatever runs beside this could hide a gain of three."""
    few = {"timing": {"least_runs": 25, "least_seconds": 0.0, "most_seconds": 2.0}, "quantization.repeats": 1}
    quickly = own.profiles.load("laptop", few)
    monkeypatch.setattr(own.profiles, "load", lambda _: quickly)
    monkeypatch.setattr(own, "LENGTHS", (8, 512))


ALONE = """import runpy, sys, json
sys.modules["torch"] = sys.modules["transformers"] = None
sys.path.insert(0, {folder!r})
import use
print(json.dumps([use.logits(text).tolist() for text in {texts!r}]))"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_checkpoint_is_made_smaller(kind, foreign, quick, monkeypatch, capsys):
    """Six kinds, by the command: the files work by themselves, and the report says what they are."""
    folder, dev = foreign(kind)
    everything = kind in ("cased BERT", "RoBERTa")
    given = [str(folder / "model"), "--data", str(folder / "dev.csv"), "--text", "review", "--label", "verdict"]
    given += ["--train", str(folder / "train.csv"), "--to", "int8,cut50,trimmed"] if everything else ["--to", "int8"]
    monkeypatch.setattr(
        sys, "argv", ["compress", *given, "--out", str(folder / "out"), "--goal", "no more than 60 points"]
    )
    assert command.main() == 0, capsys.readouterr()
    out = folder / "out"
    said = capsys.readouterr().out
    assert "Take “" in said and str(out) in said

    # use.py answers in a process of its own, without torch, as the exported model does, asked another way
    script = ALONE.format(folder=str(out), texts=dev.review.tolist())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    answers = np.array(json.loads(done.stdout))
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer.json"))
    wanted = [one.name for one in session.get_inputs()]
    for text, answer in zip(dev.review[:10], answers, strict=False):
        inputs = tokenizer([text], return_tensors="np", return_token_type_ids=True)
        np.testing.assert_allclose(session.run(None, {k: inputs[k] for k in wanted})[0][0], answer, atol=1e-5)

    # the report's line of what was handed over: its size, and its score counted again
    chosen = json.loads((out / "config.json").read_text())["variant"]
    line = next(
        row for row in (out / "report.md").read_text().splitlines() if row.startswith(f"| {own.title(chosen)} |")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[3]) == round((out / "model.onnx").stat().st_size / 1e6, 1)
    if KINDS[kind][2] is None:
        frame = pd.DataFrame({"own": answers[:, 0], "truth": dev.truth})
        again = 50 * (frame.corr("pearson") + frame.corr("spearman")).loc["own", "truth"]
    else:
        again = 100 * np.mean(answers.argmax(1) == dev.truth)
    assert float(cells[1].split()[0]) == pytest.approx(again, abs=0.051)
    assert again > 60, "it had learnt something that could be lost"

    # the original was read as it is
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    first = AutoTokenizer.from_pretrained(folder / "model")(dev.review[0], return_tensors="pt")
    with torch.no_grad():
        logits = model(**{k: v for k, v in first.items() if k in ("input_ids", "attention_mask")}).logits[0].numpy()
    assert abs(logits - answers[0]).max() < (3.0 if everything else 0.3)
    if KINDS[kind][2] is not None:  # what a sceptic would have tried first
        guess = 100 * dev.truth.value_counts(normalize=True).max()
        assert f"always the commonest label would score {guess:.1f}" in (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    assert "<i>" not in page and ("&lt;i&gt;so so" in page) == (kind == "three classes"), "their words stay words"
    labels = re.findall(r"^\| (.+?) \|", (out / "report.md").read_text(), re.MULTILINE)
    assert len(labels) == 2 + (7 if everything else 3), labels
    sizes = {
        json.loads(p.read_text())["unit"]["variant"]: json.loads(p.read_text())["metrics"]["size_mb"]
        for p in (folder / "out.work").glob("results/own/records/own/*.json")
    }
    assert sizes["onnx_int8_embeddings"] < sizes["onnx_fp32"] / 2
    if everything:
        assert sizes["fp32_trimmed_int8_embeddings"] < sizes["onnx_int8_embeddings"]
        assert sizes["taylor_50_recovered_trimmed_int8_embeddings"] < sizes["taylor_50_recovered_int8_embeddings"]

    # again: nothing is measured
    monkeypatch.setattr(timing, "seconds", lambda *_, **__: pytest.fail("timed again"))
    monkeypatch.setattr(own.runtimes, "alone", lambda *_, **__: pytest.fail("measured again"))
    assert command.main() == 0


# --- a vocabulary that is trimmed


@pytest.mark.parametrize("kind", ["cased", "uncased", "bytes", "unigram"])
def test_a_trimmed_vocabulary_cuts_what_it_keeps_as_before(kind, tmp_path):
    """The same pieces wherever all of them stay, nothing unknown that could be spelt, and the same logits."""
    if kind == "unigram":
        pieces = [("<unk>", 0.0), ("<pad>", 0.0), *((letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz▁")]
        pieces += [(f"▁{word}", -3.0) for word in WORDS] + [("▁never", -4.0), ("ly", -5.0)]
        made = Tokenizer(models.Unigram(pieces, unk_id=0))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")
    else:
        tokenizer = tokenizer_of(kind, tmp_path)
    known = ["good bad good", "lively and warm"]
    config = transformers.BertConfig(vocab_size=len(tokenizer) + 3, pad_token_id=tokenizer.pad_token_id, **SHAPE)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    whole = copy.deepcopy(model)
    stay = pruning.pieces_of(tokenizer, known)
    pruning.trim(model, tokenizer, stay).save_pretrained(tmp_path / "trimmed")
    model.save_pretrained(tmp_path / "trimmed")
    trimmed = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    left = transformers.BertForMaskedLM.from_pretrained(tmp_path / "trimmed").eval()
    assert len(trimmed) == len(stay) == left.config.vocab_size < len(tokenizer)
    for text in known:
        assert trimmed.tokenize(text) == tokenizer.tokenize(text)
        own, full = trimmed([text], return_tensors="pt"), tokenizer([text], return_tensors="pt")
        assert [stay[token] for token in own["input_ids"][0]] == full["input_ids"][0].tolist()
        with torch.no_grad():
            torch.testing.assert_close(left(**own).logits, whole(**full).logits[..., stay], atol=1e-6, rtol=0)
    assert "superb" in "".join(tokenizer.tokenize("superb"))
    spelt = trimmed.tokenize("superb")
    assert trimmed.unk_token not in spelt and len(spelt) > len(tokenizer.tokenize("superb"))
    assert left.get_input_embeddings().weight is left.get_output_embeddings().weight
    more = pruning.pieces_of(tokenizer, known, commonest=2)
    assert set(stay) < set(more) and not [
        token for token in more if tokenizer.convert_ids_to_tokens(token) == "[unused0]"
    ]


# --- bad input: a line, code 2, and nothing written


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small BERT for two named classes, and rows for it."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = tokenizer_of("uncased", folder)
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=len(tokenizer), **SHAPE, **names)
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"sentence": text, "label": "good" if value > 0 else "bad"} for text, value in zip(*texts(40), strict=True)]
    pd.DataFrame(rows).to_csv(folder / "dev.csv", index=False)
    return folder


def changed(folder, alter, **config):
    """A copy of the checkpoint, with its config.json or files altered."""
    shutil.copytree(folder / "model", place := folder / f"other{len(list(folder.iterdir()))}")
    described = json.loads((place / "config.json").read_text()) | config
    (place / "config.json").write_text(json.dumps(described))
    alter(place)
    return str(place)


def damage(place):
    content = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled(place):
    (place / "model.safetensors").rename(place / "pytorch_model.bin")


def csv(folder, name, lines):
    (folder / name).write_text("sentence,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return ["--data", str(folder / name)]


GOOD, BAD = ["good fine,good"] * 15, ["bad dull,bad"] * 15
REFUSED = {
    "no such model": (lambda f: (["nobody/nothing"]), "model 'nobody/nothing'"),
    "no checkpoint": (lambda f: [str(f)], "is no checkpoint"),
    "no such file": (lambda f: ["--data", "none.csv"], "no such file"),
    "a file of another kind": (lambda f: ["--data", str(f / "vocab.txt")], "none of .csv"),
    "no such column": (lambda f: ["--text", "review"], "has no column 'review', but sentence, label"),
    "no such label column": (lambda f: ["--label", "verdict"], "has no column 'verdict'"),
    "a label that the model lacks": (
        lambda f: csv(f, "a.csv", [*GOOD, "so,so so"]),
        "'so so' of row 15 is none of bad, good",
    ),
    "a number that it lacks": (lambda f: csv(f, "b.csv", ["good,1"] * 20 + ["bad,2"]), "label '2' of row 20"),
    "empty rows": (lambda f: csv(f, "c.csv", [",good", "fine,", " ,bad"]), "none of its 3 rows has a text and a label"),
    "one class": (lambda f: csv(f, "d.csv", GOOD * 2), "30 rows with labels [1]: expected at least 20 rows and two"),
    "three rows": (lambda f: csv(f, "e.csv", ["good,good", "bad,bad", "dull,bad"]), "3 rows with labels [0, 1]"),
    "a decoder": (lambda f: [changed(f, lambda _: None, is_decoder=True)], "expected an encoder"),
    "a generator": (
        lambda f: [changed(f, lambda _: None, architectures=["GPT2LMHeadModel"])],
        "expected a text classifier",
    ),
    "code of its own": (
        lambda f: [changed(f, lambda _: None, auto_map={"AutoModel": "x.Y"})],
        "code of its own, which is not run",
    ),
    "several labels a text": (
        lambda f: [changed(f, lambda _: None, problem_type="multi_label_classification")],
        "several labels a text",
    ),
    "a pickle": (
        lambda f: [changed(f, pickled)],
        "is no checkpoint: expected a folder with config.json and *.safetensors",
    ),
    "damaged weights": (lambda f: [changed(f, damage)], "its weights are damaged"),
    "no such way": (lambda f: ["--to", "int3"], "unknown way 'int3'"),
    "a cut of nothing": (lambda f: ["--to", "cut0"], "unknown way 'cut0'"),
    "a goal without a number": (lambda f: ["--goal", "small"], "goal 'small'"),
    "no thread": (lambda f: ["--threads", "999"], "threads has 999"),
    "a folder that holds something": (lambda f: ["--out", str(f / "model")], "nothing that was handed over before"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_taken_is_one_line(what, plain, monkeypatch, capsys, tmp_path):
    given, told = REFUSED[what]
    given = given(plain)
    arguments = [] if given[0].startswith("--") else [given.pop(0)]
    arguments = [
        *(arguments or [str(plain / "model")]),
        "--data",
        str(plain / "dev.csv"),
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["compress", *arguments, *given])
    monkeypatch.chdir(tmp_path)
    assert command.main() == 2
    out, err = capsys.readouterr()
    assert told in err and err.startswith("error: ") and err.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_names_decide_and_not_numbers(plain, tmp_path):
    """A data set that numbers the classes the other way round is read by their names; numbers are taken as they are."""
    config = transformers.AutoConfig.from_pretrained(plain / "model")
    other = Dataset.from_dict(
        {"sentence": ["good", "bad"], "label": [0, 1]},
        features=Features({"sentence": Value("string"), "label": ClassLabel(names=["Good", "Bad"])}),
    )
    other.to_parquet(tmp_path / "other.parquet")
    rows = own.read_rows(str(tmp_path / "other.parquet"), "validation", ["sentence"], "label", 10, config)
    assert rows.dataset["label"][:] == [1, 0]
    (tmp_path / "numbers.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n\t0\nNA\t0\n", encoding="utf-8")
    rows = own.read_rows(str(tmp_path / "numbers.tsv"), "validation", ["sentence"], "label", 10, config)
    assert rows.dataset["label"][:] == [1, 0, 0] and rows.source["left_out"] == 1, "NA is a text, and nothing is none"
    rows = own.read_rows(str(tmp_path / "numbers.tsv"), "validation", ["sentence"], "label", 2, config)
    assert rows.source["capped"] == {"validation": "2 of 3 rows"}


def test_the_goal_decides_and_nothing_is_an_answer():
    table = pd.DataFrame(
        {
            "fp32": {"score": 90.0, "mb": 100.0, "fast": 1.0, "low": 1.0, "high": 1.0, "p": None},
            "onnx_int8": {"score": 89.5, "mb": 30.0, "fast": 3.0, "low": 2.8, "high": 3.2, "p": 0.4},
            "taylor_50_recovered_int8_embeddings": {
                "score": 87.0,
                "mb": 15.0,
                "fast": 6.0,
                "low": 5.0,
                "high": 7.0,
                "p": 0.01,
            },
            "bf16": {"score": 90.0, "mb": 50.0, "fast": 9.0, "low": 0.9, "high": 12.0, "p": 1.0},
        }
    ).T
    at = {"length": 32, "rows": 500}
    assert own.recommend(table, own.read_goal("no more than 1 point"), at)[0] == "onnx_int8"
    name, sentence = own.recommend(table, own.read_goal(3), at)
    assert name.startswith("taylor") and "15.0 MB instead of 100.0, 6.0 times as fast (5.0 to 7.0)" in sentence
    name, sentence = own.recommend(table, own.read_goal("0.1 points"), at)
    assert name == "fp32" and sentence.startswith("Keep the original")
