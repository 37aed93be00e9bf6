import subprocess
import sys

import pytest


def test_version_and_help(tiny):
    assert tiny.run("--version").stdout.startswith("lossbook ")
    shown = tiny.run("--help").stdout
    assert all(command in shown for command in ("list", "params", "run", "build", "serve", "ledger"))


def test_listing_loads_nothing_heavy(tiny):
    tiny.notebook("paper")
    code = (
        "import sys; sys.argv = ['lossbook', 'list']\n"
        "from lossbook.press.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'papermill', 'sphinx', 'jupytext', 'pandas', 'nbformat', 'distributed',"
        " 'jupyter_client', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.root, capture_output=True, text=True)
    assert "part_one" in done.stdout and "paper" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_no_command_loads_torch(tiny):
    tiny.notebook("paper")
    code = (
        "import sys; sys.argv = ['lossbook', 'run', 'paper']\n"
        "from lossbook.press.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False"), done.stderr


def test_params_shows_types_and_profiles(tiny):
    tiny.notebook("paper")
    shown = tiny.run("params", "paper").stdout
    assert 'Literal["plain", "fancy"]' in shown and "independent runs" in shown
    assert "smoke: 0.001" in shown and "profiles: quick, smoke" in shown


def test_the_project_is_found_from_inside_and_by_option(tiny, tmp_path):
    script = tiny.notebook("paper")
    command = [sys.executable, "-m", "lossbook.press"]
    inside = subprocess.run([*command, "list"], cwd=script.parent, capture_output=True, text=True)
    assert "paper" in inside.stdout
    outside = subprocess.run([*command, "--root", tiny.root, "list"], cwd=tmp_path, capture_output=True, text=True)
    assert "paper" in outside.stdout
    nowhere = subprocess.run([*command, "list"], cwd=tmp_path, capture_output=True, text=True)
    assert nowhere.returncode == 2 and "--root" in nowhere.stderr and "Traceback" not in nowhere.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "papr"], ["papr", "'paper'"]),
        (["params", "papr"], ["'paper'"]),
        (["build", "--only", "papr"], ["'paper'"]),
        (["run", "paper", "--profile", "smok"], ["'smoke'"]),
        (["build", "--profile", "smok"], ["'smoke'"]),
        (["run", "paper", "-p", "seed=3"], ["'seeds'"]),
        (["run", "paper", "-p", "seeds=x"], ["int"]),
        (["run", "paper", "-p", "seeds"], ["name=value"]),
        (["build", "paper"], ["--only paper"]),
        (["runn", "paper"], ["run"]),
        (["run"], ["SLUG"]),
        (["serve", "--port", "99999"], ["65535"]),
        (["run", "paper", "-o", "_config.yml"], ["_config.yml"]),
    ],
)
def test_refusals_start_nothing(tiny, arguments, words):
    tiny.notebook("paper")
    done = tiny.run(*arguments, status=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == "" and not (tiny.root / "_build").exists()


def test_an_empty_book_is_refused(tiny):
    assert "no notebook" in tiny.run("build", status=2).stderr


def test_two_papers_of_one_name_are_refused(tiny):
    tiny.notebook("paper")
    tiny.notebook("paper", part="part_two")
    assert "two notebooks are called paper" in tiny.run("list", status=2).stderr


def test_a_script_that_is_no_text_is_refused(tiny):
    tiny.notebook("paper").write_bytes(b"\xff\xfe\x00")
    assert "paper.py" in tiny.run("run", "paper", status=2).stderr


@pytest.mark.parametrize("module", ["typer", "papermill", "jupytext"])
def test_without_the_extra_the_message_says_what_to_install(tiny, module):
    tiny.notebook("paper")
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['lossbook', 'run', 'paper']\n"
        "from lossbook.press.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.root, capture_output=True, text=True)
    assert done.returncode == 1 and "lossbook[book]" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "word"), [("ledger", "lossbook build"), ("serve", "lossbook build")])
def test_before_the_first_build(tiny, command, word):
    tiny.notebook("paper")
    assert word in tiny.run(command, status=1).stderr
