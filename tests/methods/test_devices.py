"""Every public name is called on another device by the tests of its paper, and that test can fail."""

from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
import torch
from devices import loaded, on_any_device, only_on_cpu, reached

from lossbook import methods

HERE = Path(__file__).parent


def test_every_public_name_has_an_example():
    found = set()
    for path in HERE.rglob("test_*.py"):
        if test := getattr(loaded(path), "test_on_any_device", None):
            found |= reached(test)
    modules = [
        import_module(info.name)
        for info in walk_packages(methods.__path__, f"{methods.__name__}.")
        if not info.ispkg and not info.name.rpartition(".")[2].startswith("_")
    ]
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if getattr(module, name) not in found
    ]
    assert not missing, f"no example in any test_on_any_device: {', '.join(missing)}"


def verdict(*examples):
    test = on_any_device(*examples)
    for example in test.examples:
        test(example)


X = torch.randn(3, 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[torch.arange(2)], r"arange.* made a tensor of shape \(2,\) on cpu"),
        (lambda x: x + torch.ones(2), "cpu"),
        (lambda x: x @ torch.eye(2), "made a tensor"),
        (lambda x: x / x.abs().max().item(), "item"),
        (lambda x: x if x.sum() > 0 else -x, "item"),
        (lambda x: x.cpu(), "meta"),
        (lambda x: torch.zeros(3), "made a tensor"),
        (lambda x: x.sum(int(x.device.type == "cpu")), "on the meta device"),
        (lambda x: x.double() if x.device.type == "cpu" else x, "on the meta device"),
        (lambda x: x.detach() if x.device.type == "cpu" else x, "on the meta device"),
    ],
    ids=["index", "sum", "product", "item", "branch", "copy", "factory", "shape", "dtype", "gradient"],
)
def test_what_depends_on_the_device_is_found(function, message):
    with pytest.raises((AssertionError, RuntimeError), match=message):
        verdict(partial(function, X))


def test_what_is_said_to_need_values_must():
    verdict(only_on_cpu("a number is read", lambda x: x.sum().item(), X))
    verdict(only_on_cpu("a constant", lambda x: torch.ones(3), X))
    with pytest.raises(AssertionError, match="it can run anywhere"):
        verdict(only_on_cpu("nothing is read", torch.sin, X))
