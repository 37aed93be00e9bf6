"""A page with two runs side by side, complete in itself."""

from itertools import zip_longest

from markupsafe import Markup

from lossbook.press.findings.compare import Side, entry_rows, setting_rows
from lossbook.press.pages.html import render


def page(left: Side, right: Side) -> str:
    """Both runs' entries, differences and figures, as HTML."""
    title = f"{' and '.join(dict.fromkeys([left.run['slug'], right.run['slug']]))}: {left.name} and {right.name}"
    figures = [
        [(side.name, figure and Markup(figure)) for side, figure in zip((left, right), pair, strict=True)]
        for pair in zip_longest(left.figures, right.figures)
    ]
    return render(
        "comparison.html",
        title=title,
        left=left,
        right=right,
        entries=entry_rows(left, right),
        settings=setting_rows(left, right),
        figures=figures,
    )
