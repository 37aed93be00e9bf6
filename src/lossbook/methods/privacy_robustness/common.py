"""What several papers of the part share."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import Reduction, indices, number, positive, reduce, shaped

__all__ = ["ard", "kl_divergence", "rslad", "trades"]


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
    """
    log_p, log_q = (value.log_softmax(-1) for value in logit_pair(logits, others, ("logits", "others")))
    return reduce((log_p.exp() * (log_p - log_q)).sum(-1), reduction)


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
        targets: true classes, $0$ to $k-1$.
        weight: $\beta\ge0$, a number or a tensor without dimensions.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or a weight other than these.

    Source:
        Zhang et al. (2019), arXiv:1901.08573, equation 5; the default weight is that of the authors' code.
    """
    number("weight", weight, least=0.0)
    logits, adversarial_logits = logit_pair(logits, adversarial_logits)
    indices("targets", targets, len(logits))
    clean = F.cross_entropy(logits, targets, reduction="none")
    return reduce(clean + weight * kl_divergence(logits, adversarial_logits, reduction="none"), reduction)


def ard(
    logits: Float[Tensor, "n k"],
    adversarial_logits: Float[Tensor, "n k"],
    teacher_logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"],
    *,
    temperature: float | Float[Tensor, ""] = 30.0,
    weight: float | Float[Tensor, ""] = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""ARD: under attack, say what a robust teacher says of the clean input.

    $$\ell=(1-\alpha)\,\mathrm{CE}(S(x),y)+\alpha\tau^2\,\mathrm{KL}(t\|s),\qquad
      t=\mathrm{softmax}(T(x)/\tau),\;s=\mathrm{softmax}(S(x^*)/\tau)$$

    The adversarial input $x^*$ raises the student's cross-entropy with the true class. No gradient flows to the
    teacher.

    Args:
        logits: $S(x)$, of the student for clean inputs; float16 and bfloat16 are computed in float32.
        adversarial_logits: $S(x^*)$.
        teacher_logits: $T(x)$.
        targets: true classes, $0$ to $k-1$.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        weight: $\alpha$ in $[0,1]$, likewise.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Goldblum, Fowl, Feizi and Goldstein (2020), arXiv:1905.09747; defaults and the use of a mean over classes, which
        is not taken here, are those of the authors' code.
    """
    positive("temperature", temperature)
    number("weight", weight, 0.0, 1.0)
    _, teacher_logits = logit_pair(logits, teacher_logits, ("logits", "teacher_logits"))
    logits, adversarial_logits = logit_pair(logits, adversarial_logits)
    indices("targets", targets, len(logits))
    clean = F.cross_entropy(logits, targets, reduction="none")
    tempered = teacher_logits.detach() / temperature
    match = kl_divergence(tempered, adversarial_logits / temperature, reduction="none")
    return reduce((1 - weight) * clean + weight * temperature**2 * match, reduction)


def rslad(
    logits: Float[Tensor, "n k"],
    adversarial_logits: Float[Tensor, "n k"],
    teacher_logits: Float[Tensor, "n k"],
    *,
    weight: float | Float[Tensor, ""] = 5 / 6,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""RSLAD: the robust teacher's soft labels of clean inputs replace the true classes everywhere.

    $$\ell=(1-\beta)\,\mathrm{KL}(T(x)\|S(x))+\beta\,\mathrm{KL}(T(x)\|S(x^*))$$

    The adversarial input $x^*$ raises the second divergence. No gradient flows to the teacher.

    Args:
        logits: $S(x)$, of the student for clean inputs; float16 and bfloat16 are computed in float32.
        adversarial_logits: $S(x^*)$.
        teacher_logits: $T(x)$.
        weight: $\beta$ in $[0,1]$, a number or a tensor without dimensions.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or a weight other than these.

    Source:
        Zi, Zhao, Ma and Jiang (2021), arXiv:2108.07969; the default weight is that of the authors' code.
    """
    number("weight", weight, 0.0, 1.0)
    _, teacher_logits = logit_pair(logits, teacher_logits, ("logits", "teacher_logits"))
    logits, adversarial_logits = logit_pair(logits, adversarial_logits)
    teacher_logits = teacher_logits.detach()
    clean, attacked = (
        kl_divergence(teacher_logits, student, reduction="none") for student in (logits, adversarial_logits)
    )
    return reduce((1 - weight) * clean + weight * attacked, reduction)


def logit_pair(
    logits: Float[Tensor, "n k"],
    others: Float[Tensor, "n k"],
    names: tuple[str, str] = ("logits", "adversarial_logits"),
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Both sets of logits, of the same shape, in at least float32; ValueError in the caller's names."""
    first, second = (shaped(name, value, "n k") for name, value in zip(names, (logits, others), strict=True))
    if first.shape != second.shape:
        raise ValueError(
            f"{names[1]}: expected the shape of {names[0]}, {tuple(first.shape)}, got {tuple(second.shape)}"
        )
    return first, second
