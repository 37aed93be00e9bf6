"""Differences over seeds, their intervals, and choosing settings on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lossbook.formats import student_interval

__all__ = ["Interval", "best_setting", "equivalence", "mean_interval", "paired"]


class Interval(NamedTuple):
    """A mean with its confidence limits and the number of values behind it.

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

    Raises:
        ValueError: if there is no value or one is not finite.

    Examples:
        >>> interval = lab.mean_interval([0.8, 1.1, 0.9, 1.2])
        >>> [round(limit, 3) for limit in interval]
        [1.0, 0.709, 1.291, 4]
    """
    numbers = np.asarray(values, float)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"values: expected a list of numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"values: expected finite numbers, got {numbers.tolist()}")
    return Interval(float(numbers.mean()), *student_interval(numbers, confidence), len(numbers))


def equivalence(values: Sequence[float], margin: float) -> float:
    r"""The p-value of two one-sided tests (TOST) that the mean lies within $\pm$ `margin`.

    It is below 0.025 exactly where the 95 % interval of `mean_interval` lies inside the margins.

    Source:
        Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15.

    Examples:
        >>> gains = [0.1, -0.1, 0.2, 0.0]
        >>> [lab.equivalence(gains, margin) < 0.025 for margin in (0.1, 1.0)]
        [False, True]
    """
    if not margin > 0:
        raise ValueError(f"margin: expected a positive number, got {margin}")
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))


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
        by: the column that pairs rows.

    Raises:
        ValueError: if a condition is missing, or the two do not have one row for each of the same seeds.

    Examples:
        >>> import pandas as pd
        >>> runs = {"method": ["new", "old"] * 2, "seed": [0, 0, 1, 1], "score": [82, 80, 81, 80]}
        >>> lab.paired(pd.DataFrame(runs), "score", "new", "old").tolist()
        [2, 1]
    """
    sides = []
    for value in (treatment, control):
        rows = frame[frame[condition] == value]
        if rows.empty:
            raise ValueError(f"{condition}: no {value!r}, got {sorted(frame[condition].unique())}")
        if rows[by].duplicated().any():
            raise ValueError(f"{by}: {value!r} has several rows for one {by}")
        sides.append(rows.set_index(by)[metric].sort_index())
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

    Examples:
        >>> import pandas as pd
        >>> runs = {"method": "new", "temperature": [0.1, 0.1, 0.5, 0.5], "score": [70, 72, 75, 74]}
        >>> lab.best_setting(pd.DataFrame(runs), "score", over=["temperature"])["score"].tolist()
        [75, 74]
    """
    kept = []
    for _, rows in frame.groupby(per, sort=False):
        means = rows.groupby(list(over), dropna=False)[score].transform("mean")
        # The first of equals: settings are listed in a fixed order.
        first = rows[list(over)].iloc[int(means.argmax())]
        same = (rows[list(over)].eq(first) | (rows[list(over)].isna() & first.isna())).all(axis=1)
        kept.append(rows[same])
    return pd.concat(kept, ignore_index=True)
