"""Made-up projects, small enough that everything can happen to them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import starter

ROOT = Path(__file__).parents[2]

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   lossbook:
#     profiles:
#       smoke: {seeds: 2, rate: 1e-3}
# ---

# %% [markdown]
# # Title of SLUG
#
# What it is about: $a^2$.

# %%
from typing import Literal

# %% tags=["parameters"]
seeds: int = 5  # independent runs
rate: float = 0.5  # step size
rates: list[float] = [0.1, 0.2]
kind: Literal["plain", "fancy"] = "plain"
full: bool = False
device: str = "auto"  # where

# %%
"""

# What the tiny notebooks say they found.
ENTRIES = """
from IPython.display import display

def entry(**data):
    mark = f'<div class="lossbook-entry" id="{data["kind"]}-{data["id"]}">{data["verdict"]}</div>'
    display({"application/vnd.lossbook.ledger+json": data, "text/html": mark, "text/plain": data["id"]}, raw=True)

entry(kind="check", id="sum", statement="1 + 1 = 2 & <no> tags", verdict="verified", error=1e-16, tolerance=1e-12, cases=10, evidence="error 1e-16")
entry(kind="claim", id="c1", statement="Fast.", criterion="above 0", verdict="inconclusive", effect=0.5,
      low=None, high=1.5, margin=0.0, seeds=seeds, unit="points", evidence="0.5 [−∞, 1.5]", extra=1)
"""


# The command; and the command with everything but rendering and checking the site, which takes longer than all the rest.
PRESS = "from lossbook.press.cli.main import main\nmain()"
SWIFT = (
    "from lossbook.press.site import check, render\n"
    "render.render = lambda project, source, jobs: None\ncheck.check = lambda project: []\n" + PRESS
)

# Seconds until something that waits is taken to wait in vain. No test takes them, however busy the machine.
PATIENCE = 900


class Tiny:
    """A project in a folder of its own."""

    program = ("-c", PRESS)
    # Whether each press is a new interpreter, rather than forked from one that has imported everything.
    fresh = False

    def __init__(self, root: Path):
        self.root = root
        (root / "book").mkdir(parents=True)
        for folder in ("_static", "_templates", "inventories"):
            shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
        shutil.copy(ROOT / "_config.yml", root)
        self.started = []
        (root / "book" / "references.bib").write_text("")
        (root / "book" / "intro.md").write_text("# A book\n\n<!-- lossbook:score -->\n")
        (root / "notebooks").mkdir()

    def notebook(self, slug: str, code: str = "", part: str = "part_one") -> Path:
        """Write a notebook whose cells, after the parameters, are `code`, parted by `# %%`."""
        path = self.root / "notebooks" / part / f"{slug}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER.replace("SLUG", slug) + code)
        return path

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen | starter.Started:
        """Begin the command. With a PYTHONPATH, what is imported matters."""
        inherited = {**os.environ, "COLUMNS": "200", **environment}
        if self.fresh or "PYTHONPATH" in environment:
            press = subprocess.Popen(
                [sys.executable, *self.program, *arguments],
                cwd=self.root,
                env=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            warm = not {"build", "sweep", "record"}.isdisjoint(arguments)
            press = starter.python(self.program[1], *arguments, cwd=self.root, env=inherited, warm=warm)
        self.started.append(press)
        return press

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
        """Run the command to its end; it must end with `status` and never show a traceback of ours."""
        return self.finish(self.start(*arguments, **environment), status)

    def swiftly(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
        """Run the command, without rendering the site."""
        program, self.program = self.program, ("-c", SWIFT)
        try:
            return self.run(*arguments, status=status, **environment)
        finally:
            self.program = program

    def finish(self, press, status: int) -> subprocess.CompletedProcess:
        """Wait for the end of a press, which must be with `status` and without a traceback."""
        out, err = press.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, err
        assert press.returncode == status, f"status {press.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(press.args, press.returncode, out, err)

    def end(self) -> None:
        """End what still runs: presses and all that they started."""
        for press in self.started:
            if press.poll() is None:
                end(press.pid)
                press.communicate()

    def files(self) -> list[str]:
        """Everything that was built, by name."""
        built = self.root / "_build"
        return sorted(str(path.relative_to(built)) for path in built.rglob("*") if path.is_file())


def end(number: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture
def tiny(tmp_path: Path):
    tiny = Tiny(tmp_path / "project")
    yield tiny
    tiny.end()


@pytest.fixture(scope="session")
def swift_program() -> tuple[str, str]:
    return ("-c", SWIFT)


@pytest.fixture
def swift(tiny: Tiny, swift_program: tuple[str, str]) -> Tiny:
    """A project whose site is not rendered."""
    tiny.program = swift_program
    return tiny


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory):
    """Makes projects that several tests look at."""
    made = []

    def make(name: str) -> Tiny:
        made.append(Tiny(tmp_path_factory.mktemp(name) / "project"))
        return made[-1]

    yield make
    for tiny in made:
        tiny.end()


@pytest.fixture(scope="session")
def built(make_tiny) -> Tiny:
    """A project of two papers, one of which raises, after `lossbook build`. Not to be changed."""
    tiny = make_tiny("built")
    tiny.notebook("good", ENTRIES)
    tiny.notebook("bad", ENTRIES + "\n# %%\nx = 1\ny = x / 0\n\n# %%\nprint('never')\n", part="part_two")
    tiny.finished = tiny.run("build", status=1)
    return tiny


def wait_for(condition, press=None):
    """Wait until `condition()` is true, and return what it returned; not for a press that ended before it was."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        ended = press is not None and press.poll() is not None
        if value := condition():
            return value
        assert not ended, press.communicate()
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


# A cell that says which process it runs in and never ends.
SLEEP = """
import os, signal
from pathlib import Path
Path(os.environ["PID_FILE"] + ".part").write_text(str(os.getpid()))
os.replace(os.environ["PID_FILE"] + ".part", os.environ["PID_FILE"])
while True:
    signal.pause()
"""


@pytest.fixture
def sleeping(tiny: Tiny, tmp_path: Path):
    """Start a command on a notebook that sleeps; gives the press and the kernel's process number."""
    file = tmp_path / "pid"
    kernels = []

    def start(*arguments: str):
        tiny.notebook("sleeper", SLEEP)
        press = tiny.start(*arguments, PID_FILE=str(file))
        kernels.append(int(wait_for(lambda: file.exists() and file.read_text(), press)))
        return press, kernels[-1]

    yield start
    for kernel in filter(alive, kernels):
        os.kill(kernel, signal.SIGKILL)


@pytest.fixture(name="wait_for")
def _wait_for():
    return wait_for


@pytest.fixture(scope="session")
def python():
    """Runs code as `python -c` does, without waiting for its imports."""

    def run(code: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        process = starter.python(code, *arguments, cwd=cwd, env={**os.environ, **environment})
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                end(process.pid)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def sphinx(python):
    """Runs `sphinx-build`."""
    return lambda *arguments, cwd: python(
        "import sys\nfrom sphinx.cmd.build import main\nsys.exit(main(sys.argv[1:]))", *map(str, arguments), cwd=cwd
    )


@pytest.fixture(name="end", scope="session")
def _end():
    return end


@pytest.fixture(scope="session")
def patience() -> int:
    return PATIENCE


@pytest.fixture(name="alive")
def _alive():
    return alive


@pytest.fixture(name="entries_code", scope="session")
def _entries_code():
    return ENTRIES


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can be mounted by root alone: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
