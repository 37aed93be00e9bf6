"""Made-up projects, small enough that everything can happen to them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


class Tiny:
    """A project in a folder of its own."""

    program = ("-m", "lossbook.press")

    def __init__(self, root: Path):
        self.root = root
        (root / "book").mkdir(parents=True)
        for folder in ("_static", "inventories"):
            shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
        shutil.copy(ROOT / "_config.yml", root)
        (root / "book" / "references.bib").write_text("")
        (root / "book" / "intro.md").write_text("# A book\n\n<!-- lossbook:score -->\n")
        (root / "notebooks").mkdir()

    def notebook(self, slug: str, code: str = "", part: str = "part_one") -> Path:
        """Write a notebook whose cells, after the parameters, are `code`, parted by `# %%`."""
        path = self.root / "notebooks" / part / f"{slug}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER.replace("SLUG", slug) + code)
        return path

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *self.program, *arguments],
            cwd=self.root,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
        """Run the command to its end; it must end with `status` and never show a traceback of ours."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            raise AssertionError(f"{arguments} hangs: {process.communicate()}") from None
        assert "Traceback" not in err, err
        assert process.returncode == status, f"status {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def files(self) -> list[str]:
        """Everything that was built, by name."""
        built = self.root / "_build"
        return sorted(str(path.relative_to(built)) for path in built.rglob("*") if path.is_file())


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path / "project")


# The command, with everything but the rendering of the site, which takes longer than all the rest.
SWIFT = """
from lossbook.press.site import render
render.render = lambda project, source: None
from lossbook.press.cli.main import main
main()
"""


@pytest.fixture
def swift(tiny: Tiny) -> Tiny:
    tiny.program = ("-c", SWIFT)
    return tiny


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory):
    """Makes projects that several tests look at."""
    return lambda name: Tiny(tmp_path_factory.mktemp(name) / "project")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A project of two papers, one of which raises, after `lossbook build`. Not to be changed."""
    tiny = Tiny(tmp_path_factory.mktemp("built") / "project")
    tiny.notebook("good", ENTRIES)
    tiny.notebook("bad", ENTRIES + "\n# %%\nx = 1\ny = x / 0\n\n# %%\nprint('never')\n", part="part_two")
    tiny.finished = tiny.run("build", status=1)
    return tiny


def wait_for(condition, seconds: float = 30):
    """Wait until `condition()` is true, and return what it returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


# A cell that says which process it runs in and then takes long.
SLEEP = """
import os, time
from pathlib import Path
Path(os.environ["PID_FILE"] + ".part").write_text(str(os.getpid()))
os.replace(os.environ["PID_FILE"] + ".part", os.environ["PID_FILE"])
time.sleep(60)
"""


@pytest.fixture
def sleeping(tiny: Tiny, tmp_path: Path):
    """Start a command on a notebook that sleeps; gives the press and the kernel's process number."""
    file = tmp_path / "pid"
    started = []

    def start(*arguments: str):
        tiny.notebook("sleeper", SLEEP)
        press = tiny.start(*arguments, PID_FILE=str(file))
        kernel = int(wait_for(lambda: file.exists() and file.read_text()))
        started.append((press, kernel))
        return press, kernel

    yield start
    for press, kernel in started:
        for process in (press.pid, kernel):
            if alive(process):
                os.kill(process, signal.SIGKILL)
        press.communicate()


@pytest.fixture(name="wait_for")
def _wait_for():
    return wait_for


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
