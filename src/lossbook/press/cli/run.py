"""Papers, their parameters, and one run of a notebook."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lossbook.press.cli.console import notes, quote, show, show_entries, table, writable
from lossbook.press.cli.options import (
    ParameterOption,
    ProfileOption,
    Slug,
    app,
)
from lossbook.press.errors import PressError
from lossbook.press.project import DEFAULT_PROFILE, Paper, Project


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the papers that have a notebook."""
    project: Project = context.obj.project
    rows = table("part", "slug", "paper")
    for paper in project.papers.values():
        rows.add_row(paper.part, paper.slug, paper.title)
    show(rows)


@app.command()
def params(context: typer.Context, slug: Slug) -> None:
    """Show the parameters and profiles of a paper's notebook."""
    from lossbook.press.runs.notebooks import read_script
    from lossbook.press.runs.parameters import Parameters

    paper = context.obj.project.paper(slug)
    parameters = Parameters(paper, read_script(paper))
    rows = table("parameter", "type", "default", "meaning", "elsewhere")
    for each in parameters.values():
        elsewhere = [
            f"{name}: {json.dumps(values[each.name])}"
            for name, values in parameters.profiles.items()
            if each.name in values
        ]
        rows.add_row(each.name, each.annotation, json.dumps(each.default), each.comment, "\n".join(elsewhere))
    show(rows)
    typer.echo(f"profiles: {', '.join(parameters.profiles)}")


@app.command()
def run(
    context: typer.Context,
    slug: Slug,
    parameters: ParameterOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--directory", "-o", metavar="DIR", help="Where the executed notebook goes, if not _build/runs/SLUG."
        ),
    ] = None,
) -> None:
    """Run one notebook and show what it found."""
    from lossbook.press.findings import ledgers
    from lossbook.press.runs import notebooks
    from lossbook.press.runs.parameters import Parameters

    project: Project = context.obj.project
    paper = project.paper(slug)
    notebook = notebooks.read_script(paper)
    settings = Parameters(paper, notebook).settings(profile, parameters or ())
    where = folder or project.output / "runs" / slug
    finished, failed = where / f"{settings.name}.ipynb", where / f"{settings.name}.failed.ipynb"
    writable(where)
    executed = _execute(paper, notebook, settings)
    failure = notebooks.failure_of(executed)
    notebooks.write(failed if failure else finished, executed)
    show_entries(ledgers.of(executed))
    if failure:
        raise PressError(f"{failure.describe(paper)}\n{quote(failure)}what was run until then: {project.short(failed)}")
    failed.unlink(missing_ok=True)
    typer.echo(project.short(finished))


def _execute(paper: Paper, notebook: Any, settings: Any, where: str = "") -> Any:
    from lossbook.press.progress import track
    from lossbook.press.runs import notebooks

    what = f"{paper.slug}, {settings.name}{where}"
    with track(notes, what) as report:
        executed = notebooks.execute(paper, notebook, settings, report)
    run = executed.metadata["lossbook"]["run"]
    notes.print(f"{what}: {run['status']} after {run['seconds']:.1f} s", markup=False)
    return executed
