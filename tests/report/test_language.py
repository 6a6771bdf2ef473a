"""Changes from stage to stage, and the mistake that is nearest to the published numbers, from records made by hand."""

import math

import numpy as np
import pytest

from helpers.report import language


def scored(model: str, stage: str, sums: list, draws: list, seed: int | None = None, text: str = "wikitext") -> dict:
    """A record of the grid, as far as comparing needs it."""
    unit = {"model": model, "stage": stage, "text": text} | ({} if seed is None else {"seed": seed})
    details = {"document_sums": " ".join(map(str, sums)), "document_counts": "10 0 30", "draws": draws}
    return {"unit": unit, "metrics": {"masked_lm_loss_std_of_draws": 0.5}, "details": details}


def test_a_change_is_paired_by_document_and_draw(page):
    *_, stages_in_words = page("05_perplexity", "sure", "change_in_words", "stages_in_words")
    found = [scored("student", "base", [30, 0, 90], [3.0, 3.2])]
    found += [scored("student", "wikitext", [20, 0, 60], [2.0, 2.2], seed=0)]
    found += [scored("student", "wikitext", [10, 0, 30], [1.0, 1.2], seed=1)]
    found += [scored("student", "wikitext_int8", [21, 0, 63], [2.1, 2.3], seed=0)]
    tuned = language.change(found, "student", "wikitext", "wikitext")
    assert tuned[:3] == pytest.approx((-1.5, -1.5, -1.5)), "both documents change alike"
    assert tuned.spread == pytest.approx(np.std([-1, -1, -2, -2], ddof=1)), "of the differences, not of the losses"
    after = language.change(found, "student", "wikitext", "wikitext_int8")
    assert after[:3] == pytest.approx((-0.9, -0.9, -0.9)) and after.spread == pytest.approx(0, abs=1e-9)
    quantized = language.change(found, "student", "wikitext", "wikitext_int8", since="wikitext")
    assert quantized[:3] == pytest.approx((0.1, 0.1, 0.1)), "of the same seed, not of the mean of both"
    assert language.change(found, "student", "wikitext", "gsm8k") is None
    assert language.change(found, "twin", "wikitext", "wikitext") is None
    for record in found:
        record["metrics"] |= {"masked_lm_loss": 3.0, "perplexity": 20.0}
    words = stages_in_words(found).data
    assert "For sure: fine-tuning on WikiText-2 -1.500 nats; both together (first seed) -0.900 nats" in words
    wavering = [one | {"details": one["details"] | {"draws": [3.0, 9.0]}} for one in found[:2]]
    assert "Within chance: fine-tuning on WikiText-2" in stages_in_words([found[0], wavering[1]]).data, "of draws"
    one_draw = [
        record | {"details": record["details"] | {"draws": record["details"]["draws"][:1]}} for record in found[:2]
    ]
    assert "For sure: fine-tuning" in stages_in_words(one_draw).data, "no spread is known"


def test_the_nearest_mistake_is_found_among_all_records(page):
    wanted = "scored", "mistakes_in_words", "mistakes_by_stage", "nearest_mistakes", "mistakes_table"
    _, mistakes_in_words, mistakes_by_stage, nearest_mistakes, mistakes_table = page("05_perplexity", *wanted)

    def record(way: str, text: str, loss: float, stage: str = "base") -> dict:
        unit = {"model": "student", "stage": stage, "mistake": way, "text": text}
        scores = {"loss": loss, "perplexity": math.exp(loss), "mean_of_batch_perplexities": 1.0}
        return {"unit": unit, "metrics": scores}

    published = language.printed()
    assert published.to_dict() == {"wikitext": 9.84, "gsm8k_questions": 7.18}
    found = [scored("student", "base", [30, 0, 90], [3.0, 3.2])]
    found += [{"unit": {"mistake": "masks redrawn", "model": "student"}}]
    for way, off in {"right": 0.1, "padding scored": -0.4, "labels shuffled": 2.0}.items():
        found += [record(way, text, loss + off) for text, loss in published.items()]
    found += [record("padding scored", "wikitext", 0.0, stage="int8")]
    near = nearest_mistakes(found, "student")
    assert near.to_dict() == pytest.approx({"right": 0.1, "padding scored": 0.4, "labels shuffled": 2.0})
    words = mistakes_in_words(found, "student").data
    assert "Nearest to the published losses of both texts: **padding scored**, off by 0.40" in words and "hint" in words
    table = mistakes_table(found, "student")
    assert table.loc["published, DistilBERT", "WikiText-2"] == "9.84 (18,764.7)"
    assert table.loc["padding scored", "off the published losses (nats)"] == "0.40"
    assert mistakes_by_stage(found, "student").loc["padding scored", "WikiText-2: in 8 bits"] == "-9.44"
