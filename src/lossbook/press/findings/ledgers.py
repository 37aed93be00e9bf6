"""What notebooks say they found: the entries of the ledger, read from their outputs."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nbformat import NotebookNode

from lossbook.formats import FIELDS, LEDGER_TYPE
from lossbook.press.errors import PressError
from lossbook.press.project import Project
from lossbook.press.runs import notebooks


def of(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The entries of one executed notebook, in its order."""
    run = notebook.metadata["lossbook"]["run"]
    entries = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            entry = output.get("data", {}).get(LEDGER_TYPE)
            if entry is None:
                continue
            head = {"part": run["part"], "slug": run["slug"], "profile": run["profile"]}
            keys = ("kind", "id", "statement", "verdict", *FIELDS.get(entry.get("kind"), ()))
            entries.append(head | {key: entry.get(key) for key in keys})
    return entries


def of_book(project: Project) -> list[dict[str, Any]]:
    """The entries of the last build.

    Raises:
        PressError: if there was no build, or one of its notebooks is damaged.
    """
    entries, built = [], False
    for paper in project.papers.values():
        path = project.executed(paper)
        if path.is_file():
            entries += of(notebooks.read(path))
            built = True
    if not built:
        raise PressError(f"nothing was built yet in {project.short(project.output)}: lossbook build")
    return entries


def score(entries: Iterable[dict[str, Any]]) -> dict[str, Counter]:
    """How many entries of each kind have which verdict."""
    counts: dict[str, Counter] = {"check": Counter(), "claim": Counter()}
    for entry in entries:
        counts[entry["kind"]][entry["verdict"]] += 1
    return counts
