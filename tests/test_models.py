"""Students from teachers, layer by layer; checkpoints that anybody can load."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from helpers import InputError, machine, models, profiles, records, students


@pytest.fixture
def batch(tokenizer):
    return tokenizer(["the old baker sings", "a river"], padding=True, return_tensors="pt")


def test_a_student_with_all_layers_reproduces_its_teacher(teacher, batch):
    student = students.from_teacher(teacher, range(4))
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = student(**inputs, output_hidden_states=True), teacher(**inputs, output_hidden_states=True)
    for mine, its in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], its[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], atol=1e-5, rtol=0)


def test_a_students_layers_are_the_ones_asked_for(teacher):
    student = students.from_teacher(teacher, [3, 1])
    for n, i in enumerate((3, 1)):
        ours, theirs = student.distilbert.transformer.layer[n], teacher.bert.encoder.layer[i]
        assert torch.equal(ours.ffn.lin2.weight, theirs.output.dense.weight)
        assert torch.equal(ours.attention.k_lin.bias, theirs.attention.self.key.bias)
        assert torch.equal(ours.sa_layer_norm.weight, theirs.attention.output.LayerNorm.weight)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_a_distilbert_can_teach_too(tokenizer, batch):
    teacher = DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=3, n_heads=4, hidden_dim=64)
    ).eval()
    student = students.from_teacher(teacher, [0, 1, 2])
    with torch.no_grad():
        ours, theirs = student(**batch).logits, teacher(**batch).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("available", "wanted", "layers"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (6, 3, [0, 2, 5]),
        (4, 2, [0, 3]),
        (12, 1, [0]),
        (3, 3, [0, 1, 2]),
        (4, [2, 0], [2, 0]),
    ],
)
def test_layers_are_spread_from_first_to_last(available, wanted, layers):
    assert students.choose_layers(available, wanted) == layers


@pytest.mark.parametrize("wanted", [5, 0, [0, 4], [-1], []])
def test_layers_that_the_teacher_lacks_are_refused(wanted):
    with pytest.raises(InputError, match="teacher"):
        students.choose_layers(4, wanted)


def test_full_size_parameter_counts():
    """66,985,530 with the masked-LM head, 66,362,880 without: DistilBERT's own."""
    from transformers import BertConfig

    with torch.device("meta"):
        student = DistilBertForMaskedLM(students.configuration(BertConfig(), 6))
        student.tie_weights()
    assert models.parameters(student) == 66_985_530
    assert models.parameters(student.distilbert) == 66_362_880


def test_a_saved_student_is_loaded_by_anyone(teacher, tokenizer, tmp_path, batch):
    student = students.from_teacher(teacher, [0, 3])
    models.save(student, tokenizer, tmp_path / "student")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, student(**batch).logits)
    assert type(AutoModel.from_pretrained(tmp_path / "student")).__name__ == "DistilBertModel"
    assert not [p for p in (tmp_path / "student").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    loaded, words, source = models.load_masked_lm(str(tmp_path / "student"))
    assert source["head"] and source["weights"] == "ours" and source["parameters"] == models.parameters(student)
    assert words.get_vocab() == tokenizer.get_vocab()


def test_a_missing_head_is_noticed_and_started_well(teacher, tokenizer, tmp_path, batch):
    models.save(teacher.bert, tokenizer, tmp_path / "encoder")
    model, _, source = models.load_masked_lm(str(tmp_path / "encoder"))
    assert not source["head"]
    counts = torch.randint(1, 1000, (len(tokenizer),)).numpy()
    models.start_head(model, counts)
    guess = model(**batch).logits.mean((0, 1)).softmax(-1)
    assert torch.corrcoef(torch.stack([guess, torch.from_numpy(counts / counts.sum()).float()]))[0, 1] > 0.5
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_vocabulary_logits_equal_the_models_own(teacher, batch):
    for model in (teacher, students.from_teacher(teacher, [0, 3])):
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = models.encode(model, **inputs)
            torch.testing.assert_close(models.vocabulary_logits(model, hidden), model(**inputs).logits)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no checkpoint: expected a folder with config.json and"):
        models.fetch(str(tmp_path))
    with pytest.raises(InputError, match="nobody/nothing.*check the name"):
        models.fetch("nobody/nothing")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40)).save_pretrained(tmp_path / "decoder")
    with pytest.raises(InputError, match="'gpt2' model: a teacher must be a BERT or DistilBERT"):
        models.load_masked_lm(str(tmp_path / "decoder"))


def test_a_checkpoint_is_saved_whole_or_not_at_all(teacher, tokenizer, tmp_path, monkeypatch):
    models.save(teacher, tokenizer, tmp_path / "model")
    before = models.file_hash(tmp_path / "model")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full_disk)
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(InputError, match="No space left"):
        models.save(teacher, tokenizer, tmp_path / "model")
    assert models.file_hash(tmp_path / "model") == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_precision_goes_by_what_the_hardware_truly_has(monkeypatch):
    profile = profiles.load("t4", {"device": "cpu"})
    for flags, expected in ((["avx512_bf16"], "bf16"), (["amx_bf16"], "bf16"), (["avx2"], "fp32")):
        monkeypatch.setattr(records, "cpu", lambda flags=flags: {"model": "", "flags": flags})
        assert machine.precision(profile) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 answers
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert machine.precision(profiles.load("t4")) == expected
    with pytest.raises(InputError, match="fp16"):
        machine.precision(profiles.load("t4", {"device": "cpu", "precision": "fp16"}))


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for name in ("t4", "paper"):
        with pytest.raises(InputError, match=r"torch sees no GPU here, .* [\d.]+ days here.*set device to cpu"):
            machine.device(profiles.load(name))
        assert machine.device(profiles.load(name, {"device": "cpu"})).type == "cpu"


def test_an_old_driver_is_named(monkeypatch):
    def too_old():  # the beginning of what torch says
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(InputError, match=r"no GPU here \(the NVIDIA driver is too old for this torch"):
        machine.device(profiles.load("t4"))


def test_config_of_a_checkpoint_says_what_it_is(teacher, tokenizer, tmp_path):
    models.save(students.from_teacher(teacher, [0]), tokenizer, tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert (config["model_type"], config["n_layers"], config["dim"]) == ("distilbert", 1, 32)
