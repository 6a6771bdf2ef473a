"""Variants: their names, labels, families and packages, and the one way to make them."""

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from helpers import InputError
from helpers.compression import pruning, quantization, runtimes, variants
from helpers.compression.variants import Variant
from helpers.report import figures


def test_names_have_parts_and_labels():
    how = variants.parse("taylor_50_recovered_int8")
    assert how == ("taylor", 50, True, "int8", False) and how.name == "taylor_50_recovered_int8"
    assert how.plain == Variant("taylor", 50, True)
    assert variants.parse("layers_2") == Variant("layers", 2)
    assert variants.parse("bnb_nf4") == Variant(bits="bnb_nf4")
    assert variants.label("weights_90_recovered") == "90% of weights zero, recovered"
    assert variants.label("layers_1_int8") == "layers left: 1, int8"
    whole = variants.parse("fp32_recovered_int8")
    assert whole == Variant(recovered=True, bits="int8") and whole.name == "fp32_recovered_int8"
    assert variants.label("fp32") == "fp32" and variants.label(whole.name) == "whole model, recovered, int8"
    for name in ("fp32_50", "taylor", "sawn_50", "taylor_half", "taylor_50_int8_recovered", "taylor_50_fast", ""):
        with pytest.raises(InputError, match="unknown variant"):
            variants.parse(name)


WRITTEN = ["fp32_int8", "fp32_recovered", "masked_50", "layers_2_recovered", "fp32_trimmed", "fp32_trimmed_int8"]


@pytest.mark.parametrize("name", [*variants.LABELS, *WRITTEN, "taylor_50_recovered_trimmed_int8_embeddings"])
def test_a_name_is_the_variant_written_out(name):
    assert variants.parse(name).name == name


def test_the_released_model_is_the_subject_where_there_is_one():
    assert variants.subject(["teacher", "student", "released"]) == "released"
    assert variants.subject(["teacher", "student", None]) == "student" and variants.subject(["teacher"]) is None


def test_every_variant_has_a_family_with_a_colour():
    cut = ("weights_50", "masked_50", "taylor_50", "random_30_recovered", "layers_2", "taylor_50_recovered_int8")
    cut += ("fp32_trimmed_int8_embeddings",)
    assert {variants.family(name) for name in (*variants.LABELS, *cut)} == set(figures.TECHNIQUES)
    assert variants.family("fp32_int8") == variants.family("onnx_int8") != variants.family("fp32_recovered")


class Own(variants.Source):
    """Anybody's model, here a small DistilBERT; training it again adds one to its last bias."""

    @property
    def whole(self):
        if not (self.root / "whole").is_dir():
            torch.manual_seed(0)
            config = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=50)
            DistilBertForSequenceClassification(config).save_pretrained(self.root / "whole")
        return self.root / "whole"

    def importances(self, criterion):
        return pruning.magnitude(quantization.load(self.whole, "cpu"))

    def recover(self, variant, pruned):
        model = quantization.load(pruned, "cpu")
        model.classifier.bias.data += 1
        return model


@pytest.mark.slow
def test_a_variant_is_made_from_those_that_it_builds_on(tmp_path, monkeypatch):
    """Half of the heads go, then it is trained again, then in 8 bits; what came before is kept, and made once."""
    of, asked = Own(tmp_path), variants.parse("taylor_50_recovered_int8")
    run = runtimes.load(of.folder(asked), threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "taylor_50", "taylor_50_recovered", asked.name}
    again = quantization.load(of.folder(asked.plain), "cpu")
    assert [len(heads) for heads in again.kept.heads] != [4, 4] and sum(map(len, again.kept.heads)) == 4
    row = runtimes.unpadded(torch.arange(5, 21)[None].numpy())
    with torch.no_grad():
        expected = again(input_ids=torch.from_numpy(row["input_ids"])).logits.numpy()
    assert abs(run(row) - expected).max() < 0.05 and expected.min() > 0.5
    monkeypatch.setattr(variants, "make", lambda *_: pytest.fail("made twice"))
    assert of.folder(asked).is_dir() and of.folder(Variant()) == tmp_path / "whole"


def test_what_is_there_is_made_again_once_where_that_is_wanted(tmp_path):
    folder = Own(tmp_path).folder(Variant("layers", 1))
    first = folder.stat().st_ctime_ns
    of = Own(tmp_path, fresh=True)
    second = of.folder(Variant("layers", 1)).stat().st_ctime_ns
    assert first < second == of.folder(Variant("layers", 1)).stat().st_ctime_ns
