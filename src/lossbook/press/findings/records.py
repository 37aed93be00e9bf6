"""Runs worth keeping, under records/: small text files that say what was found, with what, where and when."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook import formats
from lossbook.press.errors import PressError
from lossbook.press.files import write_whole
from lossbook.press.findings import ledgers, tables
from lossbook.press.project import Project

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
    found = ledgers.of(executed)
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


def effect(entry: dict[str, Any]) -> str:
    """The numbers of an entry: a claim's effect with its interval, or a check's error."""
    if entry["kind"] != "claim":
        return f"error {formats.number(entry.get('error'), 'not finite')}"
    return formats.effect(entry)
