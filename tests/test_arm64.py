"""Models asked in an interpreter of their own, here and on an emulated ARM processor."""

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from helpers import InputError, arm64, edge, runners


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small classifier in fp32 and in 8 bits, in ORT's format."""
    torch.manual_seed(0)
    shape = {"dim": 64, "hidden_dim": 256, "n_layers": 2, "n_heads": 2, "vocab_size": 500}
    folder = tmp_path_factory.mktemp("exported")
    edge.export(DistilBertForSequenceClassification(DistilBertConfig(**shape)), folder, folder / "fp32")
    edge.quantize(folder / "fp32", folder / "int8", embeddings=True)
    for name in ("fp32", "int8"):
        edge.mobile(folder / name, folder / f"{name}_ort")
    return folder


@pytest.fixture(scope="module")
def rows():
    ids = [np.random.default_rng(length).integers(5, 500, (1, length)) for length in (4, 16)]
    return [{"input_ids": one, "attention_mask": np.ones_like(one), "token_type_ids": one} for one in ids]


def test_another_process_gives_the_same_answers(exported, rows):
    said, version = arm64.answers(exported / "fp32_ort/model.ort", rows, emulated=False)
    run = runners.load(exported / "fp32_ort", threads=1)
    for row, logits in zip(rows, said, strict=True):
        np.testing.assert_allclose(logits, run(row), atol=1e-6)
    assert version[0].isdigit()
    with pytest.raises(InputError, match="gone.ort: its process failed: "):
        arm64.answers(exported / "gone.ort", rows, emulated=False)


@pytest.mark.skipif(bool(arm64.why_not()), reason=str(arm64.why_not()))
@pytest.mark.parametrize(("name", "near"), [("fp32_ort", 1e-6), ("int8_ort", 1e-4)])
def test_an_arm_processor_gives_the_same_answers(exported, rows, name, near):
    (theirs, version), (ours, here) = (arm64.answers(exported / name / "model.ort", rows, on) for on in (True, False))
    assert version == here
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(one, other, atol=near)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(arm64, "HERE", tmp_path)
    monkeypatch.setattr(arm64.shutil, "which", lambda name: None)
    assert arm64.why_not().startswith("qemu-aarch64-static is not installed: apt-get install")
    monkeypatch.setattr(arm64.shutil, "which", lambda name: "/usr/bin/qemu")
    assert arm64.why_not() == "the emulated system is not set up: helpers/arm64.sh"
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/python3.11").touch()
    (tmp_path / "site").mkdir()
    assert arm64.why_not() is None
