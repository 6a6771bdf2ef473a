"""Comparisons: intervals and tests whose answers are known, and grids with holes."""

import numpy as np
import pytest
from scipy import stats

from helpers.experiments import glue
from helpers.measure import metrics
from helpers.measure.records import pack
from helpers.report import comparison, tables


def record(task: str, model: str, seed: int, right: float, rows: int = 400) -> dict:
    """A made-up cell: a task of two classes, of whose rows a share is right."""
    random = np.random.default_rng([len(model), seed, sum(map(ord, task))])
    truth = np.arange(rows) % 2
    guesses = np.where(random.random(rows) < right, truth, 1 - truth)
    found = glue.GlueMetric(task).compute(predictions=guesses, references=truth)
    details = {"predictions": pack(guesses), "references": pack(truth)}
    unit = {"task": task, "model": model, "seed": seed}
    return {"unit": unit, "metrics": found | {"score": np.mean([*found.values()])}, "details": details}


@pytest.fixture(scope="module")
def grid() -> list[dict]:
    shares = {"teacher": 0.9, "student": 0.8, "twin": 0.8}
    return [
        record(task, model, seed, share + 0.02 * (task == "rte"))
        for task in ("sst2", "rte", "wnli")
        for model, share in shares.items()
        for seed in (0, 1, 2)
    ]


def test_scores_are_medians_and_their_mean(grid):
    graded = comparison.Comparison(grid, replicates=50)
    own = [r["metrics"]["score"] for r in grid if r["unit"]["task"] == "sst2" and r["unit"]["model"] == "student"]
    assert graded.score("sst2", "student") == np.median(own) and graded.tasks == ["sst2", "rte", "wnli"]
    parts = [graded.score(task, "student") for task in graded.tasks]
    assert graded.score(comparison.MACRO, "student") == pytest.approx(np.mean(parts))
    assert graded.score(comparison.WITHOUT_WNLI, "student") == pytest.approx(np.mean(parts[:2]))


def test_retention_and_its_interval(grid):
    graded = comparison.Comparison(grid, replicates=300)
    kept, low, high = graded.retention(comparison.MACRO, "student")
    assert kept == pytest.approx(graded.score(comparison.MACRO, "student") / graded.score(comparison.MACRO, "teacher"))
    assert low < kept < high and low < 0.89 < high and high - low < 0.12
    single = graded.retention("sst2", "student")
    assert single[2] - single[1] > high - low, "one task is less sure than three"
    points, low, high = graded.difference("sst2", "teacher")
    assert 0 < low < points < high


def test_a_teacher_at_zero_gives_no_ratio():
    found = [record("cola", model, seed, 0.5) for model in ("teacher", "student") for seed in (0, 1)]
    assert comparison.Comparison(found, replicates=100).retention("cola", "student") is None


def test_gaps_that_are_real_and_gaps_that_are_not(grid, page):
    (gap,) = page("02_glue", "gap")
    graded = comparison.Comparison(grid, replicates=300)
    ahead, p = gap(graded, "sst2", "student", "teacher")
    assert ahead < -0.03 and p < 0.02
    assert gap(graded, "sst2", "student", "twin")[1] > 0.05
    assert gap(graded, "sst2", "student", "student") == (0.0, 1.0)


def test_p_values_of_equal_models_are_uniform():
    """Under the null hypothesis, one in ten p-values is below a tenth."""
    random, below = np.random.default_rng(0), 0
    for number in range(200):
        truth = random.integers(2, size=60)
        runs = [np.where(random.random((1, 60)) < 0.7, truth, 1 - truth) for _ in range(2)]
        below += metrics.permutation_test(*runs, truth, metrics.share_equal, rounds=60, seed=number) <= 0.1
    assert 4 <= below <= 34, below


def test_the_bootstrap_spreads_as_the_binomial_does():
    right = (np.random.default_rng(1).random((1, 500)) < 0.8).astype(float)
    drawn = metrics.resample({"m": right}, np.zeros(500), metrics.share_right, 2000)["m"]
    assert drawn.std() == pytest.approx(np.sqrt(right.mean() * (1 - right.mean()) / 500), rel=0.08)
    low, high = metrics.interval(drawn)
    assert low < right.mean() < high


def test_an_unrelated_model_moves_no_interval_b8(grid):
    """Point B8: one stream of random numbers for all models made an interval depend on which others there were."""
    fewer = [r for r in grid if r["unit"]["model"] != "twin"]
    for found in (comparison.Comparison(fewer), comparison.Comparison(grid)):
        ends = found.retention(comparison.MACRO, "student"), found.difference("sst2", "teacher")
        assert ends == (comparison.Comparison(grid).retention(comparison.MACRO, "student"), ends[1])
    every, few = (comparison.Comparison(found).difference("rte", "student", "teacher") for found in (grid, fewer))
    assert every == few


def test_models_draw_their_seeds_apart(grid):
    """Two models whose seeds differ alike are not alike: what one's luck was says nothing of the other's."""
    runs = np.stack([np.ones(50), np.zeros(50)])
    drawn = metrics.resample({"one": runs[:1], "other": runs}, np.ones(50), metrics.share_equal, 400)
    again = metrics.resample({"one": runs, "other": runs}, np.ones(50), metrics.share_equal, 400)
    assert np.std(drawn["other"]) > 0.15 and np.std(again["one"] - again["other"]) > 0.3 and (drawn["one"] == 1).all()


def test_a_p_value_is_no_smaller_than_the_rounds_can_tell_b8():
    """Point B8: with 300 permutations 1/301 was printed as 0.003, and nothing could pass Holm among 18."""
    assert metrics.PERMUTATIONS >= 10_000 and metrics.REPLICATES >= 5_000
    assert metrics.written(1 / 10_001) == "< 0.0001" and metrics.written(1 / 301, 300) == "< 0.0033"
    assert metrics.written(0.0004) == "0.0004" and metrics.written(0.0123) == "0.012"
    truth = np.zeros(400)
    runs = np.zeros((1, 400)), np.ones((1, 400))
    assert metrics.written(metrics.permutation_test(*runs, truth, metrics.share_equal)) == "< 0.0001"


def test_a_permutation_test_is_the_sign_test_where_one_answer_is_right_or_wrong():
    """An exact derivation: of the rows where just one of two models is right, each falls to either with a half."""
    truth, (one, other) = np.zeros(100), np.zeros((2, 1, 100))
    one[0, :14], other[0, 90:95] = 1, 1  # 14 rows that only the other has right, 5 that only the one has
    exact = stats.binomtest(14, 19).pvalue
    assert metrics.permutation_test(one, other, truth, metrics.share_equal) == pytest.approx(exact, abs=0.012)


def test_many_gaps_need_smaller_p_values_b8(grid, page):
    """Point B8: 02's table looked at 18 differences and corrected none."""
    _, gaps_table = page("02_glue", "gap", "gaps_table")
    made = gaps_table(comparison.Comparison(grid), "student", ["teacher", "twin"])
    assert made.loc["sst2", "p, against the teacher"].endswith("*")
    assert not made["p, against the twin (no teacher)"].str.endswith("*").any()


def test_holes_in_the_grid_are_left_out(grid):
    without = [r for r in grid if not (r["unit"]["model"] == "twin" and r["unit"]["task"] == "rte")]
    assert comparison.Comparison(without).models == ["teacher", "student"]
    fewer = [r for r in grid if r["unit"] != {"task": "rte", "model": "student", "seed": 1}]
    graded = comparison.Comparison(fewer)
    assert graded.models == ["teacher", "student", "twin"] and len(graded.seeds("sst2", "teacher")) == 2
    assert comparison.Comparison([]).models == []


def test_published_scores_are_those_of_table_1():
    assert comparison.published("BERT-base", "cola", []) == 56.3
    nine = list(metrics.GLUE)
    assert comparison.published("DistilBERT", comparison.MACRO, nine) == pytest.approx(77.0, abs=0.05)


def test_scores_stand_beside_each_other_and_as_shares_of_the_teachers():
    truth, runs = (
        np.zeros(4),
        {"teacher": np.array([[1.0, 1.0, 1.0, 0.0]]), "student": np.array([[1.0, 0.0, 0.0, 0.5]])},
    )
    table = comparison.beside(runs, truth, metrics.share_right, "F1 (%)", ["teacher"])
    assert table.loc["student", "F1 (%)"].startswith("37.5 (") and list(table[comparison.KEPT]) == ["100.0", "50.0"]
    assert table.loc["student", "ahead of the teacher (points)"].startswith("-37.5 (p ")
    for model in (runs | {"teacher": np.zeros((1, 4))}, {"student": runs["student"]}):  # knows nothing; isn't there
        table = comparison.beside(model, truth, metrics.share_right, "F1 (%)", [])
        assert set(table[comparison.KEPT]) == {tables.NOTHING}


def test_a_model_trained_more_than_once_is_ahead_only_if_other_seeds_would_be():
    """Over rows alone the gap is clear; one of the two trainings has it, and the other its contrary."""
    rows = np.linspace(0.2, 0.4, 400)
    runs = {"student": rows[None] + 0.1, "dropped": np.stack([rows - 0.2, rows + 0.3])}
    how = np.zeros(400), metrics.share_right
    once = comparison.ahead({"student": runs["student"], "dropped": rows[None]}, *how, "student", "dropped")
    assert once.startswith("+10.0 points, clear over rows alone (p < ")
    told = comparison.ahead(runs, *how, "student", "dropped")
    assert told.startswith("+5.0 points, not clear over rows and seeds of one of the two (-20.0 to +30.0)"), told
    runs["student"] = np.repeat(runs["student"], 2, axis=0)
    told = comparison.ahead(runs, *how, "student", "dropped")
    assert told.startswith("+5.0 points, not clear over rows and seeds (-20.0 to +30.0)"), told
    table = comparison.beside(runs, *how, "F1 (%)", ["dropped"])
    assert table.loc["student", "ahead of the teacher with layers dropped (points)"] == "+5.0 (-20.0 to +30.0)"


def test_published_numbers_stand_beside_each_other_as_printed():
    study = tables.published_beside("reproducibility-extension-challenge", "edge", "^baseline|^int8")
    assert list(study.index) == ["baseline; CPU", "int8 dynamic; CPU"]
    assert study.loc["int8 dynamic; CPU", "model size (MiB)"] == "154.77"
    assert study.loc["int8 dynamic; CPU", "peak memory (MB)"] == "4.05"
    project = tables.published_beside("msc-compression", "findings", ", 0%")
    assert len(project) == 7 and project.loc["DistilBERT 4-bit, 0% structured pruning; T4", "latency (s)"] == "0.027"
    both = tables.published_beside("wikitext-gsm8k-benchmark", "takeaways", "8-bit|fine")
    assert (both == tables.NOTHING).to_numpy().any(), "what one has and the other has not"
