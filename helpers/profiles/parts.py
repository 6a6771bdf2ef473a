"""What a profile is made of: strict dataclasses, a part for each notebook or what several share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

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
Below = Annotated[Number, Field(gt=0, lt=1)]  # a share that leaves something
Length = Annotated[Positive, Field(le=512)]  # in tokens; no model here takes more


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
class Perplexity:
    """How well text is predicted: notebook 05."""

    models: Annotated[list[Literal["teacher", "released", "student", "twin", "random"]], Field(min_length=1)]
    seeds: Seeds  # of the fine-tuning on WikiText-2 and on GSM8K
    learning_rate: Rate
    epochs: Positive = 1
    batch_size: Positive = 16
    train_blocks: Positive | None = None  # cap, drawn at random; None: all of them
    mask_rate: Annotated[Rate, Field(lt=1)] = 0.15
    draws: Positive = 3  # of the masks, all on the same blocks
    blocks: Positive | None = None  # cap on each text that is measured on, drawn at random; None: all of them
    pseudo_blocks: Positive = 40  # of these, every token is masked alone
    mistake_rows: Positive = 200  # on which each common mistake is made
    sentences: Positive = 200  # on which our scoring is timed against a plain loop
    rounds: Positive = 30  # of each timing


@dataclass(frozen=True, config=STRICT)
class Quantization:
    """Fewer bits for the fine-tuned models: notebook 06."""

    tasks: Annotated[list[Literal["sst2", "mrpc"]], Field(min_length=1)]
    models: Models
    variants: list[str] | None = None  # None: all that can be had here
    threads: Positive = 1
    length: Length = 128  # of the one row whose latency is timed
    batch_size: Positive = 32
    isolated: list[str] | None = None  # variants whose memory and cold start are measured; None: all
    repeats: Positive = 3  # processes a variant
    blocks: Positive = 400  # of held-out text, for the losses of each variant
    full_size: bool = True  # time the variants at DistilBERT's own size, too


@dataclass(frozen=True, config=STRICT)
class Recovery:
    """How a pruned model is trained again; all else is as in its task's recipe."""

    learning_rate: Rate
    epochs: Positive


@dataclass(frozen=True, config=STRICT)
class Pruning:
    """Weights, heads, neurons and layers taken away: notebook 07. Measured as in `quantization`."""

    tasks: Annotated[list[Literal["sst2", "mrpc"]], Field(min_length=1)]
    models: Models
    weights: list[Below]  # shares of the encoder's weights set to zero
    shares: list[Below]  # of heads and neurons that are cut out
    importances: list[Literal["taylor", "magnitude", "random"]]  # by which of them
    masked: list[Below]  # shares of heads and neurons that are set to zero instead
    layers: list[Positive]  # how many stay
    recovered: list[Literal["weights", "taylor", "magnitude", "random", "layers"]]  # ways that are trained again
    recovery: Recovery
    calibration_rows: Positive = 256  # training rows by which importance is judged
    isolated: list[str] | None = None  # variants whose memory and cold start are measured; None: all
    elsewhere: list[str] | None = None  # what is taken away on tasks after the first, as in taylor_50; None: all of it


@dataclass(frozen=True, config=STRICT)
class Speed:
    """A large model against a small one, timed: notebook 08."""

    lengths: Annotated[list[Length], Field(min_length=1)]  # of one row
    batches: list[Positive]  # of rows of `length`
    depth_lengths: list[Length]  # at which models of 1, 2, … layers are timed
    depths: Annotated[list[Positive], Field(min_length=2)]
    threads: Annotated[list[Positive], Field(min_length=1)]
    length: Length = 128
    runs: Positive = 2  # of all lengths, to see how well they agree
    rows: Positive | None = None  # of STS-B's dev set; None: all
    repeats: Positive = 3  # processes a model, for memory and cold start
    full_size: bool = True  # BERT-base and DistilBERT, too


@dataclass(frozen=True, config=STRICT)
class Edge:
    """The student exported for ONNX Runtime: notebook 09."""

    variants: list[str]  # what is taken away first, as notebook 07 calls it; each is measured in 8 bits, too
    threads: Annotated[list[Positive], Field(min_length=1)]
    length: Length = 128  # of the one row whose latency is timed
    blocks: Positive = 50  # of held-out text, on which masked words are guessed
    repeats: Positive = 3  # processes a model, for memory and cold start


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
    perplexity: Perplexity
    quantization: Quantization
    pruning: Pruning
    speed: Speed
    edge: Edge
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Positive | None = None  # None: as many as torch takes, one a core
    cell_timeout_minutes: Positive = 300
