"""The claims about size and speed, as numbers from records: a smaller model, fewer bits, pruning, a phone."""

from collections.abc import Sequence

import numpy as np

from . import comparison, deployments, metrics
from .claims import TIMED, Evidence, Finding, Part, basis, compared, counted, printed, times
from .downstream import unpack
from .language import of
from .variants import BASE

PAPER, EDGE, MSC = "sanh2019", "reproducibility-extension-challenge", "msc-compression"
WHOLE = "DistilBERT fp32, 0% structured pruning"
STUDENT = {"task": "sst2", "model": "student"}


def smaller(evidence: Evidence) -> Finding | None:
    """Parameters of DistilBERT's shape against BERT-base's."""
    own = [record for record in of(evidence("speed"), pair="full") if "alone" in record["unit"]]
    if not own:
        return None
    fewer = 100 * (1 - own[0]["metrics"]["small_parameters"] / own[0]["metrics"]["large_parameters"])
    claimed = printed(PAPER, "abstract", "size_reduction", "DistilBERT")
    return Finding([counted("parameters, fewer (%)", claimed, 0, fewer)], own)


def faster(evidence: Evidence) -> Finding | None:
    """The pass over STS-B, a row at a time on one thread, of DistilBERT's shape against BERT-base's."""
    own = of(evidence("speed"), pair="full", text="stsb", threads=1)
    if not own:
        return None
    seconds = [printed(PAPER, "3", "full_pass_seconds", model) for model in ("BERT-base", "DistilBERT")]
    return Finding([times(own[0], seconds[0] / seconds[1], "times_as_fast", "pass over STS-B: times as fast")], own)


def int8(evidence: Evidence) -> Finding | None:
    """PyTorch's dynamic int8, as it was published: size and speed at DistilBERT's shape, answers of our student."""
    shapes = {record["unit"]["variant"]: record for record in evidence("fullsize")}
    small, parts = of(evidence("quantization"), **STUDENT), []
    if {BASE, "torch_int8"} <= shapes.keys():
        sizes, rates = (
            [printed(EDGE, "edge", metric, model) for model in ("baseline", "int8 dynamic")]
            for metric in ("model_size", "throughput")
        )
        less = 100 * (1 - shapes["torch_int8"]["metrics"]["size_mb"] / shapes[BASE]["metrics"]["size_mb"])
        parts.append(counted("DistilBERT's size, less (%)", 100 * (1 - sizes[1] / sizes[0]), 0, less))
        what = "DistilBERT, one row: times as fast"
        parts.append(times(shapes["torch_int8"], rates[1] / rates[0], "latency_times_as_fast", what))
    if kept := _kept(small, "torch_int8", "DistilBERT 8-bit, 0% structured pruning"):
        parts.append(kept)
    at_size = [shapes[name] for name in ("torch_int8", BASE) if name in shapes]
    return Finding(parts, [*at_size, *of(small, variant="torch_int8")]) if parts else None


def four_bits(evidence: Evidence) -> Finding | None:
    """nf4 on a GPU: what it keeps."""
    own = _on_gpu(evidence)
    kept = _kept(own, "bnb_nf4", "DistilBERT 4-bit, 0% structured pruning", "T4")
    return Finding([kept], of(own, variant="bnb_nf4")) if kept else None


def slower_on_a_gpu(evidence: Evidence) -> Finding | None:
    """LLM.int8 on a GPU, one row."""
    own = of(_on_gpu(evidence), variant="bnb_int8")
    if not own:
        return None
    eight = "DistilBERT 8-bit, 0% structured pruning"
    seconds = [printed(MSC, "findings", "latency", model, "T4") for model in (WHOLE, eight)]
    claimed = seconds[0] / seconds[1]
    return Finding([times(own[0], claimed, "latency_times_as_fast", "one row: times as fast")], own)


def zeros(evidence: Evidence) -> Finding | None:
    """80% of the encoder's weights set to zero: size and speed."""
    return _cheaper(of(evidence("pruning"), **STUDENT), "weights_80", 100.0, 1.0)


def cutting(evidence: Evidence) -> Finding | None:
    """Half of heads and neurons cut, and recovered: size, speed and answers."""
    own = of(evidence("pruning"), **STUDENT)
    found = _cheaper(own, "taylor_50_recovered", None, None)
    kept = _kept(own, "taylor_50_recovered", "DistilBERT 8-bit, 50% structured pruning")
    return Finding([*found.parts, kept], found.records) if found and kept else None


def orthogonal(evidence: Evidence) -> Finding | None:
    """What pruning adds to the speed of int8: zeros, which the claim is about, and cutting."""
    own = {record["unit"]["variant"]: record for record in of(evidence("pruning"), **STUDENT)}
    names = {"weights_80_recovered": "80% of weights zero", "taylor_50_recovered": "half of heads and neurons cut"}
    parts, eight = [], f"{BASE}_int8"
    for name, words in names.items():
        if {f"{name}_int8", eight} <= own.keys():
            one, other = (own[key]["metrics"] for key in (f"{name}_int8", eight))
            ends = [
                one[f"latency_times_as_fast{end}"] / other[f"latency_times_as_fast{against}"]
                for end, against in (("", ""), ("_low", "_high"), ("_high", "_low"))
            ]
            parts.append(Part(f"{words}: times as fast as int8 alone", None, 1, *ends, TIMED, decimals=2))
    used = [own[key] for key in (*(f"{name}_int8" for name in names), eight) if key in own]
    return Finding(parts, used) if parts else None


def edge_ready(evidence: Evidence) -> Finding | None:
    """The student that guesses masked words in ONNX Runtime: what 8 bits leave of its latency and its size."""
    found = of(evidence("edge"), head="masked_lm", threads=1, format="onnx")
    shares, eight = deployments.relative(found, "masked_lm", 1), f"{BASE}_int8"
    if eight not in shares.index:
        return None
    ours, paper = 100 * shares.loc[eight], deployments.published().loc["int8"]
    ends = [ours["latency"], *sorted((ours["latency_low"], ours["latency_high"]))]
    latency = Part("latency of one row, left (%)", 100 * float(paper["latency"]), 100, *ends, TIMED)
    size = counted("size on disk, left (%)", 100 * float(paper["size"]), 100, ours["size"])
    return Finding([latency, size], [record for record in found if record["unit"]["variant"] in (BASE, eight)])


def never(_: Evidence) -> None:
    """Of a phone's own speed there are no records."""


def _on_gpu(evidence: Evidence) -> list[dict]:
    """The records of one model's variants on a GPU: the released DistilBERT's, or else the student's."""
    own = [record for record in of(evidence("quantization"), task="sst2") if "device" in record["unit"]]
    return of(own, model="released") or of(own, model="student")


def _cheaper(own: Sequence[dict], variant: str, size: float | None, claimed: float | None) -> Finding | None:
    """Size and speed of a pruned variant against the whole model's."""
    found, base = of(own, variant=variant), of(own, variant=BASE)
    if not found or not base:
        return None
    left = 100 * found[0]["metrics"]["size_mb"] / base[0]["metrics"]["size_mb"]
    parts = [counted("size on disk, left (%)", size, 100, left, sign=-1)]
    parts.append(times(found[0], claimed, "latency_times_as_fast", "one row: times as fast"))
    return Finding(parts, [*found, *base])


def _kept(found: Sequence[dict], variant: str, model: str, setup: str = "CPU Xeon") -> Part | None:
    """Of fp32's lead over guessing on SST-2, what a variant keeps, beside the published pair's."""
    own = {record["unit"]["variant"]: record for record in found if record["unit"]["variant"] in (variant, BASE)}
    if len(own) < 2:
        return None
    runs = {name: unpack(record["details"]["predictions"])[None] for name, record in own.items()}
    truth = unpack(own[BASE]["details"]["references"])
    guess = metrics.by_guessing("sst2", truth)

    def kept(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one - guess) / (other - guess)

    paper = [printed(MSC, "findings", "accuracy", name, setup) / 100 for name in (model, WHOLE)]
    ours = compared(runs, truth, comparison.share_equal, kept, variant, BASE)
    what = "SST-2: kept of fp32's lead over guessing (%)"
    return Part(what, 100 * kept(*paper), 0, *ours, basis(runs[variant]))
