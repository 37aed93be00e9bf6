"""The methods of the papers, one sub-package a part: `from lossbook.methods.contrastive import info_nce`.

What several parts share are modules beside them: `from lossbook.methods import poincare`.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

# The parts are the folders beside this file, what they share the modules; "_" begins what is not public.
__all__ = sorted(info.name for info in iter_modules(__path__) if not info.name.startswith("_"))  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
