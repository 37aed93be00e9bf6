"""What must run, in which order it is reported, and what becomes of it."""

import contextlib
import threading

import pytest
from rich.console import Console

from lossbook.press.errors import Refused
from lossbook.press.progress import Board
from lossbook.press.project import Project
from lossbook.press.runs import engine, limits, notebooks
from lossbook.press.runs.parameters import Parameters


@pytest.fixture
def project(tiny):
    return Project(tiny.root, tiny.root / "_build")


@pytest.fixture
def silent():
    return Console(quiet=True)


def request(project, slug, *given):
    paper = project.paper(slug)
    script = notebooks.read_script(paper)
    return engine.Request(paper, script, Parameters(paper, script).settings("quick", given))


def executed(each, failure=""):
    """What a run of it could have given."""
    made = notebooks.lost(each.request.paper, each.request.notebook, each.request.settings, failure, "")
    run = made.metadata["lossbook"]["run"]
    if not failure:
        run["status"] = "finished"
        del run["failure"]
    return made


@pytest.fixture
def ran(monkeypatch):
    """Runs are made up; those called `bad` fail. Gives their names, as they are run."""
    names = []

    def results(pending, options, board):
        for each in pending:
            names.append(each.request.name)
            yield each, executed(each, "broken" if each.request.paper.slug == "bad" else "")

    monkeypatch.setattr(engine, "_results", results)
    return names


def test_what_is_wanted_twice_runs_once_and_outcomes_keep_the_order(tiny, project, silent, ran):
    for slug in ("one", "two"):
        tiny.notebook(slug)
    wanted = [
        request(project, slug, *given) for slug, given in (("two", ()), ("one", ()), ("two", ("seeds=3",)), ("two", ()))
    ]
    outcomes = engine.carry_out(project, engine.plan(project, wanted), engine.Options(), silent)
    assert [outcome.request.name for outcome in outcomes] == [each.name for each in wanted]
    assert outcomes[3].path == outcomes[0].path
    assert sorted(ran) == ["one, quick", "two, quick", "two, quick-seeds=3"] and all(
        outcome.ran for outcome in outcomes
    )
    ran.clear()
    plans = engine.plan(project, wanted)
    assert not ran and not any(plan.reason for plan in plans)
    assert not any(outcome.ran for outcome in engine.carry_out(project, plans, engine.Options(), silent)) and not ran
    assert {plan.reason for plan in engine.plan(project, wanted, again=True)} == {"asked to run again"}


def test_a_failed_run_is_kept_apart_until_it_succeeds(tiny, project, silent, ran, monkeypatch):
    tiny.notebook("bad")
    (plan,) = plans = engine.plan(project, [request(project, "bad")])
    assert plan.reason == "it was never run"
    (outcome,) = engine.carry_out(project, plans, engine.Options(), silent)
    assert notebooks.failure_of(outcome.executed).error == "broken"
    assert engine.failed(plan.path).is_file() and not plan.path.exists()
    (plan,) = plans = engine.plan(project, [request(project, "bad")])
    assert plan.reason == "it failed the last time"
    monkeypatch.setattr(
        engine, "_results", lambda pending, *rest: (item for item in [(pending[0], executed(pending[0]))])
    )
    engine.carry_out(project, plans, engine.Options(), silent)
    assert plan.path.is_file() and not engine.failed(plan.path).exists()


def test_the_reason_compares_with_the_newest_run_of_the_same_settings(tiny, project, silent, ran):
    tiny.notebook("one", "x = 1")
    engine.carry_out(project, engine.plan(project, [request(project, "one")]), engine.Options(), silent)
    assert engine.plan(project, [request(project, "one", "seeds=3")])[0].reason == "it was never run"
    script = tiny.notebook("one", "x = 2")
    assert engine.plan(project, [request(project, "one")])[0].reason == "code changed"
    script.write_text(script.read_text().replace("seeds: int = 5", "seeds: int = 6"))
    assert engine.plan(project, [request(project, "one")])[0].reason == "code, parameters changed"


def test_what_cannot_be_written_ends_the_others(tiny, project, silent, monkeypatch):
    tiny.notebook("one")
    ended = []

    def results(pending, options, board):
        try:
            yield pending[0], executed(pending[0])
        finally:
            ended.append(True)

    def full(path, notebook):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(engine, "_results", results)
    monkeypatch.setattr(notebooks, "write", full)
    try:
        engine.carry_out(project, engine.plan(project, [request(project, "one")]), engine.Options(), silent)
    except OSError:
        # While the exception is looked at, not when it is forgotten.
        assert ended
    else:
        raise AssertionError("nothing was raised")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(Refused, match="nonsense"), contextlib.ExitStack() as stack:
        stack.enter_context(engine._client(engine.Options(scheduler="nonsense://x"), []))


class Starting:
    """A kernel that can only be killed the third time."""

    def __init__(self):
        self.killed, self.tried = threading.Event(), 0

    def kill(self):
        self.tried += 1
        if self.tried == 3:
            self.killed.set()

    def memory(self):
        return 10


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (limits.Limits(timeout=0.1), "its limit of 0.1 s"),
        (limits.Limits(memory=1), "its limit of memory"),
        (limits.Limits(unwanted=lambda: "nobody wants it"), "nobody wants it"),
    ],
)
def test_a_guard_ends_even_a_kernel_that_is_only_starting(given, words, patience):
    kernel = Starting()
    watching = limits.Guard([kernel], given)
    assert kernel.killed.wait(patience) and words in watching.reason
    watching.dismiss()


def test_the_time_that_is_left():
    with Board(Console(quiet=True), [("a", 10.0), ("b", 20.0), ("c", None)], 2) as board:
        # What is not known is taken for usual: 15 s.
        assert board.expected("c") == 15 and board.left() == pytest.approx(22.5)
        board.report("b", 0, 0)
        board.report("a", 0, 0)
        for name in ("a", "b"):
            board.finished(name, {"status": "finished", "seconds": 1.0})
        board.report("a", 1, 2)
        assert board.left() == 15
    with Board(Console(quiet=True), [("a", None)], 1) as board:
        assert board.left() is None
