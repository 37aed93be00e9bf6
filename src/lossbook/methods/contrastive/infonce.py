"""InfoNCE and NT-Xent: each embedding picks its positive among the batch, the losses that others are measured by."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, Pairs, matched, over_terms, pooled, total
from lossbook.methods._validate import Reduction, floating, positive, reduce
from lossbook.methods.similarities import inner_products

__all__ = ["diagonal_cross_entropy", "info_nce", "nt_xent", "two_view_terms"]


def diagonal_cross_entropy(
    logits: Float[Tensor, "n n"], *, symmetric: bool = False, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Cross-entropy that picks the positive, on the diagonal, among the entries of its row.

    $$\ell_i=-\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}$$

    With `symmetric`, the mean of the losses over rows and over columns.

    Args:
        logits: $s$, positives on the diagonal; float16 and bfloat16 are computed in float32.
        symmetric: average both directions.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, equation 4; symmetric as in Radford et al. (2021),
        arXiv:2103.00020.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> diagonal_cross_entropy(logits, reduction="none").round(decimals=3)
        tensor([0.1270, 0.6930])
    """
    logits = floating("logits", logits)
    positives = logits.diagonal()
    losses = torch.logsumexp(logits, 1) - positives
    if symmetric:
        losses = (losses + torch.logsumexp(logits, 0) - positives) / 2
    return reduce(losses, reduction)


def info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    key_labels: Integer[Tensor, " m"] | None = None,
    positives: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    groups: Integer[Tensor, " m"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.1,
    symmetric: bool = False,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""InfoNCE: cross-entropy over cosines divided by a temperature.

    $$\ell_i=-\log\frac{\exp(c_{ii}/\tau)}{\sum_j\exp(c_{ij}/\tau)},\qquad
      c_{ij}=\frac{q_i^\top k_j}{\lVert q_i\rVert\lVert k_j\rVert}$$

    Query $i$ and key $i$ are two views of one thing; all other keys of the batch are negatives. With labels every
    query $i$ and key $p$ of one class make a term, whose denominator holds the negatives $N_i$, keys of other classes:

    $$\ell_{ip}=-\log\frac{\exp(c_{ip}/\tau)}{\exp(c_{ip}/\tau)+\sum_{j\in N_i}\exp(c_{ij}/\tau)}$$

    Over processes, gather the keys first (`distributed.gather`), or there are those of each process's share alone.

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: as `queries`. With `positives` or `key_labels` their number `m` may differ. None with labels: queries look
            for their class among each other.
        labels: the class of each query.
        key_labels: the class of each key; None for that of the query in the same row.
        positives: which key is the positive of each query, such as `rank * n + torch.arange(n)` among the keys of all
            ranks; None for the key in the same row.
        negatives: more keys `(k, d)`, such as a queue: negatives of all queries.
        groups: a number for each key; keys with the same number, such as duplicates, are not negatives of the query of
            one of them.
        temperature: $\tau>0$, a number, or a tensor without dimensions (to learn it, or to map over it).
        symmetric: average with the loss in which keys look for their queries; `negatives` do not look.
        rows: compute the similarities of this many queries at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean" over all terms (0 if there are none), "sum", or "none" for the `n` losses, with labels the sum
            of each query's terms.

    Returns:
        The loss; of two views it is between $\log(1+(n-1)e^{-2/\tau})$ and $\log(1+(n-1)e^{2/\tau})$.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4; with cosines and a temperature as in
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1. The form with labels as in
        pytorch-metric-learning's `NTXentLoss`.

    Examples:
        >>> x = torch.eye(3)
        >>> round(info_nce(x, x, temperature=1.0).item(), 3)
        0.551
        >>> round(info_nce(x, x, negatives=-x, temperature=1.0).item(), 3)
        0.958
        >>> round(info_nce(x, labels=torch.tensor([0, 0, 1]), temperature=1.0).item(), 3)
        0.693
    """
    temperature = positive("temperature", temperature)
    pairs = matched(
        queries,
        keys,
        ("queries", "keys"),
        labels=labels,
        key_labels=key_labels,
        positives=positives,
        negatives=negatives,
        groups=groups,
    )
    return pair_cross_entropy(
        pairs, lambda cosines: cosines / temperature, symmetric=symmetric, rows=rows, reduction=reduction
    )


def two_view_terms(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""],
    rows: int | None = None,
) -> tuple[Float[Tensor, " 2*n"], Float[Tensor, " 2*n"]]:
    r"""Pull and push of each of the $2n$ views, when all other views of the batch are negatives.

    $$s_a=\frac{\cos(z_a,z_{a'})}{\tau},\qquad u_a=\log\sum_{b\ne a,a'}\exp\frac{\cos(z_a,z_b)}{\tau}$$

    with $a'$ the other view of the same thing. Losses of the family are made of these two: NT-Xent is
    $\operatorname{softplus}(u-s)$, decoupled contrastive learning $u-s$. A batch of one has no negatives: $u=-\infty$.

    Args:
        first, second: raw embeddings, normalised inside.
        negatives: more embeddings `(k, d)`, such as a queue: negatives of all views, also part of the sum.
        temperature: $\tau>0$.
        rows: see `by_rows`.

    Returns:
        $s$ and $u$, first views first.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Chen et al. (2020), arXiv:2002.05709, equation 1, whose terms these are.

    Examples:
        >>> pull, push = two_view_terms(torch.eye(3), torch.eye(3), temperature=0.5)
        >>> pull.round(decimals=3), push.round(decimals=3)
        (tensor([2., 2., 2., 2., 2., 2.]), tensor([1.3860, 1.3860, 1.3860, 1.3860, 1.3860, 1.3860]))
    """
    temperature = positive("temperature", temperature)
    pairs = pooled(first, second, ("first", "second"), labels=None, negatives=negatives, one_way=False)

    def terms(block: Block) -> Tensor:
        return torch.cat([block.pull, block.push()], 1)

    pull, push = pairs.over(terms, rows, lambda cosines: cosines / temperature).unbind(1)
    return pull, push


def nt_xent(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.1,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""NT-Xent, the loss of SimCLR: each view looks for the other view of its thing among all $2n-1$ other views.

    $$\ell_a=-\log\frac{\exp(\cos(z_a,z_{a'})/\tau)}{\sum_{b\ne a}\exp(\cos(z_a,z_b)/\tau)}$$

    With labels the positives $P_a$ of an anchor $a$ are all others of its class, the negatives $N_a$ those of other
    classes. Each pair $p\in P_a$ makes a term, whose denominator holds no other positive:

    $$\ell_{ap}=-\log\frac{\exp(\cos(z_a,z_p)/\tau)}
      {\exp(\cos(z_a,z_p)/\tau)+\sum_{b\in N_a}\exp(\cos(z_a,z_b)/\tau)}$$

    Over processes, gather both views first (`distributed.gather`): each process would otherwise have the negatives of
    its own share alone, which is another loss.

    Args:
        first: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        second: their other views; None with labels, for one set of embeddings.
        labels: the class of each row. Both views of a row are of its class.
        negatives: more embeddings `(k, d)`, such as a queue: negatives of all views.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        rows: compute the similarities of this many views at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean" over all terms (0 if there are none), "sum", or "none" for the `2n` losses, first views first,
            with labels the sum of each anchor's terms.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1. The form with labels as in
        pytorch-metric-learning's `NTXentLoss`.

    Examples:
        >>> x = torch.eye(3)
        >>> round(nt_xent(x, x, temperature=1.0).item(), 3)
        0.905
        >>> nt_xent(x, x, reduction="none").shape
        torch.Size([6])
        >>> round(nt_xent(x, labels=torch.tensor([0, 0, 1]), temperature=1.0).item(), 3)
        0.693
    """
    temperature = positive("temperature", temperature)
    pairs = pooled(first, second, ("first", "second"), labels=labels, negatives=negatives, one_way=False)
    return pair_cross_entropy(
        pairs, lambda cosines: cosines / temperature, symmetric=False, rows=rows, reduction=reduction
    )


def pair_cross_entropy(
    pairs: Pairs,
    logits: Callable[[Tensor], Tensor],
    *,
    symmetric: bool,
    rows: int | None,
    reduction: Reduction,
) -> Float[Tensor, "*n"]:
    """What `info_nce`, `nt_xent` and their kin have in common: each positive is picked among itself and the negatives.

    Args:
        pairs: queries and keys.
        logits: of cosines, entry by entry, such as their quotient by a temperature.
        symmetric: average with the cross-entropy by which a positive picks its query among the queries.
        rows, reduction: see `info_nce`.
    """
    if pairs.diagonal and rows is None:  # without masks, and with one matrix for both directions
        whole = logits(inner_products(pairs.queries, pairs.keys))
        return diagonal_cross_entropy(whole, symmetric=symmetric, reduction=reduction)
    # Anchors among themselves are their positives' positives: both directions have the same terms.
    back = pairs.turned().over(Block.push, rows, logits)[:, 0] if symmetric and not pairs.themselves else None

    def losses(block: Block) -> Tensor:
        values = torch.logaddexp(block.push(), block.pull) - block.pull
        if back is not None:
            # Extra negatives are nobody's positives: what stands in their place is not read.
            push = F.pad(back, (0, len(pairs.keys) - len(back)))[block.places]
            values = (values + torch.logaddexp(push, block.pull) - block.pull) / 2
        return total(values, block.positive)

    return over_terms(pairs.over(losses, rows, logits), reduction)
