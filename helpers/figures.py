"""Pictures made from records: one style, one colour a model through the whole series, kept as PNG with a caption."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngInfo

from .comparison import Comparison
from .language import STAGES
from .records import Workspace
from .tables import MODELS

PALETTE = sns.color_palette("colorblind")
COLOURS = {  # of each model, in every figure
    "teacher": (0.25, 0.25, 0.25),
    "released": PALETTE[4],
    "student": PALETTE[0],
    "twin": PALETTE[1],
    "random": PALETTE[2],
    "student_d": PALETTE[9],
}
STAGE_MARKERS = {"base": "o", "int8": "s", "wikitext": "^", "wikitext_int8": "v"}
PAPER = {"BERT-base": "teacher", "DistilBERT": "student"}  # the colour of each published model
TERMS = {  # of the triple loss, as logged
    "distillation": "distillation loss",
    "masked_lm": "masked-LM loss",
    "cosine": "cosine loss",
}
HELDOUT = {
    "heldout_masked_lm_loss": "masked-LM loss (nats)",
    "heldout_kl_to_teacher": "KL to teacher (nats)",
    "heldout_cosine_loss": "1 − cosine to teacher",
}


def style() -> None:
    """The series' look: set once in a notebook."""
    room = {f"figure.constrained_layout.{side}": 0.08 for side in ("w_pad", "h_pad")}  # inches around each panel
    sns.set_theme(style="whitegrid", palette="colorblind", rc={"figure.dpi": 110, "savefig.dpi": 150} | room)
    plt.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titleweight": "bold"}
        | {"axes.labelsize": 10, "legend.frameon": False, "legend.fontsize": 9, "grid.alpha": 0.4}
    )


def show(space: Workspace, name: str, figure: Figure, caption: str) -> None:
    """Keep a figure as figures/<profile>/<name>.png and display it with its caption, which is its alt text too."""
    space.figures.mkdir(parents=True, exist_ok=True)
    picture, dpi = BytesIO(), plt.rcParams["savefig.dpi"]
    if engine := figure.get_layout_engine():  # lay out once: to save a figure that still has its engine draws it twice
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(picture, format="rgba", dpi=dpi)
    plt.close(figure)
    said, path = PngInfo(), space.figures / f"{name}.png"
    said.add_text("Description", caption)
    # 256 colours of its own are enough for any figure here, at half the size.
    size = tuple(int(inches * dpi) for inches in figure.get_size_inches())
    drawn = PIL.Image.frombytes("RGBA", size, picture.getvalue()).convert("RGB")
    drawn.quantize(256, dither=PIL.Image.Dither.NONE).save(path, pnginfo=said, dpi=(dpi, dpi))
    display(
        Image(path.read_bytes(), width=min(900, 90 * figure.get_figwidth())), metadata={"image/png": {"alt": caption}}
    )
    display(Markdown(f"*{caption}*"))


def curve(records: Sequence[dict], model: str, value: str) -> pd.DataFrame:
    """One value of a model's training log: a row a step, a column a seed; empty where it was not logged."""
    runs = {
        record["unit"]["seed"]: {
            line["step"]: line[value]
            for line in record["details"]["curve"]
            if value in line and line.get("stage", "whole") == "whole"
        }
        for record in records
        if record["unit"]["model"] == model
    }
    return pd.DataFrame({seed: run for seed, run in runs.items() if run}).sort_index()


def _draw(axes: plt.Axes, runs: pd.DataFrame, model: str) -> None:
    """The mean over seeds as a line, the seeds' range as a band."""
    axes.plot(runs.index, runs.mean(axis=1), color=COLOURS[model], label=MODELS[model], marker=".", markersize=4)
    axes.fill_between(runs.index, runs.min(axis=1), runs.max(axis=1), color=COLOURS[model], alpha=0.2, linewidth=0)


def loss_terms(records: Sequence[dict], models: Sequence[str]) -> Figure:
    """The terms of the training loss against steps, a panel a term."""
    figure, panels = plt.subplots(1, len(TERMS), figsize=(10, 3.4), layout="constrained")
    for axes, (term, title) in zip(panels, TERMS.items(), strict=True):
        for model in models:
            runs = curve(records, model, term)
            if len(runs):
                _draw(axes, runs, model)
        axes.set(title=title, xlabel="step", ylabel="mean over its positions", ylim=(0, None))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def heldout_curves(records: Sequence[dict], models: Sequence[str]) -> Figure:
    """Held-out losses against steps, a panel a loss; the teacher's masked-LM loss, where it ended, as a dashed line."""
    figure, panels = plt.subplots(1, len(HELDOUT), figsize=(10, 3.4), layout="constrained")
    for axes, (value, title) in zip(panels, HELDOUT.items(), strict=True):
        for model in models:
            runs = curve(records, model, value)
            if len(runs):
                _draw(axes, runs, model)
        axes.set(title=title, xlabel="step")
    ends = curve(records, "teacher", "heldout_masked_lm_loss")
    if len(ends):
        panels[0].axhline(ends.iloc[-1].mean(), color=COLOURS["teacher"], linestyle="--", label="teacher, at its end")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def teacher_curve(record: dict) -> Figure:
    """How the teacher's masked-LM loss fell in its own training, stage by stage."""
    stages = dict.fromkeys(line["stage"] for line in record["details"]["curve"])
    figure, panels = plt.subplots(1, len(stages), figsize=(5 * len(stages), 3.2), layout="constrained", squeeze=False)
    for axes, stage in zip(panels[0], stages, strict=True):
        lines = [line for line in record["details"]["curve"] if line["stage"] == stage]
        training = [(line["step"], line["masked_lm"]) for line in lines if "masked_lm" in line]
        heldout = [(line["step"], line["heldout_masked_lm_loss"]) for line in lines if "heldout_masked_lm_loss" in line]
        axes.plot(*zip(*training, strict=True), color=COLOURS["teacher"], alpha=0.5, label="training text")
        axes.plot(*zip(*heldout, strict=True), color=COLOURS["teacher"], marker="o", label="held-out text")
        title = "the new head alone" if stage == "head" else "all weights"
        axes.set(title=title, xlabel="step", ylabel="masked-LM loss (nats)")
        axes.legend()
    return figure


def soft_targets(
    guesses: Sequence[tuple[str, float]], temperatures: Sequence[float] = (1, 2, 5), top: int = 8
) -> Figure:
    """A distribution over words at several temperatures: [(word, probability), …] from the likeliest down."""
    logits = np.log([share for _, share in guesses])
    words = [word for word, _ in guesses[:top]]
    figure, panels = plt.subplots(1, len(temperatures), figsize=(10, 2.6), sharey=True, layout="constrained")
    for axes, temperature in zip(panels, temperatures, strict=True):
        shares = np.exp(logits / temperature)
        axes.barh(words, (shares / shares.sum())[:top], color=COLOURS["teacher"])
        axes.set(title=f"temperature {temperature:g}", xlabel="probability")
    panels[0].invert_yaxis()
    return figure


def glue(found: Comparison, tasks: Sequence[str], paper: dict[tuple[str, str], float]) -> Figure:
    """Every task's score, ours as dots with the seeds' range and the published ones as diamonds; retention beside it.

    `paper`: the published score in percent by (model, task).
    """
    figure, (scores, kept) = plt.subplots(1, 2, figsize=(11, 0.5 * len(tasks) + 1.8), sharey=True, layout="constrained")
    places = np.arange(len(tasks))[::-1]
    offsets = np.linspace(0.24, -0.24, len(found.models))
    for model, offset in zip(found.models, offsets, strict=True):
        colour = COLOURS[model]
        for task, place in zip(tasks, places, strict=True):
            middle, seeds = 100 * found.score(task, model), 100 * found.seeds(task, model)
            scores.plot([seeds.min(), seeds.max()], [place + offset] * 2, color=colour, linewidth=2, alpha=0.6)
            scores.plot(middle, place + offset, "o", color=colour, label=MODELS[model] if place == 0 else None)
            share = found.retention(task, model) if model != "teacher" else None
            if share:
                middle, low, high = (100 * value for value in share)
                kept.plot([max(low, 0), min(high, 150)], [place + offset] * 2, color=colour, linewidth=2, alpha=0.6)
                kept.plot(middle, place + offset, "o", color=colour)
    for name, like in PAPER.items():
        style = {"marker": "D", "linestyle": "", "markerfacecolor": "none", "color": COLOURS[like], "markersize": 6}
        values = [paper[name, task] for task in tasks]
        scores.plot(values, places + 0.36, label=f"{name}, published", **style)
    shares = [100 * paper["DistilBERT", task] / paper["BERT-base", task] for task in tasks]
    kept.plot(shares, places + 0.36, **style)
    kept.axvline(100, color=COLOURS["teacher"], linestyle="--", linewidth=1)
    kept.set(title="kept of the teacher's score (95% interval)", xlabel="%")
    scores.set(title="score on the dev set (range over seeds)", xlabel="%", yticks=places, yticklabels=tasks)
    for axes in (scores, kept):
        axes.grid(axis="y", visible=False)
    figure.legend(*scores.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def bars(values: pd.DataFrame, errors: pd.DataFrame, xlabel: str) -> Figure:
    """Horizontal bars, a row a label and a colour a model (the columns), with error bars."""
    figure, axes = plt.subplots(figsize=(9, 0.4 * values.size + 1.2), layout="constrained")
    places, height = np.arange(len(values))[::-1], 0.8 / len(values.columns)
    for number, model in enumerate(values.columns):
        spots = places + 0.4 - height * (number + 0.5)
        style = {"color": COLOURS[model], "label": MODELS[model], "error_kw": {"linewidth": 1.2}}
        axes.barh(spots, values[model], height * 0.9, xerr=errors[model], **style)
    axes.set(yticks=places, yticklabels=values.index, xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def changes(found: pd.DataFrame, xlabel: str) -> Figure:
    """Changes against a whole recipe: columns points, low, high and published, a row for what is left out."""
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(found) + 1.4), layout="constrained")
    places = np.arange(len(found))[::-1]
    axes.axvline(0, color=COLOURS["student"], linestyle="--", linewidth=1)
    axes.hlines(places, found.low, found.high, color=COLOURS["teacher"], linewidth=2, alpha=0.6)
    axes.plot(found.points, places, "o", color=COLOURS["teacher"], label="ours (95% interval)")
    axes.plot(found.published, places + 0.22, "D", color="black", markerfacecolor="none", label="published, Table 4")
    axes.set(yticks=places, yticklabels=found.index, xlabel=xlabel, ylim=(-0.6, len(found) - 0.4))
    axes.grid(axis="y", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def by_group(groups: dict[str, pd.DataFrame], ylabel: str, top: float | None = 100) -> Figure:
    """A panel a question: a line a model (columns) over ordered groups (index), with the number of cases below each."""
    figure, panels = plt.subplots(1, len(groups), figsize=(11, 3.4), sharey=True, layout="constrained")
    for axes, (title, frame) in zip(np.atleast_1d(panels), groups.items(), strict=True):
        labels = [f"{group}\n(n = {count:,})" for group, count in zip(frame.index, frame["n"], strict=True)]
        for model in frame.columns.drop("n"):
            axes.plot(labels, frame[model], marker="o", color=COLOURS[model], label=MODELS[model])
        axes.set(title=title, ylim=(0, top))
        axes.tick_params(axis="x", labelsize=8)
    np.atleast_1d(panels)[0].set_ylabel(ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def speed_against_perplexity(points: pd.DataFrame) -> Figure:
    """A point a model (its colour) and stage (its marker): columns model, stage, and tokens_per_s and perplexity.

    Each of the two has columns _low and _high beside it, drawn as bars.
    """
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    for row in points.itertuples():
        errors = [[row.perplexity - row.perplexity_low], [row.perplexity_high - row.perplexity]]
        sideways = [[row.tokens_per_s - row.tokens_per_s_low], [row.tokens_per_s_high - row.tokens_per_s]]
        style = {"color": COLOURS[row.model], "marker": STAGE_MARKERS[row.stage], "markersize": 8, "elinewidth": 1}
        axes.errorbar(row.tokens_per_s, row.perplexity, errors, sideways, **style)
    for model in dict.fromkeys(points.model):
        axes.plot([], [], "o", color=COLOURS[model], label=MODELS[model])
    for stage in dict.fromkeys(points.stage):
        axes.plot([], [], STAGE_MARKERS[stage], color="grey", label=STAGES[stage])
    axes.set(xlabel="tokens read a second", ylabel="perplexity over masked tokens", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def surprise(sentences: Sequence[tuple[list[str], dict[str, np.ndarray]]], longest: int = 24) -> Figure:
    """Heat maps of how surprising each token is: a panel a sentence, a row a model, a column a token, darker for more.

    Each sentence: its tokens, and by model their negative log-likelihoods in nats [tokens].
    """
    figure, panels = plt.subplots(len(sentences), figsize=(11, 1.9 * len(sentences)), layout="constrained")
    for axes, (tokens, by_model) in zip(np.atleast_1d(panels), sentences, strict=True):
        values = pd.DataFrame(by_model, index=tokens).T.rename(index=MODELS).iloc[:, :longest]
        last = axes is np.atleast_1d(panels)[-1]
        bar = {"cbar": last, "cbar_kws": {"label": "nats", "orientation": "horizontal", "shrink": 0.4}}
        sns.heatmap(values, ax=axes, vmin=0, vmax=10, cmap="rocket_r", annot=True, fmt=".0f", linewidths=1, **bar)
        axes.tick_params(axis="x", rotation=45)
        axes.tick_params(axis="y", rotation=0)
    return figure
