"""On a GPU: half precision against full, the scaler, bitsandbytes, too little memory, timing, and the whole series."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from helpers import ROOT, profiles
from helpers.compression import quantization, runtimes
from helpers.experiments import speed
from helpers.measure import machine, records, timing
from helpers.models import checkpoints, finetuning
from helpers.profiles import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
RECIPE = Recipe(learning_rate=1e-4, epochs=2, batch_size=32, length=64)
WORDS = 2000


@pytest.fixture(autouse=True)
def clean_gpu():
    """Each test begins with an empty GPU, and leaves it one."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def classifier(width: int = 256, layers: int = 4, dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    chance = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(vocab_size=WORDS, num_labels=2, **shape, **chance)).cuda()


def rows(count: int = 512, length: int = 64) -> list[dict]:
    """Rows of unequal length; the label is which of two words comes first."""
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        ids = random.integers(10, WORDS, random.integers(length // 2, length + 1))
        ids[1] = 5 + (label := int(random.integers(2)))
        found.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
        found[-1]["labels"] = np.int64(label)
    return found


def trained(folder: Path, precision: str, examples: list[dict], recipe: Recipe = RECIPE, prepare=lambda trainer: None):
    """A model trained in some precision: itself, its trainer, what it cost, and its logits [rows, classes]."""
    model = classifier()
    trainer = finetuning.FineTuner(model, examples, recipe, 0, folder / precision, precision, pad_id=0)
    prepare(trainer)
    cost = finetuning.fine_tune(trainer)
    said = finetuning.predict(model, examples, 64, 0)
    return model, trainer, cost, np.stack([one["logits"] for one in said])


def test_half_precision_learns_as_full_precision_does(tmp_path):
    """The same losses within rounding on the way, and the same answers at the end; bf16 where the GPU truly has it."""
    examples = rows()
    offered = machine.gpu_precisions()
    curves, right = {}, {}
    for precision in offered:
        _, trainer, _, logits = trained(tmp_path, precision, examples)
        curves[precision] = np.array([line["loss"] for line in trainer.state.log_history if "loss" in line])
        right[precision] = np.mean(logits.argmax(-1) == [int(one["labels"]) for one in examples])
    assert "fp16" in offered and right["fp32"] > 0.9, "there is something to learn, and it is learnt"
    for precision in offered:
        np.testing.assert_allclose(curves[precision][:5], curves["fp32"][:5], rtol=0.02, err_msg=precision)
        assert abs(right[precision] - right["fp32"]) < 0.05, precision


def test_the_scaler_skips_what_overflows(tmp_path):
    """Losses that fp16 gradients cannot hold, for three steps: skipped, the scale lowered, and training goes on."""
    scales = []

    def make_it_overflow(trainer: finetuning.FineTuner) -> None:
        plain = trainer.compute_loss

        def compute_loss(*given, **named):
            scales.append(trainer.accelerator.scaler.get_scale())
            return plain(*given, **named) * (1e30 if trainer.state.global_step < 3 else 1.0)

        trainer.compute_loss = compute_loss
        trainer.args.logging_steps = 1000  # the losses of those steps are no losses

    model, trainer, _, logits = trained(tmp_path, "fp16", rows(), prepare=make_it_overflow)
    assert scales[3] < scales[0] and scales[-1] == scales[4]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters()) and np.isfinite(logits).all()


@pytest.mark.parametrize("variant", ["bnb_int8", "bnb_nf4", "bnb_nf4_double", "bnb_fp4", "fp16"])
def test_fewer_bits_give_nearly_the_same_answers(tmp_path, variant):
    if variant.startswith("bnb") and (reason := quantization.why_no_bits(torch.device("cuda"), 8)):
        pytest.skip(reason)
    examples = rows(256)
    model, _, _, logits = trained(tmp_path, "fp32", examples)
    model.to("cpu").save_pretrained(tmp_path / "plain")
    quantization.save(variant, tmp_path / "plain", tmp_path / "variant")
    run = runtimes.load(tmp_path / "variant", threads=1, device="cuda")
    said = np.concatenate([run({n: one[n][None] for n in runtimes.NAMES}) for one in examples])
    labels = np.array([int(one["labels"]) for one in examples])
    assert np.mean(said.argmax(-1) == logits.argmax(-1)) > 0.95
    assert np.mean(said.argmax(-1) == labels) > np.mean(logits.argmax(-1) == labels) - 0.05
    assert run.touch() < 0.9 * sum(4 * parameter.numel() for parameter in model.parameters())


def test_too_little_memory_means_smaller_parts(tmp_path):
    """Half of the memory that whole batches take: more parts, the same batches, the same weights."""
    examples, recipe = rows(128, 512), RECIPE.model_copy(update={"batch_size": 64, "length": 512, "epochs": 1})
    first, _, cost, expected = trained(tmp_path / "whole", "fp32", examples, recipe)
    assert "batch_parts" not in cost
    most, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    del first
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * most / total)
    _, _, cost, logits = trained(tmp_path / "parts", "fp32", examples, recipe)
    assert cost["batch_parts"] in (2, 4)
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_timing_waits_for_the_gpu():
    """Work that the processor only starts, and the GPU does: by its own events as long as by a clock that waits."""
    matrix = torch.randn(4096, 4096, device="cuda")

    def work():
        for _ in range(10):
            matrix @ matrix

    def waited() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    work()
    timer = timing.timer("cuda")
    events, clock = (float(np.median([measure() for _ in range(20)])) for measure in (lambda: timer(work), waited))
    assert events == pytest.approx(clock, rel=0.2)
    taken = timing.seconds({"one": lambda: matrix @ matrix, "ten": work}, profiles.load("mini").timing, timer=timer)
    assert 7 < timing.ratio(taken["ten"], taken["one"]).value < 13


def test_memory_on_the_gpu_is_told(tmp_path):
    model = classifier(width=512)
    weights = 4 * checkpoints.parameters(model) / 1e6
    model.to("cpu").save_pretrained(tmp_path)
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "runs"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    found = runtimes.alone(tmp_path, "river runs", threads=1, device="cuda")
    assert weights <= found["peak_gpu_memory_mb"] < 2.5 * weights + 50


def test_the_series_runs_on_the_gpu(tmp_path):
    """Every notebook on the mini-world, with all that can be on the GPU."""
    pytest.importorskip("papermill")
    command = [sys.executable, "-m", "tools.run", "--set", f"store={tmp_path}", "--set", "device=cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [records.read_record(path) for path in (tmp_path / "results/mini/records").rglob("*.json")]
    assert {record["provenance"]["gpu"]["name"] for record in found} == {torch.cuda.get_device_name(0)}
    assert any(record["unit"].get("device") == "cuda" for record in found)


def test_records_of_this_gpu(page):
    """BERT-base against DistilBERT at full size on this GPU: kept in results/gpu-<name>/."""
    lengths, batches = [8, 16, 32, 64, 128, 256, 512], [2, 4, 8, 16, 32, 64]
    asked = {"device": "cuda", "speed.full_size": True, "speed.lengths": lengths, "speed.batches": batches}
    profile = profiles.load("mini", asked | {"timing": profiles.load("t4").timing.model_dump()})
    name = f"gpu-{torch.cuda.get_device_name(0).replace(' ', '-').lower()}"
    space = records.Workspace(profile, name=name)
    experiment = speed.Speed(profile, space)
    experiment.ways = {"length": page("08_speed_and_size", "latency", "inputs", "ask", "asking", "flops")[0]}
    units = [unit for unit in experiment.units if unit.get("device") == "cuda" and unit["pair"] == "full"]
    found = experiment.run(units)
    assert len(found) == len(units) and all(math.isfinite(record["metrics"]["times_as_fast"]) for record in found)
