"""Losses of adversarial training, which see a clean input and the one that an attack made of it."""

from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import Reduction, cross_entropy, indices, logit_pair, number, reduce
from lossbook.methods.divergences import kl_divergence

__all__ = ["trades"]


def trades(
    logits: Float[Tensor, "n k"],
    adversarial_logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"],
    *,
    weight: float | Float[Tensor, ""] = 6.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""TRADES: cross-entropy on clean inputs, and the divergence of the prediction under attack from the clean one.

    $$\ell=\mathrm{CE}(f(x),y)+\beta\,\mathrm{KL}(p(\cdot|x)\|p(\cdot|x^*))$$

    The adversarial input $x^*$ is found by raising the same divergence within a ball around $x$.

    Args:
        logits: $f(x)$, of clean inputs; float16 and bfloat16 are computed in float32.
        adversarial_logits: $f(x^*)$.
        targets: true classes, $0$ to $k-1$; with another number, -100 included, the loss is not a number.
        weight: $\beta\ge0$, a number or a tensor without dimensions.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or a weight other than these.

    Source:
        Zhang et al. (2019), arXiv:1901.08573, equation 5; the default weight is that of the authors' code.

    Examples:
        >>> logits, attacked = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.0]])
        >>> round(adversarial.trades(logits, attacked, torch.tensor([0]), weight=6.0).item(), 3)
        1.137
    """
    weight = number("weight", weight, least=0.0)
    logits, adversarial_logits = logit_pair(logits, adversarial_logits)
    targets = indices("targets", targets, len(logits))
    clean = cross_entropy(logits, targets)
    return reduce(clean + weight * kl_divergence(logits, adversarial_logits, reduction="none"), reduction)
