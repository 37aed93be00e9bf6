"""Rendering: Jupyter Book makes the site beside the last one, and takes its place when it is complete."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from lossbook import __version__
from lossbook.press.errors import PressError
from lossbook.press.project import Project

# Of the source that a site was rendered from, within the site.
DIGEST = ".source"


def current(project: Project, source: Path) -> bool:
    """Whether the finished site was rendered from just this source."""
    made_of = project.site / DIGEST
    return made_of.is_file() and made_of.read_text() == _digest(source)


def _digest(source: Path) -> str:
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(source.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(source)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def render(project: Project, source: Path) -> Path:
    """Render an assembled source folder; returns the folder of the finished site.

    Raises:
        PressError: if Jupyter Book fails or warns; the last site is then still in its place.
    """
    digest = _digest(source)
    work = project.output / "render"
    shutil.rmtree(work, ignore_errors=True)
    log = project.output / "render.log"
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    with open(log, "wb") as file:
        # In a session of its own, so that a Ctrl-C reaches us alone and we end it.
        process = subprocess.Popen(
            [*command, str(source), "--path-output", str(work), "-W", "--keep-going"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"},
            start_new_session=True,
        )
        try:
            status = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    made = work / "_build" / "html"
    if status or not (made / "index.html").is_file():
        raise PressError(
            f"the site could not be rendered (all of it: {project.short(log)})\n{_complaints(log, source)}"
        )
    (made / DIGEST).write_text(digest)
    old = project.output / "html.old"
    shutil.rmtree(old, ignore_errors=True)
    if project.site.exists():
        os.replace(project.site, old)
    os.replace(made, project.site)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return project.site


def _complaints(log: Path, source: Path) -> str:
    """The warnings and errors of a log, or its last lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace")).replace(f"{source}/", "")
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|No space left", line)]
    return "\n".join(f"  {line}" for line in marked[:20] or lines[-8:])
