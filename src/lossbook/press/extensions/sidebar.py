"""A Sphinx extension: the contents of the book, in the sidebar of every page.

Parts are folded, but for the one that the page is in; a chapter shows its pages to those who are within. What the
theme makes instead resolves the whole book for every page. It stands between two comments, so that it can be replaced
in a page that is otherwise as it was.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, cast

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

from lossbook import __version__

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = "contents.html"
# In a written page.
PLACE = re.compile(r"<!-- contents -->.*?<!-- /contents -->", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A page and the pages of its chapter; the title is HTML."""

    page: str
    title: str
    chapter: tuple["Entry", ...]

    def __contains__(self, page: str) -> bool:
        return page == self.page or any(page in entry for entry in self.chapter)


@dataclass(frozen=True)
class Group:
    """Pages under a caption; the papers of a part are folded away."""

    caption: str
    entries: tuple[Entry, ...]
    part: bool

    def __contains__(self, page: str) -> bool:
        return any(page in entry for entry in self.entries)


@cache
def contents(app: Sphinx) -> tuple[Group, ...]:
    """All of it, once the pages have been read."""

    def entry(title: str | None, page: str) -> Entry:
        shown = escape(title) if title else _title(app, page)
        return Entry(page, shown, tuple(entry(*each) for tree in _trees(app.env, page) for each in tree["entries"]))

    groups = []
    for tree in _trees(app.env, app.config.root_doc):
        entries = tuple(entry(*each) for each in tree["entries"])
        caption = tree.get("caption") or ""
        papers = any(app.env.doc2path(each.page).endswith(".ipynb") for each in entries)
        groups.append(Group(caption, entries, part=bool(caption) and papers))
    return tuple(groups)


def _trees(env: BuildEnvironment, page: str) -> Iterator[addnodes.toctree]:
    return env.tocs[page].findall(addnodes.toctree) if page in env.tocs else iter(())


def _title(app: Sphinx, page: str) -> str:
    title = app.env.titles[page]
    if all(isinstance(child, nodes.Text) for child in title.children):
        return escape(title.astext())
    return cast(StandaloneHTMLBuilder, app.builder).render_partial(title)["title"]


@cache
def _home(app: Sphinx) -> Entry:
    return Entry(app.config.root_doc, _title(app, app.config.root_doc), ())


def render(app: Sphinx, page: str) -> str:
    """The contents as this page shows them."""
    values = {
        "home": _home(app),
        "groups": contents(app),
        "page": page,
        "address": lambda other: app.builder.get_relative_uri(page, other),
    }
    return " ".join(app.builder.templates.render(TEMPLATE, values).split())


def replace(app: Sphinx, page: str, text: str) -> str:
    """A written page with the contents as they are now."""
    return PLACE.sub(lambda _: render(app, page), text, count=1)


def shown(groups: Sequence[Group]) -> str:
    """What the contents say, in all pages together."""
    return repr(groups)


def _find_templates(app: Sphinx, config: Config) -> None:
    # Before those of the theme.
    config.templates_path = [str(TEMPLATES), *config.templates_path]


def _offer(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    context["contents"] = lambda: render(app, page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", _find_templates)
    app.connect("html-page-context", _offer)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}
