"""The reference of the command line: every command, as it describes itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lossbook.press.errors import STATUSES
from lossbook.press.pages.myst import fence, plain, write_page

PAGE = "api/cli"


def write(program: Any, folder: Path) -> None:
    """Write the page of `program`, a command of Click with all its commands, below `folder`/api."""
    write_page(folder, PAGE, _commands(program))


def _commands(program: Any) -> str:
    above = program.context_class(program, info_name="lossbook", **program.context_settings)
    blocks = [
        "# Command line",
        plain(program.help),
        plain(STATUSES),
        "These options stand before the command:",
        *_command(program, above, "COMMAND [ARGUMENTS]..."),
    ]
    for name, command in program.commands.items():
        if not command.hidden:
            context = command.context_class(command, info_name=name, parent=above, **command.context_settings)
            blocks += [f"## {name}", plain(command.help), *_command(command, context)]
    return "\n\n".join(blocks)


def _command(command: Any, context: Any, rest: str = "") -> Iterator[str]:
    """Usage, arguments and options of a command."""
    shown = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option" and "--help" not in each.opts]
    places = [each.metavar or each.name.upper() for each in arguments] + ([rest] if rest else [])
    yield fence(" ".join([context.command_path, *(["[OPTIONS]"] if options else []), *places]), "text")
    yield f":::{{program}} {context.command_path}\n:::"
    for each in [*arguments, *options]:
        term, text = each.get_help_record(context)
        # The types of typer, "<int range>", as places to fill in.
        term = re.sub(r"<(\w+)[^>]*>", lambda match: match[1].upper(), term)
        if each in arguments:
            term, text = each.metavar or each.name.upper(), each.help
        yield f":::{{option}} {term}\n{plain(text)}\n:::"
