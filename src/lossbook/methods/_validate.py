"""Checks of arguments that all parts share, and the precision in which losses are computed.

They look at shapes, dtypes and Python numbers, never at the values of tensors, so that they are free
under vmap and torch.compile and never wait for a GPU. What they return is what callers go on with: tensors in at
least float32 and of one dtype, labels in int64, NumPy's scalars as Python's.
"""

import functools
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
Number = int | float | Tensor
# torch.compile holds every number for smaller than infinity, so finite ones are told by this.
LARGEST = sys.float_info.max


def reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """Mean, sum, or the values themselves."""
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none":
        return values
    raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


def floating(name: str, value: object) -> Tensor:
    """The tensor, in float32 if it comes in half precision; ValueError if it is not floating point."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    return value.float() if value.dtype.itemsize < 4 else value


def together(**tensors: object) -> tuple[Tensor, ...]:
    """Tensors that a formula combines, by name: in the widest of their dtypes, at least float32, on one device."""
    values = {name: floating(name, value) for name, value in tensors.items()}
    first, reference = next(iter(values.items()))
    for name, value in values.items():
        alike(name, value, first, reference, "device")
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in values.values()))
    return tuple(value.to(dtype) for value in values.values())


def matching(shape: str, **tensors: object) -> tuple[Tensor, ...]:
    """As `together`, of tensors that all have one shape, described as for `shaped`."""
    for name, value in tensors.items():
        shaped(name, value, shape)
    values = together(**tensors)
    first, *others = tensors
    for name, value in zip(others, values[1:], strict=True):
        alike(name, value, first, values[0], "shape")
    return values


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Where autocast does not reach: for products that half precision would spoil, on the device of a tensor."""
    device = like.device.type
    # Not every device has an autocast to switch off: the meta device has none.
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def shaped(name: str, value: object, shape: str) -> Tensor:
    """As `floating`, and of a shape such as "n d", "n 2" or "": the same letter is the same number, and none is 0."""
    value = floating(name, value)
    letters = shape.split()
    sizes = dict(zip(letters, value.shape, strict=False)) | {each: int(each) for each in letters if each.isdigit()}
    if 0 in value.shape or tuple(value.shape) != tuple(sizes.get(letter) for letter in letters):
        wanted = f"({letters[0]},)" if len(letters) == 1 else f"({', '.join(letters)})"
        raise ValueError(f"{name}: expected shape {wanted}, no dimension of it 0, got {tuple(value.shape)}")
    return value


def alike(name: str, value: Tensor, other: str, reference: Tensor, *attributes: str) -> None:
    """ValueError unless shape, dtype or device (whichever are named) of a tensor are those of the other."""
    for attribute in attributes:
        expected, got = (getattr(each, attribute) for each in (reference, value))
        if expected != got:
            if attribute == "shape":
                expected, got = tuple(expected), tuple(got)
            raise ValueError(f"{name}: expected the {attribute} of {other}, {expected}, got {got}")


def paired(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "n d"], names: tuple[str, str] = ("queries", "keys")
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Two sets of embeddings, checked against each other: `matching` matrices.

    Args:
        queries, keys: the embeddings.
        names: what the caller calls them, for the error.

    Raises:
        ValueError: if they are not floating-point matrices of the same shape and device, with at least one row and
            one column.
    """
    queries, keys = matching("n d", **dict(zip(names, (queries, keys), strict=True)))
    return queries, keys


def logit_pair(
    logits: Float[Tensor, "n k"],
    others: Float[Tensor, "n k"],
    names: tuple[str, str] = ("logits", "adversarial_logits"),
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Two sets of logits of the same shape, as of `matching`; ValueError in the caller's names."""
    logits, others = matching("n k", **dict(zip(names, (logits, others), strict=True)))
    return logits, others


def indices(name: str, value: object, *shape: int | str) -> Tensor:
    """Whole numbers of this shape, in which a letter is any number but 0, as int64: uint8 would index as a mask."""
    if isinstance(value, Tensor):
        fits = value.ndim == len(shape) and all(
            have > 0 if isinstance(want, str) else have == want for have, want in zip(value.shape, shape, strict=True)
        )
        got = f"{value.dtype} of shape {tuple(value.shape)}"
        if fits and not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool:
            return value.long()
    else:
        got = type(value).__name__
    wanted = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
    raise ValueError(f"{name}: expected whole numbers of shape {wanted}, got {got}")


def picked(values: Float[Tensor, "n k"], targets: Integer[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The entry of each row that its target names; NaN, and a gradient of NaN, where the target is none of 0 to k-1."""
    inside = (targets >= 0) & (targets < values.shape[1])
    entries = values.gather(1, targets.clamp(0, values.shape[1] - 1)[:, None])[:, 0]
    return entries * torch.where(inside, 1.0, math.nan).to(entries.dtype)


def cross_entropy(logits: Float[Tensor, "n k"], targets: Integer[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of each row; NaN where the target is none of 0 to k-1. PyTorch would ignore -100 silently."""
    return -picked(logits.log_softmax(1), targets)


def one_of(name: str, value: object, *allowed: str) -> None:
    """ValueError unless the value is one of these words."""
    if value not in allowed:
        raise ValueError(f"{name}: expected {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}, got {value!r}")


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """The Python or NumPy integer; ValueError unless it is within these limits."""
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most):
        return value
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name}: expected a whole number {limits}, got {value!r}")


@overload
def number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> float: ...
@overload
def number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> Number: ...
def number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> Number:
    """The Python or NumPy number, or the tensor without dimensions, in at least float32.

    ValueError unless the number is finite and within these limits; of a tensor only dtype and shape are checked.
    """
    value = _plain(value)
    if isinstance(value, Tensor):
        return _without_dimensions(name, value)
    # Comparisons alone, for a number that changes between calls of a compiled function.
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -LARGEST <= value <= LARGEST
        and least <= value <= most
    ):
        return value
    limits = (
        f" from {least:g} to {most:g}" if most < math.inf else f" of at least {least:g}" if least > -math.inf else ""
    )
    raise ValueError(f"{name}: expected a finite number{limits}, got {value!r}")


@overload
def positive(name: str, value: float) -> float: ...
@overload
def positive(name: str, value: object) -> Number: ...
def positive(name: str, value: object) -> Number:
    """As `number`, above zero."""
    value = _plain(value)
    if isinstance(value, Tensor):
        return _without_dimensions(name, value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 < value <= LARGEST:
        raise ValueError(f"{name}: expected a positive, finite number, got {value}")
    return value


def _plain(value: object) -> object:
    """A NumPy scalar as the Python number that it holds."""
    if isinstance(value, np.generic):
        return value.item()
    # torch.compile takes NumPy's scalars for arrays, whose values it does not see.
    return torch.as_tensor(value).double() if isinstance(value, np.ndarray) else value


def _without_dimensions(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point() or value.ndim:
        raise ValueError(
            f"{name}: expected a number or a floating-point tensor without dimensions, "
            f"got {value.dtype} of shape {tuple(value.shape)}"
        )
    return floating(name, value)
