"""Pictures made from records: one style, one colour a model or a technique, kept as PNG with a caption."""

from collections.abc import Collection

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from PIL.PngImagePlugin import PngInfo

from ..measure.records import Workspace
from .tables import COLOURS, MODELS

PALETTE = sns.color_palette("colorblind")


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
    path, dpi, said = space.figures / f"{name}.png", plt.rcParams["savefig.dpi"], PngInfo()
    figure.set_dpi(dpi)  # before all is laid out: letters are not as wide at another
    if engine := figure.get_layout_engine():  # lay out and draw once: `savefig` goes through all of it a second time
        engine.execute(figure)
        figure.set_layout_engine("none")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    plt.close(figure)
    said.add_text("Description", caption)
    # 256 colours of its own are enough for any figure here, at half the size.
    drawn = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    drawn.quantize(256, dither=PIL.Image.Dither.NONE).save(path, pnginfo=said, dpi=(dpi, dpi))
    shown = Image(path.read_bytes(), width=min(900, 90 * figure.get_figwidth()))
    display(shown, metadata={"image/png": {"alt": caption}})
    display(Markdown(f"*{caption}*"))


def by_group(groups: dict[str, pd.DataFrame], ylabel: str, top: float | None = 100) -> Figure:
    """A panel a question: a line a model (columns) over ordered groups (index), with the number of cases below each."""
    shape = {"figsize": (11, 3.4), "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, (panels,) = plt.subplots(1, len(groups), **shape)
    for axes, (title, frame) in zip(panels, groups.items(), strict=True):
        labels = [f"{group}\n(n = {count:,})" for group, count in zip(frame.index, frame["n"], strict=True)]
        for model in frame.columns.drop("n"):
            axes.plot(labels, frame[model], marker="o", color=COLOURS[model], label=MODELS[model])
        axes.set(title=title, ylim=(0, top or 1.1 * frame.drop(columns="n").to_numpy().max()))
        axes.tick_params(axis="x", labelsize=9)
    panels[0].set_ylabel(ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


TECHNIQUES = {  # of each technique
    "half or full precision": (0.25, 0.25, 0.25),
    "PyTorch int8": PALETTE[3],
    "bitsandbytes": PALETTE[5],
    "ONNX Runtime": PALETTE[4],
    "vocabulary trimmed": PALETTE[8],
    "weights set to zero": PALETTE[6],
    "masked, not cut": PALETTE[9],
    "heads and neurons cut": PALETTE[0],
    "layers dropped": PALETTE[1],
    "pruned, and int8": PALETTE[2],
}
MARKERS = dict(zip(TECHNIQUES, "Dsovp^Xhd>", strict=True))  # so that no two depend on their colour alone


def chart(points: pd.DataFrame, cost: str, xlabel: str, ylabel: str, shown: Collection[str] | None = None) -> Figure:
    """Score against a cost: a point a variant; those on the front, and fp32, have numbers, and their names above.

    `points`: as `tradeoffs.frame` gives them. `shown`: the families to draw, on the same axes as all of them. The band
    is fp32's score and 1.96 standard errors of a share of so many rows.
    """
    figure, axes = plt.subplots(figsize=(9, 4.4), layout="constrained")
    best = _draw_points(axes, points, cost, TECHNIQUES if shown is None else shown)
    named = pd.concat([best, points[points.variant == "fp32"]]).drop_duplicates("label")
    look, names = {"textcoords": "offset points", "fontsize": 10, "fontweight": "bold", "zorder": 5}, []
    for number, row in enumerate(named.itertuples(), start=1):
        spot, mark = (getattr(row, cost), row.score), {"markersize": 8, "markeredgecolor": "black"}
        axes.plot(*spot, MARKERS[row.family], color=TECHNIQUES[row.family], **mark)
        axes.annotate(str(number), spot, (6 if number % 2 else -13, 5), **look)  # neighbours' numbers lie apart
        names.append(Line2D([], [], linestyle="none", color="0.15", marker=f"${number}$", label=row.label))
    beside = 1 if named.label.str.len().max() > 60 else 2  # two wide ones would not fit
    figure.legend(handles=names, loc="outside upper left", ncols=beside, fontsize=9)
    axes.set(xlabel=f"{xlabel}, log scale", ylabel=ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _draw_points(axes: plt.Axes, points: pd.DataFrame, cost: str, shown: Collection[str]) -> pd.DataFrame:
    """Every point of some families, fp32's band and the front, which is returned."""
    drawn = points[points.family.isin(shown)]
    for name, own in drawn.groupby("family", sort=False):
        colour = TECHNIQUES[name]
        axes.plot(own[cost], own.score, MARKERS[name], markersize=6, label=name, color=colour)
        if f"{cost}_low" in own:
            axes.hlines(own.score, own[f"{cost}_low"], own[f"{cost}_high"], linewidth=1, color=colour)
    axes.plot(points[cost], points.score, " ")  # all of them span the axes, whichever are drawn
    for base in points[points.variant == "fp32"].itertuples():
        low, high = base.score + 1.96 * np.sqrt(base.score * (100 - base.score) / base.rows) * np.array([-1, 1])
        axes.axhspan(low, high, color="grey", alpha=0.12, linewidth=0, label="chance of the rows drawn (fp32)")
    best, label = front(drawn, cost), "best score at this cost or less"
    axes.step(best[cost], best.score, where="post", color="grey", linewidth=1, zorder=0, label=label)
    axes.set(xscale="log", ymargin=0.12, xlim=(points[cost].min() / 1.3, points[cost].max() * 1.6))
    narrow = points[cost].max() < 6 * points[cost].min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if narrow else (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()  # they are not drawn, but would be laid out
    return best


def front(points: pd.DataFrame, cost: str, gain: str = "score") -> pd.DataFrame:
    """The rows that no other one beats: none costs less and gains as much (the Pareto front), the cheapest first."""
    ordered = points.sort_values([cost, gain], ascending=[True, False])
    return ordered[ordered[gain] > ordered[gain].astype(float).cummax().shift(fill_value=-np.inf)]
