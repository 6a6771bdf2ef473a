"""A large model against a small one: what is counted, what is timed, and what is said of it."""

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

from helpers import InputError, machine, models, pace, paces, profiles, records, speed

OWN = {"speed.lengths": [8], "speed.batches": [3], "speed.depth_lengths": [8], "speed.rows": 12}


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
    assert len(units) == len({records.slug(unit) for unit in units}) == 2 * (2 + 1 + 1) + 1 + 2
    assert {unit["pair"] for unit in units} == {"own"}
    assert {unit["pair"] for unit in made(tmp_path, **{"speed.full_size": True}).ready} == {"full", "own"}
    with pytest.raises(
        InputError, match=f"speed.threads has 999, more than this machine's {machine.usable_cores()} cores"
    ):
        made(tmp_path, **{"speed.threads": [999]})
    with pytest.raises(InputError, match="speed.lengths"):
        made(tmp_path, **{"speed.lengths": [513]})
    with pytest.raises(InputError, match="speed.repeats"):
        made(tmp_path, **{"speed.repeats": 0})


def test_every_unit_is_measured(tmp_path):
    experiment = made(tmp_path, **{"speed.threads": [1], "speed.depths": [1, 2]})
    before = torch.get_num_threads()
    found = [(unit, experiment.measure(unit)) for unit in experiment.ready]
    assert torch.get_num_threads() == before
    for unit, measured in found:
        scores = measured.metrics
        if "length" in unit:
            taken = measured.details["seconds"]
            assert set(taken) == {"large", "small", "product"} and len(taken["small"]) >= speed.QUICK.least_runs
            arithmetic = pace.flops(experiment.configurations("own")[0], unit["batch"], unit["length"])
            assert scores["large_gflops"] == pytest.approx(arithmetic / 1e6 / scores["large_latency_p50_ms"])
            rows_a_second = 1e3 * unit["batch"] / scores["small_latency_p50_ms"]
            assert scores["small_samples_per_s"] == pytest.approx(rows_a_second)
        if "text" in unit:
            assert scores["rows"] == 12 == len(measured.details["seconds"]["large"])
            assert scores["large_pass_seconds"] == pytest.approx(sum(measured.details["seconds"]["large"]), rel=1e-4)
            assert measured.data[0]["config"] == "stsb" and "large_pass_of_1000_rows_seconds" not in scores
        if "side" in unit:
            model = experiment.models("own")[unit["side"]]
            assert scores["size_mb"] == pytest.approx(4e-6 * models.parameters(model), rel=0.02)
            assert scores["peak_memory_mb"] >= 0.9 * scores["footprint_mb"] > 0
            words = model.config.vocab_size * model.config.hidden_size
            assert 0 < scores["parameters_without_embeddings"] < scores["parameters"] - words
        if "times_as_fast" in scores:
            assert scores["times_as_fast_low"] <= scores["times_as_fast"] <= scores["times_as_fast_high"]


def test_time_by_depth_is_a_constant_and_so_much_a_layer(tmp_path, monkeypatch):
    experiment = made(tmp_path, **{"speed.depths": [1, 2, 4]})
    seen = {}

    def seconds(runs, rules):
        for name, run in runs.items():
            run()
            seen[name] = run.__closure__
        return {name: [0.001 * (3 + 5 * int(name))] * 4 for name in runs}

    monkeypatch.setattr(speed, "seconds", seconds)
    unit = next(unit for unit in experiment.ready if "depth" in unit)
    scores = experiment.measure(unit).metrics
    assert scores["layer_ms"] == pytest.approx(5) and scores["rest_ms"] == pytest.approx(3)
    assert scores["layers_4_ms"] == pytest.approx(23) and list(seen) == ["1", "2", "4"]
    words = paces.depth_in_words(paces.frame([{"unit": unit, "metrics": scores}]), "BERT")
    assert "a layer takes 5.00 ms and the rest 3.00 ms: 13.0% of BERT's 4 layers" in words
    assert "Half the layers would be 1.77 times as fast" in words


def test_models_of_fewer_layers_have_them(tmp_path):
    config = made(tmp_path).configurations("own")[0]
    shallow = type(config).from_dict(config.to_dict() | {"num_hidden_layers": 1})
    whole, one = pace._build(config), pace._build(shallow)
    assert len(one.base_model.encoder.layer) == 1 and config.num_hidden_layers == 4 == len(
        whole.base_model.encoder.layer
    )


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
    words = paces.in_words(frame, "BERT", "DistilBERT")
    assert "On 1 thread, DistilBERT is 1.60 times as fast as BERT with 8 tokens and 2.00 times with 128" in words
    assert "the time saved is 38% to 50%" in words
    many = paces.by_batch(paces.frame([latency(128, 0, 2.0, batch=4)]), "BERT", "DistilBERT")
    assert many.loc[4, "DistilBERT (rows/s)"] == "400.0"
