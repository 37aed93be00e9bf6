"""A grid of runs of one notebook."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lossbook.press.cli.console import notes, show, table, writable
from lossbook.press.cli.options import (
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

if TYPE_CHECKING:
    import pandas as pd

    from lossbook.press.runs.engine import Outcome, Plan
    from lossbook.press.runs.grids import Grid
    from lossbook.press.runs.parameters import Parameters


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
    from lossbook.press.findings import tables
    from lossbook.press.runs import engine, grids, notebooks
    from lossbook.press.runs.parameters import Parameters

    project: Project = context.obj.project
    paper = project.paper(slug)
    notebook = notebooks.read_script(paper)
    known = Parameters(paper, notebook)
    grid = grids.grid(known, profile, parameters or (), zipped or ())
    wanted = [_figure(text, grid) for text in plots or ()]
    options = engine_options(jobs, scheduler, timeout, memory)
    plans = engine.plan(project, [engine.Request(paper, notebook, settings) for settings in grid.settings])
    missing = [plan for plan in plans if plan.reason]
    if dry_run:
        _show_grid(grid, plans)
        typer.echo(f"{_runs(len(plans))}, {len(plans) - len(missing)} of them stored")
        typer.echo(grids.estimate(project, paper, profile, len(missing), options.jobs))
        return
    where = folder or project.output / "sweeps" / slug / grid.name
    writable(where)
    outcomes = engine.carry_out(project, plans, options, notes)
    failures = [(each, failure) for each in outcomes if (failure := notebooks.failure_of(each.executed))]
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
    from lossbook.press.files import write_whole
    from lossbook.press.findings import figures

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
    from lossbook.press.findings import tables

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
