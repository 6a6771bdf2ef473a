"""Fine-tuning for classification, regression and question answering, with or without a teacher."""

import gc
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .. import InputError
from ..data import encoding
from ..measure import metrics
from ..profiles import Recipe
from . import checkpoints, training
from .distillation import distillation_loss
from .training import InParts

# What a teacher said of an example, by what it is called when a model says it.
GUIDES = {"logits": "teacher_logits", "start_logits": "teacher_start", "end_logits": "teacher_end"}


def accepted(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch the model takes: a DistilBERT has no token types (it would swallow them), some only one."""
    one_type = getattr(model.config, "type_vocab_size", 0) < 2
    unwanted = {*GUIDES.values()} | ({"token_type_ids"} if one_type else set())
    return {name: values.to(model.device) for name, values in batch.items() if name not in unwanted}


def guided_loss(outputs, batch: dict[str, Tensor], temperature: float) -> Tensor:
    """How far the outputs are from what a fine-tuned teacher said: the mean over the batch.

    The distillation loss at the temperature for classes, and for the first and last token of an answer (the mean of
    the two); the squared error for a score. Source: the DistilBERT authors' run_squad_w_distillation.py.
    """
    if "teacher_start" in batch:
        pairs = [(outputs.start_logits, batch["teacher_start"]), (outputs.end_logits, batch["teacher_end"])]
        real = batch["attention_mask"].bool()
        pairs = [(own.masked_fill(~real, encoding.UNLIKELY), teachers) for own, teachers in pairs]
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

        InputError if the model is quantized, or a label is none of its own.
        """
        if getattr(model, "hf_quantizer", None) or checkpoints.quantized_layers(model):
            raise InputError(f"this {type(model).__name__} is quantized: fine-tune the one that it was made from")
        labels = [example["labels"] for example in examples if "labels" in example]
        metrics.check_labels("to learn from", labels, model.config.num_labels)
        lengths = [len(example["input_ids"]) for example in examples]
        self.rows = encoding.batches(lengths, recipe.batch_size, recipe.epochs, seed, grouped=not pad_to)
        self.padding, self.temperature = encoding.Padding(pad_id, pad_to), temperature
        super().__init__(
            *(model, folder, precision, seed, len(self.rows), examples),
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            warmup_steps=round(recipe.warmup * len(self.rows)),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.clip,
        )

    def get_train_dataloader(self) -> DataLoader:
        """The batches in their own order."""
        loader = DataLoader(self.train_dataset, batch_sampler=self.rows, collate_fn=self.padding)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The task's own loss, or half of it and half of the guided one."""
        outputs = model(**accepted(self.model, inputs))
        loss = outputs.loss
        if any(name in inputs for name in GUIDES.values()):
            loss = 0.5 * loss + 0.5 * guided_loss(outputs, inputs, self.temperature)
        return (self.share * loss, outputs) if return_outputs else self.share * loss


def fine_tune(trainer: FineTuner) -> dict[str, float]:
    """Train to the end, from the last whole checkpoint if a run was cut off; what it cost.

    That is training_minutes, examples_per_s and tokens_per_s (padding not counted) of what was trained now; and
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
    cost = {"training_minutes": seconds / 60, "examples_per_s": len(rows) / seconds, "tokens_per_s": tokens / seconds}
    trainer.model.eval()
    return cost | ({"batch_parts": float(trainer.parts)} if trainer.parts > 1 else {})


@torch.inference_mode()
def predict(model: PreTrainedModel, examples: list[dict], batch_size: int, pad_id: int) -> list[dict[str, np.ndarray]]:
    """The model's logits for each example, in the examples' order, in fp32 with dropout off.

    {"logits": [classes]}, or {"start_logits": [tokens], "end_logits": [tokens]}. Examples of like length are put
    together, the longest first, so that what doesn't fit into memory shows at once: then batches get smaller.
    InputError if one row at a time is still too much.
    """
    model.eval()
    left = sorted(range(len(examples)), key=lambda row: -len(examples[row]["input_ids"]))
    padding, found = encoding.Padding(pad_id), [{} for _ in examples]
    given = ("input_ids", "attention_mask", "token_type_ids")
    while left:
        rows = left[:batch_size]
        batch = padding([{name: examples[row][name] for name in given} for row in rows])
        try:
            outputs = model(**accepted(model, batch))
        except torch.cuda.OutOfMemoryError as error:
            if batch_size == 1:
                said = str(error).partition(". ")[0]  # without the allocator's advice
                raise InputError(f"{said}, with one row at a time: free the GPU's memory") from None
            batch_size //= 2
            continue
        for name in GUIDES:
            for row, values in zip(rows, outputs.get(name, ()), strict=False):
                size = None if name == "logits" else len(examples[row]["input_ids"])
                found[row][name] = values[:size].float().cpu().numpy()
        left = left[batch_size:]
    return found


def guided(teacher: PreTrainedModel, examples: list[dict], batch_size: int, pad_id: int) -> list[dict]:
    """The examples with the logits of a fine-tuned teacher, who sees their token types, for a student to learn from.

    They are asked for once: without dropout the teacher says the same in every epoch.
    """
    said = predict(teacher, examples, batch_size, pad_id)
    given = [{GUIDES[name]: values for name, values in logits.items()} for logits in said]
    return [example | own for example, own in zip(examples, given, strict=True)]
