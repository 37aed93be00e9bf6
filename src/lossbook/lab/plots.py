"""One look for all figures, and how figures, tables and source reach the page."""

import base64
import inspect
import io
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lossbook.formats import use_look

__all__ = ["show", "show_source", "show_table", "use_theme"]


def use_theme() -> None:
    """Seaborn's colour-blind palette on a light grid, sizes for a page 7 inches wide.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> lab.use_theme()
        >>> plt.rcParams["figure.figsize"]
        [7.0, 3.6]
    """
    use_look()


def show(figure: Figure, *, caption: str, alt: str) -> None:
    """Put a figure on the page, as SVG, with its caption and the text that stands for it where it cannot be seen.

    Args:
        figure: with a title and labelled axes in every panel.
        caption: below it.
        alt: what it shows, in words.

    Raises:
        ValueError: if caption or alternative text is empty, or a panel has no title or no axis labels.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> _ = axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
        >>> lab.show(figure, caption="Accuracy over training.", alt="A plot without curves.")
        Accuracy over training.
        A plot without curves.
    """
    from IPython.display import display

    for name, text in (("caption", caption), ("alt", alt)):
        if not text.strip():
            raise ValueError(f"{name}: expected a text, got nothing")
    named = figure.get_suptitle()
    for index, axes in enumerate(figure.axes):
        if axes.get_label() == "<colorbar>":
            continue
        if not (axes.get_title() or named) or not axes.get_xlabel() or not axes.get_ylabel():
            raise ValueError(f"figure: panel {index} needs a title and labels on both axes")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    html = (
        f'<figure class="lossbook-figure"><img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
    display({"text/html": html, "text/plain": f"{caption}\n{alt}"}, raw=True)


def show_table(frame: pd.DataFrame, *, caption: str, formats: dict[str, str] | None = None) -> None:
    """Put a frame on the page; `formats` maps columns to format strings such as "{:.2f}".

    Args:
        frame: a row a line, without its index.
        caption: above it.
        formats: of columns, by name.

    Examples:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"accuracy": [81.25]})
        >>> lab.show_table(frame, caption="Accuracy", formats={"accuracy": "{:.1f}"})
        <IPython.core.display.HTML object>
    """
    from IPython.display import HTML, display

    style = frame.style.format({**(formats or {})}, na_rep="–").hide(axis="index")
    style = style.set_caption(caption).set_table_attributes('class="lossbook-table"')
    display(HTML(f'<div class="lossbook-scroll">{style.to_html()}</div>'))


def show_source(*functions: Callable[..., Any]) -> None:
    """Show the library's own source of functions or classes, highlighted by the page.

    Args:
        functions: or classes.

    Examples:
        >>> lab.show_source(lab.accuracy)
        def accuracy(logits: ...
    """
    from IPython.display import display

    for function in functions:
        whole = inspect.unwrap(function)
        source = inspect.getsource(whole).rstrip()
        # The name lets the book fold the source and link to its reference.
        name = f"{whole.__module__}.{whole.__qualname__}"
        shown = {"text/markdown": f"```python\n{source}\n```", "text/plain": source}
        display(shown, raw=True, metadata={"lossbook-source": name})
