"""Tables and sentences on speed and size, from known records."""

import numpy as np
import pytest

from helpers.measure import timing
from helpers.measure.records import pack
from helpers.report import tables

TRUTH = np.array([0, 1] * 50)
BOTH = "BERT", "DistilBERT"
ROWS = "unit_of", "sides", "latencies", "indexed", "by_threads", "by_length", "by_batch", "as_frame"


def latency(length: int, run: int, times: float, threads: int = 1, batch: int = 1) -> dict:
    unit = {"pair": "full", "threads": threads, "batch": batch, "length": length, "run": run}
    scores = {"times_as_fast": times, "times_as_fast_low": times - 0.05, "times_as_fast_high": times + 0.05}
    for side, ms in (("large", 10.0 * times), ("small", 10.0)):
        scores |= {f"{side}_latency_p50_ms": ms, f"{side}_latency_p95_ms": 1.5 * ms, f"{side}_runs": 30.0}
        scores |= {f"{side}_samples_per_s": 1e3 * batch / ms}
    scores |= {f"{side}_gflops": 5.0 for side in (*timing.SIDES, "product")}
    return {"unit": unit, "metrics": scores}


def test_tables_and_sentences_follow_the_records(page):
    wanted = "in_words", "agreement", "agreement_in_words"
    wanted = "on", *wanted, *ROWS, "gpu_table", "gflops_table"
    _, in_words, agreement, agreement_in_words, *_ = page("08_speed_and_size", *wanted)
    by_length, by_batch, as_frame, gpu_table, gflops_table = _[-5:]
    found = [latency(128, 0, 2.0), latency(8, 0, 1.6), latency(8, 1, 1.68), latency(128, 1, 2.2)]
    first = found[:2]
    table = by_length(found, *BOTH)
    assert table.index.tolist() == [8, 128] and table.threads.tolist() == ["1", "1"]
    assert table.loc[8, "times as fast"] == "1.60 (1.55 to 1.65)" and table.loc[8, "runs"] == "30, 30"
    assert table.loc[128, "BERT p50, p95 (ms)"] == "20.00, 30.00"
    twice = agreement(found)
    assert list(twice["apart (%)"]) == ["5.0", "10.0"] and list(twice["intervals meet"]) == ["yes", "no"]
    assert twice.loc[8, "second run"] == "1.68 (1.63 to 1.73)"
    assert agreement(first).empty and "one run" in agreement_in_words(agreement(first)).data
    words = agreement_in_words(twice).data
    assert "With 64 to 256 tokens the two runs' ratios are 10.0% apart at most" in words
    assert "the intervals of 1 of 2 points meet" in words
    words = in_words(found, *BOTH).data
    assert "On 1 thread, DistilBERT is 1.60 times as fast as BERT with 8 tokens and 2.00 times with 128" in words
    assert "the time saved is 38% to 50%" in words
    many = by_batch([latency(128, 0, 2.0, batch=4)], *BOTH)
    assert many.loc[4, "DistilBERT (rows/s)"] == "400.0"
    assert gflops_table(first, *BOTH).loc[8].tolist() == ["1", "5.0", "5.0", "5.0"]
    there = [{"unit": {"precision": "fp16", "batch": 4, "length": 128}, "metrics": found[0]["metrics"]}]
    assert gpu_table(there, *BOTH).loc["fp16", ["rows", "tokens", "runs"]].tolist() == ["4", "128", "30, 30"]
    assert as_frame(first).times_as_fast.tolist() == [2.0, 1.6]


def test_threads_are_apart(page):
    *_, by_length, _, _ = page("08_speed_and_size", *ROWS)
    found = [latency(length, 0, 2.0, threads) for length in (128, 8) for threads in (2, 1)]
    table = by_length(found, *BOTH)
    assert table.index.tolist() == [8, 128, 8, 128] and table.threads.tolist() == ["1", "1", "2", "2"]


def test_a_line_and_what_half_the_layers_would_be(page):
    (by_depth,) = page("08_speed_and_size", "by_depth")
    scores = {"layer_ms": 5.0, "layers": 4.0, "rest_ms": 3.0, "rest_ms_low": 2.9, "rest_ms_high": 3.1}
    found = [{"unit": {"pair": "own", "depth": 8}, "metrics": scores}]
    line = by_depth(found, [latency(8, 0, 1.7)]).loc[8]
    assert line["a layer (ms)"] == "5.00" and line["the rest (ms)"] == "3.00 (2.90 to 3.10)"
    assert line["the rest, of all 4 layers' time (%)"] == "13.0"
    assert line["half the layers, by the line: times as fast"] == "1.77"
    assert line["the small model, measured"] == "1.70"
    assert by_depth(found, []).loc[8, "the small model, measured"] == tables.NOTHING


def test_a_pass_over_real_rows(page):
    *_, passes = page("08_speed_and_size", *ROWS, "passes_table")
    scores = {"rows": 60, "large_pass_seconds": 3.0, "small_pass_seconds": 2.0, "times_as_fast": 1.4}
    scores |= {"times_as_fast_low": 1.3, "times_as_fast_high": 1.5, "large_pass_of_1000_rows_seconds": 2.5}
    (row,) = passes([{"unit": {"threads": 1}, "metrics": scores}], *BOTH).to_dict("records")
    assert row == {
        "rows": "60",
        "BERT (s)": "3.00",
        "DistilBERT (s)": "2.00",
        "BERT, 1,000 rows (s)": "2.50",
        "DistilBERT, 1,000 rows (s)": tables.NOTHING,
        "times as fast, totals": "1.50",
        "median of rows": "1.40 (1.30 to 1.50)",
    }


def test_memory_is_held_side_by_side(page):
    columns, memory_table = page("08_speed_and_size", "MEMORY", "memory_table")
    names = [column.value for column in columns]
    scores = {f"large_{name}": 2e6 for name in names} | {f"small_{name}": 1e6 for name in names}
    table = memory_table({"metrics": scores | {"large_anonymous_mb": 0.0}}, *BOTH)
    assert table.loc["parameters (million)"].tolist() == ["2.00", "1.00", "50%"]
    assert table.loc["cold start (s)", "BERT"] == "2,000,000.00"
    assert table.loc["… held: its own (MB)", "DistilBERT has"] == tables.NOTHING, "no share of nothing"


def record(variant: str, kind: str, wrong: int, ratio: float, size: float, **more) -> dict:
    guesses = np.where(np.arange(100) < wrong, 1 - TRUTH, TRUTH)
    scores = {"score": float((guesses == TRUTH).mean()), "loss": 0.5, "agreement": 0.99, "largest_difference": 2e-6}
    scores |= {f"latency_{name}_ms": 10 / ratio for name in ("mean", "p50", "p90")} | {"runs": 30.0}
    scores |= {f"latency_times_as_fast{end}": ratio * by for end, by in (("", 1), ("_low", 0.9), ("_high", 1.1))}
    scores |= {"size_mb": size, "peak_memory_mb": 2 * size, "cold_start_s": 1.0, "loading_s": 0.4} | more
    details = {"predictions": pack(guesses), "references": pack(TRUTH), "texts": pack(np.arange(100))}
    details["seconds"] = {"variant": [0.01 / ratio] * 3, "reference": [0.01, 0.012, 0.01]}
    unit = {"head": "sst2", "variant": variant, "format": kind, "threads": 1}
    return {"unit": unit, "metrics": scores, "details": details}


@pytest.fixture
def found() -> list[dict]:
    return [
        record("fp32", "onnx", 10, 1.0, 80.0),
        record("fp32", "ort", 10, 1.0, 80.0, cold_start_s=0.8, loading_s=0.2, peak_memory_mb=240.0),
        record("taylor_50_int8", "onnx", 40, 4.0, 20.0),
        record("taylor_50_int8", "ort", 40, 4.0, 20.0, cold_start_s=0.8, loading_s=0.2, peak_memory_mb=60.0),
    ]


def test_tables_follow_the_records(found, page):
    exported_table, exported_answers, *_ = page("09_edge", "exported_table", "exported_answers", "in_format", "called")
    table = exported_table(found, "sst2", 1)
    assert list(table.index[:2]) == ["whole model (ONNX)", "whole model (ORT)"]
    both = table.loc["50% of heads and neurons cut (Taylor), int8 with embeddings (ORT)"]
    assert both["times as fast"] == "4.00 (3.60 to 4.40)" and both["size (MB)"] == "20.0"
    assert list(both[["p50 (ms)", "mean (ms)", "p90 (ms)"]]) == ["2.50"] * 3
    assert both["p99 (ms)"] == tables.NOTHING, "too few runs"
    assert both["whole beside it (ms)"] == "10.00"
    answers = exported_answers(found, "sst2")
    assert answers.loc["whole model (ONNX)", "p"] == tables.NOTHING
    assert answers.loc["50% of heads and neurons cut (Taylor), int8 with embeddings (ONNX)", "p"] == "< 0.0001"
    few = [record("fp32", "onnx", 10, 1.0, 80.0), record("taylor_50", "onnx", 40, 4.0, 20.0)]
    for one in few:  # the same tokens, in four texts: hardly any evidence
        one["details"]["texts"] = pack(np.arange(100) // 25)
    assert float(exported_answers(few, "sst2").loc["50% of heads and neurons cut (Taylor) (ONNX)", "p"]) > 0.2
    assert exported_table(found, "masked_lm", 1).empty and exported_answers([], "sst2").empty


def test_shares_and_gains(found, page):
    names = "gains_table", "mobile_format", "exported_shares", "called"
    gains_table, mobile_format, exported_shares, _ = page("09_edge", *names)
    shares = exported_shares(found, "sst2", 1)
    assert shares.loc["taylor_50_int8", ["latency", "size"]].tolist() == [0.25, 0.25]
    assert shares.loc["taylor_50_int8", "latency_low"] < 0.25 < shares.loc["taylor_50_int8", "latency_high"]
    (gained,) = gains_table(found, "sst2", 1).to_dict("records")
    assert gained == {"size left (%)": "25", "times as fast": "4.00 (3.60 to 4.40)", "accuracy (points)": "-30.0"}
    (started,) = mobile_format(found, 1).to_dict("records")
    assert started == {"models": "2", "loading (%)": "50", "cold start (%)": "80", "peak memory (%)": "150"}
    again = gains_table([found[0], record("taylor_50_recovered", "onnx", 5, 2.0, 40.0)], "sst2", 1)
    assert again["accuracy (points)"].item() == tables.NOTHING, "it was trained for longer"
    assert gains_table(found[2:], "sst2", 1).empty and mobile_format([], 1).empty
    assert exported_shares([], "sst2", 1).empty


def test_the_published_table_is_read_as_shares(page):
    (published_on_android,) = page("09_edge", "published_on_android")
    printed = published_on_android()
    assert printed.latency["int8"] == pytest.approx(51.05 / 163.64) and printed.latency["pruned"] > 0.99
    assert printed.size_mb["baseline"] == pytest.approx(345.06 * 1.048576)
    twice = 4e-6 * (66_985_530 + 30_522 * 768)  # DistilBERT's parameters, and the vocabulary's matrix once more
    assert printed.size_mb["baseline"] == pytest.approx(twice, rel=0.001), "it holds that matrix twice, to 0.1%"
