"""What all trainers of the series share: plain arguments, progress, checkpoints by the clock, batches in parts."""

import contextlib
import gc
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer

from .. import InputError
from ..measure import sweep
from . import checkpoints

# How many processes train together, started by `accelerate launch`, and whether this is the one that writes.
PROCESSES, LEADS = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0


def together() -> None:
    """Wait until all processes are here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


class InParts(Trainer):
    """Trainer whose batches go through in `parts` pieces, which add up to the gradient of the whole batch.

    A subclass' `compute_loss` weighs its loss by `share`, a piece's share of its batch, unless it is a sum anyway.
    """

    parts, share = 1, 1.0

    def __init__(
        self, model: PreTrainedModel, folder: Path, precision: str, seed: int, steps: int, *data, save_minutes=5, **own
    ):
        """`data`: to train on and, perhaps, held out; `own`: the `TrainingArguments` that not all trainings share."""
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            seed=seed,
            lr_scheduler_type="linear",
            optim="adamw_torch_fused",
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=model.device.type == "cpu",
            logging_steps=max(1, steps // 40),
            logging_nan_inf_filter=False,  # seen by Watch
            save_strategy="no",  # saved by the clock, see Watch
            save_total_limit=2,
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=model.device.type == "cuda",
            **own,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel would call `forward`, which not every loss does
        super().__init__(model, arguments, None, *data, callbacks=[Watch(save_minutes)])
        self.remove_callback(PrinterCallback)

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch=None) -> Tensor:
        """Trainer's, piece by piece; the loss of the whole batch."""
        rows = len(inputs["input_ids"])
        size = -(-rows // self.parts)
        losses = []
        for start in range(0, rows, size):
            piece = {name: values[start : start + size] for name, values in inputs.items()}
            self.share = len(piece["input_ids"]) / rows
            losses.append(super().training_step(model, piece, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Not counted: Trainer would go through all weights at each step, for a number that nobody reads."""
        return 0


def run(trainer: InParts) -> Path | None:
    """Train to the end, from the last whole checkpoint if a run was cut off; which one that was.

    Where a GPU's memory runs out, it goes on with batches in twice as many parts, from that checkpoint or the start:
    the same batches, more slowly. `trainer.parts` tells how many there were. InputError if single rows are too much.
    """
    start = {name: values.to("cpu", copy=True) for name, values in trainer.model.state_dict().items()}
    while True:
        last = last_checkpoint(Path(trainer.args.output_dir))
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            return last
        except torch.cuda.OutOfMemoryError as error:
            said = str(error).partition(". ")[0]  # without the allocator's advice
        if PROCESSES > 1 or trainer.parts >= trainer.args.train_batch_size:
            advice = "take smaller batches" if PROCESSES > 1 else "with one row at a time: free the GPU's memory"
            raise InputError(f"{said}, {advice}")
        trainer.parts *= 2
        sweep.report(f"out of memory: batches go through in {trainer.parts} parts")
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.model.zero_grad(set_to_none=True)
        trainer.model.load_state_dict(start)
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def unfinished(folder: Path, fresh: bool) -> Iterator[Path]:
    """Where a training that is to end in the checkpoint `folder` saves its way, to be resumed: gone when that is there.

    With `fresh`, it is not resumed.
    """
    place = folder.with_name(f"{folder.name}.training")
    if fresh and LEADS:
        shutil.rmtree(place, ignore_errors=True)
    together()
    yield place
    if LEADS:
        shutil.rmtree(place, ignore_errors=True)


class Watch(TrainerCallback):
    """Tells the progress bar where a training is, stops one whose loss is no longer a number, and has it saved."""

    def __init__(self, save_minutes: float):
        self.save_minutes, self.saved = save_minutes, time.monotonic()

    def on_log(self, args, state, control, logs=None, **_):
        if (loss := (logs or {}).get("loss")) is None:
            return
        if not math.isfinite(loss):
            where = f"the loss became {loss} by step {state.global_step}"
            raise InputError(f"{where}: lower learning_rate ({args.learning_rate}) or clip, or use fp32")
        sweep.report(f"step {state.global_step} of {state.max_steps}, loss {loss:.3f}")
        late = broadcast_object_list([time.monotonic() - self.saved > 60 * self.save_minutes])  # by one clock for all
        if late[0]:
            self.saved, control.should_save = time.monotonic(), True


class Keep(TrainerCallback):
    """Keeps the model as it is after some steps: `folders` by step, each saved once."""

    def __init__(self, folders: dict[int, Path], tokenizer: Tokenizer):
        self.folders, self.tokenizer = folders, tokenizer

    def on_step_end(self, args, state, control, model=None, **_):
        if LEADS and (folder := self.folders.get(state.global_step)) and not folder.is_dir():
            checkpoints.save(model, self.tokenizer, folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; Trainer writes trainer_state.json last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            for file in path.glob("*.safetensors"):
                safetensors.safe_open(file, "pt")
            if not any(zipfile.ZipFile(file).testzip() for file in path.glob("*.pt*")):  # each part's checksum
                return path
        except (OSError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError):
            pass
        if LEADS:
            shutil.rmtree(path)  # cut off, or damaged: the one before it will do
    return None
