"""Contrastive losses: two views of a thing attract each other, all other pairs of the batch repel."""

from lossbook.methods._parts import public_names

__all__ = public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
