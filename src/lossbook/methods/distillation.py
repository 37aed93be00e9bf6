"""Adversarial distillation: a student learns from a robust teacher what to say under attack."""

from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import Reduction, cross_entropy, indices, matching, number, positive, reduce
from lossbook.methods.divergences import kl_divergence

__all__ = ["ard", "rslad"]


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
        targets: true classes, $0$ to $k-1$; with another number, -100 included, the loss is not a number.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        weight: $\alpha$ in $[0,1]$, likewise.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Goldblum, Fowl, Feizi and Goldstein (2020), arXiv:1905.09747; defaults and the use of a mean over classes, which
        is not taken here, are those of the authors' code.

    Examples:
        >>> logits, attacked = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.0]])
        >>> teacher, targets = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
        >>> round(distillation.ard(logits, attacked, teacher, targets, temperature=2.0).item(), 3)
        0.586
    """
    temperature = positive("temperature", temperature)
    weight = number("weight", weight, 0.0, 1.0)
    logits, adversarial_logits, teacher_logits = matching(
        "n k", logits=logits, adversarial_logits=adversarial_logits, teacher_logits=teacher_logits
    )
    targets = indices("targets", targets, len(logits))
    clean = cross_entropy(logits, targets)
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

    The adversarial input $x^*$ raises the second divergence. No gradient flows to the teacher. The authors' code takes
    means over classes too: its loss is this one divided by their number $k$.

    Args:
        logits: $S(x)$, of the student for clean inputs; float16 and bfloat16 are computed in float32.
        adversarial_logits: $S(x^*)$.
        teacher_logits: $T(x)$.
        weight: $\beta$ in $[0,1]$, a number or a tensor without dimensions.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or a weight other than these.

    Source:
        Zi, Zhao, Ma and Jiang (2021), arXiv:2108.07969; the default weight is that of the authors' code, which takes a
        mean over classes.

    Examples:
        >>> logits, attacked = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.0]])
        >>> teacher = torch.tensor([[3.0, 0.0]])
        >>> round(distillation.rslad(logits, attacked, teacher).item(), 3)
        0.261
    """
    weight = number("weight", weight, 0.0, 1.0)
    logits, adversarial_logits, teacher_logits = matching(
        "n k", logits=logits, adversarial_logits=adversarial_logits, teacher_logits=teacher_logits
    )
    teacher_logits = teacher_logits.detach()
    clean, attacked = (
        kl_divergence(teacher_logits, student, reduction="none") for student in (logits, adversarial_logits)
    )
    return reduce((1 - weight) * clean + weight * attacked, reduction)
