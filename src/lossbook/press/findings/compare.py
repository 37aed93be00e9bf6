"""Two runs side by side: what they found, how they were made, and their figures."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook.press.errors import PressError, Refused, unknown
from lossbook.press.findings import ledgers, records
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

FIGURE = re.compile(r'<figure class="lossbook-figure">.*?</figure>', re.DOTALL)


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    name: str
    path: Path
    run: dict[str, Any]
    entries: list[dict[str, Any]]
    # HTML; a record has none.
    figures: list[str]


@dataclass(frozen=True)
class Row:
    """Something that the two sides say, and how that differs."""

    name: str
    left: str
    right: str
    change: str


def pair(project: Project, left: str, right: str) -> tuple[Side, Side]:
    """Two runs whose names tell them apart, where they are two.

    Raises:
        Refused: if one is no run, or cannot be read.
    """
    one, other = load(project, left), load(project, right)
    if one.name == other.name:
        one, other = (replace(side, name=project.short(side.path)) for side in (one, other))
    return one, other


def load(project: Project, text: str) -> Side:
    """A run named by its executed notebook, its record's folder, or the paper whose run is in the book.

    Raises:
        Refused: if it is none of these, or cannot be read.
    """
    path = Path(text)
    if text in project.papers:
        path = project.executed(project.papers[text])
        if not path.is_file():
            raise Refused(f"{text} is not in the book yet: lossbook build --only {text}")
    try:
        if path.is_dir():
            if not (path / records.RUN).is_file():
                raise Refused(f"{path} is no record: it has no {records.RUN}")
            kept = records.read(path)
            commit = {"commit": kept.commit} if kept.commit else {}
            return Side(path.resolve().name, path, kept.run | commit, kept.entries, [])
        notebook = notebooks.read(path)
    except FileNotFoundError:
        raise Refused(
            f"{unknown('run', text, project.papers)} (a run is an executed notebook, a record's folder or a paper)"
        ) from None
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    except Refused:
        raise
    except PressError as error:
        raise Refused(str(error)) from None
    run = dict(notebook.metadata["lossbook"]["run"])
    return Side(path.stem, path, run, ledgers.of(notebook), figures(notebook))


def figures(notebook: NotebookNode) -> list[str]:
    """The figures that a notebook shows, as HTML."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            found += FIGURE.findall(html if isinstance(html, str) else "".join(html))
    return found


def entry_rows(left: Side, right: Side) -> list[Row]:
    """Every check and claim of either."""
    mine, theirs = ({(entry["kind"], entry["id"]): entry for entry in side.entries} for side in (left, right))
    rows = []
    for kind, id in dict.fromkeys([*mine, *theirs]):
        one, other = mine.get((kind, id)), theirs.get((kind, id))
        rows.append(Row(f"{kind} {id}", _said(one), _said(other), _change(one, other)))
    return rows


def _said(entry: dict[str, Any] | None) -> str:
    return f"{entry['verdict']}: {records.effect(entry)}" if entry else "–"


def _change(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if not one or not other:
        return "only on the right" if other else "only on the left"
    changes = []
    if one["verdict"] != other["verdict"]:
        changes.append(f"{one['verdict']} → {other['verdict']}")
    if one["kind"] == "claim":
        before, after = one.get("effect"), other.get("effect")
        if before is not None and after is not None and before != after:
            changes.append(f"effect {after - before:+.3g}")
        elif before != after:
            changes.append("effect")
        elif any(one.get(key) != other.get(key) for key in ("low", "high")):
            changes.append("interval")
    elif one.get("error") != other.get("error"):
        changes.append("error")
    changes += [key for key in ("statement", "criterion", "margin", "tolerance") if one.get(key) != other.get(key)]
    return ", ".join(changes)


def setting_rows(left: Side, right: Side) -> list[Row]:
    """Everything about how the two were made that differs."""
    keys = [isinstance(side.run.get("key"), dict) for side in (left, right)]
    mine, theirs = (_made(side.run, whole=all(keys)) for side in (left, right))
    names = dict.fromkeys([*mine, *theirs])
    return [
        Row(name, mine.get(name, "–"), theirs.get(name, "–"), "")
        for name in names
        if mine.get(name) != theirs.get(name)
    ]


def _made(run: dict[str, Any], whole: bool) -> dict[str, str]:
    """How a run was made, with the whole of its key or, where the other has none, the digest of its code."""
    made = {"paper": run["slug"], "profile": run["profile"]}
    made |= {f"parameter {name}": json.dumps(value, ensure_ascii=False) for name, value in run["parameters"].items()}
    made |= {f"version of {name}": str(value) for name, value in (run.get("versions") or {}).items()}
    made |= {name: str(run[name]) for name in ("status", "commit", "started", "seconds") if run.get(name) is not None}
    if device := run.get("device"):
        made["device"] = f"{device.get('name', '')} ({device.get('kind', '')})"
    key = run.get("key")
    for name, digest in key.items() if isinstance(key, dict) else ():
        # What else decides a result; the rest of a key is shown above in words.
        if whole and name.startswith("version "):
            made[f"version of {name.removeprefix('version ')}"] = str(digest)
        elif name == "code" or (whole and name not in ("format", "parameters", "versions", "device")):
            made[name] = str(digest)[:9]
    return made


def name_of(left: Side, right: Side) -> str:
    """A name for the page's file."""
    papers = dict.fromkeys([left.run["slug"], right.run["slug"]])
    sides = (re.sub(r"[^\w.=+-]+", "_", side.name, flags=re.ASCII)[:70] for side in (left, right))
    return f"{'-and-'.join(papers)}-{'-and-'.join(sides)}"
