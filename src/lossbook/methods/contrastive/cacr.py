"""Zheng et al., Contrastive Attraction and Contrastive Repulsion (2021), arXiv:2105.03746."""

import math
from collections.abc import Callable
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import Reduction, floating, number, positive, reduce, shaped
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


def conditional_weights(costs: Float[Tensor, "*n k"], *, scale: Scale) -> Float[Tensor, "*n k"]:
    r"""How strongly each sample of a group is weighted, given the query.

    $$\pi_k=\frac{e^{t\,c_k}}{\sum_{k'}e^{t\,c_{k'}}}$$

    Positives take $t=t^+>0$: the farther, the heavier. Negatives take $t=-t^-<0$: the closer, the heavier. At $t=0$ all
    weigh the same.

    Args:
        costs: squared distances of each query (rows) to its samples; float16 and bfloat16 are computed in float32.
        scale: $t$, of either sign, a number or a tensor without dimensions.

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
    views: Float[Tensor, "v n d"], *, scale: Scale = 1.0, detach: bool = True, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Pull of a query towards its positives, stronger to the farther ones.

    $$\mathcal L_{CA}=\mathbb E_z\sum_{k=1}^K\pi_k^+\lVert z-z_k^+\rVert^2,\qquad
      \pi_k^+\propto e^{t^+\lVert z-z_k^+\rVert^2}$$

    Each of the $v=K+1$ views of a thing is the query once, the other $K$ are its positives. With two views it is
    plain alignment, whatever the scale.

    Args:
        views: raw embeddings, at least two views of each of `n` things, normalised inside; float16 and bfloat16 are
            computed in float32.
        scale: $t^+\ge0$, a number or a tensor without dimensions; 0 weighs all positives alike.
        detach: treat the weights as constants in the backward pass. If not, the gradient runs through them, and turns
            round for positives with a cost below the weighted mean by more than $1/t^+$.
        reduction: "mean", "sum", or "none" for the `n` losses, each a mean over the queries of one thing.

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
    views = _checked(views)
    count = len(views)
    costs = (views[:, None] - views).square().sum(-1)  # (v, v, n)
    own = torch.eye(count, dtype=torch.bool, device=views.device)[..., None]
    weights = torch.softmax((scale * costs).masked_fill(own, -math.inf), 1)
    if detach:
        weights = weights.detach()
    return reduce((weights * costs).sum(1).mean(0), reduction)


def contrastive_repulsion(
    views: Float[Tensor, "v n d"],
    *,
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

    Args:
        views: raw embeddings, at least two views of each of at least two things, normalised inside.
        scale: $t^-\ge0$, a number or a tensor without dimensions; 0 weighs all negatives alike. InfoNCE at temperature
            $\tau$ weighs its negatives as $t^-=1/(2\tau)$ does. The authors take 0.9 on CIFAR-10, 2 on CIFAR-100 and
            STL-10.
        detach: treat the weights as constants in the backward pass. If not, the gradient runs through them, and pulls
            negatives with a cost above the weighted mean by more than $1/t^-$.
        symmetric: let view $b$ look for negatives in view $a$ too, and take the mean of both.
        rows: compute the costs of this many things at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `n` losses, each a mean over the pairs of views.

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

    def losses(costs: Tensor, own: Tensor) -> Tensor:
        weights = torch.softmax((-scale * costs).masked_fill(own, -math.inf), -1)
        if detach:
            weights = weights.detach()
        return -(weights * costs).sum(-1)

    return reduce(_over_pairs(losses, views, symmetric, rows).mean(1), reduction)


def cacr_loss(
    views: Float[Tensor, "v n d"],
    *,
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
        positive_scale: $t^+\ge0$ of `contrastive_attraction`; 0 is the ablation without $\pi^+$.
        negative_scale: $t^-\ge0$ of `contrastive_repulsion`; 0 is the ablation without $\pi^-$.
        attraction: the weight $\alpha\ge0$.
        repulsion: the weight $\beta\ge0$.
        detach: treat the weights as constants in the backward pass. With two views, $\alpha=\beta$ and this, the
            gradient is that of $2\tau\alpha$ times the decoupled contrastive loss at $\tau=1/(2t^-)$.
        symmetric: see `contrastive_repulsion`.
        rows: see `contrastive_repulsion`.
        reduction: "mean", "sum", or "none" for the `n` losses.

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
    pull = contrastive_attraction(views, scale=positive_scale, detach=detach, reduction="none")
    push = contrastive_repulsion(
        views, scale=negative_scale, detach=detach, symmetric=symmetric, rows=rows, reduction="none"
    )
    return reduce(attraction * pull + repulsion * push, reduction)


def rbf_repulsion(
    views: Float[Tensor, "v n d"],
    *,
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
        views, scale, detach, symmetric, rows: see `contrastive_repulsion`.
        width: $\kappa>0$.

    Returns:
        The loss, between $-4\kappa$ and 0; to be weighted and added to `contrastive_attraction`.

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

    each = _over_pairs(logs, views, symmetric, rows)
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
    losses: Callable[[Tensor, Tensor], Tensor], views: Float[Tensor, "v n d"], symmetric: bool, rows: int | None
) -> Float[Tensor, "n p"]:
    """`losses(costs (p, m, n), own)` of each thing and pair of views, this many things at a time."""
    views = _checked(views)
    count, n, _ = views.shape
    if n < 2:
        raise ValueError(f"views: expected at least two things, each other's negatives, got {n}")
    pairs = list(combinations(range(count), 2))
    if symmetric:
        pairs += [(b, a) for a, b in pairs]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    keys, width = views[second], views.shape[-1]

    def block(some: Tensor, index: Tensor) -> Tensor:
        queries = some.unflatten(1, (count, width)).movedim(1, 0)
        own = index[:, None] == torch.arange(n, device=index.device)
        return losses(2 - 2 * inner_products(queries[first], keys), own).mT

    # A row holds all views of one thing.
    return by_rows(block, views.movedim(0, 1).flatten(1), rows)


def _checked(views: Float[Tensor, "v n d"]) -> Float[Tensor, "v n d"]:
    """Unit embeddings in at least float32; ValueError if there are no two views, or nothing in them."""
    views = shaped("views", views, "v n d")
    if len(views) < 2:
        raise ValueError(f"views: expected at least two views of each thing, got shape {tuple(views.shape)}")
    return unit(views)
