"""Verdicts follow the rule whichever way the numbers fall; what is missing or damaged is said, and nothing made up."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn

from helpers import ROOT, profiles
from helpers.measure import metrics, records
from helpers.measure.records import pack
from helpers.report import claims, tables, tradeoffs
from helpers.report.claims import HOLDS, IN_PART, NOT, UNMEASURED, Part


def part(printed: float | None, none: float, ours: float, low: float, high: float, sign: int = 1) -> Part:
    return Part("a number", printed, none, ours, low, high, "n", sign)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ((40, 0, 39.4, 39.4, 39.4), HOLDS),  # within a twentieth
        ((40, 0, 37.9, 37.9, 37.9), IN_PART),
        ((1.6, 1, 2.0, 1.9, 2.1), HOLDS),  # more than was claimed
        ((1.6, 1, 1.4, 1.3, 1.5), IN_PART),
        ((1.6, 1, 1.2, 1.1, 1.3), NOT),  # a third of it
        ((1.6, 1, 1.7, 0.9, 2.5), NOT),  # not clear
        ((1.6, 1, 0.4, 0.3, 0.5), NOT),  # the other way
        ((30, 100, 28, 27, 29), HOLDS),  # what is left: less is more
        ((30, 100, 60, 59, 61), IN_PART),
        ((-3.0, 0, -3.1, -4, -1), HOLDS),
        ((-3.0, 0, 3.1, 1, 4), NOT),
        ((100, 100, 101, 101, 101), HOLDS),  # nothing changes
        ((100, 100, 90, 89, 91), NOT),
        ((None, 0, -0.02, -0.03, -0.01, -1), HOLDS),
        ((None, 0, -0.02, -0.03, 0.01, -1), NOT),
        ((None, 0, 0.02, 0.01, 0.03, -1), NOT),
    ],
)
def test_the_rule(given, verdict):
    assert part(*given).verdict == verdict


def test_an_interval_that_admits_both_is_too_wide_to_tell():
    assert part(-3, 0, -1, -5, 4).undecided
    assert not part(-3, 0, -1, -2, 1).undecided, "it leaves the published figure out"
    assert not part(-3, 0, -2, -5, -1).undecided, "it leaves no effect out"
    assert part(-3, 0, -1.5, -3, 1.5).scaled == (-0.5, 0.5, 1.0)


def write(folder, experiment: str, unit: dict, metrics: dict, started: str = "2026-01-01", **details) -> None:
    provenance = {"started": started, "seconds": 36.0, "dirty": False, "cpu": "a cpu", "threads": 1, "gpu": None}
    provenance |= {"versions": {"torch": "2"}, "data": [], "models": [{"weights": "ours"}]}
    record = {"experiment": experiment, "unit": unit, "metrics": metrics, "settings": {}, "provenance": provenance}
    path = folder / experiment / f"{records.slug(unit)}-{started}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"details": details}))


@pytest.fixture
def evidence(tmp_path):
    return records.Evidence(records.Workspace(profiles.load("mini"), str(tmp_path)))


ANSWERS = ("int8_or_pruning", "is_it_97", "gain_by_teaching")


def answered(page, evidence: records.Evidence, judged: claims.Judged) -> list[tuple[str, dict]]:
    """What notebook 10 answers to a stranger's three questions, with the answers' numbers."""
    _, int8_or_pruning, is_it_97, gain_by_teaching = page("10_report", "bought", *ANSWERS)
    (whole,) = [finding for claim, finding in judged if claim.name == "glue"]
    return [int8_or_pruning(evidence), is_it_97(whole), gain_by_teaching(evidence)]


def test_without_records_every_claim_says_what_it_needs(evidence, page):
    judged = claims.judge(evidence)
    made = claims.ledger(judged)
    assert {finding.verdict for _, finding in judged} == {UNMEASURED} and len(made) == len(claims.CLAIMS)
    assert made.ours.str.fullmatch("– (run .*|needs a (GPU|phone))").all()
    assert (made.published == "–").all(), "nothing is filled in"
    assert answered(page, evidence, judged) == [(tables.MISSING, {})] * 3
    advice, trust = page("10_report", "advice", "trust")
    assert advice(tradeoffs.points(evidence)).empty and trust([]).empty


def test_the_newest_record_of_a_unit_counts_and_a_damaged_one_is_named(evidence):
    folder, unit = evidence.space.records, {"pair": "full", "threads": 1, "text": "stsb"}
    for started, ratio in (("2026-01-02", 2.0), ("2026-01-01", 1.0)):
        ends = {"times_as_fast": ratio, "times_as_fast_low": ratio - 0.1, "times_as_fast_high": ratio + 0.1}
        write(folder, "speed", unit, ends, started)
    (folder / "speed" / "broken.json").write_text("{")
    (found,) = claims.faster(evidence).parts
    assert (found.ours, found.low, found.high) == (2.0, 1.9, 2.1) and found.printed == pytest.approx(668 / 410)
    assert len(evidence.problems) == 1 and "broken.json: not a whole record" in evidence.problems[0]


def test_a_record_of_an_older_form_is_told_and_the_rest_goes_on(evidence):
    write(evidence.space.records, "speed", {"pair": "full", "alone": 3}, {"size": 1.0})
    judged = {claim.name: finding for claim, finding in claims.judge(evidence)}
    assert judged["smaller"].verdict == UNMEASURED
    (problem,) = evidence.problems
    assert "lacks 'small_parameters'" in problem and "older form" in problem


def test_without_the_published_numbers_the_report_says_so(evidence, monkeypatch, tmp_path, page):
    _, slips, doubts = page("10_report", "noted", "slips", "doubts")
    assert len(slips()) > 3 and doubts().count("\n- ") > 3
    write(evidence.space.records, "speed", {"pair": "full", "alone": 3}, {"small_parameters": 1, "large_parameters": 2})
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path)
    assert {finding.verdict for _, finding in claims.judge(evidence)} == {UNMEASURED}
    assert "published_numbers.csv is missing: restore it" in evidence.problems[0]
    assert slips().empty and "restore it" in doubts()


def test_parameters_are_counted(evidence):
    counts = {"large_parameters": 109_482_240, "small_parameters": 66_362_880}
    write(evidence.space.records, "speed", {"pair": "full", "alone": 3}, counts)
    found = claims.smaller(evidence)
    assert found.parts[0].text == "39.4" and found.verdict == HOLDS


def test_what_guessing_scores_is_as_scikit_learn_has_it():
    truth = np.array([1.0] * 7 + [0.0] * 3)
    ones = np.ones(10)
    assert metrics.by_guessing("sst2", truth) == pytest.approx(sklearn.accuracy_score(truth, ones))
    mean = (sklearn.accuracy_score(truth, ones) + sklearn.f1_score(truth, ones)) / 2
    assert metrics.by_guessing("mrpc", truth) == pytest.approx(mean)
    assert metrics.by_guessing("cola", truth) == sklearn.matthews_corrcoef(truth, ones) == 0


def test_what_is_kept_of_a_lead_over_guessing(evidence):
    """Of 1,000 balanced reviews the teacher gets 900 right and the student 860: 36 of 40 points over guessing."""
    truth = np.array([0, 1] * 500)
    for model, right in (("teacher", 900), ("student", 860)):
        guesses = np.where(np.arange(1000) < right, truth, 1 - truth)
        unit = {"model": model, "length": 256, "seed": 0}
        lines = {"predictions": pack(guesses), "references": pack(truth)}
        write(evidence.space.records, "imdb", unit, {"accuracy": right / 1000}, **lines)
    (found,) = claims.reviews(evidence).parts
    assert found.ours == pytest.approx(90) and found.low < 90 < found.high
    assert found.printed == pytest.approx(100 * (92.82 - 50) / (93.46 - 50))
    assert found.basis == "1 seed, 1,000 rows" and found.verdict == IN_PART


def test_a_claim_with_numbers_that_disagree_holds_in_part():
    good, bad = part(1.6, 1, 2.0, 1.9, 2.1), part(1.6, 1, 0.9, 0.8, 1.1)
    assert claims.Finding([good, good], []).verdict == HOLDS
    assert claims.Finding([good, bad], []).verdict == IN_PART
    assert claims.Finding([bad, bad], []).verdict == NOT


def committed() -> records.Evidence:
    return records.Evidence(records.Workspace(profiles.load("laptop"), name="laptop"))


@pytest.mark.slow
def test_the_committed_ledger_is_whole(page):
    """On the committed records, every claim that needs no other hardware is measured, and every question answered."""
    evidence = committed()
    judged = claims.judge(evidence)
    assert not evidence.problems
    missing = {claim.name for claim, finding in judged if finding.verdict == UNMEASURED}
    assert missing == {"four_bits", "gpu", "phone"}
    made = claims.ledger(judged)
    assert len(made) == sum(max(1, len(finding.parts)) for _, finding in judged)
    for link in made.notebook[made.notebook != ""]:
        assert (ROOT / "notebooks" / link.partition("(")[2].removesuffix(")")).exists()
    for text, numbers in answered(page, evidence, judged):
        assert text != tables.MISSING and len(numbers) > 2
    *_, trust, holdings = page("10_report", "listed", "lacking", "weights", "machine", "trust", "holdings")
    rests = trust([(claim.text, finding.verdict, finding.records) for claim, finding in judged if finding.parts])
    assert len(rests) == len(judged) - len(missing) and (rests["measured on"] != tables.NOTHING).all()
    assert set(holdings(evidence).index) >= {"glue", "perplexity", "pruning", "speed"}


def test_records_of_a_number_are_counted_once(evidence):
    """A claim whose numbers rest on the same records, read twice, rests on them once."""
    ends = {f"latency_times_as_fast{end}": ratio for end, ratio in (("", 2.0), ("_low", 1.9), ("_high", 2.1))}
    lines = {"predictions": pack(np.array([0, 1] * 50)), "references": pack(np.array([0, 1] * 50))}
    for variant, size in (("fp32", 10.0), (claims.CUT, 8.0)):
        unit = {"task": "sst2", "model": "student", "variant": variant}
        write(evidence.space.records, "pruning", unit, ends | {"size_mb": size, "score": 1.0}, **lines)
    found = {claim.name: finding for claim, finding in claims.judge(evidence)}["cutting"]
    assert len(found.parts) == 3 and len(found.records) == 2


def test_advice_is_among_those_that_lose_no_more_than_a_point(page):
    points, (advice,) = tradeoffs.points(committed()), page("10_report", "advice")
    made = advice(points)
    assert (made.points.astype(float) > -1.05).all()
    near = points[points.score > points[points.variant == "fp32"].score.iloc[0] - 1]
    assert made.loc["the smallest file", "take"] == near.loc[near.size_mb.idxmin()].label
    assert pd.to_numeric(made["size (MB)"]).min() == pytest.approx(near.size_mb.min(), abs=0.05)
