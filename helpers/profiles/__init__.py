"""A profile by name: every default of the series in one place, strict about what it does not know.

A profile is a YAML file beside this module, read into the frozen dataclasses below. Any value can be overridden
for a run under its dotted name, as in `load("mini", {"distillation.seeds": [0, 1]})`.
"""

import copy
import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .. import InputError

FOLDER = Path(__file__).parent
NAMES = ("mini", "laptop", "t4", "paper")
STRICT = ConfigDict(extra="forbid")


def _read_number(value: Any) -> Any:
    """YAML takes 2e-4 for a string (it wants 2.0e-4): read it as the number it is meant to be."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Count = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[float, Strict(), BeforeValidator(_read_number), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Number, Field(le=1)]
Rate = Annotated[Number, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class Corpus:
    """Text to pretrain on and to measure on, cut into blocks."""

    id: str  # of the data set
    train: str  # configuration whose train split is learnt from
    heldout: str  # configuration whose validation split is measured on
    block_length: Annotated[Positive, Field(ge=8)]  # tokens, [CLS] and [SEP] counted
    train_blocks: Positive | None = None  # cap; None: all of them
    heldout_blocks: Positive | None = None  # cap; None: all of them
    curve_blocks: Positive = 64  # held-out blocks measured again and again while a model trains


@dataclass(frozen=True, config=STRICT)
class Architecture:
    """The shape of a BERT encoder that is made from nothing."""

    layers: Positive
    width: Positive
    heads: Positive
    feed_forward: Positive
    initializer_range: Rate = 0.02  # BERT's, made for a width of 768; a narrow model needs more to start learning
    dropout: Share = 0.1


@dataclass(frozen=True, config=STRICT)
class Training:
    """One stage of training: so many steps of so many blocks."""

    steps: Count
    batch_size: Positive  # blocks held in memory at a time
    accumulation: Positive  # batches added up in one step
    learning_rate: Rate
    warmup: Share = 0.05  # share of the steps
    clip: Rate = 5.0  # largest norm of the gradient
    evaluations: Count = 5  # times the held-out curve is measured on the way
    save_minutes: Rate = 5.0  # a checkpoint to resume from at least this often


@dataclass(frozen=True, config=STRICT)
class TeacherTraining:
    """What the teacher still has to learn before it can teach; no steps where it comes with a masked-LM head."""

    architecture: Architecture | None = None  # None: the teacher's own weights are the start
    head: Training | None = None  # the masked-LM head alone, the encoder frozen
    whole: Training | None = None  # all weights


@dataclass(frozen=True, config=STRICT)
class Distillation:
    """Pretraining distillation: the student, the triple loss and its training."""

    variants: Annotated[list[Literal["student", "twin", "random"]], Field(min_length=1)]
    layers: Positive | Annotated[list[Count], Field(min_length=1)]  # how many, or which of the teacher's
    seeds: Annotated[list[Count], Field(min_length=1)]
    training: Training
    temperature: Rate = 2.0
    weight_distillation: Number = 5.0
    weight_masked_lm: Number = 2.0
    weight_cosine: Number = 1.0
    positions: Literal["all", "masked"] = "all"  # where the teacher's distribution is matched
    mask_rate: Annotated[Rate, Field(lt=1)] = 0.15
    mask_smoothing: Share = 0.0  # masking probability is proportional to a token's count to minus this


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """How a model is fine-tuned for a task: the same for all models that are compared on it."""

    learning_rate: Rate
    epochs: Positive
    batch_size: Positive = 32
    evaluation_batch_size: Positive = 64
    length: Annotated[Positive, Field(ge=8)] = 128  # tokens; a longer text is cut off, a longer context goes in windows
    train_rows: Positive | None = None  # cap, drawn at random; None: all of them
    dev_rows: Positive | None = None  # cap, drawn at random; None: all of them
    warmup: Share = 0.1  # share of the steps
    weight_decay: Number = 0.01
    clip: Rate = 1.0  # largest norm of the gradient


Finetuned = Literal["teacher", "released", "student", "student_d", "twin", "random"]  # student_d: distilled once more
Variant = Literal["no_distillation", "no_masked_lm", "no_cosine", "quarter_text"]
Task = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
Models = Annotated[list[Finetuned], Field(min_length=1)]
Seeds = Annotated[list[Count], Field(min_length=1)]
Tasks = Annotated[list[Task], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Recipes:
    """A recipe for each GLUE task that the profile has."""

    cola: Recipe | None = None
    sst2: Recipe | None = None
    mrpc: Recipe | None = None
    qqp: Recipe | None = None
    stsb: Recipe | None = None
    mnli: Recipe | None = None
    qnli: Recipe | None = None
    rte: Recipe | None = None
    wnli: Recipe | None = None


@dataclass(frozen=True, config=STRICT)
class Padding:
    """What padding costs: some SST-2 training, once padded to a fixed length in fp32, once as everywhere else here."""

    rows: Positive
    epochs: Positive
    seeds: Seeds
    length: Positive = 128


@dataclass(frozen=True, config=STRICT)
class Glue:
    """The tasks of notebook 02."""

    tasks: Tasks
    models: Models
    seeds: Seeds
    recipes: Recipes
    padding: Padding


@dataclass(frozen=True, config=STRICT)
class Ablation:
    """Table 4: students whose pretraining lacks something, and the tasks that judge them."""

    variants: list[Variant]
    tasks: Tasks
    seeds: Seeds  # of the fine-tuning


@dataclass(frozen=True, config=STRICT)
class Imdb:
    """Sentiment of whole reviews: notebook 03."""

    models: Models
    seeds: Seeds
    recipe: Recipe
    lengths: list[Annotated[Positive, Field(ge=8)]]  # tried with the student, beside the recipe's own


@dataclass(frozen=True, config=STRICT)
class Squad:
    """Question answering: notebook 04."""

    models: Models
    seeds: Seeds
    recipe: Recipe
    stride: Positive = 128  # tokens that one window shares with the next
    longest_answer: Positive = 30  # tokens
    temperature: Rate = 2.0  # of the second distillation


@dataclass(frozen=True, config=STRICT)
class Profile:
    """All that a run of the series needs to know."""

    name: str
    hub: Literal["miniworld", "huggingface"]  # where data sets come from
    teacher: str  # Hub id or folder; "miniworld": made from nothing in notebook 01
    released: str | None  # the released DistilBERT, where it is the teacher's own student
    corpus: Corpus
    teacher_training: TeacherTraining
    distillation: Distillation
    ablation: Ablation
    glue: Glue
    imdb: Imdb
    squad: Squad
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Positive | None = None  # None: as many as torch takes, one a core
    cell_timeout_minutes: Positive = 300


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
    keys = [
        str(part)
        for part in first["loc"]
        if str(part) in {k.split(".")[-1] for k in known_keys()} or isinstance(part, int)
    ]
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key {'.'.join(map(str, first['loc']))!r} (= {first['input']!r})"
    key = ".".join(keys)
    return f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
