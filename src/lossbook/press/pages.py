"""The source of the book: hand-written pages, executed notebooks with what the press adds to them, the scoreboard."""

import copy
import shlex
import shutil
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from lossbook.press import entries, records, runs, tables
from lossbook.press.project import Paper, Project

# Where a hand-written page wants the score of the book.
SCORE = "<!-- lossbook:score -->"
# The pages that come before the papers; other hand-written pages come after them.
FRONT = ("reading", "scoreboard")


def assemble(project: Project, notebooks: dict[Paper, NotebookNode], folder: Path) -> None:
    """Write the whole source of the book into `folder`, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    book = project.root / "book"
    shutil.copytree(book, folder, ignore=shutil.ignore_patterns("*.yml", ".*"))
    shutil.copy(project.root / "_config.yml", folder)
    found = [entry for notebook in notebooks.values() for entry in entries.of(notebook)]
    for path in folder.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        if SCORE in text:
            path.write_text(text.replace(SCORE, _score(project, notebooks, found)), encoding="utf-8")
    (folder / "scoreboard.md").write_text(_scoreboard(notebooks, found), encoding="utf-8")
    (folder / "downloads").mkdir()
    for paper, notebook in notebooks.items():
        path = folder / f"{paper.page}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(nbformat.writes(page(project, paper, notebook)), encoding="utf-8")
        shutil.copy(paper.script, folder / "downloads")
        shutil.copy(project.executed(paper), folder / "downloads")
        if rows := tables.results(notebook):
            tables.frame(rows).to_csv(folder / "downloads" / f"{paper.slug}.csv", index=False)
    (folder / "_toc.yml").write_text(
        yaml.safe_dump(_contents(project, notebooks, folder), sort_keys=False), encoding="utf-8"
    )


def page(project: Project, paper: Paper, notebook: NotebookNode) -> NotebookNode:
    """A copy of an executed notebook with its citation under the title and how it was run at the end."""
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        for output in cell.get("outputs", []):
            # The page shows what people read; Sphinx does not know the JSON.
            for kind in (entries.MEDIA_TYPE, tables.MEDIA_TYPE):
                output.get("data", {}).pop(kind, None)
    failure = runs.failure_of(notebook)
    head = [text for text in (_citation(paper), failure and _stopped(paper, failure)) if text]
    first = next((i for i, cell in enumerate(made.cells) if cell.cell_type == "markdown"), None)
    lines = made.cells[first].source.strip().splitlines() if first is not None else []
    # Sphinx needs a title, and it comes first.
    title = lines.pop(0) if lines and lines[0].startswith("# ") else f"# {paper.title}"
    rest = "\n".join(lines).strip()
    cells = [cell for i, cell in enumerate(made.cells) if i != first]
    opening = [title, *head, *([rest] if rest else [])]
    recorded = records.section(project, paper, notebook)
    closing = [*([recorded] if recorded else []), _run(paper, notebook)]
    made.cells = [*map(_cell, opening), *cells, *map(_cell, closing)]
    return runs.numbered(made)


def _cell(text: str) -> NotebookNode:
    return new_markdown_cell(text)


def _fence(text: str, kind: str = "") -> str:
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{kind}\n{text}\n{ticks}"


def _text(value: Any) -> str:
    """Plain text as Markdown that shows it unchanged."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|$~" else c for c in str(value))


def _citation(paper: Paper) -> str:
    if not paper.authors:
        return ""
    names = paper.authors.split(", ")
    authors = paper.authors if len(names) <= 8 else f"{', '.join(names[:3])} and {len(names) - 3} others"
    link = f" [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    text = f"{_text(authors)} ({paper.year}). *{_text(paper.title)}*.{link}"
    return f":::{{container}} lossbook-citation\n{text}\n:::"


def _stopped(paper: Paper, failure: runs.Failure) -> str:
    place = f"Cell \\[{failure.cell}\\]" if failure.cell else "The notebook"
    if failure.line:
        place += f", line {failure.line} of `{paper.source}`"
    what = "\n".join(filter(None, [failure.source, f"{failure.error}: {failure.text}".removesuffix(": ")]))
    return (
        "::::{admonition} This page's run did not finish\n:class: error\n"
        f"{place} stopped it. The cells after that one were not run.\n\n{_fence(what, 'text')}\n::::"
    )


def _run(paper: Paper, notebook: NotebookNode) -> str:
    run = notebook.metadata["lossbook"]["run"]
    started = datetime.fromisoformat(run["started"])
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    command = shlex.join(["lossbook", "run", paper.slug, *run["options"]])
    rows = "".join(
        f"<tr><th scope='row'><code>{escape(name)}</code></th><td><code>{escape(repr(value))}</code></td></tr>"
        for name, value in run["parameters"].items()
    )
    table = (
        "<div class='lossbook-scroll'><table class='lossbook-parameters'><caption>Parameters of this run</caption>"
        f"<tbody>{rows}</tbody></table></div>\n\n"
        if rows
        else ""
    )
    what = "Run" if run["status"] == "finished" else "Stopped"
    offered = {"py": "the script", "ipynb": "the executed notebook"}
    if tables.results(notebook):
        offered["csv"] = "the results as CSV"
    downloads = [f"{{download}}`{text} <../downloads/{paper.slug}.{ending}>`" for ending, text in offered.items()]
    return (
        f"## This run\n\n{what} on {started.day} {started:%B %Y}, {started:%H:%M} UTC, in {run['seconds']:.1f} s "
        f"with the profile `{run['profile']}` ({_text(versions)}). The same again:\n\n"
        f"{_fence(command, 'sh')}\n\n{table}"
        f"To take away: {', '.join(downloads)}."
    )


def _score(project: Project, notebooks: dict[Paper, NotebookNode], found: list[dict[str, Any]]) -> str:
    counts = entries.score(found)
    pages = f"{len(notebooks)} of {len(project.catalogue)} papers" if project.catalogue else f"{len(notebooks)} papers"
    boxes = [f"<span class='lossbook-count'>{pages}</span>"]
    for kind, verdicts in (("check", ("verified", "failed")), ("claim", ("supported", "contradicted", "inconclusive"))):
        for verdict in verdicts:
            number = counts[kind][verdict]
            if number or verdict != "failed":
                things = f"{number} {kind}{'' if number == 1 else 's'} {verdict}"
                boxes.append(entries.badge(verdict, things))
    return f"<div class='lossbook-score'>{' '.join(boxes)}</div>"


def _scoreboard(notebooks: dict[Paper, NotebookNode], found: list[dict[str, Any]]) -> str:
    text = (
        "# Scoreboard\n\nEvery check and every claim of the book, as the notebooks found them when this site was "
        "built. A *check* compares mathematics with the machine, a *claim* is a paper's, judged by the interval over "
        "seeds.\n\n"
    )
    if not found:
        return text + "There is nothing here yet.\n"
    for paper, notebook in notebooks.items():
        rows = ""
        for entry in (entry for entry in found if entry["slug"] == paper.slug):
            kind, name = escape(entry["kind"]), escape(entry["id"])
            cells = [
                f"<a href='{paper.page}.html#{kind}-{name}'>{kind} {name}</a>",
                entries.badge(entry["verdict"]),
                escape(entry["statement"]),
                escape(entry["evidence"] or ""),
            ]
            rows += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        heading = (notebook.cells[0].source.strip().splitlines() or [""])[0]
        title = heading.removeprefix("# ") if heading.startswith("# ") else _text(paper.title)
        profile = notebook.metadata["lossbook"]["run"]["profile"]
        stopped = " The run did not finish." if runs.failure_of(notebook) else ""
        text += f"## [{title}]({paper.page}.ipynb)\n\nProfile `{profile}`.{stopped}\n\n"
        if rows:
            text += (
                "<div class='lossbook-scroll'><table class='lossbook-ledger'><thead><tr><th scope='col'>Entry</th>"
                "<th scope='col'>Verdict</th><th scope='col'>Statement</th><th scope='col'>Evidence</th></tr></thead>"
                f"<tbody>{rows}</tbody></table></div>\n\n"
            )
    return text


def _contents(project: Project, notebooks: dict[Paper, NotebookNode], folder: Path) -> dict[str, Any]:
    pages = {path.stem for path in folder.glob("*.md")} - {"intro"}
    front = [name for name in FRONT if name in pages]
    parts: dict[str, list[Paper]] = {}
    for paper in notebooks:
        parts.setdefault(paper.part, []).append(paper)
    contents = [{"caption": "The book", "chapters": [{"file": name} for name in front]}]
    for part, papers in parts.items():
        contents.append({"caption": project.part_title(part), "chapters": [{"file": paper.page} for paper in papers]})
    if back := sorted(pages - set(front)):
        contents.append({"caption": "Back matter", "chapters": [{"file": name} for name in back]})
    return {"format": "jb-book", "root": "intro", "parts": contents}
