"""Checks of arguments: what they let through, and what their errors say."""

import math

import pytest
import torch
from support import annotations_unchecked, rejects

from lossbook.methods._validate import alike, indices, number, one_of, shaped, whole


@pytest.mark.parametrize(
    ("shape", "size"), [("n", (3,)), ("n d", (3, 2)), ("n n", (3, 3)), ("v n d", (2, 3, 2)), ("n 2", (3, 2)), ("", ())]
)
def test_what_fits_a_shape_is_passed_on_in_single_precision_at_least(shape, size):
    assert shaped("x", torch.ones(size, dtype=torch.float64), shape).dtype == torch.float64
    half = shaped("x", torch.ones(size, dtype=torch.bfloat16), shape)
    assert half.dtype == torch.float32 and half.shape == size


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ("n", torch.ones(3, 1)),
        ("n d", torch.ones(3)),
        ("n d", torch.ones(3, 0)),
        ("n n", torch.ones(3, 2)),
        ("n 2", torch.ones(3, 3)),
        ("2", torch.ones(3)),
        ("", torch.ones(1)),
        ("n d", torch.ones(3, 2, dtype=torch.int64)),
        ("n d", [[1.0]]),
    ],
    ids=str,
)
def test_other_shapes_and_kinds_are_refused(shape, value):
    message = rejects(shaped, "x", value, shape, names="x")
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        assert f"({shape.replace(' ', ', ')}" in message and str(tuple(value.shape)) in message


def test_indices():
    with annotations_unchecked():
        indices("x", torch.ones(3, dtype=torch.int32), 3)
        indices("x", torch.ones(3, 7, dtype=torch.int64), 3, "k")
    for value in (torch.ones(3), torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.int64), 3):
        rejects(indices, "x", value, 3, names="x")
    assert "(3, k)" in rejects(indices, "x", torch.ones(3, 0, dtype=torch.int64), 3, "k", names="x")


def test_words():
    one_of("form", "sum", "sum", "mean")
    assert "'sum', 'mean' or 'none', got 'all'" in rejects(one_of, "form", "all", "sum", "mean", "none", names="form")


@pytest.mark.parametrize("value", [0, 6, 2.0, True, "3", None], ids=str)
def test_whole_numbers_within_limits(value):
    whole("n", 5, most=5)
    assert "from 1 to 5" in rejects(whole, "n", value, most=5, names="n")


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "1", None], ids=str)
def test_numbers_within_limits(value):
    for good in (0, 1.0, 0.5, torch.tensor(7.0)):
        with annotations_unchecked():
            number("x", good, 0.0, 1.0)
    assert "from 0 to 1" in rejects(number, "x", value, 0.0, 1.0, names="x")
    rejects(number, "x", torch.ones(2), names="x")


def test_what_is_alike_in_what_is_asked_about():
    one, other = torch.ones(3, 2), torch.ones(3, 2, dtype=torch.float64)
    alike("y", other, "x", one, "shape", "device")
    assert rejects(alike, "y", other, "x", one, "shape", "dtype", names="y") == (
        "y: expected the dtype of x, torch.float32, got torch.float64"
    )
    assert "the shape of x, (3, 2), got (2, 3)" in rejects(alike, "y", one.mT, "x", one, "shape", names="y")
