"""Figures of a sweep: a result or a claim's effect against a swept parameter."""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossbook.formats import student_interval, use_look
from lossbook.press.errors import PressError, unknown
from lossbook.press.findings import tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "claim."


@dataclass(frozen=True)
class Quantity:
    """Something that can be drawn: rows and the column of its values."""

    rows: "pd.DataFrame"
    column: str
    label: str
    # The column that tells lines apart.
    kind: str | None = None
    # A claim's margin.
    margin: float | None = None


def find(name: str, results: "pd.DataFrame", ledger: "pd.DataFrame") -> Quantity:
    """What is called `claim.<id>`, `<column>` or `<table>.<column>`.

    Raises:
        PressError: if it is nothing that can be drawn.
    """
    if name.startswith(CLAIM):
        rows = ledger[(ledger["kind"] == "claim") & (ledger["id"] == name.removeprefix(CLAIM))]
        if not rows.empty:
            rows = rows[rows["effect"].notna()]
            units, margins = ([] if key not in rows else rows[key].dropna().unique() for key in ("unit", "margin"))
            unit = f" ({units[0]})" if len(units) == 1 else ""
            margin = float(margins[0]) if len(margins) == 1 else None
            return Quantity(rows, "effect", f"effect of {name}{unit}", margin=margin)
    named: dict[str, list[Quantity]] = {}
    for table, rows in results.groupby("table", sort=False):
        for column in tables.numeric(rows):
            quantity = Quantity(rows[rows[column].notna()], column, column, tables.kind_of(rows))
            named.setdefault(column, []).append(quantity)
            named.setdefault(f"{table}.{column}", []).append(quantity)
    if len(named.get(name, ())) > 1:
        choices = [other for other in named if other.endswith(f".{name}")]
        raise PressError(f"--plot {name}: several tables have it; choose one: {', '.join(choices)}")
    if name not in named:
        claims = [f"{CLAIM}{id}" for id in ledger.loc[ledger["kind"] == "claim", "id"].unique()]
        raise PressError(f"--plot {name}: {unknown('numeric result', name, [*named, *claims])}")
    return named[name][0]


def draw(quantity: Quantity, parameter: str, *, label: str = "", title: str = "") -> bytes:
    """The figure of a quantity against a swept parameter, as SVG.

    With several rows at one value: their mean and its 95 % interval. A claim's effect that stands alone has the
    interval of its own run.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    rows, x, y = quantity.rows, f"param.{parameter}", quantity.column
    title = title or f"{quantity.label} by {parameter}"
    with plt.rc_context():
        use_look()
        figure, axes = plt.subplots()
        try:
            if _is_number(rows[x]):
                _line(axes, rows, x, y, quantity.kind)
            else:
                words = rows.assign(**{x: rows[x].astype("str")})
                options = {"hue": quantity.kind, "dodge": 0.3} if quantity.kind else {}
                sns.pointplot(
                    words, x=x, y=y, errorbar=_interval, linestyle="none", capsize=0.1, err_kws={"linewidth": 1.5},
                    ax=axes, **options,
                )  # fmt: skip
            if quantity.margin is not None:
                axes.axhline(quantity.margin, color="0.3", linestyle="--", linewidth=1, label="margin")
            kinds = [x, *([quantity.kind] if quantity.kind else [])]
            several = rows.duplicated(kinds).any()
            what = f"{quantity.label}\nmean, 95 % interval" if several else quantity.label
            axes.set(title=title, xlabel=label or parameter, ylabel=what)
            if legend := axes.get_legend():
                legend.remove()
            handles, names = axes.get_legend_handles_labels()
            if len(handles) > 1 or quantity.margin is not None:
                figure.legend(handles, names, loc="outside lower center", ncols=min(4, max(1, len(handles))))
            return _svg(figure, title)
        finally:
            plt.close(figure)


def _line(axes: Any, rows: "pd.DataFrame", x: str, y: str, kind: str | None) -> None:
    import seaborn as sns

    alone = kind is None and "low" in rows and not rows[x].duplicated().any()
    if alone:
        rows = rows.sort_values(x)
        # An interval without an end reaches out of the picture, and is left out of it.
        gaps = [(rows[y] - rows["low"]).fillna(0).clip(lower=0), (rows["high"] - rows[y]).fillna(0).clip(lower=0)]
        axes.errorbar(rows[x], rows[y], yerr=gaps, marker="o", capsize=3, label="effect, 95 % interval")
    else:
        sns.lineplot(rows, x=x, y=y, hue=kind, style=kind, markers=True, marker=None if kind else "o", dashes=False,
                     errorbar=_interval, err_style="band", ax=axes)  # fmt: skip
    values = sorted(float(value) for value in rows[x].unique())
    if values and values[0] > 0 and values[-1] / values[0] >= 20:
        axes.set_xscale("log")
    if len(values) <= 8:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()


def _interval(values: Iterable[float]) -> tuple[float, float]:
    # Of a single value nothing is drawn.
    numbers = list(values)
    return student_interval(numbers) if len(numbers) > 1 else (math.nan, math.nan)


def _is_number(column: "pd.Series") -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype)


def _svg(figure: "Figure", title: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    return buffer.getvalue()
