"""The experiment of notebook 08: a large model against a small one in size, time and memory, whatever they know."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from . import InputError, data, finetuning, machine, models, records, runners, speed, students
from .pretraining import Pretraining
from .profiles import Profile

VERSION = 1  # raised whenever the code changes the numbers it makes
SIDES = ("large", "small")
NAMES = {"full": ("BERT-base", "DistilBERT"), "own": ("teacher", "student")}
PRODUCT = 1024  # rows and columns of the plain matrix product that models are held against


class Pace:
    """Two models with random weights, always timed in turn.

    The pair `full` is BERT-base and DistilBERT, built from their configurations; `own` has the shapes of the profile's
    teacher and student. Units of a pair: {"threads", "batch", "length", "run"}, a latency; {"threads", "text"}, a pass
    over real rows, one by one; {"depth"}, the large model with fewer layers at this length; {"side"}, a model alone.
    """

    experiment = "speed"

    def __init__(self, profile: Profile, space: records.Workspace):
        """
        Raises:
            InputError: more threads than there are cores.
        """
        self.profile, self.space, self.own = profile, space, profile.speed
        self.pretraining = Pretraining(profile, space)
        if max(self.own.threads) > machine.usable_cores():
            wanted = f"speed.threads has {max(self.own.threads)}"
            raise InputError(f"{wanted}, more than this machine's {machine.usable_cores()} cores: lower it")

    @property
    def ready(self) -> list[dict]:
        """Every unit."""
        own, found = self.own, []
        for pair in self.pairs:
            for threads in own.threads:
                here = {"pair": pair, "threads": threads}
                one = [{"batch": 1, "length": length, "run": run} for run in range(own.runs) for length in own.lengths]
                many = [{"batch": batch, "length": own.length, "run": 0} for batch in own.batches if batch > 1]
                found += [here | more for more in (*one, *many, {"text": "stsb"})]
            found += [{"pair": pair, "depth": length} for length in own.depth_lengths]
            found += [{"pair": pair, "side": side} for side in SIDES]
        return found

    @property
    def pairs(self) -> list[str]:
        """The pairs of models that the profile compares."""
        return ["full", "own"] if self.own.full_size else ["own"]

    @property
    def unmeasured(self) -> list[dict]:
        """The units that have no record with the present settings."""
        return [unit for unit in self.ready if not self.space.find(self.experiment, unit, self.settings(unit))]

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        packages = {name: records.versions().get(name) for name in ("torch", "transformers", "tokenizers")}
        shapes = [config.to_diff_dict() for config in self.configurations(unit["pair"])]
        settings = {"version": VERSION, "packages": packages, "shapes": [_shape(shape) for shape in shapes]}
        settings |= {"cpu": records.cpu()["model"], "rules": speed.rules(self.profile.name)._asdict()}
        settings["threads"] = unit.get("threads", 1)
        if "text" in unit:
            settings["rows"] = self.own.rows
        return settings | ({"repeats": self.own.repeats} if "side" in unit else {})

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def configurations(self, pair: str) -> tuple[PretrainedConfig, PretrainedConfig]:
        """Of the large and of the small model, each with one score as its answer."""
        if pair == "full":
            found = BertConfig(), DistilBertConfig()
        else:
            teacher = self.pretraining.teacher_config
            found = teacher, students.configuration(teacher, len(self.pretraining.layers))
        for config in found:
            config.num_labels = 1
        return found

    @functools.cache  # noqa: B019
    def models(self, pair: str) -> dict[str, PreTrainedModel]:
        """The large and the small model."""
        return {side: _build(config) for side, config in zip(SIDES, self.configurations(pair), strict=True)}

    def measure(self, unit: dict) -> records.Measurement:
        """Measure one unit; raw seconds are in the details."""
        act = {"length": self._latency, "text": self._pass, "depth": self._depth, "side": self._alone}
        measure = next(act[key] for key in act if key in unit)
        with runners.threads_kept():
            torch.set_num_threads(unit.get("threads", 1))
            scores, sources, details = measure(unit)
        named = zip(NAMES[unit["pair"]], self.configurations(unit["pair"]), strict=True)
        built = [
            {"id": f"{name}'s shape", "revision": None, "weights": "random"} | _shape(c.to_dict()) for name, c in named
        ]
        scores = {name: float(value) for name, value in scores.items()}
        return records.Measurement(scores, sources, built, details)

    def _latency(self, unit: dict) -> tuple[dict, list, dict]:
        given = torch.randint(1000, (unit["batch"], unit["length"]), generator=torch.Generator().manual_seed(0))
        sides = self.models(unit["pair"])
        runs: dict[str, Callable] = {side: _asking(model, given) for side, model in sides.items()}
        matrix = torch.randn(PRODUCT, PRODUCT, generator=torch.Generator().manual_seed(0))
        taken = speed.seconds(runs | {"product": lambda: matrix @ matrix}, speed.rules(self.profile.name))
        scores = {"product_gflops": 2e-9 * PRODUCT**3 / np.median(taken["product"])}
        for side, model in sides.items():
            found = speed.latencies(taken[side])
            seconds = found["latency_p50_ms"] / 1e3
            found["gflops"] = flops(model.config, *given.shape) / 1e9 / seconds
            found |= {"samples_per_s": len(given) / seconds, "tokens_per_s": given.numel() / seconds}
            scores |= {f"{side}_{name}": value for name, value in found.items()}
        return scores | _times(taken), [], {"seconds": _rounded(taken)}

    def _pass(self, unit: dict) -> tuple[dict, list, dict]:
        dataset, source = data.sample(self.profile, "nyu-mll/glue", "stsb", "validation", self.own.rows)
        rows = finetuning.encode_texts(dataset, data.GLUE["stsb"], self.pretraining.tokenizer, 512)
        sides = self.models(unit["pair"])
        asking = {side: _asker(model) for side, model in sides.items()}
        clocks = {side: lambda ids, ask=ask: speed.timed(lambda: ask(ids)) for side, ask in asking.items()}
        rounds = [torch.from_numpy(row["input_ids"])[None] for row in rows]
        speed.interleaved(clocks, rounds[:10])  # warm up
        taken = speed.interleaved(clocks, rounds)
        scores = {"rows": len(rows), "tokens": sum(ids.numel() for ids in rounds)}
        for side, own in taken.items():
            scores[f"{side}_pass_seconds"] = sum(own)
            scores[f"{side}_tokens_per_s"] = scores["tokens"] / sum(own)
            if len(own) >= 1000:
                scores[f"{side}_pass_of_1000_rows_seconds"] = sum(own[:1000])
        return scores | _times(taken), [source], {"seconds": _rounded(taken)}

    def _depth(self, unit: dict) -> tuple[dict, list, dict]:
        config, given = self.configurations(unit["pair"])[0], torch.randint(1000, (1, unit["depth"]))
        depths = [depth for depth in self.own.depths if depth <= config.num_hidden_layers]
        runs = {}
        for depth in depths:
            shallow = type(config).from_dict(config.to_dict() | {"num_hidden_layers": depth})
            runs[str(depth)] = _asking(_build(shallow), given)
        taken = speed.seconds(runs, speed.rules(self.profile.name))
        middle = [1e3 * float(np.median(own)) for own in taken.values()]
        slope, rest = np.polyfit(depths, middle, 1)
        scores = {f"layers_{depth}_ms": ms for depth, ms in zip(depths, middle, strict=True)}
        return scores | {"layer_ms": slope, "rest_ms": rest}, [], {"seconds": _rounded(taken)}

    def _alone(self, unit: dict) -> tuple[dict, list, dict]:
        model = self.models(unit["pair"])[unit["side"]]
        with tempfile.TemporaryDirectory() as folder:
            models.save(model, self.pretraining.tokenizer, Path(folder) / "model")
            every = [speed.alone(Path(folder) / "model", "The river runs.", 1) for _ in range(self.own.repeats)]
            scores = {"size_mb": speed.size_mb(Path(folder) / "model")}
        body = model.base_model
        embedded = models.parameters(body.embeddings)
        scores |= {
            "parameters": models.parameters(body),
            "parameters_without_embeddings": models.parameters(body) - embedded,
        }
        names = [name for name in every[0] if name != "logits"]
        return scores | {name: np.median([one[name] for one in every]) for name in names}, [], {"alone": every}


def flops(config: PretrainedConfig, batch: int, length: int) -> int:
    """Multiplications and additions of one pass of an encoder with a head for classes: its matrix products alone.

    A layer multiplies each token with four square matrices and two of the feed-forward part, and each pair of tokens
    twice (scores, and values by weights). Norms, softmax and activations are left out.
    """
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_dim
    layer = 2 * length * (4 * width**2 + 2 * width * inner) + 4 * length**2 * width
    return batch * (config.num_hidden_layers * layer + 2 * width**2 + 2 * width * config.num_labels)


def _build(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def _asker(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as a function of token ids [batch, length], none of which is padding."""

    @torch.inference_mode()
    def ask(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids % model.config.vocab_size, attention_mask=torch.ones_like(ids)).logits

    return ask


def _asking(model: PreTrainedModel, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    ask = _asker(model)
    return lambda: ask(ids)


def _times(taken: dict[str, list[float]]) -> dict[str, float]:
    ends = zip(("", "_low", "_high"), speed.ratio(taken["large"], taken["small"]), strict=True)
    return {f"times_as_fast{end}": value for end, value in ends}


def _rounded(taken: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(second, 7) for second in own] for name, own in taken.items()}


def _shape(config: dict) -> dict:
    names = ("model_type", "vocab_size", "hidden_size", "dim", "num_hidden_layers", "n_layers", "num_attention_heads")
    names += ("n_heads", "intermediate_size", "hidden_dim")
    return {name: config[name] for name in names if name in config}
