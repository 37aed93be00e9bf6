"""Ending a run from outside: too long, too large, or no longer wanted."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

# Seconds between two looks.
PAUSE = 0.25


@dataclass(frozen=True)
class Limits:
    """When a run is ended from outside. None is no limit."""

    # Seconds for the whole notebook.
    timeout: float | None = None
    # Bytes that the kernel and its children may use beside what they share with others.
    memory: int | None = None
    # Says in words why the run is no longer wanted, if so.
    unwanted: Callable[[], str] = lambda: ""


NO_LIMITS = Limits()


class Guarded(Protocol):
    """What can be watched: a kernel."""

    def memory(self) -> int:
        """Bytes that it uses."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class Guard:
    """Watches the kernels of one run from a thread, and stops them when a limit is reached."""

    def __init__(self, kernels: Sequence[Guarded], limits: Limits):
        # Why the run was ended; empty if it was not.
        self.reason = ""
        self._kernels, self._limits = kernels, limits
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lossbook-guard", daemon=True)
        self._thread.start()

    def dismiss(self) -> None:
        """The run is over: watch no more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._over.wait(PAUSE):
            self.reason = self.reason or self._exceeded(time.monotonic() - started)
            if self.reason:
                # More than once, for a kernel may still be starting.
                for kernel in self._kernels:
                    kernel.kill()

    def _exceeded(self, seconds: float) -> str:
        if self._limits.timeout is not None and seconds > self._limits.timeout:
            return f"it was stopped at its limit of {self._limits.timeout:g} s"
        if self._limits.memory is not None:
            used = sum(kernel.memory() for kernel in self._kernels)
            if used > self._limits.memory:
                return f"it was stopped at its limit of memory: {_size(used)} of {_size(self._limits.memory)}"
        return self._limits.unwanted()


def memory_of(number: int) -> int:
    """Bytes that a process and its descendants use beside what they share with others."""
    total = 0
    try:
        family = [psutil.Process(number), *psutil.Process(number).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
