"""Checks of arguments that all parts share, and the precision in which losses are computed.

They look at shapes, dtypes and Python numbers, never at the values of tensors, so that they are free
under vmap and torch.compile and never wait for a GPU.
"""

import math
from typing import Literal

import torch
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
    raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')


def floating(name: str, value: object) -> Tensor:
    """The tensor, in float32 if it comes in half precision; ValueError if it is not floating point."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


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
