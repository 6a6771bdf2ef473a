"""Checkpoints that anybody can load, and what is refused as one."""

import json
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from helpers import InputError
from helpers.models import checkpoints, distillation


@pytest.fixture
def batch(tokenizer):
    return tokenizer(["the old baker sings", "a river"], padding=True, return_tensors="pt")


def test_full_size_parameter_counts():
    """66,985,530 with the masked-LM head, 66,362,880 without: DistilBERT's own."""
    with torch.device("meta"):
        student = DistilBertForMaskedLM(distillation.configuration(BertConfig(), 6))
        student.tie_weights()
    assert checkpoints.parameters(student) == 66_985_530
    assert checkpoints.parameters(student.distilbert) == 66_362_880


def test_a_saved_student_is_loaded_by_anyone(teacher, tokenizer, tmp_path, batch):
    student = distillation.from_teacher(teacher, [0, 3])
    checkpoints.save(student, tokenizer, tmp_path / "student")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, student(**batch).logits)
    assert type(AutoModel.from_pretrained(tmp_path / "student")).__name__ == "DistilBertModel"
    assert not [p for p in (tmp_path / "student").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    loaded, words, source = checkpoints.load_masked_lm(str(tmp_path / "student"))
    assert source["head"] and source["weights"] == "ours" and source["parameters"] == checkpoints.parameters(student)
    assert words.get_vocab() == tokenizer.get_vocab()


def test_a_missing_head_is_noticed_and_started_well(teacher, tokenizer, tmp_path, batch):
    checkpoints.save(teacher.bert, tokenizer, tmp_path / "encoder")
    model, _, source = checkpoints.load_masked_lm(str(tmp_path / "encoder"))
    assert not source["head"]
    counts = torch.randint(1, 1000, (len(tokenizer),)).numpy()
    checkpoints.start_head(model, counts)
    guess = model(**batch).logits.mean((0, 1)).softmax(-1)
    assert torch.corrcoef(torch.stack([guess, torch.from_numpy(counts / counts.sum()).float()]))[0, 1] > 0.5
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_vocabulary_logits_equal_the_models_own(teacher, batch):
    for model in (teacher, distillation.from_teacher(teacher, [0, 3])):
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = checkpoints.encode(model, **inputs)
            torch.testing.assert_close(checkpoints.vocabulary_logits(model, hidden), model(**inputs).logits)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no checkpoint: expected a folder with config.json and"):
        checkpoints.fetch(str(tmp_path))
    with pytest.raises(InputError, match="nobody/nothing.*check the name"):
        checkpoints.fetch("nobody/nothing")
    for number, text in enumerate(("{", '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}', "{}")):
        (odd := tmp_path / f"odd{number}").mkdir()
        (odd / "config.json").write_text(text, encoding="utf-8")
        save_file({}, odd / "model.safetensors")
        with pytest.raises(InputError, match=f"odd{number}: its config.json is damaged, or names no model that transf"):
            checkpoints.load_config(str(odd))
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40)).save_pretrained(tmp_path / "decoder")
    with pytest.raises(InputError, match="'gpt2' model: a teacher must be a BERT or DistilBERT"):
        checkpoints.load_masked_lm(str(tmp_path / "decoder"))


def test_a_checkpoint_is_saved_whole_or_not_at_all(teacher, tokenizer, tmp_path, monkeypatch):
    checkpoints.save(teacher, tokenizer, tmp_path / "model")
    before = checkpoints.file_hash(tmp_path / "model")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full_disk)
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(InputError, match="No space left"):
        checkpoints.save(teacher, tokenizer, tmp_path / "model")
    assert checkpoints.file_hash(tmp_path / "model") == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_config_of_a_checkpoint_says_what_it_is(teacher, tokenizer, tmp_path):
    checkpoints.save(distillation.from_teacher(teacher, [0]), tokenizer, tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert (config["model_type"], config["n_layers"], config["dim"]) == ("distilbert", 1, 32)


# --- what people bring


@pytest.fixture
def kept(teacher, tokenizer, tmp_path):
    """A checkpoint in a folder, as another program saved it; `change` alters its tensors by name."""
    folder = tmp_path / "theirs"
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def change(alter) -> str:
        save_file(alter(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return change


def test_a_checkpoint_is_the_one_that_is_pinned(kept):
    name = kept(lambda tensors: tensors)
    revision = checkpoints.fetch(name)[1]["revision"]
    assert checkpoints.fetch(f"{name}@{revision}") == checkpoints.fetch(name)
    with pytest.raises(InputError, match=f"theirs@other: it is pinned, and here is revision {revision}"):
        checkpoints.fetch(f"{name}@other")


def without(words: str):
    return lambda tensors: {name: value for name, value in tensors.items() if words not in name}


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (lambda tensors: {f"module.{name}": value for name, value in tensors.items()}, "it has module.bert."),
        (without("layer.0."), "16 weights of the encoder are not in it; bert.encoder.layer.0."),
        (without("word_embeddings"), "not in it; bert.embeddings.word_embeddings"),
        (
            lambda t: t | {"bert.encoder.layer.9.output.dense.bias": torch.zeros(32)},
            "1 do not belong to it; it has bert",
        ),
        (lambda t: t | {"bert.embeddings.word_embeddings.weight": torch.zeros(7, 32)}, "not of its config.json"),
    ],
)
@pytest.mark.parametrize("load", ["masked_lm", "with_head"])
def test_weights_that_do_not_fit_are_not_drawn_at_random_k1(kept, alter, says, load):
    """Kind K1, F1: a teacher whose encoder was not loaded taught all the same, at random."""
    name = kept(alter)
    with pytest.raises(InputError, match=says):
        if load == "masked_lm":
            checkpoints.load_masked_lm(name)
        else:
            checkpoints.load_with_head(AutoModelForSequenceClassification, name, 0, num_labels=2)


@pytest.mark.parametrize("gone", ["cls.", "pooler", "position_ids"])
def test_what_a_checkpoint_may_lack(kept, gone):
    assert checkpoints.load_masked_lm(kept(without(gone)))[2]["head"] == (gone != "cls.")


def test_damaged_weights_are_named(kept, tmp_path):
    path = tmp_path / "theirs/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="theirs: its weights are damaged"):
        checkpoints.load_masked_lm(str(tmp_path / "theirs"))


def test_a_checkpoint_of_ours_that_was_damaged_is_not_the_new_truth_f3(teacher, tokenizer, tmp_path):
    """F3: with a bit flipped in the teacher, all students were trained from the damaged one."""
    folder = tmp_path / "ours"
    checkpoints.save(teacher, tokenizer, folder)
    known = checkpoints.file_hash(folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="ours: its weights are not those that were saved; delete it"):
        checkpoints.load_masked_lm(str(folder))
    path.unlink()
    with pytest.raises(InputError, match="ours: its weights are not those that were saved; delete it"):
        checkpoints.file_hash(folder)  # not the hash of nothing
    path.write_bytes(whole)
    assert checkpoints.file_hash(folder) == known


def test_an_untied_teacher_is_copied_as_it_is_k2(tokenizer, batch):
    """Kind K2: the student's input embeddings were the teacher's output matrix."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **shape)
    config.layer_norm_eps = 1e-12
    teacher = BertForMaskedLM(config).eval()
    student = distillation.from_teacher(teacher, [0, 1]).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    seen = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits[seen], teacher(**inputs).logits[seen], atol=1e-5, rtol=1e-5)


def test_a_tokenizer_is_there_and_the_models_own_f2(kept, tmp_path):
    """F2: without one, every word was [UNK]; K9: more tokens than the model knows end in an index error later."""
    name = kept(lambda tensors: tensors)
    folder = tmp_path / "theirs"
    (folder / "more").mkdir()
    tokenizer = checkpoints.load_tokenizer(name)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="its tokenizer has 46 tokens, the model knows 45"):
        checkpoints.load_tokenizer(name)
    for file in (*folder.glob("tokenizer*"), *folder.glob("vocab*")):
        file.unlink()
    with pytest.raises(InputError, match="theirs has no tokenizer: expected tokenizer.json or vocab.txt"):
        checkpoints.load_tokenizer(name)


def test_a_cased_vocabulary_that_is_never_used_is_said_a12(kept, tmp_path):
    """Trouble A12: with vocab.txt alone the library lower-cases, and the capitals were never used."""
    name, folder = kept(lambda tensors: tensors), tmp_path / "theirs"
    words = (folder / "vocab.txt").read_text() if (folder / "vocab.txt").exists() else None
    words = words or "\n".join(
        sorted(checkpoints.load_tokenizer(name).get_vocab(), key=checkpoints.load_tokenizer(name).vocab.get)
    )
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").write_text(words.replace("river", "River"))
    with pytest.raises(InputError, match="capitals that its tokenizer never uses"):
        checkpoints.load_tokenizer(name)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    assert checkpoints.load_tokenizer(name).tokenize("River") == ["River"]


def test_what_the_hub_has_is_looked_at_k10(kept, tmp_path, monkeypatch):
    """Kind K10: of a sharded checkpoint the index was not fetched; a pickle alone ended in a library's error."""
    kept(lambda tensors: tensors)
    monkeypatch.setattr(
        checkpoints.huggingface_hub, "snapshot_download", lambda *_, **given: asked.append(given) or place
    )
    asked, place = [], str(tmp_path / "theirs")
    assert checkpoints.fetch("me/sharded")[0] == tmp_path / "theirs"
    assert any(fnmatch("model.safetensors.index.json", pattern) for pattern in asked[0]["allow_patterns"])
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in asked[0]["allow_patterns"])
    (tmp_path / "theirs/model.safetensors").rename(tmp_path / "theirs/pytorch_model.bin")
    with pytest.raises(InputError, match=r"me/binonly has no \*.safetensors"):
        checkpoints.fetch("me/binonly")

    def gated(*_, **__):
        raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(checkpoints.huggingface_hub, "snapshot_download", gated)
    with pytest.raises(InputError, match="model 'me/gated' is gated: ask for access"):
        checkpoints.fetch("me/gated")
