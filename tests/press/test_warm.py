"""Kernels that fork from a warm process are like others, except for the time they take to start."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.slow

PROBE = """
import multiprocessing, os, random, sys
from pathlib import Path

import numpy as np
import torch

def about(process):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["Threads"])

print("parent", os.getppid())
print("threads of the parent", about(os.getppid()))
print("cuda", torch.cuda.is_initialized())
print("threads", torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
print("place", os.getcwd(), os.environ["MARK"], __name__, sys.executable)
print("path", sys.path)
print("arguments", sys.argv[1])
print("unseeded", np.random.rand(), torch.rand(1).item(), random.random())
print("process", multiprocessing.current_process().name, multiprocessing.get_start_method())

# %%
def double(x):
    return 2 * x

with multiprocessing.Pool(1) as pool:
    print("pool", pool.map(double, [1, 2]))

# %%
import matplotlib.pyplot as plt
plt.plot([1, 2]);
"""


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def said(path):
    """What the probe printed, by the first words."""
    text = "".join(output.get("text", "") for output in outputs(path))
    names = (
        "parent",
        "threads of the parent",
        "cuda",
        "threads",
        "place",
        "path",
        "arguments",
        "unseeded",
        "process",
        "pool",
    )
    return {
        max((name for name in names if line.startswith(name)), key=len): line
        for line in text.splitlines()
        if line.startswith(names)
    }  # fmt: skip


@pytest.fixture(scope="module")
def probed(make_tiny, swift_program):
    """The probe: in two warm kernels of one build, and in an ordinary one."""
    tiny = make_tiny("warm")
    tiny.program, tiny.fresh = swift_program, True
    for slug in ("one", "two"):
        tiny.notebook(slug, PROBE)
    environment = {"OMP_NUM_THREADS": "2", "MARK": "marked"}
    tiny.run("build", "--timeout", "9000", **environment)
    tiny.run("run", "one", "-o", "ordinary", **environment)
    paths = [next((tiny.root / "_build" / "runs" / slug).glob("*.ipynb")) for slug in ("one", "two")]
    return [*paths, tiny.root / "ordinary" / "quick.ipynb"]


def test_kernels_fork_from_one_process_without_threads_or_cuda(probed):
    one, two, _ = map(said, probed)
    assert one["parent"] == two["parent"]
    assert one["threads of the parent"] == "threads of the parent 1"
    assert one["cuda"] == "cuda False"


def test_a_warm_kernel_is_like_an_ordinary_one(probed):
    one, _, ordinary = map(said, probed)
    assert one["threads"] == "threads 2 2" and "marked" in one["place"]
    for name in ("threads", "place", "path", "arguments", "process", "pool"):
        assert one[name] == ordinary[name] and len(one[name]) > len(name), name


def test_without_a_seed_two_kernels_draw_different_numbers(probed):
    one, two, _ = (said(path)["unseeded"].split()[1:] for path in probed)
    assert not set(one) & set(two)


def test_figures_appear(probed):
    for path in probed:
        assert any("image/png" in output.get("data", {}) for output in outputs(path))


CLIENT = """
    import asyncio, os, sys, time
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    class Manager(KernelManager):
        @property
        def kernel_spec(self):
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python",
                display_name="warm", metadata={"kernel_provisioner": {"provisioner_name": "lossbook-warm"}},
            )

    def say(manager, code):
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=900)
        texts = []
        def hook(message):
            if message["msg_type"] == "stream":
                texts.append(message["content"]["text"])
        client.execute_interactive(code, timeout=900, output_hook=hook)
        client.stop_channels()
        return "".join(texts).strip()
"""


@pytest.fixture
def client(end):
    """Starts clients; those that a failed test leaves are ended."""
    started = []

    def start(code, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CLIENT) + textwrap.dedent(code)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            end(process.pid)
            process.communicate()


def test_any_jupyter_client_can_use_it_by_name(client, patience):
    process = client(
        """
        manager = Manager()
        manager.start_kernel(cwd=sys.argv[0] and "/" or "/", env={**os.environ, "MARK": "theirs"})
        print(say(manager, "import os; print(os.getcwd(), os.environ['MARK'], os.getpid(), os.getppid())"))
        print(manager.is_alive(), type(manager.provisioner).__name__)
        manager.interrupt_kernel()
        print(say(manager, "print('after an interrupt')"))
        manager.restart_kernel()
        print(say(manager, "print('after a restart', os.getpid() if 'os' in dir() else 'anew')"))
        manager.shutdown_kernel()
        print(manager.is_alive())
        """,
        MARK="ours",
    )
    out, err = process.communicate(timeout=patience)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("/ theirs ") and int(lines[0].split()[3]) != process.pid
    assert lines[1:] == ["True WarmProvisioner", "after an interrupt", "after a restart anew", "False"]


def test_all_end_with_whoever_started_them(client, alive, wait_for):
    process = client(
        """
        managers = [Manager(), Manager()]
        for manager in managers:
            manager.start_kernel()
        print(*[say(manager, "import os; print(os.getpid(), os.getppid())") for manager in managers], flush=True)
        time.sleep(10**6)
        """
    )
    kernels = [int(word) for word in process.stdout.readline().split()]
    assert len(kernels) == 4 and all(map(alive, kernels))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, kernels)))


@pytest.mark.parametrize("words", ["raise RuntimeError('broken')", "import os\nos._exit(3)"])
def test_a_preload_that_fails_still_gives_a_kernel(swift, tmp_path, words):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "seaborn.py").write_text(
        f"import sys\nif 'ipykernel_launcher' not in sys.argv[0]:\n    {words.replace(chr(10), chr(10) + '    ')}\n"
    )
    swift.notebook("paper", "print('well')")
    swift.run("build", PYTHONPATH=str(tmp_path / "broken"))
    path = next((swift.root / "_build/runs/paper").glob("*.ipynb"))
    assert [output.text for output in outputs(path)] == ["well\n"]


def test_the_death_of_the_warm_process_costs_the_runs_it_had(swift, wait_for, alive, tmp_path):
    """And the next kernels come from a new one."""
    code = "import os, time\nfrom pathlib import Path\nfile = Path(os.environ['PID_FILE'])\nfirst = not file.exists()\nfile.write_text(f'{os.getppid()}\\n')\ntime.sleep(10**6 if first else 0)"
    for slug in ("one", "two", "three"):
        swift.notebook(slug, code)
    file = tmp_path / "pid"
    press = swift.start("build", "-j", "1", PID_FILE=str(file))
    server = int(wait_for(lambda: file.exists() and file.read_text().endswith("\n") and file.read_text(), press))
    os.kill(server, signal.SIGKILL)
    err = swift.finish(press, 1).stderr
    assert err.count("failed after") == 1 and err.count("finished after") == 2 and "the kernel died" in err
    assert int(file.read_text()) != server


def test_modules_edited_since_the_warm_process_began_are_imported_anew(client, tmp_path, patience):
    """A worker of a cluster may live for days."""
    import shutil

    import lossbook

    copy = tmp_path / "lossbook"
    shutil.copytree(Path(lossbook.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    process = client(
        f"""
        ask = "import lossbook.lab.statistics as s; print(s.__file__, getattr(s, 'EDITED', 'as it was'))"
        for edit in ("", "\\nEDITED = 'as it is'\\n"):
            with open({str(copy / "lab" / "statistics.py")!r}, "a") as file:
                file.write(edit)
            manager = Manager()
            manager.start_kernel()
            print(say(manager, ask))
            manager.shutdown_kernel()
        """,
        PYTHONPATH=str(tmp_path),
    )
    out, err = process.communicate(timeout=patience)
    assert process.returncode == 0, err
    assert out.splitlines() == [f"{copy}/lab/statistics.py as it was", f"{copy}/lab/statistics.py as it is"]
