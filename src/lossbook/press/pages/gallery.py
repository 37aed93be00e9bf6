"""The gallery: a card for each paper, and filters where the browser runs scripts (book/_static/gallery.js)."""

import json
from collections.abc import Sequence
from pathlib import Path

from lossbook.press.pages.catalogue import CLAIMS, people, verdicts
from lossbook.press.pages.html import render
from lossbook.press.pages.model import Page
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
    """The form, for which there is a script."""
    return render(
        "gallery_filters.html",
        parts={page.paper.part: project.part_title(page.paper.part) for page in pages},
        verdicts=[(verdict, verdict) for verdict in CLAIMS],
        tags=[(tag, tag) for tag in sorted({tag for page in pages for tag in page.tags}, key=str.casefold)],
        number=len(pages),
    )


def _card(project: Project, page: Page) -> str:
    paper = page.paper
    among = " ".join(v for v in CLAIMS if any(e["kind"] == "claim" and e["verdict"] == v for e in page.entries))
    text = " ".join([page.heading, paper.title, paper.authors, page.idea, *page.tags, paper.slug])
    data = {"part": paper.part, "verdicts": among, "tags": json.dumps(page.tags), "text": text}
    top = render("gallery_card_top.html", data=data, figure=page.figure)
    rest = render(
        "gallery_card.html",
        source=", ".join(filter(None, [people(paper.authors), paper.year])),
        idea=page.idea,
        verdicts=verdicts(page),
        tags=[project.part_title(paper.part), *page.tags],
    )
    return f"{top}\n\n[{page.heading}]({paper.page}.ipynb)\n\n{rest}"
