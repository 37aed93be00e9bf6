"""Kim and Kim, Temperature-Free Loss Function for Contrastive Learning (2025), arXiv:2501.17683."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lossbook.methods._pairs import matched
from lossbook.methods._validate import Reduction, floating
from lossbook.methods.contrastive.infonce import pair_cross_entropy

__all__ = ["log_odds", "temperature_free_info_nce"]


def log_odds(cosines: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Log-odds of the probability $(1+c)/2$, which stretch cosines in $[-1,1]$ over the real line.

    $$s=\log\frac{1+c}{1-c}=2\operatorname{artanh}c$$

    At $c=\pm1$ they are infinite, and rounding reaches these. Computed is $\log\frac{1+\epsilon+c}{1+\epsilon-c}$,
    that is $2\operatorname{artanh}\frac{c}{1+\epsilon}$, with $\epsilon$ four times the dtype's spacing at 1 (float32:
    $|s|\le15.3$): strictly increasing, with a finite gradient everywhere. A cosine that rounding took out of
    $[-1,1]$ counts as $\pm1$, but its gradient passes: a plain clamp would cut it off exactly where two
    embeddings coincide.

    Args:
        cosines: values in $[-1,1]$; float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: if they are no floating-point tensor.

    Source:
        arXiv:2501.17683; the form with $\epsilon$ is ours.

    Examples:
        >>> log_odds(torch.tensor([-0.5, 0.0, 0.5])).round(decimals=3)
        tensor([-1.0990,  0.0000,  1.0990])
    """
    cosines = floating("cosines", cosines)
    epsilon = 4 * torch.finfo(cosines.dtype).eps
    cosines = cosines + (cosines.clamp(-1, 1) - cosines).detach()
    return torch.log1p(cosines + epsilon) - torch.log1p(epsilon - cosines)


def temperature_free_info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    key_labels: Integer[Tensor, " m"] | None = None,
    positives: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    groups: Integer[Tensor, " m"] | None = None,
    symmetric: bool = False,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""InfoNCE with log-odds for logits: nothing to tune.

    $$\ell_i=-\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}},\qquad s_{ij}=\log\frac{1+c_{ij}}{1-c_{ij}}$$

    with $c_{ij}$ the cosine of query $i$ and key $j$. The gradient is that of InfoNCE at the local temperature
    $\tau(c)=(1-c^2)/2$. Two different rows that coincide ($c_{ij}=1$, $j\ne i$) have a gradient that grows without
    bound as they approach; it is finite here, but large: clip gradients where a batch holds duplicates.

    With labels, a term for each query $i$ and key $p$ of one class, with the keys $N_i$ of other classes:

    $$\ell_{ip}=-\log\frac{e^{s_{ip}}}{e^{s_{ip}}+\sum_{j\in N_i}e^{s_{ij}}}$$

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: as `queries`; the positive of query $i$ is key $i$.
        labels, key_labels, positives, negatives, groups: whose positives are whose, and more negatives: see `info_nce`.
        symmetric: average with the loss in which keys look for their queries.
        rows: compute the similarities of this many queries at a time, so that memory grows like $n$: see `by_rows`.
        reduction: as in `info_nce`.

    Returns:
        The loss, at least 0.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        Kim and Kim (2025), arXiv:2501.17683; the form with labels is that of `info_nce`.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> [round(temperature_free_info_nce(x, keys).item(), 3) for keys in (x, x.flip(0))]
        [0.0, 13.863]
    """
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
    return pair_cross_entropy(pairs, log_odds, symmetric=symmetric, rows=rows, reduction=reduction)
