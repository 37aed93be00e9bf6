"""What hand-written pages tell people to type: Python runs and prints what the page says, commands are understood."""

import contextlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_metric_learning.losses
import pytorch_metric_learning.utils.distributed
import torch
import typer

from lossbook import methods
from lossbook.press.cli.main import application
from lossbook.press.errors import Refused
from lossbook.press.project import DEFAULT_PROFILE, Project
from lossbook.press.runs import grids, notebooks
from lossbook.press.runs.parameters import Parameters

ROOT = Path(__file__).parents[1]
PROJECT = Project.find(ROOT, None)
COMMANDS = typer.main.get_command(application()).commands
FILES = [*sorted((ROOT / "book").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
# A block to run is opened by its language alone; one only to be shown by {code-block}.
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```\{code-block\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What else the pages call.
PROGRAMS = {"dask", "make", "pip", "python", "source"}


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block, flush left."""
    return [(language, re.sub(f"^{indent}", "", code, flags=re.M)) for indent, language, code in FENCE.findall(text)]


def commands(text: str) -> list[list[str]]:
    """The arguments of every call of `lossbook`: in blocks, in indented lines, within sentences."""
    lines = [line for language, code in blocks(text) if language == "sh" for line in code.splitlines()]
    lines += re.findall(r"^    (\S*lossbook \S.*)$", text, re.MULTILINE)
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "lossbook":
            found.append([word for word in words[1:] if word != "&"])
        else:
            assert not words or Path(words[0]).name in PROGRAMS, line
    # `lossbook sweep` in a sentence is a name; with arguments it is a command, unless it has <gaps>.
    inline = re.findall(r"`lossbook ([^`<\n]+)`", text)
    return found + [shlex.split(code) for code in inline]


def understand(words: list[str]) -> None:
    """Do all that the command does before it starts anything.

    Raises:
        Exception: if it would refuse.
    """
    name, *arguments = words
    if name == "--help" or arguments == ["--help"]:
        assert name == "--help" or name in COMMANDS
        return
    given = COMMANDS[name].make_context(name, arguments).params
    for side in filter(None, (given.get("left"), given.get("right"))):
        built = re.fullmatch(r"_build/runs/(\w+)/(\w+)\.ipynb", side)
        if built:
            assert built[2] in parameters(built[1]).profiles, side
        else:
            assert side in PROJECT.papers or (ROOT / side / "run.json").is_file(), side
    for slug in [*filter(None, [given.get("slug")]), *(given.get("only") or ())]:
        profile, values = given.get("profile", DEFAULT_PROFILE), given.get("parameters") or ()
        if name == "sweep":
            grids.grid(parameters(slug), profile, values, given["zipped"] or ())
        else:
            parameters(slug).settings(profile, values)


@cache
def parameters(slug: str) -> Parameters:
    paper = PROJECT.paper(slug)
    return Parameters(paper, notebooks.read_script(paper))


CALLS = sorted({(name, shlex.join(words)) for name, text in PAGES.items() for words in commands(text)})


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{Path(page).stem}: {call}" for page, call in CALLS])
def test_a_command_is_understood(page, call):
    words = shlex.split(call)
    if len(words) > 1 or f"`lossbook {call}`" not in PAGES[page]:
        understand(words)
    else:
        assert words[0] in COMMANDS or words == ["--help"]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("build --explian", "No such option"),
        ("run temperature_free_infonce -p temprature=1", "unknown parameter"),
        ("run temperature_free_infonce --profile large", "unknown profile"),
        ("sweep temperature_free_infonce -p epochs=many,2", "expected int"),
        ("record infonce", "infonce"),
        ("build --only temperature", "temperature"),
    ],
)
def test_a_command_that_is_wrong_would_be_found(call, complaint):
    with pytest.raises((Refused, typer._click.exceptions.UsageError), match=complaint):
        understand(shlex.split(call))


# Its compiled functions want the library as users have it, without the tests' checker of annotations.
TRAINING = "book/howto/training.md"
WITH_PYTHON = [name for name, text in PAGES.items() if any(language == "python" for language, _ in blocks(text))]


@pytest.mark.parametrize("page", [name for name in WITH_PYTHON if name.startswith("book/") and name != TRAINING])
def test_python_on_a_page_runs_and_prints_what_the_page_says(page):
    names: dict = {}
    with torch.random.fork_rng():
        for (language, code), (following, expected) in pairwise([*blocks(PAGES[page]), ("", "")]):
            if language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(code, page, "exec"), names)
                shown, lines = out.getvalue().splitlines(), expected.splitlines() if following == "text" else []
                # A page may leave out the beginning, such as the ledger's boxes.
                assert shown[len(shown) - len(lines) :] == lines


def printed(*arguments: str) -> list[str]:
    """What Python prints, in a process of its own."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_training_scripts_run_and_print_what_the_page_says(tmp_path):
    script = tmp_path / "page.py"
    script.write_text("".join(code for language, code in blocks(PAGES[TRAINING]) if language == "python"))
    expected = "".join(code for language, code in blocks(PAGES[TRAINING]) if language == "text")
    assert printed(str(script)) == expected.splitlines()


def test_two_processes_train_like_one(tmp_path):
    [(code, expected)] = [
        (code, text) for (_, code), (_, text) in pairwise(blocks(PAGES[TRAINING])) if code.startswith("# train.py\n")
    ]
    script = tmp_path / "train.py"
    # Threads of Gloo may wait for each other for ever when Python takes them down.
    script.write_text(f"{code}\nimport sys\nsys.stdout.flush()\nif several:\n    dist.barrier()\n    os._exit(0)\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert printed(*launcher, str(script)) == expected.splitlines()


def test_names_for_those_who_come_from_elsewhere_exist():
    text = PAGES[TRAINING]
    # By library, rows of what it says and what is said here.
    tables = {
        name: [row.strip("| ").split(" | ") for row in rows.splitlines()[1:]]
        for name, rows in re.findall(r"^\| ([\w-]+) \| Here \|\n((?:\|.*\n)+)", text, re.MULTILINE)
    }
    assert {*tables} == {"pytorch-metric-learning", "lightly", "solo-learn"}
    here = {call for rows in tables.values() for _, ours in rows for call in re.findall(r"`(\w+)\((.*?)\)`", ours)}
    assert len(here) >= 10
    homes = [methods.contrastive, methods.queues, methods.distributed]
    for name, arguments in here:
        [found] = [getattr(home, name) for home in homes if name in home.__all__]
        signature = inspect.signature(found).parameters
        keywords = re.findall(r"(\w+)=", arguments)
        positional = [each for each in arguments.split(", ") if "=" not in each]
        assert {*keywords} <= {*signature} and len(positional) <= len(signature), name
        if "temperature" in signature:
            assert signature["temperature"].default == 0.1 and "here it is 0.1" in text, name
    numbers = re.findall(
        r"(NTXentLoss|SupConLoss)\(\)[^`]*`, ([\d.]+)", "\n".join(row[0] for row in tables["pytorch-metric-learning"])
    )
    assert len(numbers) == 3
    for name, number in numbers:
        assert getattr(pytorch_metric_learning.losses, name)().temperature == float(number)
    calls = [name for theirs, _ in tables["pytorch-metric-learning"] for name in re.findall(r"([A-Z]\w+)\(", theirs)]
    assert len(calls) >= 7
    for name in calls:
        assert hasattr(pytorch_metric_learning.losses, name) or hasattr(pytorch_metric_learning.utils.distributed, name)


def test_pages_have_the_examples_that_they_promise():
    assert {"book/howto/library.md", "book/howto/statistics.md", "book/howto/add_a_paper.md"} <= set(WITH_PYTHON)
    headings = re.findall(r"^## `(\w+)`$", PAGES["book/howto/library.md"], re.MULTILINE)
    assert sorted(headings) == sorted(methods.__all__), (
        "book/howto/library.md: one example for each part or shared module"
    )


def test_python_that_is_only_shown_is_python():
    shown = [code for text in PAGES.values() for code in SHOWN.findall(text)]
    assert shown
    for code in shown:
        compile(code, "<page>", "exec")


def test_every_howto_page_is_in_the_index():
    pages = {path.name for path in (ROOT / "book/howto").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", PAGES["book/howto/index.md"])) == pages
