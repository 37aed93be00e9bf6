"""Runs worth keeping, and two runs side by side."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lossbook.press.cli.console import notes, quote, show, show_entries, table, writable
from lossbook.press.cli.options import (
    MemoryOption,
    ParameterOption,
    ProfileOption,
    SchedulerOption,
    Slug,
    TimeoutOption,
    app,
    engine_options,
)
from lossbook.press.errors import PressError
from lossbook.press.project import Project


@app.command()
def record(
    context: typer.Context,
    slug: Slug,
    profile: ProfileOption = "full",
    parameters: ParameterOption = None,
    scheduler: SchedulerOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
) -> None:
    """Run a notebook, unless that was done, and keep what it found under records/."""
    from lossbook.press.findings import ledgers, records
    from lossbook.press.runs import engine, notebooks
    from lossbook.press.runs.parameters import Parameters

    project: Project = context.obj.project
    paper = project.paper(slug)
    notebook = notebooks.read_script(paper)
    settings = Parameters(paper, notebook).settings(profile, parameters or ())
    writable(project.root / "records" / slug)
    plans = engine.plan(project, [engine.Request(paper, notebook, settings)])
    [outcome] = engine.carry_out(project, plans, engine_options(1, scheduler, timeout, memory), notes)
    executed = outcome.executed
    show_entries(ledgers.of(executed))
    if failure := notebooks.failure_of(executed):
        raise PressError(f"{failure.describe(paper)}\n{quote(failure)}nothing is recorded of a run that failed")
    device = executed.metadata["lossbook"]["run"]["device"]
    folder = records.place(project, slug, settings.name, device)
    records.record(project, folder, executed)
    if not outcome.ran:
        notes.print("this run was stored; it was not made again")
    typer.echo(project.short(folder))


@app.command()
def compare(
    context: typer.Context,
    left: Annotated[
        str, typer.Argument(metavar="RUN", help="An executed notebook, a record's folder, or a paper in the book.")
    ],
    right: Annotated[str, typer.Argument(metavar="RUN", help="Another.")],
) -> None:
    """Show two runs side by side."""
    from lossbook.press.files import write_whole
    from lossbook.press.findings import compare as comparing
    from lossbook.press.pages import comparison

    project: Project = context.obj.project
    one, other = comparing.pair(project, left, right)
    if rows := comparing.entry_rows(one, other):
        _show_rows(rows, "entry", one.name, other.name, "change")
    else:
        notes.print("neither run has an entry")
    if rows := comparing.setting_rows(one, other):
        typer.echo()
        _show_rows(rows, "made with", one.name, other.name)
    path = project.output / "compare" / f"{comparing.name_of(one, other)}.html"
    write_whole(path, comparison.page(one, other))
    typer.echo(project.short(path))


def _show_rows(rows: Sequence[Any], *columns: str) -> None:
    shown = table(*columns)
    for row in rows:
        shown.add_row(*(row.name, row.left, row.right, row.change)[: len(columns)])
    show(shown)
