"""What the front page shows of the book: its score, and all its papers in one picture."""

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from lossbook.formats import badge
from lossbook.press.findings import ledgers
from lossbook.press.pages import catalogue
from lossbook.press.pages.catalogue import CHECKS, CLAIMS, Item, Part
from lossbook.press.pages.model import Page
from lossbook.press.pages.myst import counted
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

# The side of a paper's square, and the radius of a claim's mark at most.
SIDE, RADIUS = 32, 5.5
# Marks of claims around (0, 0) within a circle of radius 1: told apart by form as well as by colour.
MARKS = {
    "supported": "<circle r='1'/>",
    "contradicted": "<path d='M-.85-.85.85.85M.85-.85-.85.85'/>",
    "inconclusive": "<circle r='.8'/>",
}


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Put what is made of the book where hand-written pages ask for it."""
    for path in folder.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        made = text
        for name, make in PLACES.items():
            if (place := f"<!-- lossbook:{name} -->") in made:
                made = made.replace(place, make(project, pages))
        if made != text:
            path.write_text(made, encoding="utf-8")


def score(project: Project, pages: Sequence[Page]) -> str:
    """Papers, checks and claims by verdict, in numbers."""
    papers = sum(not page.opening for page in pages)
    known = len(project.catalogue)
    counts = ledgers.score(entry for page in pages for entry in page.entries)
    said = f"{papers} of {counted(known, 'paper')}" if known else counted(papers, "paper")
    boxes = [f"<span class='lossbook-count'>{said}</span>"]
    for kind, verdicts in (("check", CHECKS), ("claim", CLAIMS)):
        for verdict in verdicts:
            number = counts[kind][verdict]
            if number or verdict != "failed":
                boxes.append(badge(verdict, f"{counted(number, kind)} {verdict}"))
    return f"<div class='lossbook-score'>{' '.join(boxes)}</div>"


def picture(project: Project, pages: Sequence[Page]) -> str:
    """All papers by part: a square each, in it a mark for each claim."""
    parts = [part for part in catalogue.parts(project, pages) if part.items]
    if not parts:
        return ""
    rows = "".join(_row(part) for part in parts)
    key = "".join(f"<span>{_mark(verdict)} claim {verdict}</span>" for verdict in CLAIMS)
    return (
        f"<figure class='lossbook-map'><ul role='list'>{rows}</ul>"
        f"<figcaption><span>A square is a paper, a mark in it a claim:</span>{key}"
        "<span><i class='lossbook-tile'></i> planned</span></figcaption></figure>"
    )


def _row(part: Part) -> str:
    tiles = "".join(_tile(item) for item in part.items)
    name = f"<a href='roadmap.html#{escape(part.anchor)}'>{escape(part.title)}</a>"
    return (
        f"<li><span class='lossbook-map-part'>{name} <small>{part.done} of {len(part.items)}</small></span>"
        f"<span class='lossbook-tiles'>{tiles}</span></li>"
    )


def _tile(item: Item) -> str:
    """A paper's square. Planned ones are for the eye alone: the row says how many there are, the roadmap which."""
    if item.page is None:
        return f"<i class='lossbook-tile' title='{escape(item.title)} (planned)' aria-hidden='true'></i>"
    claims = sorted((e["verdict"] for e in item.page.entries if e["kind"] == "claim"), key=CLAIMS.index)
    found = [f"{claims.count(verdict)} {verdict}" for verdict in CLAIMS if verdict in claims]
    if notebooks.failure_of(item.page.notebook):
        found.append("run not finished")
    label = escape(f"{item.title}: {', '.join(found) or 'no claims'}")
    return (
        f"<a class='lossbook-tile' href='{item.page.paper.page}.html' aria-label='{label}' title='{label}'>"
        f"<svg viewBox='0 0 {SIDE} {SIDE}' aria-hidden='true'>{_marks(claims)}</svg></a>"
    )


def _marks(claims: Sequence[str]) -> str:
    """Marks in rows that fill a square, the last row centred."""
    if not claims:
        return ""
    columns = math.ceil(math.sqrt(len(claims)))
    lines = [claims[start : start + columns] for start in range(0, len(claims), columns)]
    step = SIDE / (columns + 0.6)
    radius = min(RADIUS, 0.36 * step)
    drawn = ""
    for i, line in enumerate(lines):
        for j, verdict in enumerate(line):
            x = SIDE / 2 + (j - (len(line) - 1) / 2) * step
            y = SIDE / 2 + (i - (len(lines) - 1) / 2) * step
            drawn += (
                f"<g class='lossbook-mark lossbook-{verdict}' transform='translate({x:.4g} {y:.4g}) "
                f"scale({radius:.3g})'>{MARKS[verdict]}</g>"
            )
    return drawn


def _mark(verdict: str) -> str:
    mark = f"<g class='lossbook-mark lossbook-{verdict}' transform='translate(7 7) scale(5.5)'>{MARKS[verdict]}</g>"
    return f"<svg viewBox='0 0 14 14' width='14' height='14' aria-hidden='true'>{mark}</svg>"


# By the name in `<!-- lossbook:NAME -->`, which hand-written pages put where they want it.
PLACES: dict[str, Callable[[Project, Sequence[Page]], str]] = {"score": score, "picture": picture}
