"""Fine-tuning: batches, the guided loss, predictions that padding doesn't change, and what resuming gives."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, TrainerCallback

from helpers import InputError
from helpers.data import encoding
from helpers.models import checkpoints, distillation, finetuning
from helpers.models.training import Watch
from helpers.profiles import Recipe

RECIPE = Recipe(learning_rate=1e-3, epochs=3, batch_size=4, length=16)


@pytest.fixture
def folder(teacher, tokenizer, tmp_path):
    """A checkpoint without a head for any task."""
    checkpoints.save(teacher, tokenizer, tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.fixture
def student_folder(teacher, tokenizer, tmp_path):
    checkpoints.save(distillation.from_teacher(teacher, [0, 3]), tokenizer, tmp_path / "student")
    return str(tmp_path / "student")


@pytest.fixture
def pairs(tokenizer) -> list[dict]:
    """Sentence pairs of unequal length; the label is whether the first has a river in it."""
    random = np.random.default_rng(0)
    words = ["river", "town", "bridge", "stone", "baker", "morning"]
    rows = {"one": [], "other": [], "label": []}
    for _ in range(23):
        one, other = (list(random.choice(words, random.integers(1, 7))) for _ in range(2))
        rows["one"].append(" ".join(one))
        rows["other"].append(" ".join(other))
        rows["label"].append(int("river" in one))
    return encoding.encode_texts(Dataset.from_dict(rows), ["one", "other"], tokenizer, 16)


def make_trainer(model, examples, folder, recipe=RECIPE, **options) -> finetuning.FineTuner:
    return finetuning.FineTuner(model, examples, recipe, 0, folder, "fp32", pad_id=0, **options)


@pytest.mark.parametrize("grouped", [True, False])
def test_every_epoch_has_every_row_once(grouped):
    lengths = list(np.random.default_rng(1).integers(3, 60, 230))
    drawn = encoding.batches(lengths, 16, 3, seed=5, grouped=grouped)
    assert drawn == encoding.batches(lengths, 16, 3, seed=5, grouped=grouped)
    assert drawn != encoding.batches(lengths, 16, 3, seed=6, grouped=grouped)
    epochs = [drawn[start : start + 15] for start in range(0, 45, 15)]
    assert all(sorted(sum(epoch, [])) == list(range(230)) for epoch in epochs) and epochs[0] != epochs[1]
    assert {len(batch) for batch in drawn} == {16, 230 % 16}
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in drawn) / (3 * sum(lengths))
    assert padded < 1.1 if grouped else padded > 1.5
    if grouped:  # yet an epoch doesn't run from long to short
        order = [max(lengths[row] for row in batch) for batch in epochs[0]]
        assert order not in (sorted(order), sorted(order, reverse=True))


def test_texts_become_examples(tokenizer):
    rows = Dataset.from_dict({"a": ["river town", "the " * 30], "b": ["bridge", "stone"], "label": [0.5, 3.25]})
    short, long = encoding.encode_texts(rows, ["a", "b"], tokenizer, 12)
    assert tokenizer.decode(short["input_ids"]) == "[CLS] river town [SEP] bridge [SEP]"
    assert short["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert len(long["input_ids"]) == 12 and tokenizer.decode(long["input_ids"][-2:]) == "stone [SEP]"
    assert short["labels"].dtype == np.float32 and long["labels"] == 3.25


@pytest.mark.parametrize("which", ["folder", "student_folder"])
def test_padding_and_grouping_change_no_prediction(which, pairs, request):
    model = checkpoints.load_with_head(
        AutoModelForSequenceClassification, request.getfixturevalue(which), 0, num_labels=3
    )
    together = finetuning.predict(model, pairs, batch_size=8, pad_id=0)
    for example, found in zip(pairs, together, strict=True):
        (alone,) = finetuning.predict(model, [example], batch_size=1, pad_id=0)
        assert np.abs(alone["logits"] - found["logits"]).max() < 1e-4
    answering = checkpoints.load_with_head(AutoModelForQuestionAnswering, request.getfixturevalue(which), 0)
    for example, found in zip(pairs, finetuning.predict(answering, pairs, 8, 0), strict=True):
        (alone,) = finetuning.predict(answering, [example], 1, 0)
        for name, values in alone.items():
            assert values.shape == found[name].shape == example["input_ids"].shape
            assert np.abs(values - found[name]).max() < 1e-4


def test_a_teacher_sees_the_token_types_and_a_student_does_not(folder, student_folder, pairs):
    bare = [example | {"token_type_ids": np.zeros_like(example["token_type_ids"])} for example in pairs]
    for name, sees in ((folder, True), (student_folder, False)):
        model = checkpoints.load_with_head(AutoModelForSequenceClassification, name, 0, num_labels=2)
        with_types, without = (finetuning.guided(model, rows, 8, 0) for rows in (pairs, bare))
        gaps = [
            np.abs(a["teacher_logits"] - b["teacher_logits"]).max() for a, b in zip(with_types, without, strict=True)
        ]
        assert min(gaps) > 1e-4 if sees else max(gaps) == 0


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def kl(teacher, student, temperature):
    t, s = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * np.sum(t * np.log(t / s), -1)


def test_the_guided_loss_by_hand():
    random = np.random.default_rng(2)
    own, teachers = random.normal(size=(2, 5, 3))
    outputs = type("Outputs", (), {"logits": torch.tensor(own, dtype=torch.float32)})
    batch = {"teacher_logits": torch.tensor(teachers, dtype=torch.float32)}
    expected = kl(teachers, own, 2.0).mean()
    assert finetuning.guided_loss(outputs, batch, 2.0).item() == pytest.approx(expected, rel=1e-5)

    scores = type("Outputs", (), {"logits": torch.tensor([[1.0], [3.0]])})
    batch = {"teacher_logits": torch.tensor([[2.0], [5.0]])}
    assert finetuning.guided_loss(scores, batch, 2.0).item() == pytest.approx((1 + 4) / 2)


def test_the_guided_loss_of_an_answer_leaves_padding_out():
    random = np.random.default_rng(3)
    sizes, own, teachers = [4, 7], random.normal(size=(2, 2, 7)), random.normal(size=(2, 2, 7))
    examples = [
        {"input_ids": np.ones(size, int), "teacher_start": teachers[0, i, :size], "teacher_end": teachers[1, i, :size]}
        for i, size in enumerate(sizes)
    ]
    batch = encoding.Padding(0)(examples)
    logits = [torch.tensor(side, dtype=torch.float32, requires_grad=True) for side in own]
    outputs = type("Outputs", (), {"start_logits": logits[0], "end_logits": logits[1]})
    expected = np.mean([[kl(teachers[s, i, :n], own[s, i, :n], 2.0) for i, n in enumerate(sizes)] for s in (0, 1)])
    loss = finetuning.guided_loss(outputs, batch, 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert not logits[0].grad[0, 4:].any() and logits[0].grad[0, :4].any()


def test_half_of_the_loss_is_the_teachers(folder, student_folder, pairs, tmp_path):
    teacher = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 1, num_labels=2)
    student = checkpoints.load_with_head(AutoModelForSequenceClassification, student_folder, 2, num_labels=2).eval()
    batch = encoding.Padding(0)(finetuning.guided(teacher, pairs[:4], 8, 0))
    loss = make_trainer(student, pairs, tmp_path).compute_loss(student, batch)
    plain = {name: values for name, values in batch.items() if name != "teacher_logits"}
    hard = make_trainer(student, pairs, tmp_path).compute_loss(student, plain)
    outputs = student(**finetuning.accepted(student, plain))
    soft = finetuning.guided_loss(outputs, batch, 2.0)
    assert hard.item() == pytest.approx(outputs.loss.item())
    assert loss.item() == pytest.approx(0.5 * hard.item() + 0.5 * soft.item(), rel=1e-5)


@pytest.mark.slow
def test_training_learns_and_repeats_itself(folder, pairs, tmp_path):
    recipe, after = RECIPE.model_copy(update={"epochs": 60, "learning_rate": 3e-3}), []
    for _ in range(2):
        model = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2)
        cost = finetuning.fine_tune(make_trainer(model, pairs, tmp_path / "run", recipe))
        after.append([found["logits"] for found in finetuning.predict(model, pairs, 8, 0)])
    assert np.array_equal(*after)
    assert np.mean(np.argmax(after[0], -1) == [example["labels"] for example in pairs]) > 0.9
    tokens = sum(len(example["input_ids"]) for example in pairs)
    assert cost["tokens_per_s"] / cost["examples_per_s"] == pytest.approx(tokens / len(pairs))


def test_a_resumed_training_ends_with_the_same_weights(folder, pairs, tmp_path):
    """Stopped at a checkpoint in the middle of an epoch, dropout and all."""
    whole = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2)
    finetuning.fine_tune(make_trainer(whole, pairs, tmp_path / "whole"))

    cut = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2)
    trainer = make_trainer(cut, pairs, tmp_path / "cut")

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 8

    trainer.remove_callback(Watch)
    trainer.add_callback(Watch(save_minutes=0.0))
    trainer.add_callback(Stop())
    finetuning.fine_tune(trainer)
    state = json.loads((tmp_path / "cut" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and len(trainer.rows) == 18
    again = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2)
    finetuning.fine_tune(make_trainer(again, pairs, tmp_path / "cut"))
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_where_memory_runs_out_batches_go_through_in_parts(folder, pairs, tmp_path):
    """From the start again, in twice as many parts and again, to the weights that whole batches lead to."""

    def fine_tuned(most: int) -> tuple[dict, dict]:
        model = without_dropout(checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2))
        trainer = make_trainer(model, pairs, tmp_path / str(most))
        plain = trainer.compute_loss

        def short_of_memory(model, inputs, *given, **named):
            if trainer.state.global_step > 2 and len(inputs["labels"]) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. See the manual.")
            return plain(model, inputs, *given, **named)

        trainer.compute_loss = short_of_memory
        cost = finetuning.fine_tune(trainer)
        assert trainer.state.global_step == len(trainer.rows)
        return model.state_dict(), cost

    (whole, cost), (parts, more) = fine_tuned(4), fine_tuned(1)
    assert "batch_parts" not in cost and more["batch_parts"] == 4
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, atol=1e-4, rtol=0, msg=name)
    with pytest.raises(InputError, match="^CUDA out of memory, with one row at a time: free the GPU's memory$"):
        fine_tuned(0)


def test_predictions_take_smaller_batches_where_memory_runs_out(folder, pairs, monkeypatch):
    model = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2).eval()
    expected, sizes, plain = finetuning.predict(model, pairs, 8, 0), [], model.forward

    def short_of_memory(input_ids, **given):
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(input_ids=input_ids, **given)

    monkeypatch.setattr(model, "forward", short_of_memory)
    most = 3
    for one, other in zip(finetuning.predict(model, pairs, 8, 0), expected, strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2, 1}
    most = 0
    with pytest.raises(InputError, match="^CUDA out of memory, with one row at a time"):
        finetuning.predict(model, pairs, 8, 0)


def test_a_loss_that_turns_nan_stops_the_training(folder, pairs, tmp_path):
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30, "clip": 1e30})
    model = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=2)
    with pytest.raises(InputError, match=r"the loss became (nan|inf) by step \d+: lower learning_rate"):
        finetuning.fine_tune(make_trainer(model, pairs, tmp_path, recipe))


def test_a_head_for_other_labels_is_refused(folder, tokenizer, tmp_path):
    model = checkpoints.load_with_head(AutoModelForSequenceClassification, folder, 0, num_labels=3)
    checkpoints.save(model, tokenizer, tmp_path / "tuned")
    with pytest.raises(InputError, match="was fine-tuned for 3 labels, and the task has 2"):
        checkpoints.load_with_head(AutoModelForSequenceClassification, str(tmp_path / "tuned"), 0, num_labels=2)
    same = checkpoints.load_with_head(AutoModelForSequenceClassification, str(tmp_path / "tuned"), 7, num_labels=3)
    assert torch.equal(same.classifier.weight, model.classifier.weight)
