"""Stored runs that nothing refers to any more."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook.press.errors import Refused
from lossbook.press.project import Paper, Project
from lossbook.press.runs import notebooks
from lossbook.press.runs.keys import Keys
from lossbook.press.runs.parameters import Parameters

# A run that is stored by its key, finished or failed. (What `lossbook run` wrote is called by its settings alone.)
STORED = re.compile(r".+-[0-9a-f]{16}(\.failed)?\.ipynb")


def unused(project: Project, recorded: Iterable[Mapping[str, str]] = ()) -> list[Path]:
    """The stored runs that can go: what no page shows, no record names, and no command would take up again.

    A command takes up a run whose key is that of its paper as it is now, with the run's own settings. The device does
    not count: a run of another machine may be that machine's again.

    Args:
        project: whose store is looked through.
        recorded: the keys in records.

    Raises:
        Refused: if a script cannot be read, since nobody knows then which runs are its own.
    """
    keys, scripts = Keys(project), dict[str, NotebookNode]()
    named = [dict(key) for key in recorded]
    found = []
    for folder in sorted(path for path in (project.output / "runs").glob("*") if path.is_dir()):
        paper = project.papers.get(folder.name)
        shown = _run(project.executed(paper)) if paper else None
        for path in sorted(path for path in folder.glob("*.ipynb") if STORED.fullmatch(path.name)):
            run = _run(path)
            key = run.get("key") if run else None
            if not run or not key:
                # Damaged: it would be made again.
                found.append(path)
                continue
            if key in named or (shown and shown.get("key") == key):
                continue
            if paper and paper.slug not in scripts:
                scripts[paper.slug] = notebooks.read_script(paper)
            if not paper or not _is_current(keys, paper, scripts[paper.slug], run):
                found.append(path)
    return found


def remove(paths: Iterable[Path]) -> None:
    """Remove stored runs, and folders that are then empty."""
    for path in paths:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def _run(path: Path) -> dict[str, Any] | None:
    """What a notebook says about its run; None if it is not there or damaged. (Checking all of it takes long.)"""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"]["lossbook"]["run"]
        return run if isinstance(run, dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_current(keys: Keys, paper: Paper, script: NotebookNode, run: Mapping[str, Any]) -> bool:
    options = run.get("options") or []
    given = [value for option, value in zip(options[::2], options[1::2], strict=False) if option == "-p"]
    parameters = Parameters(paper, script)
    try:
        settings = parameters.settings(run["profile"], given)
    except (Refused, KeyError):
        # The paper has no such profile or parameter any more.
        return False
    now = dict(keys.of(script, settings).parts)
    return {**now, "device": ""} == {**run["key"], "device": ""}
