"""Profiles: strict about keys, types and values, in one line that names them."""

import pytest

from helpers import InputError, profiles


@pytest.mark.parametrize("name", profiles.NAMES)
def test_every_profile_loads(name):
    assert profiles.load(name).name == name


def test_values_are_overridden_for_a_run_only():
    changed = profiles.load("mini", {"distillation.seeds": [7], "teacher_training.whole.steps": 3})
    assert changed.distillation.seeds == [7] and changed.teacher_training.whole.steps == 3
    assert profiles.load("mini").distillation.seeds == [0, 1, 2]
    assert changed.distillation.training == profiles.load("mini").distillation.training


def test_numbers_that_yaml_takes_for_strings_are_read():
    assert (
        profiles.load("mini", {"distillation.training.learning_rate": "2e-4"}).distillation.training.learning_rate
        == 2e-4
    )


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("distilation.seeds", [0], "unknown profile key 'distilation.seeds' .*did you mean distillation.seeds"),
        ("name", "x", "unknown profile key 'name'"),
        ("distillation.seeds", 3, r"profile mini: distillation.seeds = 3: input should be a valid list"),
        ("distillation.seeds", [], r"distillation.seeds = \[\]: list should have at least 1 item"),
        ("distillation.seeds", [-1], r"distillation.seeds.0 = -1: .*greater than or equal to 0"),
        (
            "distillation.training.steps",
            "many",
            "distillation.training.steps = 'many': input should be a valid integer",
        ),
        ("distillation.training.steps", 2.5, "distillation.training.steps = 2.5: input should be a valid integer"),
        ("distillation.training.steps", True, "distillation.training.steps = True: input should be a valid integer"),
        ("distillation.training.learning_rate", 0, "learning_rate = 0.*: input should be greater than 0"),
        ("distillation.training.learning_rate", "fast", "learning_rate = 'fast': input should be a valid number"),
        ("distillation.mask_rate", 1.0, "mask_rate = 1.0: input should be less than 1"),
        ("distillation.positions", "some", "positions = 'some': input should be 'all' or 'masked'"),
        ("precision", "fp8", "precision = 'fp8': input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("corpus", {"id": "x", "colour": 1}, "colour|corpus"),
        ("teacher", None, "teacher = None: input should be a valid string"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(key, value, line):
    with pytest.raises(InputError, match=line) as refusal:
        profiles.load("mini", {key: value})
    assert "\n" not in str(refusal.value)


def test_an_unknown_profile_is_refused():
    with pytest.raises(InputError, match="unknown profile 'huge': expected one of mini, laptop, t4, paper"):
        profiles.load("huge")


def test_keys_are_those_of_the_classes():
    assert profiles.is_key("distillation.training.learning_rate") and profiles.is_key("threads")
    assert not profiles.is_key("distillation.colour") and not profiles.is_key("name")
    named = {*profiles.Profile.model_fields}
    assert {key.split(".")[0] for key in profiles.known_keys()} == named
