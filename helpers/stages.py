"""The experiment of notebook 05: how well models predict text as they are, in 8 bits and after fine-tuning on text."""

import functools
import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel

from . import data, downstream, miniworld, models, perplexity, quantization, records, significance
from .distillation import DistillationTrainer, train
from .profiles import Training, as_settings

VERSION = 1  # raised whenever the code changes the numbers it makes
TEXTS = ("wikitext", "gsm8k_questions", "gsm8k_answers")  # the last: each question with its worked answer
TUNED_ON = {"wikitext": "wikitext", "wikitext_int8": "wikitext", "gsm8k": "gsm8k_answers"}  # by stage
FREQUENCIES = (0, 1, 10, 100, 1_000, 10_000)  # lower bounds of groups of tokens, by occurrences in the pretraining text
PARTS = 8  # of a block


class Text(NamedTuple):
    """Blocks of token ids, the number of the document that each is from [blocks], and where they come from."""

    blocks: list[np.ndarray]
    documents: np.ndarray
    source: dict


class Stages(downstream.Downstream):
    """Units {"model", "stage", "text"}, and the "seed" of the fine-tuning where there is one.

    The stages: `base`, the pretrained model; `int8`, the same in 8 bits; fine-tuned on `wikitext` or on `gsm8k`; and
    `wikitext_int8`, the fine-tuned one in 8 bits.
    """

    experiment = "perplexity"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own, self.tokenizer = self.profile.perplexity, self.pretraining.tokenizer
        self.made: set[Path] = set()  # checkpoints made by this run
        self.latest = "", None  # the model that was used last: a unit and the next one often share it
        self.logs: dict[Path, list[dict]] = {}  # of the fine-tuning, by checkpoint

    @property
    def stages(self) -> list[dict]:
        """The stages that can be had here."""
        tuned = {name: [{"stage": name, "seed": seed} for seed in self.own.seeds] for name in ("wikitext", "gsm8k")}
        last = {"stage": "wikitext_int8", "seed": self.own.seeds[0]}
        every = [{"stage": "base"}, {"stage": "int8"}, *tuned["wikitext"], last, *tuned["gsm8k"]]
        return [one for one in every if not ("int8" in one["stage"] and quantization.why_no_bits(self.device))]

    @property
    def first(self) -> dict[str, dict]:
        """Each stage by its name, with the first seed."""
        found: dict[str, dict] = {}
        for one in self.stages:
            found.setdefault(one["stage"], one)
        return found

    @property
    def units(self) -> list[dict]:
        grid = [(name, stage, text) for name in self.own.models for stage in self.stages for text in TEXTS]
        return [{"model": name} | stage | {"text": text} for name, stage, text in grid]

    def settings(self, unit: dict) -> dict:
        settings = self.common() | {"blocks": self.own.blocks, "pseudo_blocks": self.own.pseudo_blocks}
        return settings | {"draws": self.own.draws} | self.made_of(unit)

    def common(self) -> dict:
        """What changes every number of the notebook: the text and how it is masked."""
        corpus = as_settings(self.profile.corpus)
        text = {name: corpus[name] for name in ("id", "train", "heldout", "block_length")}
        world = {"world": miniworld.VERSION} if self.profile.hub == "miniworld" else {}
        return {"version": VERSION, "text": text, "mask_rate": self.own.mask_rate} | world

    def made_of(self, unit: dict) -> dict:
        """All that could change the unit's model."""
        start = self.start_hash(unit["model"]) or self.pretraining.weights(self.origin(unit["model"]))
        made = {"start": start, "version": VERSION}
        if "int8" in unit["stage"]:
            made["bitsandbytes"] = records.versions().get("bitsandbytes")
        if unit["stage"] in TUNED_ON:
            names = ("learning_rate", "epochs", "batch_size", "train_blocks", "mask_rate")
            made |= {name: getattr(self.own, name) for name in names}
            made |= {"corpus": as_settings(self.profile.corpus), "precision": self.precision}
            made["fine_tuned_on"] = self.profile.corpus.heldout
        return made

    def checkpoint(self, unit: dict) -> Path:
        plain = "wikitext" if unit["stage"] == "wikitext_int8" else unit["stage"]
        tuned = {"model": unit["model"], "stage": plain, "seed": unit["seed"]}
        return self.space.checkpoints / f"perplexity-{records.slug(tuned)}-{records.digest(self.made_of(tuned))}"

    def keeps(self, unit: dict) -> bool:
        return unit["seed"] == self.own.seeds[0]

    def trained(self, unit: dict) -> PreTrainedModel:
        """The unit's model, ready to predict; a fine-tuned one is made now if it isn't there."""
        key = records.slug({name: unit[name] for name in ("model", "stage", "seed") if name in unit})
        if self.latest[0] != key:
            self.latest = "", None  # frees it before the next one is made
            self.latest = key, self.load(unit)
        return self.latest[1]

    def load(self, unit: dict) -> PreTrainedModel:
        """The same, loaded anew, for those who need several at a time."""
        folder = self.start(unit["model"])
        if unit["stage"] in TUNED_ON:
            kept = self.checkpoint(unit)
            if kept not in self.made and (self.fresh or not kept.is_dir()):
                model = self._tune(unit)
                if not self.keeps(unit):
                    return model
                models.save(model, self.tokenizer, kept)
                records.write_whole(kept / "training_log.json", json.dumps(self.logs[kept]))
                self.made.add(kept)
            folder = str(kept)
        if "int8" in unit["stage"]:
            return quantization.load_int8(models.fetch(folder)[0], self.device)
        return models.load_masked_lm(folder)[0].to(self.device)

    def _tune(self, unit: dict) -> PreTrainedModel:
        """Fine-tuned by masked-LM loss alone; the curve on held-out WikiText is measured after each epoch."""
        own, blocks = self.own, self.train_blocks(TUNED_ON[unit["stage"]]).blocks
        model = models.load_masked_lm(self.start(unit["model"]))[0].to(self.device)
        steps = -(-own.epochs * len(blocks) // own.batch_size)
        stage = Training(steps, own.batch_size, 1, own.learning_rate, evaluations=own.epochs)
        masked = data.MaskedBlocks(blocks, self.masking(unit["seed"]), own.epochs * len(blocks))
        unfinished = self.checkpoint(unit).with_suffix(".training")
        if self.fresh:
            shutil.rmtree(unfinished, ignore_errors=True)
        corpus, pad = self.profile.corpus, self.tokenizer.pad_token_id
        heldout = self.pretraining.text.heldout(corpus.heldout, corpus.curve_blocks)
        options = None, self.profile.distillation, stage, masked, heldout, None, pad, unfinished, self.precision
        self.logs[self.checkpoint(unit)] = train(DistillationTrainer(model, *options))
        shutil.rmtree(unfinished, ignore_errors=True)
        return model.eval()

    def masking(self, seed: int) -> data.Masking:
        """Masks for training, or for one draw of the measurement."""
        return data.Masking(self.tokenizer, self.own.mask_rate, seed=seed)

    def train_blocks(self, text: str) -> Text:
        """What a model is fine-tuned on."""
        return self._cut(text, "train", self.own.train_blocks)

    def blocks(self, text: str) -> Text:
        """What is predicted."""
        return self._cut(text, "test", self.own.blocks)

    @functools.cache  # noqa: B019 (there is one of it in a notebook)
    def _cut(self, text: str, split: str, cap: int | None) -> Text:
        corpus = self.profile.corpus
        if text == "wikitext":
            # Fine-tuned on what is measured: raw text, whose rare words are [UNK] where `corpus.train` is not raw.
            dataset, source = data.load(self.profile, corpus.id, corpus.heldout, split)
            documents = list(data.articles(dataset["text"], self.tokenizer.unk_token))
        else:
            documents, source = data.problems(self.profile, split, answers=text == "gsm8k_answers")
        cut, owners = data.blocks_and_documents(documents, self.tokenizer, corpus.block_length)
        special = self.tokenizer.all_special_ids
        chosen = np.flatnonzero([not np.isin(ids, special).all() for ids in cut])  # some have unknown words only
        if cap is not None and cap < len(chosen):
            source = source | {"capped": {split: f"{cap:,} of {len(chosen):,} {split} blocks of {text}"}}
            chosen = np.sort(np.random.default_rng(0).choice(chosen, cap, replace=False))
        return Text([cut[place] for place in chosen], owners[chosen], source)

    def measure(self, unit: dict) -> records.Measurement:
        """Masked-LM loss over the draws, and pseudo-perplexity on some of the blocks."""
        model, text = self.trained(unit), self.blocks(unit["text"])
        scores, details = self.masked_lm(model, text)
        scores |= self.pseudo(model, text)
        scores |= {"parameters": models.parameters(model), "size_mb": models.size_mb(model)}
        sources = [text.source]
        if unit["stage"] in TUNED_ON:
            sources.append(self.train_blocks(TUNED_ON[unit["stage"]]).source)
            details["curve"] = self.log(unit)
        return records.Measurement(scores, sources, self.sources(unit, model), details)

    def log(self, unit: dict) -> list[dict]:
        """The training log of a fine-tuned unit: loss by step, and the held-out loss after each epoch."""
        kept = self.checkpoint(unit)
        if kept not in self.logs and (kept / "training_log.json").exists():
            self.logs[kept] = json.loads((kept / "training_log.json").read_text())
        return self.logs.get(kept, [])

    def masked_lm(self, model: PreTrainedModel, text: Text) -> tuple[dict, dict]:
        """The masked-LM loss in nats over several draws of the masks, and where in the text it comes from."""
        losses, tokens, places, of_draw, of_block = [], [], [], [], []
        for draw in range(self.own.draws):
            masked = data.MaskedBlocks(text.blocks, self.masking(draw))
            for number, own in enumerate(perplexity.masked_losses(model, masked, self.tokenizer)):
                labels = masked[number]["labels"]
                at = np.flatnonzero(labels != data.IGNORED)
                losses.append(own)
                tokens.append(labels[at])
                places.append(at)
                of_draw += [draw] * len(at)
                of_block += [number] * len(at)
        losses, tokens, places = map(np.concatenate, (losses, tokens, places))
        draws = np.bincount(of_draw, losses) / np.bincount(of_draw)
        sums, counts = _sums(losses, text.documents[of_block], text.documents.max() + 1)
        low, high = significance.mean_interval(sums[counts > 0], counts[counts > 0])
        scores = {"masked_lm_loss": losses.mean(), "masked_lm_loss_low": low, "masked_lm_loss_high": high}
        scores |= {"perplexity": np.exp(losses.mean()), "perplexity_low": np.exp(low), "perplexity_high": np.exp(high)}
        scores |= {"masked_lm_loss_std_of_draws": draws.std(ddof=1) if len(draws) > 1 else 0.0}
        seen = self.pretraining.text.counts[tokens]
        parts = np.minimum(PARTS * places // self.profile.corpus.block_length, PARTS - 1)
        groups = {"frequency": (np.digitize(seen, FREQUENCIES) - 1, len(FREQUENCIES)), "position": (parts, PARTS)}
        details = {
            "draws": draws.tolist(),
            "document_sums": downstream.pack(sums),
            "document_counts": downstream.pack(counts),
        }
        for name, (group, size) in groups.items():
            totals, cases = _sums(losses, group, size)
            details[f"by_{name}"] = {"sums": totals.tolist(), "counts": cases.tolist()}
        return {name: float(value) for name, value in scores.items()}, details

    def pseudo(self, model: PreTrainedModel, text: Text) -> dict[str, float]:
        """Pseudo-perplexity a token and a word, each token masked alone and with the rest of its word.

        On some of the blocks, spread evenly over all of them.
        """
        chosen = np.unique(np.linspace(0, len(text.blocks) - 1, self.own.pseudo_blocks).round().astype(int))
        few = [text.blocks[place] for place in chosen]
        owners = np.unique(text.documents[chosen], return_inverse=True)[1]
        found, scores = perplexity.pseudo_log_likelihoods(model, few, self.tokenizer), {"pseudo_blocks": len(few)}
        words = np.array([perplexity.words_of(ids, self.tokenizer) for ids in few])
        for name, logs in {"": found.alone, "_within_word": found.within_word}.items():
            sums = np.bincount(owners, [-np.nansum(own) for own in logs])
            counts = np.bincount(owners, [np.isfinite(own).sum() for own in logs])
            low, high = significance.mean_interval(sums, counts)
            scores[f"pseudo_perplexity{name}"] = np.exp(sums.sum() / counts.sum())
            scores |= {f"pseudo_perplexity{name}_low": np.exp(low), f"pseudo_perplexity{name}_high": np.exp(high)}
            scores[f"pseudo_perplexity{name}_per_word"] = np.exp(sums.sum() / words.sum())
        return {name: float(value) for name, value in scores.items()}

    def estimated_minutes(self, units: list[dict]) -> float:
        """About how long these units take here: rates from a few blocks, training counted as four readings."""
        minutes, rates, tuned = 0.0, {}, set()
        few = data.MaskedBlocks(self.blocks("wikitext").blocks[:32], self.masking(0))
        for unit in units:
            if unit["model"] not in rates:
                model = self.load({"model": unit["model"], "stage": "base"})
                seconds = []
                for _ in range(2):  # the first warms up
                    start = time.perf_counter()
                    perplexity.masked_losses(model, few, self.tokenizer)
                    seconds.append(time.perf_counter() - start)
                rates[unit["model"]] = sum(map(len, few.cut)) / seconds[-1]
            lengths = np.array([len(ids) for ids in self.blocks(unit["text"]).blocks])
            tokens = self.own.draws * lengths.sum() + 1.2 * self.own.pseudo_blocks * (lengths**2).mean()
            made = (unit["model"], TUNED_ON.get(unit["stage"]), unit.get("seed"))
            if made[1] and made not in tuned:
                tuned.add(made)
                tokens += 4 * self.own.epochs * sum(map(len, self.train_blocks(made[1]).blocks))
            minutes += tokens / rates[unit["model"]] / 60
        return minutes


def _sums(values: np.ndarray, group: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of the values in each group, both [size]."""
    return np.bincount(group, values, size), np.bincount(group, minlength=size)
