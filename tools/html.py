"""What readers get: executed notebooks without traces of the machine, and the same as HTML that needs no network."""

import functools
import os
import re
from concurrent.futures import ProcessPoolExecutor
from html import escape
from itertools import repeat
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Template, pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from pygments.formatters import HtmlFormatter

from helpers import ROOT
from helpers.measure.records import Workspace, write_whole

NOTEBOOKS = ROOT / "notebooks"
PAGE = Path(__file__).with_name("page.html")
WIDGET = "application/vnd.jupyter.widget-view+json"
DEAD = re.compile(r"\[!\[[^]]*\]\([^)]*\)\]\([^)]*/OWNER/[^)]*\)\s*")  # a badge while the project has no address


def tidy(copy: Path) -> None:
    """Take out of an executed notebook what is of this machine, leads nowhere, or keeps GitHub from showing it."""
    text = copy.read_text(encoding="utf-8")
    for folder, short in ((ROOT, ""), (Path.home(), "~/")):
        if folder != Path(folder.anchor):
            text = text.replace(f"{folder}/", short)
    notebook = nbformat.reads(text, as_version=4)
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})  # of a progress bar, its last state
    notebook.metadata.pop("widgets", None)  # the live widgets' state is incomplete without a browser
    own = notebook.metadata.pop("papermill", {})
    notebook.metadata["papermill"] = {key: own.get(key) for key in ("start_time", "duration", "exception")}
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a live widget is nothing without its kernel; its static twin stands beside it
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        else:
            cell.source = DEAD.sub("", cell.source)
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    write_whole(copy, nbformat.writes(notebook))


class MathRenderer(IPythonRenderer):
    """Markdown to HTML, with formulas in MathML, which a browser shows without MathJax."""

    def inline_math(self, body: str, display: str = "inline") -> str:
        try:
            return convert(body.strip(), display=display)
        except Exception:  # whatever the converter trips over: the source still reads
            return f"<code>{self.escape_html(body)}</code>"

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")


class Exporter(HTMLExporter):
    """nbconvert's HTML without a page around it."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        return MarkdownWithMath(renderer=MathRenderer(escape=False, attachments=attachments)).render(source)


def write_pages(workspace: Workspace) -> Path:
    """Make a page of every executed notebook, and an index of them, whose path it is; InputError if it cannot write."""
    notebooks = {}
    for path in sorted(workspace.notebooks.glob("*.ipynb")):
        try:
            notebooks[path.stem] = nbformat.read(path, as_version=4)
        except ValueError:  # cut off in the middle of writing; the next run makes it anew
            print(f"{path.name} is damaged and left out")
    names, series = list(notebooks), workspace.results.name
    with ProcessPoolExecutor(min(len(names), os.cpu_count()) or 1) as pool:
        pages = list(pool.map(_page, notebooks.values(), repeat(names), repeat(workspace.report)))
    style, lines = HtmlFormatter(style="friendly").get_style_defs(".highlight"), []
    page = functools.partial(Template(PAGE.read_text(encoding="utf-8")).render, series=series, highlight=style)
    for name, (title, body), before, after in zip(names, pages, ["", *names], [*names[1:], ""], strict=False):
        write_whole(workspace.report / f"{name}.html", page(title=title, body=body, before=before, after=after))
        lines.append((name, title, notebooks[name].metadata.get("papermill", {})))
    index = workspace.report / "index.html"
    write_whole(index, page(title=f"The series, profile {series}", pages=lines))
    return index


# Once for all pages: it would read its templates anew. None of its preprocessors has anything to do.
EXPORTER = Exporter(template_name="basic", exclude_output_prompt=True, default_preprocessors=[])


def _page(notebook: nbformat.NotebookNode, names: list[str], report: Path) -> tuple[str, str]:
    """The notebook's title, and itself as HTML, with nothing in it that would have to be fetched or run."""
    soup = BeautifulSoup(EXPORTER.from_notebook_node(notebook)[0], "html.parser")
    for tag in soup.select("script, link, .prompt:empty"):
        tag.decompose()
    for code in soup.select("[class*=celltag_] .input"):  # setup, figures, words, records: there to be opened
        code.wrap(soup.new_tag("details")).insert(0, BeautifulSoup("<summary>code</summary>", "html.parser"))
    heads = [f'<li><a href="#{h["id"]}">{escape(h.get_text("")[:-1])}</a></li>' for h in soup.select("h2[id]")]
    if heads and soup.h1:
        soup.h1.insert_after(BeautifulSoup(f'<ul class="toc">{"".join(heads)}</ul>', "html.parser"))
    for link in soup.select("a[href]"):  # as written in notebooks/: to a notebook's page, or the repository's file
        parts = urlsplit(link["href"])
        if parts.path and not parts.scheme and not parts.netloc:
            target = Path(os.path.normpath(NOTEBOOKS / unquote(parts.path)))
            to_page = target.parent == NOTEBOOKS and target.stem in names
            path = f"{target.stem}.html" if to_page else os.path.relpath(target, report)
            link["href"] = parts._replace(path=path).geturl()
    for image in soup.select("img:not([src^=data])"):  # a badge, say: nothing may be fetched
        image.replace_with(image.get("alt", ""))
    title = soup.h1.get_text().removesuffix("¶") if soup.h1 else "untitled"
    return escape(title), str(soup)
