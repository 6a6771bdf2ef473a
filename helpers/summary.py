"""Two pages to take along: the report's answers and ledger, and its pictures, as a PDF."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

A4 = (8.27, 11.69)  # inches


def write_pdf(path: Path, title: str, text: str, ledger: pd.DataFrame, pictures: Sequence[Path]) -> None:
    """Two pages of A4, whole or not at all: the answers, in Markdown, and the ledger; then pictures, as PNG."""
    unfinished = path.with_suffix(".part.pdf")
    with PdfPages(unfinished, metadata={"Title": title, "CreationDate": None}) as pages:
        for page in (_page_of_text(title, text, ledger), _page_of_pictures(pictures)):
            pages.savefig(page)
            plt.close(page)
    unfinished.replace(path)


def _page_of_text(title: str, text: str, ledger: pd.DataFrame) -> Figure:
    page = plt.figure(figsize=A4)
    page.text(0.06, 0.965, title, fontsize=14, fontweight="bold", va="top")
    lines = [line for item in text.replace("**", "").splitlines() for line in textwrap.wrap(item, 128)]
    page.text(0.06, 0.94, "\n".join(lines), fontsize=7, va="top", linespacing=1.35)
    axes = page.add_axes((0.06, 0.03, 0.88, 0.9 - 0.0125 * len(lines)))
    axes.set_axis_off()
    columns = {"claim": 58, "verdict": 18, "number": 66, "published": 10, "ours": 42}
    cells = [
        [textwrap.shorten(str(row[name]).replace("**", ""), width, placeholder=" …") for name, width in columns.items()]
        for row in ledger.reset_index().to_dict("records")
    ]
    widths = [width / sum(columns.values()) for width in columns.values()]
    table = axes.table(
        cells, colLabels=list(columns), colWidths=widths, cellLoc="left", loc="upper left", edges="horizontal"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(5)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.3)
        cell.PAD = 0.02
    return page


def _page_of_pictures(pictures: Sequence[Path]) -> Figure:
    page = plt.figure(figsize=A4)
    for number, path in enumerate(pictures):
        axes = page.add_axes((0.06, 1 - (number + 1) * 0.95 / len(pictures), 0.88, 0.92 / len(pictures)))
        axes.imshow(plt.imread(path))
        axes.set_axis_off()
    return page
