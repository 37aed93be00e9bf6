"""What contrastive losses share: pairs of embeddings, their cosines, and InfoNCE itself."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import Reduction, floating, positive, reduce

__all__ = ["cosine_similarity", "info_nce"]


def paired(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Both sets of embeddings, checked against each other, in at least float32.

    Raises:
        ValueError: if they are not floating-point matrices of the same shape, dtype and device, with
            at least one row and one column.
    """
    for name, value in (("queries", queries), ("keys", keys)):
        floating(name, value)
        if value.ndim != 2 or 0 in value.shape:
            raise ValueError(f"{name}: expected shape (n, d) with n and d at least 1, got {tuple(value.shape)}")
    for what in ("shape", "dtype", "device"):
        expected, got = getattr(queries, what), getattr(keys, what)
        if expected != got:
            raise ValueError(f"keys: expected the {what} of queries, {expected}, got {got}")
    return floating("queries", queries), floating("keys", keys)


def unit(embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    r"""Rows of length one, $x/\lVert x\rVert_2$, whatever their scale; a row of zeros stays zero.

    The row is first divided by its largest entry. The direction does not depend on scale, so this
    constant needs no gradient; it keeps the squares from overflowing or vanishing.
    """
    largest = embeddings.detach().abs().amax(-1, keepdim=True)
    scaled = embeddings / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm == 0, 1, norm)


def cosine_similarity(queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Cosines of all pairs, $c_{ij}=q_i^\top k_j/(\lVert q_i\rVert\lVert k_j\rVert)$.

    Rounding may leave $[-1,1]$ by an ulp, a matrix product in TensorFloat-32 by far more. Autocast is
    switched off inside.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return unit(queries) @ unit(keys).mT


def diagonal_cross_entropy(
    logits: Float[Tensor, "n n"], *, symmetric: bool = False, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Cross-entropy that picks the positive, on the diagonal, among the entries of its row.

    $$\ell_i=-\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}$$

    With `symmetric`, the mean of the losses over rows and over columns.
    """
    positives = logits.diagonal()
    losses = torch.logsumexp(logits, 1) - positives
    if symmetric:
        losses = (losses + torch.logsumexp(logits, 0) - positives) / 2
    return reduce(losses, reduction)


def info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    symmetric: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""InfoNCE: cross-entropy over cosines divided by a temperature.

    $$\ell_i=-\log\frac{\exp(c_{ii}/\tau)}{\sum_j\exp(c_{ij}/\tau)},\qquad
      c_{ij}=\frac{q_i^\top k_j}{\lVert q_i\rVert\lVert k_j\rVert}$$

    Query $i$ and key $i$ are two views of one thing; all other keys of the batch are negatives.

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: as `queries`.
        temperature: $\tau>0$, a number, or a tensor without dimensions (to learn it, or to map over it).
        symmetric: average with the loss in which keys look for their queries.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Returns:
        The loss, between $\log(1+(n-1)e^{-2/\tau})$ and $\log(1+(n-1)e^{2/\tau})$.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4; with cosines and a temperature as in
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1.
    """
    positive("temperature", temperature)
    queries, keys = paired(queries, keys)
    logits = cosine_similarity(queries, keys) / temperature
    return diagonal_cross_entropy(logits, symmetric=symmetric, reduction=reduction)
