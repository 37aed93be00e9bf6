"""Many runs: which of them are needed, and carrying these out side by side.

Finished runs are stored under the key of what decided them, so what was run once is never run again. Work is
scheduled by Dask: on workers within this process, or on those of a cluster that exists.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from rich.console import Console

from lossbook.press.errors import PressError, Refused
from lossbook.press.progress import Board
from lossbook.press.project import Paper, Project
from lossbook.press.runs import device, keys, limits, notebooks
from lossbook.press.runs.parameters import Settings

# What the workers tell the client about, by Dask's topics.
TOPIC = "lossbook"
# How the reason begins if there is a file, but no run in it.
DAMAGED = "its stored run is damaged"


# Seconds that a scheduler has to answer.
PATIENCE = 10
# How often a run that never began is sent out again, since the workers died that it waited on.
BLAMELESS = 3


@dataclass(frozen=True)
class Request:
    """A run that is wanted."""

    paper: Paper
    notebook: NotebookNode
    settings: Settings

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.paper.slug}, {self.settings.name}"


@dataclass(frozen=True)
class Options:
    """How runs are carried out."""

    # Runs side by side, within this process.
    jobs: int = os.cpu_count() or 1
    # The address of a Dask scheduler, whose workers run instead.
    scheduler: str | None = None
    # Limits of a single run: seconds, bytes.
    timeout: float | None = None
    memory: int | None = None
    # Fork kernels from a warm process, where the system can.
    warm: bool = True


@dataclass(frozen=True)
class Plan:
    """A run and whether it is needed."""

    request: Request
    key: keys.Key
    # Where the finished run is, or will be.
    path: Path
    # Why it must run; None if it is there.
    reason: str | None


@dataclass(frozen=True)
class Outcome:
    """A run that is over, well or badly."""

    request: Request
    path: Path
    executed: NotebookNode
    # Whether it ran now; else it was in the store.
    ran: bool


def plan(project: Project, requests: Sequence[Request], *, again: bool = False) -> list[Plan]:
    """Say for every request whether it must run and why.

    Args:
        project: whose store is looked into.
        requests: what is wanted.
        again: run everything, whatever is there.
    """
    maker, plans = keys.Keys(project), []
    for request in requests:
        key = maker.of(request.notebook, request.settings)
        path = store(project, request, key)
        plans.append(Plan(request, key, path, "asked to run again" if again else _reason(request, key, path)))
    return plans


def store(project: Project, request: Request, key: keys.Key) -> Path:
    """Where the finished run with this key has its place."""
    return project.output / "runs" / request.paper.slug / f"{request.settings.name}-{key.digest}.ipynb"


def failed(path: Path) -> Path:
    """Where a failed run is kept, beside the place of the finished one."""
    return path.with_suffix(".failed.ipynb")


def _reason(request: Request, key: keys.Key, path: Path) -> str | None:
    if path.is_file():
        try:
            if notebooks.read(path).metadata["lossbook"]["run"].get("key") == key.parts:
                return None
            return f"{DAMAGED}: {path} is of something else"
        except PressError as error:
            return f"{DAMAGED}: {error}"
    if failed(path).is_file():
        return "it failed the last time"
    same = re.compile(re.escape(request.settings.name) + r"-[0-9a-f]{16}\.ipynb")
    for earlier in _newest(path for path in path.parent.glob("*.ipynb") if same.fullmatch(path.name)):
        with contextlib.suppress(PressError, FileNotFoundError, KeyError):
            return key.difference(notebooks.read(earlier).metadata["lossbook"]["run"]["key"])
    return "it was never run"


def _newest(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: -path.stat().st_mtime)


def seconds(project: Project, request: Request) -> float | None:
    """How long the newest earlier run of the same paper took, the same settings first."""
    folder = project.output / "runs" / request.paper.slug
    for pattern in (f"{request.settings.name}-*.ipynb", f"{request.settings.profile}-*.ipynb", "*.ipynb"):
        for path in _newest(folder.glob(pattern)):
            with contextlib.suppress(PressError, FileNotFoundError):
                return float(notebooks.read(path).metadata["lossbook"]["run"]["seconds"])
    return None


def carry_out(project: Project, plans: Sequence[Plan], options: Options, console: Console) -> list[Outcome]:
    """Run what must run, read what is there; outcomes in the order of the plans.

    A run that fails, hangs or dies is an outcome that says so, and the others go on. When this is interrupted,
    kernels and workers are stopped, and what was finished stays stored.

    Raises:
        Refused: if there is no scheduler at the address.
        OSError: if a result cannot be written.
    """
    outcomes: dict[Path, Outcome] = {}
    pending = list({plan.path: plan for plan in plans if plan.reason}.values())
    for each in pending:
        if (each.reason or "").startswith(DAMAGED):
            console.print(f"{each.request.name}: {each.reason}; it runs again", markup=False)
    for each in plans:
        if not each.reason:
            outcomes[each.path] = Outcome(each.request, each.path, notebooks.read(each.path), ran=False)
    if pending:
        expected = [(each.request.name, seconds(project, each.request)) for each in pending]
        with (
            Board(console, expected, options.jobs) as board,
            # Closed at once when a result cannot be written, so that no kernel goes on.
            contextlib.closing(_results(pending, options, board)) as results,
        ):
            for each, executed in results:
                executed.metadata["lossbook"]["run"]["key"] = dict(each.key.parts)
                bad = notebooks.failure_of(executed)
                notebooks.write(failed(each.path) if bad else each.path, executed)
                if not bad:
                    failed(each.path).unlink(missing_ok=True)
                outcomes[each.path] = Outcome(each.request, each.path, executed, ran=True)
                board.finished(each.request.name, executed.metadata["lossbook"]["run"])
    return [outcomes[each.path] for each in plans]


def _results(pending: list[Plan], options: Options, board: Board) -> Generator[tuple[Plan, NotebookNode]]:
    """Every pending run, executed, as it is over."""
    from distributed import as_completed

    with _client(options, pending) as client:
        started: set[str] = set()

        def report(name: str, done: int, total: int) -> None:
            started.add(name)
            board.report(name, done, total)

        client.subscribe_topic(TOPIC, lambda event: report(*event[1]))
        resources = _resources(client, pending)

        def submit(each: Plan) -> Any:
            return client.submit(
                _run,
                each.request.paper,
                nbformat.writes(each.request.notebook),
                each.request.settings,
                each.request.name,
                options,
                key=f"{each.request.paper.slug}-{each.key.digest}-{time.time_ns()}",
                pure=False,
                resources=resources.get(each.path),
            )

        # The longest first, so that the last ones to end are short.
        ordered = sorted(pending, key=lambda each: -(board.expected(each.request.name) or 0))
        futures = {submit(each): each for each in ordered}
        blameless = {each.path: BLAMELESS for each in pending}
        try:
            completed = as_completed(futures, loop=client.loop)
            for future in completed:
                each = futures[future]
                if _killed(future) and each.request.name not in started and blameless[each.path]:
                    # It only waited, where another run killed the worker.
                    blameless[each.path] -= 1
                    again = submit(each)
                    futures[again] = each
                    completed.add(again)
                    continue
                if future.status == "finished":
                    executed = nbformat.reads(future.result(), as_version=4)
                else:
                    what, words = _what_was_lost(future)
                    executed = notebooks.lost(
                        each.request.paper, each.request.notebook, each.request.settings, what, words
                    )
                future.release()
                yield each, executed
        finally:
            client.cancel([future for future in futures if not future.done()], force=True)
            _stop_here()


def _killed(future: Any) -> bool:
    return future.status == "error" and type(future.exception()).__name__ == "KilledWorker"


def _what_was_lost(future: Any) -> tuple[str, str]:
    """Why nothing came back, and more about it."""
    if future.status in ("cancelled", "lost"):
        return "the scheduler or the connection to it is gone", ""
    error = future.exception()
    words = "; ".join(str(error).split("\n")[:2]).strip()
    return ("the worker died" if _killed(future) else type(error).__name__), words


def _run(paper: Paper, notebook: str, settings: Settings, name: str, options: Options) -> str:
    """Execute one run on a worker."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def unwanted() -> str:
        # The client cancelled it, or is gone.
        task = worker.state.tasks.get(key)
        return "" if task is not None and task.state in ("executing", "long-running") else "it was cancelled"

    def report(done: int, total: int) -> None:
        worker.log_event(TOPIC, (name, done, total))

    report(0, 0)
    executed = notebooks.execute(
        paper,
        nbformat.reads(notebook, as_version=4),
        settings,
        report,
        limits=limits.Limits(options.timeout, options.memory, unwanted),
        warm=options.warm,
    )
    return nbformat.writes(executed)


@contextlib.contextmanager
def _client(options: Options, pending: list[Plan]) -> Iterator[Any]:
    """A client of the cluster that is asked for, or of one within this process."""
    import dask.config

    # Failures are told by us.
    quiet = {"distributed.admin.system-monitor.disk": False, "distributed.logging.distributed": "critical"}
    with dask.config.set(quiet):
        from distributed import Client, Scheduler, SpecCluster, Worker
        from distributed.comm.addressing import parse_address
        from distributed.comm.registry import get_backend

        for logger in ("distributed", "distributed.client"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        if options.scheduler:
            try:
                get_backend(parse_address(options.scheduler)[0])
                client = Client(options.scheduler, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError) as error:
                raise Refused(f"--scheduler {options.scheduler}: no Dask scheduler there ({error})") from None
            with client:
                yield client
            return
        gpus = {"GPU": 1} if device.device_of_machine()["kind"] == "cuda" else {}
        # Dask always serves its state over HTTP: here to nobody else, on any port that is free.
        alone = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
        usual = {"nthreads": 1, "memory_limit": 0, **alone}
        workers = {
            index: {"cls": Worker, "options": {**usual, "resources": gpus if index == 0 else {}}}
            for index in range(min(options.jobs, len(pending)))
        }
        scheduler = {"cls": Scheduler, "options": {"protocol": "inproc://", **alone}}
        with (
            # Its annotation says bool, its documentation a level.
            SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as cluster,  # pyright: ignore[reportArgumentType]
            Client(cluster, set_as_default=False) as client,
        ):
            yield client


def _resources(client: Any, pending: list[Plan]) -> dict[Path, dict[str, int]]:
    """One GPU for each run that uses one, where the workers say that they have any."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if not any(worker.get("resources", {}).get("GPU") for worker in workers):
        return {}
    return {each.path: {"GPU": 1} for each in pending if device.device_of(each.request.settings)["kind"] == "cuda"}


def _stop_here() -> None:
    """Stop the kernels that workers within this process still have."""
    from lossbook.press.runs.kernels import stop_all

    stop_all()
