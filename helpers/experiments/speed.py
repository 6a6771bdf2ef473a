"""The experiment of notebook 08: a large model against a small one in size, time and memory, whatever they know."""

import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import BertConfig, DistilBertConfig, PretrainedConfig, PreTrainedModel

from .. import InputError
from ..compression import runtimes
from ..data import encoding, hub
from ..measure import machine, metrics, records, timing
from ..measure.sweep import Experiment
from ..measure.timing import SIDES
from ..models import checkpoints, distillation
from ..profiles import Profile, as_settings
from .pretraining import Pretraining

VERSION = 1  # raised whenever the code changes the numbers it makes
NAMES = {"full": ("BERT-base", "DistilBERT"), "own": ("teacher", "student")}
GPU_PRODUCT = 4096  # wide enough to keep a GPU busy
PRODUCT = 768  # rows and columns of the plain matrix product that models are held against: BERT-base's width
Scores = dict[str, float]


class Speed(Experiment):
    """Two models with random weights, always timed in turn: on the processor and, where there is a GPU, on it.

    The pair `full` is BERT-base and DistilBERT, built from their configurations; `own` has the shapes of the profile's
    teacher and student, where these are others. Units of a pair: {"threads", "batch", "length", "run"}, a latency;
    {"threads", "text"}, a pass over real rows, one by one; {"depth"}, the large model with fewer layers at this length;
    {"alone"}, memory and cold start in so many processes each; {"device", "precision", "batch", "length"}, a latency
    on the GPU.
    """

    name = "speed"

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        """InputError for more threads than cores, a length over a model's maximum, or under two depths."""
        super().__init__(profile, space, fresh)
        self.own, self.pretraining, self._built = profile.speed, Pretraining(profile, space), {}
        self.lengths = sorted({*self.own.lengths, self.own.length})
        machine.require_cores("speed.threads", self.own.threads)
        for pair in self.pairs:
            large, small = self.configurations[pair]
            most = min(large.max_position_embeddings, small.max_position_embeddings)
            if (longest := max(*self.lengths, *self.own.depth_lengths)) > most:
                takes = f"{NAMES[pair][0]} takes {most} at most"
                raise InputError(f"speed: {longest} tokens, and {takes}: lower the lengths")
            if len(self.depths(pair)) < 2:
                layers = f"{NAMES[pair][0]} has {large.num_hidden_layers} layers"
                raise InputError(f"speed.depths = {self.own.depths}, and {layers}: expected two or more up to there")

    @functools.cached_property
    def configurations(self) -> dict[str, tuple[PretrainedConfig, PretrainedConfig]]:
        """Of each pair's large and small model, each with one score as its answer."""
        teacher = self.pretraining.teacher_config
        small = distillation.configuration(teacher, len(self.pretraining.layers))
        found = {"full": (BertConfig(), DistilBertConfig()), "own": (teacher, small)}
        for config in itertools.chain(*found.values()):
            config.num_labels = 1
        return found

    @functools.cached_property
    def pairs(self) -> list[str]:
        """The pairs of models that the profile compares."""
        full, own = ([_shape(config) for config in self.configurations[pair]] for pair in ("full", "own"))
        return ["own"] if not self.own.full_size else ["full"] if full == own else ["full", "own"]

    @property
    def units(self) -> list[dict]:
        """Every unit; those on the GPU only where there is one."""
        own, found = self.own, []
        one = [{"batch": 1, "length": length} for length in self.lengths]
        many = [{"batch": batch, "length": own.length} for batch in own.batches if batch > 1]
        timed = [shape | {"run": run} for run in range(own.runs) for shape in one]
        timed += [shape | {"run": 0} for shape in many]
        gpu = machine.gpu_precisions() if machine.device(self.profile).type == "cuda" else []
        for pair in self.pairs:
            for threads in own.threads:
                found += [{"pair": pair, "threads": threads} | more for more in (*timed, {"text": "stsb"})]
            found += [{"pair": pair, "depth": length} for length in own.depth_lengths]
            found.append({"pair": pair, "alone": own.repeats})
            for precision, shape in itertools.product(gpu, (*one, *many)):
                found.append({"pair": pair, "device": "cuda", "precision": precision} | shape)
        return found

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        packages = {name: records.versions().get(name) for name in ("torch", "transformers", "tokenizers")}
        shapes = [_shape(config) for config in self.configurations[unit["pair"]]]
        settings = {"version": VERSION, "packages": packages, "shapes": shapes, "device": unit.get("device", "cpu")}
        settings |= {"gpu": torch.cuda.get_device_name(0)} if "device" in unit else {}
        settings |= records.processor()
        settings |= {"rules": as_settings(self.profile.timing), "threads": unit.get("threads", 1)}
        if "depth" in unit:
            settings["depths"] = self.depths(unit["pair"])
        if "text" in unit:  # whose tokens they are
            settings |= {"rows": self.own.rows, "teacher": self.profile.teacher}
            settings |= hub.state(self.profile, "nyu-mll/glue")
        return settings

    def depths(self, pair: str) -> list[int]:
        """The numbers of layers that are timed: no more than the large model has."""
        layers = self.configurations[pair][0].num_hidden_layers
        return [depth for depth in self.own.depths if depth <= layers]

    def models(self, pair: str, device: str = "cpu", precision: str = "fp32") -> dict[str, PreTrainedModel]:
        """The large and the small model, built once."""
        if (key := (pair, device, precision)) not in self._built:
            sides = zip(SIDES, map(_build, self.configurations[pair]), strict=True)
            self._built[key] = {side: model.to(device, machine.DTYPES[precision]) for side, model in sides}
        return self._built[key]

    def measure(self, unit: dict) -> records.Measurement:
        """Measure one unit; raw seconds are in the details."""
        act = {"length": self._latency, "text": self._pass, "depth": self._depth, "alone": self._alone}
        measure = next(act[key] for key in act if key in unit)
        with runtimes.threads_kept():
            torch.set_num_threads(unit.get("threads", 1))
            scores, sources, details = measure(unit)
        built = [{"id": f"shape of {name}", "revision": None, "weights": "random"} for name in NAMES[unit["pair"]]]
        scores = {name: float(value) for name, value in scores.items()}
        return records.Measurement(scores, sources, built, details)

    def _latency(self, unit: dict) -> tuple[Scores, list, dict]:
        device, precision = unit.get("device", "cpu"), unit.get("precision", "fp32")
        shape, sides = (unit["batch"], unit["length"]), self.models(unit["pair"], device, precision)
        width = PRODUCT if device == "cpu" else GPU_PRODUCT
        matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
        matrix = matrix.to(device, machine.DTYPES[precision])
        # The product stands in the middle: whichever way round they go, it is between the two models.
        runs = {"large": _asking(sides["large"], *shape), "product": lambda: matrix @ matrix}
        runs["small"] = _asking(sides["small"], *shape)
        taken = timing.seconds(runs, self.profile.timing, timer=timing.timer(device), yardsticks=["product"])
        scores = {"product_gflops": 2e-9 * width**3 / np.median(taken["product"])}
        for side, model in sides.items():
            found = timing.latencies(taken[side])
            rate = 1e3 / found["latency_p50_ms"]
            found |= {"gflops": rate * flops(model.config, *shape) / 1e9, "samples_per_s": rate * shape[0]}
            found["tokens_per_s"] = found["samples_per_s"] * shape[1]
            scores |= {f"{side}_{name}": value for name, value in found.items()}
        scores |= timing.ratio(taken["large"], taken["small"]).named("times_as_fast")
        return scores, [], {"seconds": timing.rounded(taken)}

    def _pass(self, unit: dict) -> tuple[Scores, list, dict]:
        dataset, source = hub.sample(self.profile, "nyu-mll/glue", "stsb", "validation", self.own.rows)
        sides = self.models(unit["pair"])
        most = min(model.config.max_position_embeddings for model in sides.values())
        rows = encoding.encode_texts(dataset, metrics.GLUE["stsb"].columns, self.pretraining.tokenizer, most)
        given = [_inputs(torch.from_numpy(row["input_ids"])[None]) for row in rows]
        clocks = {side: lambda row, model=own: timing.timed(lambda: _ask(model, row)) for side, own in sides.items()}
        timing.interleaved(clocks, given[:10])  # warm up
        taken = timing.interleaved(clocks, given)
        scores = {"rows": len(rows), "tokens": sum(len(row["input_ids"]) for row in rows)}
        for side, own in taken.items():
            scores |= {f"{side}_pass_seconds": sum(own), f"{side}_tokens_per_s": scores["tokens"] / sum(own)}
            if len(own) >= 1000:
                scores[f"{side}_pass_of_1000_rows_seconds"] = sum(own[:1000])
        scores |= timing.ratio(taken["large"], taken["small"]).named("times_as_fast")
        return scores, [source], {"seconds": timing.rounded(taken)}

    def _depth(self, unit: dict) -> tuple[Scores, list, dict]:
        config, depths = self.configurations[unit["pair"]][0], self.depths(unit["pair"])
        shallow = [type(config).from_dict(config.to_dict() | {"num_hidden_layers": depth}) for depth in depths]
        runs = {str(own.num_hidden_layers): _asking(_build(own), 1, unit["depth"]) for own in shallow}
        taken = timing.seconds(runs, self.profile.timing)
        rounds = min(map(len, taken.values()))
        lines = np.polyfit(depths, 1e3 * np.array([own[:rounds] for own in taken.values()]), 1)  # one a round
        scores = {f"layers_{depth}_ms": 1e3 * np.median(own) for depth, own in taken.items()}
        for name, values in zip(("layer_ms", "rest_ms"), lines, strict=True):
            scores |= timing.middle(values).named(name)
        return scores | {"layers": config.num_hidden_layers}, [], {"seconds": timing.rounded(taken)}

    def _alone(self, unit: dict) -> tuple[Scores, list, dict]:
        scores, every = {}, {side: [] for side in SIDES}
        with tempfile.TemporaryDirectory() as folder:
            for side, model in self.models(unit["pair"]).items():
                checkpoints.save(model, self.pretraining.tokenizer, Path(folder) / side)
                scores[f"{side}_size_mb"] = timing.size_mb(Path(folder) / side)
                body, embeddings = map(checkpoints.parameters, (model.base_model, model.base_model.embeddings))
                scores |= {f"{side}_parameters": body, f"{side}_parameters_without_embeddings": body - embeddings}
            for _, side in itertools.product(range(unit["alone"]), SIDES):
                every[side].append(runtimes.alone(Path(folder) / side, "The river runs.", threads=1))
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
    return Classifier.from_config(config, dtype=torch.float32).eval()


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


def _shape(config: PretrainedConfig) -> dict:
    """What of a configuration decides about size and time."""
    left_out = ("transformers_version", "architectures", "dtype", "_name_or_path", "initializer_range")
    return {name: value for name, value in config.to_diff_dict().items() if name not in left_out}
