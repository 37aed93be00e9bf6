"""What several test files share."""

import re
import sys
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import jaxtyping
import pytest


@contextmanager
def annotations_unchecked():
    """As users run the library: the tests' checker of annotations would reject bad input before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def unhooked(module: str) -> ModuleType:
    """A second copy of a module of `lossbook.methods`, as users import it: the checker of annotations is not in it."""
    ours = {name: value for name, value in sys.modules.items() if name.startswith("lossbook.methods")}
    hooks = [finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping")]
    for name in ours:
        del sys.modules[name]
    for hook in hooks:
        sys.meta_path.remove(hook)
    try:
        return import_module(module)
    finally:
        for name in [name for name in sys.modules if name.startswith("lossbook.methods")]:
            del sys.modules[name]
        sys.modules.update(ours)
        sys.meta_path[:0] = hooks


def rejects(function, *args, names: str, **kwargs) -> str:
    """Check that a ValueError says which argument (a regular expression), what was expected and what came."""
    with annotations_unchecked(), pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert re.match(rf"({names}): (expected|no) .+", message), message
    return message
