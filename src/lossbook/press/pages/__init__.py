"""The source of the book: hand-written pages, executed notebooks with what the press adds, and pages made of them."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from lossbook.press.pages import (
    changelog,
    command_line,
    front_page,
    gallery,
    library,
    model,
    paper,
    reference,
    roadmap,
    scoreboard,
)
from lossbook.press.project import Paper, Project

# They write pages of their own.
WRITERS = (gallery, scoreboard, reference, roadmap)
# Pages and folders of pages around the papers, by caption; those that do not exist are left out, and a page that is
# named nowhere comes under the last.
BEFORE = {"The book": ("reading", "gallery", "scoreboard", "roadmap")}
AFTER = {"Using it": ("howto", "api"), "Back matter": ("glossary", "references", "changelog")}


def assemble(project: Project, notebooks: Mapping[Paper, NotebookNode], folder: Path, commands: Any) -> None:
    """Write the whole source of the book into `folder`, which is replaced.

    Args:
        project: whose book it is.
        notebooks: the executed notebooks of the papers.
        folder: where the source goes.
        commands: the command line, as Click has it, for its page in the reference.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(project.root / "book", folder, ignore=shutil.ignore_patterns("parts.yml", ".*"))
    shutil.copy(project.root / "_config.yml", folder)
    changelog.write(project, folder)
    pages = model.pages(notebooks)
    front_page.write(project, pages, folder)
    model.write_figures(pages, folder)
    public = library.public(project)
    for page in pages:
        paper.write(project, page, pages, public, folder)
    # Other pages may link to them.
    for missing in project.papers.values():
        if missing not in notebooks:
            paper.write_placeholder(missing, folder)
    for writer in WRITERS:
        writer.write(project, pages, folder)
    command_line.write(commands, folder)
    (folder / "_toc.yml").write_text(
        yaml.safe_dump(_contents(project, folder), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _contents(project: Project, folder: Path) -> dict[str, Any]:
    """The table of contents: pages around the papers, the papers by part."""
    papers = {paper.page for paper in project.papers.values()}
    left = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.md")} - {"intro"}
    left = {name for name in left if not name.startswith(f"{model.EXTRA}/")}
    parts: dict[str, list[Paper]] = {}
    for each in project.papers.values():
        parts.setdefault(each.part, []).append(each)

    def chapters(names: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for name in names:
            if name in left:
                # Pages below it are of parts, in the order of the book.
                inside = [page for part in parts if (page := f"{name}/{part}") in left]
                left.difference_update([name, *inside])
                found.append(_with_sections(name, inside))
            elif f"{name}/index" in left and name == "api":
                found.append(reference.chapter(project))
                left.difference_update([page for page in left if page.startswith("api/")])
            elif f"{name}/index" in left:
                found.append(_chapter(folder, name, left))
        return found

    before = [{"caption": caption, "chapters": chapters(names)} for caption, names in BEFORE.items()]
    after = [{"caption": caption, "chapters": chapters(names)} for caption, names in AFTER.items()]
    after[-1]["chapters"] += [{"file": name} for name in sorted(left - papers)]
    middle = [
        {
            "caption": project.part_title(part),
            "chapters": [{"file": each.page} for each in sorted(found, key=lambda each: not each.opening)],
        }
        for part, found in parts.items()
    ]
    return {
        "format": "jb-book",
        "root": "intro",
        "parts": [part for part in [*before, *middle, *after] if part["chapters"]],
    }


def _chapter(folder: Path, name: str, left: set[str]) -> dict[str, Any]:
    """A folder of pages: its index, and under it the others, in the order in which the index names them."""
    index = f"{name}/index"
    left.remove(index)
    inside = sorted(page for page in left if page.startswith(f"{name}/"))
    left.difference_update(inside)
    named = re.findall(r"[\w/]+", (folder / f"{index}.md").read_text(encoding="utf-8"))
    places = {page: named.index(short) for page in inside if (short := page.removeprefix(f"{name}/")) in named}
    inside.sort(key=lambda page: (places.get(page, len(named)), page))
    return _with_sections(index, inside)


def _with_sections(name: str, inside: Sequence[str]) -> dict[str, Any]:
    return {"file": name, **({"sections": [{"file": page} for page in inside]} if inside else {})}
