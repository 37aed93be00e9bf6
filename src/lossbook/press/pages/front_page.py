"""What the front page shows of the book: its score, and all its papers in one picture."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lossbook.press.findings import ledgers
from lossbook.press.pages import catalogue
from lossbook.press.pages.catalogue import CHECKS, CLAIMS, Item
from lossbook.press.pages.html import render
from lossbook.press.pages.model import Page
from lossbook.press.pages.myst import counted
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

# The side of a paper's square, and the radius of a claim's mark at most.
SIDE, RADIUS = 32, 5.5
# Marks of claims around (0, 0) within a circle of radius 1: told apart by form as well as by colour.
FORMS = {
    "supported": Markup("<circle r='1'/>"),
    "contradicted": Markup("<path d='M-.85-.85.85.85M.85-.85-.85.85'/>"),
    "inconclusive": Markup("<circle r='.8'/>"),
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
    boxes = [
        (verdict, f"{counted(counts[kind][verdict], kind)} {verdict}")
        for kind, verdicts in (("check", CHECKS), ("claim", CLAIMS))
        for verdict in verdicts
        if counts[kind][verdict] or verdict != "failed"
    ]
    return render("score.html", papers=said, boxes=boxes)


def picture(project: Project, pages: Sequence[Page]) -> str:
    """All papers by part: a square each, in it a mark for each claim."""
    parts = [part for part in catalogue.parts(project, pages) if part.items]
    if not parts:
        return ""
    rows = [(part, [_tile(item) for item in part.items]) for part in parts]
    return render("picture.html", rows=rows, verdicts=CLAIMS, forms=FORMS, side=SIDE)


def _tile(item: Item) -> dict[str, Any]:
    """A paper's square: its page, what it says to those who do not see it, its marks."""
    if item.page is None:
        return {"page": "", "label": item.title, "marks": []}
    claims = sorted((e["verdict"] for e in item.page.entries if e["kind"] == "claim"), key=CLAIMS.index)
    found = [f"{claims.count(verdict)} {verdict}" for verdict in CLAIMS if verdict in claims]
    if notebooks.failure_of(item.page.notebook):
        found.append("run not finished")
    label = f"{item.title}: {', '.join(found) or 'no claims'}"
    return {"page": item.page.paper.page, "label": label, "marks": _marks(claims)}


def _marks(claims: Sequence[str]) -> list[tuple[str, float, float, float]]:
    """Marks in rows that fill a square, the last row centred: verdict, place and radius of each."""
    if not claims:
        return []
    columns = math.ceil(math.sqrt(len(claims)))
    lines = [claims[start : start + columns] for start in range(0, len(claims), columns)]
    step = SIDE / (columns + 0.6)
    return [
        (
            verdict,
            SIDE / 2 + (j - (len(line) - 1) / 2) * step,
            SIDE / 2 + (i - (len(lines) - 1) / 2) * step,
            min(RADIUS, 0.36 * step),
        )
        for i, line in enumerate(lines)
        for j, verdict in enumerate(line)
    ]


# By the name in `<!-- lossbook:NAME -->`, which hand-written pages put where they want it.
PLACES: dict[str, Callable[[Project, Sequence[Page]], str]] = {"score": score, "picture": picture}
