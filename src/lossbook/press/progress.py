"""How far a long piece of work is: bars on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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
