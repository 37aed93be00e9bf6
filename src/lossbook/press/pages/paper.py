"""The page of a paper: its executed notebook, with what can be read off it placed around it."""

import copy
import re
import shlex
import shutil
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from lossbook.formats import LEDGER_TYPE, RESULTS_TYPE
from lossbook.press.errors import Refused
from lossbook.press.findings import tables
from lossbook.press.pages import model, recorded
from lossbook.press.pages.html import render
from lossbook.press.pages.model import EXTRA, Page
from lossbook.press.pages.myst import counted, dropdown, fence, plain
from lossbook.press.project import Paper, Project
from lossbook.press.runs import notebooks
from lossbook.press.runs.parameters import Parameter, Parameters


def write(project: Project, page: Page, others: Sequence[Page], public: Container[str], folder: Path) -> None:
    """Write the page and what can be downloaded from it; `public` are the names that the reference describes."""
    path = folder / f"{page.paper.page}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(nbformat.writes(made(project, page, others, public)), encoding="utf-8")
    downloads = folder / EXTRA / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    shutil.copy(page.paper.script, downloads)
    shutil.copy(project.executed(page.paper), downloads)
    if rows := tables.results(page.notebook):
        tables.write(downloads, page.paper.slug, tables.frame(rows))


def write_placeholder(paper: Paper, folder: Path) -> None:
    """Write a page that stands for a notebook that was not run."""
    text = (
        f"# {plain(paper.title)}\n\n:::{{admonition}} Not run yet\n:class: note\n"
        f"This page is made of a run, and there was none when this site was built:\n\n"
        f"{fence(f'lossbook build --only {paper.slug}', 'sh')}\n:::"
    )
    path = folder / f"{paper.page}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        nbformat.writes(notebooks.numbered(new_notebook(cells=[new_markdown_cell(text)]))), encoding="utf-8"
    )


def made(project: Project, page: Page, others: Sequence[Page], public: Container[str]) -> NotebookNode:
    """A copy of the executed notebook, with verdicts under the title, and the run and its relatives at the end."""
    notebook = copy.deepcopy(page.notebook)
    _strip(notebook)
    _place_figures(page, notebook)
    notebook.cells = [cell for each in notebook.cells for cell in _fold_source(each, public)]
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"), None)
    rest = ""
    if first is not None:
        text = notebook.cells.pop(first).source.strip()
        # Sphinx needs a title, and it comes first.
        rest = text.removeprefix(text.splitlines()[0]).strip() if model.heading(page.notebook) else text
    failure = notebooks.failure_of(page.notebook)
    opening = [
        f"# {page.heading}",
        _citation(project, page.paper),
        failure and _stopped(page.paper, failure),
        _verdicts(page),
        rest,
    ]
    closing = [
        recorded.section(project, page.paper, page.notebook),
        _run(project, page),
        _related(page, others, public),
    ]
    notebook.cells = [
        *(new_markdown_cell(text) for text in opening if text),
        *notebook.cells,
        *(new_markdown_cell(text) for text in closing if text),
    ]
    return notebooks.numbered(notebook)


def _strip(notebook: NotebookNode) -> None:
    """Leave out what machines read: Sphinx does not know it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in (LEDGER_TYPE, RESULTS_TYPE):
                output.get("data", {}).pop(kind, None)


def _place_figures(page: Page, notebook: NotebookNode) -> None:
    """Figures become files with known sizes: the page is small, and nothing moves when they arrive."""

    def place(match: re.Match[str]) -> str:
        figure = model.figure_of(page.paper, match[2], match[3])
        size = f'width="{figure.width}" height="{figure.height}"'
        image = f'<img src="../{figure.path}" alt="{match[3]}" {size} loading="lazy" decoding="async">'
        # By itself it can be enlarged, which small screens need.
        return f'{match[1]}<a href="../{figure.path}" title="The figure by itself">{image}</a>'

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = model.IMAGE.sub(place, model.html(output))


def _fold_source(cell: NotebookNode, public: Container[str]) -> list[NotebookNode]:
    """The cell itself, or text that holds the library's source, folded, where the cell shows that."""
    shown = [output for output in cell.get("outputs", []) if notebooks.SOURCE in output.get("metadata", {})]
    if not shown:
        return [cell]
    texts = []
    for output in shown:
        name = output["metadata"][notebooks.SOURCE]
        code = "".join(output["data"]["text/plain"])
        link = f"In the reference: {{py:obj}}`{name}`.\n\n" if name in public else ""
        texts.append(dropdown(f"Source of `{name.rpartition('.')[2]}`", link + fence(code, "python"), notebooks.SOURCE))
    return [new_markdown_cell("\n\n".join(texts))]


def _citation(project: Project, paper: Paper) -> str:
    if not paper.authors:
        return ""
    names = paper.authors.split(", ")
    authors = paper.authors if len(names) <= 8 else f"{', '.join(names[:3])} and {len(names) - 3} others"
    link = f" [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    text = f":::{{container}} lossbook-citation\n{plain(authors)} ({paper.year}). *{plain(paper.title)}*.{link}\n:::"
    entry = project.bibtex(paper.slug)
    return f"{text}\n\n{dropdown('Cite as BibTeX', fence(entry, 'bibtex'), 'lossbook-cite')}" if entry else text


def _stopped(paper: Paper, failure: notebooks.Failure) -> str:
    place = f"Cell \\[{failure.cell}\\]" if failure.cell else "The notebook"
    if failure.line:
        place += f", line {failure.line} of `{paper.source}`"
    what = "\n".join(filter(None, [failure.source, f"{failure.error}: {failure.text}".removesuffix(": ")]))
    return (
        "::::{admonition} This page's run did not finish\n:class: error\n"
        f"{place} stopped it. The cells after that one were not run.\n\n{fence(what, 'text')}\n::::"
    )


def _verdicts(page: Page) -> str:
    """What the page found, at its top: claims with their verdicts, how many checks were verified."""
    if not page.entries:
        return ""
    claims, checks = ([entry for entry in page.entries if entry["kind"] == kind] for kind in ("claim", "check"))
    good = sum(check["verdict"] == "verified" for check in checks)
    counts = []
    if good:
        counts.append(("verified", f"{counted(good, 'check')} verified"))
    if good < len(checks):
        counts.append(("failed", f"{counted(len(checks) - good, 'check')} failed"))
    profile = page.notebook.metadata["lossbook"]["run"]["profile"]
    return str(render("verdicts.html", profile=profile, claims=claims, checks=checks, counts=counts))


def _run(project: Project, page: Page) -> str:
    paper, run = page.paper, page.notebook.metadata["lossbook"]["run"]
    started = datetime.fromisoformat(run["started"])
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    what = "Run" if run["status"] == "finished" else "Stopped"
    text = (
        f"## This run\n\n{what} on {started.day} {started:%B %Y}, {started:%H:%M} UTC, in {run['seconds']:.1f} s "
        f"with the profile `{run['profile']}` ({plain(versions)}). The same again:\n\n"
        f"{fence(shlex.join(['lossbook', 'run', paper.slug, *run['options']]), 'sh')}\n\n"
    )
    return f"{text}{_parameters(project, page)}{_downloads(page)}"


def _parameters(project: Project, page: Page) -> str:
    """The parameters of the run with their meaning, and the command that changes them."""
    run = page.notebook.metadata["lossbook"]["run"]
    try:
        known: Mapping[str, Parameter] = (read := Parameters(page.paper, page.notebook))
        others = {name: given for name, given in read.profiles.items() if name != run["profile"]}
    except Refused:
        # The script was edited since and cannot be read; its last run is still shown.
        known, others = {}, {}
    values = {name: run["parameters"][name] for name in [*known, *run["parameters"]] if name in run["parameters"]}
    if not values:
        return ""
    rows = []
    for name, value in values.items():
        about = known.get(name)
        rows.append(
            {
                "name": name,
                "kind": about.annotation if about else type(value).__name__,
                "value": repr(value),
                "elsewhere": [(profile, repr(given[name])) for profile, given in others.items() if name in given],
                "comment": about.comment if about else "",
            }
        )
    name, value = next(((n, v) for n, v in values.items() if type(v) is int), next(iter(values.items())))
    example = ["-p", f"{name}={2 * value if type(value) is int else value}"]
    how = "[name it](../howto/rerun.md)" if (project.root / "book" / "howto" / "rerun.md").is_file() else "name it"
    return (
        f"{render('parameters.html', rows=rows)}\n\n"
        f"To change one, {how}:\n\n"
        f"{fence(shlex.join(['lossbook', 'run', page.paper.slug, *example]), 'sh')}\n\n"
    )


def _downloads(page: Page) -> str:
    offered = {"py": "the script", "ipynb": "the executed notebook"}
    if tables.results(page.notebook):
        offered |= {"csv": "the results as CSV", "parquet": "the results as Parquet"}
    offered = {ending: text[0].upper() + text[1:] for ending, text in offered.items()}
    return f"To take away:\n\n{render('downloads.html', slug=page.paper.slug, offered=offered)}"


def _related(page: Page, others: Sequence[Page], public: Container[str]) -> str:
    """Papers that use the same functions of the library."""
    found = model.related(page, others)
    if not found:
        return ""
    items = [
        f"- [{other.heading}](../{other.paper.page}.ipynb){f' ({year})' if (year := other.paper.year) else ''}, "
        f"by way of {', '.join(_linked(name, public) for name in shared)}"
        for other, shared in found
    ]
    return "## Related pages\n\nThey use the same functions of the library.\n\n" + "\n".join(items)


def _linked(name: str, public: Container[str]) -> str:
    short = name.rpartition(".")[2]
    return f"{{py:obj}}`{short} <{name}>`" if name in public else f"`{short}`"
