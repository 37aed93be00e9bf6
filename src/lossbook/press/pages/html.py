"""HTML from the templates in `templates/`: what comes from notebooks is text there, unless it says that it is HTML."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lossbook import formats
from lossbook.press.pages.myst import counted


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # What templates may call.
    environment.globals |= {
        "badge": lambda verdict, text=None: Markup(formats.badge(verdict, text)),
        "counted": counted,
        "effect": formats.effect,
    }
    return environment


def render(template: str, **values: Any) -> Markup:
    """A template filled in.

    Args:
        template: its file's name.
        values: what it speaks of; strings are escaped, `Markup` is not.

    Returns:
        HTML without a blank line, which would end a block of HTML within Markdown.
    """
    text = _environment().get_template(template).render(values)
    return Markup("\n".join(line for line in text.splitlines() if line.strip()))
