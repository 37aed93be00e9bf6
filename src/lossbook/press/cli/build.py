"""The book: building it, showing it, and what its last build found."""

import json
import shlex
import sys
from typing import Annotated

import typer
from rich.text import Text

from lossbook.press.cli.console import notes, show, show_entries, table
from lossbook.press.cli.options import (
    AgainOption,
    JobsOption,
    MemoryOption,
    ProfileOption,
    SchedulerOption,
    TimeoutOption,
    app,
    engine_options,
)
from lossbook.press.errors import PressError, Refused
from lossbook.press.project import DEFAULT_PROFILE, Project


@app.command()
def build(
    context: typer.Context,
    profile: ProfileOption = DEFAULT_PROFILE,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="SLUG", help="Run this paper alone; the others keep their last run. May be repeated."),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[SLUG]...", hidden=True)] = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    timeout: TimeoutOption = None,
    memory: MemoryOption = None,
    again: AgainOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what would run, and why.")] = False,
) -> None:
    """Run the notebooks that need it and build the site."""
    from lossbook.press import files, pages
    from lossbook.press.progress import track
    from lossbook.press.runs import engine, keys, notebooks
    from lossbook.press.runs.parameters import Parameters
    from lossbook.press.site import check, render

    project: Project = context.obj.project
    if more and not only:
        raise Refused(f"papers to build are named with --only: lossbook build --only {shlex.join(more)}")
    chosen = [project.paper(slug) for slug in [*(only or ()), *(more or ())]] or list(project.papers.values())
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        raise Refused(f"there is no notebook in {project.root / 'notebooks'}")
    options = engine_options(jobs, scheduler, timeout, memory)
    scripts = notebooks.Scripts(project.output / "scripts")
    read = {paper: scripts.read(paper) for paper in chosen}
    wanted = [
        engine.Request(paper, script, Parameters(paper, script).settings(profile)) for paper, script in read.items()
    ]
    if explain:
        rows = table("paper", "profile", "runs", "why")
        for plan in engine.plan(project, wanted, again=again):
            runs_now = ("yes", plan.reason) if plan.reason else ("no", "nothing that decides its result has changed")
            rows.add_row(plan.request.paper.slug, profile, *runs_now)
        show(rows)
        return
    complaints = []
    with files.locked(project.output):
        scripts.keep()
        plans = engine.plan(project, wanted, again=again)
        kept = sum(plan.reason is None for plan in plans)
        if kept:
            notes.print(f"{kept} of {len(plans)} runs are up to date")
        library = keys.library()
        for outcome in engine.carry_out(project, plans, options, notes):
            paper = outcome.request.paper
            shown = notebooks.with_text(outcome.executed, outcome.request.notebook, library)
            notebooks.write(project.executed(paper), shown)
            if failure := notebooks.failure_of(outcome.executed):
                complaints.append(failure.describe(paper))
                notes.print(f"failed: {complaints[-1]}", markup=False)
        executed = {}
        for paper in project.papers.values():
            try:
                executed[paper] = notebooks.read(project.executed(paper))
            except FileNotFoundError:
                notes.print(f"{paper.slug} was never run, and its page says so", markup=False)
            except PressError as error:
                complaints.append(f"{error}; it is not in the site: lossbook build --only {paper.slug}")
                notes.print(complaints[-1], markup=False)
        source = project.output / "source"
        pages.assemble(project, executed, source, context.find_root().command)
        if render.current(project, source):
            notes.print("the site is up to date")
        else:
            with track(notes, f"rendering the site, {len(executed)} of {len(project.papers)} papers"):
                render.render(project, source, jobs)
        for words in check.check(project):
            complaints.append(words)
            notes.print(words, markup=False)
    for name in [paper.page for paper in chosen] if only else ["index"]:
        typer.echo(f"{project.site / name}.html")
    if complaints:
        raise PressError(
            "the site is built, but not everything went well:\n" + "\n".join(f"  {text}" for text in complaints)
        )


@app.command()
def ledger(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show every check and claim of the last build."""
    from lossbook.press.findings import ledgers

    found = ledgers.of_book(context.obj.project)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show_entries(found, papers=True)


@app.command()
def serve(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
) -> None:
    """Show the site on this machine, until Ctrl-C."""
    from lossbook.press.site.server import server

    project: Project = context.obj.project
    with server(project.site, port) as serving:
        typer.echo(f"http://{serving.server_address[0]}:{serving.server_address[1]}/")
        sys.stdout.flush()
        try:
            serving.serve_forever()
        except SystemExit:
            # A signal is how serving ends.
            notes.print("stopped")


@app.command()
def links(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Visit them, which needs a network, and name the dead.")
    ] = False,
) -> None:
    """List the links of the built site that lead elsewhere."""
    from lossbook.press.progress import track
    from lossbook.press.site import links as linking

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
