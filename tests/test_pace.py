"""A large model against a small one: what is counted, what is timed, and what is said of it."""

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

from helpers import InputError, generated, machine, models, pace, paces, profiles, records, speed, tables

pytestmark = pytest.mark.alone
OWN = {"speed.lengths": [8], "speed.length": 16, "speed.batches": [3], "speed.depth_lengths": [8], "speed.rows": 12}


def made(store, **own) -> pace.Pace:
    profile = profiles.load("mini", OWN | own)
    return pace.Pace(profile, records.Workspace(profile, str(store)))


def test_full_sizes_are_the_papers():
    with torch.device("meta"):
        large, small = BertModel(BertConfig()), DistilBertModel(DistilBertConfig())
    assert (models.parameters(large), models.parameters(small)) == (109_482_240, 66_362_880)


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig])
def test_arithmetic_is_as_torch_counts_it(kind):
    shape = {"vocab_size": 50, "hidden_size": 32, "dim": 32, "num_attention_heads": 4, "n_heads": 4}
    shape |= {"intermediate_size": 96, "hidden_dim": 96, "num_hidden_layers": 3, "n_layers": 3}
    config = kind(**{name: value for name, value in shape.items() if name in kind().to_dict()}, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(2, 7, dtype=torch.int64))
    assert pace.flops(config, 2, 7) == counter.get_total_flops()


def test_units_cover_what_the_profile_asks_for(tmp_path):
    units = made(tmp_path, **{"speed.runs": 2}).ready
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
    config = made(tmp_path).configurations("own")[0]
    config.max_position_embeddings = 12
    monkeypatch.setattr(pace.Pretraining, "teacher_config", config)
    with pytest.raises(InputError, match="speed: 16 tokens, and teacher takes 12 at most: lower the lengths"):
        made(tmp_path)


def test_the_same_shapes_are_not_timed_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(pace.Pretraining, "teacher_config", BertConfig())
    monkeypatch.setattr(pace.students, "configuration", lambda teacher, layers: DistilBertConfig())
    assert made(tmp_path, **{"speed.full_size": True}).pairs == ["full"]


@pytest.mark.parametrize(
    ("key", "value", "kinds"),
    [("depths", [1, 3], {"depth"}), ("rows", 5, {"text"}), ("lengths", [8], set())],
)
def test_settings_hold_what_the_numbers_depend_on(tmp_path, key, value, kinds):
    first, other = made(tmp_path), made(tmp_path, **{f"speed.{key}": value})
    changed = {kind for unit in first.ready for kind in unit if first.settings(unit) != other.settings(unit)}
    assert changed - {"pair", "threads"} == kinds


def test_every_unit_is_measured(tmp_path, monkeypatch):
    experiment = made(tmp_path, **{"speed.depths": [1, 2]})
    before, seen = torch.get_num_threads(), {}
    for name in ("seconds", "interleaved"):
        real = getattr(speed, name)

        def spied(*given, real=real, **named):
            seen["threads"] = torch.get_num_threads()
            return real(*given, **named)

        monkeypatch.setattr(speed, name, spied)
    for unit in experiment.ready:
        if unit.get("threads", 1) > machine.usable_cores():
            continue
        measured = experiment.measure(unit)
        scores, details = measured.metrics, measured.details
        assert seen.pop("threads", 1) == unit.get("threads", 1)
        if "times_as_fast" in scores:
            large, small = (np.array(details["seconds"][side]) for side in pace.SIDES)
            rounds = min(len(large), len(small))
            assert scores["times_as_fast"] == pytest.approx(np.median(large[:rounds] / small[:rounds]), rel=1e-3)
            assert scores["times_as_fast_low"] <= scores["times_as_fast"] <= scores["times_as_fast_high"]
        if "length" in unit:
            assert list(details["seconds"]) == ["large", "product", "small"]
            assert len(details["seconds"]["small"]) >= speed.QUICK.least_runs
            arithmetic = pace.flops(experiment.configurations("own")[0], unit["batch"], unit["length"])
            assert scores["large_gflops"] == pytest.approx(arithmetic / 1e6 / scores["large_latency_p50_ms"])
            product = 2e-9 * pace.PRODUCT**3 / np.median(details["seconds"]["product"])
            assert scores["product_gflops"] == pytest.approx(product, rel=1e-3)
            rows_a_second = 1e3 * unit["batch"] / scores["small_latency_p50_ms"]
            assert scores["small_samples_per_s"] == pytest.approx(rows_a_second)
        if "text" in unit:
            assert scores["rows"] == 12 == len(details["seconds"]["large"])
            assert scores["large_pass_seconds"] == pytest.approx(sum(details["seconds"]["large"]), rel=1e-4)
            assert measured.data[0]["config"] == "stsb" and "large_pass_of_1000_rows_seconds" not in scores
        if "alone" in unit:
            for side, model in experiment.models("own").items():
                assert scores[f"{side}_size_mb"] == pytest.approx(4e-6 * models.parameters(model), rel=0.02)
                assert scores[f"{side}_peak_memory_mb"] >= 0.9 * scores[f"{side}_footprint_mb"] > 0
                parts = sum(scores[f"{side}_{part}_s"] for part in ("imports", "loading", "first"))
                assert 0 < parts < scores[f"{side}_cold_start_s"]
            assert scores["large_parameters"] > scores["small_parameters"]
    assert torch.get_num_threads() == before


def test_time_by_depth_is_a_constant_and_so_much_a_layer(tmp_path, monkeypatch):
    experiment = made(tmp_path, **{"speed.depths": [1, 2, 4]})
    asked = []
    monkeypatch.setattr(pace, "_ask", lambda model, inputs: asked.append(len(model.base_model.encoder.layer)))

    def seconds(runs, rules):
        for run in runs.values():
            run()
        return {name: [0.001 * (3 + 5 * int(name))] * 4 for name in runs}

    monkeypatch.setattr(speed, "seconds", seconds)
    unit = next(unit for unit in experiment.ready if "depth" in unit)
    scores = experiment.measure(unit).metrics
    assert asked == [1, 2, 4] and scores["layers"] == 4
    assert scores["layer_ms"] == pytest.approx(5) and scores["rest_ms"] == pytest.approx(3)
    assert scores["layers_4_ms"] == pytest.approx(23) and scores["rest_ms_low"] == pytest.approx(3)
    row, lengths = paces.frame([{"unit": unit, "metrics": scores}]), paces.frame([latency(8, 0, 1.7)])
    line = paces.depth_table(row, lengths).loc[8]
    assert line["a layer (ms)"] == "5.00" and line["the rest (ms)"] == "3.00 (3.00 to 3.00)"
    assert line["the rest, of all 4 layers' time (%)"] == "13.0"
    assert line["half the layers, by the line: times as fast"] == "1.77"
    assert line["the small model, measured"] == "1.70"
    assert paces.depth_table(row, lengths[:0]).loc[8, "the small model, measured"] == tables.NOTHING


def latency(length: int, run: int, times: float, threads: int = 1, batch: int = 1) -> dict:
    unit = {"pair": "full", "threads": threads, "batch": batch, "length": length, "run": run}
    scores = {"times_as_fast": times, "times_as_fast_low": times - 0.05, "times_as_fast_high": times + 0.05}
    for side, ms in (("large", 10.0 * times), ("small", 10.0)):
        scores |= {f"{side}_latency_p50_ms": ms, f"{side}_latency_p95_ms": 1.5 * ms, f"{side}_runs": 30.0}
        scores |= {f"{side}_samples_per_s": 1e3 * batch / ms}
    return {"unit": unit, "metrics": scores}


def test_tables_and_sentences_follow_the_records():
    frame = paces.frame([latency(8, 0, 1.6), latency(128, 0, 2.0), latency(8, 1, 1.68), latency(128, 1, 2.2)])
    table = paces.by_length(frame, "BERT", "DistilBERT")
    assert (
        table.loc[8, "times as fast"] == "1.60 (1.55 to 1.65)"
        and table.loc[128, "BERT p50, p95 (ms)"] == "20.00, 30.00"
    )
    twice = paces.agreement(frame)
    assert list(twice["apart (%)"]) == ["5.0", "10.0"] and list(twice["intervals meet"]) == ["yes", "no"]
    assert paces.agreement(frame[frame.run == 0]).empty
    assert "With 64 to 256 tokens the two runs' ratios are 10.0% apart at most" in paces.agreement_in_words(frame)
    assert "the intervals of 1 of 2 points meet" in paces.agreement_in_words(frame)
    words = paces.in_words(frame, "BERT", "DistilBERT")
    assert "On 1 thread, DistilBERT is 1.60 times as fast as BERT with 8 tokens and 2.00 times with 128" in words
    assert "the time saved is 38% to 50%" in words
    many = paces.by_batch(paces.frame([latency(128, 0, 2.0, batch=4)]), "BERT", "DistilBERT")
    assert many.loc[4, "DistilBERT (rows/s)"] == "400.0"


def test_the_readme_answers_once_every_length_was_timed():
    where = {"data": [], "models": [], "cpu": "Xeon", "threads": 1, "gpu": None, "versions": {"torch": "2.11"}}
    lengths = profiles.load("laptop").speed.lengths
    found = [latency(length, 0, 1.6) for length in lengths[:-1]]
    found.append({"unit": {"text": "stsb", "threads": 1}})
    found[-1]["metrics"] = {"large_pass_seconds": 60.0, "small_pass_seconds": 40.0}
    found.append({"unit": {"alone": 3}, "metrics": {"large_parameters": 100.0, "small_parameters": 60.0}})
    for record in found:
        record["unit"]["pair"], record["provenance"] = "full", where
    assert generated._speed(found) is None
    whole = [*found, latency(lengths[-1], 0, 2.0) | {"provenance": where}]
    whole[-1]["unit"]["pair"] = "full"
    answer, table = generated._speed(whole)
    assert "40% fewer parameters" in answer and "1.60 to 2.00 times as fast for one row of 8 to 512 tokens" in answer
    assert "40 s instead of 60: 1.50 times as fast, 33% less time" in answer
    assert answer.endswith("Table 3: 1.63 times.") and table.count("\n| ") > len(lengths)
    assert generated._speed([record for record in whole if "alone" not in record["unit"]]) is None


def test_the_processor_is_named_where_a_gpu_stands_idle():
    origin = {"cpu": "Xeon", "threads": 8, "gpu": {"name": "Tesla T4"}, "versions": {"torch": "2.11"}}
    assert tables.describe_machine(origin) == "Tesla T4, torch 2.11"
    assert tables.describe_machine(origin, {"device": "cpu", "threads": 1}) == "Xeon, 1 thread, torch 2.11"


def test_the_middle_of_a_drifting_series_has_an_interval_that_holds_it():
    values = np.random.default_rng(0).normal(5, 1, 200)
    found = speed.middle(values)
    assert found.median == np.median(values) and found.low < found.median < found.high < found.low + 0.8
