"""Sphinx extension: mends in the pages what the theme's templates do not reach."""

import re
from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mend(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" not in context:
        return
    # Entries of the bibliography are items of its list: the role that Docutils gives them is no longer in WAI-ARIA.
    context["body"] = context["body"].replace(' role="doc-biblioentry"', ' role="listitem"')
    if pagename == "_modules/index":
        # Sphinx puts lists of submodules into lists, between their items: one list of full names says the same.
        start, *lists = re.split(r"</?ul>", context["body"])
        context["body"] = f"{start}<ul>{''.join(lists)}</ul>"
