"""What the machine offers: precision by what the hardware has, and a GPU that is missing or cannot be used."""

import pytest
import torch
from transformers import BertConfig

from helpers import InputError, profiles
from helpers.measure import machine, records


def test_precision_goes_by_what_the_hardware_truly_has(monkeypatch):
    profile = profiles.load("t4", {"device": "cpu"})
    for flags, expected in ((["avx512_bf16"], "bf16"), (["amx_bf16"], "bf16"), (["avx2"], "fp32")):
        monkeypatch.setattr(records, "cpu", lambda flags=flags: {"model": "", "flags": flags})
        assert machine.precision(profile) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 answers
    for capability, expected in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert machine.precision(profiles.load("t4")) == expected
    with pytest.raises(InputError, match="fp16"):
        machine.precision(profiles.load("t4", {"device": "cpu", "precision": "fp16"}))


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for name in ("t4", "paper"):
        with pytest.raises(InputError, match="torch sees no GPU here: in Colab, .* or set device to cpu"):
            machine.device(profiles.load(name))
        assert machine.device(profiles.load(name, {"device": "cpu"})).type == "cpu"


def test_an_old_driver_is_named(monkeypatch):
    def too_old():  # the beginning of what torch says
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(InputError, match=r"no GPU here \(the NVIDIA driver is too old for this torch"):
        machine.device(profiles.load("t4"))


def test_more_threads_than_cores_are_refused():
    machine.require_cores("edge.threads", [1])
    with pytest.raises(InputError, match=f"edge.threads has 999, and this machine has cores: {machine.usable_cores()}"):
        machine.require_cores("edge.threads", [1, 999])


def test_reading_is_faster_with_fewer_layers_and_is_timed_once(monkeypatch):
    monkeypatch.setattr(machine, "_rates", {})
    shape = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    deep, shallow = (BertConfig(num_hidden_layers=layers, **shape) for layers in (16, 1))
    rates = [machine.tokens_per_s(config, torch.device("cpu"), "fp32") for config in (deep, shallow)]
    assert 100 < rates[0] < rates[1] < 1e9
    assert machine.tokens_per_s(deep, torch.device("cpu"), "fp32") == rates[0]
    assert machine.tokens_per_s(deep, torch.device("cpu"), "bf16") > 0 and len(machine._rates) == 3


def test_a_matrix_product_has_a_rate(page):
    (matmul_rates,) = page("00_start_here", "matmul_rates")
    rates = matmul_rates(torch.device("cpu"), "fp32", repeats=3)
    assert len(rates) == 3 and all(0.01 < rate < 1e6 for rate in rates)
