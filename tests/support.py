"""What several test files share."""

import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import jaxtyping
import pytest
import torch
import torch._dynamo.symbolic_convert
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def annotations_unchecked():
    """As users run the library: the tests' checker of annotations would reject bad input before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextmanager
def without_hooks():
    """Inside, what is imported of `lossbook.methods` is a second copy, as users import it: no annotation is checked.

    torch.compile looks modules up by name while it runs, so that compiled calls belong inside as well.
    """
    found_by_compile = torch._dynamo.symbolic_convert._import_module
    found_by_compile.cache_clear()
    ours = {name: value for name, value in sys.modules.items() if name.startswith("lossbook.methods")}
    hooks = [finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping")]
    for name in ours:
        del sys.modules[name]
    for hook in hooks:
        sys.meta_path.remove(hook)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith("lossbook.methods")]:
            del sys.modules[name]
        sys.modules.update(ours)
        if "lossbook.methods" in ours:  # an import leaves the second copy there
            sys.modules["lossbook"].methods = ours["lossbook.methods"]
        sys.meta_path[:0] = hooks
        found_by_compile.cache_clear()


def unhooked(module: str) -> ModuleType:
    """A second copy of a module of `lossbook.methods`, as users import it: the checker of annotations is not in it."""
    with without_hooks():
        return import_module(module)


def one_graph(function: Callable, *, backward: bool = False) -> Callable:
    """The function as torch.compile sees it, an error where its graph breaks; with `backward` its gradient is traced too.

    No machine code is made: that takes seconds a function, and tests PyTorch.
    """
    return torch.compile(function, fullgraph=True, backend="aot_eager" if backward else "eager")


def rejects(function, *args, names: str, **kwargs) -> str:
    """Check that a ValueError says which argument (a regular expression), what was expected and what came."""
    with annotations_unchecked(), pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert re.match(rf"({names}): (expected|no) .+", message), message
    return message


def pair(n=8, d=5, *, seed=0, dtype=torch.float64, scale=1.0):
    """Two sets of random embeddings that ask for gradients; the same directions whatever dtype and scale."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, d, generator=draw, dtype=torch.float64)
    return (scale * x).to(dtype).requires_grad_(), (scale * y).to(dtype).requires_grad_()


def extreme(case: str, dtype: torch.dtype):
    """Embeddings as of `pair` in a situation that breaks careless code; as they are in any other case."""
    x, y = (value.detach().clone() for value in pair(dtype=dtype))
    if case == "equal":
        y = x.clone()
    elif case == "opposite":
        y = -x
    elif case == "all the same":
        x, y = x[:1].repeat(len(x), 1), x[:1].repeat(len(x), 1)
    elif case == "duplicates":
        x, y = x[[0, 0, 1, 1, 2, 2]], x[[0, 0, 1, 1, 2, 2]]
    elif case == "zero row":
        x[0] = 0
    elif case == "single":
        x, y = x[:1], y[:1]
    elif case in ("huge", "tiny"):
        # As far as half precision reaches.
        factor = 10.0 ** ((3 if dtype == torch.float16 else 15) * (1 if case == "huge" else -1))
        x, y = x * factor, y * factor
    return x.requires_grad_(), y.requires_grad_()


def mapped_is_one_by_one(loss):
    """Check that a loss of two sets of embeddings, mapped over runs, is that of each run alone, and its gradient."""
    x, y = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.func.vmap(torch.func.grad_and_value(loss))(x, y)
    for run in range(3):
        alone = torch.func.grad_and_value(loss)(x[run], y[run])
        torch.testing.assert_close([part[run] for part in gradients], list(alone), rtol=1e-12, atol=1e-12)


def agree(ours, theirs, inputs, tolerance=1e-10):
    """Check that two losses, and their gradients by the inputs, are equal."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    gradients = (torch.autograd.grad(loss.sum(), inputs) for loss in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operator returns, forward and backward."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.size = max([self.size, *(value.numel() for value in tree_leaves(result) if isinstance(value, Tensor))])
        return result


def in_blocks(loss, inputs, *, most: int):
    """Check that `loss(rows=...)` has the value and gradients of the whole, and holds at most so many numbers at once.

    The whole must hold more: the bound could not fail otherwise.
    """
    for rows in (1, 3, 100):
        agree(loss(rows=rows), loss(rows=None), inputs, tolerance=1e-12)
    for rows in (None, 3):
        with Largest() as largest:
            torch.autograd.grad(loss(rows=rows).sum(), inputs)
        assert (largest.size <= most) == (rows is not None), f"{largest.size} numbers with rows={rows}"
