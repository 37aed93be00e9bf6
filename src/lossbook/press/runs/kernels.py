"""The kernel that executes notebooks: this interpreter, in a place of its own."""

import contextlib
import os
import signal
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from lossbook.press.runs import forked
from lossbook.press.runs.limits import memory_of

SPEC = KernelSpec(
    # Without frozen modules the debugger of ipykernel has nothing to complain about.
    argv=[sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    display_name="Python 3",
    language="python",
)
WARM = KernelSpec(
    argv=SPEC.argv,
    display_name=SPEC.display_name,
    language=SPEC.language,
    metadata={"kernel_provisioner": {"provisioner_name": forked.NAME}},
)


_alive: "weakref.WeakSet[Kernel]" = weakref.WeakSet()


def stop_all() -> None:
    """Stop every kernel that this process started and still has."""
    for kernel in list(_alive):
        kernel.stop()


class Kernel(AsyncKernelManager):
    """A kernel that depends on nothing in the user's home: no kernel specifications, no start-up files."""

    # Where the notebook is.
    folder: Path
    # Whether it forks from the warm process.
    warm: bool = False
    # Every kernel of this class that was started, so that its end can be made sure of.
    started: ClassVar[list["Kernel"]]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._scratch = tempfile.TemporaryDirectory(prefix="lossbook-")
        self.connection_file = str(Path(self._scratch.name, "kernel.json"))
        if os.name == "posix":
            # Sockets that are files in a folder of our own: no port to race for, nobody else can listen.
            self.transport = "ipc"
        self._process = 0
        self.started.append(self)
        _alive.add(self)

    @property
    def kernel_spec(self) -> KernelSpec:
        """Always this interpreter."""
        return WARM if self.warm and forked.available() else SPEC

    async def start_kernel(self, **options: Any) -> None:
        """Start it in the notebook's folder, with the book's environment."""
        environment = {
            # A second thread that waits actively beside a busy process costs more than it brings.
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            **os.environ,
            "IPYTHONDIR": self._scratch.name,
        }
        with open(self._log, "wb") as log:
            own = {"env": environment, "cwd": str(self.folder), "stdout": log, "stderr": log}
            await super().start_kernel(**{**options, **own})
        self._process = getattr(self.provisioner, "pid", None) or 0

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """End it at once: what it had to say has arrived, and asking politely takes longer than some notebooks."""
        await super().shutdown_kernel(now=True, restart=restart)

    @property
    def _log(self) -> Path:
        return Path(self._scratch.name, "kernel.log")

    @property
    def last_words(self) -> str:
        """The last line that the process itself wrote."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def memory(self) -> int:
        """Bytes that it and its children use beside what they share."""
        return memory_of(self._process) if self._process else 0

    def kill(self) -> None:
        """End it and what it started, which is its process group."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process, signal.SIGKILL)

    def stop(self) -> None:
        """End whatever is left of it, and remove its files."""
        self.kill()
        _alive.discard(self)
        with contextlib.suppress(OSError):
            self._scratch.cleanup()
