"""The gallery: a card for each paper, and filters where the browser runs scripts (book/_static/gallery.js)."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lossbook.press.pages.catalogue import CLAIMS, people, verdicts
from lossbook.press.pages.model import Page
from lossbook.press.pages.myst import counted
from lossbook.press.pages.scripts import script
from lossbook.press.project import Project

INTRO = "Every paper that has a page, with a figure from its own run and how its claims came out."


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Write the gallery into the book's folder."""
    papers = [page for page in pages if not page.opening]
    text = _text(project, papers, script(folder, "gallery.js"))
    (folder / "gallery.md").write_text(text, encoding="utf-8")


def _text(project: Project, pages: Sequence[Page], filtering: str) -> str:
    if not pages:
        return "# Gallery\n\nNo paper has a page yet. The [roadmap](roadmap.md) lists those that will.\n"
    cards = "\n\n".join(_card(project, page) for page in pages)
    return (
        f"# Gallery\n\n{INTRO} The [roadmap](roadmap.md) has the papers that will follow.\n\n"
        f"{_filters(project, pages) if filtering else ''}\n\n"
        f"<ul class='lossbook-cards' role='list'>\n\n{cards}\n\n</ul>\n\n{filtering}\n"
    )


def _filters(project: Project, pages: Sequence[Page]) -> str:
    """The form, hidden until a script shows it: before the browser paints, so that nothing moves.

    No field may be called `q`: Sphinx's search reads that from the address, on every page.
    """
    parts = {page.paper.part: project.part_title(page.paper.part) for page in pages}
    tags = sorted({tag for page in pages for tag in page.tags}, key=str.casefold)
    fields = [
        "<label>Search<input type='search' name='text' placeholder='title, author, idea, tag'></label>",
        _select("part", "Part", "All parts", parts.items()),
        _select("verdict", "Has a claim", "Any verdict", ((verdict, verdict) for verdict in CLAIMS)),
        _select("tag", "Tag", "All tags", ((tag, tag) for tag in tags)),
        "<button type='reset' class='lossbook-button'>Reset</button>",
    ]
    return (
        f"<form class='lossbook-filters' role='search' aria-label='Papers' autocomplete='off' hidden>{''.join(fields)}"
        f"<p role='status' aria-live='polite'>{counted(len(pages), 'paper')}</p></form>\n"
        "<script>document.currentScript.previousElementSibling.hidden = false;</script>"
    )


def _select(name: str, label: str, every: str, options: Iterable[tuple[str, str]]) -> str:
    chosen = "".join(f"<option value='{escape(value)}'>{escape(text)}</option>" for value, text in options)
    return f"<label>{label}<select name='{name}'><option value=''>{every}</option>{chosen}</select></label>"


def _card(project: Project, page: Page) -> str:
    """A card. Its title is Markdown, so that Sphinx sets its formulas and checks its link."""
    paper = page.paper
    among = " ".join(v for v in CLAIMS if any(e["kind"] == "claim" and e["verdict"] == v for e in page.entries))
    text = " ".join([page.heading, paper.title, paper.authors, page.idea, *page.tags, paper.slug])
    data = {"part": paper.part, "verdicts": among, "tags": json.dumps(page.tags), "text": text}
    attributes = "".join(f" data-{name}='{escape(value)}'" for name, value in data.items())
    source = ", ".join(filter(None, [people(paper.authors), paper.year]))
    about = [
        f"<p class='lossbook-card-source'>{escape(source)}</p>" if source else "",
        f"<p>{escape(page.idea)}</p>" if page.idea else "",
        verdicts(page),
        f"<p class='lossbook-card-tags'>{escape(' · '.join([project.part_title(paper.part), *page.tags]))}</p>",
    ]
    return f"<li class='lossbook-card'{attributes}>{_picture(page)}\n\n[{page.heading}]({paper.page}.ipynb)\n\n" + (
        f"<div>{''.join(about)}</div></li>"
    )


def _picture(page: Page) -> str:
    figure = page.figure
    if figure is None:
        return ""
    size = f"width='{figure.width}' height='{figure.height}'"
    return f"<img src='{escape(figure.path)}' alt='{escape(figure.alt)}' {size} loading='lazy' decoding='async'>"
