import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios

import nbformat
import pytest


def read(path):
    return nbformat.read(path, as_version=4)


def printed(notebook):
    return "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))


def test_a_run_gets_its_parameters_and_is_recorded(tiny, entries_code):
    tiny.notebook("paper", entries_code + "\nprint(seeds, rate, rates, kind, full, device)")
    done = tiny.run("run", "paper", "--profile", "smoke", "-p", "rates=[1, 2]", "-p", "full=true")
    path = tiny.root / done.stdout.splitlines()[-1]
    assert path.parent == tiny.root / "_build" / "runs" / "paper"
    notebook = read(path)
    assert printed(notebook) == "2 0.001 [1.0, 2.0] plain True auto\n"
    run = notebook.metadata.lossbook.run
    assert (run.slug, run.part, run.profile, run.status) == ("paper", "part_one", "smoke", "finished")
    assert run.parameters == {
        "seeds": 2,
        "rate": 0.001,
        "rates": [1.0, 2.0],
        "kind": "plain",
        "full": True,
        "device": "auto",
    }
    # What it found is shown.
    assert "check sum" in done.stdout and "verified" in done.stdout and "0.5 [−∞, 1.5]" in done.stdout


def test_different_runs_have_different_files_and_a_folder_can_be_chosen(tiny, tmp_path):
    tiny.notebook("paper")
    for arguments in ([], ["-p", "seeds=3"]):
        tiny.run("run", "paper", "-o", str(tmp_path / "out"), *arguments)
    assert sorted(os.listdir(tmp_path / "out")) == ["quick-seeds=3.ipynb", "quick.ipynb"]


def test_the_kernel_is_this_interpreter_in_a_calm_environment(tiny, tmp_path):
    tiny.notebook(
        "paper",
        "import os, sys\nprint(sys.executable, os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY'], os.getcwd())",
    )
    # Start-up files and kernels in the user's home have no say.
    for folder, file, text in [
        (".ipython/profile_default/startup", "00.py", "print('from the home')"),
        (
            ".local/share/jupyter/kernels/python3",
            "kernel.json",
            json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}),
        ),
    ]:
        (tmp_path / "home" / folder).mkdir(parents=True)
        (tmp_path / "home" / folder / file).write_text(text)
    done = tiny.run("run", "paper", HOME=str(tmp_path / "home"), OMP_NUM_THREADS="3")
    where = tiny.root / "notebooks" / "part_one"
    assert printed(read(tiny.root / done.stdout.strip())) == f"{sys.executable} 3 passive {where}\n"


def test_a_kernel_has_one_thread_unless_more_are_asked_for(tiny, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    tiny.notebook("paper", "import os, torch\nprint(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])")
    for asked, threads in (({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)):
        done = tiny.run("run", "paper", **asked)
        assert printed(read(tiny.root / done.stdout.strip())) == f"{threads} passive\n"


def test_an_exception_is_located(tiny):
    script = tiny.notebook(
        "paper", "x = 1\n\n# %%\ndef f(x):\n    return x / 0\n\n# %%\ny = 2\n\nf(y)\n\n# %%\nprint('never')\n"
    )
    done = tiny.run("run", "paper", status=1)
    line = script.read_text().splitlines().index("f(y)") + 1
    assert f"notebooks/part_one/paper.py, line {line}, cell [5]: ZeroDivisionError: division by zero" in done.stderr
    assert "  f(y)\n" in done.stderr
    # No finished notebook; what there is says that it failed.
    assert tiny.files() == ["runs/paper/quick.failed.ipynb"]
    notebook = read(tiny.root / "_build/runs/paper/quick.failed.ipynb")
    assert notebook.metadata.lossbook.run.status == "failed" and "never" not in printed(notebook)
    # A later success takes its place.
    script.write_text(script.read_text().replace("f(y)", "y"))
    tiny.run("run", "paper")
    assert tiny.files() == ["runs/paper/quick.ipynb"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(:\n", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import os\nos._exit(7)", "the kernel died"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "the kernel died"),
    ],
)
def test_other_ways_to_stop(tiny, code, words):
    tiny.notebook("paper", code + "\n\n# %%\nprint('never')\n")
    done = tiny.run("run", "paper", status=1)
    assert words in done.stderr and "cell [3]" in done.stderr
    assert tiny.files() == ["runs/paper/quick.failed.ipynb"]


def test_entries_before_a_failure_are_kept(tiny, entries_code):
    tiny.notebook("paper", entries_code + "\n# %%\n1 / 0\n")
    assert "check sum" in tiny.run("run", "paper", status=1).stdout


def test_a_kernel_killed_from_outside(tiny, sleeping, alive):
    press, kernel = sleeping("run", "sleeper")
    os.kill(kernel, signal.SIGKILL)
    err = tiny.finish(press, 1).stderr
    assert "the kernel died" in err and "sleeper.py" in err
    assert tiny.files() == ["runs/sleeper/quick.failed.ipynb"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(tiny, sleeping, alive, number):
    press, kernel = sleeping("run", "sleeper")
    press.send_signal(number)
    assert number.name in tiny.finish(press, 128 + number).stderr
    assert not alive(kernel) and tiny.files() == []


def test_a_killed_press_takes_its_kernel_along(tiny, sleeping, alive, wait_for):
    press, kernel = sleeping("run", "sleeper")
    press.kill()
    press.communicate()
    wait_for(lambda: not alive(kernel))
    assert tiny.files() == []


def test_what_a_kernel_started_ends_with_it(tiny, alive, wait_for):
    tiny.notebook("paper", "import subprocess\nprint(subprocess.Popen(['sleep', 'infinity']).pid)")
    done = tiny.run("run", "paper")
    child = int(printed(read(tiny.root / done.stdout.strip())))
    wait_for(lambda: not alive(child))


def test_a_full_disk_is_named_and_nothing_is_taken_for_finished(tiny, small_disk):
    tiny.notebook("paper", "print(10_000_000 * 'x')")
    done = tiny.run("--output", str(small_disk), "run", "paper", status=1)
    assert "disk is full" in done.stderr and "quick.ipynb" in done.stderr
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_file_that_may_not_grow_is_named(tiny):
    tiny.notebook("paper", "print(10_000_000 * 'x')")
    limited = f"ulimit -f 2000; exec {sys.executable} -m lossbook.press run paper"
    done = subprocess.run(["bash", "-c", limited], cwd=tiny.root, capture_output=True, text=True)
    assert done.returncode == 1 and "quick.ipynb" in done.stderr and "Traceback" not in done.stderr
    assert tiny.files() == []


def test_progress_is_plain_lines_where_there_is_no_terminal(tiny):
    tiny.notebook("paper")
    lines = tiny.run("run", "paper").stderr.splitlines()
    assert (
        lines[0] == "paper, quick ..."
        and lines[-1].startswith("paper, quick: finished after")
        and "\x1b" not in "".join(lines)
    )


def test_printed_text_is_in_one_piece_as_it_stood_at_last(tiny):
    code = "import sys, time\nfor i in range(5):\n    print(f'\\r{i} of 5', end='', flush=True)\n    time.sleep(0.02)\nprint('\\nend', flush=True)"
    tiny.notebook("paper", code)
    notebook = read(tiny.root / tiny.run("run", "paper").stdout.strip())
    assert [o.text for cell in notebook.cells for o in cell.get("outputs", [])] == ["4 of 5\nend\n"]


def test_a_script_needs_no_front_matter(tiny):
    tiny.notebook("paper").write_text("# %%\nprint('bare')\n")
    assert printed(read(tiny.root / tiny.run("run", "paper").stdout.strip())) == "bare\n"
    tiny.run("build")
    assert "bare" in (tiny.root / "_build/html/part_one/paper.html").read_text()


def test_progress_is_a_bar_on_a_terminal_and_ctrl_c_leaves_it_in_order(tiny, patience):
    tiny.notebook("paper", "import time\ntime.sleep(1)\n\n# %%\nwhile True:\n    time.sleep(1)")
    leader, follower = pty.openpty()
    press = subprocess.Popen(
        [sys.executable, "-m", "lossbook.press", "run", "paper"],
        cwd=tiny.root, stderr=follower, stdin=follower, stdout=follower, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    tiny.started.append(press)
    os.close(follower)
    shown = b""
    while b"5/5 cells" not in shown and b"4/5 cells" not in shown:
        shown += os.read(leader, 4096)
    os.write(leader, b"\x03")
    with contextlib.suppress(OSError):
        while more := os.read(leader, 4096):
            shown += more
    assert press.wait(patience) == 130 and b"stopped by SIGINT" in shown and b"Traceback" not in shown
    # The cursor was hidden, and is shown again.
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    os.close(leader)


def test_a_kernel_that_does_not_start_is_named(tiny, tmp_path):
    tiny.notebook("paper")
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('no such library')")
    done = tiny.run("run", "paper", status=1, PYTHONPATH=str(tmp_path))
    assert "paper.py: the kernel did not start: ImportError: no such library" in done.stderr


def test_a_cell_may_say_that_it_raises(tiny):
    tiny.notebook(
        "paper",
        "\n# %% tags=['raises-exception']\n1 / 0\n\n# %%\nprint('after')\n".replace("'r", '"r').replace("n']", 'n"]'),
    )
    # Papermill ends such a notebook by an exception of its own; we believe the tag.
    assert printed(read(tiny.root / tiny.run("run", "paper").stdout.strip())) == "after\n"
