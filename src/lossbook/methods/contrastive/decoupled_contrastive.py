"""Yeh et al., Decoupled Contrastive Learning (2021), arXiv:2110.06848."""

import math
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, Pairs, over_terms, pooled, total
from lossbook.methods._validate import Reduction, floating, paired, positive, reduce
from lossbook.methods.similarities import unit

__all__ = ["decoupled_contrastive_loss", "decoupled_contrastive_weighted", "negative_von_mises_fisher_weights"]


def decoupled_contrastive_loss(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.1,
    symmetric: bool = True,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*m"]:
    r"""DCL: NT-Xent without the positive in the denominator.

    $$\ell_a=-\frac{\cos(z_a,z_{a'})}{\tau}+\log\sum_{b\ne a,a'}\exp\frac{\cos(z_a,z_b)}{\tau}$$

    with $a'$ the other view of the same thing; the sum has $2n-2$ terms. NT-Xent is $\operatorname{softplus}(\ell_a)$,
    and its gradient that of $\ell_a$ times $\operatorname{sigmoid}(\ell_a)$. The loss may be negative.

    With labels, a term for each positive $p\in P_a$, another row of the class of $a$; $N_a$ are rows of other classes:

    $$\ell_{ap}=-\frac{\cos(z_a,z_p)}{\tau}+\log\sum_{b\in N_a}\exp\frac{\cos(z_a,z_b)}{\tau}$$

    An anchor without a negative, for which the sum is empty, has no term.

    Args:
        first: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32. Without labels
            or more negatives `n` is at least 2.
        second: their other views; None with labels, for one set of embeddings.
        labels: the class of each row. Both views of a row are of its class.
        negatives: more embeddings `(k, d)`, such as a queue: negatives of all views.
        temperature: $\tau>0$, a number, or a tensor without dimensions (to learn it, or to map over it).
        symmetric: False for first views as anchors only, as in code that adds the two directions itself.
        rows: compute the similarities of this many views at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean" over all terms (0 if there are none), "sum", or "none" for the `2n` losses, first views first
            (`n` if not symmetric), with labels the sum of each anchor's terms.

    Returns:
        The loss; without labels each term is at least $-2/\tau+\log(2n-2)$.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Yeh et al. (2021), arXiv:2110.06848, the loss $L_{DC}$.

    Examples:
        >>> x = torch.eye(4)
        >>> round(decoupled_contrastive_loss(x, x, temperature=0.5).item(), 3)
        -0.208
        >>> decoupled_contrastive_loss(x, x, reduction="none").shape
        torch.Size([8])
    """
    temperature = positive("temperature", temperature)
    pairs = _pairs(first, second, labels, negatives, symmetric)

    def losses(block: Block) -> Tensor:
        push, among = _push(block)
        return total(push - block.pull, among)

    return over_terms(pairs.over(losses, rows, lambda cosines: cosines / temperature), reduction)


def decoupled_contrastive_weighted(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.1,
    sigma: float | Float[Tensor, ""] = 0.5,
    detach_weights: bool = True,
    symmetric: bool = True,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*m"]:
    r"""DCLW: DCL whose pull is weighted, less for pairs that agree already.

    $$\ell_a=-w_i\frac{\cos(z_a,z_{a'})}{\tau}+\log\sum_{b\ne a,a'}\exp\frac{\cos(z_a,z_b)}{\tau}$$

    with $w_i$ the weight of the thing that $a$ shows: see `negative_von_mises_fisher_weights`. With labels every pair
    has a weight of its own, $w_{ap}=2-e^{\cos(z_a,z_p)/\sigma}$ over the mean of this over all pairs that make a term.

    Args:
        first, second, labels, negatives: as in `decoupled_contrastive_loss`.
        temperature: $\tau>0$.
        sigma: $\sigma>0$, the temperature of the weights.
        detach_weights: hold the weights constant in the backward pass, as lightly does; False lets the gradient through
            them, as other public code does. The value is the same.
        symmetric, rows, reduction: as in `decoupled_contrastive_loss`.

    Raises:
        ValueError: for shapes, dtypes, a temperature or a sigma other than these.

    Source:
        Yeh et al. (2021), arXiv:2110.06848, the loss $L_{DCW}$.

    Examples:
        >>> x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> round(decoupled_contrastive_weighted(x, y, temperature=0.5, sigma=0.5).item(), 3)
        -0.382
    """
    temperature, sigma = positive("temperature", temperature), positive("sigma", sigma)
    pairs = _pairs(first, second, labels, negatives, symmetric)

    def levels(block: Block) -> Tensor:
        among = _push(block)[1]
        return torch.stack(
            [torch.logsumexp(block.pull.masked_fill(~among, -math.inf), 1), among.sum(1).to(block.pull.dtype)], 1
        )

    with nullcontext() if not detach_weights else torch.no_grad():
        logs, numbers = pairs.over(levels, rows, lambda cosines: cosines / sigma).unbind(1)
        number = numbers.sum()
        # Without any pair the mean is not defined, and not needed.
        level = torch.where(number > 0, torch.logsumexp(logs, 0) - number.log(), 0)

    def losses(block: Block) -> Tensor:
        push, among = _push(block)
        pull = block.pull.detach() if detach_weights else block.pull
        weights = 2 - torch.exp(pull * (temperature / sigma) - level)
        return total(push - weights * block.pull, among)

    return over_terms(pairs.over(losses, rows, lambda cosines: cosines / temperature), reduction)


def negative_von_mises_fisher_weights(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, sigma: float | Float[Tensor, ""] = 0.5
) -> Float[Tensor, " n"]:
    r"""Weights of the pull in DCLW: mean 1, small for pairs that agree more than the rest of the batch.

    $$w_i=2-\frac{e^{c_i/\sigma}}{\frac1n\sum_je^{c_j/\sigma}},\qquad c_i=\cos(x_i,y_i)$$

    A weight is below 2, and negative for a pair that agrees much more than the others.

    Args:
        first, second: raw embeddings of both views, normalised inside.
        sigma: $\sigma>0$; the larger, the nearer are all weights to 1.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Yeh et al. (2021), arXiv:2110.06848.

    Examples:
        >>> x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # the second agrees less
        >>> negative_von_mises_fisher_weights(x, y).round(decimals=2)
        tensor([0.8000, 1.2000])
    """
    sigma = positive("sigma", sigma)
    first, second = map(unit, paired(first, second, ("first", "second")))
    agreement = (first * second).sum(-1)
    return 2 - len(first) * torch.softmax(agreement / sigma, 0)


def decoupled_contrastive_from_cosines(
    cosines: Float[Tensor, "n n"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    sigma: float | Float[Tensor, ""] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""The same from a matrix of cosines alone: rows look for the positive, on the diagonal, among columns.

    $$\ell_i=-w_i\frac{c_{ii}}\tau+\log\sum_{j\ne i}\exp\frac{c_{ij}}\tau$$

    Negatives are then those of the other view. `sigma` None for DCL, $w_i=1$; else DCLW with weights held constant.
    """
    temperature = positive("temperature", temperature)
    sigma = None if sigma is None else positive("sigma", sigma)
    cosines = floating("cosines", cosines)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1] or len(cosines) < 2:
        raise ValueError(f"cosines: expected shape (n, n) with n at least 2, got {tuple(cosines.shape)}")
    positives = cosines.diagonal()
    weights = 1 if sigma is None else 2 - len(cosines) * torch.softmax(positives.detach() / sigma, 0)
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    push = torch.logsumexp((cosines / temperature).masked_fill(own, -math.inf), 1)
    return reduce(push - weights * positives / temperature, reduction)


def _pairs(
    first: Tensor, second: Tensor | None, labels: Tensor | None, negatives: Tensor | None, symmetric: bool
) -> Pairs:
    """Pairs of views; a ValueError if there cannot be negatives."""
    pairs = pooled(first, second, ("first", "second"), labels=labels, negatives=negatives, one_way=not symmetric)
    if labels is None and negatives is None and len(first) == 1:
        raise ValueError("first: expected at least two rows, as there are no negatives otherwise, got 1")
    return pairs


def _push(block: Block) -> tuple[Float[Tensor, "b 1"], Bool[Tensor, "b p"]]:
    """Logarithm of the sum over the negatives, and which pairs make a term: those of anchors that have negatives."""
    some = block.negative.any(1, keepdim=True)
    # A row without negatives is left as it is, finite.
    push = torch.logsumexp(block.similarities.masked_fill(~block.negative & some, -math.inf), 1, keepdim=True)
    return push, block.positive & some
