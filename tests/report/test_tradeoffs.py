"""Variants side by side: tables and sentences from records whose answers are known, and what is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from helpers.compression import variants
from helpers.measure import metrics
from helpers.measure.records import pack
from helpers.report import figures, tables, tradeoffs

TRUTH = np.array([0, 1] * 100)


def record(variant: str, wrong: int, ratio: float = 1.0, size: float = 40.0, **extra) -> dict:
    """A record of a variant that gets the first `wrong` rows wrong and is `ratio` times as fast as fp32."""
    guesses = np.where(np.arange(200) < wrong, 1 - TRUTH, TRUTH)
    share = float((guesses == TRUTH).mean())
    scores = {"accuracy": share, "score": share, "agreement": share, "size_mb": size, "samples_per_s": 10.0}
    scores |= {"latency_p50_ms": 20 / ratio, "latency_p95_ms": 30 / ratio}
    for what in ("latency", "throughput"):
        ends = {"": ratio, "_low": 0.9 * ratio, "_high": 1.1 * ratio}
        scores |= {f"{what}_times_as_fast{end}": value for end, value in ends.items()}
    seconds = {"variant": [0.02 / ratio] * 5, "reference": [0.02, 0.021, 0.02, 0.019, 0.02]}
    details = {"predictions": pack(guesses), "references": pack(TRUTH), "seconds": {"latency": seconds}}
    unit = {"task": "sst2", "model": "student", "variant": variant}
    flags = {"cpu_flags": ["avx2", "avx512_vnni", "fma"]}
    return {"unit": unit, "metrics": scores | extra, "details": details, "provenance": flags}


@pytest.fixture
def found() -> list[dict]:
    return [
        record("fp32", 20, peak_memory_mb=90.0, cold_start_s=2.5, imports_s=2.25),
        record("torch_int8", 21, ratio=3.0, size=20.0),
        record("onnx_int8", 22, ratio=4.0, size=21.0),
        record("bnb_fp4", 60, ratio=0.5, size=15.0),
    ]


def test_the_table_has_a_row_a_variant_and_one_for_what_is_missing(found):
    table = tradeoffs.table(found, "sst2", "student", {"bnb_nf4": "bitsandbytes is not installed"})
    assert list(table.index[:1]) == ["fp32"] and table.loc["fp32", tradeoffs.AGAINST] == tables.NOTHING
    slow = table.loc["fp4 (bitsandbytes)"]
    assert slow[tradeoffs.AGAINST] == "-20.0 (p < 0.0001)" and slow["times as fast, one row"] == "0.50 (0.45 to 0.55)"
    said = table.loc["int8, linear layers (PyTorch dynamic)", tradeoffs.AGAINST]
    assert said.startswith("-0.5 (p ") and float(said.split()[-1].strip(")")) > 0.5
    assert table.loc["fp32", "peak memory (MB)"] == "90" and slow["peak memory (MB)"] == tables.NOTHING
    assert table.loc["fp32", "same answers (%)"] == "90.0"
    assert table.loc["fp32", "of it imports (s)"] == "2.25" and table.loc["fp32", "p95 (ms)"] == "30.00"
    assert table.index[-1] == "nf4 (bitsandbytes) (– bitsandbytes is not installed)"
    assert tradeoffs.table([], "sst2", "student", {"bnb_nf4": "why"}).empty


def test_a_page_shows_what_loses_no_more_than_a_point_the_fastest_first(found):
    """And never more than ten rows of it, fp32 among them."""
    few = tradeoffs.finalists(found, "sst2", "student")
    assert few == ["fp32", "int8, linear layers (ONNX Runtime)", "int8, linear layers (PyTorch dynamic)"]
    many = [record("fp32", 20), *(record(f"weights_{n}", 20, ratio=n) for n in range(1, 30))]
    few = tradeoffs.finalists(many, "sst2", "student")
    assert len(few) == 10 and few[:2] == ["fp32", "29% of weights zero"] and few[-1] == "21% of weights zero"


def test_what_was_trained_again_is_judged_by_what_was_b1(found):
    """Point B1: 50% cut and recovered was "+1.8 points" ahead of fp32, and level with the whole model trained again."""
    every = [*found, record("fp32_recovered", 10), record("taylor_50_recovered", 12), record("taylor_50", 25)]
    table = tradeoffs.table(every, "sst2", "student", {})
    cut, uncut, control = (variants.label(n) for n in ("taylor_50_recovered", "taylor_50", "fp32_recovered"))
    said = table.loc[[cut, uncut, control], tradeoffs.AGAINST].str.split(" ").str[0]
    assert list(said) == ["-1.0", "-2.5", "+5.0"]
    p = float(table.loc[cut, tradeoffs.AGAINST].split()[-1].strip(")"))
    assert p > 0.3, "2 rows of 200, against the control; 8 of 200 against fp32"


def test_sentences_follow_the_numbers(found):
    words = tradeoffs.in_words(found, "sst2", "student")
    int8 = "int8, linear layers (ONNX Runtime), 4.0 times as fast as fp32 for one row, 21.0 MB against 40.0"
    low, high = (-binom.ppf(share, 200, 2 / 200) / 2 for share in (0.975, 0.025))  # of 200 rows it loses two more
    lost = f"-1.0 points (95% interval {low:+z.1f} to {high:+z.1f})."
    assert f"The fastest that loses no more than 1 point: {int8}, {lost}" in words
    small = "The smallest that loses no more than 1 point: int8, linear layers (PyTorch dynamic), 3.0 times as fast"
    assert small in words, "fp4 is smaller, and loses 20 points"
    guess = record("taylor_70", 100, ratio=9.0, size=5.0)
    assert "9.0" not in tradeoffs.in_words([*found, guess], "sst2", "student"), "fast, and knows nothing"
    assert "choose" not in words, "one recommendation, which notebook 10 has"
    assert "Slower than fp32 for one row: fp4 (bitsandbytes)." in words
    assert "trained as long: 1 of 3 (Holm): fp4 (bitsandbytes) (-20.0)." in words
    many = [*found, *(record(f"weights_{n}", 40 + n) for n in (20, 40, 60))]
    worst = f"{variants.label('weights_60')} (-40.0)"
    assert f"4 of 6 (Holm): from fp4 (bitsandbytes) (-20.0) to {worst}." in tradeoffs.in_words(many, "sst2", "student")
    assert tradeoffs.in_words(found[:1], "sst2", "student") == tradeoffs.in_words([], "sst2", "student") == ""


def test_every_task_and_model_in_one_table(found):
    """Beside the scores, what one gets without reading anything; and how far apart equal things were measured."""
    pair = [
        r | {"unit": r["unit"] | {"task": "mrpc"}} for r in (record("fp32", 20), record("torch_int8", 21, ratio=3.3))
    ]
    for one in pair:  # three of four are paraphrases: always saying so has an accuracy of 3/4 and an F1 of 6/7
        one["details"] = one["details"] | {"references": pack(np.arange(200) % 4 > 0)}
    table = tradeoffs.everything(found + pair)
    assert table.loc["fp4 (bitsandbytes)", "sst2, student"] == "-20.0 (p < 0.0001)"
    assert table.loc["fp32", "sst2, student"] == "90.0"
    assert table.loc["fp4 (bitsandbytes)", "mrpc, student"] == tables.NOTHING
    assert table.loc["always the commoner answer", "sst2, student"] == "50.0"
    assert table.loc["always the commoner answer", "mrpc, student"] == f"{50 * (3 / 4 + 6 / 7):.1f}"
    assert table.loc["fp4 (bitsandbytes)", "sst2, student: times as fast"] == "0.50"
    assert tradeoffs.repeats(found + pair) == pytest.approx(10.0)
    assert np.isnan(tradeoffs.repeats(found)) and tradeoffs.everything([]).empty
    assert "avx2, avx512_vnni." in tradeoffs.instructions(found) and tradeoffs.instructions([]) == ""


def test_many_comparisons_need_smaller_p_values():
    assert metrics.holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert metrics.holm({"a": 0.02, "b": 0.03, "c": 0.04}) == set()
    assert metrics.holm({}) == set()


def test_gains_that_multiply_are_told_from_those_that_do_not(page):
    """Twice and three times as fast are six, and five were measured; 5 and 1 points lost are 6, and 7 were."""
    twice, thrice = record("taylor_50", 30, ratio=2.0), record("fp32_int8", 22, ratio=3.0)
    both = record("taylor_50_int8", 34, ratio=5.0)
    found = [record("fp32", 20), twice, thrice, both, record("layers_1_int8", 80, ratio=7.0)]
    (together,) = page("07_pruning", "together")
    table = together(found)
    assert list(table.index) == ["50% of heads and neurons cut (Taylor)"], "layers_1 was not measured alone"
    row = table.iloc[0]
    assert (row["product"], row["measured"]) == ("6.00", "5.00 (4.50 to 5.50)")
    assert (row["sum of changes (points)"], row["measured (points)"]) == ("-6.0", "-7.0")
    assert together(found[:2]).empty and together([]).empty


def test_the_front_is_what_nothing_else_beats():
    points = pd.DataFrame({"name": list("abcde"), "cost": [1, 2, 2, 3, 4], "score": [70, 80, 75, 80, 90]})
    assert list(figures.front(points, "cost").name) == ["a", "b", "e"]


def test_latencies_are_on_one_scale(found):
    """A variant that was measured while the machine was slow has its ratio to tell."""
    found[1]["metrics"]["latency_p50_ms"] = 500.0
    frame = tradeoffs.frame(found).set_index("variant")
    assert frame.latency_ms["fp32"] == 20 and frame.latency_ms["torch_int8"] == pytest.approx(20 / 3)
    assert frame.latency_ms_low["torch_int8"] < frame.latency_ms["torch_int8"] < frame.latency_ms_high["torch_int8"]
    figure = figures.chart(tradeoffs.frame(found), "latency_ms", "ms", "score")
    (names,) = [own for own in figure.legends if own.get_texts()[-1].get_text() == "fp32"]
    labels = ["int8, linear layers (ONNX Runtime)", "int8, linear layers (PyTorch dynamic)", "fp32"]
    assert [text.get_text() for text in names.get_texts()] == labels
    places = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert list(places) == ["1", "2", "3"] and places["1"] == pytest.approx((5, 89)) and places["3"] == (20, 90)


def test_the_explorer_draws_what_is_chosen(found, page):
    open_before = plt.get_fignums()
    explorer, _ = page("07_pruning", "explorer", "show_chosen")
    made = explorer(tradeoffs.frame(found))
    (cost, task, model), families, chart, numbers = made.children[0].children, *made.children[1:]
    assert cost.label == "latency of one row (ms)" and (task.value, model.value) == ("sst2", "student")
    assert families.value == ("half or full precision", "PyTorch int8", "bitsandbytes", "ONNX Runtime")
    everything = bytes(chart.value)
    assert everything.startswith(b"\x89PNG") and "fp4 (bitsandbytes)" in numbers.value and "nf4" not in numbers.value
    families.value = ("PyTorch int8",)
    assert bytes(chart.value).startswith(b"\x89PNG") and bytes(chart.value) != everything
    assert "fp4 (bitsandbytes)" not in numbers.value and "int8, linear layers (PyTorch dynamic)" in numbers.value
    families.value = ()
    assert numbers.value == "nothing was measured for this choice" and chart.layout.display == "none"
    families.value = ("bitsandbytes",)
    assert chart.layout.display is None and "40.0" in numbers.value, "its latency: half as fast as fp32's 20 ms"
    cost.label = "size on disk (MB)"
    assert "15.0" in numbers.value
    assert plt.get_fignums() == open_before, "or the chart would be shown once more, below"
    assert "run the notebooks" in explorer(tradeoffs.frame([])).value
