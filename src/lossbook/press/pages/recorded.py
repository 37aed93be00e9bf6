"""The part of a paper's page that shows recorded runs beside the fresh one."""

import itertools
from datetime import datetime
from typing import Any

from nbformat import NotebookNode

from lossbook.press.errors import PressError
from lossbook.press.files import duration
from lossbook.press.findings import ledgers, records
from lossbook.press.pages.html import render
from lossbook.press.project import Paper, Project


def section(project: Project, paper: Paper, notebook: NotebookNode) -> str:
    """The part of a paper's page that shows recorded runs beside the fresh one, as Markdown; empty without any."""
    kept, damaged = [], []
    for folder in records.folders(project, paper.slug):
        try:
            kept.append(records.read(folder))
        except PressError:
            damaged.append(folder.name)
    if not kept and not damaged:
        return ""
    text = "## Recorded runs\n\n"
    if damaged:
        text += f"Damaged, and not shown: {', '.join(f'`{name}`' for name in damaged)}.\n\n"
    if not kept:
        return text.rstrip()
    fresh = notebook.metadata["lossbook"]["run"]
    text += "What was found at other scales and on other devices, beside the run on this page.\n\n"
    columns = [_column("This page", fresh, ledgers.of(notebook), "")]
    columns += [_column(each.folder.name, each.run, each.entries, each.commit) for each in kept]
    claims: dict[str, str] = {}
    for column in columns:
        for id, entry in column["claims"].items():
            claims.setdefault(id, entry.get("statement") or "")
    return f"{text}{render('recorded.html', columns=columns, claims=claims)}"


def _column(name: str, run: dict[str, Any], entries: list[dict[str, Any]], commit: str) -> dict[str, Any]:
    claims = {entry["id"]: entry for entry in entries if entry["kind"] == "claim"}
    return {"name": name, "facts": _facts(run, commit), "claims": claims}


def _facts(run: dict[str, Any], commit: str) -> list[str]:
    """What a run was made with, a line each."""
    facts = [f"profile {run['profile']}" + "".join(f", {text}" for text in _given(run))]
    if name := (run.get("device") or {}).get("name"):
        facts.append(name)
    if started := run.get("started"):
        when = datetime.fromisoformat(started)
        facts.append(f"{when.day} {when:%B %Y}" + (f", {duration(run['seconds'])}" if "seconds" in run else ""))
    if commit:
        facts.append(f"commit {commit}")
    return facts


def _given(run: dict[str, Any]) -> list[str]:
    options = run.get("options") or []
    return [value for option, value in itertools.pairwise(options) if option == "-p"]
