"""A profile by name: every default of the series in one place, strict about what it does not know.

A profile is a YAML file beside this module, read into the classes below. Any value can be overridden
for a run under its dotted name, as in `load("mini", {"distillation.seeds": [0, 1]})`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, Strict, ValidationError, model_validator

from .. import InputError

FOLDER = Path(__file__).parent
NAMES = ("mini", "laptop", "t4", "paper")


def _read_number(value: Any) -> Any:
    """YAML takes 2e-4 for a string (it wants 2.0e-4): read it as the number it is meant to be."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _once(values: list) -> list:
    """A list that names nothing twice: what is measured twice would count twice."""
    if len({str(value) for value in values}) < len(values):
        raise ValueError("each only once")
    return values


MOST = 10**9  # of anything that is counted: more would run until it is killed
Once = AfterValidator(_once)
Count = Annotated[int, Strict(), Field(ge=0, le=MOST)]
Positive = Annotated[int, Strict(), Field(ge=1, le=MOST)]
Number = Annotated[float, Strict(), BeforeValidator(_read_number), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Number, Field(le=1)]
Rate = Annotated[Number, Field(gt=0)]
Below = Annotated[Number, Field(gt=0, lt=1)]  # a share that leaves something
Length = Annotated[Positive, Field(le=512)]  # in tokens; no model here takes more
Some = Field(min_length=1)
Seeds = Annotated[list[Count], Some, Once]
Task = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
Tasks = Annotated[list[Task], Some, Once]
Student = Literal["student", "twin", "random", "dropped", "twin_time"]
Pretrained = Literal["teacher", "released", Student]
Models = Annotated[list[Literal[Pretrained, "student_d", "dropped_d"]], Some, Once]  # fine-tuned; _d: by a teacher, too
Compressed = Annotated[list[Literal["sst2", "mrpc"]], Some, Once]  # the tasks whose models are made smaller


class Part(BaseModel, frozen=True, extra="forbid"):
    """What parts of a profile have in common: as plain data, by `model_dump`, they go into the settings of records."""


class Corpus(Part):
    """Text to pretrain on and to measure on, cut into blocks."""

    id: str  # of the data set
    train: str  # configuration whose train split is learnt from
    heldout: str  # configuration whose validation split is measured on
    block_length: Annotated[Length, Field(ge=8)]  # tokens, [CLS] and [SEP] counted
    train_blocks: Positive | None = None  # cap; None: all of them
    heldout_blocks: Positive | None = None  # cap; None: all of them
    curve_blocks: Positive = 64  # held-out blocks measured again and again while a model trains


class Source(Part):
    """One of the texts that notebook 12's models read, of its training rows."""

    id: str  # of the data set
    config: str
    columns: Annotated[list[str], Field(min_length=1, max_length=2), Once]  # two: pairs, each of which is one input
    share: Annotated[Rate, Field(le=1)]  # of the tokens; less where it has fewer


class Architecture(Part):
    """The shape of a BERT encoder that is made from nothing."""

    layers: Positive
    width: Positive
    heads: Positive
    feed_forward: Positive
    initializer_range: Rate = 0.02  # BERT's, made for a width of 768; a narrow model needs more to start learning
    dropout: Share = 0.1

    @model_validator(mode="after")
    def _shared(self) -> "Architecture":
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared among {self.heads} heads")
        return self


class Training(Part):
    """One stage of training: so many steps of so many blocks."""

    steps: Positive
    batch_size: Positive  # blocks held in memory at a time
    accumulation: Positive  # batches added up in one step
    learning_rate: Rate
    warmup: Share = 0.05  # share of the steps
    clip: Rate = 5.0  # largest norm of the gradient
    evaluations: Count = 5  # times the held-out curve is measured on the way
    save_minutes: Rate = Field(5.0, exclude=True)  # a checkpoint to resume from at least this often


class TeacherTraining(Part):
    """What the teacher still has to learn before it can teach; no steps where it comes with a masked-LM head."""

    architecture: Architecture | None = None  # None: the teacher's own weights are the start
    head: Training | None = None  # the masked-LM head alone, the encoder frozen
    whole: Training | None = None  # all weights


class Distillation(Part):
    """Pretraining distillation: the student, the triple loss and its training."""

    variants: Annotated[list[Student], Some]
    layers: Positive | Annotated[list[Count], Some, Once]  # how many, or which of the teacher's
    seeds: Seeds
    training: Training
    snapshots: Annotated[list[Annotated[Share, Field(gt=0, lt=1)]], Once] = Field(default_factory=list)  # parts done
    equal_time: Rate | None = None  # steps of twin_time over the student's: what a step of theirs takes, measured in 01
    temperature: Rate = 2.0
    weight_distillation: Number = 5.0
    weight_masked_lm: Number = 2.0
    weight_cosine: Number = 1.0
    positions: Literal["all", "masked"] = "all"  # where the teacher's distribution is matched
    mask_rate: Below = 0.15
    mask_smoothing: Share = 0.0  # masking probability is proportional to a token's count to minus this


class Recipe(Part):
    """How a model is fine-tuned for a task: the same for all models that are compared on it."""

    learning_rate: Rate
    epochs: Positive
    batch_size: Positive = 32
    evaluation_batch_size: Positive = 64
    length: Annotated[Length, Field(ge=8)] = 128  # tokens; a longer text is cut off, a longer context goes in windows
    train_rows: Positive | None = None  # cap, drawn at random; None: all of them
    dev_rows: Positive | None = None  # cap, drawn at random; None: all of them
    warmup: Share = 0.1  # share of the steps
    weight_decay: Number = 0.01
    clip: Rate = 1.0  # largest norm of the gradient


class Padding(Part):
    """What padding costs: some SST-2 training, once padded to a fixed length in fp32, once as everywhere else here."""

    rows: Positive
    epochs: Positive
    seeds: Seeds
    length: Positive = 128


class Glue(Part):
    """The tasks of notebook 02."""

    tasks: Tasks
    models: Models
    seeds: Seeds
    recipes: dict[Task, Recipe]
    padding: Padding


class Ablation(Part):
    """Table 4: students whose pretraining lacks something, and the tasks that judge them."""

    variants: list[Literal["no_distillation", "no_masked_lm", "no_cosine", "quarter_text"]]
    tasks: Tasks
    seeds: Seeds  # of the fine-tuning


class Imdb(Part):
    """Sentiment of whole reviews: notebook 03."""

    models: Models
    seeds: Seeds
    recipe: Recipe
    lengths: Annotated[list[Annotated[Length, Field(ge=8)]], Once]  # tried with the student, beside the recipe's own


class Longer(Part):
    """More epochs of the same recipe."""

    epochs: Positive
    seeds: Seeds


class Squad(Part):
    """Question answering: notebook 04."""

    models: Models
    seeds: Seeds
    recipe: Recipe
    stride: Positive = 128  # tokens that one window shares with the next
    longest_answer: Positive = 30  # tokens
    temperature: Rate = 2.0  # of the second distillation
    longer: Longer | None = None  # another try, of all models


class Perplexity(Part):
    """How well text is predicted: notebook 05."""

    models: Annotated[list[Pretrained], Some]
    seeds: Seeds  # of the fine-tuning on WikiText-2 and on GSM8K
    learning_rate: Rate
    epochs: Positive = 1
    batch_size: Positive = 16
    train_blocks: Positive | None = None  # cap, drawn at random; None: all of them
    mask_rate: Below = 0.15
    draws: Positive = 3  # of the masks, all on the same blocks
    blocks: Positive | None = None  # cap on each text that is measured on, drawn at random; None: all of them
    pseudo_blocks: Positive = 40  # of these, every token is masked alone
    mistake_rows: Positive = 200  # on which each common mistake is made
    sentences: Positive = 200  # on which our scoring is timed against a plain loop
    rounds: Positive = 30  # of each timing


class Quantization(Part):
    """Fewer bits for the fine-tuned models: notebook 06."""

    tasks: Compressed
    models: Models
    variants: Annotated[list[str], Some] | None = None  # None: all that can be had here
    threads: Positive = 1
    length: Length = 128  # of the one row whose latency is timed
    batch_size: Positive = 32
    isolated: list[str] | None = None  # variants whose memory and cold start are measured; None: all
    repeats: Positive = 3  # processes a variant
    blocks: Positive = 400  # of held-out text, for the losses of each variant
    full_size: bool = True  # time the variants at DistilBERT's own size, too


class Recovery(Part):
    """How a pruned model is trained again; all else is as in its task's recipe."""

    learning_rate: Rate
    epochs: Positive


class Pruning(Part):
    """Weights, heads, neurons and layers taken away: notebook 07. Measured as in `quantization`."""

    tasks: Compressed
    models: Models
    weights: list[Below]  # shares of the encoder's weights set to zero
    shares: Annotated[list[Below], Some]  # of heads and neurons that are cut out
    importances: Annotated[list[Literal["taylor", "magnitude", "random"]], Some]  # by which of them
    masked: list[Below]  # shares of heads and neurons that are set to zero instead
    layers: list[Positive]  # how many stay
    recovered: list[Literal["weights", "taylor", "magnitude", "random", "layers"]]  # ways that are trained again
    recovery: Recovery
    calibration_rows: Positive = 256  # training rows by which importance is judged
    isolated: list[str] | None = None  # variants whose memory and cold start are measured; None: all
    elsewhere: list[str] | None = None  # what is taken away on tasks after the first, as in taylor_50; None: all of it


class Speed(Part):
    """A large model against a small one, timed: notebook 08."""

    lengths: Annotated[list[Length], Some]  # of one row
    batches: list[Positive]  # of rows of `length`
    depth_lengths: Annotated[list[Length], Some]  # at which models of 1, 2, … layers are timed
    depths: Annotated[list[Positive], Field(min_length=2)]
    threads: Annotated[list[Positive], Some]
    length: Length = 128
    runs: Positive = 2  # of all lengths, to see how well they agree
    rows: Positive | None = None  # of STS-B's dev set; None: all
    repeats: Positive = 3  # processes a model, for memory and cold start
    full_size: bool = True  # BERT-base and DistilBERT, too


class Edge(Part):
    """The student exported for ONNX Runtime: notebook 09."""

    variants: list[str]  # what is taken away first, as notebook 07 calls it; each is measured in 8 bits, too
    threads: Annotated[list[Positive], Some]
    length: Length = 128  # of the one row whose latency is timed
    blocks: Positive = 50  # of held-out text, on which masked words are guessed
    repeats: Positive = 3  # processes a model, for memory and cold start


class Timing(Part):
    """How long a thing is timed: at least so many runs and seconds, and hardly longer than `most_seconds`."""

    least_runs: Positive = 30
    least_seconds: Number = 2.0
    most_seconds: Rate = 20.0


class Profile(Part):
    """All that a run of the series needs to know."""

    name: str
    hub: Literal["miniworld", "huggingface"]  # where data sets come from
    teacher: str  # Hub id or folder, ID@REVISION to pin it; "miniworld": made from nothing in notebook 01
    released: str | None  # the released DistilBERT, where it is the teacher's own student
    corpus: Corpus
    mixture: Annotated[dict[str, Source], Some]  # by name
    teacher_training: TeacherTraining
    distillation: Distillation
    ablation: Ablation
    glue: Glue
    imdb: Imdb
    squad: Squad
    perplexity: Perplexity
    quantization: Quantization
    pruning: Pruning
    speed: Speed
    edge: Edge
    timing: Timing = Timing()
    revisions: dict[str, str] = Field(default_factory=dict)  # of data sets, by id: what isn't this one stops the run
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    longest: Positive | None = None  # steps of notebook 12's last student, in times those of notebook 01's
    threads: Positive | None = None  # None: as many as torch takes, one a core
    cell_timeout_minutes: Positive = 300


def load(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """The profile called `name`, with the values under dotted names in `overrides` put in place.

    InputError for what is unknown, of a wrong type or impossible: one line with the key, the value and what's expected.
    """
    if name not in NAMES:
        raise InputError(f"unknown profile {name!r}: expected one of {', '.join(NAMES)}")
    try:
        values = {"name": name} | yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"{FOLDER.name}/{name}.yaml: no profile ({told}); git checkout brings it back") from None
    if not isinstance(overrides or {}, dict):
        raise InputError(f'overrides = {overrides!r:.80}: expected {{"key": value}}, as {{"distillation.seeds": [0]}}')
    for key, value in (overrides or {}).items():
        _put(values, str(key), value)
    try:
        made = Profile(**values)
    except ValidationError as error:
        raise InputError(f"profile {name}: {_one_line(error)}") from None
    if made.teacher != "miniworld" and made.teacher_training.architecture:
        advice = "set it to null, or take --profile laptop"
        raise InputError(f"teacher = {made.teacher}: teacher_training.architecture makes one from nothing; {advice}")
    return made


def known_keys(kind: type = Profile, prefix: str = "") -> list[str]:
    """Every key of a profile, under its dotted name."""
    keys = []
    for own, field in kind.model_fields.items():
        name, parts = prefix + own, getattr(field.annotation, "__args__", ())
        tasks = [f"{name}.{task}" for task in Task.__args__] if Task in parts[:-1] else []  # a part for each
        keys += [name, *tasks]
        for nested in (one for one in (field.annotation, *parts) if hasattr(one, "model_fields")):
            keys += [key for place in tasks or [name] * (str not in parts) for key in known_keys(nested, f"{place}.")]
    return keys


def is_key(key: str) -> bool:
    """Whether `key` ("distillation.seeds", "precision") names something in a profile; its `name` is not for setting."""
    return key in known_keys() and key != "name"


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    if not is_key(key):
        close = difflib.get_close_matches(key, known_keys(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the keys are in {FOLDER.name}/*.yaml"
        raise InputError(f"unknown profile key {key!r} (= {value!r}): {hint}")
    *path, last = key.split(".")
    for step in path:
        if not isinstance(values.get(step), dict | None):
            raise InputError(f"{key}: {step} = {values[step]!r:.80} has no parts that could be set")
        values[step] = dict(values.get(step) or {})
        values = values[step]
    values[last] = value


def _one_line(error: ValidationError) -> str:
    """The first complaint, without pydantic's names for the branches of a union."""
    every = error.errors()
    first = next((one for one in every if not one["type"].endswith("_type")), every[0])  # of a union, the likelier one
    if first["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(map(str, first['loc']))!r} (= {first['input']!r:.80})"
    known = {key.split(".")[-1] for key in known_keys()} | {*(first["loc"] if "mixture" in first["loc"] else ())}
    key = ".".join(str(part) for part in first["loc"] if str(part) in known or isinstance(part, int))
    return f"{key} = {first['input']!r:.80}: {first['msg'][0].lower()}{first['msg'][1:]}"
