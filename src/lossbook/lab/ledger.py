"""What a notebook says it found, for people (a box, a table) and for machines (JSON in the same output)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor

from lossbook.formats import LEDGER_TYPE, SIGNS, badge, effect, number
from lossbook.lab.statistics import Interval, mean_interval

__all__ = ["CheckFailed", "Claim", "Ledger", "Table", "max_error"]

# Confidence of every interval behind a verdict.
CONFIDENCE = 0.95

Direction = Literal["greater", "less", "within"]


class CheckFailed(AssertionError):
    """A derivation that does not agree with what the machine computes.

    Examples:
        >>> ledger = lab.Ledger()
        >>> ledger.check("triple", "x + x = 3x", error=1.0, tolerance=1e-6, cases=3)
        Traceback (most recent call last):
            ...
        lossbook.lab.ledger.CheckFailed: triple: error 1 is above the tolerance 1e-06: x + x = 3x
    """


def max_error(actual: Tensor | float, expected: Tensor | float) -> float:
    r"""Largest $|a-e|/\max(1,|e|)$ over all entries: relative for large numbers, absolute for small ones.

    Not a number if either has one, or if they are infinite in different places.

    Args:
        actual: what was computed.
        expected: what should have been, of a shape to which it broadcasts.

    Examples:
        >>> round(lab.max_error(torch.tensor([1.0, 200.0]), torch.tensor([1.1, 202.0])), 4)
        0.0909
    """
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    gap = (actual - expected).abs() / expected.abs().clamp(min=1)
    return torch.where(actual == expected, 0, gap).max().item()


class Ledger:
    """The checks and claims of one notebook.

    A check is mathematics: it is shown, and stops the notebook if it fails. A claim is the paper's: its criterion is
    stated before the experiment, its verdict follows from the interval over seeds.

    Examples:
        >>> ledger = lab.Ledger()
        >>> error = lab.max_error(torch.arange(3.0) + torch.arange(3.0), 2 * torch.arange(3.0))
        >>> ledger.check("double", "x + x = 2x", error=error, tolerance=1e-6, cases=3)
        ✓ check double verified: x + x = 2x (error 0, tolerance 1e-06, 3 cases)
    """

    def __init__(self):
        self.entries: list[dict[str, Any]] = []
        self.claims: dict[str, Claim] = {}

    def check(self, id: str, statement: str, *, error: float | Tensor, tolerance: float, cases: int) -> None:
        """Record that the largest error seen in so many random cases is at most the tolerance.

        Args:
            id: short name, unique in the notebook.
            statement: what holds, in words (Markdown's `$...$` formulas are shown as they are).
            error: the largest error; for an inequality, the largest violation.
            tolerance: what rounding, or a stated Monte-Carlo error, allows.
            cases: how many random cases were tried.

        Raises:
            CheckFailed: if the error is larger than the tolerance, or not a number.
        """
        error = float(error)
        self._new(id)
        if not 0 <= tolerance < math.inf or cases < 1:
            raise ValueError(f"check {id}: expected a finite tolerance >= 0 and cases >= 1, got {tolerance}, {cases}")
        verified = error <= tolerance
        entry = {
            "kind": "check",
            "id": id,
            "statement": statement,
            "verdict": "verified" if verified else "failed",
            "error": error if math.isfinite(error) else None,
            "tolerance": float(tolerance),
            "cases": int(cases),
        }
        self._add(entry)
        if not verified:
            raise CheckFailed(f"{id}: error {error:.3g} is above the tolerance {tolerance:.3g}: {statement}")

    def claim(self, id: str, statement: str, *, metric: str, direction: Direction, margin: float, unit: str) -> "Claim":
        """State a claim and the criterion by which it will be judged.

        Args:
            id: short name, unique in the notebook.
            statement: the paper's claim in our words.
            metric: what is measured for each seed, usually a difference.
            direction: the claim holds if the mean is "greater" than the margin, "less" than it, or "within" plus and
                minus the margin.
            margin: in units of the metric. Negative with "greater" for "not worse by more than".
            unit: of metric and margin.
        """
        self._new(id)
        if direction not in ("greater", "less", "within"):
            raise ValueError(f'direction: expected "greater", "less" or "within", got {direction!r}')
        if not math.isfinite(margin):
            raise ValueError(f"margin: expected a finite number, got {margin}")
        if direction == "within" and not margin > 0:
            raise ValueError(f'margin: expected a positive number with "within", got {margin}')
        self.claims[id] = Claim(id, statement, metric, direction, float(margin), unit, self)
        return self.claims[id]

    def criteria(self) -> "Table":
        """The claims stated so far with their criteria, before anything was run."""
        rows = [[claim.id, claim.statement, claim.criterion] for claim in self.claims.values()]
        return Table(["", "Claim", "Counts as supported if"], rows, "Claims and their criteria, stated before the run")

    def summary(self) -> "Table":
        """All entries as a table.

        Raises:
            RuntimeError: if a claim was stated and never judged.
        """
        judged = {entry["id"] for entry in self.entries if entry["kind"] == "claim"}
        if missing := sorted(self.claims.keys() - judged):
            raise RuntimeError(f"claims stated but never judged: {', '.join(missing)}")
        rows = [
            [entry["id"], _Markup(badge(entry["verdict"])), entry["statement"], entry["evidence"]]
            for entry in self.entries
        ]
        return Table(["", "Verdict", "Statement", "Evidence"], rows, "All checks and claims of this page")

    def _new(self, id: str) -> None:
        if id in self.claims or any(entry["id"] == id for entry in self.entries):
            raise ValueError(f"id: {id!r} is in the ledger already")

    def _add(self, entry: dict[str, Any]) -> None:
        from IPython.display import display

        entry["evidence"] = _evidence(entry)
        self.entries.append(entry)
        display({LEDGER_TYPE: entry, "text/html": _box(entry), "text/plain": _line(entry)}, raw=True)


@dataclass(frozen=True)
class Claim:
    """A claim with its criterion, waiting for the numbers.

    Attributes:
        id: by which pages and scoreboard name it.
        statement: what is claimed, in a sentence.
        metric: what is measured.
        direction: which differences support it.
        margin: the smallest effect worth having.
        unit: of metric and margin.
        ledger: on which it stands.

    Examples:
        >>> ledger = lab.Ledger()
        >>> criterion = {"metric": "gain", "direction": "greater", "margin": 0.5, "unit": "points"}
        >>> claim = ledger.claim("gain", "It helps.", **criterion)
        >>> claim.judge([1.9, 2.0, 2.1])
        ✓ claim gain supported: It helps. (2 [1.75, 2.25] points, margin 0.5, 3 seeds)
    """

    id: str
    statement: str
    metric: str
    direction: Direction
    margin: float
    unit: str
    ledger: Ledger = field(repr=False)

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        where = {
            "greater": f"above {self.margin:g}",
            "less": f"below {self.margin:g}",
            "within": f"between {-self.margin:g} and {self.margin:g}",
        }[self.direction]
        return f"{self.metric}: the 95 % interval lies {where} {self.unit}"

    @property
    def verdict(self) -> str | None:
        """Supported, contradicted or inconclusive; None before the claim was judged."""
        return next((entry["verdict"] for entry in self.ledger.entries if entry["id"] == self.id), None)

    def judge(self, values: Sequence[float] | Mapping[str, Sequence[float]]) -> None:
        """Compute the verdict from one value a seed, record and show it.

        The interval on the claimed side of the margin: supported; on the other side: contradicted; across it:
        inconclusive. Several comparisons, given by name, must all hold: their intervals are widened together
        (Bonferroni), and the one that speaks most against the claim is recorded. Without any value: inconclusive.

        Raises:
            ValueError: if the claim was judged already, or a value is not finite.
        """
        if self.verdict:
            raise ValueError(f"claim {self.id} was judged already")
        named = values if isinstance(values, Mapping) else {"": values}
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(named))
        intervals = {
            name: mean_interval(each, confidence=confidence)
            if len(each)
            else Interval(math.nan, -math.inf, math.inf, 0)
            for name, each in (named or {"": ()}).items()
        }
        name, weakest = min(intervals.items(), key=lambda item: self._room(item[1]))
        self.ledger._add(
            {
                "kind": "claim",
                "id": self.id,
                "statement": self.statement,
                "criterion": self.criterion,
                "verdict": self._compare(weakest),
                **{
                    key: number if math.isfinite(number := getattr(weakest, key)) else None
                    for key in ("effect", "low", "high")
                },
                "margin": self.margin,
                "seeds": weakest.n,
                "unit": self.unit,
                **({"against": name, "comparisons": len(named)} if len(named) > 1 else {}),
            }
        )

    def _room(self, interval: Interval) -> tuple[int, float]:
        """How far the claim holds: by verdict first, then by the distance of the interval from the margin."""
        rank = ("contradicted", "inconclusive", "supported").index(self._compare(interval))
        if self.direction == "greater":
            return rank, interval.low - self.margin
        if self.direction == "less":
            return rank, self.margin - interval.high
        return rank, self.margin - max(abs(interval.low), abs(interval.high))

    def _compare(self, interval: Interval) -> str:
        _, low, high, _ = interval
        holds, fails = {
            "greater": (low > self.margin, high < self.margin),
            "less": (high < self.margin, low > self.margin),
            "within": (
                -self.margin < low and high < self.margin,
                high < -self.margin or low > self.margin,
            ),
        }[self.direction]
        return "supported" if holds else "contradicted" if fails else "inconclusive"


class Table:
    """A table of text, as HTML for people.

    Args:
        columns: their heads.
        rows: of as many cells.
        caption: above the table.

    Examples:
        >>> ledger = lab.Ledger()
        >>> criterion = {"metric": "gain", "direction": "greater", "margin": 0.5, "unit": "points"}
        >>> claim = ledger.claim("gain", "It helps.", **criterion)
        >>> ledger.criteria()
        Claims and their criteria, stated before the run
         | Claim | Counts as supported if
        gain | It helps. | gain: the 95 % interval lies above 0.5 points
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str):
        self.columns, self.rows, self.caption = columns, rows, caption

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in self.rows)
        return (
            f'<div class="lossbook-scroll"><table class="lossbook-ledger"><caption>{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def __repr__(self) -> str:
        rows = [self.columns, *self.rows]
        return "\n".join([self.caption, *(" | ".join(str(value) for value in row) for row in rows)])


class _Markup(str):
    """Text that is HTML already."""


def _cell(value: Any) -> str:
    return value if isinstance(value, _Markup) else escape(str(value))


def _evidence(entry: dict[str, Any]) -> str:
    if entry["kind"] == "check":
        error = number(entry["error"], "not finite")
        cases = f"{entry['cases']:,} case{'' if entry['cases'] == 1 else 's'}"
        return f"error {error}, tolerance {entry['tolerance']:.2g}, {cases}"
    against = f", against {entry['against']} (of {entry['comparisons']})" if "against" in entry else ""
    seeds = f"{entry['seeds']} seed{'' if entry['seeds'] == 1 else 's'}"
    return f"{effect(entry)}{against}, margin {entry['margin']:g}, {seeds}"


def _box(entry: dict[str, Any]) -> str:
    criterion = f'<div class="lossbook-criterion">{escape(entry["criterion"])}</div>' if "criterion" in entry else ""
    kind, verdict = entry["kind"], entry["verdict"]
    return (
        f'<div class="lossbook-entry lossbook-{kind} lossbook-{verdict}" id="{kind}-{escape(entry["id"])}">'
        f'<div class="lossbook-head">{badge(verdict)} '
        f'<span class="lossbook-kind">{kind} {escape(entry["id"])}</span></div>'
        f'<div class="lossbook-statement">{escape(entry["statement"])}</div>{criterion}'
        f'<div class="lossbook-evidence">{escape(entry["evidence"])}</div></div>'
    )


def _line(entry: dict[str, Any]) -> str:
    head = f"{SIGNS[entry['verdict']]} {entry['kind']} {entry['id']} {entry['verdict']}"
    return f"{head}: {entry['statement']} ({entry['evidence']})"
