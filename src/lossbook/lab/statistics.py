"""Differences over seeds, their intervals, and choosing settings on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lossbook.formats import student_interval
from lossbook.lab._validate import number, share

__all__ = ["Interval", "best_setting", "equivalence", "mean_interval", "paired"]


class Interval(NamedTuple):
    """A mean with its confidence limits and the number of values behind it.

    Attributes:
        effect: the mean.
        low: the lower limit.
        high: the upper limit.
        n: how many values there are.

    Examples:
        >>> interval = lab.mean_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 2), interval.effect, round(interval.high, 2), interval.n
        (-0.48, 2.0, 4.48, 3)
    """

    effect: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    r"""Mean and Student's interval, $\bar x\pm t_{n-1}\,s/\sqrt n$; of a single value it is the whole line.

    Args:
        values: one a seed.
        confidence: share of intervals that hold the true mean.

    Raises:
        ValueError: if there is no value or one is not finite, or for a confidence outside $(0,1)$.

    Examples:
        >>> interval = lab.mean_interval([0.8, 1.1, 0.9, 1.2])
        >>> [round(limit, 3) for limit in interval]
        [1.0, 0.709, 1.291, 4]
    """
    share("confidence", confidence)
    numbers = _sample(values)
    return Interval(float(numbers.mean()), *student_interval(numbers, confidence), len(numbers))


def equivalence(values: Sequence[float], margin: float) -> float:
    r"""The p-value of two one-sided tests (TOST) that the mean lies within $\pm$ `margin`.

    It is below 0.025 exactly where the 95 % interval of `mean_interval` lies inside the margins. Of the two tests the
    one against the nearer margin decides, so with the standard error $s/\sqrt n$ it is the chance that a variable with
    Student's distribution of $n-1$ degrees of freedom exceeds $(\text{margin}-|\bar x|)\sqrt n/s$.

    Args:
        values: at least two, since one says nothing about their spread.
        margin: how far from zero still counts as equal.

    Raises:
        ValueError: for fewer than two values, one that is not finite, or a margin that is not positive.

    Source:
        Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15.

    Examples:
        >>> gains = [0.1, -0.1, 0.2, 0.0]
        >>> [lab.equivalence(gains, margin) < 0.025 for margin in (0.1, 1.0)]
        [False, True]
    """
    room = float(number("margin", margin, positive=True))
    numbers = _sample(values)
    if len(numbers) < 2:
        raise ValueError(f"values: expected at least two, got {len(numbers)}")
    room, error = room - abs(numbers.mean()), stats.sem(numbers)
    if not error:
        return 0.0 if room > 0 else 1.0
    return float(stats.t.sf(room / error, len(numbers) - 1))


def _sample(values: Sequence[float]) -> np.ndarray:
    """The values as an array of finite numbers, at least one."""
    numbers = np.asarray(values, float)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"values: expected a list of numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"values: expected finite numbers, got {numbers.tolist()}")
    return numbers


def paired(
    frame: pd.DataFrame,
    metric: str,
    treatment: str,
    control: str,
    *,
    condition: str = "method",
    by: str = "seed",
) -> np.ndarray:
    """Differences of a metric between two conditions, one for each seed.

    Args:
        frame: tidy results, one row a run.
        metric: the column compared.
        treatment: a value of the column `condition`.
        control: another; it is subtracted.
        condition: the column that names what is compared.
        by: the column that pairs rows.

    Raises:
        ValueError: if a condition is missing, the two do not have one row for each of the same seeds, or a value is
            not a number.

    Examples:
        >>> import pandas as pd
        >>> runs = {"method": ["new", "old"] * 2, "seed": [0, 0, 1, 1], "score": [82, 80, 81, 80]}
        >>> lab.paired(pd.DataFrame(runs), "score", "new", "old").tolist()
        [2.0, 1.0]
    """
    sides = []
    for value in (treatment, control):
        rows = frame[frame[condition] == value]
        if rows.empty:
            raise ValueError(f"{condition}: no {value!r}, got {sorted(frame[condition].unique())}")
        if rows[by].duplicated().any():
            raise ValueError(f"{by}: {value!r} has several rows for one {by}")
        if rows[metric].isna().any():
            raise ValueError(
                f"{metric}: expected numbers, got NaN for {value!r}, {by} {[*rows[by][rows[metric].isna()]]}"
            )
        # Unsigned numbers would not go below 0.
        sides.append(rows.set_index(by)[metric].sort_index().astype(float))
    if not sides[0].index.equals(sides[1].index):
        raise ValueError(f"{by}: {treatment!r} and {control!r} were not run on the same ones")
    return (sides[0] - sides[1]).to_numpy()


def best_setting(frame: pd.DataFrame, score: str, *, over: Sequence[str], per: str = "method") -> pd.DataFrame:
    """The rows of the best setting of each method: that with the highest mean of `score` over its runs.

    Args:
        frame: tidy results, one row a run.
        score: a column measured on validation data.
        over: the columns tuned. A missing value is a setting like any other.
        per: each value of this column is tuned by itself.

    Raises:
        ValueError: for no rows, or a score that is not a number: a setting that failed has no mean.

    Examples:
        >>> import pandas as pd
        >>> runs = {"method": "new", "temperature": [0.1, 0.1, 0.5, 0.5], "score": [70, 72, 75, 74]}
        >>> lab.best_setting(pd.DataFrame(runs), "score", over=["temperature"])["score"].tolist()
        [75, 74]
    """
    if frame.empty or frame[score].isna().any():
        raise ValueError(
            f"{score}: expected a number in every row, got NaN in {frame[score].isna().sum()} of {len(frame)}"
        )
    kept = []
    for _, rows in frame.groupby(per, sort=False, dropna=False):
        means = rows.groupby(list(over), dropna=False)[score].transform("mean")
        # The first of equals: settings are listed in a fixed order.
        first = rows[list(over)].iloc[int(means.argmax())]
        same = (rows[list(over)].eq(first) | (rows[list(over)].isna() & first.isna())).all(axis=1)
        kept.append(rows[same])
    return pd.concat(kept, ignore_index=True)
