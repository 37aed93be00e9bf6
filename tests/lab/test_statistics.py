"""Intervals, equivalence and choices, against SciPy and by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lossbook.lab.statistics import best_setting, equivalence, mean_interval, paired

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3)


@given(numbers, st.sampled_from([0.9, 0.95, 0.99]))
def test_interval_is_scipys(values, confidence):
    ours = mean_interval(values, confidence=confidence)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert (ours.effect, ours.n) == (pytest.approx(np.mean(values)), len(values))


def test_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3, 2, size=(4000, 5))
    covered = np.mean([low <= 3 <= high for _, low, high, _ in map(mean_interval, draws)])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_interval_of_one_value_and_of_equal_values():
    assert mean_interval([2.0]) == (2.0, -np.inf, np.inf, 1)
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0]]])
def test_values_that_are_no_sample_are_refused(values):
    with pytest.raises(ValueError, match="values: expected"):
        mean_interval(values)


@given(numbers, st.floats(0.01, 100))
def test_equivalence_agrees_with_the_interval(values, margin):
    _, low, high, _ = mean_interval(values)
    if min(abs(low + margin), abs(high - margin)) > 1e-6:
        assert (equivalence(values, margin) < 0.025) == (-margin < low and high < margin)


def test_equivalence_needs_a_margin():
    for margin in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="margin: expected a positive, finite number"):
            equivalence([1.0, 2.0], margin)


@given(numbers, st.floats(0.01, 100))
def test_equivalence_is_scipys(values, margin):
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert equivalence(values, margin) == pytest.approx(max(above, below), rel=1e-6, abs=1e-12)


def test_equivalence_of_too_few_values_is_refused_and_of_equal_values_is_sure():
    for values, message in (
        ([], "expected a list of numbers"),
        ([0.1], "expected at least two, got 1"),
        ([0.1, np.nan], "expected finite"),
    ):
        with pytest.raises(ValueError, match=f"values: {message}"):
            equivalence(values, 1.0)
    # The interval is a point: within the margins, on one of them, outside.
    assert [equivalence([value] * 3, 0.5) for value in (0.25, 0.5, -0.75)] == [0, 1, 1]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, np.nan])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=confidence)


FRAME = pd.DataFrame(
    {
        "method": ["new"] * 3 + ["old"] * 3,
        "seed": [0, 1, 2, 2, 0, 1],
        "accuracy": [0.9, 0.8, 0.7, 0.5, 0.6, 0.4],
    }
)


def test_pairs_are_matched_by_seed_not_by_order():
    assert paired(FRAME, "accuracy", "new", "old") == pytest.approx([0.3, 0.4, 0.2])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME[FRAME["method"] == "new"], "method: no 'old'"),
        (FRAME.iloc[:-1], "seed: 'new' and 'old' were not run on the same ones"),
        (FRAME.assign(seed=0), "seed: 'new' has several rows for one seed"),
    ],
)
def test_pairs_that_do_not_match_are_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        paired(frame, "accuracy", "new", "old")


def test_differences_of_what_is_no_number_are_refused_and_unsigned_numbers_go_below_zero():
    frame = FRAME.assign(accuracy=[0.9, np.nan, 0.7, 0.5, 0.6, 0.4])
    with pytest.raises(ValueError, match=r"accuracy: expected numbers, got NaN for 'new', seed \[1\]"):
        paired(frame, "accuracy", "new", "old")
    counted = FRAME.assign(accuracy=np.array([1, 2, 3, 4, 5, 6], np.uint8))
    assert paired(counted, "accuracy", "new", "old").tolist() == [-4, -4, -1]


def test_a_setting_that_failed_is_not_chosen_by_the_runs_that_are_left():
    frame = pd.DataFrame({"method": "a", "rate": [0.1, 0.1, 0.2, 0.2], "validation": [0.9, np.nan, 0.5, 0.5]})
    with pytest.raises(ValueError, match="validation: expected a number in every row, got NaN in 1 of 4"):
        best_setting(frame, "validation", over=["rate"])
    with pytest.raises(ValueError, match="validation: expected a number in every row, got NaN in 0 of 0"):
        best_setting(frame.iloc[:0], "validation", over=["rate"])


def test_best_setting_is_by_mean_and_keeps_all_its_seeds():
    frame = pd.DataFrame(
        {
            "method": ["a"] * 4 + ["b"] * 2,
            "rate": [0.1, 0.1, 0.2, 0.2, 0.1, 0.1],
            "temperature": [1.0, 1.0, 1.0, 1.0, np.nan, np.nan],
            "seed": [0, 1, 0, 1, 0, 1],
            "validation": [0.9, 0.1, 0.6, 0.6, 0.3, 0.3],  # the best single run is not the best setting
        }
    )
    best = best_setting(frame, "validation", over=["rate", "temperature"])
    assert best[["method", "rate"]].drop_duplicates().values.tolist() == [["a", 0.2], ["b", 0.1]]
    assert best.groupby("method")["seed"].apply(list).to_dict() == {"a": [0, 1], "b": [0, 1]}


def test_of_equals_the_first_setting_is_best():
    frame = pd.DataFrame({"method": "a", "rate": [0.1, 0.2], "seed": 0, "validation": 0.5})
    assert best_setting(frame, "validation", over=["rate"])["rate"].tolist() == [0.1]
