"""Whatever happens to one run costs that run alone, and leaves nothing behind."""

import json
import os
import random
import re
import signal
import socket
import time

import nbformat
import psutil
import pytest
import starter

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


AFTER = """
import time
from pathlib import Path
while not list(Path(folder).glob("*.ipynb")):
    time.sleep(0.05)
print(10_000_000 * "x")
"""

# Says that it has begun, once it can be stopped in good order.
BEGUN = """
import os
from pathlib import Path
from lossbook.press.cli import main as command
from lossbook.press.site import check, render

def application(made=command.application):
    Path(os.environ["BEGUN"]).touch()
    return made()

render.render = lambda project, source, jobs: None
check.check = lambda project: []
command.application = application
command.main()
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
def gate(tmp_path, alive):
    folder = tmp_path / "gate"
    folder.mkdir()
    yield folder
    for kernel in filter(alive, (int(path.stem) for path in folder.glob("*.runs"))):
        os.kill(kernel, signal.SIGKILL)


def test_each_failure_costs_itself_alone_and_the_next_build_resumes_there(tiny):
    fine = "print('fine')"
    broken = {
        "raises": ("x = 1\n\n# %%\n1 / 0", "cell [4]: ZeroDivisionError: division by zero"),
        # Perhaps before its kernel has started, if the machine is busy.
        "hangs": ("while True:\n    pass", "it was stopped at its limit of 2 s"),
        "grows": (
            "held = b'x' * (500 * 2**20)\nwhile True:\n    pass",
            "cell [3]: the run was ended: it was stopped at its limit of memory: ",
        ),
        "killed": ("import os\nos.kill(os.getpid(), 9)", "cell [3]: the kernel died"),
    }
    tiny.notebook("fine", fine)
    for slug, (code, _) in broken.items():
        tiny.notebook(slug, code)
    limits = ("--memory", "300MB", "-j", "2")
    # The limit is of this one alone, since others take longer on a busy machine.
    hangs = tiny.swiftly("build", "--only", "hangs", "--timeout", "2", status=1)
    done = tiny.run("build", *limits, "--only", "fine", "raises", "grows", "killed", status=1)
    for slug, (_, message) in broken.items():
        assert message in (hangs if slug == "hangs" else done).stderr, slug
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
    wait_for(lambda: through(gate) == 2, press)
    processes = family(press)
    # Two kernels, the process they fork from, and the tracker of the standard library.
    assert len(processes) >= 4
    press.send_signal(number)
    assert number.name in swift.finish(press, 128 + number).stderr
    wait_for(lambda: not any(map(alive, processes)))
    assert stored(swift, "quick") and not any(stored(swift, slug) for slug in ("one", "two", "three"))
    (gate / "open").touch()
    done = swift.run("build", GATE=str(gate))
    assert "1 of 4 runs are up to date" in done.stderr and done.stderr.count("finished after") == 3


def test_a_killed_press_leaves_no_process_and_no_lock(swift, gate, wait_for, alive):
    for slug in ("one", "two"):
        swift.notebook(slug, GATE)
    press = swift.start("build", "-j", "2", GATE=str(gate))
    wait_for(lambda: through(gate) == 2, press)
    processes = family(press)
    press.kill()
    swift.finish(press, -signal.SIGKILL)
    wait_for(lambda: not any(map(alive, processes)))
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
    # Once the other has its place.
    swift.notebook("large", f"folder = {str(small_disk / 'runs' / 'small')!r}" + AFTER)
    err = swift.run("--output", str(small_disk), "build", "-j", "2", status=1).stderr
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
    wait_for(lambda: through(gate) == 2, first)
    assert f"another build is at work in {swift.root / '_build'}" in swift.run("build", status=1).stderr
    (gate / "open").touch()
    swift.finish(first, 0)
    assert all(len(stored(swift, slug)) == 1 for slug in ("one", "two"))
    # Elsewhere, two may well.
    both = [swift.start("--output", f"out{index}", "build", GATE=str(gate)) for index in range(2)]
    for press in both:
        swift.finish(press, 0)


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


def test_interrupted_at_random_moments_it_always_recovers_to_the_same_book(
    swift, swift_program, wait_for, patience, tmp_path
):
    choose = random.Random(3)
    for index in range(4):
        swift.notebook(f"paper{index}", f"import time\ntime.sleep(0.3)\nprint({index})")
    finished = 0
    for _ in range(6):
        begun = tmp_path / "begun"
        swift.program = ("-c", BEGUN)
        press = swift.start("build", "-j", "2", BEGUN=str(begun))
        wait_for(begun.exists, press)
        begun.unlink()
        time.sleep(choose.uniform(0, 3))
        number = choose.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        press.send_signal(number)
        _, err = press.communicate(timeout=patience)
        assert press.returncode in (0, -number, 128 + number) and "Traceback" not in err, err
        # What is there is whole, and what was there stays.
        there = sum(len(stored(swift, f"paper{index}")) for index in range(4))
        assert there >= finished
        finished = there
    swift.program = swift_program
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
    swift.program = ("-c", "from lossbook.press.runs import engine\nengine.PATIENCE = 1\n" + swift.program[1])
    done = swift.run("build", "--scheduler", address, status=2)
    assert done.stderr.count("\n") <= 3 and f"--scheduler {address}: no Dask scheduler there" in done.stderr
    done = swift.run("build", "--scheduler", "nonsense://x", status=2)
    assert "--scheduler nonsense://x" in done.stderr
    assert not stored(swift, "paper")


DASK = """
import os
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT)
for stream in (1, 2):
    os.dup2(log, stream)
import dask
from dask.__main__ import main
# Deaths of workers that a run may cause.
dask.config.set({{"distributed.scheduler.allowed-failures": 1}})
main()
"""


class Cluster:
    """A scheduler and workers, started by hand."""

    def __init__(self, environment, folder, end):
        self.environment, self.folder, self.end = {**os.environ, **environment}, folder, end
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.started = f"tcp://127.0.0.1:{self.port}", []
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", str(self.port))

    def start(self, *words):
        code = DASK.format(log=str(self.folder / f"{len(self.started)}.log"))
        process = starter.python(code, *words, "--no-dashboard", cwd=self.folder, env=self.environment, warm=True)
        self.started.append(process)
        return process

    def worker(self, *words):
        return self.start("worker", self.address, "--nthreads", "1", *words)

    def stop(self):
        for process in self.started:
            if process.poll() is None:
                self.end(process.pid)
                process.wait()


@pytest.fixture
def cluster(gate, tmp_path, end):
    made = Cluster({"GATE": str(gate)}, tmp_path, end)
    yield made
    made.stop()


def test_a_killed_worker_of_a_cluster(swift, gate, cluster, wait_for, alive):
    """Its run goes to another worker; kernels do not outlive it."""
    for slug in ("one", "two", "three"):
        swift.notebook(slug, GATE)
    workers = [cluster.worker("--no-nanny") for _ in range(2)]
    press = swift.start("build", "--scheduler", cluster.address)
    wait_for(lambda: through(gate) == 2, press)
    lost = family(workers[0])
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    wait_for(lambda: not any(map(alive, lost)))
    (gate / "open").touch()
    assert swift.finish(press, 0).stderr.count("finished after") == 3
    assert all(len(stored(swift, slug)) == 1 for slug in ("one", "two", "three"))


def test_a_run_that_kills_its_workers_is_recorded_and_others_go_on(swift, cluster, wait_for):
    swift.notebook("fine", "print('fine')")
    # Nannies bring workers back. (The worker is the parent of the process from which kernels fork.)
    swift.notebook("deadly", "import os, psutil\npsutil.Process(os.getppid()).parent().kill()\nwhile True:\n    pass")
    cluster.worker()
    done = swift.run("build", "--scheduler", cluster.address, status=1)
    assert "fine, quick: finished" in done.stderr and "deadly.py: the worker died" in done.stderr
    assert stored(swift, "fine") and not stored(swift, "deadly")


def test_interrupting_a_build_on_a_cluster_ends_its_kernels_there(swift, gate, cluster, wait_for, alive):
    swift.notebook("one", GATE)
    worker = cluster.worker()
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        press = swift.start("build", "--scheduler", cluster.address)
        wait_for(lambda: through(gate) == 1, press)
        kernel = int(next(gate.glob("*.runs")).stem)
        press.send_signal(number)
        swift.finish(press, status)
        wait_for(lambda kernel=kernel: not alive(kernel))
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
    wait_for(lambda: through(gate) == 1, press)
    cluster.scheduler.kill()
    swift.finish(press, 1)
    assert not stored(swift, "one") and not stored(swift, "two")
