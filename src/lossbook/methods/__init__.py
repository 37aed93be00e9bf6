"""The methods of the papers, one sub-package a part: `from lossbook.methods.contrastive import info_nce`.

What several parts share are modules beside them: `from lossbook.methods import poincare`.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

# The parts and what they share, listed by `make format`. They load on first use; static tools see them here.
if TYPE_CHECKING:
    from lossbook.methods import (
        accumulation,
        adversarial,
        contrastive,
        distillation,
        distributed,
        divergences,
        layers,
        modules,
        poincare,
        privacy_robustness,
        queues,
        similarities,
    )

__all__ = [
    "accumulation",
    "adversarial",
    "contrastive",
    "distillation",
    "distributed",
    "divergences",
    "layers",
    "modules",
    "poincare",
    "privacy_robustness",
    "queues",
    "similarities",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name in __all__:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")

    def __dir__() -> list[str]:
        return __all__
