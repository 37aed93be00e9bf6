"""Checks of arguments that the bench shares: a ValueError names the argument, what was expected and what came.

Unlike those of the methods they look at values, so that nothing wrong comes out as a good-looking number. Where no
value can be read, on the meta device and under `vmap`, they pass, and what is wrong comes out as not a number.
"""

import math
import operator
from typing import Any

import torch
from torch import Tensor

# What `vmap` and the meta device return where a ValueError would be due.
NAN = math.nan


def transformed() -> bool:
    """Whether torch.func transforms what runs now: autograd can't be asked for gradients there."""
    try:
        torch.empty(()).requires_grad_()
    except RuntimeError:
        return True
    return False


def refuted(condition: Tensor) -> bool:
    """Whether a condition fails somewhere; False where no value can be read."""
    try:
        return not bool(condition.all())
    except RuntimeError:
        if condition.is_meta or transformed():
            return False
        raise


def real(name: str, value: Any, *, finite: bool = False) -> Tensor:
    """The tensor, of floating point and without NaN, nor infinities where it must be finite."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected a floating-point tensor, got {kind}")
    good = value.isfinite() if finite else ~value.isnan()
    if refuted(good):
        raise ValueError(
            f"{name}: expected {'finite ' if finite else ''}numbers, "
            f"got {'NaN or infinity' if finite else 'NaN'} in {int((~good).sum())} of {good.numel()} places"
        )
    return value


def spoilt(values: Tensor, *causes: Tensor) -> Tensor:
    """The values, NaN where a cause is true: what comes out where nothing could be raised."""
    for cause in causes:
        values = torch.where(cause, NAN, values)
    return values


def some(name: str, count: int, what: str) -> None:
    """ValueError if there is nothing to take a mean of."""
    if not count:
        raise ValueError(f"{name}: expected {what}, got none")


def has_shape(name: str, value: Tensor, expected: tuple[int, ...], of: str) -> None:
    """ValueError unless the shape is this one, which is that of something named."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, {of}, got {tuple(value.shape)}")


def class_numbers(name: str, value: Any, number: int | None = None) -> Tensor:
    """Whole numbers of any dtype, as int64; from 0 on, and below a number of classes if there is one."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected whole numbers, got {kind}")
    value = value.long()
    if refuted((value >= 0) & (True if number is None else value < number)):
        limits = "of at least 0" if number is None else f"from 0 to {number - 1}"
        raise ValueError(f"{name}: expected numbers {limits}, got {int(value.min())} to {int(value.max())}")
    return value


def flags(name: str, value: Any) -> Tensor:
    """Flags: a tensor of truth values, since whole numbers would be taken for positions."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected flags (torch.bool), got {kind}")
    return value


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number, of Python or NumPy, of at least this."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return number


def number(name: str, value: Any, *, positive: bool = False) -> float | Tensor:
    """A finite number of at least 0, or above it: of Python or NumPy, or a floating-point tensor without dimensions."""
    wanted = f"a {'positive, finite number' if positive else 'finite number of at least 0'}"
    if isinstance(value, Tensor):
        if value.ndim or not value.is_floating_point():
            kind = f"{value.dtype} of shape {tuple(value.shape)}"
            raise ValueError(f"{name}: expected {wanted}, of a tensor one of floating point, got {kind}")
        good = value.isfinite() & (value > 0 if positive else value >= 0)
        if refuted(good):
            raise ValueError(f"{name}: expected {wanted}, got {value.item():g}")
        return spoilt(value, ~good)
    try:
        found = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (found > 0 if positive else found >= 0) or math.isinf(found):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    return found


def share(name: str, value: float) -> None:
    """ValueError unless the number lies between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")


def largest(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the target's logit is above every other: the rule by which all of the bench counts what is right.

    Compared, not subtracted, since infinities are numbers like any other. A NaN is above nothing, and nothing above it.
    """
    place = targets[..., None]
    return logits.gather(-1, place)[..., 0] > logits.scatter(-1, place, -torch.inf).amax(-1)
