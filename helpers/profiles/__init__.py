"""A profile by name: every default of the series in one place, strict about what it does not know.

A profile is a YAML file beside this module, read into the frozen dataclasses below. Any value can be overridden
for a run under its dotted name, as in `load("mini", {"distillation.seeds": [0, 1]})`.
"""

import copy
import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from .. import InputError
from .parts import (  # noqa: F401 (a part's name goes with its profile)
    Ablation,
    Architecture,
    Corpus,
    Distillation,
    Edge,
    Glue,
    Imdb,
    Padding,
    Perplexity,
    Profile,
    Pruning,
    Quantization,
    Recipe,
    Recipes,
    Speed,
    Squad,
    TeacherTraining,
    Training,
)

FOLDER = Path(__file__).parent
NAMES = ("mini", "laptop", "t4", "paper")


def load(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """The profile called `name`, with the values under dotted names in `overrides` put in place.

    Raises:
        InputError: unknown profile or key, a wrong type or an impossible value; the line names the key, the value
            and what was expected.
    """
    if name not in NAMES:
        raise InputError(f"unknown profile {name!r}: expected one of {', '.join(NAMES)}")
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) | {"name": name}
    for key, value in (overrides or {}).items():
        _put(values, key, value)
    try:
        return TypeAdapter(Profile).validate_python(values)
    except ValidationError as error:
        raise InputError(f"profile {name}: {_one_line(error)}") from None


def known_keys() -> list[str]:
    """Every key of a profile, under its dotted name."""
    return _keys(Profile)


def is_key(key: str) -> bool:
    """Whether `key` ("distillation.seeds", "precision") names something in a profile; its `name` is not for setting."""
    return key in known_keys() and key != "name"


def as_settings(part: Any) -> dict[str, Any]:
    """A part of a profile as plain data, for a record's settings."""
    return copy.deepcopy(dataclasses.asdict(part))


def _keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(kind):
        keys.append(prefix + field.name)
        for nested in (field.type, *getattr(field.type, "__args__", ())):
            if dataclasses.is_dataclass(nested):
                keys += _keys(nested, f"{prefix}{field.name}.")
    return keys


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    if not is_key(key):
        close = difflib.get_close_matches(key, known_keys(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the keys are in {FOLDER.name}/*.yaml"
        raise InputError(f"unknown profile key {key!r} (= {value!r}): {hint}")
    *path, last = key.split(".")
    for step in path:
        values[step] = dict(values.get(step) or {})
        values = values[step]
    values[last] = value


def _one_line(error: ValidationError) -> str:
    """The first complaint, without pydantic's names for the branches of a union."""
    first = error.errors()[0]
    known = {key.split(".")[-1] for key in known_keys()}
    keys = [str(part) for part in first["loc"] if str(part) in known or isinstance(part, int)]
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key {'.'.join(map(str, first['loc']))!r} (= {first['input']!r})"
    key = ".".join(keys)
    return f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
