"""The part of a paper's page that shows recorded runs beside the fresh one."""

import itertools
from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import Any

from nbformat import NotebookNode

from lossbook.formats import badge
from lossbook.press.errors import PressError
from lossbook.press.files import duration
from lossbook.press.findings import ledgers, records
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
    columns = [("This page", fresh, ledgers.of(notebook), "")]
    columns += [(each.folder.name, each.run, each.entries, each.commit) for each in kept]
    head = "".join(
        f"<th scope='col'>{escape(name)}<br><small>{'<br>'.join(map(escape, _facts(run, commit)))}</small></th>"
        for name, run, _, commit in columns
    )
    claims: dict[str, str] = {}
    for _, _, found, _ in columns:
        for entry in _claims(found):
            claims.setdefault(entry["id"], entry.get("statement") or "")
    rows = ""
    for id, statement in claims.items():
        cells = "".join(_cell(found, id) for _, _, found, _ in columns)
        rows += f"<tr><th scope='row'>claim {escape(id)}: {escape(statement)}</th>{cells}</tr>"
    if not rows:
        rows = f"<tr><th scope='row'>No claims</th>{'<td></td>' * len(columns)}</tr>"
    return text + (
        "<div class='lossbook-scroll'><table class='lossbook-ledger lossbook-records'>"
        "<caption>Claims in this run and in recorded runs: verdict, effect and 95 % interval</caption>"
        f"<thead><tr><th scope='col'>Claim</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _claims(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in found if entry["kind"] == "claim"]


def _cell(found: list[dict[str, Any]], id: str) -> str:
    entry = next((entry for entry in _claims(found) if entry["id"] == id), None)
    return f"<td>{badge(entry['verdict'])}<br>{escape(records.effect(entry))}</td>" if entry else "<td>not judged</td>"


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
