"""The triple loss and the trainer that minimises it.

Source: Sanh, Debut, Chaumond, Wolf (2019), DistilBERT, section 3; where the paper is silent, the authors' code.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from . import InputError, data, models
from .profiles import Distillation, Training
from .training import InParts, Report, Watch, arguments, last_checkpoint, run


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """How far the student's distributions are from the teacher's: KL(teacher ‖ student), summed over positions.

    Both logits [positions, vocabulary] are softened by the temperature. Their gradients shrink with its square, so the
    sum is scaled back by it (Hinton et al. 2015). It differs from the paper's cross-entropy by the teacher's entropy
    alone, which no student can change.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum") * temperature**2


def masked_lm_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of the masked tokens, summed: logits [positions, vocabulary], tokens [positions]."""
    return F.cross_entropy(logits.float(), tokens, reduction="sum")


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """One minus the cosine between last hidden states [positions, width], summed: do they point the same way?"""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def loss_terms(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    batch: dict[str, Tensor],
    positions: str = "all",
    temperature: float = 2.0,
) -> dict[str, Tensor]:
    """The terms of the triple loss on one batch, each summed over its own positions; without a teacher, masked_lm only.

    The vocabulary is predicted only where a term looks: `positions` "all" are all tokens but padding, as in the
    paper, "masked" the masked ones (the authors' option `restrict_ce_to_mask`). `hits`: masked tokens guessed right.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    masked, real = batch["labels"] != data.IGNORED, batch["attention_mask"].bool()
    scored = real if teacher is not None and positions == "all" else masked
    hidden, logits = models.predict(student, inputs, scored)
    guesses, tokens = logits[masked[scored]], batch["labels"][masked]
    terms = {"masked_lm": masked_lm_loss(guesses, tokens)}
    terms["hits"] = (guesses.detach().argmax(-1) == tokens).sum()
    if teacher is not None:
        with torch.no_grad():  # inference_mode would forbid its tensors in the student's backward pass
            teacher_hidden, teacher_logits = models.predict(teacher, inputs, scored)
        terms["distillation"] = distillation_loss(logits, teacher_logits, temperature)
        terms["cosine"] = cosine_loss(hidden[real], teacher_hidden[real])
    return terms


def token_counts(batches: Sequence[dict[str, Tensor]], positions: str = "all") -> dict[str, int]:
    """How many positions each term of the loss is summed over in these batches."""
    masked = sum(int((batch["labels"] != data.IGNORED).sum()) for batch in batches)
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    scored = real if positions == "all" else masked
    return {"masked_lm": masked, "hits": masked, "distillation": scored, "cosine": real}


@torch.no_grad()
def heldout_losses(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    blocks: data.MaskedBlocks,
    recipe: Distillation,
    pad_id: int,
    batch_size: int | None = None,
) -> dict[str, float]:
    """All terms on held-out text, each the mean over its own positions, in fp32 with dropout off.

    The distillation term is at temperature 1 here: plain KL to the teacher, in nats a token. `batch_size`: the recipe's
    unless given.
    """
    training, on = student.training, student.device
    student.eval()
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch in DataLoader(blocks, batch_size or recipe.training.batch_size, collate_fn=data.Padding(pad_id)):
        moved = {name: values.to(on) for name, values in batch.items()}
        for name, value in loss_terms(student, teacher, moved, recipe.positions, temperature=1.0).items():
            sums[name] = sums.get(name, 0.0) + value.item()
        for name, count in token_counts([batch], recipe.positions).items():
            counts[name] = counts.get(name, 0) + count
    student.train(training)
    means = {name: total / max(counts[name], 1) for name, total in sums.items()}
    names = {"masked_lm": "masked_lm_loss", "distillation": "kl_to_teacher", "cosine": "cosine_loss"}
    losses = {names[name]: mean for name, mean in means.items() if name in names}
    return losses | {"masked_token_accuracy": means["hits"]}


class DistillationTrainer(InParts):
    """Minimises the weighted sum of the three terms; without a teacher, the masked-LM loss alone.

    Each term is averaged over its own tokens of the whole accumulation window, so how a step's blocks are split into
    batches changes no gradient.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        recipe: Distillation,
        stage: Training,
        blocks: data.MaskedBlocks,
        heldout: data.MaskedBlocks,
        reference: PreTrainedModel | None,
        pad_id: int,
        folder: Path,
        precision: str,
    ):
        """`teacher` is learnt from, `reference` is compared with on held-out text."""
        self.teacher, self.recipe, self.stage, self.heldout, self.reference = (
            teacher,
            recipe,
            stage,
            heldout,
            reference,
        )
        self.pad_id = pad_id
        weights = (recipe.weight_distillation, recipe.weight_masked_lm, recipe.weight_cosine)
        self.weights = dict(zip(("distillation", "masked_lm", "cosine"), weights, strict=True))
        self.positions = recipe.positions if recipe.weight_distillation else "masked"  # no logits for a term unused
        if teacher is None:
            self.weights = {"masked_lm": 1.0}
        elif student.config.hidden_size != teacher.config.hidden_size:
            sizes = f"the student is {student.config.hidden_size} wide, the teacher {teacher.config.hidden_size}"
            raise InputError(f"{sizes}: the cosine loss needs equal widths, so build the student from this teacher")
        elif student.config.vocab_size != teacher.config.vocab_size:
            sizes = f"{student.config.vocab_size} words against the teacher's {teacher.config.vocab_size}"
            raise InputError(f"the student predicts {sizes}: the distillation loss needs one vocabulary")
        args = TrainingArguments(
            **arguments(folder, student.device, precision, blocks.masking.seed, stage.steps),
            per_device_train_batch_size=stage.batch_size,
            gradient_accumulation_steps=stage.accumulation,
            learning_rate=stage.learning_rate,
            warmup_steps=math.ceil(stage.warmup * stage.steps),
            adam_beta1=0.9,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            max_grad_norm=stage.clip,
            eval_strategy="steps" if stage.evaluations else "no",
            eval_steps=max(1, stage.steps // max(stage.evaluations, 1)),
        )
        args._n_gpu = min(args.n_gpu, 1)  # DataParallel would call the model's forward, which this loss doesn't use
        callbacks = [Report(), Watch(stage.save_minutes)]
        super().__init__(student, args, train_dataset=blocks, eval_dataset=heldout, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        # Tells Trainer that the loss comes averaged over the accumulation window: it must not divide it once more.
        self.compute_loss_func = self.compute_loss

    def train(self, *given, **named):
        """Trainer's, with nothing left of a run that was broken off."""
        self.sums: dict[str, Tensor] = {}
        self.started: float | None = None
        self.logged: int | None = None
        return super().train(*given, **named)

    def get_train_dataloader(self) -> DataLoader:
        """The blocks in their own order, which a resumed run meets again."""
        loader = DataLoader(
            self.train_dataset,
            self.args.train_batch_size,
            collate_fn=data.Padding(self.pad_id),
            drop_last=False,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, and the counts that this window's terms are averaged over."""
        if self.started is None:
            self.started = time.perf_counter()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.counts = token_counts(batches, self.positions)
        return batches, items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the terms, averaged over the window."""
        with self.accelerator.autocast():
            terms = loss_terms(model, self.teacher, inputs, self.positions, self.recipe.temperature)
        means = {name: terms[name] / max(self.counts[name], 1) for name in self.weights}
        loss = sum(self.weights[name] * mean for name, mean in means.items())
        seen = {"loss": loss} | means | {"tokens": inputs["attention_mask"].sum()}
        for name, value in seen.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with each term, tokens and seconds since the last line."""
        if "loss" in logs:
            steps = self.args.logging_steps if self.logged is None else self.state.global_step - self.logged
            self.logged = self.state.global_step
            sums = {name: value.item() for name, value in self.sums.items()}
            self.sums = {}
            logs |= {name: total if name == "tokens" else total / steps for name, total in sums.items()}
            logs["seconds"] = time.perf_counter() - self.started
            logs |= {"batch_parts": self.parts} if self.parts > 1 else {}
            self.started = None  # the next step's first batch starts the clock, after any evaluation or checkpoint
        super().log(logs, start_time)

    def evaluate(self, *_, **__) -> dict[str, float]:
        """The held-out losses, logged with the step for the curves."""
        losses = heldout_losses(self.model, self.reference, self.heldout, self.recipe, self.pad_id)
        self.log({f"heldout_{name}": value for name, value in losses.items()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses


def train(trainer: DistillationTrainer) -> list[dict]:
    """Train to the end, from the last whole checkpoint if a run was cut off; the log, a line each few steps."""
    last = last_checkpoint(Path(trainer.args.output_dir))
    trainer.args.eval_on_start = last is None and trainer.stage.evaluations > 0
    run(trainer)
    return [line for line in trainer.state.log_history if "train_runtime" not in line]  # Trainer's own summary
