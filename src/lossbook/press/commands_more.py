"""More of the command line: grids of runs, recorded runs, two runs side by side, and the links of the site."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lossbook.press.commands import (
    JobsOption,
    MemoryOption,
    ProfileOption,
    SchedulerOption,
    Slug,
    TimeoutOption,
    app,
    engine_options,
)
from lossbook.press.errors import PressError, Refused, unknown
from lossbook.press.project import DEFAULT_PROFILE, Project
from lossbook.press.shown import notes, quote, show, show_entries, table, writable

if TYPE_CHECKING:
    import pandas as pd

    from lossbook.press.engine import Outcome, Plan
    from lossbook.press.parameters import Parameters
    from lossbook.press.sweeps import Grid

# Rows of a grid, and rows and columns of its summary, that are shown.
ROWS, SUMMARY, MEANS = 10, 40, 6


@app.command()
def sweep(
    context: typer.Context,
    slug: Slug,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUES",
            help="Values of a parameter: 0.1,0.5 or, for integers, 0:5. May be repeated: every combination is run.",
        ),
    ] = None,
    zipped: Annotated[
        list[str] | None,
        typer.Option("--zip", metavar="NAME,NAME", help="Parameters whose values go together, not crossed."),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the grid and how long it may take.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--directory", "-o", metavar="DIR", help="Where tables and figures go, if not _build/sweeps."),
    ] = None,
    plots: Annotated[
        list[str] | None,
        typer.Option(
            "--plot",
            metavar="RESULT[:PARAMETER]",
            help="A figure of a result's column, or of claim.ID; otherwise one of every claim's effect.",
        ),
    ] = None,
) -> None:
    """Run a notebook over a grid of parameters and gather what was found."""
    from lossbook.press import engine, runs, sweeps, tables
    from lossbook.press.parameters import Parameters

    project: Project = context.obj.project
    paper = project.paper(slug)
    notebook = runs.read_script(paper)
    known = Parameters(paper, notebook)
    grid = sweeps.grid(known, profile, parameters or (), zipped or ())
    wanted = [_figure(text, grid) for text in plots or ()]
    options = engine_options(jobs, scheduler, timeout, memory)
    plans = engine.plan(project, [engine.Request(paper, notebook, settings) for settings in grid.settings])
    missing = [plan for plan in plans if plan.reason]
    if dry_run:
        _show_grid(grid, plans)
        typer.echo(f"{_runs(len(plans))}, {len(plans) - len(missing)} of them stored")
        typer.echo(sweeps.estimate(project, paper, profile, len(missing), options.jobs))
        return
    where = folder or project.output / "sweeps" / slug / grid.name
    writable(where)
    outcomes = engine.carry_out(project, plans, options, notes)
    failures = [(each, failure) for each in outcomes if (failure := runs.failure_of(each.executed))]
    failed = {id(each) for each, _ in failures}
    finished = [each for each in outcomes if id(each) not in failed]
    results, ledger = tables.gather([(each.path.stem, each.executed) for each in finished], list(grid.values))
    written = tables.write(where, "results", results) + tables.write(where, "ledger", ledger)
    if finished and results.empty:
        notes.print(f"{slug} records no table of results: its notebook does not call lab.record", markup=False)
    _show_summary(grid, outcomes, failed, results, ledger)
    complaints = _draw(where, wanted or _default_figures(grid, known, ledger), known, results, ledger, written)
    for path in written:
        typer.echo(project.short(path))
    ran = sum(each.ran for each in outcomes)
    notes.print(f"{_runs(len(outcomes))}: {ran} made now, {len(outcomes) - ran} stored before, {len(failures)} failed")
    if failures:
        told = [f"{each.request.settings.name}: {failure.describe(paper)}" for each, failure in failures]
        complaints.insert(
            0,
            f"{_runs(len(failures))} of {len(outcomes)} failed; the same command runs only what is missing:\n"
            + "\n".join(f"  {text}" for text in told),
        )
    if complaints:
        raise PressError("\n".join(complaints))


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def _figure(text: str, grid: "Grid") -> tuple[str, list[str]]:
    """What is to be drawn against which parameters."""
    result, colon, parameter = text.rpartition(":")
    if not colon:
        result, chosen = text, grid.varying
        if not chosen:
            raise Refused(f"--plot {text}: no parameter has several values")
    elif parameter not in grid.values:
        raise Refused(f"--plot {text}: {unknown('swept parameter', parameter, grid.values)}")
    else:
        chosen = [parameter]
    if not result:
        raise Refused(f"--plot {text}: expected RESULT or RESULT:PARAMETER")
    return result, chosen


def _default_figures(grid: "Grid", known: "Parameters", ledger: "pd.DataFrame") -> list[tuple[str, list[str]]]:
    """Every claim's effect against every number that was swept."""
    numbers = [name for name in grid.varying if known[name].annotation in ("int", "float")]
    claims = ledger.loc[ledger["kind"] == "claim", "id"].unique()
    return [(f"claim.{id}", numbers) for id in claims]


def _draw(
    where: Path,
    wanted: Sequence[tuple[str, list[str]]],
    known: "Parameters",
    results: "pd.DataFrame",
    ledger: "pd.DataFrame",
    written: list[Path],
) -> list[str]:
    """Draw what is wanted, and say what cannot be drawn."""
    from lossbook.press import figures
    from lossbook.press.files import write_whole

    complaints = []
    if ledger.empty and results.empty:
        return complaints
    for name, chosen in wanted:
        try:
            quantity = figures.find(name, results, ledger)
        except PressError as error:
            complaints.append(str(error))
            continue
        if quantity.rows.empty:
            notes.print(f"{name} has no value in any run, and is not drawn", markup=False)
            continue
        for parameter in chosen:
            comment = known[parameter].comment
            label = f"{parameter}: {comment}" if comment else parameter
            title = f"{quantity.label} by {parameter}, {known.paper.slug}"
            path = where / f"{re.sub('[^A-Za-z0-9_.=+-]+', '_', name)}-by-{parameter}.svg"
            write_whole(path, figures.draw(quantity, parameter, label=label, title=title))
            written.append(path)
    return complaints


def _show_grid(grid: "Grid", plans: Sequence["Plan"]) -> None:
    shown = table(*grid.values, "stored")
    for plan in plans[:ROWS]:
        stored = f"no: {plan.reason}" if plan.reason else "yes"
        shown.add_row(*(str(plan.request.settings.given[name]) for name in grid.values), stored)
    if len(plans) > ROWS:
        shown.add_row(f"... {len(plans) - ROWS} more")
    show(shown)


def _show_summary(
    grid: "Grid",
    outcomes: Sequence["Outcome"],
    failed: set[int],
    results: "pd.DataFrame",
    ledger: "pd.DataFrame",
) -> None:
    from lossbook.press import tables

    names = grid.varying or list(grid.values)
    verdicts, means = tables.verdicts(ledger), tables.means(results)
    quantities = list(means)[:MEANS]
    shown = table(*names, "verdicts", *(f"mean {name}" for name in quantities))
    shown.columns[len(names)].no_wrap = True
    for each in outcomes[:SUMMARY]:
        run = each.path.stem
        said = "failed" if id(each) in failed else verdicts.get(run, "no entries")
        numbers = [
            f"{value:.4g}" if (value := means[name].get(run)) == value and value is not None else ""
            for name in quantities
        ]
        shown.add_row(*(str(each.request.settings.given[name]) for name in names), said, *numbers)
    show(shown)
    for number, what in ((len(outcomes) - SUMMARY, "runs"), (len(means) - MEANS, "results")):
        if number > 0:
            notes.print(f"{number} more {what} are in the tables")


@app.command()
def record(
    context: typer.Context,
    slug: Slug,
    profile: ProfileOption = "full",
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter's value, as YAML.")
    ] = None,
    scheduler: SchedulerOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
) -> None:
    """Run a notebook, unless that was done, and keep what it found under records/."""
    from lossbook.press import engine, entries, records, runs
    from lossbook.press.parameters import Parameters

    project: Project = context.obj.project
    paper = project.paper(slug)
    notebook = runs.read_script(paper)
    settings = Parameters(paper, notebook).settings(profile, parameters or ())
    writable(project.root / "records" / slug)
    plans = engine.plan(project, [engine.Request(paper, notebook, settings)])
    [outcome] = engine.carry_out(project, plans, engine_options(1, scheduler, timeout, memory), notes)
    executed = outcome.executed
    show_entries(entries.of(executed))
    if failure := runs.failure_of(executed):
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
    from lossbook.press import compare as comparing
    from lossbook.press.files import write_whole

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
    write_whole(path, comparing.page(one, other))
    typer.echo(project.short(path))


def _show_rows(rows: Sequence[Any], *columns: str) -> None:
    shown = table(*columns)
    for row in rows:
        shown.add_row(*(row.name, row.left, row.right, row.change)[: len(columns)])
    show(shown)


@app.command()
def links(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Visit them, which needs a network, and name the dead.")
    ] = False,
) -> None:
    """List the links of the built site that lead elsewhere."""
    from lossbook.press import links as linking
    from lossbook.press.progress import track

    found = linking.external(context.obj.project.site)
    if not check:
        shown = table("address", "places", "first page")
        for link in found:
            shown.add_row(Text(link.address), str(link.places), link.page)
        show(shown)
        return
    with track(notes, f"visiting {len(found)} links", unit="pages") as report:
        answers = linking.check([link.address for link in found], report)
    if found and all(answer.state == "unreached" for answer in answers.values()):
        raise PressError(
            f"none of {len(found)} links could be reached ({answers[found[0].address].detail}): "
            "there is no network, and nothing is known about them"
        )
    shown = table("address", "state", "answer", "places", "first page")
    for link in found:
        answer = answers[link.address]
        shown.add_row(Text(link.address), answer.state, Text(answer.detail), str(link.places), link.page)
    show(shown)
    dead = [link for link in found if answers[link.address].state in ("dead", "unreached")]
    if dead:
        raise PressError(
            f"{len(dead)} of {len(found)} links are dead:\n"
            + "\n".join(f"  {link.address} on {link.page}: {answers[link.address].detail}" for link in dead)
        )
