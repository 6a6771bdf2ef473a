"""Score against cost: compressed variants, a colour a technique, and the front of what nothing else beats."""

from collections.abc import Collection

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .figures import PALETTE
from .tradeoffs import front

COLOURS = {  # of each technique
    "half or full precision": (0.25, 0.25, 0.25),
    "PyTorch int8": PALETTE[3],
    "bitsandbytes": PALETTE[5],
    "ONNX Runtime": PALETTE[4],
    "OpenVINO": PALETTE[8],
    "weights set to zero": PALETTE[6],
    "masked, not cut": PALETTE[9],
    "heads and neurons cut": PALETTE[0],
    "layers dropped": PALETTE[1],
    "pruned, and int8": PALETTE[2],
}


MARKERS = dict(zip(COLOURS, "Dsovp^Xhd>", strict=True))  # so that no two depend on their colour alone


def chart(points: pd.DataFrame, cost: str, xlabel: str, ylabel: str, shown: Collection[str] | None = None) -> Figure:
    """Score against a cost: a point a variant; those on the front, and fp32, have numbers, and their names above.

    `points`: columns family, label, score, rows (scored) and the cost. `shown`: the families to draw, on the same axes
    as all of them. The band is fp32's score and 1.96 standard errors of a share of so many rows.
    """
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    best = _draw(axes, points, cost, COLOURS if shown is None else shown)
    named = pd.concat([best, points[points.variant == "fp32"]]).drop_duplicates("label")
    numbers = []
    for number, row in enumerate(named.itertuples(), start=1):
        place = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 10, "fontweight": "bold"}
        axes.annotate(str(number), (getattr(row, cost), row.score), **place)
        numbers.append(Line2D([], [], linestyle="none", color="0.15", marker=f"${number}$", label=row.label))
    figure.legend(handles=numbers, loc="outside upper left", ncols=2, fontsize=9)
    axes.set(xlabel=f"{xlabel}, log scale", ylabel=ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def steps(points: pd.DataFrame, cost: str, xlabel: str, ylabel: str) -> Figure:
    """The chart technique by technique, a panel each: what there was before, the new one, and where the front is now.

    `points` as for `chart`.
    """
    there = [family for family in COLOURS if family in set(points.family)]
    columns = len(there) if len(there) < 6 else -(-len(there) // 2)
    lines = -(-len(there) // columns)
    shape = {"figsize": (max(9, 2.3 * columns), 0.5 + 2.4 * lines), "squeeze": False, "sharex": True, "sharey": True}
    figure, panels = plt.subplots(lines, columns, layout="constrained", **shape)
    for number, axes in enumerate(panels.flat):
        axes.set_visible(number < len(there))
        if number < len(there):
            _draw(axes, points, cost, there[: number + 1], there[number])
            axes.set_title(f"+ {there[number]}" if number else there[0], fontsize=10)
            axes.tick_params(labelbottom=number + columns >= len(there))
    figure.supxlabel(f"{xlabel}, log scale", fontsize=11)
    figure.supylabel(ylabel, fontsize=11)
    return figure


def _draw(
    axes: plt.Axes, points: pd.DataFrame, cost: str, shown: Collection[str], new: str | None = None
) -> pd.DataFrame:
    """`new`: the family that comes in now; the others are paler."""
    drawn = points[points.family.isin(shown)]
    for name, own in drawn.groupby("family", sort=False):
        style = {"color": COLOURS[name], "alpha": 0.35 if new not in (None, name) else 1}
        axes.plot(own[cost], own.score, MARKERS[name], markersize=6, label=name, **style)
        if f"{cost}_low" in own:
            axes.hlines(own.score, own[f"{cost}_low"], own[f"{cost}_high"], linewidth=1, **style)
    base = points[points.variant == "fp32"]
    if len(base):
        half = 1.96 * np.sqrt(base.score.iloc[0] * (100 - base.score.iloc[0]) / base.rows.iloc[0])
        band = {"color": "grey", "alpha": 0.12, "linewidth": 0, "label": "chance of the rows drawn (fp32)"}
        axes.axhspan(base.score.iloc[0] - half, base.score.iloc[0] + half, **band)
    best, label = front(drawn, cost), "best score at this cost or less"
    axes.step(best[cost], best.score, where="post", color="grey", linewidth=1, zorder=0, label=label)
    room = max(1.0, 0.15 * np.ptp(points.score))
    axes.set(xscale="log", ylim=(points.score.min() - room, points.score.max() + room))
    axes.set_xlim(points[cost].min() / 1.3, points[cost].max() * 1.6)
    narrow = points[cost].max() < 6 * points[cost].min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if narrow else (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return best
