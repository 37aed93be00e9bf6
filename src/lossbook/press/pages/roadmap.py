"""The roadmap: all papers of the catalogue, and what exists for each."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossbook.press.findings import records
from lossbook.press.pages import catalogue
from lossbook.press.pages.catalogue import Item, Part
from lossbook.press.pages.html import render
from lossbook.press.pages.model import Page
from lossbook.press.pages.myst import counted, plain
from lossbook.press.project import Project

METHODS = Path(__file__).parents[2] / "methods"


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Write the roadmap into the book's folder; links to the reference if it was written there before."""
    parts = catalogue.parts(project, pages)
    done, all_of_them = sum(part.done for part in parts), sum(len(part.items) for part in parts)
    text = (
        f"# Roadmap\n\nThe book is about {counted(all_of_them, 'paper')}; {done} "
        f"{'has' if done == 1 else 'have'} a page. Each paper gets a page that derives and judges it, a module of the "
        "library, and, where a laptop is too small, recorded runs.\n\n"
    )
    if parts:
        text += f"{render('roadmap_overview.html', parts=parts)}\n\n"
    for part in parts:
        text += f"({part.anchor})=\n## {plain(part.title)}\n\n{_opening(part)}{_table(project, part, folder)}\n\n"
    (folder / "roadmap.md").write_text(text, encoding="utf-8")


def _opening(part: Part) -> str:
    return f"[{part.opening.heading}]({part.opening.paper.page}.ipynb)\n\n" if part.opening else ""


def _table(project: Project, part: Part, folder: Path) -> str:
    """The papers of a part."""
    rows = [_row(project, item, folder) for item in part.items]
    return (
        render("roadmap_part.html", part=part, rows=rows, people=catalogue.people, verdicts=catalogue.verdicts)
        if rows
        else ""
    )


def _row(project: Project, item: Item, folder: Path) -> dict[str, Any]:
    # A repository of GitHub, and perhaps a remark in parentheses.
    code = re.match(r"[\w.-]+/[\w.-]+", item.code)
    links = [("page", f"{item.page.paper.page}.html")] if item.page else []
    links += [*_module(item, folder), *_records(project, item)]
    return {
        "item": item,
        "code": code and code[0],
        "remark": code and item.code[code.end() :],
        "notebook": item.slug in project.papers,
        "links": links,
    }


def _module(item: Item, folder: Path) -> list[tuple[str, str]]:
    """The library's module of a paper, if there is one, and its address, if the reference has it."""
    if not (METHODS / item.part / f"{item.slug}.py").is_file():
        return []
    page = f"api/methods/{item.part}/{item.slug}"
    return [("library module", f"{page}.html" if (folder / f"{page}.md").is_file() else "")]


def _records(project: Project, item: Item) -> list[tuple[str, str]]:
    number = len(records.folders(project, item.slug))
    address = f"{item.page.paper.page}.html#recorded-runs" if item.page else ""
    return [(counted(number, "recorded run"), address)] if number else []
