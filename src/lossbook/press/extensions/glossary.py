"""A Sphinx extension: the first mention of a term of the glossary on a paper's page leads to the glossary."""

import re
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

from lossbook import __version__

# Terms that are everyday words as well, and would be linked where they mean something else.
EVERYDAY = {
    *("alignment", "anchor", "check", "claim", "collapse", "gain", "input", "key", "loss", "margin", "negative"),
    *("odds", "positive", "profile", "record", "run", "score", "sweep", "view"),
}
# Text that leads somewhere already, or is no prose.
CLOSED = (nodes.reference, nodes.literal, nodes.title, nodes.math, nodes.raw, nodes.literal_block, nodes.table)


def terms(names: Iterable[str]) -> list[str]:
    """Those of the glossary's names that are linked: words, no symbols, the longest first."""
    words = (name for name in names if re.fullmatch(r"[A-Za-z][\w' -]{3,}", name) and name.lower() not in EVERYDAY)
    return sorted(words, key=lambda name: (-len(name), name))


class LinkTerms(SphinxPostTransform):
    """Turns the first mention of each term into a link."""

    default_priority = 800
    formats = ("html",)

    def run(self, **_: Any) -> None:
        """Go through the paragraphs of a page that was a notebook."""
        if not self.env.doc2path(self.env.docname).endswith(".ipynb"):
            return
        places = {name: place for (kind, name), place in self.env.domains["std"].objects.items() if kind == "term"}
        left = terms(places)
        for text in list(self.document.findall(nodes.Text)):
            above = text.parent
            while above.parent is not None and not isinstance(above, (nodes.paragraph, *CLOSED)):
                above = above.parent
            # A paper's own title is quoted as it is.
            quoted = above.parent is not None and "lossbook-citation" in above.parent.get("classes", ())
            if isinstance(above, nodes.paragraph) and not quoted:
                self._link(text, left, places)

    def _link(self, text: nodes.Text, left: list[str], places: dict[str, tuple[str, str]]) -> None:
        pieces, rest = [], text.astext()
        while left and (match := re.search(rf"\b(?:{'|'.join(map(re.escape, left))})s?\b", rest, re.IGNORECASE)):
            said = match[0].lower()
            name = next(name for name in left if said.removesuffix("s") == name.lower().removesuffix("s"))
            left.remove(name)
            shown, title = nodes.Text(match[0]), f"Glossary: {name}"
            link = make_refnode(self.app.builder, self.env.docname, *places[name], shown, title)
            link["classes"].append("term")
            pieces += [nodes.Text(rest[: match.start()]), link]
            rest = rest[match.end() :]
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(rest)])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_post_transform(LinkTerms)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}
