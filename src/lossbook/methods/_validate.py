"""Checks of arguments that all parts share, and the precision in which losses are computed.

They look at shapes, dtypes and Python numbers, never at the values of tensors, so that they are free
under vmap and torch.compile and never wait for a GPU.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


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
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


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
    """Both sets of embeddings, checked against each other, in at least float32.

    Args:
        queries, keys: the embeddings.
        names: what the caller calls them, for the error.

    Raises:
        ValueError: if they are not floating-point matrices of the same shape, dtype and device, with
            at least one row and one column.
    """
    for name, value in zip(names, (queries, keys), strict=True):
        shaped(name, value, "n d")
    alike(names[1], keys, names[0], queries, "shape", "dtype", "device")
    return floating(names[0], queries), floating(names[1], keys)


def logit_pair(
    logits: Float[Tensor, "n k"],
    others: Float[Tensor, "n k"],
    names: tuple[str, str] = ("logits", "adversarial_logits"),
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Both sets of logits, of the same shape, in at least float32; ValueError in the caller's names."""
    first, second = (shaped(name, value, "n k") for name, value in zip(names, (logits, others), strict=True))
    alike(names[1], second, names[0], first, "shape")
    return first, second


def indices(name: str, value: object, *shape: int | str) -> None:
    """ValueError unless the value is a tensor of whole numbers of this shape, in which a letter is any number but 0."""
    if isinstance(value, Tensor):
        fits = value.ndim == len(shape) and all(
            have > 0 if isinstance(want, str) else have == want for have, want in zip(value.shape, shape, strict=True)
        )
        got = f"{value.dtype} of shape {tuple(value.shape)}"
        if fits and not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool:
            return
    else:
        got = type(value).__name__
    wanted = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"
    raise ValueError(f"{name}: expected whole numbers of shape {wanted}, got {got}")


def one_of(name: str, value: object, *allowed: str) -> None:
    """ValueError unless the value is one of these words."""
    if value not in allowed:
        raise ValueError(f"{name}: expected {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}, got {value!r}")


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """ValueError unless the value is a Python integer within these limits."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)
    if not fits:
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: expected a whole number {limits}, got {value!r}")


def number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """ValueError unless the number is finite and within these limits; of a tensor only dtype and shape are checked."""
    if isinstance(value, Tensor):
        positive(name, value)
        return
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (isinstance(value, (int, float)) and fits and least <= value <= most):
        limits = (
            f" from {least:g} to {most:g}"
            if most < math.inf
            else f" of at least {least:g}"
            if least > -math.inf
            else ""
        )
        raise ValueError(f"{name}: expected a finite number{limits}, got {value!r}")


def positive(name: str, value: object) -> None:
    """ValueError unless the number is positive and finite; of a tensor only the dtype and shape are checked."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.ndim:
            raise ValueError(
                f"{name}: expected a number or a floating-point tensor without dimensions, "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
    elif not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a number, got {type(value).__name__}")
    elif not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive, finite number, got {value}")
