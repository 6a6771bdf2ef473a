"""What a notebook is said to cost follows from the profile and from rates, counted again here by hand."""

import pytest

from helpers import cost, profiles, records
from helpers.speed import Rules

RATES = cost.Rates(tokens_per_s=1000.0, row=0.5, row_there=0.1)


def minutes(tmp_path, monkeypatch, **overrides) -> dict[str, float]:
    monkeypatch.setattr(cost.Cost, "_rates", lambda self: RATES)
    profile = profiles.load("mini", {key.replace("__", "."): value for key, value in overrides.items()})
    return cost.Cost(profile, records.Workspace(profile, str(tmp_path))).minutes()


def test_fine_tuning_by_hand(tmp_path, monkeypatch):
    """A learnt token counts as three that are read; of the teacher's four layers the small models have two."""
    found = minutes(tmp_path, monkeypatch, imdb__lengths=[], imdb__models=["teacher", "student"])
    learnt, read = 3 * 400 * 128, 200 * 128  # epochs, rows, tokens; the mini-world's dev set
    assert found["03"] == pytest.approx((3 * learnt + read) * (1 + 0.5) / 1000 / 60)
    more = minutes(tmp_path, monkeypatch, imdb__lengths=[], imdb__models=["teacher", "student"], imdb__seeds=[0, 1])
    assert more["03"] == pytest.approx(2 * found["03"])
    short = minutes(tmp_path, monkeypatch, imdb__lengths=[32], imdb__models=["teacher", "student"])
    assert short["03"] - found["03"] == pytest.approx((3 * learnt + read) / 4 * 0.5 / 1000 / 60)


def test_pretraining_grows_with_its_steps(tmp_path, monkeypatch):
    few, many, none = (
        minutes(tmp_path, monkeypatch, distillation__training__steps=steps, ablation__variants=[])["01"]
        for steps in (100, 200, 0)
    )
    assert many - few == pytest.approx(few - none)
    teacher = 1000 * 24 * 48 / 1000 / 60  # what reading its text once through the encoder takes
    assert 3 * teacher < none < 12 * teacher, "the head over the vocabulary is a part of so small a model"


def test_what_is_timed_costs_what_the_rules_say(tmp_path, monkeypatch):
    """At half a second a row, ten runs of the latency and, of a batch, as few as the rules allow."""
    own = {"quantization__variants": ["fp32"], "quantization__isolated": [], "quantization__length": 128}
    found = minutes(tmp_path, monkeypatch, **own)["06"]
    row = 0.5 / 2  # of the student
    short = row * 13 / 128
    variants = 2 * 10 * row + 2 * 10 * 32 * short + 200 * short
    losses = 24 * 0.5 * 48 / 128 * 1.5
    assert found == pytest.approx((variants + losses) / 60)
    alone = minutes(tmp_path, monkeypatch, **own | {"quantization__isolated": ["fp32"]})["06"]
    assert alone - found == pytest.approx(cost.PROCESS / 60)


@pytest.mark.parametrize(
    ("once", "seconds"), [(0.001, 2.0), (0.2, 6.0), (1.0, 20.0), (9.0, 45.0)], ids=["least", "runs", "most", "fewest"]
)
def test_how_long_a_thing_is_timed(once, seconds):
    assert cost._timed(Rules(30, 2.0, 20.0), once) == pytest.approx(seconds)


def test_rates_are_measured_and_every_notebook_has_its_minutes(tmp_path):
    profile = profiles.load("mini")
    found = cost.Cost(profile, records.Workspace(profile, str(tmp_path)))
    assert 1_000 < found.rates.tokens_per_s < 10_000_000 and 1e-4 < found.rates.row < 1
    assert list(found.minutes()) == [f"0{number}" for number in range(1, 10)]
    assert all(0 < value < 30 for value in found.minutes().values())


def test_every_committed_record_belongs_to_a_notebook():
    space = records.Workspace(profiles.load("laptop"))
    found = {cost.notebook_of(records.read_record(path)) for path in space.records.rglob("*.json")}
    assert {"01", "02", "03", "04", "05", "06", "07"} <= found
