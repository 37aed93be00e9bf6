"""The application, the options before a command, and those that several commands have."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lossbook import __version__
from lossbook.press.cli.console import notes
from lossbook.press.errors import Refused
from lossbook.press.project import Project

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
ParameterOption = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter's value, as YAML.")
]


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
    from lossbook.press.runs import engine, forked

    if not forked.available():
        notes.print("this system cannot fork: every notebook gets an ordinary kernel, which starts slowly")
    given = {"jobs": jobs} if jobs else {}
    return engine.Options(
        **given, scheduler=scheduler, timeout=timeout, memory=_memory(memory), warm=forked.available()
    )
