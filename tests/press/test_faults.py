"""Whatever happens to one run costs that run alone, and leaves nothing behind."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

pytestmark = pytest.mark.slow

# Says that it runs, and goes on when it may.
GATE = """
import os, time
from pathlib import Path
folder = Path(os.environ["GATE"])
(folder / f"{os.getpid()}.runs").write_text(str(os.getppid()))
while not (folder / "open").exists():
    time.sleep(0.05)
print("through")
"""

SEEDED = """
import torch
from IPython.display import display

generator = torch.Generator().manual_seed(NUMBER)
model = torch.nn.Linear(64, 64, bias=False)
with torch.no_grad():
    model.weight.copy_(torch.randn(64, 64, generator=generator))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(20):
    loss = model(torch.randn(256, 64, generator=generator)).logsumexp(1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
data = {"kind": "check", "id": "loss", "statement": "s", "verdict": "verified", "error": loss.item(), "tolerance": 1e9,
        "cases": 1, "evidence": loss.item().hex()}
display({"application/vnd.lossbook.ledger+json": data, "text/plain": "entry"}, raw=True)
print(torch.randn(3, generator=generator).tolist())
"""


def book(project):
    """What a build found: for every paper its code and outputs, without times."""
    found = {}
    for path in sorted((project.root / "_build/book").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        assert notebook.metadata.lossbook.run.status == "finished"
        found[path.stem] = [(cell.source, cell.get("outputs")) for cell in notebook.cells]
    return found


def ledger(project):
    return json.loads(project.run("ledger", "--json").stdout)


def stored(project, slug):
    return [path for path in (project.root / "_build/runs" / slug).glob("*.ipynb") if ".failed." not in path.name]


def family(press):
    """All descendants of a process; the warm process puts kernels in sessions of their own."""
    return [child.pid for child in psutil.Process(press.pid).children(recursive=True)]


def through(path):
    return sum(1 for _ in path.glob("*.runs"))


@pytest.fixture
def gate(tmp_path):
    folder = tmp_path / "gate"
    folder.mkdir()
    return folder


def test_each_failure_costs_itself_alone_and_the_next_build_resumes_there(tiny, wait_for):
    fine = "print('fine')"
    broken = {
        "raises": ("x = 1\n\n# %%\n1 / 0", "cell [4]: ZeroDivisionError: division by zero"),
        "hangs": ("import time\ntime.sleep(600)", "cell [3]: the run was ended: it was stopped at its limit of 12 s"),
        "grows": (
            "import time\nheld = b'x' * (500 * 2**20)\ntime.sleep(600)",
            "it was stopped at its limit of memory: ",
        ),
        "killed": ("import os\nos.kill(os.getpid(), 9)", "cell [3]: the kernel died"),
    }
    tiny.notebook("fine", fine)
    for slug, (code, _) in broken.items():
        tiny.notebook(slug, code)
    limits = ("--timeout", "12", "--memory", "300MB", "-j", "2")
    done = tiny.run("build", *limits, status=1)
    for slug, (_, message) in broken.items():
        assert message in done.stderr, slug
        page = (tiny.root / f"_build/html/part_one/{slug}.html").read_text()
        shown = re.sub(r"<[^>]*>", "", page)
        assert "did not finish" in shown and message.rpartition("it was stopped")[2].split(": ")[-1] in shown, slug
        assert not stored(tiny, slug)
    assert "fine\n</pre>" in (tiny.root / "_build/html/part_one/fine.html").read_text()
    # The next build runs what is missing, and nothing else.
    explained = tiny.run("build", "--explain").stdout.splitlines()
    assert sum("it failed the last time" in line for line in explained) == 4
    assert any("fine" in line and " no " in line for line in explained)
    for slug in broken:
        tiny.notebook(slug, fine)
    done = tiny.run("build", *limits)
    assert "1 of 5 runs are up to date" in done.stderr and done.stderr.count("finished after") == 4
    assert all(
        "fine\n</pre>" in (tiny.root / f"_build/html/part_one/{slug}.html").read_text() for slug in ("fine", *broken)
    )
    assert not [name for name in tiny.files() if "book/" in name and ".failed." in name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_parallel_build_leaves_no_process_and_keeps_what_finished(
    swift, gate, wait_for, alive, number
):
    swift.notebook("quick", "print('done')")
    for slug in ("one", "two", "three"):
        swift.notebook(slug, GATE)
    swift.run("build", "--only", "quick")
    press = swift.start("build", "-j", "2", GATE=str(gate))
    wait_for(lambda: through(gate) == 2)
    processes = family(press)
    # Two kernels, the process they fork from, and the tracker of the standard library.
    assert len(processes) >= 4
    press.send_signal(number)
    _, err = press.communicate(timeout=30)
    assert press.returncode == 128 + number and number.name in err and "Traceback" not in err
    wait_for(lambda: not any(map(alive, processes)), seconds=5)
    assert stored(swift, "quick") and not any(stored(swift, slug) for slug in ("one", "two", "three"))
    (gate / "open").touch()
    done = swift.run("build", GATE=str(gate))
    assert "1 of 4 runs are up to date" in done.stderr and done.stderr.count("finished after") == 3


def test_a_killed_press_leaves_no_process_and_no_lock(swift, gate, wait_for, alive):
    for slug in ("one", "two"):
        swift.notebook(slug, GATE)
    press = swift.start("build", "-j", "2", GATE=str(gate))
    wait_for(lambda: through(gate) == 2)
    processes = family(press)
    press.kill()
    press.communicate(timeout=30)
    wait_for(lambda: not any(map(alive, processes)), seconds=10)
    (gate / "open").touch()
    assert swift.run("build", GATE=str(gate)).stderr.count("finished after") == 2


def test_a_damaged_stored_run_is_named_and_run_again(swift):
    for slug in ("one", "two"):
        swift.notebook(slug, f"print('{slug}')")
    swift.run("build")
    before = book(swift)
    (path,), (other,) = stored(swift, "one"), stored(swift, "two")
    text = path.read_text()
    for damaged in ("", "\0" * 100, "{}", other.read_text(), text[: len(text) // 2]):
        path.write_text(damaged)
        assert "its stored run is damaged" in swift.run("build", "--explain").stdout
    done = swift.run("build")
    assert "its stored run is damaged" in done.stderr and path.name in done.stderr
    assert "one, quick: finished" in done.stderr and "two, quick: finished" not in done.stderr
    assert book(swift) == before


def test_a_full_disk_is_named_and_space_recovers(swift, small_disk, alive):
    swift.notebook("small", "print('small')")
    swift.notebook("large", "import time\ntime.sleep(2)\nprint(10_000_000 * 'x')")
    press = swift.start("--output", str(small_disk), "build", "-j", "2")
    out, err = press.communicate(timeout=60)
    assert press.returncode == 1 and "Traceback" not in err
    assert "disk is full" in err and "large" in err.splitlines()[-1]
    runs = [path for path in (small_disk / "runs").rglob("*") if path.is_file()]
    assert [path.parent.name for path in runs] == ["small"]
    swift.notebook("large", "print('less')")
    done = swift.run("--output", str(small_disk), "build")
    assert "1 of 2 runs are up to date" in done.stderr


def test_two_builds_at_once(swift, gate, wait_for):
    for slug in ("one", "two"):
        swift.notebook(slug, GATE)
    first = swift.start("build", GATE=str(gate))
    wait_for(lambda: through(gate) == 2)
    assert f"another build is at work in {swift.root / '_build'}" in swift.run("build", status=1).stderr
    (gate / "open").touch()
    assert first.communicate(timeout=60) and first.returncode == 0
    assert all(len(stored(swift, slug)) == 1 for slug in ("one", "two"))
    # Elsewhere, two may well.
    both = [swift.start("--output", f"out{index}", "build", GATE=str(gate)) for index in range(2)]
    assert all(press.communicate(timeout=60) and press.returncode == 0 for press in both)


def test_the_same_numbers_alone_beside_others_warm_or_not(swift):
    for index in range(3):
        swift.notebook(f"paper{index}", SEEDED.replace("NUMBER", str(index)))
    swift.run("build", "-j", "1")
    one, said = book(swift), ledger(swift)
    swift.run("build", "-j", "2", "--again")
    assert book(swift) == one and ledger(swift) == said
    swift.run("build", "-j", "3", "--again", "--only", "paper1")
    assert book(swift) == one
    # An ordinary kernel.
    swift.run("run", "paper1", "-o", "ordinary")
    outputs = nbformat.read(swift.root / "ordinary/quick.ipynb", as_version=4).cells[-1].outputs
    assert outputs == one["paper1"][-1][1]


def test_interrupted_at_random_moments_it_always_recovers_to_the_same_book(swift):
    choose = random.Random(3)
    for index in range(4):
        swift.notebook(f"paper{index}", f"import time\ntime.sleep(0.3)\nprint({index})")
    finished = 0
    for _ in range(6):
        press = swift.start("build", "-j", "2")
        time.sleep(choose.uniform(0.3, 7))
        number = choose.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        press.send_signal(number)
        _, err = press.communicate(timeout=30)
        assert press.returncode in (0, -number, 128 + number) and "Traceback" not in err, err
        # What is there is whole, and what was there stays.
        there = sum(len(stored(swift, f"paper{index}")) for index in range(4))
        assert there >= finished
        finished = there
    swift.run("build")
    recovered = book(swift)
    swift.run("--output", "fresh", "build")
    for path in sorted((swift.root / "fresh/book").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        assert recovered.pop(path.stem) == [(cell.source, cell.get("outputs")) for cell in cells]
    assert not recovered


def test_no_scheduler_at_the_address(swift):
    swift.notebook("paper")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    done = swift.run("build", "--scheduler", address, status=2)
    assert done.stderr.count("\n") <= 3 and f"--scheduler {address}: no Dask scheduler there" in done.stderr
    done = swift.run("build", "--scheduler", "nonsense://x", status=2)
    assert "--scheduler nonsense://x" in done.stderr
    assert not stored(swift, "paper")


class Cluster:
    """A scheduler and workers, started by hand."""

    def __init__(self, environment, folder):
        self.environment, self.folder = {**os.environ, **environment}, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.started = f"tcp://127.0.0.1:{self.port}", []
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", str(self.port))

    def start(self, *words):
        with open(self.folder / f"{len(self.started)}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, "--no-dashboard"], stdout=log, stderr=log, env=self.environment
            )
        self.started.append(process)
        return process

    def worker(self, *words):
        return self.start("worker", self.address, "--nthreads", "1", *words)

    def stop(self):
        found = [
            child
            for process in self.started
            if process.poll() is None
            for child in psutil.Process(process.pid).children(recursive=True)
        ]
        for process in (*self.started, *found):
            try:
                process.kill()
            except (psutil.Error, ProcessLookupError):
                continue
        for process in self.started:
            process.wait(timeout=10)


@pytest.fixture
def cluster(gate, tmp_path):
    made = Cluster({"GATE": str(gate)}, tmp_path)
    yield made
    made.stop()


def test_a_killed_worker_of_a_cluster(swift, gate, cluster, wait_for, alive):
    """Its run goes to another worker; kernels do not outlive it."""
    for slug in ("one", "two", "three"):
        swift.notebook(slug, GATE)
    workers = [cluster.worker("--no-nanny") for _ in range(2)]
    press = swift.start("build", "--scheduler", cluster.address)
    wait_for(lambda: through(gate) == 2, seconds=60)
    lost = family(workers[0])
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    wait_for(lambda: not any(map(alive, lost)), seconds=10)
    (gate / "open").touch()
    _, err = press.communicate(timeout=60)
    assert press.returncode == 0 and "Traceback" not in err and err.count("finished after") == 3, err
    assert all(len(stored(swift, slug)) == 1 for slug in ("one", "two", "three"))


def test_a_run_that_kills_its_workers_is_recorded_and_others_go_on(swift, cluster, wait_for):
    swift.notebook("fine", "print('fine')")
    # Nannies bring workers back. (The worker is the parent of the process from which kernels fork.)
    swift.notebook(
        "deadly", "import os, psutil\npsutil.Process(os.getppid()).parent().kill()\nimport time\ntime.sleep(60)"
    )
    cluster.worker()
    done = swift.run("build", "--scheduler", cluster.address, status=1)
    assert "fine, quick: finished" in done.stderr and "deadly.py: the worker died" in done.stderr
    assert stored(swift, "fine") and not stored(swift, "deadly")


def test_interrupting_a_build_on_a_cluster_ends_its_kernels_there(swift, gate, cluster, wait_for, alive):
    swift.notebook("one", GATE)
    worker = cluster.worker()
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        press = swift.start("build", "--scheduler", cluster.address)
        wait_for(lambda: through(gate) == 1, seconds=60)
        kernel = int(next(gate.glob("*.runs")).stem)
        press.send_signal(number)
        _, err = press.communicate(timeout=30)
        assert press.returncode == status and "Traceback" not in err
        wait_for(lambda kernel=kernel: not alive(kernel), seconds=15)
        next(gate.glob("*.runs")).unlink()
    # The cluster lives on.
    assert worker.poll() is None
    (gate / "open").touch()
    assert "one, quick: finished" in swift.run("build", "--scheduler", cluster.address).stderr


def test_a_scheduler_that_goes_away_is_named(swift, gate, cluster, wait_for):
    for slug in ("one", "two"):
        swift.notebook(slug, GATE)
    cluster.worker()
    press = swift.start("build", "--scheduler", cluster.address)
    wait_for(lambda: through(gate) == 1, seconds=60)
    cluster.scheduler.kill()
    _, err = press.communicate(timeout=60)
    assert press.returncode == 1 and "Traceback" not in err
    assert not stored(swift, "one") and not stored(swift, "two")
