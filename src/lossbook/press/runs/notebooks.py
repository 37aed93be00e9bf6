"""Executing a notebook with its parameters, and the file that records it."""

import contextlib
import copy
import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, cast

import nbformat
from nbformat import NotebookNode

from lossbook.press.errors import PressError, Refused
from lossbook.press.files import write_whole
from lossbook.press.project import Paper
from lossbook.press.runs.definitions import Library
from lossbook.press.runs.device import device_of
from lossbook.press.runs.limits import NO_LIMITS, Guard, Limits
from lossbook.press.runs.parameters import Settings

# Of the output that holds the library's source (`lab.show_source`): the dotted name of what is shown.
SOURCE = "lossbook-source"
# Called as cells start: cells done, cells in all.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Failure:
    """What stopped a notebook, and where."""

    # The number that Jupyter shows; none if the kernel did not start.
    cell: int | None
    # The line in the script, and what stands there; none if it is not known.
    line: int | None
    source: str
    error: str
    text: str

    def describe(self, paper: Paper) -> str:
        """One sentence for people."""
        place = paper.source + (f", line {self.line}" if self.line else "")
        place += f", cell [{self.cell}]" if self.cell else ""
        return f"{place}: {self.error}{f': {self.text}' if self.text else ''}"


def read_script(paper: Paper) -> NotebookNode:
    """The script as a notebook.

    Raises:
        Refused: if it cannot be read.
    """
    return _notebook(paper, _text(paper))


class Scripts:
    """Scripts as notebooks, kept in a folder: reading them takes most of the time of a build that has nothing to do."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._new: dict[Path, dict[str, Any]] = {}

    def read(self, paper: Paper) -> NotebookNode:
        """As `read_script`; what is kept serves as long as the script and jupytext are the same."""
        text, place = _text(paper), self.folder / f"{paper.slug}.json"
        content = hashlib.sha256(f"{version('jupytext')}\n{text}".encode()).hexdigest()
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
            if kept["content"] == content:
                return cast("NotebookNode", nbformat.from_dict(kept["notebook"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        notebook = _notebook(paper, text)
        self._new[place] = {"content": content, "notebook": notebook}
        return notebook

    def keep(self) -> None:
        """Keep what was not there."""
        for place, kept in self._new.items():
            # What YAML knows and JSON does not, such as a date, is read again each time.
            with contextlib.suppress(TypeError):
                write_whole(place, json.dumps(kept))
        self._new.clear()


def _text(paper: Paper) -> str:
    try:
        return paper.script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{paper.source}: {error}") from None


def _notebook(paper: Paper, text: str) -> NotebookNode:
    import jupytext

    try:
        return jupytext.reads(text, fmt="py:percent")
    except Exception as error:  # the front matter is the author's YAML
        raise Refused(f"{paper.source}: cannot be read as a notebook: {error}") from None


def execute(
    paper: Paper,
    notebook: NotebookNode,
    settings: Settings,
    report: Report = lambda done, total: None,
    *,
    limits: Limits = NO_LIMITS,
    warm: bool = False,
) -> NotebookNode:
    """Execute a notebook and return it whole, with what happened in `metadata["lossbook"]["run"]`.

    A notebook that raises, whose kernel dies or that exceeds a limit is no error here: its run has the status
    "failed" and says why.

    Args:
        paper: whose notebook it is.
        notebook: the script as `read_script` gives it; it stays as it is.
        settings: the parameters.
        report: called as cells start.
        limits: when to end it from outside.
        warm: fork the kernel from the warm process, where that is possible.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import ERROR_MARKER_TAG

    from lossbook.press.runs.kernels import Kernel

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    running: list[NotebookNode] = []
    current = 0

    class Here(Kernel):
        folder = paper.script.parent
        started: ClassVar[list[Kernel]] = []

    Here.warm = warm

    def started(cell: NotebookNode, cell_index: int) -> None:
        nonlocal current
        current = cell_index
        report(cell_index, len(running[0].cells))

    run = _about(paper, settings)
    clock = time.monotonic()
    failure = None
    guard = Guard(Here.started, limits)
    try:
        papermill.execute_notebook(
            copy.deepcopy(notebook),
            None,
            parameters=settings.injected,
            progress_bar=False,
            # A script needs no front matter to be run.
            kernel_name="python3",
            language="python",
            # What papermill passes on to nbclient.
            kernel_manager_class=Here,
            on_notebook_start=lambda notebook: running.append(notebook),
            on_cell_start=started,
        )
    except PapermillExecutionError:
        pass  # the cell says it too, and more
    except RuntimeError as error:
        if not running:
            words = guard.reason or (Here.started[-1].last_words if Here.started else "")
            failure = Failure(None, None, "", "the kernel did not start", words or str(error))
        elif isinstance(error, DeadKernelError):
            failure = _died(paper, running[0], current, guard.reason)
        else:
            raise
    finally:
        guard.dismiss()
        for kernel in Here.started:
            kernel.stop()
    executed = running[0] if running else copy.deepcopy(notebook)
    executed.cells = [cell for cell in executed.cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])]
    raised = [cell for cell in executed.cells if cell.metadata.get("papermill", {}).get("exception")]
    # (Papermill itself is content with a notebook that leaves by sys.exit(0).)
    if raised and not failure:
        failure = _raised(paper, raised[0])
    executed.metadata.pop("papermill", None)
    for cell in executed.cells:
        cell.metadata.pop("papermill", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
    executed.metadata.setdefault("kernelspec", {"display_name": "Python 3", "language": "python", "name": "python3"})
    run["seconds"] = round(time.monotonic() - clock, 2)
    run["status"] = "failed" if failure else "finished"
    if failure:
        run["failure"] = asdict(failure)
    executed.metadata.setdefault("lossbook", {})["run"] = run
    # Through JSON, so that what is returned is what a reader of the file gets.
    return nbformat.reads(nbformat.writes(executed), as_version=4)


def with_text(executed: NotebookNode, script: NotebookNode, library: Library | None = None) -> NotebookNode:
    """An executed notebook with the text of the script as it is now, and with the text of the library's source.

    Both have the same code, for code is in the key of a run; text is not, and may have been edited since: between the
    cells, or in docstrings and comments of what `lab.show_source` shows.
    """
    made = copy.deepcopy(executed)
    # The front matter as well: it says how things are shown.
    run, language = made.metadata["lossbook"]["run"], ("kernelspec", "language_info")
    made.metadata = {name: made.metadata[name] for name in language if name in made.metadata}
    made.metadata.update(copy.deepcopy(script.metadata))
    made.metadata["lossbook"] = {**script.metadata.get("lossbook", {}), "run": run}
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    made.cells = []
    for cell in script.cells:
        if cell.cell_type != "code":
            made.cells.append(copy.deepcopy(cell))
            continue
        ran = code.pop(0)
        ran.metadata = copy.deepcopy(cell.metadata)
        made.cells.append(ran)
        # What papermill put behind the parameters.
        while code and "injected-parameters" in code[0].metadata.get("tags", []):
            made.cells.append(code.pop(0))
    for output in (output for cell in made.cells for output in cell.get("outputs", ())):
        name = output.get("metadata", {}).get(SOURCE)
        source = library.source(name) if library and name else None
        if source is not None:
            output.data |= {"text/markdown": f"```python\n{source}\n```", "text/plain": source}
    return numbered(made)


def numbered(notebook: NotebookNode) -> NotebookNode:
    """The notebook itself, its cells identified by their place: the same content is then the same file."""
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"
    return notebook


def lost(paper: Paper, notebook: NotebookNode, settings: Settings, error: str, text: str) -> NotebookNode:
    """The record of a run of which nothing came back, because what ran it is gone."""
    executed = copy.deepcopy(notebook)
    failure = Failure(None, None, "", error, text)
    run = {**_about(paper, settings), "seconds": 0.0, "status": "failed", "failure": asdict(failure)}
    executed.metadata.setdefault("lossbook", {})["run"] = run
    return executed


def _about(paper: Paper, settings: Settings) -> dict[str, Any]:
    return {
        "part": paper.part,
        "slug": paper.slug,
        "profile": settings.profile,
        "parameters": settings.values,
        "options": settings.options,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions("lossbook", "torch")},
        "device": device_of(settings),
    }


def write(path: Path, notebook: NotebookNode) -> None:
    """Write an executed notebook, whole or not at all."""
    write_whole(path, nbformat.writes(notebook) + "\n")


def read(path: Path) -> NotebookNode:
    """Read an executed notebook.

    Raises:
        PressError: if it is damaged, or no run of ours.
        FileNotFoundError: if there is none.
    """
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
        if notebook.metadata["lossbook"]["run"]["status"] not in ("finished", "failed"):
            raise KeyError("status")
        return notebook
    except OSError:
        raise
    except Exception as error:  # nbformat raises what it likes for what is no notebook
        raise PressError(f"{path} is damaged ({type(error).__name__})") from None


def failure_of(notebook: NotebookNode) -> Failure | None:
    """What stopped the run, if anything did."""
    failure = notebook.metadata["lossbook"]["run"].get("failure")
    return Failure(**failure) if failure else None


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with printed text in one piece, however it arrived, and each line as it stood at last.

    (nbclient has an option for this, which takes quadratic time for a long line.)
    """
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            lines = (line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n"))
            output.text = "\n".join(lines)
    return joined


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _raised(paper: Paper, cell: NotebookNode) -> Failure:
    """Where an exception was raised, from the traceback that IPython wrote into the cell."""
    error = next(output for output in reversed(cell.outputs) if output.output_type == "error")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    frame = re.search(rf"Cell In\s*\[{cell.execution_count}\], line (\d+)", plain)
    text = " ".join(error.evalue.split())
    return _locate(paper, cell, cell.execution_count, int(frame[1]) if frame else None, error.ename, text)


def _died(paper: Paper, notebook: NotebookNode, index: int, reason: str) -> Failure:
    counts = [cell.get("execution_count") or 0 for cell in notebook.cells[:index]]
    text = reason or "the process ended without a word (killed, or out of memory)"
    error = "the run was ended" if reason else "the kernel died"
    return _locate(paper, notebook.cells[index], max(counts, default=0) + 1, None, error, text)


def _locate(paper: Paper, cell: NotebookNode, count: int, line: int | None, error: str, text: str) -> Failure:
    source = cell.source.splitlines()
    content = source[line - 1].strip() if line and line <= len(source) else ""
    before, found, _ = paper.script.read_text(encoding="utf-8").partition(cell.source)
    return Failure(count, before.count("\n") + (line or 1) if found else None, content, error, text)
