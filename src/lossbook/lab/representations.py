"""Sets of embeddings: how well they find each other, how many directions they fill, how far apart two sets are."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lossbook.lab._validate import flags, has_shape, real, refuted, some, spoilt, whole

__all__ = ["effective_rank", "frechet_distance", "retrieval"]


def retrieval(
    scores: Float[Tensor, "*runs n m"],
    relevant: Bool[Tensor, "n m"] | None = None,
    *,
    cutoffs: tuple[int, ...] = (1, 5, 10),
) -> dict[str, Float[Tensor, "*runs"]]:
    r"""How well queries find passages: recall, mean reciprocal rank and normalised discounted cumulative gain.

    Means over queries, by name: `recall@k`, the share of queries with something relevant among the first $k$ (as in
    metric learning; with one relevant passage a query also the recall of information retrieval); `mrr@k`, one over
    the rank of the first relevant passage, 0 beyond $k$; `ndcg@k`, with gain 1 and discount $1/\log_2(1+\text{rank})$.
    The last two at the largest $k$. Equal scores rank the irrelevant first, so constant scores earn nothing. Under
    `vmap`, where nothing can be raised, all are NaN if a score is.

    Args:
        scores: of each query (row) with each passage.
        relevant: which passages are; None for passage $i$ of query $i$ alone. Every query needs one.
        cutoffs: values of $k$.

    Raises:
        ValueError: for scores that are not numbers, no queries, a query with nothing relevant, `relevant` that are no
            flags or of another shape, or fewer passages than a cutoff.

    Examples:
        >>> scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.3, 0.8], [0.0, 0.1, 0.7]])
        >>> found = representations.retrieval(scores, cutoffs=(1, 2))
        >>> {name: round(value.item(), 3) for name, value in found.items()}
        {'recall@1': 0.667, 'recall@2': 1.0, 'mrr@2': 0.833, 'ndcg@2': 0.877}
    """
    real("scores", scores)
    some("scores", scores.shape[-2], "queries")
    if relevant is None:
        relevant = torch.eye(*scores.shape[-2:], dtype=torch.bool, device=scores.device)
    relevant = flags("relevant", relevant).to(scores.device)
    has_shape("relevant", relevant, scores.shape[-2:], "queries and passages of the scores")
    if refuted(relevant.any(-1)):
        raise ValueError(f"relevant: expected a passage for every query, got none for {int((~relevant.any(-1)).sum())}")
    cutoffs = tuple(whole("cutoffs", k) for k in cutoffs)
    some("cutoffs", len(cutoffs), "ranks")
    last = max(cutoffs)
    if last > scores.shape[-1]:
        raise ValueError(f"cutoffs: expected at most {scores.shape[-1]} (the passages), got {last}")
    # Sorted by irrelevance first, then stably by score: of equal scores the irrelevant stay in front.
    first = relevant.to(torch.uint8).argsort(dim=-1, stable=True)
    behind = scores.take_along_dim(first.expand(scores.shape), -1).argsort(dim=-1, descending=True, stable=True)
    hits = relevant.take_along_dim(first, -1).expand(scores.shape).take_along_dim(behind, -1)[..., :last].double()
    rank = torch.arange(1, last + 1, device=scores.device)
    discount = 1 / torch.log2(1 + rank.double())
    best = discount.cumsum(0)[relevant.sum(-1).clamp(max=last) - 1]
    found = {f"recall@{k}": hits[..., :k].amax(-1).mean(-1) for k in cutoffs}
    found[f"mrr@{last}"] = (hits / rank).amax(-1).mean(-1)
    found[f"ndcg@{last}"] = ((hits * discount).sum(-1) / best).mean(-1)
    return {name: spoilt(value, scores.isnan().any(-1).any(-1)) for name, value in found.items()}


def effective_rank(
    features: Float[Tensor, "*runs n d"], *, of: Literal["energy", "singular values"] = "energy"
) -> Float[Tensor, "*runs"]:
    r"""In how many directions features vary from zero: the exponential of the entropy of their shares.

    $$e^{H(p)},\qquad p_k=\frac{\sigma_k^2}{\sum_l\sigma_l^2}$$

    with $\sigma_k$ the singular values; between 1 (all on one line) and $\min(n,d)$. Subtract the mean beforehand to
    measure variation about it: $p$ are then the shares of variance of the principal components. Features that are all
    zero have rank 1.

    Args:
        features: one in each row.
        of: "energy", the squares as above; "singular values" for $p_k=\sigma_k/\sum_l\sigma_l$, which is Roy and
            Vetterli's definition and larger, unless all that are not zero are equal.

    Raises:
        ValueError: for features that are not finite, without rows or columns, or another `of`.

    Source:
        Roy and Vetterli (2007), EUSIPCO, for the singular values.

    Examples:
        >>> round(representations.effective_rank(torch.eye(3)).item(), 3)
        3.0
        >>> round(representations.effective_rank(torch.ones(5, 3)).item(), 3)
        1.0
    """
    real("features", features, finite=True)
    if of not in ("energy", "singular values"):
        raise ValueError(f"of: expected 'energy' or 'singular values', got {of!r}")
    some("features", min(features.shape[-2:]), "rows and columns")
    values = torch.linalg.svdvals(features.double())
    # In units of the largest, whose square may overflow.
    largest = values[..., :1]
    share = values / torch.where(largest == 0, 1, largest)
    share = share.square() if of == "energy" else share
    total = share.sum(-1, keepdim=True)
    share = share / torch.where(total == 0, 1, total)
    return torch.special.entr(share).sum(-1).exp()


def frechet_distance(
    features: Float[Tensor, "*runs n d"], others: Float[Tensor, "*runs m d"]
) -> Float[Tensor, "*runs"]:
    r"""Fréchet distance between Gaussians with the means and covariances of two sets of features.

    $$\lVert\mu-\mu'\rVert^2+\operatorname{tr}\bigl(\Sigma+\Sigma'-2(\Sigma\Sigma')^{1/2}\bigr)$$

    at least 0, in squared units of the features. The features are those of a network that is trained and fixed; with
    the Inception network this is the FID. Few examples make it larger: compare sets of equal size only. The trace of
    the root is taken from the symmetric $\Sigma^{1/2}\Sigma'\Sigma^{1/2}$, which has the same eigenvalues.

    Args:
        features: of one set, such as samples of a model.
        others: of another, such as real data.

    Raises:
        ValueError: for features that are not finite, fewer than two rows, or sets of different runs or width.

    Source:
        Heusel et al. (2017), arXiv:1706.08500.

    Examples:
        >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> moved = features + torch.tensor([3.0, 4.0])
        >>> round(representations.frechet_distance(features, moved).item(), 3)
        25.0
    """
    for name, value in (("features", features), ("others", others)):
        real(name, value, finite=True)
        if value.shape[-2] < 2:
            raise ValueError(f"{name}: expected at least two rows, got {value.shape[-2]}")
    wanted = (*features.shape[:-2], others.shape[-2], features.shape[-1])
    has_shape("others", others, wanted, "runs and features of the first set")
    means, spreads = [], []
    for value in (features.double(), others.double()):
        means.append(value.mean(-2))
        centred = value - value.mean(-2, keepdim=True)
        spreads.append(centred.mT @ centred / (value.shape[-2] - 1))
    first, second = spreads
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2) @ vectors.mT
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum(-1)
    trace = (first + second).diagonal(dim1=-2, dim2=-1).sum(-1)
    # Rounding may leave a little less than nothing between equal sets.
    return ((means[0] - means[1]).square().sum(-1) + trace - 2 * overlap).clamp(min=0)
