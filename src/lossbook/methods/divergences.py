"""Divergences between the predictions of classifiers."""

from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import Reduction, logit_pair, reduce

__all__ = ["kl_divergence"]


def kl_divergence(
    logits: Float[Tensor, "n k"], others: Float[Tensor, "n k"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Kullback-Leibler divergence between the predictions that two sets of logits stand for.

    $$\mathrm{KL}(p\|q)=\sum_kp_k(\log p_k-\log q_k),\qquad p=\mathrm{softmax}(z),\;q=\mathrm{softmax}(z')$$

    The gradient flows to both.

    Args:
        logits: $z$; float16 and bfloat16 are computed in float32.
        others: $z'$, of the same shape.
        reduction: "mean", "sum", or "none" for the `n` divergences.

    Returns:
        The divergence in nats, at least 0 up to rounding.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        Kullback and Leibler (1951).

    Examples:
        >>> logits, others = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
        >>> divergences.kl_divergence(logits, others, reduction="none").round(decimals=3)
        tensor([0.3280, 0.0000])
    """
    log_p, log_q = (value.log_softmax(-1) for value in logit_pair(logits, others, ("logits", "others")))
    return reduce((log_p.exp() * (log_p - log_q)).sum(-1), reduction)
