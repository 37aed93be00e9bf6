"""The roadmap: all papers of the catalogue, and what exists for each."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lossbook.press.findings import records
from lossbook.press.pages import catalogue
from lossbook.press.pages.catalogue import Item, Part
from lossbook.press.pages.model import Page
from lossbook.press.pages.myst import counted, plain
from lossbook.press.project import Project

METHODS = Path(__file__).parents[2] / "methods"
HEAD = "".join(f"<th scope='col' role='columnheader'>{title}</th>" for title in ("Paper", "Sources", "In this book"))


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
        text += _overview(parts)
    for part in parts:
        text += f"({part.anchor})=\n## {plain(part.title)}\n\n{_opening(part)}{_table(project, part, folder)}\n\n"
    (folder / "roadmap.md").write_text(text, encoding="utf-8")


def _overview(parts: Sequence[Part]) -> str:
    rows = "".join(f"<li><a href='#{escape(part.anchor)}'>{escape(part.title)}</a> {bar(part)}</li>" for part in parts)
    return f"<ul class='lossbook-progress' role='list'>{rows}</ul>\n\n"


def bar(part: Part) -> str:
    """How much of a part exists, as a bar and in words."""
    share = 100 * part.done / len(part.items) if part.items else 0
    return (
        f"<span class='lossbook-bar' aria-hidden='true'><span style='width:{share:.1f}%'></span></span> "
        f"<span>{part.done} of {len(part.items)}</span>"
    )


def _opening(part: Part) -> str:
    return f"[{part.opening.heading}]({part.opening.paper.page}.ipynb)\n\n" if part.opening else ""


def _table(project: Project, part: Part, folder: Path) -> str:
    """The papers of a part. The roles keep it a table where a style sheet stacks its cells, as on a phone."""
    if not part.items:
        return ""
    rows = "".join(_row(project, item, folder) for item in part.items)
    return (
        f"<table class='lossbook-roadmap' role='table'><caption>{part.done} of {counted(len(part.items), 'paper')} "
        f"{'has' if part.done == 1 else 'have'} a page</caption>"
        f"<thead role='rowgroup'><tr role='row'>{HEAD}</tr></thead><tbody role='rowgroup'>{rows}</tbody></table>"
    )


def _row(project: Project, item: Item, folder: Path) -> str:
    title = escape(item.title)
    if item.page:
        title = f"<a href='{item.page.paper.page}.html'>{title}</a>"
    people = escape(catalogue.people(item.authors))
    return (
        f"<tr role='row' id='paper-{escape(item.slug)}'{'' if item.page else ' class=lossbook-planned'}>"
        f"<th scope='row' role='rowheader'>{title}<small>{people}</small></th>"
        f"<td role='cell'>{_sources(item)}</td><td role='cell'>{_here(project, item, folder)}</td></tr>"
    )


def _sources(item: Item) -> str:
    found = [escape(item.year)] if item.year else []
    if item.arxiv:
        found.append(f"<a href='https://arxiv.org/abs/{escape(item.arxiv)}'>arXiv:{escape(item.arxiv)}</a>")
    # A repository of GitHub, and perhaps a remark in parentheses.
    if code := re.match(r"[\w.-]+/[\w.-]+", item.code):
        name = escape(code[0].rpartition("/")[2])
        found.append(
            f"<a href='https://github.com/{escape(code[0])}' aria-label='official code, {name}'>official code</a>"
            f"{escape(item.code[code.end() :])}"
        )
    return " ".join(f"<span>{each}</span>" for each in found)


def _here(project: Project, item: Item, folder: Path) -> str:
    found = []
    if item.page:
        found.append(catalogue.verdicts(item.page))
    elif item.slug in project.papers:
        found.append("<span>notebook, not in this build</span>")
    links = [
        f"<a href='{item.page.paper.page}.html'>page</a>" if item.page else "",
        _module(item, folder),
        _records(project, item),
    ]
    found.append(", ".join(filter(None, links)))
    return " ".join(filter(None, found)) or "planned"


def _module(item: Item, folder: Path) -> str:
    if not (METHODS / item.part / f"{item.slug}.py").is_file():
        return ""
    page = f"api/methods/{item.part}/{item.slug}"
    return f"<a href='{page}.html'>library module</a>" if (folder / f"{page}.md").is_file() else "library module"


def _records(project: Project, item: Item) -> str:
    number = len(records.folders(project, item.slug))
    if not number:
        return ""
    text = counted(number, "recorded run")
    return f"<a href='{item.page.paper.page}.html#recorded-runs'>{text}</a>" if item.page else text
