r"""Similarities of embeddings: unit vectors, inner products, cosines, and losses of a matrix of them row by row.

What losses over pairs are made of, in whatever part they stand. Directions do not depend on scale, products are never
taken in the half precision of autocast.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._higher_order_ops.map import map as loop
from torch.utils.checkpoint import checkpoint

from lossbook.methods._validate import floating, full_precision, together, whole

__all__ = ["by_rows", "cosine_similarity", "inner_products", "pair_gradients", "unit"]


def unit(embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    r"""Rows of length one, $x/\lVert x\rVert_2$, whatever their scale; a row of zeros stays zero.

    The row is first divided by its largest entry. The direction does not depend on scale, so this
    constant needs no gradient; it keeps the squares from overflowing or vanishing. As by all functions here, half
    precision is computed in float32, and what is combined in the widest of its dtypes.

    Args:
        embeddings: rows of any length.

    Raises:
        ValueError: if they are no floating-point tensor.

    Source:
        ours.

    Examples:
        >>> similarities.unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).round(decimals=3)
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    embeddings = floating("embeddings", embeddings)
    largest = embeddings.detach().abs().amax(-1, keepdim=True)
    scaled = embeddings / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm == 0, 1, norm)


def inner_products(queries: Float[Tensor, "*b m d"], keys: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b m n"]:
    """Inner products, never in half precision, that of autocast included.

    Args:
        queries: rows, in any number of batches.
        keys: as `queries`.

    Raises:
        ValueError: if they are no floating-point tensors on one device.

    Source:
        ours.

    Examples:
        >>> similarities.inner_products(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 3.],
                [2., 4.]])
    """
    queries, keys = together(queries=queries, keys=keys)
    with full_precision(queries):
        return queries @ keys.mT


def cosine_similarity(queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Cosines of all pairs, $c_{ij}=q_i^\top k_j/(\lVert q_i\rVert\lVert k_j\rVert)$.

    Rounding may leave $[-1,1]$ by an ulp, a matrix product in TensorFloat-32 by far more. Autocast is
    switched off inside.

    Args:
        queries: rows of any length.
        keys: as `queries`.

    Raises:
        ValueError: if they are no floating-point tensors on one device.

    Source:
        ours.

    Examples:
        >>> queries, keys = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
        >>> similarities.cosine_similarity(queries, keys).round(decimals=3)
        tensor([[1.0000, 0.7070]])
    """
    queries, keys = together(queries=queries, keys=keys)
    return inner_products(unit(queries), unit(keys))


def by_rows(
    losses: Callable[[Float[Tensor, "m d"], Int[Tensor, " m"]], Float[Tensor, "m *k"]],
    queries: Float[Tensor, "n d"],
    rows: int | None,
) -> Float[Tensor, "n *k"]:
    r"""What a function gives for each query, computed for this many queries at a time, and again in the backward pass.

    A loss whose term $i$ needs row $i$ of a matrix of similarities, and no other, then never holds more than
    `rows` rows: its memory grows like $n$ and not like $n^2$. Value and gradient are those of one call with all
    queries, up to rounding; the price is one more forward pass. Not under torch.func if there is more than one block.
    Under torch.compile the blocks are one loop, in a graph that does not grow with their number.

    Args:
        losses: `losses(queries, index)` for some of the queries and their row numbers. It may use other tensors, such
            as the keys or a temperature; gradients reach them. Under torch.compile no two of them may be views of one.
        queries: rows.
        rows: how many at a time; None for all at once.

    Raises:
        ValueError: if `rows` is not a positive whole number.

    Source:
        ours.

    Examples:
        >>> queries, keys = torch.arange(8.0).reshape(4, 2), torch.eye(2)
        >>> similarities.by_rows(lambda some, index: (some @ keys.mT).amax(1), queries, rows=2)
        tensor([1., 3., 5., 7.])
    """
    if rows is not None:
        rows = whole("rows", rows)
    index = torch.arange(len(queries), device=queries.device)
    if rows is None or rows >= len(queries):
        return losses(queries, index)
    if torch.compiler.is_compiling():
        # The last block is filled up with the last row; what that gives is cut off.
        padded = torch.arange(-(-len(queries) // rows) * rows, device=queries.device).clamp(max=len(queries) - 1)
        found = loop(lambda some, *_: losses(queries[some], some), padded.unflatten(0, (-1, rows)))
        return found.flatten(0, 1)[: len(queries)]
    blocks = zip(queries.split(rows), index.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks])


def pair_gradients(
    loss: Callable[[Float[Tensor, "n m"]], Float[Tensor, ""]], similarities: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    r"""Gradient of a loss by the similarity of each pair, $\partial\mathcal L/\partial s_{ij}$.

    A pair whose entry is negative is pulled together, one whose entry is positive pushed apart.

    Args:
        loss: of a matrix of similarities, such as `lambda s: diagonal_cross_entropy(s / 0.1, reduction="sum")`.
        similarities: where the gradient is taken.

    Raises:
        ValueError: if the similarities are no floating-point tensor.

    Source:
        ours.

    Examples:
        >>> loss = lambda cosines: torch.nn.functional.cross_entropy(cosines, torch.arange(2))
        >>> similarities.pair_gradients(loss, torch.eye(2)).round(decimals=3)
        tensor([[-0.1340,  0.1340],
                [ 0.1340, -0.1340]])
    """
    return torch.func.grad(loss)(floating("similarities", similarities))
