"""Losses of two views without negatives, kept from collapse by the spread of the batch."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import paired
from lossbook.methods.similarities import inner_products

__all__ = ["vic_reg"]


def vic_reg(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    invariance: float | Float[Tensor, ""] = 25.0,
    variance: float | Float[Tensor, ""] = 25.0,
    covariance: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, ""]:
    r"""VICReg: views agree, every coordinate varies, no two coordinates vary together. No negatives.

    $$\lambda\frac1{nd}\lVert X-Y\rVert_F^2+\sum_{Z\in\{X,Y\}}
      \Bigl[\frac{\mu}{2d}\sum_k\max\bigl(0,1-\sqrt{C_{kk}+10^{-4}}\bigr)+\frac{\nu}{d}\sum_{k\ne l}C_{kl}^2\Bigr]$$

    with $C$ the covariance, with divisor $n-1$, of the rows of $Z$. Nothing repels, so that labels have no meaning
    here, and there is no $n\times n$ matrix.

    Args:
        first, second: raw embeddings of both views, at least two rows; not normalised.
        invariance, variance, covariance: the weights $\lambda,\mu,\nu$.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Bardes, Ponce and LeCun (2022), arXiv:2105.04906, eq. 6; the half before the variance as in their code.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> [round(vic_reg(x, y).item(), 3) for y in (x, x + 1, torch.zeros(4, 2))]
        [0.0, 25.0, 37.375]
    """
    first, second = paired(first, second, ("first", "second"))
    n, d = first.shape
    if n < 2:
        raise ValueError(f"first: expected at least two rows, got {n}")
    loss = invariance * F.mse_loss(first, second)
    for embeddings in (first, second):
        centred = embeddings - embeddings.mean(0)
        products = inner_products(centred.mT, centred.mT) / (n - 1)
        deviations = (products.diagonal() + 1e-4).sqrt()
        apart = products.square().sum() - products.diagonal().square().sum()
        loss = loss + variance * (1 - deviations).clamp(min=0).mean() / 2 + covariance * apart / d
    return loss
