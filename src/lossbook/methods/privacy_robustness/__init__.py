"""Privacy and robustness: training against those who attack a model or ask it about its data."""

from lossbook.methods._parts import public_names

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
