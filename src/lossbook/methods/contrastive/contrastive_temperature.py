"""Wang and Liu, Understanding the Behaviour of Contrastive Loss (2020), arXiv:2012.09740."""

import math

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, matched, over_terms, total
from lossbook.methods._validate import Reduction, floating, indices, number, positive, reduce, shaped
from lossbook.methods.similarities import by_rows, inner_products, unit

__all__ = ["hard_info_nce", "relative_penalties", "simple_contrastive", "tolerance"]


def hard_info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    key_labels: Integer[Tensor, " m"] | None = None,
    positives: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.7,
    share: float = 0.0819,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""InfoNCE over the hardest negatives of each query, those most similar to it.

    $$\ell_i=-\log\frac{e^{s_{ii}/\tau}}{e^{s_{ii}/\tau}+\sum_{k\ne i,\,s_{ik}\ge s_\alpha^{(i)}}e^{s_{ik}/\tau}}$$

    with cosines $s$ and $s_\alpha^{(i)}$ the $\lceil\alpha(m-1)\rfloor$-th largest of the $m-1$ negatives of query $i$.
    Negatives that tie with it are all kept, as the formula says, so the loss jumps where a negative comes to tie;
    elsewhere it is differentiable, with gradient 0 by what is left out. With `share=1` it is InfoNCE. With labels there
    is a term for each query and key of one class, and the sum is over the hardest keys of other classes.

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: the candidates `(m, d)`: the other views of the batch, or a memory of all pictures.
        temperature: $\tau>0$, a number or a tensor without dimensions. The paper tries 0.07 to 1; its Table 1 is best
            at 0.7 on CIFAR.
        share: $\alpha$ in $(0,1]$, the share of the negatives that is kept, at least one. The paper: 0.0819 on CIFAR
            (4,095 of a memory of 50,000), 0.0315 on SVHN, 0.034 on ImageNet-100.
        labels, key_labels, positives, negatives: whose positives are whose, and more negatives: see `info_nce`. By
            default query $i$ has key $i$, and $m=n$.
            Without such a row the loss of the query is not a number.
        rows: compute the similarities of this many queries at a time: see `by_rows`.
        reduction: as in `info_nce`.

    Returns:
        The loss, at least 0 and at most InfoNCE; 0 if there are no negatives.

    Raises:
        ValueError: for shapes, dtypes, a temperature or a share other than these.

    Source:
        Wang and Liu (2020), arXiv:2012.09740, `share=1` is its eq. 1.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> hard = hard_info_nce(x, x, share=0.5)  # the harder of two negatives
        >>> bool(hard < hard_info_nce(x, x, share=1.0))
        True
    """
    temperature = positive("temperature", temperature)
    share = _checked_share(share)
    pairs = matched(
        queries,
        keys,
        ("queries", "keys"),
        labels=labels,
        key_labels=key_labels,
        positives=positives,
        negatives=negatives,
        groups=None,
    )

    def losses(block: Block) -> Tensor:
        return total(_hard(block, temperature, share), block.positive)

    return over_terms(pairs.over(losses, rows, lambda cosines: cosines), reduction)


def hard_info_nce_from_cosines(
    cosines: Float[Tensor, "n n"],
    *,
    temperature: float | Float[Tensor, ""] = 0.7,
    share: float = 0.0819,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    """As `hard_info_nce`, of a matrix of cosines with the positives on its diagonal."""
    temperature = positive("temperature", temperature)
    share = _checked_share(share)
    cosines = shaped("cosines", cosines, "n n")
    return reduce(_hard(_diagonal(cosines), temperature, share)[:, 0], reduction)


def simple_contrastive(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    key_labels: Integer[Tensor, " m"] | None = None,
    positives: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    weight: float | Float[Tensor, ""] | None = None,
    share: float = 1.0,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Pull on the positive and the same push on every negative, hard or easy.

    $$\ell_i=-s_{ii}+\lambda\sum_{j\ne i}s_{ij}$$

    It is InfoNCE for $\tau\to\infty$ if $\lambda=1/(m-1)$. With labels there is a term for each query and key of one
    class, and the sum is over keys of other classes. With a `share` below 1 the sum keeps the hardest negatives
    only, the paper's "HardSimple".

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: the candidates `(m, d)`.
        weight: $\lambda>0$. None, the default, is one over the number of negatives kept, so that pull and push balance.
        share: $\alpha$ in $(0,1]$, the share of the negatives that is kept: see `hard_info_nce`.
        labels, key_labels, positives, negatives: whose positives are whose, and more negatives: see `info_nce`. By
            default query $i$ has key $i$, and $m=n$.
            Without such a row the loss of the query is not a number.
        rows: compute the similarities of this many queries at a time: see `by_rows`.
        reduction: as in `info_nce`.

    Returns:
        The loss, between -2 and 2 with the default weight.

    Raises:
        ValueError: for shapes, dtypes, a weight or a share other than these.

    Source:
        Wang and Liu (2020), arXiv:2012.09740, eq. 2. The default weight is that of the limit.

    Examples:
        >>> x = torch.eye(3)
        >>> [round(simple_contrastive(x, keys).item(), 3) for keys in (x, -x)]
        [-1.0, 1.0]
    """
    if weight is not None:
        weight = positive("weight", weight)
    share = _checked_share(share)
    pairs = matched(
        queries,
        keys,
        ("queries", "keys"),
        labels=labels,
        key_labels=key_labels,
        positives=positives,
        negatives=negatives,
        groups=None,
    )

    def losses(block: Block) -> Tensor:
        return total(_simple(block, weight, share), block.positive)

    return over_terms(pairs.over(losses, rows, lambda cosines: cosines), reduction)


def simple_contrastive_from_cosines(
    cosines: Float[Tensor, "n n"],
    *,
    weight: float | Float[Tensor, ""] | None = None,
    share: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    """As `simple_contrastive`, of a matrix of cosines with the positives on its diagonal."""
    weight = None if weight is None else positive("weight", weight)
    share = _checked_share(share)
    cosines = shaped("cosines", cosines, "n n")
    return reduce(_simple(_diagonal(cosines), weight, share)[:, 0], reduction)


def relative_penalties(
    similarities: Float[Tensor, "n n"], *, temperature: float | Float[Tensor, ""] = 0.1
) -> Float[Tensor, "n n"]:
    r"""How InfoNCE shares its push among the negatives: a Boltzmann law in similarity.

    $$r_i(s_{ij})=\frac{\lvert\partial\ell_i/\partial s_{ij}\rvert}{\lvert\partial\ell_i/\partial s_{ii}\rvert}
      =\frac{e^{s_{ij}/\tau}}{\sum_{k\ne i}e^{s_{ik}/\tau}}$$

    Args:
        similarities: positives on the diagonal, at least two rows.
        temperature: $\tau>0$.

    Returns:
        The penalties, 0 on the diagonal; each row sums to 1.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Wang and Liu (2020), arXiv:2012.09740, eq. 5.

    Examples:
        >>> similarities = torch.tensor([[1.0, 0.5, 0.4], [0.5, 1.0, 0.0], [0.4, 0.0, 1.0]])
        >>> relative_penalties(similarities, temperature=0.1)[0].round(decimals=3)
        tensor([0.0000, 0.7310, 0.2690])
    """
    temperature = positive("temperature", temperature)
    similarities = floating("similarities", similarities)
    if similarities.ndim != 2 or similarities.shape[0] != similarities.shape[1] or len(similarities) < 2:
        raise ValueError(f"similarities: expected shape (n, n) with n at least 2, got {tuple(similarities.shape)}")
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    return torch.softmax((similarities / temperature).masked_fill(own, -math.inf), 1)


def tolerance(
    embeddings: Float[Tensor, "n d"], targets: Int[Tensor, " n"], *, joint: bool = False, rows: int | None = None
) -> Float[Tensor, ""]:
    r"""Mean cosine of two things of the same class: how far an embedding tolerates what belongs together.

    $$T=\mathbb E_{i\ne j}\bigl[\cos(x_i,x_j)\,\big|\,l_i=l_j\bigr]$$

    Args:
        embeddings: raw, normalised inside.
        targets: the class of each row.
        joint: read the paper's eq. 11 to the letter, $\mathbb E[\cos(x_i,x_j)\,\mathbb 1_{l_i=l_j}]$ over all pairs.
            That is at most the share of pairs of one class, which the values in its Table 1 exceed.
        rows: compute the cosines of this many rows at a time: see `by_rows`.

    Returns:
        A number between $-1$ and $1$; not a number if no two rows have the same class (0 if `joint`).

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        Wang and Liu (2020), arXiv:2012.09740, eq. 11.

    Examples:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(tolerance(embeddings, torch.tensor([0, 0, 1])).item(), 3)
        0.6
    """
    embeddings = shaped("embeddings", embeddings, "n d")
    n = len(embeddings)
    if n < 2:
        raise ValueError(f"embeddings: expected at least two rows, got {n}")
    targets = indices("targets", targets, n)
    embeddings = unit(embeddings)

    def sums(some: Tensor, index: Tensor) -> Tensor:
        same = (targets[index][:, None] == targets) & (index[:, None] != torch.arange(n, device=index.device))
        return torch.stack([(inner_products(some, embeddings) * same).sum(1), same.sum(1).to(some.dtype)], 1)

    total, pairs = by_rows(sums, embeddings, rows).sum(0).unbind()
    return total / (n * (n - 1) if joint else pairs)


def hardest(similarities: Float[Tensor, "n m"], negative: Bool[Tensor, "n m"], share: float) -> Bool[Tensor, "n m"]:
    """Which entries are among the upper share of the negatives in their row, with all that tie."""
    if share == 1:
        return negative
    ranked = similarities.detach().masked_fill(~negative, -math.inf)
    most = max(1, round(share * similarities.shape[1]))
    kept = (share * negative.sum(1, keepdim=True).to(similarities.dtype)).round().clamp(1, most)
    # What is not a number is not left out.
    return ~(ranked < ranked.topk(most, 1).values.gather(1, kept.long() - 1)) & negative


def _hard(block: Block, temperature: float | Tensor, share: float) -> Tensor:
    kept = hardest(block.similarities, block.negative, share)
    push = torch.logsumexp((block.similarities / temperature).masked_fill(~kept, -math.inf), 1, keepdim=True)
    pull = block.pull / temperature
    return torch.logaddexp(push, pull) - pull


def _simple(block: Block, weight: float | Tensor | None, share: float) -> Tensor:
    kept = hardest(block.similarities, block.negative, share)
    push = torch.where(kept, block.similarities, 0).sum(1, keepdim=True)
    number = kept.sum(1, keepdim=True).clamp(min=1)
    return (push / number if weight is None else weight * push) - block.pull


def _diagonal(cosines: Tensor) -> Block:
    """All queries of a square matrix, with their positives on its diagonal."""
    places = torch.arange(len(cosines), device=cosines.device)[:, None]
    pull = cosines.diagonal()[:, None]
    return Block(cosines, places != places.mT, pull, torch.ones_like(pull, dtype=torch.bool), places)


def _checked_share(share: float) -> float:
    share = number("share", share)
    if isinstance(share, Tensor) or not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0 and at most 1, got {share}")
    return share
