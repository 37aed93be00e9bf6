"""Checks of arguments: what they let through, and what their errors say."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import annotations_unchecked, one_graph, rejects

from lossbook.methods._validate import (
    alike,
    cross_entropy,
    indices,
    matching,
    number,
    one_of,
    picked,
    positive,
    shaped,
    together,
    whole,
)


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
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
            for shape, wanted in (((3,), (3,)), ((3, 7), (3, "k"))):
                assert indices("x", torch.ones(shape, dtype=dtype), *wanted).dtype == torch.int64
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


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ("float16 float16", "float32"),
        ("float16 bfloat16", "float32"),
        ("bfloat16 float32", "float32"),
        ("float32 float64 float16", "float64"),
    ],
)
def test_what_is_combined_has_the_widest_dtype_and_at_least_single_precision(dtypes, widest):
    tensors = {f"x{i}": torch.ones(3, 2, dtype=getattr(torch, dtype)) for i, dtype in enumerate(dtypes.split())}
    for together_or_matching in (together, lambda **tensors: matching("n d", **tensors)):
        assert {each.dtype for each in together_or_matching(**tensors)} == {getattr(torch, widest)}


def test_what_is_combined_is_on_one_device():
    here, there = torch.ones(2, 2), torch.ones(2, 2, device="meta")
    assert "the device of x, cpu, got meta" in rejects(together, x=here, y=there, names="y")
    assert "the device of x, cpu, got meta" in rejects(matching, "n n", x=here, y=there, names="y")
    assert "floating" in rejects(together, x=here, y=here.long(), names="y")


def test_what_matches_has_one_shape():
    assert "the shape of x, (2, 3), got (3, 2)" in rejects(
        matching, "n d", x=torch.ones(2, 3), y=torch.ones(3, 2), names="y"
    )
    assert "(n, d)" in rejects(matching, "n d", x=torch.ones(2, 3), y=torch.ones(3), names="y")


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.float16, np.array], ids=str)
def test_numbers_of_numpy_are_numbers(kind):
    torch._dynamo.reset()
    for check in (number, positive, lambda name, value: number(name, value, 0.0, 1.0)):
        with annotations_unchecked():
            found = check("x", kind(0.5))
        assert found == 0.5 and (isinstance(found, float) or kind is np.array)
        compiled = one_graph(lambda x, value, check=check: x * check("x", value))
        torch.testing.assert_close(compiled(torch.ones(3), kind(0.5)), torch.full((3,), 0.5))


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint16], ids=str)
def test_whole_numbers_of_numpy_are_whole_numbers(kind):
    assert type(whole("n", kind(2), most=5)) is int
    assert "from 3 to 5, got 2" in rejects(whole, "n", kind(2), least=3, most=5, names="n")
    assert positive("n", kind(2)) == number("n", kind(2), 1.0, 2.0) == 2


@pytest.mark.parametrize("value", [np.bool_(True), np.float64("nan"), np.float32("inf"), np.array([1.0, 2.0]), "1"])
def test_other_values_are_no_numbers(value):
    for check in (number, positive):
        rejects(check, "x", value, names="x")


def test_a_tensor_in_half_precision_becomes_single():
    for check in (number, positive):
        value = check("x", torch.tensor(0.1, dtype=torch.bfloat16, requires_grad=True))
        assert value.dtype == torch.float32 and value.requires_grad


@pytest.mark.filterwarnings("error")
def test_a_number_may_change_between_calls_of_a_compiled_function():
    torch._dynamo.reset()
    compiled = one_graph(lambda x, a, b, c: x * positive("a", a) + number("b", b, 0.0, 1.0) * number("c", c))
    x = torch.ones(3)
    for a, b, c in ((0.1, 0.2, -0.3), (0.4, 0.5, 0.6), (1e30, 1e-30, -1e30), (2, 1, 0)):
        torch.testing.assert_close(compiled(x, a, b, c), x * a + b * c)
    for bad in ((0.0, 0.5, 0.0), (0.1, 1.5, 0.0), (0.1, 0.5, -math.inf), (math.nan, 0.5, 0.0), (0.1, math.nan, 0.0)):
        with pytest.raises(Exception, match="expected a"):
            compiled(x, *bad)


def test_cross_entropy_is_not_a_number_where_a_target_is_no_class():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, -100, 3, 1])
    good = torch.tensor([True, True, False, False, True])
    ours = cross_entropy(logits, targets)
    assert ours[~good].isnan().all()
    torch.testing.assert_close(ours[good], F.cross_entropy(logits[good], targets[good], reduction="none"))
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert gradient[~good].isnan().all() and gradient[good].isfinite().all()
    torch.testing.assert_close(picked(logits, targets)[good], logits[good, targets[good]])
