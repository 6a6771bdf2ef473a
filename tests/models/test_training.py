"""Resuming: the newest checkpoint that is whole, however a run was cut off."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers.models import training


@pytest.fixture
def place(tmp_path):
    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.ones(100)}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"state": torch.ones(100)}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return tmp_path


def test_the_newest_is_taken(place):
    assert training.last_checkpoint(place).name == "checkpoint-20"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_past_a_damaged_one_the_one_before_it_is_taken_f5(place, name, damage):
    """F5: after a power cut, a damaged optimizer.pt stopped its unit at every run, for ever."""
    path = place / "checkpoint-20" / name
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    if damage == "changed" and name != "model.safetensors":  # whose values have no checksum of their own
        whole[middle : middle + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(bytes(whole[:middle]) if damage == "cut off" or name == "model.safetensors" else bytes(whole))
    assert training.last_checkpoint(place).name == "checkpoint-10"
    assert not path.parent.exists()


def test_without_a_whole_one_it_starts_anew(place):
    for folder in place.iterdir():
        (folder / "trainer_state.json").unlink()
    assert training.last_checkpoint(place) is None and not list(place.iterdir())
