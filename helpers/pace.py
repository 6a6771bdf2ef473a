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

from . import InputError, data, finetuning, machine, miniworld, models, records, runners, speed, students
from .pretraining import Pretraining
from .profiles import Profile

VERSION = 1  # raised whenever the code changes the numbers it makes
SIDES = ("large", "small")
NAMES = {"full": ("BERT-base", "DistilBERT"), "own": ("teacher", "student")}
GPU_PRODUCT = 4096  # wide enough to keep a GPU busy
PRODUCT = 768  # rows and columns of the plain matrix product that models are held against: BERT-base's width


class Pace:
    """Two models with random weights, always timed in turn: on the processor and, where there is a GPU, on it.

    The pair `full` is BERT-base and DistilBERT, built from their configurations; `own` has the shapes of the profile's
    teacher and student, where these are others. Units of a pair: {"threads", "batch", "length", "run"}, a latency;
    {"threads", "text"}, a pass over real rows, one by one; {"depth"}, the large model with fewer layers at this length;
    {"alone"}, memory and cold start in so many processes each; {"device", "precision", "batch", "length"}, a latency
    on the GPU.
    """

    experiment = "speed"

    def __init__(self, profile: Profile, space: records.Workspace):
        """
        Raises:
            InputError: more threads than there are cores; a length over a model's maximum; fewer than two depths.
        """
        self.profile, self.space, self.own = profile, space, profile.speed
        cores, threads = machine.usable_cores(), max(self.own.threads)
        if threads > cores:
            raise InputError(f"speed.threads has {threads}, and this machine has cores: {cores}; lower it")
        self.pretraining = Pretraining(profile, space)
        self.lengths = sorted({*self.own.lengths, self.own.length})
        for pair in self.pairs:
            large, small = self.configurations(pair)
            most = min(large.max_position_embeddings, small.max_position_embeddings)
            if (longest := max(*self.lengths, *self.own.depth_lengths)) > most:
                raise InputError(
                    f"speed: {longest} tokens, and {NAMES[pair][0]} takes {most} at most: lower the lengths"
                )
            if len(self.depths(pair)) < 2:
                layers = f"{NAMES[pair][0]} has {large.num_hidden_layers} layers"
                raise InputError(f"speed.depths = {self.own.depths}, and {layers}: expected two or more up to there")

    @functools.cached_property
    def pairs(self) -> list[str]:
        """The pairs of models that the profile compares."""
        full, own = ([_shape(config) for config in self.configurations(pair)] for pair in ("full", "own"))
        return ["own"] if not self.own.full_size else ["full"] if full == own else ["full", "own"]

    @property
    def ready(self) -> list[dict]:
        """Every unit."""
        own, found = self.own, []
        for pair in self.pairs:
            for threads in own.threads:
                here = {"pair": pair, "threads": threads}
                one = [{"batch": 1, "length": length, "run": run} for run in range(own.runs) for length in self.lengths]
                many = [{"batch": batch, "length": own.length, "run": 0} for batch in own.batches if batch > 1]
                found += [here | more for more in (*one, *many, {"text": "stsb"})]
            found += [{"pair": pair, "depth": length} for length in own.depth_lengths]
            found.append({"pair": pair, "alone": own.repeats})
            shapes = [{"batch": 1, "length": length} for length in self.lengths]
            shapes += [{"batch": batch, "length": own.length} for batch in own.batches if batch > 1]
            for precision in self.gpu_precisions:
                found += [{"pair": pair, "device": "cuda", "precision": precision} | shape for shape in shapes]
        return found

    @property
    def gpu_precisions(self) -> list[str]:
        """Those that the GPU truly has; none without one."""
        return machine.hardware_precisions(self.profile) if machine.device(self.profile).type == "cuda" else []

    @property
    def unmeasured(self) -> list[dict]:
        """The units that have no record with the present settings."""
        return [unit for unit in self.ready if not self.space.find(self.experiment, unit, self.settings(unit))]

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        packages = {name: records.versions().get(name) for name in ("torch", "transformers", "tokenizers")}
        shapes = [_shape(config) for config in self.configurations(unit["pair"])]
        settings = {"version": VERSION, "packages": packages, "shapes": shapes, "device": unit.get("device", "cpu")}
        settings |= {"gpu": torch.cuda.get_device_name(0)} if "device" in unit else {}
        settings |= {"cpu": records.cpu()["model"], "flags": machine.telling_flags()}
        settings |= {"rules": speed.rules(self.profile.name)._asdict(), "threads": unit.get("threads", 1)}
        if "depth" in unit:
            settings["depths"] = self.depths(unit["pair"])
        if "text" in unit:  # whose tokens they are
            settings |= {"rows": self.own.rows, "teacher": self.profile.teacher}
            settings |= {"world": miniworld.VERSION} if self.profile.hub == "miniworld" else {}
        return settings

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

    def depths(self, pair: str) -> list[int]:
        """The numbers of layers that are timed: no more than the large model has."""
        layers = self.configurations(pair)[0].num_hidden_layers
        return [depth for depth in self.own.depths if depth <= layers]

    @functools.cache  # noqa: B019
    def models(self, pair: str, device: str = "cpu", precision: str = "fp32") -> dict[str, PreTrainedModel]:
        """The large and the small model."""
        built = {side: _build(config) for side, config in zip(SIDES, self.configurations(pair), strict=True)}
        return {side: model.to(device, machine.DTYPES[precision]) for side, model in built.items()}

    def measure(self, unit: dict) -> records.Measurement:
        """Measure one unit; raw seconds are in the details."""
        act = {"length": self._latency, "text": self._pass, "depth": self._depth, "alone": self._alone}
        measure = next(act[key] for key in act if key in unit)
        with runners.threads_kept():
            torch.set_num_threads(unit.get("threads", 1))
            scores, sources, details = measure(unit)
        named = zip(NAMES[unit["pair"]], self.configurations(unit["pair"]), strict=True)
        built = [{"id": f"shape of {name}", "revision": None, "weights": "random"} for name, _ in named]
        scores = {name: float(value) for name, value in scores.items()}
        return records.Measurement(scores, sources, built, details)

    def _latency(self, unit: dict) -> tuple[dict, list, dict]:
        device, precision = unit.get("device", "cpu"), unit.get("precision", "fp32")
        shape, sides = (unit["batch"], unit["length"]), self.models(unit["pair"], device, precision)
        width = PRODUCT if device == "cpu" else GPU_PRODUCT
        matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
        matrix = matrix.to(device, machine.DTYPES[precision])
        # The product stands in the middle: whichever way round they go, it is between the two models.
        runs = {"large": _asking(sides["large"], *shape), "product": lambda: matrix @ matrix}
        runs["small"] = _asking(sides["small"], *shape)
        rules, timer = speed.rules(self.profile.name), speed.timer(device)
        taken = speed.seconds(runs, rules, timer=timer, yardsticks=["product"])
        scores = {"product_gflops": 2e-9 * width**3 / np.median(taken["product"])}
        for side, model in sides.items():
            found = speed.latencies(taken[side])
            seconds = found["latency_p50_ms"] / 1e3
            found["gflops"] = flops(model.config, *shape) / 1e9 / seconds
            found |= {"samples_per_s": shape[0] / seconds, "tokens_per_s": shape[0] * shape[1] / seconds}
            scores |= {f"{side}_{name}": value for name, value in found.items()}
        return scores | _times(taken), [], {"seconds": _rounded(taken)}

    def _pass(self, unit: dict) -> tuple[dict, list, dict]:
        dataset, source = data.sample(self.profile, "nyu-mll/glue", "stsb", "validation", self.own.rows)
        sides = self.models(unit["pair"])
        most = min(model.config.max_position_embeddings for model in sides.values())
        rows = finetuning.encode_texts(dataset, data.GLUE["stsb"], self.pretraining.tokenizer, most)
        given = [_inputs(torch.from_numpy(row["input_ids"])[None]) for row in rows]
        clocks = {
            side: lambda inputs, model=model: speed.timed(lambda: _ask(model, inputs)) for side, model in sides.items()
        }
        speed.interleaved(clocks, given[:10])  # warm up
        taken = speed.interleaved(clocks, given)
        scores = {"rows": len(rows), "tokens": sum(len(row["input_ids"]) for row in rows)}
        for side, own in taken.items():
            scores[f"{side}_pass_seconds"] = sum(own)
            scores[f"{side}_tokens_per_s"] = scores["tokens"] / sum(own)
            if len(own) >= 1000:
                scores[f"{side}_pass_of_1000_rows_seconds"] = sum(own[:1000])
        return scores | _times(taken), [source], {"seconds": _rounded(taken)}

    def _depth(self, unit: dict) -> tuple[dict, list, dict]:
        config, depths = self.configurations(unit["pair"])[0], self.depths(unit["pair"])
        runs = {}
        for depth in depths:
            shallow = type(config).from_dict(config.to_dict() | {"num_hidden_layers": depth})
            runs[str(depth)] = _asking(_build(shallow), 1, unit["depth"])
        taken = speed.seconds(runs, speed.rules(self.profile.name))
        rounds = min(map(len, taken.values()))
        lines = np.polyfit(depths, 1e3 * np.array([own[:rounds] for own in taken.values()]), 1)  # one a round
        scores = {f"layers_{depth}_ms": 1e3 * np.median(taken[str(depth)]) for depth in depths}
        for name, values in zip(("layer_ms", "rest_ms"), lines, strict=True):
            for end, value in zip(("", "_low", "_high"), speed.middle(values), strict=True):
                scores[name + end] = value
        return scores | {"layers": config.num_hidden_layers}, [], {"seconds": _rounded(taken)}

    def _alone(self, unit: dict) -> tuple[dict, list, dict]:
        scores, every = {}, {side: [] for side in SIDES}
        with tempfile.TemporaryDirectory() as folder:
            for side, model in self.models(unit["pair"]).items():
                models.save(model, self.pretraining.tokenizer, Path(folder) / side)
                scores[f"{side}_size_mb"] = speed.size_mb(Path(folder) / side)
                body = models.parameters(model.base_model)
                scores[f"{side}_parameters"] = body
                embeddings = models.parameters(model.base_model.embeddings)
                scores[f"{side}_parameters_without_embeddings"] = body - embeddings
            for _ in range(unit["alone"]):
                for side in SIDES:
                    every[side].append(speed.alone(Path(folder) / side, "The river runs.", threads=1))
        for side, own in every.items():
            names = [name for name in own[0] if name.endswith("_mb")]
            scores |= {f"{side}_{name}": np.median([one[name] for one in own]) for name in names}
            middle = sorted(own, key=lambda one: one["cold_start_s"])[(len(own) - 1) // 2]  # its parts add up
            scores |= {f"{side}_{name}": value for name, value in middle.items() if name.endswith("_s")}
        return scores, [], {"alone": every}


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


def _inputs(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Token ids [batch, length] as a model takes them; none of them is padding."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def _ask(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def _asking(model: PreTrainedModel, batch: int, length: int) -> Callable[[], torch.Tensor]:
    """The model, asked for rows of tokens drawn at random."""
    drawn = torch.Generator().manual_seed(0)
    inputs = _inputs(torch.randint(model.config.vocab_size, (batch, length), generator=drawn).to(model.device))
    return lambda: _ask(model, inputs)


def _times(taken: dict[str, list[float]]) -> dict[str, float]:
    ends = zip(("", "_low", "_high"), speed.ratio(taken["large"], taken["small"]), strict=True)
    return {f"times_as_fast{end}": value for end, value in ends}


def _rounded(taken: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(second, 7) for second in own] for name, own in taken.items()}


def _shape(config: PretrainedConfig) -> dict:
    """What of a configuration decides about size and time."""
    left_out = ("transformers_version", "architectures", "dtype", "_name_or_path", "initializer_range")
    return {name: value for name, value in config.to_diff_dict().items() if name not in left_out}
