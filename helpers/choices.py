"""What to choose among all that notebooks 06 and 07 made of the student: a table of advice, and one picture."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import fronts, tradeoffs
from .claims import Evidence
from .language import of
from .variants import BASE

TASK, MODEL = "sst2", "student"


def points(evidence: Evidence) -> pd.DataFrame:
    """A row a variant of the student on SST-2, of 06 and 07, as `tradeoffs.frame` gives them; what both have, once."""
    frames = [
        tradeoffs.frame(
            [record for record in of(evidence(name), task=TASK, model=MODEL) if "device" not in record["unit"]]
        )
        for name in ("quantization", "pruning")
    ]
    found = pd.concat([frame.assign(trained=number > 0) for number, frame in enumerate(frames)])
    if not len(found):
        return found
    found.loc[found.variant == BASE, "trained"] = False
    return found[found.variant != f"{BASE}_int8"].drop_duplicates("variant", ignore_index=True)


def advice(evidence: Evidence) -> pd.DataFrame:
    """A row a need: the variant of the student that meets it best on SST-2, losing no more than a point."""
    every = points(evidence)
    if not len(every) or BASE not in set(every.variant):
        return pd.DataFrame()
    base = every[every.variant == BASE].score.iloc[0]
    near = every[every.score > base - tradeoffs.NEAR - 1e-9]
    plain = near[~near.trained]
    needs = {
        "the fastest answer": near.loc[near.latency_ms.idxmin()],
        "the smallest file": near.loc[near.size_mb.idxmin()],
        "the fastest without any training": plain.loc[plain.latency_ms.idxmin()],
        "the best score": every.loc[every.score.idxmax()],
    }
    if len(plain) > 1:
        needs["fp32's own answers"] = plain[plain.variant != BASE].sort_values("agreement").iloc[-1]
    rows = {
        need: {
            "take": row.label,
            "score (%)": f"{row.score:.1f}",
            "points": f"{row.score - base:+z.1f}",
            "size (MB)": f"{row.size_mb:.1f}",
            "times as fast": f"{row.latency_times_as_fast:.2f}",
        }
        for need, row in needs.items()
    }
    return pd.DataFrame(rows).T.rename_axis("if you need")


def picture(evidence: Evidence) -> Figure | None:
    """Score, speed and size of every variant of the student on SST-2, and of its teacher: the size is the area."""
    every = points(evidence)
    if not len(every):
        return None
    figure, axes = plt.subplots(figsize=(9, 5.6), layout="constrained")
    for name, own in every.groupby("family", sort=False):
        style = {"color": fronts.COLOURS[name], "alpha": 0.6, "edgecolor": "white", "linewidth": 0.5}
        axes.scatter(own.latency_ms, own.score, 4 * own.size_mb, label=name, **style)
    best = tradeoffs.front(every, "latency_ms")
    axes.step(best.latency_ms, best.score, where="post", color="grey", linewidth=1, zorder=0)
    if teacher := _teacher(evidence, every):
        axes.scatter(*teacher, 90, marker="*", color="black", label="teacher (star: not to scale)")
    axes.set(xscale="log", xlabel="latency of one row (ms), log scale", ylabel="SST-2 accuracy (%)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
    legend = figure.legend(loc="outside lower center", ncols=4)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    return figure


def _teacher(evidence: Evidence, points: pd.DataFrame) -> tuple[float, float] | None:
    """The teacher's latency, from the student's by the ratio that 08 measured on as many tokens, and its score."""
    scores = [record["metrics"]["score"] for record in of(evidence("glue"), task=TASK, model="teacher")]
    pairs = of(evidence("speed"), pair="own", threads=1, batch=1, length=128, run=0)
    base = points[points.variant == BASE]
    if not scores or not pairs or base.empty:
        return None
    return float(base.latency_ms.iloc[0]) * pairs[0]["metrics"]["times_as_fast"], 100 * float(np.median(scores))
