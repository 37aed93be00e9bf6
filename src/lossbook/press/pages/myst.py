"""Pieces of MyST Markdown and HTML that several pages use."""

from pathlib import Path
from typing import Any


def plain(value: Any) -> str:
    """Plain text as Markdown that shows it unchanged."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|$~" else c for c in str(value))


def fence(text: str, kind: str = "") -> str:
    """A block of code that no backticks within can end."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{kind}\n{text}\n{ticks}"


def dropdown(title: str, text: str, kind: str = "") -> str:
    """Text that is folded until asked for; `kind` is a class of the style sheet."""
    colons = ":::"
    while colons in text:
        colons += ":"
    return f"{colons}{{dropdown}} {title}\n{f':class-container: {kind}' if kind else ''}\n\n{text}\n{colons}"


def counted(number: int, thing: str) -> str:
    """A number with its noun: 1 check, 2 checks."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def write_page(folder: Path, place: str, text: str) -> None:
    """Write a page of Markdown at its place in the source of the book."""
    path = folder / f"{place}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
