"""lossbook: what neural networks are trained to do, derived, checked, run and judged.

The library is `lossbook.methods`, one sub-package a part of the book. `lossbook.lab` is the bench on
which the notebooks run, `lossbook.press` what turns them into the site.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

# They load on first use, so that `import lossbook` costs next to nothing; static tools see them here.
if TYPE_CHECKING:
    from lossbook import lab, methods, press

__version__ = version("lossbook")
__all__ = ["lab", "methods", "press"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name in __all__:
            try:
                return import_module(f"lossbook.{name}")
            except ModuleNotFoundError as error:
                # What `hasattr` expects; an import statement then tries for itself, and raises the error as it is.
                raise AttributeError(f"module 'lossbook' has no attribute {name!r}: {error}") from error
        raise AttributeError(f"module 'lossbook' has no attribute {name!r}")
