"""lossbook: what neural networks are trained to do, derived, checked, run and judged.

The library is `lossbook.methods`, one sub-package a part of the book. `lossbook.lab` is the bench on
which the notebooks run, `lossbook.press` what turns them into the site.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

__version__ = version("lossbook")
# They load on first use, which a type checker does not see.
__all__ = ["lab", "methods", "press"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    # So that `import lossbook` costs next to nothing.
    if name in __all__:
        return import_module(f"lossbook.{name}")
    raise AttributeError(f"module 'lossbook' has no attribute {name!r}")
