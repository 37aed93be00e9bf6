"""Zheng et al., Contrastive Attraction and Contrastive Repulsion (2021), arXiv:2105.03746."""

import math
from collections.abc import Callable
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, Pairs, over_terms, pooled, total
from lossbook.methods._validate import Number, Reduction, floating, indices, number, positive, reduce, shaped, together
from lossbook.methods.similarities import by_rows, inner_products, unit

__all__ = [
    "cacr_from_cosines",
    "cacr_loss",
    "conditional_weights",
    "contrastive_attraction",
    "contrastive_repulsion",
    "rbf_repulsion",
]

Scale = float | Float[Tensor, ""]
Views = Float[Tensor, "v n d"] | Float[Tensor, "n d"]


def conditional_weights(costs: Float[Tensor, "*n k"], *, scale: Scale) -> Float[Tensor, "*n k"]:
    r"""How strongly each sample of a group is weighted, given the query.

    $$\pi_k=\frac{e^{t\,c_k}}{\sum_{k'}e^{t\,c_{k'}}}$$

    Positives take $t=t^+>0$: the farther, the heavier. Negatives take $t=-t^-<0$: the closer, the heavier. At $t=0$ all
    weigh the same.

    Args:
        costs: squared distances of each query (rows) to its samples; float16 and bfloat16 are computed in float32.
        scale: $t$, of either sign, a number or a tensor without dimensions.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Zheng et al. (2021), arXiv:2105.03746, the definition of $\pi^\pm$.

    Examples:
        >>> costs = torch.tensor([0.0, 1.0, 2.0])
        >>> conditional_weights(costs, scale=1.0).round(decimals=2)  # the farthest weighs most
        tensor([0.0900, 0.2400, 0.6700])
    """
    scale = number("scale", scale)
    return torch.softmax(scale * floating("costs", costs), -1)


def contrastive_attraction(
    views: Views,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    scale: Scale = 1.0,
    detach: bool = True,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Pull of a query towards its positives, stronger to the farther ones.

    $$\mathcal L_{CA}=\mathbb E_z\sum_{k=1}^K\pi_k^+\lVert z-z_k^+\rVert^2,\qquad
      \pi_k^+\propto e^{t^+\lVert z-z_k^+\rVert^2}$$

    Each of the $v=K+1$ views of a thing is the query once, the other $K$ are its positives. With two views it is
    plain alignment, whatever the scale. With labels every row is a query; its positives are all others of its class.

    Args:
        views: raw embeddings, at least two views of each of `n` things, normalised inside; float16 and bfloat16 are
            computed in float32. With labels also one set `(n, d)`.
        labels: the class of each thing.
        scale: $t^+\ge0$, a number or a tensor without dimensions; 0 weighs all positives alike.
        detach: treat the weights as constants in the backward pass. If not, the gradient runs through them, and turns
            round for positives with a cost below the weighted mean by more than $1/t^+$.
        rows: with labels, compute the costs of this many queries at a time: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `n` losses, each a mean over the queries of one thing. With labels
            the mean is over the queries that have a positive (0 if none has), "none" gives one loss for each row, view
            by view, 0 where it has no positive.

    Returns:
        The loss, between 0 (every positive coincides with its query) and 4.

    Raises:
        ValueError: for shapes, dtypes or a scale other than these.

    Source:
        Zheng et al. (2021), arXiv:2105.03746; queries as in `small_scale_experiments/losses` of the authors' code,
        which does not detach.

    Examples:
        >>> views = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two views at a right angle
        >>> round(contrastive_attraction(views).item(), 3)
        2.0
    """
    scale = number("scale", scale, least=0.0)
    if labels is not None:

        def pulls(block: Block) -> Tensor:
            return _weighted(block.pull, block.positive, scale, detach)

        return over_terms(_by_labels(views, labels, None).over(pulls, rows, _costs), reduction)
    views = _checked(views)
    count = len(views)
    costs = (views[:, None] - views).square().sum(-1)  # (v, v, n)
    own = torch.eye(count, dtype=torch.bool, device=views.device)[..., None]
    weights = torch.softmax((scale * costs).masked_fill(own, -math.inf), 1)
    if detach:
        weights = weights.detach()
    return reduce((weights * costs).sum(1).mean(0), reduction)


def contrastive_repulsion(
    views: Views,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    scale: Scale = 2.0,
    detach: bool = True,
    symmetric: bool = False,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Push of a query away from its negatives, stronger from the closer ones.

    $$\mathcal L_{CR}=-\mathbb E_z\sum_{k=1}^M\pi_k^-\lVert z-z_k^-\rVert^2,\qquad
      \pi_k^-\propto e^{-t^-\lVert z-z_k^-\rVert^2}$$

    For every pair of views $a<b$, a query comes from view $a$; its negatives are view $b$ of the other $n-1$ things.
    With labels every row is a query, and its negatives are all rows of other classes.

    Args:
        views: raw embeddings, at least two views of each of at least two things, normalised inside. With labels also
            one set `(n, d)`.
        labels: the class of each thing.
        negatives: more embeddings `(k, d)`, such as a queue: negatives of all queries.
        scale: $t^-\ge0$, a number or a tensor without dimensions; 0 weighs all negatives alike. InfoNCE at temperature
            $\tau$ weighs its negatives as $t^-=1/(2\tau)$ does. The authors take 0.9 on CIFAR-10, 2 on CIFAR-100 and
            STL-10.
        detach: treat the weights as constants in the backward pass. If not, the gradient runs through them, and pulls
            negatives with a cost above the weighted mean by more than $1/t^-$.
        symmetric: let view $b$ look for negatives in view $a$ too, and take the mean of both.
        rows: compute the costs of this many things at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `n` losses, each a mean over the pairs of views. With labels as in
            `contrastive_attraction`, of the queries that have a negative.

    Returns:
        The loss, between -4 and 0. It is negative; that it falls does not say that embeddings spread (two antipodal
        clusters minimise it at $t^-=0$).

    Raises:
        ValueError: for shapes, dtypes or a scale other than these.

    Source:
        Zheng et al. (2021), arXiv:2105.03746; pairs as in `small_scale_experiments/losses` of the authors' code, which
        does not detach.

    Examples:
        >>> views = torch.eye(4).repeat(2, 1, 1)  # two equal views of four things
        >>> round(contrastive_repulsion(views).item(), 3)
        -2.0
    """
    scale = number("scale", scale, least=0.0)

    if labels is not None:

        def pushes(block: Block) -> Tensor:
            cost, met = _weighted(block.similarities, block.negative, -scale, detach).unbind(1)
            return torch.stack([-cost, met], 1)

        return over_terms(_by_labels(views, labels, negatives).over(pushes, rows, _costs), reduction)

    def losses(costs: Tensor, own: Tensor) -> Tensor:
        weights = torch.softmax((-scale * costs).masked_fill(own, -math.inf), -1)
        if detach:
            weights = weights.detach()
        return -(weights * costs).sum(-1)

    return reduce(_over_pairs(losses, views, negatives, symmetric, rows).mean(1), reduction)


def cacr_loss(
    views: Views,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    positive_scale: Scale = 1.0,
    negative_scale: Scale = 2.0,
    attraction: Scale = 1.0,
    repulsion: Scale = 1.0,
    detach: bool = True,
    symmetric: bool = False,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""CACR: positives are compared among themselves, negatives among themselves, and the two costs are contrasted.

    $$\mathcal L=\alpha\,\mathcal L_{CA}+\beta\,\mathcal L_{CR}$$

    This is the form of the paper and of the authors' small-scale code. Their large-scale code (`imagenet_pretraining`)
    is another one: of all views of a thing that look at one key it weights attraction *and repulsion* by $\pi^+$,
    computed over these views, where here $\pi^+$ weights attraction alone. With two views there is nothing to weight.

    Args:
        views: raw embeddings `(v, n, d)`: $v=K+1$ views of each of `n` things, both at least two; normalised inside.
            With labels also one set `(n, d)`.
        labels: the class of each thing: all of a class are each other's positives, all others negatives.
        negatives: see `contrastive_repulsion`.
        positive_scale: $t^+\ge0$ of `contrastive_attraction`; 0 is the ablation without $\pi^+$.
        negative_scale: $t^-\ge0$ of `contrastive_repulsion`; 0 is the ablation without $\pi^-$.
        attraction: the weight $\alpha\ge0$.
        repulsion: the weight $\beta\ge0$.
        detach: treat the weights as constants in the backward pass. With two views, $\alpha=\beta$ and this, the
            gradient is that of $2\tau\alpha$ times the decoupled contrastive loss at $\tau=1/(2t^-)$.
        symmetric: see `contrastive_repulsion`.
        rows: see `contrastive_repulsion`.
        reduction: "mean", "sum", or "none" for the `n` losses. With labels $\mathcal L_{CA}$ is a mean over the queries
            that have a positive, $\mathcal L_{CR}$ over those that have a negative.

    Returns:
        The loss, between $-4\beta$ and $4\alpha$.

    Raises:
        ValueError: for shapes, dtypes, scales or weights other than these.

    Source:
        Zheng et al. (2021), arXiv:2105.03746.

    Examples:
        >>> views = torch.eye(4).repeat(3, 1, 1)  # three views of four things
        >>> round(cacr_loss(views).item(), 3)
        -2.0
        >>> cacr_loss(views, reduction="none").shape
        torch.Size([4])
    """
    positive_scale = number("positive_scale", positive_scale, least=0.0)
    negative_scale = number("negative_scale", negative_scale, least=0.0)
    attraction = number("attraction", attraction, least=0.0)
    repulsion = number("repulsion", repulsion, least=0.0)
    pull = contrastive_attraction(
        views, labels=labels, scale=positive_scale, detach=detach, rows=rows, reduction=reduction
    )
    push = contrastive_repulsion(
        views,
        labels=labels,
        negatives=negatives,
        scale=negative_scale,
        detach=detach,
        symmetric=symmetric,
        rows=rows,
        reduction=reduction,
    )
    return attraction * pull + repulsion * push


def rbf_repulsion(
    views: Views,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    scale: Scale = 2.0,
    width: float = 2.0,
    detach: bool = True,
    symmetric: bool = False,
    rows: int | None = None,
) -> Float[Tensor, ""]:
    r"""Repulsion with the cost $-e^{-\kappa c}$ of a radial basis function in place of $c$, logged.

    $$\log\,\mathbb E_z\sum_{k}\pi_k^-\,e^{-\kappa\lVert z-z_k^-\rVert^2},\qquad
      \pi_k^-\propto e^{-t^-\lVert z-z_k^-\rVert^2}$$

    The logarithm is that of the mean over queries, one for each pair of views; the result is their mean. At $t^-=0$ it
    is the uniformity loss between two views.

    Args:
        views, labels, negatives, scale, detach, symmetric, rows: see `contrastive_repulsion`.
        width: $\kappa>0$.

    Returns:
        The loss, between $-4\kappa$ and 0; to be weighted and added to `contrastive_attraction`.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        The alternative in `small_scale_experiments/losses` of the code of Zheng et al. (2021), which does not detach.

    Examples:
        >>> views = torch.eye(4).repeat(2, 1, 1)  # two equal views of four things
        >>> round(rbf_repulsion(views, width=1.0).item(), 3)
        -2.0
    """
    scale = number("scale", scale, least=0.0)
    width = positive("width", width)

    def logs(costs: Tensor, own: Tensor) -> Tensor:
        exponents = (-scale * costs).masked_fill(own, -math.inf)
        weights = exponents - torch.logsumexp(exponents, -1, keepdim=True)
        if detach:
            weights = weights.detach()
        return torch.logsumexp(weights - width * costs, -1)

    if labels is not None:

        def rows_of(block: Block) -> Tensor:
            some = block.negative.any(1, keepdim=True)
            # A row without negatives is left as it is, finite, and not counted.
            return torch.stack([logs(block.similarities, ~block.negative & some), some[:, 0].to(block.pull.dtype)], 1)

        each, counted = _by_labels(views, labels, negatives).over(rows_of, rows, _costs).unbind(1)
        number_of = counted.sum()
        each = each.masked_fill((counted == 0) & (number_of > 0), -math.inf)
        return torch.where(number_of > 0, torch.logsumexp(each, 0) - number_of.clamp(min=1).log(), 0)
    each = _over_pairs(logs, views, negatives, symmetric, rows)
    return (torch.logsumexp(each, 0) - math.log(len(each))).mean()


def cacr_from_cosines(
    cosines: Float[Tensor, "n n"],
    *,
    negative_scale: Scale = 2.0,
    attraction: Scale = 1.0,
    repulsion: Scale = 1.0,
    detach: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""CACR with one positive, of a matrix of cosines whose diagonal are the positives.

    $$\ell_i=\alpha\,c_{ii}-\beta\sum_{j\ne i}\pi^-_{ij}c_{ij},\qquad c_{ij}=2-2\cos_{ij}$$

    Args:
        cosines: of query $i$ and key $j$, at least two rows; float16 and bfloat16 are computed in float32.
        negative_scale, attraction, repulsion, detach, reduction: see `cacr_loss`.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Zheng et al. (2021), arXiv:2105.03746, $K=1$.

    Examples:
        >>> cosines = torch.tensor([[0.9, 0.1], [-0.1, 0.8]])
        >>> cacr_from_cosines(cosines, reduction="none").round(decimals=3)
        tensor([-1.6000, -1.8000])
    """
    cosines = floating("cosines", cosines)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1] or len(cosines) < 2:
        raise ValueError(f"cosines: expected shape (n, n) with n at least 2, got {tuple(cosines.shape)}")
    negative_scale = number("negative_scale", negative_scale, least=0.0)
    attraction = number("attraction", attraction, least=0.0)
    repulsion = number("repulsion", repulsion, least=0.0)
    costs = 2 - 2 * cosines
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    weights = torch.softmax((-negative_scale * costs).masked_fill(own, -math.inf), -1)
    if detach:
        weights = weights.detach()
    return reduce(attraction * costs.diagonal() - repulsion * (weights * costs).sum(-1), reduction)


def _over_pairs(
    losses: Callable[[Tensor, Tensor], Tensor],
    views: Float[Tensor, "v n d"],
    negatives: Float[Tensor, "k d"] | None,
    symmetric: bool,
    rows: int | None,
) -> Float[Tensor, "n p"]:
    """`losses(costs (p, m, n + k), own)` of each thing and pair of views, this many things at a time."""
    views = _checked(views)
    count, n, width = views.shape
    extra = views.new_empty(0, width)
    if negatives is not None:
        shaped("negatives", negatives, f"k {width}")
        views, extra = together(views=views, negatives=unit(floating("negatives", negatives)))
    elif n < 2:
        raise ValueError(f"views: expected at least two things, each other's negatives, got {n}")
    pairs = list(combinations(range(count), 2))
    if symmetric:
        pairs += [(b, a) for a, b in pairs]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    keys = torch.cat([views[second], extra.expand(len(pairs), *extra.shape)], 1)
    k = len(extra)

    def block(some: Tensor, index: Tensor) -> Tensor:
        queries = some.unflatten(1, (count, width)).movedim(1, 0)
        own = index[:, None] == torch.arange(n + k, device=index.device)
        return losses(_costs(inner_products(queries[first], keys)), own).mT

    # A row holds all views of one thing.
    return by_rows(block, views.movedim(0, 1).flatten(1), rows)


def _checked(views: Float[Tensor, "v n d"]) -> Float[Tensor, "v n d"]:
    """Unit embeddings in at least float32; ValueError if there are no two views, or nothing in them."""
    views = shaped("views", views, "v n d")
    if len(views) < 2:
        raise ValueError(f"views: expected at least two views of each thing, got shape {tuple(views.shape)}")
    return unit(views)


def _by_labels(views: Tensor, labels: Tensor, negatives: Tensor | None) -> Pairs:
    """Every view of every thing, or every row of one set, among all others."""
    views = floating("views", views)
    if views.ndim == 3:
        labels = indices("labels", labels, views.shape[1]).repeat(len(views))
        views = shaped("views", views, "v n d").flatten(0, 1)
    return pooled(views, None, ("views", "views"), labels=labels, negatives=negatives, one_way=False)


def _costs(cosines: Tensor) -> Tensor:
    """Squared distances of unit vectors."""
    return 2 - 2 * cosines


def _weighted(costs: Float[Tensor, "b p"], among: Bool[Tensor, "b p"], scale: Number, detach: bool) -> Tensor:
    """For `over_terms`: the weighted mean of the costs of each query among these, if there are any."""
    some = among.any(1, keepdim=True)
    weights = torch.softmax((scale * costs).masked_fill(~among & some, -math.inf), 1)
    if detach:
        weights = weights.detach()
    return total((weights * costs).sum(1, keepdim=True), some)
