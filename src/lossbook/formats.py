"""What the bench says in notebooks and the press reads there: media types, verdicts, fields of an entry, one look.

`lossbook.lab` writes, `lossbook.press` reads, and both show verdicts, intervals and figures alike.
"""

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

# Media types of what a notebook's output holds for machines: an entry of the ledger, a table of results.
LEDGER_TYPE = "application/vnd.lossbook.ledger+json"
RESULTS_TYPE = "application/vnd.lossbook.results+json"

# What an entry may say, by its kind, in the order in which pages count it.
VERDICTS: Mapping[str, tuple[str, ...]] = {
    "claim": ("supported", "contradicted", "inconclusive"),
    "check": ("verified", "failed"),
}
SIGNS = {"verified": "✓", "supported": "✓", "failed": "✗", "contradicted": "✗", "inconclusive": "?"}
# The fields of an entry beside kind, id, statement and verdict. Of several comparisons a claim keeps the weakest:
# `against` names it.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "check": ("error", "tolerance", "cases", "evidence"),
    "claim": ("criterion", "effect", "low", "high", "margin", "seeds", "unit", "against", "evidence"),
}

# Settings of Matplotlib, over seaborn's white grid and colour-blind palette: a figure for a page 7 inches wide.
LOOK: Mapping[str, Any] = {
    "figure.figsize": (7, 3.6),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Text as outlines: a browser without the font shows the same figure.
    "svg.fonttype": "path",
    # No random identifiers: the same figure is the same file.
    "svg.hashsalt": "lossbook",
}


def badge(verdict: str, text: str | None = None) -> str:
    """A verdict in HTML: a sign and a word, so that colour is not alone."""
    sign = SIGNS.get(verdict, "?")
    return f"<span class='lossbook-verdict lossbook-{escape(verdict)}'>{sign} {escape(text or verdict)}</span>"


def number(value: float | None, missing: str) -> str:
    """Three digits, or what stands for a number that JSON does not have."""
    return missing if value is None else f"{value:.3g}"


def effect(entry: Mapping[str, Any]) -> str:
    """A claim's effect with its 95 % interval and unit."""
    low, high = number(entry.get("low"), "−∞"), number(entry.get("high"), "∞")
    return f"{number(entry.get('effect'), 'no value')} [{low}, {high}] {entry.get('unit') or ''}".rstrip()


def use_look() -> None:
    """Draw from now on in the one look of all figures."""
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind", rc=dict(LOOK))


def student_interval(values: "npt.ArrayLike", confidence: float = 0.95) -> tuple[float, float]:
    r"""The limits $\bar x\pm t_{n-1}\,s/\sqrt n$ of a mean; of a single value the whole line, of none not a number."""
    import numpy as np
    from scipy import stats

    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return (-math.inf, math.inf) if len(numbers) else (math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, len(numbers) - 1) * stats.sem(numbers))
    return float(numbers.mean()) - half, float(numbers.mean()) + half
