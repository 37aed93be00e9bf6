"""What commands print: tables on stdout, which is what was asked for; progress and complaints on stderr."""

import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lossbook.press.errors import Refused

notes = Console(stderr=True, highlight=False, soft_wrap=True)


def table(*columns: str) -> Table:
    """An empty table with these headings."""
    made = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def show(made: Table) -> None:
    """Print a table; whoever reads a pipe gets whole lines."""
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 240).print(made)


def show_entries(found: list[dict[str, Any]], papers: bool = False) -> None:
    """Print the entries of a ledger, with their papers if there are several."""
    if not found:
        return
    made = table(*(["paper"] if papers else []), "entry", "verdict", "statement", "evidence")
    colours = {"verified": "blue", "supported": "blue", "inconclusive": "yellow"}
    for entry in found:
        verdict = Text(str(entry["verdict"]), style=colours.get(entry["verdict"], "red"))
        head = [entry["slug"]] if papers else []
        cells = [*head, f"{entry['kind']} {entry['id']}", verdict, entry["statement"], entry["evidence"] or ""]
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    show(made)


def quote(failure: Any) -> str:
    """The line of source at which a run failed, to stand under its message."""
    return f"  {failure.source}\n" if failure.source else ""


def writable(folder: Path) -> None:
    """Find out before a long run, rather than after it, that its result has no place.

    Raises:
        Refused: if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write into {folder}: {error.strerror}") from None
