"""Zhao, Wang and Wei, Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation."""

from typing import Literal, NamedTuple, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import Reduction, indices, logit_pair, number, one_of, positive, reduce, shaped, whole

__all__ = [
    "Balance",
    "BalancedLoss",
    "b_mtard",
    "balance_temperatures",
    "balance_weights",
    "start_balance",
    "teacher_divergence",
    "tempered_entropy",
]

Form = Literal["paper", "official"]
Classes = Literal["mean", "sum"]
# Added inside the logarithm of a teacher's probability by the official code.
OFFICIAL_OFFSET = 1e-5


class Balance(TypedDict):
    """What the controllers carry from step to step: a dictionary of tensors, to be saved as it is.

    Pairs name the clean teacher first, the robust one second, as all of this module do.

    Attributes:
        temperatures: of the teachers.
        weights: of the losses; they sum to 1.
        anchors: the first losses, by which later ones are divided.
        steps: how many steps were done.

    Examples:
        >>> balance = start_balance(weights=(3.0, 1.0))
        >>> balance["weights"], balance["steps"]
        (tensor([0.7500, 0.2500]), tensor(0))
    """

    temperatures: Float[Tensor, " 2"]
    weights: Float[Tensor, " 2"]
    anchors: Float[Tensor, " 2"]
    steps: Int[Tensor, ""]


class BalancedLoss(NamedTuple):
    """One step of B-MTARD.

    Attributes:
        loss: to be minimised.
        losses: of the clean and of the robust teacher, before they are weighted; no gradient.
        entropies: of the teachers' tempered predictions; no gradient.
        balance: for the next step; no gradient.

    Examples:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])
        >>> step = b_mtard(student, student, teacher, teacher, start_balance())
        >>> step.balance["steps"], step.losses.shape
        (tensor(1), torch.Size([2]))
    """

    loss: Float[Tensor, ""]
    losses: Float[Tensor, " 2"]
    entropies: Float[Tensor, " 2"]
    balance: Balance


def tempered_entropy(
    logits: Float[Tensor, "n k"],
    *,
    temperature: float | Float[Tensor, ""] = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Entropy of predictions at a temperature, which rises with it.

    $$H(p)=-\sum_kp_k\log p_k,\quad p=\mathrm{softmax}(z/\tau),\qquad
      \frac{dH}{d\tau}=\frac{\mathrm{Var}_p(z)}{\tau^3}\ge0$$

    Args:
        logits: $z$; float16 and bfloat16 are computed in float32.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        reduction: "mean", "sum", or "none" for the `n` entropies.

    Returns:
        The entropy in nats, from 0 to $\log k$.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Zhao et al. (2023), arXiv:2306.16170, entropy-based balance.

    Examples:
        >>> logits = torch.tensor([[3.0, 0.0]])
        >>> [round(tempered_entropy(logits, temperature=t).item(), 3) for t in (1.0, 100.0)]
        [0.191, 0.693]
    """
    temperature = positive("temperature", temperature)
    return reduce(_entropies((shaped("logits", logits, "n k") / temperature).log_softmax(-1)), reduction)


def teacher_divergence(
    logits: Float[Tensor, "n k"],
    teacher_logits: Float[Tensor, "n k"],
    *,
    temperature: float | Float[Tensor, ""] = 1.0,
    classes: Classes = "mean",
    form: Form = "paper",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Divergence of a student from a teacher whose prediction alone is tempered.

    $$\ell=\frac1K\sum_kt_k(\log t_k-\log s_k),\qquad
      t=\mathrm{softmax}(z^T/\tau),\;s=\mathrm{softmax}(z)$$

    The temperature changes the target, and the student is not divided by it: no factor $\tau^2$ belongs here. No
    gradient flows to the teacher.

    Args:
        logits: $z$, of the student; float16 and bfloat16 are computed in float32.
        teacher_logits: $z^T$, of the same shape.
        temperature: $\tau>0$ of the teacher, a number or a tensor without dimensions.
        classes: "mean" divides by the number of classes $K$, as in the official code; "sum" gives the divergence.
        form: "official" adds $10^{-5}$ to $t_k$ inside the logarithm. The gradient is the same, the value at most
            $10^{-5}$ larger (times $K$ with "sum").
        reduction: "mean", "sum", or "none" for the `n` losses.

    Returns:
        The loss, at least 0 up to rounding.

    Raises:
        ValueError: for shapes, dtypes or options other than these.

    Source:
        Zhao et al. (2023), arXiv:2306.16170, and the official code.

    Examples:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 0.0]])
        >>> losses = [teacher_divergence(student, teacher, temperature=t) for t in (1.0, 2.0)]
        >>> [round(loss.item(), 3) for loss in losses]
        [0.121, 0.034]
    """
    temperature = positive("temperature", temperature)
    one_of("classes", classes, "mean", "sum")
    one_of("form", form, "paper", "official")
    logits, teacher_logits = logit_pair(logits, teacher_logits, ("logits", "teacher_logits"))
    log_t = (teacher_logits.detach() / temperature).log_softmax(-1)
    return reduce(_divergences(logits.log_softmax(-1), log_t, classes, form), reduction)


def balance_temperatures(
    temperatures: Float[Tensor, " 2"],
    entropies: Float[Tensor, " 2"],
    *,
    rate: float | Float[Tensor, ""] = 0.001,
    lowest: float = 1.0,
    highest: float = 10.0,
) -> Float[Tensor, " 2"]:
    r"""One step of the entropy-based balance: cool the teacher with more entropy, heat the other.

    $$\tau_n\leftarrow\tau_n-r\,\mathrm{sign}\Bigl(\frac{H_n}{H_a}-1\Bigr),\qquad
      \tau_a\leftarrow\tau_a-r\,\mathrm{sign}\Bigl(\frac{H_a}{H_n}-1\Bigr)$$

    and both are held between the bounds. Entropies are not negative, so the sign of $H_n-H_a$ is taken, which is the
    same and does not divide by zero. Where an entropy is not finite the temperatures stay as they are.

    Args:
        temperatures: $\tau_n,\tau_a$, of the clean and of the robust teacher.
        entropies: $H_n,H_a$ at these temperatures.
        rate: $r\ge0$, a number or a tensor without dimensions.
        lowest: bound of both temperatures, above 0.
        highest: likewise, at least `lowest`.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Zhao et al. (2023), arXiv:2306.16170, and the official code.

    Examples:
        >>> temperatures, entropies = torch.tensor([2.0, 2.0]), torch.tensor([0.9, 0.4])
        >>> balance_temperatures(temperatures, entropies, rate=0.5)
        tensor([1.5000, 2.5000])
    """
    rate = number("rate", rate, 0.0)
    lowest = positive("lowest", lowest)
    highest = number("highest", highest, lowest)
    temperatures, entropies = (
        shaped(name, value, "2") for name, value in (("temperatures", temperatures), ("entropies", entropies))
    )
    moved = (temperatures - rate * (entropies - entropies.flip(-1)).sign()).clamp(lowest, highest)
    return torch.where(entropies.isfinite().all(), moved, temperatures)


def balance_weights(
    weights: Float[Tensor, " 2"],
    losses: Float[Tensor, " 2"],
    anchors: Float[Tensor, " 2"],
    *,
    rate: float | Float[Tensor, ""] = 0.025,
    exponent: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, " 2"]:
    r"""One step of the normalization loss balance: weights follow the share of each relative loss.

    $$w_i\leftarrow w_i-r\Bigl(w_i-\frac{\tilde L_i^\gamma}{\tilde L_n^\gamma+\tilde L_a^\gamma}\Bigr),\qquad
      \tilde L_i=\frac{L_i}{L_i^{(0)}}$$

    Weights that sum to 1 go on doing so, and stay between 0 and 1. Two losses of 0 count as equal. Where a loss is not
    finite the weights stay as they are.

    Args:
        weights: $w_n,w_a$, of the losses of the clean and of the robust teacher.
        losses: $L_n,L_a\ge0$; no gradient flows to them.
        anchors: the first losses $L_n^{(0)},L_a^{(0)}>0$.
        rate: $r$ in $[0,1]$, a number or a tensor without dimensions.
        exponent: $\gamma$; 1 in the journal version.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Zhao et al. (2023), arXiv:2306.16170; the exponent: the code of the conference version.

    Examples:
        >>> weights, losses = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
        >>> balance_weights(weights, losses, anchors=torch.ones(2), rate=0.5).round(decimals=3)
        tensor([0.6250, 0.3750])
    """
    rate = number("rate", rate, 0.0, 1.0)
    exponent = number("exponent", exponent)
    weights, losses, anchors = (
        shaped(name, value, "2") for name, value in (("weights", weights), ("losses", losses), ("anchors", anchors))
    )
    tiny = torch.finfo(losses.dtype).tiny
    # Rounding may take a divergence below 0. The logarithm keeps a large exponent from overflowing.
    relative = losses.detach().clamp(min=tiny).log() - anchors.clamp(min=tiny).log()
    moved = weights - rate * (weights - (exponent * relative).softmax(-1))
    return torch.where(losses.isfinite().all(), moved, weights)


def start_balance(
    *,
    temperatures: tuple[float, float] = (1.0, 1.0),
    weights: tuple[float, float] = (0.5, 0.5),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Balance:
    """The controllers before the first step.

    Args:
        temperatures: of the clean and of the robust teacher, above 0.
        weights: of their losses, at least 0 and not both 0; they are divided by their sum.
        device: of the state.
        dtype: of the state.

    Raises:
        ValueError: for values other than these.

    Source:
        Zhao et al. (2023), arXiv:2306.16170, and the official code.

    Examples:
        >>> balance = start_balance(temperatures=(1.0, 2.0))
        >>> balance["temperatures"], balance["weights"]
        (tensor([1., 2.]), tensor([0.5000, 0.5000]))
    """
    for value in temperatures:
        positive("temperatures", value)
    for value in weights:
        number("weights", value, 0.0)
    if not sum(weights) > 0:
        raise ValueError(f"weights: expected a positive sum, got {weights}")
    shares = [value / sum(weights) for value in weights]
    return {
        "temperatures": torch.tensor(temperatures, device=device, dtype=dtype),
        "weights": torch.tensor(shares, device=device, dtype=dtype),
        "anchors": torch.zeros(2, device=device, dtype=dtype),
        "steps": torch.zeros((), device=device, dtype=torch.int64),
    }


def b_mtard(
    logits: Float[Tensor, "n k"],
    adversarial_logits: Float[Tensor, "n k"],
    clean_teacher_logits: Float[Tensor, "n k"],
    robust_teacher_logits: Float[Tensor, "n k"],
    balance: Balance,
    *,
    temperature_rate: float | Float[Tensor, ""] = 0.001,
    weight_rate: float | Float[Tensor, ""] = 0.025,
    lowest: float = 1.0,
    highest: float = 10.0,
    exponent: float | Float[Tensor, ""] = 1.0,
    anchor_steps: int = 1,
    classes: Classes = "mean",
    form: Form = "paper",
) -> BalancedLoss:
    r"""B-MTARD: learn clean inputs from a clean teacher, adversarial ones from a robust teacher, and balance the two.

    $$L=w_nL_n+w_aL_a,\qquad L_n=\ell\bigl(S(x),T_n(x),\tau_n\bigr),\;L_a=\ell\bigl(S(x^*),T_a(x^*),\tau_a\bigr)$$

    with $\ell$ of `teacher_divergence`. Weights are updated before they are used (`balance_weights`), temperatures
    after (`balance_temperatures`). With both rates 0 they stay as they started. Adversarial inputs $x^*$
    raise the student's cross-entropy with the true class; the teachers have no part in them. After a batch whose losses
    or entropies are not finite, which the result shows, the balance is the old one.

    Args:
        logits: $S(x)$, of the student for clean inputs; float16 and bfloat16 are computed in float32.
        adversarial_logits: $S(x^*)$.
        clean_teacher_logits: $T_n(x)$.
        robust_teacher_logits: $T_a(x^*)$.
        balance: of the last step, or `start_balance()`.
        temperature_rate: of the temperatures, a step.
        weight_rate: of the weights, a step.
        lowest: bound of the temperatures.
        highest: likewise.
        exponent: as in `balance_weights`.
        anchor_steps: the anchors are the means of the losses over so many first steps, so far; the paper takes one.
        classes: as in `teacher_divergence`.
        form: as in `teacher_divergence`.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Zhao et al. (2023), arXiv:2306.16170, and the official code.

    Examples:
        >>> student, attacked = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
        >>> clean, robust = torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, 0.0]])  # teachers
        >>> step = b_mtard(student, attacked, clean, robust, start_balance())
        >>> round(step.loss.item(), 3), step.balance["temperatures"]
        (0.067, tensor([1.0010, 1.0000]))
    """
    anchor_steps = whole("anchor_steps", anchor_steps)
    temperatures = shaped('balance["temperatures"]', balance["temperatures"], "2")
    one_of("classes", classes, "mean", "sum")
    one_of("form", form, "paper", "official")
    names = ("adversarial_logits", "robust_teacher_logits"), ("logits", "clean_teacher_logits")
    attacked, robust = logit_pair(adversarial_logits, robust_teacher_logits, names[0])
    clean, accurate = logit_pair(logits, clean_teacher_logits, names[1])
    logit_pair(clean, attacked)
    log_s = torch.stack([clean, attacked]).log_softmax(-1)
    log_t = (torch.stack([accurate, robust]).detach() / temperatures[:, None, None]).log_softmax(-1)
    losses = _divergences(log_s, log_t, classes, form).mean(-1)
    entropies = _entropies(log_t).mean(-1)
    now, steps, anchors = losses.detach(), indices('balance["steps"]', balance["steps"]), balance["anchors"]
    mean = anchors + (now - anchors) / (steps + 1)
    anchors = torch.where(steps < anchor_steps, mean, anchors)
    weights = balance_weights(balance["weights"], now, anchors, rate=weight_rate, exponent=exponent)
    cooled = balance_temperatures(temperatures, entropies, rate=temperature_rate, lowest=lowest, highest=highest)
    # One bad batch would stay in the anchors for ever.
    good = now.isfinite().all() & entropies.isfinite().all()
    new: Balance = {
        "temperatures": torch.where(good, cooled, temperatures),
        "weights": torch.where(good, weights, balance["weights"]),
        "anchors": torch.where(good, anchors, balance["anchors"]),
        "steps": torch.where(good, steps + 1, steps),
    }
    return BalancedLoss((weights * losses).sum(), now, entropies, new)


def _entropies(log_p: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    return -(log_p.exp() * log_p).sum(-1)


def _divergences(
    log_s: Float[Tensor, "*n k"], log_t: Float[Tensor, "*n k"], classes: Classes, form: Form
) -> Float[Tensor, "*n"]:
    t = log_t.exp()
    if form == "official":
        log_t = (t + OFFICIAL_OFFSET).log()
    terms = t * (log_t - log_s)
    return terms.mean(-1) if classes == "mean" else terms.sum(-1)
