"""What readers get: executed notebooks without traces of the machine, and the same as HTML pages that need no
network."""

import base64
import functools
import mimetypes
import os
from concurrent.futures import ProcessPoolExecutor
from html import escape
from itertools import repeat
from pathlib import Path
from string import Template
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from pygments.formatters import HtmlFormatter

from . import ROOT
from .records import Workspace

NOTEBOOKS = ROOT / "notebooks"
PAGE = Path(__file__).with_name("page.html")
WIDGET = "application/vnd.jupyter.widget-view+json"


def tidy(copy: Path) -> None:
    """Take out of an executed notebook what is of this machine, or keeps GitHub from showing it."""
    text = copy.read_text()
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
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, copy)


class MathRenderer(IPythonRenderer):
    """Markdown to HTML, with formulas in MathML, which a browser shows without MathJax."""

    def inline_math(self, body: str) -> str:
        return self._mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return self._mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self._mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def _mathml(self, formula: str, display: str) -> str:
        try:
            return convert(formula.strip(), display=display)
        except Exception:  # whatever the converter trips over: the source still reads
            return f"<code>{self.escape_html(formula)}</code>"


class Exporter(HTMLExporter):
    """nbconvert's HTML without a page around it."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        return MarkdownWithMath(renderer=MathRenderer(escape=False, attachments=attachments)).render(source)


def write_pages(workspace: Workspace) -> Path:
    """Make a page of every executed notebook in the workspace, and an index of them; the path of the index.

    Raises:
        OSError: the folder cannot be written to.
    """
    workspace.report.mkdir(parents=True, exist_ok=True)
    notebooks = {}
    for path in sorted(workspace.notebooks.glob("*.ipynb")):
        try:
            notebooks[path.stem] = nbformat.read(path, as_version=4)
        except ValueError:  # cut off in the middle of writing; the next run makes it anew
            print(f"{path.name} is damaged and left out")
    names = list(notebooks)
    with ProcessPoolExecutor(min(len(names), os.cpu_count()) or 1) as pool:
        bodies = list(pool.map(_body, notebooks.values(), repeat(names), repeat(workspace)))
    for i, (name, body) in enumerate(zip(names, bodies, strict=True)):
        before = f'<a href="{names[i - 1]}.html">← {names[i - 1]}</a>' if i else "<span></span>"
        after = f'<a href="{names[i + 1]}.html">{names[i + 1]} →</a>' if i + 1 < len(names) else "<span></span>"
        links = f'{before}<a href="index.html">{workspace.results.name}</a>{after}'
        _page(workspace.report / f"{name}.html", _title(notebooks[name], name), links, body)
    lines = [_index_line(notebooks[name], name) for name in names]
    title = f"The series, profile {workspace.results.name}"
    return _page(workspace.report / "index.html", title, "", f"<h1>{title}</h1>\n<ul>{''.join(lines)}</ul>")


def _page(path: Path, title: str, links: str, body: str) -> Path:
    highlight = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    page = Template(PAGE.read_text()).substitute(title=title, links=links, body=body, highlight=highlight)
    path.write_text(page)
    return path


def _title(notebook: nbformat.NotebookNode, name: str) -> str:
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    heading = next((line.lstrip("# ") for line in lines if line.startswith("# ")), name)
    return escape(BeautifulSoup(heading, "html.parser").get_text())


def _index_line(notebook: nbformat.NotebookNode, name: str) -> str:
    about = notebook.metadata.get("papermill", {})
    note = " – <strong>failed</strong>" if about.get("exception") else ""
    seconds = f" <small>{about['duration']:.0f} s</small>" if about.get("duration") else ""
    return f'<li><a href="{name}.html">{name}</a> {_title(notebook, name)}{seconds}{note}</li>\n'


def _body(notebook: nbformat.NotebookNode, names: list[str], workspace: Workspace) -> str:
    """The notebook as HTML, with nothing in it that would have to be fetched or run."""
    html, _ = _exporter().from_notebook_node(notebook)
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.select("script, link, .prompt:empty"):
        tag.decompose()
    for link in soup.select("a[href]"):
        link["href"] = _relative(link["href"], names, workspace)
    for image in soup.select("img[src]"):
        source = urlsplit(image["src"])
        local = NOTEBOOKS / unquote(source.path)
        if source.scheme in ("http", "https"):  # a badge, say
            image.replace_with(image.get("alt", ""))
        elif not source.scheme and local.is_file():
            kind = mimetypes.guess_type(local.name)[0]
            image["src"] = f"data:{kind};base64,{base64.b64encode(local.read_bytes()).decode()}"
    return str(soup)


@functools.cache  # its templates are read once for all pages
def _exporter() -> "Exporter":
    return Exporter(template_name="basic", exclude_output_prompt=True)


def _relative(link: str, names: list[str], workspace: Workspace) -> str:
    """A link as written in notebooks/, from the report: to a notebook's page or the repository's file."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return link
    target = Path(os.path.normpath(NOTEBOOKS / unquote(parts.path)))
    to_page = target.parent == NOTEBOOKS and target.stem in names
    path = f"{target.stem}.html" if to_page else os.path.relpath(target, workspace.report)
    return path + (f"#{parts.fragment}" if parts.fragment else "")
