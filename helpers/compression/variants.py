"""Compressed variants: what is taken away and in how many bits, how that is written, and the one way to make them.

Nothing heavy is imported before something is made: who only reads records needs the names.
"""

import functools
import importlib.util
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import InputError
from ..measure import records

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ..profiles import Profile

BASE = "fp32"  # the model as it is; all others are compared with it
EXPORTED = "onnx_fp32"  # from which all other bits of ONNX Runtime are made
TORCH = {
    BASE: "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "torch_int8": "int8, linear layers (PyTorch dynamic)",
    "torch_int8_embeddings": "int8, linear layers and embeddings (PyTorch dynamic)",
    "torchao_int8": "int8, linear layers (torchao)",
    "bnb_int8": "LLM.int8 (bitsandbytes)",
    "bnb_nf4": "nf4 (bitsandbytes)",
    "bnb_nf4_double": "nf4, double (bitsandbytes)",
    "bnb_fp4": "fp4 (bitsandbytes)",
    "bnb_fp4_double": "fp4, double (bitsandbytes)",
}
ONNX = {
    EXPORTED: "fp32 (ONNX Runtime)",
    "onnx_int8": "int8, linear layers (ONNX Runtime)",
    "onnx_int8_embeddings": "int8, linear layers and embeddings (ONNX Runtime)",
    (STATIC := "onnx_int8_static"): "int8, linear layers, calibrated (ONNX Runtime)",
    "onnx_int4": "4 bits, int8 embeddings (ONNX Runtime)",
}
COMPILED = "torchao_int8_compiled"  # takes its time, so only if asked for
LABELS = TORCH | ONNX | {COMPILED: "int8, linear layers, compiled (torchao)"}
INT8 = "int8"  # what follows a cut, as in taylor_50_int8: ONNX Runtime's
SMALLEST = "int8_embeddings"  # the same with embeddings
CUTS = {
    "weights": "{}% of weights zero",
    "masked": "{}% of heads and neurons zero (Taylor)",
    "taylor": "{}% of heads and neurons cut (Taylor)",
    "magnitude": "{}% of heads and neurons cut (magnitude)",
    "random": "{}% of heads and neurons cut (at random)",
    "layers": "layers left: {}",
}
FAMILIES = {  # of techniques, by how a name begins
    **dict.fromkeys((BASE, "bf16", "fp16"), "half or full precision"),
    **dict.fromkeys(("torch", "torchao"), "PyTorch int8"),
    "bnb": "bitsandbytes",
    "onnx": "ONNX Runtime",
    "weights": "weights set to zero",
    "masked": "masked, not cut",
    "layers": "layers dropped",
    **dict.fromkeys(("taylor", "magnitude", "random"), "heads and neurons cut"),
}
EXPORTER = ("onnx", "onnxruntime", "onnxscript")
NEEDS = {  # packages, by how the name of the bits begins
    "torchao": ("torchao",),
    "bnb": ("bitsandbytes",),
    "onnx": EXPORTER,
    INT8: EXPORTER,
}
# What is cut at DistilBERT's own size: of weights drawn at random, so only what asks nothing of them.
CUT_AT_SIZE = ("random_30", "random_50", "layers_3", "random_30_int8", "random_50_int8", "layers_3_int8")
TASK = "sst2"  # on which most is measured and advised
SUBJECTS = ("released", "student")  # of which model, and whom claims about DistilBERT are judged by: the first there is
HEADS = {TASK: "SST-2", "masked_lm": "masked words"}  # what the student is asked for in notebook 09
FORMATS = {"onnx": "ONNX", "ort": "ORT"}
_NAME = re.compile(rf"({BASE}|({'|'.join(CUTS)})_(\d+))(_recovered)?(_trimmed)?(?:_({SMALLEST}|{INT8}))?")


class Variant(NamedTuple):
    """A compressed variant. Its name is only how it is written in records: `taylor_50_recovered_int8`, `bnb_nf4`."""

    cut: str = ""  # what is taken away, of CUTS; nothing
    amount: int = 0  # percent that goes or, of layers, how many stay
    recovered: bool = False  # trained again for a while, the whole model teaching
    bits: str = BASE  # one of LABELS, or INT8 or SMALLEST
    trimmed: bool = False  # its vocabulary, to what texts of its task use

    @property
    def name(self) -> str:
        """As in records."""
        if self.bits in LABELS and self.bits != BASE:
            return self.bits
        start = f"{self.cut}_{self.amount}" if self.cut else BASE
        start += "_recovered" * self.recovered + "_trimmed" * self.trimmed
        return start + f"_{self.bits}" * (self.bits != BASE)

    needs_rows = property(lambda self: self.recovered or self.trimmed or self.bits == STATIC)  # of training

    @property
    def plain(self) -> "Variant":
        """With as much taken away, in as many bits as the model had."""
        return self._replace(bits=BASE)

    @property
    def label(self) -> str:
        """In words, as in tables and figures of cuts."""
        start = CUTS[self.cut].format(self.amount) if self.cut else "whole model"
        start += ", recovered" * self.recovered + ", vocabulary trimmed" * self.trimmed
        return start + {INT8: ", int8", SMALLEST: ", int8 with embeddings"}.get(self.bits, "")


def parse(name: str) -> Variant:
    """The variant that is written so; InputError if it is no such name."""
    if name in LABELS:
        return Variant(bits=name)
    if not (found := _NAME.fullmatch(name)):
        form = f"{BASE} or CUT_AMOUNT, then _recovered, _trimmed, _int8, with CUT one of {', '.join(CUTS)}"
        raise InputError(f"unknown variant {name!r}: expected one of {', '.join(LABELS)}; or {form}")
    _, cut, amount, recovered, trimmed, bits = found.groups()
    return Variant(cut or "", int(amount or 0), bool(recovered), bits or BASE, bool(trimmed))


def asked(profile: "Profile", name: str) -> list[Variant]:
    """What a profile measures in notebook 06, quantization, or 07, pruning; the model as it is comes first.

    InputError for a variant that doesn't exist or a share that is no whole percent.
    """
    if name == "quantization":
        return list(dict.fromkeys(map(parse, [BASE, *(profile.quantization.variants or TORCH | ONNX)])))
    own = profile.pruning
    plain = [Variant(), *(Variant("weights", _percent(share)) for share in own.weights)]
    plain += [Variant(criterion, _percent(share)) for criterion in own.importances for share in own.shares]
    plain += [Variant("layers", left) for left in own.layers]
    followed = [one for one in plain if one.cut in ("", *own.recovered)]
    again = [one._replace(recovered=True) for one in followed]
    eight = [one._replace(bits=INT8) for one in followed + again[1:]]  # not of the whole model, trained once more
    half = [one._replace(bits=SMALLEST) for one in again if (one.cut, one.amount) == ("taylor", 50)]
    trimmed = [one._replace(trimmed=True) for one in (Variant(), Variant(bits=SMALLEST), *half)]
    return plain + [Variant("masked", _percent(share)) for share in own.masked] + again + eight + half + trimmed


def _percent(share: float) -> int:
    if abs(100 * share - round(100 * share)) > 1e-9:
        raise InputError(f"share {share} in the profile's pruning: expected whole percents")
    return round(100 * share)


def subject(there: Collection[str | None]) -> str | None:
    """Whom claims are judged by among the models that there are; None if neither is."""
    return next((name for name in SUBJECTS if name in there), None)


def label(name: str) -> str:
    """What a variant is called in tables and figures."""
    return LABELS.get(name) or parse(name).label


def family(name: str) -> str:
    """The technique that a variant belongs to; each has its colour in the figures."""
    variant = parse(name)
    if variant.trimmed:
        return "vocabulary trimmed"
    if variant.bits in (INT8, SMALLEST):
        return "pruned, and int8" if variant.cut else FAMILIES["onnx"]
    return FAMILIES[name.split("_")[0]]


def packages(variant: Variant) -> dict[str, str | None]:
    """The versions of what makes a variant, None for one that isn't installed."""
    names = ("torch", "transformers", *NEEDS.get(variant.bits.partition("_")[0], ()))
    return {name: records.versions().get(name) for name in names}


def why_not(variant: Variant, device: str = "cpu") -> str | None:
    """Why a variant cannot be had on this device, or would only be emulated there; None if it can."""
    if variant.bits in (*TORCH, COMPILED):
        from . import quantization

        return quantization.why_not(variant.bits, device, cut=variant.cut in ("taylor", "magnitude", "random"))
    if device != "cpu":
        return "for processors"
    absent = [name for name in packages(variant) if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install -r requirements.txt" if absent else None


class Source:
    """Where variants come from: a model fine-tuned or pretrained in this series, a random one, or anybody's own.

    A subclass has `whole`, the folder of the model as it is, and what its variants need of: `examples`, labelled rows
    as it reads them, and `pad`, the padding's id; `rows`, how many of them importances are counted on;
    `recovery`, the recipe by which what was pruned is trained again; `pieces(tokenizer)`, the ids of tokens that stay
    when the vocabulary is trimmed.
    """

    whole: Path
    hidden = False  # whether it is exported with its last hidden states as a second output
    device, precision, seed = "cpu", "fp32", 0  # of the training

    def __init__(self, root: Path, fresh: bool = False):
        """`root`: where its variants are kept. With `fresh`, what is there already is made again, once."""
        self.root, self.fresh, self.made = root, fresh, set()

    @functools.cache  # noqa: B019 - a source lives as long as its experiment
    def importances(self, criterion: str) -> "tuple[Tensor, Tensor]":
        """Importances of heads [layers, heads] and neurons [layers, neurons] by one of taylor, magnitude and random."""
        from . import pruning, quantization

        model = quantization.load(self.whole, self.device if criterion == "taylor" else "cpu")
        if criterion == "taylor":
            return pruning.by_loss(model, self.examples, self.rows, self.pad)
        return pruning.magnitude(model) if criterion == "magnitude" else pruning.at_random(model, seed=0)

    def calibration(self) -> list[dict]:
        """Examples by which scales are fixed ahead: input_ids, attention_mask and token_type_ids [tokens] each."""
        from . import onnx, pruning

        return pruning.drawn(self.examples, onnx.CALIBRATION_ROWS)

    @functools.cached_property
    def taught(self) -> list[dict]:
        """The examples with what the whole model says of them."""
        from ..models import finetuning
        from . import quantization

        whole = quantization.load(self.whole, self.device)
        return finetuning.guided(whole, self.examples, self.recovery.evaluation_batch_size, self.pad)

    def recover(self, variant: Variant, pruned: Path) -> "PreTrainedModel":
        """Train a pruned model again, half by the labels and half towards the whole model's logits; zeros stay zero."""
        from ..models import finetuning, training
        from . import pruning, quantization

        model = quantization.load(pruned, self.device)
        with training.unfinished(self.path(variant), self.fresh) as unfinished:
            options = self.recovery, self.seed, unfinished, self.precision, self.pad
            trainer = finetuning.FineTuner(model, self.taught, *options)
            if variant.cut == "weights":
                trainer.add_callback(pruning.KeepZeros(model))
            finetuning.fine_tune(trainer)
        return model

    def path(self, variant: Variant) -> Path:
        """Where a variant is kept, there or not."""
        return self.root / variant.name

    def folder(self, variant: Variant) -> Path:
        """Where a variant lies, made now if it isn't there; of `Variant()`, the model as it is."""
        if variant == Variant():
            return self.whole
        folder = self.path(variant)
        if not folder.is_dir() or (self.fresh and folder not in self.made):
            make(variant, self, folder)
            self.made.add(folder)
        return folder


def make(variant: Variant, of: Source, target: Path) -> None:
    """Make a variant and save it in `target`, whole or not at all; InputError, with the reason, if it can't be made."""
    from transformers import AutoTokenizer

    from . import onnx, pruning, quantization

    plain = variant.plain
    if variant.bits == EXPORTED:
        onnx.export(quantization.load(of.folder(plain), "cpu"), of.folder(plain), target, of.hidden)
    elif variant.bits in (*ONNX, INT8, SMALLEST):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            if plain == Variant():
                exported = of.folder(Variant(bits=EXPORTED))
            else:  # exported for this alone
                exported = Path(scratch) / EXPORTED
                make(plain._replace(bits=EXPORTED), of, exported)
            bits = variant.bits if variant.bits in ONNX else f"onnx_{variant.bits}"
            onnx.quantize(exported, target, bits, of.calibration() if bits == STATIC else ())
    elif variant.bits != BASE or variant == Variant():
        quantization.save(variant.bits, of.folder(plain), target)
    elif variant.trimmed:
        model = quantization.load(of.folder(variant._replace(trimmed=False)), "cpu")
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = AutoTokenizer.from_pretrained(of.whole)
            pruning.trim(model, tokenizer, of.pieces(tokenizer)).save_pretrained(scratch)
            pruning.save(model, Path(scratch), target)
    elif variant.recovered:
        pruning.save(of.recover(variant, of.folder(variant._replace(recovered=False))), of.whole, target)
    else:
        model = quantization.load(of.whole, "cpu")
        if variant.cut == "weights":
            pruning.zero_weights(model, variant.amount / 100)
        elif variant.cut == "layers":
            pruning.drop_layers(model, variant.amount)
        else:
            masked = variant.cut == "masked"
            kept = pruning.choose(of.importances("taylor" if masked else variant.cut), variant.amount / 100)
            (pruning.mask if masked else pruning.cut)(model, kept)
        pruning.save(model, of.whole, target)
