"""Rendering: Jupyter Book makes the site beside the last one, and takes its place when it is complete.

What Jupyter Book read and wrote is kept, so that the next render makes again only the pages that an edit reaches. It
is used if the last render ended well and nothing but the text of pages and the library has changed since; else all is
made anew, with the formulas that were made before.
"""

import contextlib
import filecmp
import functools
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from lossbook.press.errors import PressError
from lossbook.press.pages.model import EXTRA
from lossbook.press.project import Project

# Whose files take part in rendering.
ROOMS = ("extensions", "site")
# Of the source that a site was rendered from, within the site.
DIGEST = ".source"
# In the folder that is kept: what the next render must find unchanged. Absent while one is under way, or has failed.
STATE = "state"
# Beside Sphinx's doctrees, from our builder: what pages see of each other.
SEEN = "seen.json"
# Beside the site: formulas, by what was asked of MathJax.
FORMULAS = "formulas.sqlite"


def current(project: Project, source: Path) -> bool:
    """Whether the finished site was rendered from just this source."""
    made_of = project.site / DIGEST
    return made_of.is_file() and made_of.read_text() == _digest(source, _files(source))


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _digest(folder: Path, files: Iterable[Path]) -> str:
    """Of files and of what makes a site of them."""
    return _hash(_tools(), [(folder, path) for path in files])


@functools.cache
def _tools() -> str:
    """Of everything installed and of what takes part in rendering here. Pages of the library name its digests."""
    installed = sorted(f"{each.name} {each.version}" for each in distributions())
    press = Path(__file__).parents[1]
    paths = sorted(path for room in ROOMS for path in (press / room).rglob("*") if path.suffix in (".py", ".html"))
    files = [(press, path.relative_to(press)) for path in paths]
    return _hash("\0".join([platform.python_version(), *installed]), files)


def _hash(text: str, files: Iterable[tuple[Path, Path]]) -> str:
    digest = hashlib.sha256(text.encode())
    for folder, path in files:
        digest.update(f"\0{path}\0".encode())
        digest.update(hashlib.sha256((folder / path).read_bytes()).digest())
    return digest.hexdigest()


def _state(source: Path) -> str:
    """What has to be the same for the last render to be gone on with: everything but what pages and copies say."""
    files = _files(source)
    others = [path for path in files if path.suffix not in (".md", ".ipynb") and path.parts[0] != EXTRA]
    # Sphinx remembers where things were.
    return "\n".join([_digest(source, others), str(source.resolve()), *map(str, files)])


def render(project: Project, source: Path, jobs: int | None = None) -> Path:
    """Render an assembled source folder; returns the folder of the finished site.

    Args:
        project: whose site it is.
        source: the source of the book.
        jobs: processes side by side; by default one a core.

    Raises:
        PressError: if Jupyter Book fails or warns; the last site is then still in its place.
    """
    work, new, old = project.output / "render", project.output / "html.new", project.output / "html.old"
    if old.exists() and not project.site.exists():
        # The last render was stopped between two steps.
        os.replace(old, project.site)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    digest, state, kept = _digest(source, _files(source)), _state(source), work / STATE
    if not kept.is_file() or kept.read_text(encoding="utf-8") != state:
        shutil.rmtree(work, ignore_errors=True)
    # From here until the end, nobody can take what is there for finished.
    kept.unlink(missing_ok=True)
    # Copied in every build; whether a file is there already would show in the links to it.
    shutil.rmtree(work / "_build" / "html" / "_static", ignore_errors=True)
    sync(source, work / "source")
    made = _jupyter_book(project, work, jobs or os.cpu_count() or 1)
    shutil.copytree(made, new)
    (new / DIGEST).write_text(digest)
    if project.site.exists():
        os.replace(project.site, old)
    os.replace(new, project.site)
    shutil.rmtree(old, ignore_errors=True)
    # Without our builder, Sphinx does not keep what is needed.
    if (work / "_build" / ".doctrees" / SEEN).is_file():
        kept.write_text(state, encoding="utf-8")
    return project.site


def sync(source: Path, target: Path) -> None:
    """Make `target` the same as `source`, touching no file whose content is the same already."""
    for folder in [source, *filter(Path.is_dir, source.rglob("*"))]:
        (target / folder.relative_to(source)).mkdir(parents=True, exist_ok=True)
    wanted = _files(source)
    for path in set(_files(target)) - set(wanted):
        (target / path).unlink()
    for path in wanted:
        there = target / path
        if not there.is_file() or not filecmp.cmp(source / path, there, shallow=False):
            # Without its time: Sphinx looks for what is newer than its last reading.
            shutil.copyfile(source / path, there)


def _jupyter_book(project: Project, work: Path, jobs: int) -> Path:
    source, made, log = work / "source", work / "_build" / "html", project.output / "render.log"
    command = [sys.executable, "-c", f"from {__name__} import jupyter_book; jupyter_book({jobs})"]
    with open(log, "wb") as file:
        # In a session of its own, so that a Ctrl-C reaches us alone and we end it.
        process = subprocess.Popen(
            [*command, "build", str(source), "--path-output", str(work), "-W", "--keep-going"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONWARNINGS": "ignore",
                "NO_COLOR": "1",
                "LOSSBOOK_FORMULAS": str(project.output / FORMULAS),
            },
            start_new_session=True,
        )
        try:
            status = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin:
                process.stdin.close()
    if status or not (made / "index.html").is_file():
        raise PressError(
            f"the site could not be rendered (all of it: {project.short(log)})\n{_complaints(log, source)}"
        )
    return made


def jupyter_book(jobs: int) -> None:
    """Be the command `jupyter-book`, until done or until the process that started it has ended, however it did."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from jupyter_book import sphinx
    from jupyter_book.cli.main import main

    # Its command line has no option for this.
    sphinx.build_sphinx = functools.partial(sphinx.build_sphinx, jobs=jobs)
    main(prog_name="jupyter-book")


def _end_with_parent() -> None:
    # Nothing is ever written there: this returns when the other end is closed.
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def _complaints(log: Path, source: Path) -> str:
    """The warnings and errors of a log, or its last lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace")).replace(f"{source}/", "")
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|No space left", line)]
    return "\n".join(f"  {line}" for line in marked[:20] or lines[-8:])
