"""Students layer by layer; the triple loss against independent derivations; the trainer resumed and in trouble."""

import math

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from helpers import InputError, profiles
from helpers.data import encoding
from helpers.models import distillation


@pytest.fixture
def batch(tokenizer):
    return tokenizer(["the old baker sings", "a river"], padding=True, return_tensors="pt")


@pytest.fixture
def recipe() -> profiles.Distillation:
    overrides = {f"distillation.training.{k}": v for k, v in {"steps": 4, "batch_size": 4, "evaluations": 1}.items()}
    return profiles.load("mini", overrides).distillation


def test_a_student_with_all_layers_reproduces_its_teacher(teacher, batch):
    student = distillation.from_teacher(teacher, range(4))
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = student(**inputs, output_hidden_states=True), teacher(**inputs, output_hidden_states=True)
    for mine, its in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], its[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], atol=1e-5, rtol=0)


def test_a_students_layers_are_the_ones_asked_for(teacher):
    student = distillation.from_teacher(teacher, [3, 1])
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
    student = distillation.from_teacher(teacher, [0, 1, 2])
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
    assert distillation.choose_layers(available, wanted) == layers


@pytest.mark.parametrize("wanted", [5, 0, [0, 4], [-1], []])
def test_layers_that_the_teacher_lacks_are_refused(wanted):
    with pytest.raises(InputError, match="teacher"):
        distillation.choose_layers(4, wanted)


def softmax64(logits: torch.Tensor) -> np.ndarray:
    values = logits.double().numpy()
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_loss_is_the_kl_divergence_times_the_squared_temperature(temperature):
    student, teacher = torch.randn(7, 11), 3 * torch.randn(7, 11)
    p, q = softmax64(teacher / temperature), softmax64(student / temperature)
    expected = (p * (np.log(p) - np.log(q))).sum() * temperature**2
    assert distillation.distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_loss_has_the_gradient_of_the_papers_cross_entropy():
    student, teacher = torch.randn(5, 9, dtype=torch.float64, requires_grad=True), torch.randn(5, 9)
    distillation.distillation_loss(student, teacher, 2.0).backward()
    # d/dz of -sum(t log s) at temperature T is (s - t) / T; times T squared.
    expected = 2.0 * (softmax64(student.detach() / 2.0) - softmax64(teacher / 2.0))
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-6)


def test_masked_lm_loss_is_the_negative_log_likelihood():
    logits, tokens = torch.randn(6, 13), torch.randint(13, (6,))
    expected = -np.log(softmax64(logits)[np.arange(6), tokens.numpy()]).sum()
    assert distillation.masked_lm_loss(logits, tokens).item() == pytest.approx(expected, rel=1e-5)


def test_cosine_loss_is_one_minus_the_cosine():
    one, other = torch.randn(8, 5), torch.randn(8, 5)
    a, b = one.double().numpy(), other.double().numpy()
    cosines = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    assert distillation.cosine_loss(one, other).item() == pytest.approx((1 - cosines).sum(), rel=1e-5)


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_terms_of_a_batch_equal_those_of_whole_forward_passes(teacher, tokenizer, cut, positions):
    """Gathering positions before the head must give what full logits give; padding must not count."""
    student = distillation.from_teacher(teacher, [0, 3])
    blocks = encoding.MaskedBlocks(cut[:6], encoding.Masking(tokenizer, rate=0.3))
    batch = encoding.Padding(tokenizer.pad_token_id)([blocks[i] for i in range(6)])
    assert not batch["attention_mask"].all(), "needs padding to be a test"
    terms = distillation.loss_terms(student, teacher, batch, positions, temperature=2.0)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        s = student(**inputs, output_hidden_states=True)
        t = teacher(**inputs, output_hidden_states=True)
    total = {"masked_lm": 0.0, "distillation": 0.0, "cosine": 0.0, "hits": 0}
    for row in range(6):
        for place in range(batch["input_ids"].shape[1]):
            if not batch["attention_mask"][row, place]:
                continue
            label = batch["labels"][row, place].item()
            p, q = softmax64(t.logits[row, place] / 2), softmax64(s.logits[row, place] / 2)
            if label != -100:
                total["masked_lm"] -= math.log(softmax64(s.logits[row, place])[label])
                total["hits"] += int(s.logits[row, place].argmax().item() == label)
            if positions == "all" or label != -100:
                total["distillation"] += 4 * (p * np.log(p / q)).sum()
            a, b = s.hidden_states[-1][row, place].double(), t.hidden_states[-1][row, place].double()
            total["cosine"] += 1 - (a @ b / a.norm() / b.norm()).item()
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(total, rel=1e-4)
    counts = distillation.token_counts([batch], positions)
    assert counts["masked_lm"] == (batch["labels"] != -100).sum()
    assert counts["cosine"] == batch["attention_mask"].sum()
    assert counts["distillation"] == counts["cosine" if positions == "all" else "masked_lm"]


def make_trainer(student, teacher, recipe, cut, tokenizer, folder, **stage):
    stage = recipe.training.model_copy(update=stage)
    total = stage.steps * stage.batch_size * stage.accumulation
    blocks = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer, seed=3), total)
    heldout = encoding.MaskedBlocks(cut[:4], encoding.Masking(tokenizer))
    return distillation.DistillationTrainer(
        student, teacher, recipe, stage, blocks, heldout, teacher, tokenizer.pad_token_id, folder, "fp32"
    )


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_splitting_a_step_into_batches_changes_no_gradient(teacher, tokenizer, cut, recipe, tmp_path, positions):
    """Blocks of unequal length make unequal batches, so averaging per batch would show."""
    recipe = recipe.model_copy(update={"positions": positions})
    after = {}
    for batch_size, accumulation, parts in ((8, 1, 1), (4, 2, 1), (1, 8, 1), (8, 1, 3)):  # parts: of one batch
        student = distillation.from_teacher(teacher, [0, 3])
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        student.config.attention_dropout = 0.0
        for block in student.distilbert.transformer.layer:
            block.attention.dropout.p, block.attention.attention_dropout = 0.0, 0.0
        trainer = make_trainer(
            student,
            teacher,
            recipe,
            cut,
            tokenizer,
            tmp_path,
            steps=1,
            batch_size=batch_size,
            accumulation=accumulation,
        )
        trainer.parts, gradients = parts, {}
        trainer.optimizer, trainer.lr_scheduler = torch.optim.SGD(student.parameters(), lr=0.0), None
        trainer.create_scheduler(1, trainer.optimizer)
        trainer.optimizer.register_step_pre_hook(
            lambda *_, into=gradients, of=student: into.update({n: p.grad.clone() for n, p in of.named_parameters()})
        )
        trainer.args.max_grad_norm = 0.0  # no clipping, which would hide a wrong scale
        trainer.train()
        after[batch_size, parts] = gradients | {"logged": torch.tensor(trainer.state.log_history[0]["loss"])}
    for name, gradient in after.pop((8, 1)).items():
        for how, own in after.items():
            torch.testing.assert_close(own[name], gradient, atol=1e-5, rtol=1e-4, msg=f"{name} {how}")


def test_training_lowers_what_it_minimises(teacher, tokenizer, cut, recipe, tmp_path):
    """The teacher is random and the text is not its kind, so imitating and predicting are tried one at a time."""
    imitate = recipe.model_copy(update={"weight_masked_lm": 0.0})
    heldout = {}
    for name, guide in (("imitate", teacher), ("predict", None)):
        student = distillation.untrained(teacher.config, 2, seed=0)
        trainer = make_trainer(student, guide, imitate, cut, tokenizer, tmp_path / name, steps=100, batch_size=8)
        log = distillation.train(trainer)
        heldout[name] = [line for line in log if "heldout_masked_lm_loss" in line]
        assert [line["step"] for line in heldout[name]] == [0, 100]
        tokens = sum(len(trainer.train_dataset[i]["input_ids"]) for i in range(800))
        assert sum(line["tokens"] for line in log if "tokens" in line) == tokens
    start, end = heldout["imitate"]
    for name in ("heldout_kl_to_teacher", "heldout_cosine_loss"):
        assert end[name] < 0.5 * start[name]
    # The text is 17 words drawn at random, so nobody can do better than ln 17 = 2.83, and it begins near ln 45 = 3.81.
    start, end = heldout["predict"]
    assert 2.83 < end["heldout_masked_lm_loss"] < 3.3 < start["heldout_masked_lm_loss"]


def test_without_a_teacher_only_the_masked_lm_loss_is_minimised(teacher, tokenizer, cut, recipe, tmp_path):
    student = distillation.from_teacher(teacher, [0, 3])
    trainer = make_trainer(student, None, recipe, cut, tokenizer, tmp_path)
    log = [line for line in distillation.train(trainer) if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["masked_lm"]) and "distillation" not in line for line in log)


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(teacher, tokenizer, cut, recipe, tmp_path):
    class Killed(Exception):
        pass

    def finished(folder, kill_at=None):
        student = distillation.from_teacher(teacher, [0, 3])
        trainer = make_trainer(student, teacher, recipe, cut, tokenizer, folder, steps=12, save_minutes=1e-9)
        if kill_at:
            step = trainer.training_step

            def stop(*args, **kwargs):
                if trainer.state.global_step == kill_at:
                    raise Killed
                return step(*args, **kwargs)

            trainer.training_step = stop
        log = distillation.train(trainer)
        return student.state_dict(), [{k: v for k, v in line.items() if k != "seconds"} for line in log]

    whole, whole_log = finished(tmp_path / "whole")
    with pytest.raises(Killed):
        finished(tmp_path / "cut", kill_at=7)
    broken = tmp_path / "cut" / "checkpoint-99"  # as a kill in the middle of saving leaves it
    broken.mkdir()
    resumed, resumed_log = finished(tmp_path / "cut")
    assert resumed_log == whole_log
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_loss_that_is_not_finite_ends_the_training(teacher, tokenizer, cut, recipe, tmp_path):
    student = distillation.from_teacher(teacher, [0, 3])
    with torch.no_grad():
        student.vocab_projector.bias[7] = float("nan")
    with pytest.raises(InputError, match="the loss became nan by step 1.*lower learning_rate"):
        distillation.train(make_trainer(student, teacher, recipe, cut, tokenizer, tmp_path))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_models_that_do_not_fit_are_refused(teacher, tokenizer, cut, recipe, tmp_path):
    config = distillation.configuration(teacher.config, 2)
    config.dim = config.hidden_size = 64
    wide = DistilBertForMaskedLM(config)
    with pytest.raises(InputError, match="the student is 64 wide, the teacher 32"):
        make_trainer(wide, teacher, recipe, cut, tokenizer, tmp_path)


def test_heldout_losses_of_the_teacher_itself_are_zero_but_for_its_own(teacher, tokenizer, cut, recipe):
    same = distillation.from_teacher(teacher, range(4))
    losses = distillation.heldout_losses(
        same, teacher, encoding.MaskedBlocks(cut, encoding.Masking(tokenizer)), recipe, tokenizer.pad_token_id
    )
    assert losses["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert losses["cosine_loss"] == pytest.approx(0, abs=1e-6)
    assert losses["masked_lm_loss"] > 1


def test_heldout_losses_do_not_depend_on_the_batch_size(teacher, tokenizer, cut, recipe):
    student = distillation.from_teacher(teacher, [0, 3])
    blocks = encoding.MaskedBlocks(cut, encoding.Masking(tokenizer))
    found = []
    for size in (1, 7, 40):
        how = recipe.training.model_copy(update={"batch_size": size})
        sized = recipe.model_copy(update={"training": how})
        found.append(distillation.heldout_losses(student, teacher, blocks, sized, tokenizer.pad_token_id))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] == pytest.approx(found[2], rel=1e-5)
