"""What notebook 05 tries out beside its grid: common mistakes, how fast each stage reads, how fast our scoring is."""

import contextlib
import re
import time
from collections.abc import Callable

import numpy as np
import torch

from . import data, downstream, machine, mistakes, perplexity, records, speed
from .stages import Stages

VERSION = 1  # raised whenever the code changes the numbers it makes
SHOWN = ("wikitext", "gsm8k_questions")  # the texts of the published benchmark
JUDGED = ("released", "student")  # models on which mistakes are made
HALF = "half"  # the base model, computing in half precision where that pays


class Trial:
    """A trial on the models of `stages`."""

    experiment = "perplexity"

    def __init__(self, stages: Stages):
        self.stages, self.profile, self.own = stages, stages.profile, stages.own
        self.tokenizer = stages.tokenizer

    @property
    def there(self) -> list[str]:
        """The models that have been made."""
        return [name for name in self.own.models if self.stages.start_hash(name)]

    @property
    def ready(self) -> list[dict]:
        """The units whose models are there."""
        raise NotImplementedError

    def settings(self, unit: dict) -> dict:
        """All that could change the unit's numbers."""
        return self.stages.common() | {"trial": VERSION}

    def timed(self) -> dict:
        """Settings of what is timed: the processor or GPU, and the threads."""
        gpu = torch.cuda.get_device_name() if self.stages.device.type == "cuda" else None
        return {"cpu": records.cpu()["model"], "gpu": gpu, "threads": torch.get_num_threads()}

    def measure(self, unit: dict) -> records.Measurement:
        """Measure one unit."""
        raise NotImplementedError


class Mistakes(Trial):
    """Units {"model", "stage", "mistake", "text"}: a score that is wrong in one way, on rows as they come.

    The models are those of the stages, rightly fine-tuned. A head left as initialised is tried on the base model alone:
    fine-tuning would have trained it.
    """

    @property
    def ready(self) -> list[dict]:
        stages = [self.stages.first[name] for name in ("base", "int8", "wikitext") if name in self.stages.first]
        judged = [model for model in JUDGED if model in self.there]
        grid = [(model, stage, way) for model in judged for stage in stages for way in mistakes.WAYS]
        grid += [(model, {"stage": "base"}, mistakes.FRESH_HEAD) for model in judged]
        return [{"model": m} | stage | {"mistake": way, "text": text} for m, stage, way in grid for text in SHOWN]

    def settings(self, unit: dict) -> dict:
        return super().settings(unit) | self.stages.made_of(unit) | {"rows": self.own.mistake_rows}

    def rows(self, text: str) -> tuple[list[np.ndarray], dict]:
        """Rows of a data set as they come, empty lines too, cut off at the block length."""
        corpus = self.profile.corpus
        where = (corpus.id, corpus.heldout) if text == "wikitext" else ("openai/gsm8k", "main")
        dataset, source = data.sample(self.profile, *where, "test", self.own.mistake_rows)
        texts = list(dataset["text" if text == "wikitext" else "question"])
        encoded = self.tokenizer(texts, truncation=True, max_length=corpus.block_length)["input_ids"]
        return [np.array(ids) for ids in encoded], source

    def measure(self, unit: dict) -> records.Measurement:
        (texts, source), model = self.rows(unit["text"]), self.stages.trained(unit)
        if unit["mistake"] == mistakes.FRESH_HEAD:
            model = mistakes.fresh_head(model)
        way, length = mistakes.WAYS.get(unit["mistake"], mistakes.right), self.profile.corpus.block_length
        sums, counts = mistakes.batch_losses(model, texts, self.tokenizer, way, length, self.stages.masking(0))
        loss = float(sums.sum() / counts.sum())
        scores = {"loss": loss, "perplexity": float(np.exp(loss)), "scored": float(counts.sum())}
        scores["mean_of_batch_perplexities"] = mistakes.mean_of_perplexities(sums, counts)
        scores["padding_share"] = 1 - float(np.mean([len(ids) for ids in texts])) / length
        details = {"batch_sums": downstream.pack(sums), "batch_counts": downstream.pack(counts)}
        return records.Measurement(scores, [source], self.stages.sources(unit, model), details)


class Redrawn(Trial):
    """One unit: what fine-tuning changes when a model reads the same masks before and after, and when it does not."""

    DRAWS = 5

    @property
    def ready(self) -> list[dict]:
        judged = next((name for name in reversed(JUDGED) if name in self.there), None)
        return [{"mistake": "masks redrawn", "model": judged, "text": "wikitext"}] if judged else []

    def settings(self, unit: dict) -> dict:
        made = self.stages.made_of({"model": unit["model"]} | self.stages.first["wikitext"])
        return super().settings(unit) | made | {"rows": self.own.mistake_rows, "blocks": self.own.blocks}

    def measure(self, unit: dict) -> records.Measurement:
        text = self.stages.blocks(unit["text"])
        pair = [self.stages.load({"model": unit["model"]} | self.stages.first[name]) for name in ("wikitext", "base")]
        maskings = [self.stages.masking(draw) for draw in range(self.DRAWS)]
        found = mistakes.gaps(*pair, text.blocks[: self.own.mistake_rows], self.tokenizer, maskings)
        scores = {f"gap_{name}": float(np.mean(gaps)) for name, gaps in found.items()}
        scores |= {f"gap_{name}_std": float(np.std(gaps, ddof=1)) for name, gaps in found.items()}
        return records.Measurement(scores, [text.source], self.stages.sources(unit, pair[0]), {"gaps": found})


class Throughput(Trial):
    """One unit: how fast each model reads at each stage, all of them interleaved, on one batch that is ready-made.

    `half`, beside the stages, is the base model under autocast, where half precision pays on the device.
    """

    experiment = "speed"

    @property
    def ready(self) -> list[dict]:
        return [{"comparison": "stages"}] if self.there else []

    @property
    def timed_stages(self) -> dict[str, dict]:
        """The stages that are timed; GSM8K's models are as fast as WikiText-2's."""
        found = {name: stage for name, stage in self.stages.first.items() if name != "gsm8k"}
        return found | ({HALF: {"stage": "base"}} if self.stages.precision != "fp32" else {})

    def settings(self, unit: dict) -> dict:
        units = [{"model": model} | stage for model in self.there for stage in self.timed_stages.values()]
        made = records.digest({records.slug(unit): self.stages.made_of(unit) for unit in units})
        settings = super().settings(unit) | self.timed() | {"models": made, "stages": [*self.timed_stages]}
        return settings | {"batch_size": self.own.batch_size, "rounds": self.own.rounds, "half": self.stages.precision}

    def measure(self, unit: dict) -> records.Measurement:
        text = self.stages.blocks("wikitext")
        whole = [ids for ids in text.blocks if len(ids) == self.profile.corpus.block_length]
        masked = data.MaskedBlocks(whole[: self.own.batch_size], self.stages.masking(0))
        batch = data.Padding(self.tokenizer.pad_token_id)([masked[place] for place in range(len(masked))])
        batch = {name: values.to(self.stages.device) for name, values in batch.items()}
        loaded = {
            f"{model} {name}": self.stages.load({"model": model} | stage)
            for model in self.there
            for name, stage in self.timed_stages.items()
        }

        @torch.inference_mode()
        def seconds(name: str) -> float:
            dtype, half = machine.DTYPES[self.stages.precision], name.endswith(f" {HALF}")
            start = time.perf_counter()
            with torch.autocast(self.stages.device.type, dtype) if half else contextlib.nullcontext():
                perplexity.batch_losses(loaded[name], batch).cpu()  # waits for a GPU
            return time.perf_counter() - start

        for name in [*loaded] * 2:  # warm up
            seconds(name)
        runs = {name: lambda _, name=name: seconds(name) for name in loaded}
        taken = speed.interleaved(runs, range(self.own.rounds))
        scores, tokens = {}, int(batch["attention_mask"].sum())
        for name, times in taken.items():
            label, middle = name.replace(" ", "_"), float(np.median(times))
            scores |= {f"samples_per_s_{label}": len(masked) / middle, f"tokens_per_s_{label}": tokens / middle}
            ratio = speed.ratio(taken[f"{name.split()[0]} base"], times)
            scores |= dict(zip(_ends(f"times_as_fast_{label}"), ratio, strict=True))
        sources = [self.stages.sources({"model": name}, loaded[f"{name} base"]) for name in self.there]
        details = {"seconds": taken, "tokens": tokens}
        return records.Measurement(scores, [text.source], [one for own in sources for one in own], details)


class Scoring(Trial):
    """One unit: pseudo-log-likelihoods, all copies together against one at a time, on the same sentences."""

    experiment = "speed"

    @property
    def ready(self) -> list[dict]:
        model = next((name for name in ("student", "released") if name in self.there), None)
        return [{"comparison": "scoring", "model": model}] if model else []

    def settings(self, unit: dict) -> dict:
        base = self.stages.made_of(unit | {"stage": "base"})
        return super().settings(unit) | self.timed() | base | {"sentences": self.own.sentences}

    def sentences(self) -> tuple[list[np.ndarray], dict]:
        """Sentences of the held-out text, of 6 to 64 tokens, each with [CLS] and [SEP]."""
        corpus = self.profile.corpus
        dataset, source = data.load(self.profile, corpus.id, corpus.heldout, "test")
        text = " ".join(data.articles(dataset["text"], self.tokenizer.unk_token))
        found = [line for line in re.split(r"(?<= [.?!])\s+", text) if "=" not in line and line.strip()]
        cut = data.blocks(found, self.tokenizer, corpus.block_length)
        cut = [ids for ids in cut if 6 <= len(ids) <= 64]
        chosen = np.random.default_rng(0).choice(len(cut), min(self.own.sentences, len(cut)), replace=False)
        return [cut[place] for place in chosen], source | {"capped": {"test": f"{len(chosen)} sentences"}}

    def measure(self, unit: dict) -> records.Measurement:
        (texts, source), model = self.sentences(), self.stages.load(unit | {"stage": "base"})
        groups = [texts[start : start + 20] for start in range(0, len(texts), 20)]

        def loop(group: list[np.ndarray], within_word: bool = False) -> list[np.ndarray]:
            return [perplexity.one_token_at_a_time(model, ids, self.tokenizer, within_word) for ids in group]

        ways: dict[str, Callable[[list], list[np.ndarray]]] = {
            "plain": loop,
            "together": lambda group: perplexity.pseudo_log_likelihoods(model, group, self.tokenizer).alone,
        }

        def timed(way: str, group: list[np.ndarray]) -> tuple[float, list[float]]:
            start = time.perf_counter()
            logs = ways[way](group)
            return time.perf_counter() - start, [float(np.nansum(own)) for own in logs]

        for way in ways:  # warm up
            timed(way, groups[0][:2])
        found = speed.interleaved({way: lambda group, way=way: timed(way, group) for way in ways}, groups)
        seconds = {way: [taken for taken, _ in rounds] for way, rounds in found.items()}
        sums = {way: np.concatenate([logs for _, logs in rounds]) for way, rounds in found.items()}
        sums["plain_within_word"] = np.array([np.nansum(own) for own in loop(texts, within_word=True)])
        within = perplexity.pseudo_log_likelihoods(model, texts, self.tokenizer).within_word
        sums["within_word"] = np.array([np.nansum(own) for own in within])
        scores = dict(zip(_ends("times_as_fast"), speed.ratio(seconds["plain"], seconds["together"]), strict=True))
        for name, one, other in (("", "together", "plain"), ("_within_word", "within_word", "plain_within_word")):
            scores[f"largest_relative_difference{name}"] = float(np.max(np.abs(sums[one] / sums[other] - 1)))
        scores |= {"sentences": len(texts), "tokens": sum(len(ids) - 2 for ids in texts)}
        return records.Measurement(scores, [source], self.stages.sources(unit, model), {"seconds": seconds})


def _ends(name: str) -> list[str]:
    """The names of a ratio's median and interval in a record."""
    return [name, f"{name}_low", f"{name}_high"]
