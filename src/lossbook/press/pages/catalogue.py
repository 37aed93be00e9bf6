"""All papers of the book, those that have a page and those that are planned, by part."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lossbook.formats import VERDICTS
from lossbook.press.findings import ledgers
from lossbook.press.pages.html import render
from lossbook.press.pages.model import Page
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

# Verdicts of claims and of checks, in the order in which pages count them.
CLAIMS, CHECKS = VERDICTS["claim"], VERDICTS["check"]


@dataclass(frozen=True)
class Item:
    """A paper of the catalogue, or of a notebook that the catalogue does not know."""

    part: str
    slug: str
    title: str
    authors: str
    year: str
    arxiv: str
    code: str
    page: Page | None


@dataclass(frozen=True)
class Part:
    """A part of the book: its papers, those with a page first, and its opening page, if there is one."""

    name: str
    title: str
    items: tuple[Item, ...]
    opening: Page | None

    @property
    def anchor(self) -> str:
        """Its section of the roadmap, in the form that Sphinx gives to targets."""
        return f"part-{self.name.replace('_', '-')}"

    @property
    def done(self) -> int:
        """How many of its papers have a page."""
        return sum(item.page is not None for item in self.items)

    @property
    def percent(self) -> float:
        """Their share."""
        return 100 * self.done / len(self.items) if self.items else 0.0


def parts(project: Project, pages: Sequence[Page]) -> list[Part]:
    """The parts of the book, in its order, with all their papers."""
    papers = {page.paper.slug: page for page in pages if not page.opening}
    openings = {page.paper.part: page for page in pages if page.opening}
    items: dict[str, list[Item]] = {part: [] for part in project.parts}
    for page in papers.values():
        items.setdefault(page.paper.part, []).append(_item(project.catalogue.get(page.paper.slug, {}), page))
    for slug, row in project.catalogue.items():
        if slug not in papers:
            items.setdefault(row["part"], []).append(_item(row, None))
    for part in openings:
        items.setdefault(part, [])
    return [
        Part(part, project.part_title(part), tuple(found), openings.get(part))
        for part, found in items.items()
        if found or part in openings
    ]


def _item(row: dict[str, str], page: Page | None) -> Item:
    names = ("part", "slug", "title", "authors", "year", "arxiv")
    about = {name: getattr(page.paper, name) if page else row.get(name, "") for name in names}
    return Item(**about, code=row.get("official_code", ""), page=page)


def people(authors: str) -> str:
    """Authors, comma-separated, in short: up to three by name."""
    names = authors.split(", ")
    return authors if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def verdicts(page: Page) -> Markup:
    """How a paper came out, in badges; empty if nothing is known."""
    counts = ledgers.score(page.entries)
    lines: list[tuple[str, list[tuple[str, str]]]] = []
    if notebooks.failure_of(page.notebook):
        lines.append(("", [("failed", "run not finished")]))
    for kind, order in VERDICTS.items():
        found = [(verdict, f"{counts[kind][verdict]} {verdict}") for verdict in order if counts[kind][verdict]]
        if found:
            lines.append((f"{kind.capitalize()}s", found))
    return render("outcome.html", lines=lines)
