"""How far a long piece of work is: bars on a terminal, plain lines elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

# Seconds between two plain lines about the same piece of work.
PAUSE = 10


@contextlib.contextmanager
def track(console: Console, what: str, unit: str = "cells") -> Iterator[Callable[[int, int], None]]:
    """Show a piece of work while it lasts; call what is yielded with (done, total) as it goes on."""
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
            task = bars.add_task(what, total=None, count="")
            yield lambda done, total: bars.update(task, completed=done, total=total, count=f"{done}/{total} {unit}")
        return
    console.print(f"{what} ...", highlight=False)
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > PAUSE:
            last = time.monotonic()
            console.print(f"{what}: {done} of {total} {unit}", highlight=False)

    yield report


class Board:
    """Many runs at once: what runs, what waits, and the time that is left by the durations of earlier runs."""

    def __init__(self, console: Console, expected: Sequence[tuple[str, float | None]], jobs: int):
        self._console, self._jobs = console, jobs
        known = [seconds for _, seconds in expected if seconds is not None]
        usual = sum(known) / len(known) if known else None
        self._expected = {name: usual if seconds is None else seconds for name, seconds in expected}
        self._waiting = set(self._expected)
        self._running: dict[str, float] = {}
        self._lock = threading.Lock()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._lines: dict[str, TaskID] = {}

    def __enter__(self) -> "Board":
        """Show it."""
        self._all = self._bars.add_task("all runs", total=len(self._expected), count="")
        self._bars.start()
        self._summarise()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Take it away."""
        self._bars.stop()

    def expected(self, name: str) -> float | None:
        """Seconds that a run will take, as far as earlier ones tell."""
        return self._expected[name]

    def report(self, name: str, done: int, total: int) -> None:
        """A run is on its way."""
        with self._lock:
            if name in self._waiting:
                self._waiting.remove(name)
                self._running[name] = time.monotonic()
                self._lines[name] = self._bars.add_task(f"  {name}", total=None, count="")
                if not self._console.is_terminal:
                    self._console.print(f"{name} ...", markup=False, highlight=False)
            if total and name in self._lines:
                self._bars.update(self._lines[name], completed=done, total=total, count=f"{done}/{total} cells")
            self._summarise()

    def finished(self, name: str, run: dict[str, Any]) -> None:
        """A run is over."""
        with self._lock:
            self._waiting.discard(name)
            self._running.pop(name, None)
            if line := self._lines.pop(name, None):
                self._bars.remove_task(line)
            done = len(self._expected) - len(self._waiting) - len(self._running)
            text = f"{name}: {run['status']} after {run['seconds']:.1f} s ({done} of {len(self._expected)})"
            self._console.print(text, markup=False, highlight=False)
            self._summarise()

    def left(self) -> float | None:
        """Seconds until all is done; None if no earlier run tells."""
        now = time.monotonic()
        rest: list[float | None] = [self._expected[name] for name in self._waiting]
        rest += [max(0.0, (self._expected[name] or 0) - (now - started)) for name, started in self._running.items()]
        known = [seconds for seconds in rest if seconds is not None]
        if len(known) < len(rest):
            return None
        return max([sum(known) / self._jobs, *known], default=0.0)

    def _summarise(self) -> None:
        done = len(self._expected) - len(self._waiting) - len(self._running)
        left = self.left()
        about = "" if left is None else f", about {left // 60:.0f}:{left % 60:02.0f} left"
        count = f"{done}/{len(self._expected)}, {len(self._running)} running, {len(self._waiting)} waiting{about}"
        self._bars.update(self._all, completed=done, count=count)
