"""The experiment of notebook 08: a large model against a small one in size, time and memory, whatever they know."""

import functools
import itertools
from collections.abc import Callable

import torch
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import BertConfig, DistilBertConfig, PretrainedConfig, PreTrainedModel

from .. import InputError
from ..compression import runtimes
from ..data import hub
from ..measure import machine, records
from ..measure.sweep import Experiment
from ..measure.timing import SIDES
from ..models import distillation
from ..profiles import Profile
from .pretraining import Pretraining

VERSION = 1  # raised whenever the code changes the numbers it makes
NAMES = {"full": ("BERT-base", "DistilBERT"), "own": ("teacher", "student")}
Way = Callable[["Speed", dict], tuple[dict[str, float], list[dict], dict]]  # metrics, provenance of data, details


class Speed(Experiment):
    """Two models with random weights, always timed in turn: on the processor and, where there is a GPU, on it.

    The pair `full` is BERT-base and DistilBERT, built from their configurations; `own` has the shapes of the profile's
    teacher and student, where these are others. Units of a pair: {"threads", "batch", "length", "run"}, a latency;
    {"threads", "text"}, a pass over real rows, one by one; {"depth"}, the large model with fewer layers at this length;
    {"alone"}, memory and cold start in so many processes each; {"device", "precision", "batch", "length"}, a latency
    on the GPU. How a unit is measured is on notebook 08's page, which fills in `ways`, by the key that marks the unit.
    """

    name = "speed"
    ways: dict[str, Way] = {}

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
        settings |= {"rules": self.profile.timing.model_dump(), "threads": unit.get("threads", 1)}
        if "depth" in unit:
            settings["depths"] = self.depths(unit["pair"])
        if "text" in unit:  # whose tokens they are
            settings |= {"rows": self.own.rows, "teacher": self.profile.teacher}
            settings |= hub.state(self.profile, "nyu-mll/glue")
        return settings

    def depths(self, pair: str) -> list[int]:
        """The numbers of layers that are timed: no more than the large model has."""
        return [depth for depth in self.own.depths if depth <= self.configurations[pair][0].num_hidden_layers]

    def models(self, pair: str, device: str = "cpu", precision: str = "fp32") -> dict[str, PreTrainedModel]:
        """The large and the small model, built once."""
        if (key := (pair, device, precision)) not in self._built:
            sides = zip(SIDES, map(build, self.configurations[pair]), strict=True)
            self._built[key] = {side: model.to(device, machine.DTYPES[precision]) for side, model in sides}
        return self._built[key]

    def measure(self, unit: dict) -> records.Measurement:
        """Measure one unit; raw seconds are in the details."""
        way = next(way for key, way in self.ways.items() if key in unit)
        with runtimes.threads_kept():
            torch.set_num_threads(unit.get("threads", 1))
            scores, sources, details = way(self, unit)
        built = [{"id": f"shape of {name}", "revision": None, "weights": "random"} for name in NAMES[unit["pair"]]]
        return records.Measurement({name: float(value) for name, value in scores.items()}, sources, built, details)


def build(config: PretrainedConfig) -> PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(0)
    return Classifier.from_config(config, dtype=torch.float32).eval()


def _shape(config: PretrainedConfig) -> dict:
    """What of a configuration decides about size and time."""
    left_out = ("transformers_version", "architectures", "dtype", "_name_or_path", "initializer_range")
    return {name: value for name, value in config.to_diff_dict().items() if name not in left_out}
