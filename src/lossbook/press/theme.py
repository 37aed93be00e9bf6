"""Sphinx extension: mends in the pages what the theme's templates do not reach."""

from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", _roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _roles(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Entries of the bibliography are items of its list: the role that Docutils gives them is no longer in WAI-ARIA."""
    if "body" in context:
        context["body"] = context["body"].replace(' role="doc-biblioentry"', ' role="listitem"')
