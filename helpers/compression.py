"""The experiments of notebook 06: the quantized variants of fine-tuned models, and of the pretrained student."""

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import InputError, calibration, data, edge, machine, models, quantization, records, runners, speed
from .distillation import heldout_losses
from .pretraining import TEACHER, Pretraining
from .profiles import Profile, as_settings
from .variants import BASE, VERSION, Variants, packages

LABELS = {**quantization.LABELS, **edge.LABELS, **calibration.LABELS}


def why_not(variant: str) -> str | None:
    """Why a quantized variant cannot be had on the processor here, or would only be emulated; None if it can."""
    if variant in quantization.DTYPES and variant not in machine.processor_precisions():
        return f"this processor has no instructions for {variant}: it would unpack each number, and gain nothing"
    if variant in quantization.LABELS:
        return quantization.why_not(variant)
    return edge.why_not() or (calibration.why_not() if variant in calibration.LABELS else None)


class Compression(Variants):
    """The models in 16, 8 and 4 bits, by every library that has them."""

    experiment = "quantization"

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """With `fresh`, variants that are there already are made again.

        Raises:
            InputError: a variant that doesn't exist.
        """
        super().__init__(profile, space, fresh)
        wanted = self.own.variants or list(LABELS)
        for name in [*wanted, *(self.own.isolated or [])]:
            if name not in LABELS:
                raise InputError(f"unknown variant {name!r}: expected some of {', '.join(LABELS)}")
        self.variants = list(dict.fromkeys([BASE, *wanted]))

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def why_not(self, variant: str, device: str = "cpu") -> str | None:
        if device == "cpu":
            return why_not(variant)
        if variant in quantization.DTYPES:
            real = machine.hardware_precisions(self.profile)
            return None if variant in real else f"this GPU has no {variant} in hardware"
        if variant.startswith("bnb"):
            return quantization.why_no_bits(torch.device(device), 8 if variant == "bnb_int8" else 4)
        return "for processors"

    def label(self, variant: str) -> str:
        return LABELS[variant]

    def made_of(self, unit: dict) -> dict:
        made = super().made_of(unit)
        return made | ({"calibration_rows": calibration.ROWS} if unit["variant"] in calibration.LABELS else {})

    def make(self, unit: dict, folder: Path) -> None:
        source, variant = self.source(unit["task"], unit["model"]), unit["variant"]
        if variant in quantization.LABELS:
            quantization.save(variant, source, folder)
        elif variant == "onnx_fp32":
            edge.export(quantization.load(source, torch.device("cpu")), source, folder)
        elif variant in edge.LABELS:
            edge.quantize(self.folder(unit | {"variant": "onnx_fp32"}), folder, "embeddings" in variant)
        else:
            examples, _ = self.glue.train_examples(unit)
            drawn = np.random.default_rng(0).permutation(len(examples))[: calibration.ROWS]
            rows = [examples[row] for row in drawn]
            calibration.quantize(self.folder(unit | {"variant": "onnx_fp32"}), folder, rows)


class Exported(nn.Module):
    """An exported masked language model as `models.predict` asks one: inputs, chosen → hidden states, logits."""

    device = torch.device("cpu")

    def __init__(self, folder: Path, threads: int):
        """`folder`: a model for ONNX Runtime or OpenVINO that gives its hidden states, too."""
        super().__init__()
        self.run = runners.load(folder, threads)

    def forward(self, inputs: dict[str, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states [batch, length, width], and the chosen tokens' logits [tokens, vocabulary]."""
        given = {name: values.numpy() for name, values in inputs.items()}
        given["token_type_ids"] = np.zeros_like(given["input_ids"])
        logits, hidden = map(torch.from_numpy, self.run.answer(given))
        return hidden, logits[chosen]


class Remembered(nn.Module):
    """A teacher that is asked about the same blocks for each variant; its hidden states are kept, as `models.predict`
    wants them: inputs, chosen → hidden states, logits."""

    def __init__(self, teacher: PreTrainedModel):
        super().__init__()
        self.teacher, self.known = teacher, {}

    def forward(self, inputs: dict[str, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
        key = inputs["input_ids"].numpy().tobytes()
        if key not in self.known:
            self.known[key] = models.encode(self.teacher, **inputs)
        return self.known[key], models.vocabulary_logits(self.teacher, self.known[key][chosen])


class Losses:
    """Units {"model", "variant"}: the three terms of the triple loss, of the pretrained student in every variant.

    On held-out text as in notebook 01, block by block: inputs that are quantized together share one scale.
    """

    experiment = "quantization"

    def __init__(self, profile: Profile, space: records.Workspace):
        self.profile, self.space = profile, space
        self.pretraining = Pretraining(profile, space)
        self.unit = {"model": "student", "seed": profile.distillation.seeds[0]}

    @property
    def variants(self) -> list[str]:
        """Those that can be had here."""
        wanted = dict.fromkeys([BASE, *(self.profile.quantization.variants or LABELS)])
        return [name for name in wanted if not why_not(name)]

    def make(self, variant: str, folder: Path) -> None:
        """Make the variant of the pretrained student."""
        if variant in quantization.LABELS:
            quantization.save(variant, self.pretraining.checkpoint(self.unit), folder)
        elif variant in calibration.LABELS:
            texts = [block["input_ids"] for block in self.masked_blocks(calibration.ROWS)]
            alike = [{"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)} for ids in texts]
            given = [{"input_ids": ids} | rest for ids, rest in zip(texts, alike, strict=True)]
            calibration.quantize(self.exported, folder, given)
        elif variant == "onnx_fp32":
            shutil.copytree(self.exported, folder)
        else:
            edge.quantize(self.exported, folder, "embeddings" in variant)

    @property
    def exported(self) -> Path:
        """Where the pretrained student is in ONNX, with its hidden states as a second output; made if it isn't there.

        Notebook 07 takes the one of 06.
        """
        made = {"model": self.pretraining.weights(self.unit), "opset": edge.OPSET, "packages": packages("onnx_fp32")}
        folder = self.space.checkpoints / f"exported-{records.slug(self.unit)}-{records.digest(made)}"
        if not folder.is_dir():
            source = self.pretraining.checkpoint(self.unit)
            edge.export(quantization.load(source, torch.device("cpu")), source, folder, hidden=True)
        return folder

    @functools.cached_property
    def teacher(self) -> Remembered:
        return Remembered(self.pretraining.teacher.to("cpu"))

    def masked_blocks(self, count: int) -> list[dict]:
        """So many masked blocks of the training text, drawn once for all."""
        tokenizer, text = self.pretraining.tokenizer, self.pretraining.text.blocks
        masked = data.MaskedBlocks(text, data.Masking(tokenizer, self.profile.distillation.mask_rate))
        return [masked[block] for block in np.random.default_rng(0).permutation(len(text))[:count]]

    @property
    def count(self) -> int:
        """How many blocks are measured on, at most."""
        asked, there = self.profile.quantization.blocks, self.profile.corpus.heldout_blocks
        return min(asked, there or asked)

    @property
    def ready(self) -> list[dict]:
        """The units that can be had here; none before notebook 01 has made the student."""
        try:
            self.pretraining.weights(self.unit)
        except InputError:
            return []
        return [{"model": "student", "variant": name} for name in self.variants]

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        made = {"version": VERSION, "model": self.pretraining.weights(self.unit)}
        made |= {"packages": packages(unit["variant"]), "flags": machine.telling_flags(), "device": "cpu"}
        made |= {"head": "int8"} if unit["variant"].startswith("onnx_int8") else {}  # not so in records of before
        corpus, recipe = as_settings(self.profile.corpus), as_settings(self.profile.distillation)
        recipe = {name: recipe[name] for name in ("positions", "mask_rate")}
        recipe["blocks"] = self.profile.quantization.blocks
        return made | {"teacher": self.pretraining.weights(TEACHER), "corpus": corpus, "recipe": recipe}

    def measure(self, unit: dict) -> records.Measurement:
        """The losses against the teacher, and the variant's size."""
        plain, _ = self.pretraining.trained(self.unit)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "variant"
            self.make(unit["variant"], folder)
            if runners.runtime(folder) == "torch":
                model = quantization.load(folder, torch.device("cpu"))
            else:
                model = Exported(folder, torch.get_num_threads())
            size = speed.size_mb(folder)
        corpus, text = self.profile.corpus, self.pretraining.text
        blocks = text.heldout(corpus.heldout, self.count)
        sides = model, self.teacher, blocks, self.profile.distillation
        scores = heldout_losses(*sides, self.pretraining.tokenizer.pad_token_id, batch_size=1) | {"size_mb": size}
        return records.Measurement(scores, text.sources, self.pretraining.sources(self.unit, plain), {})
