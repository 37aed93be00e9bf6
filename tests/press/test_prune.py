"""Which stored runs can go, and that no other does."""

import json

import nbformat
import pytest
from rich.console import Console
from typer.testing import CliRunner

from lossbook.press.cli.main import application
from lossbook.press.errors import PressError, Refused
from lossbook.press.files import locked
from lossbook.press.findings import records
from lossbook.press.project import Project
from lossbook.press.runs import engine, notebooks, prune
from lossbook.press.runs.parameters import Parameters


@pytest.fixture
def project(tiny, monkeypatch) -> Project:
    """Its runs are made up; those of code that says `failing` fail."""

    def results(pending, options, board):
        for each in pending:
            request = each.request
            made = notebooks.lost(request.paper, request.notebook, request.settings, "broken", "")
            run = made.metadata["lossbook"]["run"]
            if "failing" not in str(made.cells):
                run["status"] = "finished"
                del run["failure"]
            yield each, made

    monkeypatch.setattr(engine, "_results", results)
    return Project(tiny.root, tiny.root / "_build")


def run(project, slug, *given, profile="quick", show=False):
    """Run it, and put it into the book as `build` does; where it is stored."""
    # (A project knows its papers from when it was looked at first.)
    project = Project(project.root, project.output)
    paper = project.paper(slug)
    script = notebooks.read_script(paper)
    wanted = engine.Request(paper, script, Parameters(paper, script).settings(profile, given))
    [outcome] = engine.carry_out(project, engine.plan(project, [wanted]), engine.Options(), Console(quiet=True))
    if show:
        notebooks.write(project.executed(paper), notebooks.with_text(outcome.executed, script))
    return engine.failed(outcome.path) if notebooks.failure_of(outcome.executed) else outcome.path


def unused(project, *recorded):
    return prune.unused(Project(project.root, project.output), recorded)


def test_runs_of_the_papers_as_they_are_stay(tiny, project):
    tiny.notebook("one", "x = 1")
    tiny.notebook("bad", "failing")
    kept = [
        run(project, "one"),
        run(project, "one", "seeds=7", "kind=fancy", "rates=[0.1, 1e-5]"),
        run(project, "one", profile="smoke"),
        run(project, "one", "rate=0.1", profile="smoke"),
        run(project, "bad"),
    ]
    assert all(path.is_file() for path in kept)
    assert unused(project) == []


def test_runs_of_what_was_edited_go(tiny, project):
    tiny.notebook("one", "x = 1")
    tiny.notebook("two", "x = 1")
    old = [run(project, "one"), run(project, "one", "seeds=7"), run(project, "one", profile="smoke")]
    tiny.notebook("one", "x = 2")
    new = run(project, "one")
    other = run(project, "two")
    assert unused(project) == sorted(old)
    prune.remove(unused(project))
    assert new.is_file() and other.is_file() and not any(path.exists() for path in old)
    assert unused(project) == []


def test_the_run_that_a_page_shows_stays(tiny, project):
    tiny.notebook("one", "x = 1")
    shown, other = run(project, "one", show=True), run(project, "one", "seeds=7")
    tiny.notebook("one", "x = 2")
    assert unused(project) == [other]
    run(project, "one", show=True)
    assert unused(project) == sorted([shown, other])


def test_the_run_that_a_record_names_stays(tiny, project):
    tiny.notebook("one", "x = 1")
    path = run(project, "one", "seeds=7")
    record = records.record(project, project.root / "records" / "one" / "quick", notebooks.read(path))
    tiny.notebook("one", "x = 2")
    assert unused(project) == [path]
    assert unused(project, record.run["key"]) == []


def test_runs_of_another_device_stay(tiny, project, monkeypatch):
    from lossbook.press.runs import device

    tiny.notebook("one", "x = 1")
    here = run(project, "one")
    monkeypatch.setattr(device, "device_of_machine", lambda: {"kind": "cuda", "name": "Card"})
    there = run(project, "one")
    assert here != there and unused(project) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("seeds: int", "seed: int"), ("smoke: {seeds: 2, rate: 1e-3}", "other: {seeds: 2}")],
)
def test_runs_with_settings_that_are_no_more_go(tiny, project, old, new):
    script = tiny.notebook("one", "x = 1")
    path = run(project, "one", "seeds=7", profile="smoke")
    text = script.read_text()
    script.write_text(text.replace(old, new).replace("smoke: {seeds", "smoke: {seed"))
    assert unused(project) == [path]


def test_runs_of_papers_that_are_gone_go_with_their_folder(tiny, project):
    script = tiny.notebook("one", "x = 1")
    tiny.notebook("two", "x = 1")
    path = run(project, "one", show=True)
    script.unlink()
    assert unused(project) == [path]
    prune.remove([path])
    assert not path.parent.exists() and path.parent.parent.exists()


def test_what_is_damaged_goes_and_what_is_no_stored_run_stays(tiny, project):
    tiny.notebook("one", "x = 1")
    path = run(project, "one")
    # As `lossbook run` writes it; a note of the user's.
    for name in ("quick.ipynb", "quick-seeds=7.ipynb", "quick.failed.ipynb", "note.txt"):
        (path.parent / name).write_text("{}")
    assert unused(project) == []
    for text in ("", "{}", "[]", "null", '{"metadata": {"lossbook": {"run": 3}}}', path.read_text()[:99]):
        path.write_text(text)
        assert unused(project) == [path], text


def test_nothing_goes_while_a_script_cannot_be_read(tiny, project):
    script = tiny.notebook("one", "x = 1")
    run(project, "one")
    script.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(Refused, match="one"):
        unused(project)


@pytest.fixture
def command(tiny):
    def invoke(*arguments):
        return CliRunner().invoke(application(), ["--root", str(tiny.root), "prune", *arguments])

    return invoke


def test_the_command(tiny, project, command):
    tiny.notebook("one", "x = 1")
    old, kept = run(project, "one"), run(project, "one", "seeds=7")
    record = records.record(project, project.root / "records" / "one" / "quick", notebooks.read(kept))
    assert json.loads((record.folder / "run.json").read_text())["key"]
    tiny.notebook("one", "x = 2")
    size = f"{old.stat().st_size:,}"
    done = command("--dry-run")
    assert done.exit_code == 0 and old.name in done.stdout and kept.name not in done.stdout
    assert f"would remove 1 stored run, {size} bytes" in done.stdout and old.is_file()
    done = command()
    assert old.name in done.stdout and f"removed 1 stored run, {size} bytes" in done.stdout
    assert kept.is_file() and not old.exists()
    assert command().stdout == "removed 0 stored runs, 0 bytes\n"


def test_the_command_waits_for_no_build_and_stops_at_a_damaged_record(tiny, project, command):
    tiny.notebook("one", "x = 1")
    run(project, "one")
    with locked(project.output):
        assert isinstance(command().exception, PressError)
    folder = project.root / "records" / "one" / "quick"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    # The run that it names is not known.
    tiny.notebook("one", "x = 2")
    assert isinstance(command().exception, PressError)


def test_a_page_takes_over_the_source_of_the_library_as_it_is(tiny, project):
    """What decides nothing, docstrings and comments, may have been edited since the run."""
    tiny.notebook("one", "x = 1")
    executed = notebooks.read(run(project, "one"))
    code = [cell for cell in executed.cells if cell.cell_type == "code"][-1]
    code.outputs = [
        nbformat.v4.new_output(
            "display_data", {"text/plain": "old", "text/markdown": "old"}, metadata={notebooks.SOURCE: name}
        )
        for name in ("made.f", "made.gone", "elsewhere.f")
    ]
    (tiny.root / "made").mkdir()
    (tiny.root / "made" / "__init__.py").write_text("@d\ndef f():\n    '''New.'''\n\n    return 1\n\n\nx = 1\n")
    from lossbook.press.runs.definitions import Library

    script = notebooks.read_script(project.paper("one"))
    shown = notebooks.with_text(executed, script, Library(tiny.root / "made"))
    found = [output.data["text/plain"] for cell in shown.cells for output in cell.get("outputs", ())]
    assert found == ["@d\ndef f():\n    '''New.'''\n\n    return 1", "old", "old"]
