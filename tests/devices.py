"""Calls of public functions that any device must be able to make.

No accelerator is needed: on PyTorch's meta device tensors have shapes and no values, so whatever reads a value fails
there, and what is made on the CPU is found.
"""

import copy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class OnlyOnCPU(NamedTuple):
    """A call that no other device can make, and why."""

    call: partial
    reason: str


def only_on_cpu(reason: str, function: Callable, *args: Any, **keywords: Any) -> OnlyOnCPU:
    """A call that must read values or returns them on the CPU: for `on_any_device`, which checks that it does."""
    return OnlyOnCPU(partial(function, *args, **keywords), reason)


def on_any_device(*examples: partial | OnlyOnCPU) -> Callable[[Any], None]:
    """A test that makes these calls on the CPU and on the meta device, with the same shapes and dtypes, backward too.

    Each is a `functools.partial` of a public function or module with all its arguments; the tensors and modules among
    them are moved, and so is `device="cpu"`. Together the examples reach every branch that makes a tensor. A test file
    calls it `test_on_any_device`, by which `tests/methods/test_devices.py` finds out what has no example yet.
    """

    @pytest.mark.parametrize("example", examples, ids=lambda example: _name(_call(example)))
    def test_on_any_device(example: partial | OnlyOnCPU) -> None:
        expected, there = _outcome(_moved(_call(example), "cpu"), "cpu"), _moved(_call(example), "meta")
        if isinstance(example, OnlyOnCPU):
            _check_that_it_needs_values(there)
            return
        draws = any(isinstance(value, torch.Generator) for value in tree_leaves((there.args, there.keywords)))
        with nullcontext() if draws else MadeOnMeta():  # the meta device has no generator
            found = _outcome(there, "meta")
        assert found == expected, f"on the meta device {found}, on the CPU {expected}"

    test_on_any_device.examples = examples
    return test_on_any_device


def examples_of(folder: Path) -> list[partial | OnlyOnCPU]:
    """The examples of all test files of a folder: of every public name of the part of the library that it tests."""
    tests = [getattr(loaded(path), "test_on_any_device", None) for path in sorted(folder.rglob("test_*.py"))]
    return [example for test in tests if test for example in test.examples]


def loaded(path: Path) -> ModuleType:
    """The module of a test file: pytest's, or a copy where pytest was not asked for it."""
    name = ".".join(path.relative_to(Path(__file__).parents[1]).with_suffix("").parts)
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reached(test: Callable) -> set[Any]:
    """The functions and classes that a test of `on_any_device` calls, and the classes that go in and come out."""
    found = set()
    for call in map(_call, test.examples):
        found.add(call.func if hasattr(call.func, "__name__") else type(call.func))
        for value in (call.func, *call.args, *call.keywords.values(), call()):
            found |= {type(each) for each in (value, *tree_leaves(value))}
    return found


def _call(example: partial | OnlyOnCPU) -> partial:
    return example.call if isinstance(example, OnlyOnCPU) else example


def _check_that_it_needs_values(call: partial) -> None:
    try:
        results = call()
    except RuntimeError as error:
        assert "meta" in str(error).lower(), f"expected a value of the meta device to be read, got {error!r}"
    else:
        assert any(isinstance(value, Tensor) and value.is_cpu for value in tree_leaves(results)), "it can run anywhere"


def _name(call: partial) -> str:
    """What is called; of a module, its class."""
    return getattr(call.func, "__name__", type(call.func).__name__)


def _moved(call: partial, device: str) -> partial:
    """The same call with copies of all tensors and modules on a device; floating-point ones ask for gradients."""

    def move(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return copy.deepcopy(value).to(device)
        if isinstance(value, Tensor):
            return value.detach().to(device, copy=True).requires_grad_(value.is_floating_point())
        return value

    keywords = {name: device if name == "device" else tree_map(move, value) for name, value in call.keywords.items()}
    return partial(move(call.func), *(tree_map(move, value) for value in call.args), **keywords)


def _outcome(call: partial, device: str) -> Any:
    """Shapes and dtypes of the results, and of their gradients by all that goes in."""
    modules, tensors = (
        [value for value in tree_leaves((call.func, call.args, call.keywords)) if isinstance(value, kind)]
        for kind in (nn.Module, Tensor)
    )
    inputs = [value for value in (*tensors, *(p for m in modules for p in m.parameters())) if value.requires_grad]
    results = call()
    ends = [value.sum() for value in tree_leaves(results) if isinstance(value, Tensor) and value.requires_grad]
    gradients = torch.autograd.grad(sum(ends), inputs, allow_unused=True) if ends else ()

    def described(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return type(value)
        assert value.device.type == device, f"expected everything on {device}, got a tensor on {value.device}"
        return tuple(value.shape), value.dtype

    return tree_map(described, (results, gradients))


class MadeOnMeta(TorchDispatchMode):
    """Refuses operators that return tensors on another device; single numbers may wait on the CPU, as for CUDA."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.ndim and value.device.type != "meta":
                raise AssertionError(f"{function} made a tensor of shape {tuple(value.shape)} on {value.device}")
        return result
