"""Kernels that fork from one warm process, in which everything that notebooks import is imported already.

The warm process is the standard library's forkserver: one for each process that starts kernels, begun with its first
kernel, ended with it. It has not initialised CUDA and has started no threads, so its children may.

Any Jupyter client can use it: the provisioner is registered as `lossbook-warm`, and a kernel specification chooses
it by `"metadata": {"kernel_provisioner": {"provisioner_name": "lossbook-warm"}}`.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

NAME = "lossbook-warm"
_starting = threading.Lock()


def available() -> bool:
    """Whether this system can fork."""
    return "forkserver" in multiprocessing.get_all_start_methods()


def start() -> None:
    """Begin the warm process now rather than with the first kernel."""
    _context()
    from multiprocessing import forkserver

    forkserver.ensure_running()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lossbook.press.runs.preload"])
    return context


class Forked:
    """A child of the warm process with the manners of subprocess.Popen, as far as a provisioner needs them."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess):
        assert process.pid is not None, "it has been started"
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit status, after waiting for it."""
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()


class WarmProvisioner(LocalProvisioner):
    """Launches a kernel by forking the warm process."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Fork. The interpreter that the command names is this one; what follows it are the kernel's arguments."""
        process = _context().Process(
            target=_serve,
            # What a process is called that is nobody's child.
            name="MainProcess",
            daemon=False,
            args=(
                cmd[cmd.index("-f") :],
                dict(options.get("env") or os.environ),
                str(options.get("cwd") or os.getcwd()),
                getattr(options.get("stdout"), "name", None),
            ),
        )
        try:
            with _starting, _without_heritage():
                process.start()
        except (EOFError, OSError):
            # The warm process ended while it was importing. An ordinary kernel starts slowly, but it starts.
            return await super().launch_kernel(cmd, **options)
        self.process = Forked(process)
        self.pid = self.pgid = process.pid
        return self.connection_info


@contextlib.contextmanager
def _without_heritage():
    """Without a main module, or every child would import the script that started us; and free to have children.

    (Workers of Dask are what multiprocessing calls daemonic: not allowed to have any.)
    """
    # Python has no public switch for it.
    main, ours = sys.modules["__main__"], multiprocessing.current_process()._config  # pyright: ignore[reportAttributeAccessIssue]
    daemonic = ours.pop("daemon", None)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if daemonic is not None:
            ours["daemon"] = daemonic


def _serve(arguments: list[str], environment: dict[str, str], folder: str, log: str | None) -> None:
    """The child: a process group, environment and place of its own, then the ordinary kernel."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        sink = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except FileNotFoundError:
        # Its folder is gone: stopped before it began.
        raise SystemExit(1) from None
    for stream in (1, 2):
        os.dup2(sink, stream)

    # What multiprocessing handed down: our way to make processes, our arguments, our path.
    multiprocessing.set_start_method(None, force=True)
    sys.argv, sys.path[:] = ["ipykernel_launcher", *arguments], _path(environment)
    _forget_edited()

    from multiprocessing import forkserver

    import matplotlib
    import numpy
    import torch
    from ipykernel.kernelapp import IPKernelApp

    # What a notebook leaves behind (semaphores) is its own tracker's to clear, not that of whoever started us.
    # (Both are Python's own objects, without a public way to start afresh.)
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None
    # Nor are we among those for whom the warm process goes on.
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server.__init__()

    # These were read from the environment when the warm process imported their libraries.
    threads = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    torch.set_num_threads(int(threads) if threads.isdecimal() and int(threads) else 1)
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND") or "module://matplotlib_inline.backend_inline"
    # Which at its import looks for a kernel to show figures in.
    sys.modules.pop("matplotlib_inline.backend_inline", None)
    # Or all kernels would draw the same numbers where no seed is set.
    numpy.random.seed()
    torch.default_generator.seed()
    # It ends with its parent, which ends with whoever started the warm process.
    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _path(environment: dict[str, str]) -> list[str]:
    """Where an ordinary kernel looks for modules: what programs put before the standard library is theirs alone."""
    named = [os.path.abspath(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    library = {os.path.dirname(os.__file__), *(entry for entry in sys.path if entry.endswith(".zip"))}
    first = next((index for index, entry in enumerate(sys.path) if entry in library), 0)
    return named + [entry for entry in sys.path[first:] if entry not in named]


def _forget_edited() -> None:
    """Import our own modules anew if any was edited since the warm process did: a worker may live for days."""
    loaded = getattr(sys.modules.get("lossbook.press.runs.preload"), "LOADED", {})
    if loaded != {file: edited(file) for file in loaded}:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lossbook"]:
            del sys.modules[name]


def edited(file: str) -> int | None:
    """When a file was last written; None if it is gone."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return None
