"""What a GPU is worth here, on record in results/gpu-<name>/; without one the same in small, kept nowhere."""

import functools
import shutil
import statistics
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from helpers import profiles
from helpers.compression import quantization, runtimes, variants
from helpers.data import encoding
from helpers.experiments import compression
from helpers.measure import machine, records, timing
from helpers.models import distillation, finetuning
from helpers.profiles import Recipe, Timing

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BERT = {} if GPU else {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SMALL = {} if GPU else {"dim": 64, "hidden_dim": 128, "n_layers": 1, "n_heads": 2}
WORDS = 30_522 if GPU else 1_200
RULES = profiles.load("t4").timing if GPU else Timing(least_runs=5, least_seconds=0.0)
BATCH, LENGTH = (32, 128) if GPU else (4, 16)


@pytest.fixture
def keep(tmp_path):
    """Writes a record: to results/gpu-<name>/ or, of the small ones, where they are soon forgotten."""
    profile = profiles.load("mini")
    name = f"gpu-{torch.cuda.get_device_name(0).replace(' ', '-').lower()}" if GPU else "dry"
    space = records.Workspace(profile, None if GPU else str(tmp_path), name=name)

    def write(experiment: str, unit: dict, scores: dict, seconds: dict | None = None) -> dict:
        scores = {key: float(value) for key, value in scores.items()}
        made = [{"id": "shapes of BERT-base and DistilBERT", "revision": None, "weights": "random"}]
        settings = {"batch": BATCH, "length": LENGTH, "device": DEVICE.type, "torch": torch.__version__}
        origin = records.provenance(datetime.now(UTC), [], made)
        measured = records.Measurement(scores, [], made, {"seconds": timing.rounded(seconds or {})})
        written = space.write(experiment, unit, settings, measured, origin)
        assert records.read_record(space.path(experiment, unit, settings)) == written
        return written

    return write


@pytest.fixture(autouse=True)
def as_it_was():
    """TF32 and memory's peak, which tests set."""
    yield
    torch.backends.cuda.matmul.allow_tf32 = False
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> dict[str, float]:
    return {"peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 1e6} if GPU else {}


def precisions() -> list[str]:
    """Those that the device multiplies in, TF32 beside them where there are tensor cores for it."""
    if not GPU:
        return [one for one in machine.processor_precisions() if one != "fp16"]
    has_tf32 = torch.cuda.get_device_capability()[0] >= 8
    return machine.gpu_precisions() + ["tf32"] * has_tf32


def batch_of(rows: int) -> dict[str, torch.Tensor]:
    """Full blocks of random words, 15% of them masked."""
    random = np.random.default_rng(0)
    ids = random.integers(5, WORDS, (rows, LENGTH))
    gaps = random.random(ids.shape) < 0.15
    given = {"input_ids": np.where(gaps, 4, ids), "labels": np.where(gaps, ids, encoding.IGNORED)}
    given["attention_mask"] = np.ones_like(ids)
    return {name: torch.from_numpy(values).to(DEVICE) for name, values in given.items()}


def step_of(precision: str, compiled: bool):
    """A distillation step by the paper's objective, BERT-base teaching DistilBERT's shape: a call, its loss."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dropless = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = BertForMaskedLM(BertConfig(vocab_size=WORDS, **dropless, **BERT)).eval().to(DEVICE)
    student = distillation.from_teacher(teacher.cpu(), range(0, teacher.config.num_hidden_layers, 2)).train().to(DEVICE)
    teacher.to(DEVICE)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    scaler, batch = torch.amp.GradScaler(DEVICE.type, enabled=precision == "fp16"), batch_of(BATCH)
    half = precision in ("bf16", "fp16")
    counts = distillation.token_counts([{name: values.cpu() for name, values in batch.items()}])

    def terms() -> torch.Tensor:
        with torch.autocast(DEVICE.type, machine.DTYPES[precision] if half else None, enabled=half):
            found = distillation.loss_terms(student, teacher, batch)
        return sum(w * found[n] / counts[n] for n, w in {"distillation": 5, "masked_lm": 2, "cosine": 1}.items())

    loss_of = torch.compile(terms) if compiled else terms

    def step() -> float:
        loss = loss_of()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.item()

    return step


@pytest.mark.parametrize("compiled", [False, True])
def test_the_distillation_step(keep, compiled):
    """Tokens a second in each precision; before any learning all have the loss of fp32, but for rounding."""
    if compiled and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    if compiled and not GPU:
        pytest.skip("compiled on a GPU alone: it would take minutes here")
    first = {}
    for precision in precisions():
        step = step_of(precision, compiled)
        compiling = timing.timed(lambda step=step, name=precision: first.update({name: step()}))
        taken = timing.seconds({precision: step}, RULES, timer=timing.timer(DEVICE.type))
        scores = {"tokens_per_s": BATCH * LENGTH / statistics.median(taken[precision]), "first_step_seconds": compiling}
        unit = {"precision": precision, "compiled": str(compiled)}
        keep("distillation_step", unit, scores | timing.latencies(taken[precision]) | peak_mb(), taken)
        assert first[precision] == pytest.approx(first["fp32"], rel=0.02), precision


@pytest.mark.parametrize("bits", ["fp16", "bf16", "bnb_int8", "bnb_nf4", "bnb_fp4", "torchao_int8"])
def test_fewer_bits_at_the_size_of_distilbert(keep, tmp_path, bits):
    """A row's latency and a batch's beside fp32's, all by the GPU's own events, and the memory that is held."""
    if reason := quantization.why_not(bits, DEVICE.type):
        pytest.skip(reason)
    of = compression.Random(tmp_path, LENGTH, DistilBertConfig(vocab_size=WORDS, **SMALL))
    folders = {bits: of.folder(variants.parse(bits)), "fp32": of.whole}
    scores, seconds = {"size_mb": timing.size_mb(folders[bits])}, {}
    for name, rows in (("latency", 1), ("throughput", BATCH)):
        given = {key: np.repeat(values, rows, axis=0) for key, values in of.row.items()}
        runs = {key: runtimes.load(folder, 1, DEVICE.type) for key, folder in folders.items()}
        answers = {key: run(given) for key, run in runs.items()}
        assert np.abs(answers[bits] - answers["fp32"]).max() < 0.1 * (1 + np.abs(answers["fp32"]).max())
        calls = {key: functools.partial(run, given) for key, run in runs.items()}
        taken = timing.seconds(calls, RULES, timer=timing.timer(DEVICE.type))
        scores |= timing.ratio(taken["fp32"], taken[bits]).named(f"{name}_times_as_fast")
        scores[f"{name}_p50_ms"] = 1e3 * statistics.median(taken[bits])
        seconds |= {f"{name} {key}": own for key, own in taken.items()}
    keep("bits", {"variant": bits}, scores | peak_mb(), seconds)


def test_a_pass_over_rows_as_long_as_stsb_s(keep):
    """BERT-base's and DistilBERT's shapes, row by row, in turn: the claim of 60% faster, on a GPU."""
    small = distillation.configuration(BertConfig(vocab_size=WORDS, **BERT), 6 if GPU else 1)
    torch.manual_seed(0)
    large = BertForSequenceClassification(BertConfig(vocab_size=WORDS, num_labels=1, **BERT)).eval().to(DEVICE)
    models = {"large": large, "small": DistilBertForSequenceClassification(small).eval().to(DEVICE)}
    random = np.random.default_rng(0)
    rows = [random.integers(5, WORDS, (1, n)) for n in random.integers(10, 45, 300 if GPU else 10)]
    rows = [torch.from_numpy(ids).to(DEVICE) for ids in rows]

    @torch.inference_mode()
    def over(model) -> None:
        for ids in rows:
            model(input_ids=ids)

    calls = {name: functools.partial(over, model) for name, model in models.items()}
    taken = timing.seconds(calls, RULES, warm_up=1, timer=timing.timer(DEVICE.type))
    found = timing.ratio(taken["large"], taken["small"]).named("times_as_fast")
    keep("pass", {"rows": len(rows)}, found, taken)
    assert found["times_as_fast"] > 1, "half of the layers, and no pooler"


def test_padded_against_grouped_fine_tuning(keep, tmp_path):
    """The same rows and steps, every batch padded to the limit, or to its longest row with rows of like length."""
    torch.manual_seed(0)
    random, recipe = np.random.default_rng(0), Recipe(learning_rate=1e-4, epochs=1, batch_size=BATCH, length=LENGTH)
    rows = []
    for length in random.integers(LENGTH // 8, LENGTH // 2, 2000 if GPU else 40):
        ids = random.integers(5, WORDS, length)
        rows.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": np.int64(ids[0] % 2)})
    taken = {}
    for name, pad_to in (("grouped", None), ("padded", LENGTH)):
        model = BertForSequenceClassification(BertConfig(vocab_size=WORDS, **BERT)).to(DEVICE)
        precision = "fp16" if GPU else "fp32"
        trainer = finetuning.FineTuner(model, rows, recipe, 0, tmp_path / name, precision, pad_id=0, pad_to=pad_to)
        taken[name] = 60 * finetuning.fine_tune(trainer)["training_minutes"]
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    scores = {f"{name}_seconds": seconds for name, seconds in taken.items()}
    keep("padding", {"rows": len(rows)}, scores | {"times_as_fast": taken["padded"] / taken["grouped"]} | peak_mb())


def test_what_is_kept_is_of_this_machine(keep):
    record = keep("pass", {"rows": 0}, {"times_as_fast": 1.0})
    gpu = record["provenance"]["gpu"]
    assert (gpu["name"] == torch.cuda.get_device_name(0)) if GPU else gpu is None
