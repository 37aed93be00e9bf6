"""The command line."""

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lossbook import __version__
from lossbook.press.errors import PressError, Refused
from lossbook.press.project import DEFAULT_PROFILE, Paper, Project
from lossbook.press.shown import notes, quote, show, show_entries, table, writable

app = typer.Typer(
    help="The book of losses: run its notebooks, build its site.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class State:
    """What the options before the command say."""

    root: Path | None
    output: Path | None

    @property
    def project(self) -> Project:
        """The project they choose."""
        return Project.find(self.root, self.output)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lossbook {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    root: Annotated[
        Path | None, typer.Option(envvar="LOSSBOOK_ROOT", help="The project, if not the one around the current folder.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", envvar="LOSSBOOK_OUTPUT", help="Where everything built goes, if not _build."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep the options that stand before the command."""
    context.obj = State(root, output)


Slug = Annotated[
    str, typer.Argument(metavar="SLUG", help="The paper, such as temperature_free_infonce.", show_default=False)
]
ProfileOption = Annotated[str, typer.Option("--profile", help="A named set of parameter values.")]


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
    from lossbook.press.parameters import Parameters
    from lossbook.press.runs import read_script

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
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter's value, as YAML.")
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--directory", "-o", metavar="DIR", help="Where the executed notebook goes, if not _build/runs/SLUG."
        ),
    ] = None,
) -> None:
    """Run one notebook and show what it found."""
    from lossbook.press import entries, runs
    from lossbook.press.parameters import Parameters

    project: Project = context.obj.project
    paper = project.paper(slug)
    notebook = runs.read_script(paper)
    settings = Parameters(paper, notebook).settings(profile, parameters or ())
    where = folder or project.output / "runs" / slug
    finished, failed = where / f"{settings.name}.ipynb", where / f"{settings.name}.failed.ipynb"
    writable(where)
    executed = _execute(paper, notebook, settings)
    failure = runs.failure_of(executed)
    runs.write(failed if failure else finished, executed)
    show_entries(entries.of(executed))
    if failure:
        raise PressError(f"{failure.describe(paper)}\n{quote(failure)}what was run until then: {project.short(failed)}")
    failed.unlink(missing_ok=True)
    typer.echo(project.short(finished))


def _memory(text: str | None) -> int | None:
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text or "0", re.IGNORECASE)
    if not match:
        raise Refused(f"--memory {text}: expected a size such as 4GB or 800MB")
    return int(float(match[1]) * units[match[2].upper()]) or None


JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Runs side by side; by default one a core.")
]
SchedulerOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786, whose workers run.")
]
TimeoutOption = Annotated[float | None, typer.Option(min=0.1, metavar="SECONDS", help="Limit of a single notebook.")]
MemoryOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Limit of a single notebook, such as 4GB.", show_default=False)
]
AgainOption = Annotated[bool, typer.Option("--again", help="Run even what was run before.")]


def engine_options(jobs: int | None, scheduler: str | None, timeout: float | None, memory: str | None) -> Any:
    """How runs are carried out, from the options of a command."""
    from lossbook.press import engine, warm

    if not warm.available():
        notes.print("this system cannot fork: every notebook gets an ordinary kernel, which starts slowly")
    given = {"jobs": jobs} if jobs else {}
    return engine.Options(**given, scheduler=scheduler, timeout=timeout, memory=_memory(memory), warm=warm.available())


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
    from lossbook.press import engine, files, pages, runs, site
    from lossbook.press.parameters import Parameters
    from lossbook.press.progress import track

    project: Project = context.obj.project
    if more and not only:
        raise Refused(f"papers to build are named with --only: lossbook build --only {shlex.join(more)}")
    chosen = [project.paper(slug) for slug in [*(only or ()), *(more or ())]] or list(project.papers.values())
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        raise Refused(f"there is no notebook in {project.root / 'notebooks'}")
    options = engine_options(jobs, scheduler, timeout, memory)
    scripts = {paper: runs.read_script(paper) for paper in chosen}
    wanted = [
        engine.Request(paper, script, Parameters(paper, script).settings(profile)) for paper, script in scripts.items()
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
        plans = engine.plan(project, wanted, again=again)
        kept = sum(plan.reason is None for plan in plans)
        if kept:
            notes.print(f"{kept} of {len(plans)} runs are up to date")
        for outcome in engine.carry_out(project, plans, options, notes):
            paper = outcome.request.paper
            runs.write(project.executed(paper), runs.with_text(outcome.executed, outcome.request.notebook))
            if failure := runs.failure_of(outcome.executed):
                complaints.append(failure.describe(paper))
                notes.print(f"failed: {complaints[-1]}", markup=False)
        notebooks = {}
        for paper in project.papers.values():
            try:
                notebooks[paper] = runs.read(project.executed(paper))
            except FileNotFoundError:
                notes.print(f"{paper.slug} was never run, and its page says so", markup=False)
            except PressError as error:
                complaints.append(f"{error}; it is not in the site: lossbook build --only {paper.slug}")
                notes.print(complaints[-1], markup=False)
        source = project.output / "source"
        pages.assemble(project, notebooks, source)
        if site.current(project, source):
            notes.print("the site is up to date")
        else:
            with track(notes, f"rendering the site, {len(notebooks)} of {len(project.papers)} papers"):
                site.render(project, source)
    typer.echo(f"{project.site / 'index.html'}")
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
    from lossbook.press import entries

    found = entries.of_book(context.obj.project)
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
    from lossbook.press.server import server

    project: Project = context.obj.project
    with server(project.site, port) as serving:
        typer.echo(f"http://{serving.server_address[0]}:{serving.server_address[1]}/")
        sys.stdout.flush()
        try:
            serving.serve_forever()
        except SystemExit:
            # A signal is how serving ends.
            notes.print("stopped")


def _execute(paper: Paper, notebook: Any, settings: Any, where: str = "") -> Any:
    from lossbook.press import runs
    from lossbook.press.progress import track

    what = f"{paper.slug}, {settings.name}{where}"
    with track(notes, what) as report:
        executed = runs.execute(paper, notebook, settings, report)
    run = executed.metadata["lossbook"]["run"]
    notes.print(f"{what}: {run['status']} after {run['seconds']:.1f} s", markup=False)
    return executed
