"""A chart to choose in a live notebook: compressed variants by what they cost, with the numbers under it.

Without an Output widget: whoever runs a notebook headless answers one on the channel where it waits for the kernel, and
the answer can hide the kernel's own, so that now and then a cell that is done would wait for its time limit.
"""

import io

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd

from . import fronts, tables

COSTS = {
    "latency of one row (ms)": "latency_ms",
    "size on disk (MB)": "size_mb",
    "parameters": "parameters",
    "peak memory (MB)": "peak_memory_mb",
    "cold start (s)": "cold_start_s",
}


def explorer(frame: pd.DataFrame) -> widgets.Widget:
    """Controls for cost, task, model and families over the chart of `fronts.chart`, and its points as a table.

    `frame`: a row a variant, as `tradeoffs.frame` gives them.
    """
    if frame.empty:
        return widgets.HTML(tables.MISSING)
    here = {label: column for label, column in COSTS.items() if column in frame}
    models = [(tables.MODELS[name], name) for name in dict.fromkeys(frame.model)]
    families = [name for name in fronts.COLOURS if name in set(frame.family)]
    cost = widgets.Dropdown(options=here, description="Cost")
    task = widgets.Dropdown(options=list(dict.fromkeys(frame.task)), description="Task")
    model = widgets.Dropdown(options=models, description="Model")
    chosen = widgets.SelectMultiple(options=families, value=families, description="Families")
    chart, numbers = widgets.Image(layout=widgets.Layout(max_width="100%")), widgets.HTML()

    def draw(_=None) -> None:
        own = frame[(frame.task == task.value) & (frame.model == model.value)].dropna(subset=[cost.value])
        drawn = own[own.family.isin(chosen.value)].sort_values(cost.value)
        chart.layout.display = "none" if drawn.empty else None
        if drawn.empty:
            numbers.value = "nothing was measured for this choice"
            return
        figure = fronts.chart(own, cost.value, cost.label, f"{task.value} score (%)", chosen.value)
        picture = io.BytesIO()
        figure.savefig(picture)
        plt.close(figure)  # or it would be shown once more, below
        chart.value = picture.getvalue()
        listed = drawn[["label", "family", cost.value, "score"]].set_index("label").round(2)
        numbers.value = listed.rename(columns={cost.value: cost.label, "score": "score (%)"}).to_html()

    for control in (cost, task, model, chosen):
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox([cost, task, model]), chosen, chart, numbers])
