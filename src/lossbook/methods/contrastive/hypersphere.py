"""How embeddings lie on the unit sphere: views close together (alignment), all of them spread out (uniformity)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import paired, positive, shaped
from lossbook.methods.similarities import by_rows, inner_products, unit

__all__ = ["alignment", "uniformity"]


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, power: float = 2.0) -> Float[Tensor, ""]:
    r"""Mean distance of the two views on the sphere, $\frac1n\sum_i\lVert x_i-y_i\rVert^{\alpha}$; 0 is best.

    Args:
        first, second: raw embeddings, normalised inside.
        power: $\alpha>0$.

    Source:
        Wang and Isola (2020), arXiv:2005.10242, sec. 4.1.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(alignment(x, x).item(), 3), round(alignment(x, -x).item(), 3)
        (0.0, 4.0)
    """
    power = positive("power", power)
    first, second = map(unit, paired(first, second, ("first", "second")))
    squares = (first - second).square().sum(-1)
    if power != 2:
        # The root has no slope at 0, where both views coincide.
        squares = torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares) ** (power / 2))
    return squares.mean()


def uniformity(embeddings: Float[Tensor, "n d"], *, scale: float = 2.0, rows: int | None = None) -> Float[Tensor, ""]:
    r"""Logarithm of the mean Gaussian potential of all pairs on the sphere.

    $$\log\mathbb E_{i\ne j}\,e^{-t\lVert x_i-x_j\rVert^2}$$

    Between $-4t$ and $0$, where all coincide; the smaller the more uniform.

    Args:
        embeddings: raw, at least two rows, normalised inside.
        scale: $t>0$.
        rows: compute the distances of this many rows at a time: see `by_rows`.

    Source:
        Wang and Isola (2020), arXiv:2005.10242, sec. 4.1.

    Examples:
        >>> [round(uniformity(x).item(), 3) for x in (torch.eye(4), torch.ones(4, 4))]
        [-4.0, 0.0]
    """
    scale = positive("scale", scale)
    embeddings = shaped("embeddings", embeddings, "n d")
    n = len(embeddings)
    if n < 2:
        raise ValueError(f"embeddings: expected at least two rows, got {n}")
    embeddings = unit(embeddings)

    def potentials(some: Tensor, index: Tensor) -> Tensor:
        exponents = 2 * scale * (inner_products(some, embeddings) - 1)
        own = index[:, None] == torch.arange(n, device=index.device)
        return torch.logsumexp(exponents.masked_fill(own, -math.inf), 1)

    return torch.logsumexp(by_rows(potentials, embeddings, rows), 0) - math.log(n * (n - 1))
