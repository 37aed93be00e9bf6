"""InfoNCE and NT-Xent: each embedding picks its positive among the batch, the losses that others are measured by."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import Reduction, indices, paired, positive, reduce
from lossbook.methods.similarities import by_rows, inner_products, unit

__all__ = ["diagonal_cross_entropy", "info_nce", "nt_xent", "two_view_terms"]


def diagonal_cross_entropy(
    logits: Float[Tensor, "n n"], *, symmetric: bool = False, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Cross-entropy that picks the positive, on the diagonal, among the entries of its row.

    $$\ell_i=-\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}$$

    With `symmetric`, the mean of the losses over rows and over columns.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> diagonal_cross_entropy(logits, reduction="none").round(decimals=3)
        tensor([0.1270, 0.6930])
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
    groups: Int[Tensor, " n"] | None = None,
    rows: int | None = None,
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
        groups: pairs with the same number, such as duplicates, are not each other's negatives.
        rows: compute the similarities of this many queries at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Returns:
        The loss, between $\log(1+(n-1)e^{-2/\tau})$ and $\log(1+(n-1)e^{2/\tau})$.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4; with cosines and a temperature as in
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1.

    Examples:
        >>> x = torch.eye(3)
        >>> round(info_nce(x, x, temperature=1.0).item(), 3)
        0.551
        >>> info_nce(x, x, temperature=1.0, reduction="none").shape
        torch.Size([3])
    """
    temperature = positive("temperature", temperature)
    queries, keys = paired(queries, keys)
    if groups is not None:
        groups = indices("groups", groups, len(queries))
    queries, keys = unit(queries), unit(keys)

    def logits(some: Tensor, others: Tensor, index: Tensor) -> Tensor:
        entries = inner_products(some, others) / temperature
        if groups is None:
            return entries
        other = index[:, None] != torch.arange(len(others), device=index.device)
        return entries.masked_fill(other & (groups[index][:, None] == groups), -math.inf)

    def one_way(queries: Tensor, keys: Tensor) -> Tensor:
        def losses(some: Tensor, index: Tensor) -> Tensor:
            entries = logits(some, keys, index)
            return torch.logsumexp(entries, 1) - entries.gather(1, index[:, None])[:, 0]

        return by_rows(losses, queries, rows)

    if rows is None:
        whole = logits(queries, keys, torch.arange(len(queries), device=queries.device))
        return diagonal_cross_entropy(whole, symmetric=symmetric, reduction=reduction)
    losses = one_way(queries, keys)
    if symmetric:
        losses = (losses + one_way(keys, queries)) / 2
    return reduce(losses, reduction)


def two_view_terms(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    temperature: float | Float[Tensor, ""],
    rows: int | None = None,
) -> tuple[Float[Tensor, " 2*n"], Float[Tensor, " 2*n"]]:
    r"""Pull and push of each of the $2n$ views, when all other views of the batch are negatives.

    $$s_a=\frac{\cos(z_a,z_{a'})}{\tau},\qquad u_a=\log\sum_{b\ne a,a'}\exp\frac{\cos(z_a,z_b)}{\tau}$$

    with $a'$ the other view of the same thing. Losses of the family are made of these two: NT-Xent is
    $\operatorname{softplus}(u-s)$, decoupled contrastive learning $u-s$. A batch of one has no negatives: $u=-\infty$.

    Args:
        first, second: raw embeddings, normalised inside.
        temperature: $\tau>0$.
        rows: see `by_rows`.

    Returns:
        $s$ and $u$, first views first.

    Examples:
        >>> pull, push = two_view_terms(torch.eye(3), torch.eye(3), temperature=0.5)
        >>> pull.round(decimals=3), push.round(decimals=3)
        (tensor([2., 2., 2., 2., 2., 2.]), tensor([1.3860, 1.3860, 1.3860, 1.3860, 1.3860, 1.3860]))
    """
    temperature = positive("temperature", temperature)
    first, second = map(unit, paired(first, second, ("first", "second")))
    views = torch.cat([first, second])
    n = len(first)

    def terms(some: Tensor, index: Tensor) -> Tensor:
        logits = inner_products(some, views) / temperature
        partner = (index + n) % (2 * n)
        pull = logits.gather(1, partner[:, None])[:, 0]
        image = torch.arange(2 * n, device=index.device) % n
        push = torch.logsumexp(logits.masked_fill(image == index[:, None] % n, -math.inf), 1)
        return torch.stack([pull, push], 1)

    pull, push = by_rows(terms, views, rows).unbind(1)
    return pull, push


def nt_xent(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""NT-Xent, the loss of SimCLR: each view looks for the other view of its thing among all $2n-1$ other views.

    $$\ell_a=-\log\frac{\exp(\cos(z_a,z_{a'})/\tau)}{\sum_{b\ne a}\exp(\cos(z_a,z_b)/\tau)}$$

    Args:
        first, second: raw embeddings of both views, normalised inside.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        rows: compute the similarities of this many views at a time: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `2n` losses, first views first.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1.

    Examples:
        >>> x = torch.eye(3)
        >>> round(nt_xent(x, x, temperature=1.0).item(), 3)
        0.905
        >>> nt_xent(x, x, reduction="none").shape
        torch.Size([6])
    """
    pull, push = two_view_terms(first, second, temperature=temperature, rows=rows)
    return reduce(torch.logaddexp(push, pull) - pull, reduction)
