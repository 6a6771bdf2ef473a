"""A large model against a small one: which units there are, what is counted and what is timed."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

from helpers import InputError, profiles
from helpers.experiments import speed
from helpers.measure import machine, records, timing
from helpers.models import checkpoints

pytestmark = pytest.mark.alone
OWN = {"speed.lengths": [8], "speed.length": 16, "speed.batches": [3], "speed.depth_lengths": [8], "speed.rows": 12}


@pytest.fixture
def ways(page) -> dict:
    """How notebook 08 measures, by the key that marks a unit."""
    wanted = {"length": "latency", "text": "one_pass", "depth": "layer_by_layer", "alone": "processes"}
    return dict(
        zip(
            wanted,
            page("08_speed_and_size", *wanted.values(), "inputs", "ask", "asking", "sizes", "flops"),
            strict=False,
        )
    )


def made(store, **own) -> speed.Speed:
    profile = profiles.load("mini", OWN | own)
    return speed.Speed(profile, records.Workspace(profile, str(store)))


def test_full_sizes_are_the_papers():
    with torch.device("meta"):
        large, small = BertModel(BertConfig()), DistilBertModel(DistilBertConfig())
    assert (checkpoints.parameters(large), checkpoints.parameters(small)) == (109_482_240, 66_362_880)


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig])
def test_arithmetic_is_as_torch_counts_it(kind, page):
    (flops,) = page("08_speed_and_size", "flops")
    shape = {"vocab_size": 50, "hidden_size": 32, "dim": 32, "num_attention_heads": 4, "n_heads": 4}
    shape |= {"intermediate_size": 96, "hidden_dim": 96, "num_hidden_layers": 3, "n_layers": 3}
    config = kind(**{name: value for name, value in shape.items() if name in kind().to_dict()}, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(2, 7, dtype=torch.int64))
    assert flops(config, 2, 7) == counter.get_total_flops()


def test_units_cover_what_the_profile_asks_for(tmp_path):
    units = made(tmp_path, **{"speed.runs": 2}).units
    assert len(units) == len({records.slug(unit) for unit in units}) == 2 * (2 * 2 + 1 + 1) + 1 + 1
    assert {unit["length"] for unit in units if unit.get("batch") == 1} == {8, 16}, (
        "one row at the batches' length, too"
    )
    assert {unit["pair"] for unit in units} == {"own"}
    assert made(tmp_path, **{"speed.full_size": True}).pairs == ["full", "own"]
    with pytest.raises(
        InputError, match=f"speed.threads has 999, and this machine has cores: {machine.usable_cores()}"
    ):
        made(tmp_path, **{"speed.threads": [999]})
    with pytest.raises(InputError, match=r"speed.depths = \[4, 12\], and teacher has 4 layers: expected two or more"):
        made(tmp_path, **{"speed.depths": [4, 12]})
    for key, value in (("lengths", [513]), ("repeats", 0), ("runs", 0), ("threads", [])):
        with pytest.raises(InputError, match=f"speed.{key}"):
            made(tmp_path, **{f"speed.{key}": value})


def test_a_model_that_takes_less_is_not_asked_for_more(tmp_path, monkeypatch):
    config = made(tmp_path).configurations["own"][0]
    config.max_position_embeddings = 12
    monkeypatch.setattr(speed.Pretraining, "teacher_config", config)
    monkeypatch.setattr(speed.Pretraining, "_check_lengths", lambda _: None)  # which would speak of other lengths first
    with pytest.raises(InputError, match="speed: 16 tokens, and teacher takes 12 at most: lower the lengths"):
        made(tmp_path)


def test_the_same_shapes_are_not_timed_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(speed.Pretraining, "teacher_config", BertConfig())
    monkeypatch.setattr(speed.distillation, "configuration", lambda teacher, layers: DistilBertConfig())
    assert made(tmp_path, **{"speed.full_size": True}).pairs == ["full"]


@pytest.mark.parametrize(
    ("key", "value", "kinds"),
    [("depths", [1, 3], {"depth"}), ("rows", 5, {"text"}), ("lengths", [8], set())],
)
def test_settings_hold_what_the_numbers_depend_on(tmp_path, key, value, kinds):
    first, other = made(tmp_path), made(tmp_path, **{f"speed.{key}": value})
    changed = {kind for unit in first.units for kind in unit if first.settings(unit) != other.settings(unit)}
    assert changed - {"pair", "threads"} == kinds


def test_every_unit_is_measured(tmp_path, monkeypatch, ways):
    experiment = made(tmp_path, **{"speed.depths": [1, 2]})
    experiment.ways = ways
    before, seen = torch.get_num_threads(), {}
    for name in ("seconds", "interleaved"):
        real = getattr(timing, name)

        def spied(*given, real=real, **named):
            seen["threads"] = torch.get_num_threads()
            return real(*given, **named)

        monkeypatch.setattr(timing, name, spied)
    for unit in experiment.units:
        if unit.get("threads", 1) > machine.usable_cores():
            continue
        measured = experiment.measure(unit)
        scores, details = measured.metrics, measured.details
        assert seen.pop("threads", 1) == unit.get("threads", 1)
        if "times_as_fast" in scores:
            large, small = (np.array(details["seconds"][side]) for side in timing.SIDES)
            rounds = min(len(large), len(small))
            assert scores["times_as_fast"] == pytest.approx(np.median(large[:rounds] / small[:rounds]), rel=1e-3)
            assert scores["times_as_fast_low"] <= scores["times_as_fast"] <= scores["times_as_fast_high"]
        if "length" in unit:
            assert list(details["seconds"]) == ["large", "product", "small"]
            assert len(details["seconds"]["small"]) >= experiment.profile.timing.least_runs
            arithmetic = ways["length"].__globals__["flops"](
                experiment.configurations["own"][0], unit["batch"], unit["length"]
            )
            assert scores["large_gflops"] == pytest.approx(arithmetic / 1e6 / scores["large_latency_p50_ms"])
            width = ways["length"].__globals__["PRODUCTS"]["cpu"]
            product = 2e-9 * width**3 / np.median(details["seconds"]["product"])
            assert scores["product_gflops"] == pytest.approx(product, rel=1e-3)
            rows_a_second = 1e3 * unit["batch"] / scores["small_latency_p50_ms"]
            assert scores["small_samples_per_s"] == pytest.approx(rows_a_second)
        if "text" in unit:
            assert scores["rows"] == 12 == len(details["seconds"]["large"])
            assert scores["large_pass_seconds"] == pytest.approx(sum(details["seconds"]["large"]), rel=1e-4)
            assert measured.data[0]["config"] == "stsb" and "large_pass_of_1000_rows_seconds" not in scores
        if "alone" in unit:
            for side, model in experiment.models("own").items():
                assert scores[f"{side}_size_mb"] == pytest.approx(4e-6 * checkpoints.parameters(model), rel=0.02)
                assert scores[f"{side}_peak_memory_mb"] >= 0.9 * scores[f"{side}_footprint_mb"] > 0
                parts = sum(scores[f"{side}_{part}_s"] for part in ("imports", "loading", "first"))
                assert 0 < parts < scores[f"{side}_cold_start_s"]
            assert scores["large_parameters"] > scores["small_parameters"]
    assert torch.get_num_threads() == before


def test_time_by_depth_is_a_constant_and_so_much_a_layer(tmp_path, monkeypatch, ways):
    experiment = made(tmp_path, **{"speed.depths": [1, 2, 4]})
    experiment.ways, asked = ways, []
    layers = lambda model, _: asked.append(len(model.base_model.encoder.layer))  # noqa: E731
    monkeypatch.setitem(ways["depth"].__globals__, "ask", layers)

    def seconds(runs, rules):
        for run in runs.values():
            run()
        return {name: [0.001 * (3 + 5 * int(name))] * 4 for name in runs}

    monkeypatch.setattr(timing, "seconds", seconds)
    unit = next(unit for unit in experiment.units if "depth" in unit)
    scores = experiment.measure(unit).metrics
    assert asked == [1, 2, 4] and scores["layers"] == 4
    assert scores["layer_ms"] == pytest.approx(5) and scores["rest_ms"] == pytest.approx(3)
    assert scores["layers_4_ms"] == pytest.approx(23) and scores["rest_ms_low"] == pytest.approx(3)
