"""What all trainers of the series share: their plain arguments, progress, checkpoints by the clock, and resuming."""

import json
import math
import shutil
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from . import InputError, sweep


def arguments(folder: Path, device: torch.device, precision: str, seed: int, steps: int) -> dict:
    """The `TrainingArguments` that are the same in every training of the series."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "seed": seed,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device.type == "cpu",
        "logging_steps": max(1, steps // 40),
        "logging_nan_inf_filter": False,  # seen by Watch
        "save_strategy": "no",  # saved by the clock, see Watch
        "save_total_limit": 2,
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
    }


class Watch(TrainerCallback):
    """Stops a training whose loss is no longer a number, and asks for a checkpoint every few minutes."""

    def __init__(self, save_minutes: float):
        self.save_minutes, self.saved = save_minutes, time.monotonic()

    def on_log(self, args, state, control, logs=None, **_):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            where = f"the loss became {loss} by step {state.global_step}"
            raise InputError(f"{where}: lower learning_rate ({args.learning_rate}) or clip, or use fp32")
        if "loss" in (logs or {}) and time.monotonic() - self.saved > 60 * self.save_minutes:
            self.saved, control.should_save = time.monotonic(), True


class Report(TrainerCallback):
    """Tells the sweep's progress bar where a training is."""

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in (logs or {}):
            sweep.report(f"step {state.global_step} of {state.max_steps}, loss {logs['loss']:.3f}")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; Trainer writes trainer_state.json last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None
