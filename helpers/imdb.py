"""The experiment of notebook 03: the sentiment of whole reviews, and what cutting them off costs."""

import dataclasses
import functools

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from . import data, downstream, metrics
from .finetuning import encode_texts
from .profiles import Recipe


class Imdb(downstream.Downstream):
    """IMDb: units {"model", "length", "seed"}, the length being the tokens that a model gets to read of a review."""

    experiment = "imdb"

    @property
    def units(self) -> list[dict]:
        imdb = self.profile.imdb
        pairs = [(name, imdb.recipe.length) for name in imdb.models]
        pairs += [("student", length) for length in imdb.lengths if "student" in imdb.models]
        return [{"model": name, "length": length, "seed": seed} for seed in imdb.seeds for name, length in pairs]

    def recipe(self, unit: dict) -> Recipe:
        return dataclasses.replace(self.profile.imdb.recipe, length=unit["length"])

    def labels(self, unit: dict) -> dict:
        return {"num_labels": 2}

    def keeps(self, unit: dict) -> bool:
        own = unit["length"] == self.profile.imdb.recipe.length and unit["seed"] == self.profile.imdb.seeds[0]
        return own and unit["model"] in ("teacher", "student")

    def train_examples(self, unit: dict) -> tuple[list[dict], list[dict]]:
        examples, _, source = self.examples(unit["length"], "train")
        return examples, [source]

    def dev_examples(self, unit: dict) -> list[dict]:
        return self.examples(unit["length"], "test")[0]

    def score(self, unit: dict, model: PreTrainedModel) -> tuple[dict, dict, list[dict]]:
        examples, labels, source = self.examples(unit["length"], "test")
        guesses = np.stack([said["logits"] for said in self.predict(unit, model, examples)]).argmax(-1)
        scores = {"accuracy": metrics.accuracy(guesses, labels)}
        longer, _, _ = self.examples(unit["length"] + 1, "test")
        cut = np.mean([len(example["input_ids"]) > unit["length"] for example in longer])
        details = {"predictions": downstream.pack(guesses), "references": downstream.pack(labels)}
        return scores | {"truncated": float(cut)}, details, [source]

    def reviews(self, split: str) -> tuple[Dataset, dict]:
        """The reviews of a split that are used, and their provenance."""
        recipe = self.profile.imdb.recipe
        rows = recipe.train_rows if split == "train" else recipe.dev_rows
        return data.sample(self.profile, "stanfordnlp/imdb", "plain_text", split, rows)

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def examples(self, length: int, split: str) -> tuple[list[dict], np.ndarray, dict]:
        """The reviews of a split as a model reads them, so many tokens of each; their labels; their provenance."""
        dataset, source = self.reviews(split)
        labels = np.asarray(dataset["label"])
        metrics.check_labels(f"imdb, {split}", labels, 2)
        return encode_texts(dataset, ["text"], self.pretraining.tokenizer, length), labels, source
