"""Mirza et al., Shedding More Light on Robust Classifiers under the Lens of Energy-based Models, arXiv:2407.06315."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import (
    Reduction,
    cross_entropy,
    indices,
    logit_pair,
    number,
    one_of,
    picked,
    reduce,
    shaped,
    together,
)
from lossbook.methods.divergences import kl_divergence

__all__ = ["divergence_in_energies", "energy_weights", "joint_energy", "marginal_energy", "weat"]


def joint_energy(logits: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Energy of an input together with a class, $E(x,y)=-f_y(x)$.

    Args:
        logits: $f(x)$; float16 and bfloat16 are computed in float32.
        targets: the classes, $0$ to $k-1$; with another number the energy is not a number.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2407.06315, section 3, after Grathwohl et al. (2020), arXiv:1912.03263.

    Examples:
        >>> joint_energy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        tensor([-2., -3.])
    """
    logits = shaped("logits", logits, "n k")
    targets = indices("targets", targets, len(logits))
    return -picked(logits, targets)


def marginal_energy(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    r"""Energy of an input, $E(x)=-\log\sum_ke^{f_k(x)}$.

    The posterior is $p(y|x)=e^{E(x)-E(x,y)}$ and the cross-entropy $E(x,y)-E(x)$.

    Args:
        logits: $f(x)$; float16 and bfloat16 are computed in float32.

    Returns:
        Between $-\max_kf_k-\log K$ and $-\max_kf_k$.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2407.06315, section 3, after Grathwohl et al. (2020), arXiv:1912.03263.

    Examples:
        >>> marginal_energy(torch.tensor([[0.0, 0.0], [5.0, -5.0]])).round(decimals=3)
        tensor([-0.6930, -5.0000])
    """
    return -shaped("logits", logits, "n k").logsumexp(1)


def divergence_in_energies(
    logits: Float[Tensor, "n k"], adversarial_logits: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    r"""The two parts, joint and marginal, of the divergence that TRADES and WEAT lower.

    $$\mathrm{KL}(p(\cdot|x)\|p(\cdot|x^*))=\mathbb E_{k\sim p(\cdot|x)}[E(x^*,k)-E(x,k)]+[E(x)-E(x^*)]$$

    Either may be negative; the sum is not.

    Args:
        logits: $f(x)$; float16 and bfloat16 are computed in float32.
        adversarial_logits: $f(x^*)$.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2407.06315, section 4.

    Examples:
        >>> logits, attacked = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> joint, marginal = divergence_in_energies(logits, attacked)
        >>> divergence = divergences.kl_divergence(logits, attacked, reduction="none")
        >>> torch.allclose(joint + marginal, divergence)
        True
    """
    logits, adversarial_logits = logit_pair(logits, adversarial_logits)
    joint = (logits.softmax(1) * (logits - adversarial_logits)).sum(1)
    return joint, marginal_energy(logits) - marginal_energy(adversarial_logits)


def energy_weights(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    r"""How much an example counts: the more, the closer its energy is to zero. Constants for the gradient.

    $$w(x)=\frac1{\log(1+e^{|E(x)|})}$$

    It depends on the level of the logits, which the prediction does not: adding a number to all logits of an input
    changes its weight and nothing else.

    Args:
        logits: $f(x)$ of clean inputs; float16 and bfloat16 are computed in float32.

    Returns:
        Weights above 0 and at most $1/\log2$.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2407.06315, section 5; detached as in the authors' code.

    Examples:
        >>> energy_weights(torch.tensor([[0.0, 0.0], [8.0, 0.0]])).round(decimals=3)
        tensor([0.9100, 0.1250])
    """
    return 1 / F.softplus(marginal_energy(logits).detach().abs())


def weat(
    logits: Float[Tensor, "n k"],
    adversarial_logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"],
    *,
    weight: float | Float[Tensor, ""] = 6.0,
    form: Literal["natural", "adversarial"] = "natural",
    weights: Float[Tensor, " n"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Weighted energy adversarial training: TRADES in which each example counts by its energy.

    $$\ell=w(x)\,\bigl[\mathrm{CE}(f(x),y)+\beta\,\mathrm{KL}(p(\cdot|x)\|p(\cdot|x^*))\bigr]$$

    The adversarial input $x^*$ is found as for TRADES, by raising the divergence. The mean divides by the number of
    examples, not by the sum of weights: weights of about 0.1 to 0.4 make the whole loss as much smaller.

    Args:
        logits: $f(x)$, of clean inputs; float16 and bfloat16 are computed in float32.
        adversarial_logits: $f(x^*)$. The gradient flows through both.
        targets: true classes, $0$ to $k-1$; with another number, -100 included, the loss is not a number.
        weight: $\beta\ge0$, a number or a tensor without dimensions. The authors' code has 6 for the natural form and
            7 for the adversarial one.
        form: which prediction the cross-entropy looks at, "natural" or "adversarial".
        weights: others than `energy_weights(logits)`; ones give TRADES. No gradient flows through them.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes, a form or a weight other than these.

    Source:
        arXiv:2407.06315, section 5, and the authors' code.

    Examples:
        >>> logits, attacked = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.0]])
        >>> round(weat(logits, attacked, torch.tensor([0])).item(), 3)
        0.508
        >>> unweighted = weat(logits, attacked, torch.tensor([0]), weights=torch.ones(1))
        >>> torch.allclose(unweighted, adversarial.trades(logits, attacked, torch.tensor([0])))
        True
    """
    one_of("form", form, "natural", "adversarial")
    weight = number("weight", weight, least=0.0)
    logits, adversarial_logits = logit_pair(logits, adversarial_logits)
    targets = indices("targets", targets, len(logits))
    if weights is not None:
        logits, adversarial_logits, weights = together(
            logits=logits, adversarial_logits=adversarial_logits, weights=shaped("weights", weights, "n")
        )
    given = energy_weights(logits) if weights is None else weights.detach()
    if given.shape != targets.shape:
        raise ValueError(f"weights: expected shape ({len(logits)},), got {tuple(given.shape)}")
    asked = logits if form == "natural" else adversarial_logits
    losses = cross_entropy(asked, targets)
    losses = losses + weight * kl_divergence(logits, adversarial_logits, reduction="none")
    return reduce(given * losses, reduction)
