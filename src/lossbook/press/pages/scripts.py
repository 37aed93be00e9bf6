"""Scripts that a single page needs."""

import hashlib
import shutil
from pathlib import Path

from lossbook.press.pages.model import EXTRA


def script(folder: Path, name: str) -> str:
    """The tag that loads a script of `_static`, which moves: every page loads what stays there, and one is enough.

    Empty if the book has no such script.
    """
    path = folder / "_static" / name
    if not path.is_file():
        return ""
    target = folder / EXTRA / "scripts" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # The address changes with the content, so that no browser runs an old one.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    shutil.move(path, target)
    return f"<script defer src='scripts/{name}?v={digest}'></script>"
