"""How embeddings lie on the unit sphere: views close together (alignment), all of them spread out (uniformity)."""

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, over_terms, pooled, total
from lossbook.methods._validate import Number, paired, positive, shaped
from lossbook.methods.similarities import by_rows, inner_products, unit

__all__ = ["alignment", "uniformity"]


def alignment(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    power: float = 2.0,
    rows: int | None = None,
) -> Float[Tensor, ""]:
    r"""Mean distance of the two views on the sphere, $\frac1n\sum_i\lVert x_i-y_i\rVert^{\alpha}$; 0 is best.

    With labels, the mean over all pairs $i\ne j$ of one class, of both views pooled, with
    $\lVert x_i-x_j\rVert^2=2-2\cos(x_i,x_j)$.

    Args:
        first: raw embeddings, normalised inside.
        second: their other views; None with labels, for one set of embeddings.
        labels: the class of each row.
        power: $\alpha>0$.
        rows: with labels, compute the distances of this many rows at a time: see `by_rows`.

    Returns:
        A number between 0 and $2^\alpha$; 0 where labels make no pair.

    Raises:
        ValueError: for shapes, dtypes or a power other than these.

    Source:
        Wang and Isola (2020), arXiv:2005.10242, sec. 4.1.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(alignment(x, x).item(), 3), round(alignment(x, -x).item(), 3)
        (0.0, 4.0)
    """
    power = positive("power", power)
    if labels is None and second is not None:
        first, second = map(unit, paired(first, second, ("first", "second")))
        return _power((first - second).square().sum(-1), power).mean()
    pairs = pooled(first, second, ("first", "second"), labels=labels, negatives=None, one_way=False)

    def distances(block: Block) -> Tensor:
        return total(_power(block.pull.clamp(min=0), power), block.positive)

    return over_terms(pairs.over(distances, rows, lambda cosines: 2 - 2 * cosines), "mean")


def _power(squares: Tensor, power: Number) -> Tensor:
    """Distances to a power, of their squares; the root has no slope at 0, where both points coincide."""
    if isinstance(power, (int, float)) and power == 2:
        return squares
    return torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares) ** (power / 2))


def uniformity(embeddings: Float[Tensor, "n d"], *, scale: float = 2.0, rows: int | None = None) -> Float[Tensor, ""]:
    r"""Logarithm of the mean Gaussian potential of all pairs on the sphere.

    $$\log\mathbb E_{i\ne j}\,e^{-t\lVert x_i-x_j\rVert^2}$$

    Between $-4t$ and $0$, where all coincide; the smaller the more uniform. Labels have no meaning here: all
    pairs repel.

    Args:
        embeddings: raw, at least two rows, normalised inside.
        scale: $t>0$.
        rows: compute the distances of this many rows at a time: see `by_rows`.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

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
