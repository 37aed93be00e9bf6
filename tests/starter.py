"""Python processes that begin at once: forked from one that has imported what presses, notebooks and the site import.

A process made so is as real as another: it has a number, files, an environment and a place of its own, can be
signalled and killed, and ends as an interpreter ends. What it starts by itself (kernels' warm process, Jupyter Book)
is forked too. Where the imports are what is tested, a fresh interpreter is the right one.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
from pathlib import Path
from typing import NoReturn

STATUS = struct.Struct("q")
# Code for `python -c` that children of ours start, and that a fork of them can run as well.
OURS = ("from lossbook.", "from multiprocessing.")


class Started:
    """A process of the starter with the manners of subprocess.Popen."""

    def __init__(self, args: list[str], status: socket.socket, stdout, stderr):
        self.args, self.stdout, self.stderr, self.returncode = args, stdout, stderr, None
        self._status, self._said, self._readers = status, ["", ""], None
        (self.pid,) = STATUS.unpack(status.recv(STATUS.size))

    def poll(self) -> int | None:
        """Exit status; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, after waiting for it."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                (self.returncode,) = STATUS.unpack(self._status.recv(STATUS.size))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said on stdout and stderr, after waiting for its end."""
        end = None if timeout is None else time.monotonic() + timeout
        if self._readers is None:
            self._readers = [
                threading.Thread(target=self._read, args=each, daemon=True)
                for each in enumerate((self.stdout, self.stderr))
            ]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(None if end is None else max(0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return tuple(self._said)

    def _read(self, index: int, stream) -> None:
        with stream:
            self._said[index] = stream.read()

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def python(code: str, *arguments: str, cwd: Path, env: dict[str, str], warm: bool = False) -> Started:
    """Begin `python -c CODE ARGUMENTS` in `cwd`; with `warm`, the process that its kernels fork from is there already.

    Its modules are those of the starter, but with a PYTHONPATH our own are imported anew, from there if they are there.
    """
    ours, theirs = socket.socketpair()
    out, err = os.pipe(), os.pipe()
    request = {"code": code, "arguments": list(arguments), "cwd": str(cwd), "env": env, "warm": warm}
    fds = [theirs.fileno(), out[1], err[1]]
    socket.send_fds(_starter(), [json.dumps(request).encode()], fds)
    theirs.close()
    os.close(out[1])
    os.close(err[1])
    return Started(["python", "-c", code, *arguments], ours, *(open(pipe[0], encoding="utf-8") for pipe in (out, err)))


@functools.cache
def _starter() -> socket.socket:
    """The starter, which ends when this process does."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        # A console of rich looks once how wide it is.
        env={**os.environ, "COLUMNS": "200"},
        # Ctrl-C is for whoever runs the tests, who ends what they started.
        start_new_session=True,
    )
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


def _load() -> None:
    # First, since it sees to it that no library starts a thread.
    importlib.import_module("lossbook.press.runs.preload")
    package = Path(sys.modules["lossbook"].__file__).parent / "press"
    ours = sorted(str(path.relative_to(package.parents[1]).with_suffix("")) for path in package.rglob("*.py"))
    names = [name.replace("/", ".").removesuffix(".__init__") for name in ours if not name.endswith("__main__")]
    others = """papermill.execute jupytext distributed dask nbclient jupyter_book.cli.main sphinx.cmd.build myst_nb
        myst_nb.sphinx_ sphinx_book_theme sphinx_design sphinx_togglebutton sphinx_copybutton sphinx_comments
        sphinx_external_toc sphinxcontrib.bibtex sphinx.ext.napoleon sphinx.ext.autodoc sphinx.ext.intersphinx
        sphinx.ext.viewcode sphinx.builders.html pydata_sphinx_theme sphinx.directives.patches pygments.lexers.python
        distributed.deploy distributed.http.scheduler distributed.http.worker"""
    for name in [*names, *others.split()]:
        importlib.import_module(name)
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()


def _serve(control: socket.socket) -> tuple[dict, list[int]]:
    """Fork a child for every request; returns in the child, with its request and its files."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    children: dict[int, int] = {}
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if woken in ready:
            os.read(woken, 4096)
            for number in list(children):
                ended, status = os.waitpid(number, os.WNOHANG)
                if ended:
                    file = children.pop(number)
                    with contextlib.suppress(BrokenPipeError):
                        os.write(file, STATUS.pack(os.waitstatus_to_exitcode(status)))
                    os.close(file)
        if control in ready:
            text, fds, _, _ = socket.recv_fds(control, 2**20, 3)
            if not text:
                # Whoever asks is gone, and so are we.
                os._exit(0)
            if number := os.fork():
                os.write(fds[0], STATUS.pack(number))
                children[number] = fds[0]
                os.close(fds[1])
                os.close(fds[2])
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for file in (control, selector, *map(_Descriptor, (woken, waker, fds[0], *children.values()))):
                file.close()
            return json.loads(text), fds[1:]


class _Descriptor(int):
    def close(self) -> None:
        os.close(self)


def _become(request: dict, fds: list[int]) -> str:
    """Be what the request asks for, up to running the code."""
    for number, file in enumerate(fds, 1):
        os.dup2(file, number)
        os.close(file)
    _settle(request["cwd"], request["env"], request["arguments"])
    if request["warm"]:
        import _posixsubprocess

        from lossbook.press.runs import forked

        # While there is one thread.
        exec_, _posixsubprocess.fork_exec = _posixsubprocess.fork_exec, _fork_exec
        forked.start()
        _posixsubprocess.fork_exec = exec_
    subprocess._fork_exec = _fork_exec
    return request["code"]


def _settle(folder: str | None, environment: dict[str, str] | None, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    if folder is not None:
        os.chdir(folder)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
        if path := [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]:
            sys.path[:0] = path
            for name in [name for name in sys.modules if name.partition(".")[0] == "lossbook"]:
                del sys.modules[name]
        if kind := environment.get("PYTHONWARNINGS"):
            warnings.simplefilter(kind)


def _run(code: str) -> NoReturn:
    """Run the code as the main module, and end as an interpreter does, except for taking all modules apart."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    status = 0
    try:
        exec(code, main.__dict__)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            # Closed, or full, or nobody reads it.
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
        os._exit(status)


@contextlib.contextmanager
def _undisturbed():
    """Signals wait: an exception that is raised in what Python does around a fork is lost."""
    came, handlers = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, lambda number, frame: came.append(number))
    us = os.getpid()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if os.getpid() == us:
            for number in came:
                os.kill(us, number)


_real_fork_exec = subprocess._fork_exec


def _fork_exec(*given) -> int:
    """In place of fork and exec: a fork that runs the code itself, if it is ours and handed to this interpreter."""
    words = [os.fsdecode(word) for word in given[0]]
    place = words.index("-c") + 1 if "-c" in words else 0
    main = threading.current_thread() is threading.main_thread()
    if not place or not main or words[0] != sys.executable or not words[place].startswith(OURS):
        return _real_fork_exec(*given)
    _, _, _, keep, folder, environment, stdin, _, _, stdout, _, stderr, _, errors, _, session, *_ = given
    # The parent must find the child's output behind its own.
    sys.stdout.flush()
    sys.stderr.flush()
    with _undisturbed():
        number = os.fork()
    if number:
        return number
    try:
        atexit._clear()
        # Nothing that the parent had is cleared away, or it would close files under numbers that are ours by then.
        gc.freeze()
        for number, file in enumerate((stdin, stdout, stderr)):
            if file >= 0 and file != number:
                os.dup2(file, number)
        for file in map(int, os.listdir("/proc/self/fd")):
            if file > 2 and (file not in keep or file == errors):
                with contextlib.suppress(OSError):
                    os.close(file)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        if session:
            os.setsid()
        pairs = None if environment is None else dict(os.fsdecode(pair).split("=", 1) for pair in environment)
        _settle(None if folder is None else os.fsdecode(folder), pairs, words[place + 1 :])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    _run(words[place])


if __name__ == "__main__":
    # As for `python -c`.
    sys.path[0] = ""
    _load()
    this = sys.modules["__main__"]
    _run(_become(*_serve(socket.socket(fileno=int(sys.argv[1])))))
