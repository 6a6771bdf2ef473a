"""Perplexity, as notebook 05 measures it: of models as they are, in 8 bits and fine-tuned on text.

The notebook's own trials on the same models are in its cells: on mistakes, on masks that are redrawn, on speed.
"""

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from ..compression import quantization
from ..data import encoding, hub
from ..measure import machine, metrics, records
from ..measure.timing import Interval
from ..models import checkpoints, masked_lm, training
from ..models.distillation import DistillationTrainer, train
from ..profiles import Profile, Training
from .glue import Downstream

VERSION = 1  # raised whenever the code changes the numbers it makes
TEXTS = ("wikitext", "gsm8k_questions", "gsm8k_answers")  # the last: each question with its worked answer
TUNED_ON = {"wikitext": "wikitext", "wikitext_int8": "wikitext", "gsm8k": "gsm8k_answers"}  # by stage
FREQUENCIES = (0, 1, 10, 100, 1_000, 10_000)  # lower bounds of groups of tokens, by occurrences in the pretraining text
PARTS = 8  # of a block


class Stages(Downstream):
    """Units {"model", "stage", "text"}, and the "seed" of the fine-tuning where there is one.

    The stages: `base`, the pretrained model; `int8`, the same in 8 bits; fine-tuned on `wikitext` or on `gsm8k`; and
    `wikitext_int8`, the fine-tuned one in 8 bits.
    """

    name = "perplexity"

    def __init__(self, profile: Profile, space: records.Workspace, fresh: bool = False):
        super().__init__(profile, space, fresh)
        self.own, self.tokenizer = profile.perplexity, self.pretraining.tokenizer
        self.latest = (), None  # the model that was used last: a unit and the next one often share it
        self.logs: dict[Path, list[dict]] = {}  # of the fine-tuning, by checkpoint

    @property
    def stages(self) -> list[dict]:
        """The stages, a seed each where there is fine-tuning."""
        seeds = {"wikitext": self.own.seeds, "wikitext_int8": self.own.seeds[:1], "gsm8k": self.own.seeds}
        tuned = [{"stage": name, "seed": seed} for name, every in seeds.items() for seed in every]
        return [{"stage": "base"}, {"stage": "int8"}, *tuned]

    @property
    def first(self) -> dict[str, dict]:
        """Each stage that can be had here by its name, with the first seed."""
        seed, bits = self.own.seeds[0], not quantization.why_no_bits(self.device)
        first = [stage for stage in self.stages if stage.get("seed", seed) == seed]
        return {stage["stage"]: stage for stage in first if bits or "int8" not in stage["stage"]}

    @property
    def there(self) -> list[str]:
        """The models that have been made."""
        return [name for name in self.own.models if self.start_hash(name)]

    @property
    def units(self) -> list[dict]:
        grid = [(name, stage, text) for name in self.own.models for stage in self.stages for text in TEXTS]
        return [{"model": name} | stage | {"text": text} for name, stage, text in grid]

    def why_not(self, unit: dict) -> str | None:
        return super().why_not(unit) or (quantization.why_no_bits(self.device) if "int8" in unit["stage"] else None)

    def seconds(self, unit: dict) -> float:
        """About as long as a model of this shape takes to read the text or, first of its texts, to learn before."""
        lengths = np.array([len(ids) for ids in self.blocks(unit["text"]).blocks])
        tokens = self.own.draws * lengths.sum() + 1.2 * self.own.pseudo_blocks * (lengths**2).mean()
        if unit["stage"] in TUNED_ON and unit["text"] == TEXTS[0] and not self.checkpoint(unit).is_dir():
            tokens += machine.BACKWARD * self.own.epochs * sum(map(len, self.learned(unit).blocks))
        return float(tokens / self.rate(unit))

    def settings(self, unit: dict) -> dict:
        counts = {name: getattr(self.own, name) for name in ("blocks", "pseudo_blocks", "draws")}
        return self.common(unit) | counts | self.made_of(unit)

    def common(self, unit: dict) -> dict:
        """What changes every number of the notebook: how text is cut and masked, and which the unit's model reads."""
        corpus = self.profile.corpus.model_dump()
        text = {name: corpus[name] for name in ("id", "train", "heldout", "block_length")}
        names = {unit.get("text", "wikitext"), TUNED_ON.get(unit.get("stage"), unit.get("text", "wikitext"))}
        ids = {corpus["id"] if name == "wikitext" else "openai/gsm8k" for name in names}
        read = hub.state(self.profile, *sorted(ids))
        return {"version": VERSION, "text": text, "mask_rate": self.own.mask_rate} | read

    def made_of(self, unit: dict) -> dict:
        """All that could change the unit's model."""
        start = self.start_hash(unit["model"]) or self.pretraining.weights(self.origin(unit["model"]))
        made = {"start": start, "version": VERSION}
        if "int8" in unit["stage"]:
            made["bitsandbytes"] = records.versions().get("bitsandbytes")
        if unit["stage"] in TUNED_ON:
            names = ("learning_rate", "epochs", "batch_size", "train_blocks", "mask_rate")
            made |= {name: getattr(self.own, name) for name in names}
            made |= {"corpus": self.profile.corpus.model_dump(), "fine_tuned_on": self.profile.corpus.heldout}
            made["precision"] = self.precision
        return made

    def checkpoint(self, unit: dict) -> Path:
        plain = "wikitext" if unit["stage"] == "wikitext_int8" else unit["stage"]
        tuned = {"model": unit["model"], "stage": plain, "seed": unit["seed"]}
        return self.space.checkpoints / f"perplexity-{records.slug(tuned)}-{records.digest(self.made_of(tuned))}"

    def trained(self, unit: dict) -> PreTrainedModel:
        """The unit's model, ready to predict; a fine-tuned one is made now if it isn't there."""
        key = unit["model"], unit["stage"], unit.get("seed")
        if self.latest[0] != key:
            self.latest = (), None  # frees it before the next one is made
            self.latest = key, self.load(unit)
        return self.latest[1]

    def load(self, unit: dict) -> PreTrainedModel:
        """The same, loaded anew, for those who need several at a time."""
        folder = self.start(unit["model"])
        if unit["stage"] in TUNED_ON:
            kept = self.checkpoint(unit)
            log = kept / "training_log.json"
            if not log.exists() or (self.fresh and kept not in self.logs):
                model, self.logs[kept] = self._tune(unit)
                if unit["seed"] != self.own.seeds[0]:
                    return model
                checkpoints.save(model, self.tokenizer, kept)
                records.write_whole(log, json.dumps(self.logs[kept]))
            folder, self.logs[kept] = str(kept), json.loads(log.read_text())
        if "int8" in unit["stage"]:
            return quantization.load_in_bits("bnb_int8", checkpoints.fetch(folder)[0], self.device)
        return checkpoints.load_masked_lm(folder)[0].to(self.device)

    def _tune(self, unit: dict) -> tuple[PreTrainedModel, list[dict]]:
        """Fine-tuned by masked-LM loss alone, and the log; held-out WikiText is measured after each epoch."""
        own, corpus, pad = self.own, self.profile.corpus, self.tokenizer.pad_token_id
        model = checkpoints.load_masked_lm(self.start(unit["model"]))[0].to(self.device)
        blocks = self.learned(unit).blocks
        steps = -(-own.epochs * len(blocks) // own.batch_size)
        how = {"batch_size": own.batch_size, "accumulation": 1, "learning_rate": own.learning_rate}
        stage = Training(steps=steps, evaluations=own.epochs, **how)
        masked = encoding.MaskedBlocks(blocks, self.masking(unit["seed"]), own.epochs * len(blocks))
        heldout = self.pretraining.text.heldout(corpus.heldout, corpus.curve_blocks)
        sides = None, self.profile.distillation, stage, masked, heldout, None
        with training.unfinished(self.checkpoint(unit), self.fresh) as unfinished:
            log = train(DistillationTrainer(model, *sides, pad, unfinished, self.precision))
        return model.eval(), log

    def masking(self, seed: int) -> encoding.Masking:
        """Masks for training, or for one draw of the measurement."""
        return encoding.Masking(self.tokenizer, self.own.mask_rate, seed=seed)

    def blocks(self, text: str) -> encoding.Text:
        """What is predicted."""
        return self.examples(text, "test")

    def learned(self, unit: dict) -> encoding.Text:
        """What the unit's model is fine-tuned on."""
        return self.examples(TUNED_ON[unit["stage"]], "train")

    def read(self, text: str, split: str) -> encoding.Text:
        """The blocks of a split that are used."""
        cap = self.own.blocks if split == "test" else self.own.train_blocks
        return encoding.drawn_blocks(self.profile, self.tokenizer, text, split, cap)

    def measure(self, unit: dict) -> records.Measurement:
        """Masked-LM loss over the draws, and pseudo-perplexity on some of the blocks."""
        model, text = self.trained(unit), self.blocks(unit["text"])
        (scores, details), sources = self.masked_lm(model, text), [text.source]
        scores |= self.pseudo(model, text)
        scores |= {"parameters": checkpoints.parameters(model), "size_mb": checkpoints.size_mb(model)}
        if unit["stage"] in TUNED_ON:
            sources.append(self.learned(unit).source)
            details["curve"] = self.logs[self.checkpoint(unit)]
        return records.Measurement(scores, sources, self.sources(unit, model), details)

    def masked_lm(self, model: PreTrainedModel, text: encoding.Text) -> tuple[dict, dict]:
        """The masked-LM loss in nats over several draws of the masks, and where in the text it comes from."""
        every = []  # of each block and draw, the masked tokens' losses, ids, places, draws and blocks
        for draw in range(self.own.draws):
            masked = encoding.MaskedBlocks(text.blocks, self.masking(draw))
            for number, own in enumerate(masked_lm.masked_losses(model, masked, self.tokenizer)):
                labels = masked[number]["labels"]
                at = np.flatnonzero(labels != encoding.IGNORED)
                every.append((own, labels[at], at, np.full_like(at, draw), np.full_like(at, number)))
        losses, tokens, places, draws, numbers = map(np.concatenate, zip(*every, strict=True))
        of_draws = np.bincount(draws, losses) / np.bincount(draws)
        sums, counts = _sums(losses, text.documents[numbers], text.documents.max() + 1)
        ends = [float(losses.mean()), *metrics.mean_interval(sums[counts > 0], counts[counts > 0])]
        scores = Interval(*ends).named("masked_lm_loss") | Interval(*np.exp(ends).tolist()).named("perplexity")
        scores["masked_lm_loss_std_of_draws"] = float(of_draws.std(ddof=1)) if len(of_draws) > 1 else 0.0
        seen = np.digitize(self.pretraining.text.counts[tokens], FREQUENCIES) - 1
        parts = np.minimum(PARTS * places // self.profile.corpus.block_length, PARTS - 1)
        details = {"document_sums": records.pack(sums), "document_counts": records.pack(counts)}
        details["draws"] = of_draws.tolist()
        for name, group, size in (("frequency", seen, len(FREQUENCIES)), ("position", parts, PARTS)):
            totals, cases = _sums(losses, group, size)
            details[f"by_{name}"] = {"sums": totals.tolist(), "counts": cases.tolist()}
        return scores, details

    def pseudo(self, model: PreTrainedModel, text: encoding.Text) -> dict[str, float]:
        """Pseudo-perplexity a token and a word, on some of the blocks: masked alone, and with the rest of its word."""
        chosen = np.unique(np.linspace(0, len(text.blocks) - 1, self.own.pseudo_blocks).round().astype(int))
        few = [text.blocks[place] for place in chosen]
        owners = np.unique(text.documents[chosen], return_inverse=True)[1]
        words = sum(masked_lm.words_of(ids, self.tokenizer) for ids in few)
        found, scores = masked_lm.pseudo_log_likelihoods(model, few, self.tokenizer), {"pseudo_blocks": float(len(few))}
        for metric, logs in zip(("pseudo_perplexity", "pseudo_perplexity_within_word"), found, strict=True):
            sums = np.bincount(owners, [-np.nansum(own) for own in logs])
            counts = np.bincount(owners, [np.isfinite(own).sum() for own in logs])
            ends = sums.sum() / counts.sum(), *metrics.mean_interval(sums, counts)
            scores |= Interval(*np.exp(ends).tolist()).named(metric)
            scores[f"{metric}_per_word"] = float(np.exp(sums.sum() / words))
        return scores


def _sums(values: np.ndarray, group: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of the values in each group, both [size]."""
    return np.bincount(group, values, size), np.bincount(group, minlength=size)
