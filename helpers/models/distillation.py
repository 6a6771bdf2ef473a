"""Distillation: a student built from its teacher's layers, the triple loss, and the trainer that minimises it.

A teacher is any BERT or DistilBERT encoder; a student is always a DistilBERT, saved and loaded like any other.
Source: Sanh, Debut, Chaumond, Wolf (2019), DistilBERT, section 3; where the paper is silent, the authors' code.
"""

import functools
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DistilBertConfig, DistilBertForMaskedLM, PretrainedConfig, PreTrainedModel

from .. import InputError
from ..data import encoding
from ..profiles import Distillation, Training
from . import checkpoints
from .training import PROCESSES, InParts, last_checkpoint, run

# Where a BERT layer's and head's parameters live in a DistilBERT.
LAYER = "distilbert.transformer.layer.{}."
LAYER_NAMES = {
    "attention.self.query": "attention.q_lin.",
    "attention.self.key": "attention.k_lin.",
    "attention.self.value": "attention.v_lin.",
    "attention.output.dense": "attention.out_lin.",
    "attention.output.LayerNorm": "sa_layer_norm.",
    "intermediate.dense": "ffn.lin1.",
    "output.dense": "ffn.lin2.",
    "output.LayerNorm": "output_layer_norm.",
}
HEAD_NAMES = {
    "cls.predictions.transform.dense.": "vocab_transform.",
    "cls.predictions.transform.LayerNorm.": "vocab_layer_norm.",
    "cls.predictions.decoder.": "vocab_projector.",
}


def choose_layers(available: int, wanted: int | Sequence[int]) -> list[int]:
    """Layers of the teacher that a student takes: those listed, or `wanted` many spread evenly from first to last.

    Six of twelve are 0, 2, 4, 7, 9, 11, as in the DistilBERT authors' code. InputError if the teacher lacks them.
    """
    if isinstance(wanted, int):
        if not 1 <= wanted <= available:
            raise InputError(f"a student of {wanted} layers cannot be taken from a teacher of {available}")
        return [int(i) for i in np.linspace(0, available - 1, wanted).round()]
    wrong = [i for i in wanted if not 0 <= i < available]
    if wrong or not wanted:
        raise InputError(f"layers {list(wanted)}: the teacher has layers 0 to {available - 1}; not there: {wrong}")
    return list(wanted)


def configuration(teacher: PretrainedConfig, layers: int) -> DistilBertConfig:
    """The configuration of a DistilBERT as wide as its teacher."""
    distilled = teacher.model_type == "distilbert"
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        n_layers=layers,
        n_heads=teacher.num_attention_heads,
        dim=teacher.hidden_size,
        hidden_dim=teacher.hidden_dim if distilled else teacher.intermediate_size,
        dropout=teacher.dropout if distilled else teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_dropout if distilled else teacher.attention_probs_dropout_prob,
        activation=teacher.activation if distilled else teacher.hidden_act,
        initializer_range=teacher.initializer_range,
        pad_token_id=teacher.pad_token_id,
        tie_word_embeddings=teacher.tie_word_embeddings,
    )


def untrained(teacher: PretrainedConfig, layers: int, seed: int) -> DistilBertForMaskedLM:
    """A student with random weights."""
    torch.manual_seed(seed)
    return DistilBertForMaskedLM(configuration(teacher, layers)).eval()


@torch.no_grad()
def from_teacher(teacher: PreTrainedModel, layers: Sequence[int]) -> DistilBertForMaskedLM:
    """A student that starts as the teacher with only the listed layers (Sanh et al. 2019, section 3).

    Embeddings and masked-LM head are copied. DistilBERT has no token types: the vector that BERT adds to every token
    of a single text, type 0, is folded into the position embeddings, so with all layers the student is the teacher.
    """
    layers = choose_layers(teacher.config.num_hidden_layers, layers)
    student = DistilBertForMaskedLM(configuration(teacher.config, len(layers)))
    given, copied = teacher.state_dict(), {}
    if teacher.config.model_type == "distilbert":
        names = {prefix: prefix for prefix in ("distilbert.embeddings.", "vocab_")}
        names |= {LAYER.format(i): LAYER.format(n) for n, i in enumerate(layers)}
    else:
        names = {"bert.embeddings.": "distilbert.embeddings."} | HEAD_NAMES
        for n, i in enumerate(layers):
            names |= {f"bert.encoder.layer.{i}.{bert}.": LAYER.format(n) + ours for bert, ours in LAYER_NAMES.items()}
        types = given.pop("bert.embeddings.token_type_embeddings.weight")
        positions = "bert.embeddings.position_embeddings.weight"
        given[positions] = given[positions] + types[0]
    for old, new in names.items():
        copied |= {new + key[len(old) :]: value for key, value in given.items() if key.startswith(old)}
    student.load_state_dict(copied)
    return student.eval()


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Distillation loss: the KL divergence of the student's distributions from the teacher's, summed over positions.

    Both logits [positions, vocabulary] are softened by the temperature. Their gradients shrink with its square, so the
    sum is scaled back by it (Hinton et al. 2015). It differs from the paper's cross-entropy by the teacher's entropy
    alone, which no student can change.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum") * temperature**2


def masked_lm_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Masked-LM loss: negative log-likelihood of tokens [positions] under logits [positions, vocabulary], summed."""
    return F.cross_entropy(logits.float(), tokens, reduction="sum")


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Cosine loss: one minus the cosine between last hidden states [positions, width], summed."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def loss_terms(
    student: nn.Module, teacher: nn.Module | None, batch: dict[str, Tensor], positions: str = "all", temperature=2.0
) -> dict[str, Tensor]:
    """Terms of the triple loss on one batch, each summed over its own positions; without a teacher, masked_lm only.

    The vocabulary is predicted only where a term looks: `positions` "all" are all tokens but padding, as in the
    paper, "masked" the masked ones (the authors' option `restrict_ce_to_mask`). `hits`: masked tokens guessed right.
    """
    masked, real = batch["labels"] != encoding.IGNORED, batch["attention_mask"].bool()
    scored = real if teacher is not None and positions == "all" else masked
    hidden, logits = checkpoints.predict(student, batch, scored)
    guesses, tokens = logits[masked[scored]], batch["labels"][masked]
    terms = {"masked_lm": masked_lm_loss(guesses, tokens)}
    terms["hits"] = (guesses.detach().argmax(-1) == tokens).sum()
    if teacher is not None:
        with torch.no_grad():  # inference_mode would forbid its tensors in the student's backward pass
            teacher_hidden, teacher_logits = checkpoints.predict(teacher, batch, scored)
        terms["distillation"] = distillation_loss(logits, teacher_logits, temperature)
        terms["cosine"] = cosine_loss(hidden[real], teacher_hidden[real])
    return terms


def token_counts(batches: Sequence[dict[str, Tensor]], positions: str = "all") -> dict[str, int]:
    """Numbers of positions that each term of the loss is summed over in these batches."""
    masked = sum(int((batch["labels"] != encoding.IGNORED).sum()) for batch in batches)
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    scored = real if positions == "all" else masked
    return {"masked_lm": masked, "hits": masked, "distillation": scored, "cosine": real}


HELDOUT = {  # what each term is called where it is measured on held-out text
    "masked_lm": "masked_lm_loss",
    "distillation": "kl_to_teacher",
    "cosine": "cosine_loss",
    "hits": "masked_token_accuracy",
}


@torch.no_grad()
def heldout_losses(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    blocks: encoding.MaskedBlocks,
    recipe: Distillation,
    pad_id: int,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Losses on held-out text, each the mean over its own positions, in fp32 with dropout off.

    Distillation is at temperature 1 here: plain KL to the teacher, in nats a token. `batch_size`: if not the recipe's.
    """
    training, on = student.training, student.device
    student.eval()
    sums, counts = Counter(), Counter()
    for batch in DataLoader(blocks, batch_size or recipe.training.batch_size, collate_fn=encoding.Padding(pad_id)):
        moved = {name: values.to(on) for name, values in batch.items()}
        terms = loss_terms(student, teacher, moved, recipe.positions, temperature=1.0)
        sums.update({name: value.item() for name, value in terms.items()})
        counts.update(token_counts([batch], recipe.positions))
    student.train(training)
    return {HELDOUT[name]: total / max(counts[name], 1) for name, total in sums.items()}


class DistillationTrainer(InParts):
    """Minimises the weighted sum of the three terms; without a teacher, the masked-LM loss alone.

    Each term is averaged over its own tokens of the whole accumulation window, of all processes that train together, so
    how a step's blocks are split into batches, and these among processes, changes no gradient.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        recipe: Distillation,
        stage: Training,
        blocks: encoding.MaskedBlocks,
        heldout: encoding.MaskedBlocks,
        reference: PreTrainedModel | None,
        pad_id: int,
        folder: Path,
        precision: str,
    ):
        """`teacher` is learnt from, `reference` is compared with on held-out text."""
        self.teacher, self.reference, self.heldout = teacher, reference, heldout
        self.recipe, self.stage, self.pad_id = recipe, stage, pad_id
        self.weights = {name: getattr(recipe, f"weight_{name}") for name in ("distillation", "masked_lm", "cosine")}
        self.positions = recipe.positions if recipe.weight_distillation else "masked"  # no logits for a term unused
        if teacher is None:
            self.weights = {"masked_lm": 1.0}
        elif student.config.hidden_size != teacher.config.hidden_size:
            sizes = f"the student is {student.config.hidden_size} wide, the teacher {teacher.config.hidden_size}"
            raise InputError(f"{sizes}: the cosine loss needs equal widths, so build the student from this teacher")
        elif student.config.vocab_size != teacher.config.vocab_size:
            sizes = f"{student.config.vocab_size} words against the teacher's {teacher.config.vocab_size}"
            raise InputError(f"the student predicts {sizes}: the distillation loss needs one vocabulary")
        if stage.batch_size % PROCESSES:
            raise InputError(f"batches of {stage.batch_size} for {PROCESSES} processes: expected a multiple of these")
        super().__init__(
            *(student, folder, precision, blocks.masking.seed, stage.steps, blocks, heldout),
            save_minutes=stage.save_minutes,
            per_device_train_batch_size=stage.batch_size // PROCESSES,
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
        # Tells Trainer that the loss comes averaged over the accumulation window: it must not divide it once more.
        self.compute_loss_func = self.compute_loss
        if torch.distributed.is_initialized():  # who shares gradients with others is asked by its `forward` alone
            student.forward = functools.partial(checkpoints.predict, student)

    def train(self, *given, **named):
        """Trainer's, with nothing left of a run that was broken off."""
        self.sums, self.started, self.logged = Counter(), None, None  # summed since the last log; its start and step
        return super().train(*given, **named)

    def get_train_dataloader(self) -> DataLoader:
        """The blocks in their own order, which a resumed run meets again."""
        loader = DataLoader(self.train_dataset, self.args.train_batch_size, collate_fn=encoding.Padding(self.pad_id))
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, and the counts that this window's terms are averaged over."""
        if self.started is None:
            self.started = time.perf_counter()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.counts = self._all(token_counts(batches, self.positions))
        return batches, items

    def _all(self, own: dict[str, float]) -> dict[str, float]:
        """Of numbers that each process has, the sums over all of them."""
        if PROCESSES == 1:
            return own
        numbers = torch.tensor(list(own.values()), dtype=torch.float64, device=self.args.device)
        return dict(zip(own, self.accelerator.reduce(numbers, "sum").tolist(), strict=True))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the terms, averaged over the window."""
        with self.accelerator.autocast():
            terms = loss_terms(model, self.teacher, inputs, self.positions, self.recipe.temperature)
        means = {name: terms[name] / max(self.counts[name], 1) for name in self.weights}
        loss = sum(self.weights[name] * mean for name, mean in means.items())
        seen = {"loss": loss} | means | {"tokens": inputs["attention_mask"].sum()}
        self.sums.update({name: value.detach() for name, value in seen.items()})
        return loss * PROCESSES  # whose gradients are averaged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with each term, tokens and seconds since the last line."""
        if "loss" in logs:
            steps = self.args.logging_steps if self.logged is None else self.state.global_step - self.logged
            self.logged = self.state.global_step
            sums, self.sums = self._all({name: value.item() for name, value in self.sums.items()}), Counter()
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
