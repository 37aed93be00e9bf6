"""What the pages of the book know of an executed paper."""

import ast
import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook.press.findings import ledgers
from lossbook.press.pages.myst import plain
from lossbook.press.project import Paper

# Files that reach the site as they are, under their own names: figures and downloads.
EXTRA = "extra"
# What `lab.show` puts into a notebook.
IMAGE = re.compile(
    r'(<figure class="lossbook-figure"[^>]*>)\s*<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]*)">'
)
# A cell with this tag has the figure for the paper's card; without one it is the first under "Results".
CARD = "card"


@dataclass(frozen=True)
class Figure:
    """A figure of a paper as a file of the site; sizes are CSS pixels."""

    path: str
    alt: str
    width: int
    height: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Page:
    """An executed paper and what other pages show of it."""

    paper: Paper
    notebook: NotebookNode
    heading: str
    idea: str
    tags: tuple[str, ...]
    entries: tuple[dict[str, Any], ...]
    figures: tuple[Figure, ...]
    figure: Figure | None
    uses: frozenset[str]

    @classmethod
    def of(cls, paper: Paper, notebook: NotebookNode) -> "Page":
        """What an executed notebook says of itself."""
        front = notebook.metadata.get("lossbook", {})
        figures, card = _figures(paper, notebook)
        return cls(
            paper=paper,
            notebook=notebook,
            heading=heading(notebook) or plain(paper.title),
            idea=str(front.get("idea") or ""),
            tags=tuple(map(str, front.get("tags") or ())),
            entries=tuple(ledgers.of(notebook)),
            figures=tuple(figures),
            figure=card,
            uses=frozenset(_uses(notebook)),
        )

    @property
    def opening(self) -> bool:
        """Whether this is the opening page of a part, not a paper."""
        return self.paper.opening


def pages(notebooks: Mapping[Paper, NotebookNode]) -> list[Page]:
    """The pages of a book, in its order."""
    return [Page.of(paper, notebook) for paper, notebook in notebooks.items()]


def related(page: Page, others: Iterable[Page], most: int = 6) -> list[tuple[Page, list[str]]]:
    """Papers that use the same functions of the library, with these, those with most in common first."""
    shared = [(other, sorted(page.uses & other.uses)) for other in others if other.paper != page.paper]
    return sorted((pair for pair in shared if pair[1]), key=lambda pair: -len(pair[1]))[:most]


def write_figures(found: Iterable[Page], folder: Path) -> None:
    """Write the figures of pages where the site will find them."""
    for page in found:
        for figure in page.figures:
            path = folder / EXTRA / figure.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(figure.data)


def heading(notebook: NotebookNode) -> str:
    """The title of a notebook, as Markdown; empty if it has none."""
    first = next((cell for cell in notebook.cells if cell.cell_type == "markdown"), None)
    lines = first.source.strip().splitlines() if first else []
    return lines[0].removeprefix("# ").strip() if lines and lines[0].startswith("# ") else ""


def figure_of(paper: Paper, data: str, alt: str) -> Figure:
    """A figure from its data, an SVG in base 64 as matplotlib writes it, and its alternative text as HTML."""
    svg = base64.b64decode(data)
    width, height = (_pixels(svg, name) for name in (b"width", b"height"))
    # The name changes with the content, so that no browser shows an old one.
    name = f"{paper.slug}-{hashlib.sha256(svg).hexdigest()[:10]}.svg"
    return Figure(f"figures/{name}", unescape(alt), width, height, svg)


def _pixels(svg: bytes, name: bytes) -> int:
    points = re.search(rb"<svg[^>]*?\s" + name + rb'="([\d.]+)pt"', svg)
    # A point is 4/3 CSS pixels. A drawing without a size gets a square, which style sheets scale.
    return round(float(points[1]) * 4 / 3) if points else 480


def _figures(paper: Paper, notebook: NotebookNode) -> tuple[list[Figure], Figure | None]:
    """The figures of a notebook, and the one that stands for it."""
    found, marked, result, section = [], None, None, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for title in re.findall(r"^## (.+)$", cell.source, re.MULTILINE):
                section = title
        for output in cell.get("outputs", []):
            for _, data, alt in IMAGE.findall(html(output)):
                figure = figure_of(paper, data, alt)
                found.append(figure)
                if CARD in cell.metadata.get("tags", []):
                    marked = marked or figure
                if section.startswith("Results"):
                    result = result or figure
    return found, marked or result or next(iter(found), None)


def html(output: Mapping[str, Any]) -> str:
    """The HTML of a cell's output; empty if it has none."""
    text = output.get("data", {}).get("text/html", "")
    return "".join(text) if isinstance(text, list) else text


def _uses(notebook: NotebookNode) -> set[str]:
    """Dotted names of what a notebook imports from `lossbook.methods`."""
    names = set()
    for cell in notebook.cells:
        if cell.cell_type != "code" or "lossbook.methods" not in cell.source:
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lossbook.methods"):
                names |= {f"{node.module}.{name.name}" for name in node.names}
    return names
