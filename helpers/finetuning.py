"""Fine-tuning for classification, regression and question answering, with or without a teacher."""

import gc
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
)

from . import InputError, data, quantization, training
from .distillation import distillation_loss
from .profiles import Recipe
from .training import InParts, Report, Watch, arguments

GUIDES = ("teacher_logits", "teacher_start", "teacher_end")  # what a teacher said of an example
SAVE_MINUTES = 5.0


def encode_texts(
    dataset: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[dict]:
    """One example a row: input_ids, attention_mask and token_type_ids [tokens], and the row's label.

    `columns` are the one or two texts of a row; what goes beyond `length` tokens is cut off, the longer text first.
    """
    texts = [list(dataset[column]) for column in columns]
    encoded = tokenizer(*texts, truncation=True, max_length=length, return_token_type_ids=True)
    labels = np.asarray(dataset["label"])
    labels = labels.astype(np.float32) if np.issubdtype(labels.dtype, np.floating) else labels.astype(np.int64)
    return [
        {name: np.asarray(values[row]) for name, values in encoded.items()} | {"labels": labels[row]}
        for row in range(len(dataset))
    ]


def batches(lengths: Sequence[int], size: int, epochs: int, seed: int, grouped: bool = True) -> list[list[int]]:
    """The rows of every batch, epoch after epoch; `grouped`: rows of about equal length go together.

    Each epoch is shuffled, cut into runs of fifty batches that are sorted by length within, and its batches shuffled
    again. (Trainer's own grouping leaves them sorted: a small data set then runs from long to short in every epoch.)
    All of it is drawn from the seed alone, so a resumed run meets the same batches.
    """
    drawn = []
    for epoch in range(epochs):
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        if grouped:
            pools = [order[start : start + 50 * size] for start in range(0, len(order), 50 * size)]
            order = np.concatenate([sorted(pool, key=lambda row: lengths[row]) for pool in pools])
        cut = [order[start : start + size].tolist() for start in range(0, len(order), size)]
        drawn += [cut[place] for place in random.permutation(len(cut))]
    return drawn


def accepted(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch the model takes: a DistilBERT has no token types, and would swallow them in silence."""
    unwanted = {*GUIDES} | ({"token_type_ids"} if model.config.model_type == "distilbert" else set())
    return {name: values.to(model.device) for name, values in batch.items() if name not in unwanted}


def guided_loss(outputs, batch: dict[str, Tensor], temperature: float) -> Tensor:
    """How far the outputs are from what a fine-tuned teacher said: the mean over the batch.

    The distillation loss at the temperature for classes, and for the first and last token of an answer (the mean of
    the two); the squared error for a score. Source: the DistilBERT authors' run_squad_w_distillation.py.
    """
    if "teacher_start" in batch:
        pairs = [(outputs.start_logits, batch["teacher_start"]), (outputs.end_logits, batch["teacher_end"])]
        real = batch["attention_mask"].bool()
        pairs = [(own.masked_fill(~real, data.UNLIKELY), teachers) for own, teachers in pairs]
    else:
        pairs = [(outputs.logits, batch["teacher_logits"])]
        if outputs.logits.shape[-1] == 1:
            return F.mse_loss(outputs.logits.float(), batch["teacher_logits"].float())
    return sum(distillation_loss(*pair, temperature) / len(pair[0]) for pair in pairs) / len(pairs)


class FineTuner(InParts):
    """Trainer on ready-made batches; where the examples carry a teacher's logits, half of the loss comes from them."""

    def __init__(
        self,
        model: PreTrainedModel,
        examples: list[dict],
        recipe: Recipe,
        seed: int,
        folder: Path,
        precision: str,
        pad_id: int,
        temperature: float = 2.0,
        pad_to: int | None = None,
    ):
        """`pad_to`: pad every example to this length and group nothing, as much code does that one finds.

        Raises:
            InputError: the model is quantized.
        """
        if quantization.is_quantized(model):
            raise InputError(f"this {type(model).__name__} is quantized: fine-tune the one that it was made from")
        self.rows = batches([len(e["input_ids"]) for e in examples], recipe.batch_size, recipe.epochs, seed, not pad_to)
        self.padding, self.temperature = data.Padding(pad_id, pad_to), temperature
        args = TrainingArguments(
            **arguments(folder, model.device, precision, seed, len(self.rows)),
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            warmup_steps=round(recipe.warmup * len(self.rows)),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.clip,
            remove_unused_columns=False,
        )
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(model, args, train_dataset=examples, callbacks=[Watch(SAVE_MINUTES), Report()])
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        """The batches in their own order."""
        loader = DataLoader(self.train_dataset, batch_sampler=self.rows, collate_fn=self.padding)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The task's own loss, or half of it and half of the guided one."""
        outputs = model(**accepted(self.model, inputs))
        loss = outputs.loss
        if any(name in inputs for name in GUIDES):
            loss = 0.5 * loss + 0.5 * guided_loss(outputs, inputs, self.temperature)
        return (self.share * loss, outputs) if return_outputs else self.share * loss


def fine_tune(trainer: FineTuner) -> dict[str, float]:
    """Train to the end, from the last whole checkpoint if a run was cut off; what it cost.

    Returns:
        training_minutes, examples_per_s and tokens_per_s (padding not counted) of what was trained now; and
        batch_parts, in how many parts the batches went through, if memory was too short for whole ones.
    """
    start = time.perf_counter()
    gc.freeze()  # Trainer collects garbage when it starts: a quarter of a second, with all that is loaded here
    last = training.run(trainer)
    gc.unfreeze()
    seconds = time.perf_counter() - start
    done = int(last.name.split("-")[1]) if last else 0
    rows = [row for batch in trainer.rows[done:] for row in batch]
    tokens = sum(len(trainer.train_dataset[row]["input_ids"]) for row in rows)
    trainer.model.eval()
    return {
        "training_minutes": seconds / 60,
        "examples_per_s": len(rows) / seconds,
        "tokens_per_s": tokens / seconds,
    } | ({"batch_parts": float(trainer.parts)} if trainer.parts > 1 else {})


def predict(
    model: PreTrainedModel, examples: Sequence[dict], batch_size: int, pad_id: int
) -> list[dict[str, np.ndarray]]:
    """The model's logits for each example, in the examples' order, in fp32 with dropout off.

    {"logits": [classes]}, or {"start_logits": [tokens], "end_logits": [tokens]}. Examples of like length are put
    together, the longest first, so that what doesn't fit into memory shows at once: then batches get smaller.
    """
    while True:
        try:
            return _predict(model, examples, batch_size, pad_id)
        except torch.cuda.OutOfMemoryError as error:
            if batch_size == 1:
                raise InputError(f"{training.in_short(error)}, with one row at a time: free the GPU's memory") from None
        batch_size //= 2


@torch.inference_mode()
def _predict(
    model: PreTrainedModel, examples: Sequence[dict], batch_size: int, pad_id: int
) -> list[dict[str, np.ndarray]]:
    model.eval()
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row]["input_ids"]))
    padding, found = data.Padding(pad_id), [None] * len(examples)
    given = ("input_ids", "attention_mask", "token_type_ids")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = padding([{name: examples[row][name] for name in given} for row in rows])
        outputs = model(**accepted(model, batch))
        for name in ("logits", "start_logits", "end_logits"):
            for row, values in zip(rows, outputs.get(name, ()), strict=False):
                size = None if name == "logits" else len(examples[row]["input_ids"])
                found[row] = (found[row] or {}) | {name: values[:size].float().cpu().numpy()}
    return found


def guided(teacher: PreTrainedModel, examples: Sequence[dict], batch_size: int, pad_id: int) -> list[dict]:
    """The examples with the logits of a fine-tuned teacher, who sees their token types, for a student to learn from.

    They are asked for once: without dropout the teacher says the same in every epoch.
    """
    names = {"logits": "teacher_logits", "start_logits": "teacher_start", "end_logits": "teacher_end"}
    said = predict(teacher, examples, batch_size, pad_id)
    return [
        example | {names[name]: values for name, values in logits.items()}
        for example, logits in zip(examples, said, strict=True)
    ]
