"""Layers: what passes forward through a layer, and what its gradient keeps on the way back."""

from lossbook.methods._parts import public_names

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
