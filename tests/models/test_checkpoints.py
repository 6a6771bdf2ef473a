"""Checkpoints that anybody can load, and what is refused as one."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
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
    from transformers import BertConfig

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
