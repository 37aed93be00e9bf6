"""Runs worth keeping, under records/: small text files that say what was found, with what, where and when."""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook.press import entries, tables
from lossbook.press.errors import PressError
from lossbook.press.files import write_whole
from lossbook.press.project import Paper, Project
from lossbook.press.sweeps import duration

RUN, LEDGER, RESULTS = "run.json", "ledger.json", "results.csv"
# What of a run is kept; `commit` comes from the project's folder.
KEPT = ("part", "slug", "profile", "parameters", "options", "device", "versions", "started", "seconds", "key")


@dataclass(frozen=True)
class Record:
    """A recorded run."""

    folder: Path
    run: dict[str, Any]
    entries: list[dict[str, Any]]

    @property
    def commit(self) -> str:
        """The commit in words; empty if there was none."""
        commit = self.run.get("commit") or {}
        changed = " with changes" if commit.get("changed") else ""
        return f"{commit['id'][:9]}{changed}" if commit.get("id") else ""


def place(project: Project, slug: str, name: str, device: dict[str, str]) -> Path:
    """Where the record of a run with this name on this device is kept."""
    # Processors have long names and the same results.
    word = device["kind"] if device["kind"] == "cpu" else device["name"]
    return project.root / "records" / slug / f"{name}-{re.sub(r'[^a-z0-9]+', '_', word.lower()).strip('_')}"


def record(project: Project, folder: Path, executed: NotebookNode) -> Record:
    """Keep a finished run in `folder`, which is replaced as a whole.

    The commit is that of the project's folder now. A stored run may be older; what decided its result is the same.
    """
    run = executed.metadata["lossbook"]["run"]
    kept = {key: run[key] for key in KEPT if key in run} | {"commit": _commit(project.root)}
    found = entries.of(executed)
    table = tables.frame(tables.results(executed), ["table"])
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        write_whole(fresh / RUN, _json(kept))
        write_whole(fresh / LEDGER, _json(found))
        write_whole(fresh / RESULTS, table.to_csv(index=False, lineterminator="\n"))
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        if not folder.exists() and old.exists():
            old.rename(folder)
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
    return Record(folder, kept, found)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _commit(root: Path) -> dict[str, Any] | None:
    """The commit that is checked out, and whether files that decide results differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "id": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--", ".", ":(exclude)records")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def read(folder: Path) -> Record:
    """Read a record.

    Raises:
        PressError: if it is damaged.
    """
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        found = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
        if not all(key in run for key in ("slug", "profile", "parameters")):
            raise KeyError
        if not all({"kind", "id", "verdict"} <= entry.keys() for entry in found):
            raise KeyError
        return Record(folder, run, found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PressError(f"the record {folder} is damaged ({type(error).__name__})") from None


def folders(project: Project, slug: str) -> list[Path]:
    """Where a paper's records are."""
    return sorted(path.parent for path in (project.root / "records" / slug).glob(f"[!.]*/{RUN}"))


def of(project: Project, slug: str) -> list[Record]:
    """The records of a paper.

    Raises:
        PressError: if one is damaged.
    """
    return [read(folder) for folder in folders(project, slug)]


def section(project: Project, paper: Paper, notebook: NotebookNode) -> str:
    """The part of a paper's page that shows recorded runs beside the fresh one, as Markdown; empty without any."""
    kept, damaged = [], []
    for folder in folders(project, paper.slug):
        try:
            kept.append(read(folder))
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
    columns = [("This page", fresh, entries.of(notebook), "")]
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
    return f"<td>{entries.badge(entry['verdict'])}<br>{escape(effect(entry))}</td>" if entry else "<td>not judged</td>"


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


def effect(entry: dict[str, Any]) -> str:
    """The numbers of an entry: a claim's effect with its interval, or a check's error."""
    if entry["kind"] != "claim":
        return f"error {_number(entry.get('error'), 'not finite')}"
    low, high = _number(entry.get("low"), "−∞"), _number(entry.get("high"), "∞")
    return f"{_number(entry.get('effect'), 'no value')} [{low}, {high}] {entry.get('unit') or ''}".rstrip()


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.3g}"
