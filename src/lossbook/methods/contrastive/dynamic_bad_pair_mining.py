"""Lan et al., Towards Enhancing Time Series Contrastive Learning: A Dynamic Bad Pair Mining Approach (ICLR 2024)."""

import math
from typing import Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lossbook.methods._validate import (
    Reduction,
    floating,
    indices,
    matching,
    number,
    one_of,
    positive,
    reduce,
    shaped,
    whole,
)

__all__ = [
    "LossStatistics",
    "PairMemory",
    "bad_pairs",
    "dynamic_bad_pair_loss",
    "loss_statistics",
    "pair_memory",
    "pair_weights",
    "record_losses",
]

Form = Literal["density", "capped", "relative", "drop"]
FORMS = ("density", "capped", "relative", "drop")


class PairMemory(TypedDict):
    """What is remembered of every pair of the training set: a dictionary of tensors, to be saved as it is.

    Attributes:
        average: mean loss over the epochs recorded, NaN for a pair that was never seen.
        count: how many were recorded.

    Examples:
        >>> memory = PairMemory(average=torch.tensor([0.5, 1.5]), count=torch.tensor([4.0, 4.0]))
        >>> record_losses(memory, torch.tensor([1.0]), torch.tensor([0]))["average"]
        tensor([0.6000, 1.5000])
    """

    average: Float[Tensor, " n"]
    count: Float[Tensor, " n"]


class LossStatistics(TypedDict):
    """Mean and population standard deviation, over all pairs, of their mean losses: a dictionary of tensors.

    Attributes:
        mean: of the mean losses.
        deviation: of the mean losses.

    Examples:
        >>> statistics = loss_statistics(torch.tensor([0.0, 2.0]))
        >>> round(statistics["mean"].item(), 3), round(statistics["deviation"].item(), 3)
        (1.0, 1.0)
    """

    mean: Float[Tensor, ""]
    deviation: Float[Tensor, ""]


def pair_memory(n: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PairMemory:
    """An empty memory for `n` pairs.

    Args:
        n: number of pairs of the training set.
        device, dtype: of the memory; PyTorch's defaults if None. Half precision holds the averages alone, since it
            cannot count far.

    Raises:
        ValueError: if `n` is not a positive whole number.

    Source:
        Lan, Yan, Hong and Feng (2024), arXiv:2302.03357: the memory of losses, as running means.

    Examples:
        >>> memory = pair_memory(3)
        >>> memory
        {'average': tensor([nan, nan, nan]), 'count': tensor([0., 0., 0.])}
    """
    n = whole("n", n)
    average = torch.full((n,), math.nan, device=device, dtype=dtype)
    return {"average": average, "count": torch.zeros_like(average, dtype=floating("dtype", average).dtype)}


def record_losses(
    memory: PairMemory,
    losses: Float[Tensor, " b"],
    index: Int[Tensor, " b"],
    *,
    gain: float | Float[Tensor, ""] = 1.0,
) -> PairMemory:
    r"""The memory after the losses of a batch were added to it; the old one stays as it is.

    $$m_i\leftarrow m_i+\frac{g\,\mathcal L_i-m_i}{k_i},\qquad k_i\leftarrow k_i+1$$

    with $k_i$ already counted up: the mean over the epochs recorded, without keeping them all. A loss that is infinite
    or not a number is not recorded, and its pair stays as it was.

    Args:
        memory: made by `pair_memory`.
        losses: of the pairs of this batch; no gradient is kept.
        index: their numbers in the training set, each at most once.
        gain: $g>0$, a factor on the losses. The paper has 1; the official code $(e+1)/E$ in epoch $e=0,1,\dots$ of $E$,
            and does not divide by the sum of these factors.

    Raises:
        ValueError: for shapes, dtypes or a gain other than these.

    Source:
        The paper keeps a table of all losses and averages its rows; the running form is the same mean.

    Examples:
        >>> memory = pair_memory(3)
        >>> memory = record_losses(memory, torch.tensor([1.0, 2.0]), torch.tensor([0, 2]))
        >>> memory = record_losses(memory, torch.tensor([3.0]), torch.tensor([0]))
        >>> memory["average"]
        tensor([2., nan, 2.])
    """
    gain = positive("gain", gain)
    losses = shaped("losses", losses, "n").detach()
    index = indices("index", index, len(losses))
    averages, counts = memory["average"], memory["count"]
    new, old, seen = gain * losses, averages[index], counts[index]
    average = torch.where(seen == 0, new, old + (new - old) / (seen + 1)).to(averages.dtype)
    # One bad value would stay in the mean for ever.
    kept = average.isfinite()
    average, seen = torch.where(kept, average, old), torch.where(kept, seen + 1, seen)
    return {"average": averages.index_copy(0, index, average), "count": counts.index_copy(0, index, seen)}


def loss_statistics(averages: Float[Tensor, " n"]) -> LossStatistics:
    r"""Mean $\mu=\frac1n\sum_im_i$ and population standard deviation $\sigma=\sqrt{\frac1n\sum_i(m_i-\mu)^2}$.

    Take them once, before an epoch begins, from the memory of *all* pairs. Pairs never seen, NaN, do not count, nor do
    infinite ones; if none is left both are NaN, and no pair will be flagged.

    Args:
        averages: mean losses, as `PairMemory` has them.

    Raises:
        ValueError: if `averages` is not a floating-point vector.

    Source:
        Lan, Yan, Hong and Feng (2024), arXiv:2302.03357: mean and deviation of the histories.

    Examples:
        >>> averages = torch.tensor([1.0, 3.0, float("nan")])  # the third pair was never seen
        >>> loss_statistics(averages)
        {'mean': tensor(2.), 'deviation': tensor(1.)}
    """
    averages = shaped("averages", averages, "n").detach()
    seen = averages.isfinite()
    number = seen.sum()
    mean = (torch.where(seen, averages, 0) / number).sum()
    distance = torch.where(seen, averages - mean, 0)
    # Squares of distances in units of the largest neither overflow nor vanish.
    largest = distance.abs().amax()
    scaled = distance / torch.where(largest > 0, largest, 1)
    return {"mean": mean, "deviation": largest * (scaled.square().sum() / number).sqrt()}


def bad_pairs(
    averages: Float[Tensor, " b"],
    statistics: LossStatistics,
    *,
    noisy_cut: float | Float[Tensor, ""] = 2.0,
    faulty_cut: float | Float[Tensor, ""] = 3.0,
) -> tuple[Bool[Tensor, " b"], Bool[Tensor, " b"]]:
    r"""Which pairs are noisy, $m_i<\mu-\beta_{np}\sigma$, and which faulty, $m_i>\mu+\beta_{fp}\sigma$.

    Both inequalities are strict: where all pairs have the same mean loss ($\sigma=0$) none is flagged.

    Args:
        averages: mean losses of some pairs, their history and not the loss of now; NaN is never flagged.
        statistics: of all pairs, from `loss_statistics`.
        noisy_cut: $\beta_{np}\ge0$, in standard deviations; infinity flags none. The default is the official code's.
        faulty_cut: $\beta_{fp}$, likewise.

    Raises:
        ValueError: for shapes, dtypes or cuts other than these.

    Source:
        Lan, Yan, Hong and Feng (2024), arXiv:2302.03357: the two thresholds.

    Examples:
        >>> averages = torch.tensor([1.0] * 19 + [9.0])
        >>> noisy, faulty = bad_pairs(averages, loss_statistics(averages))
        >>> noisy.any(), faulty.nonzero()
        (tensor(False), tensor([[19]]))
    """
    averages = shaped("averages", averages, "n").detach()
    noisy_cut, faulty_cut = _cut("noisy_cut", noisy_cut), _cut("faulty_cut", faulty_cut)
    mean, deviation = statistics["mean"], statistics["deviation"]
    return averages < mean - noisy_cut * deviation, averages > mean + faulty_cut * deviation


def pair_weights(
    losses: Float[Tensor, " b"],
    averages: Float[Tensor, " b"],
    statistics: LossStatistics,
    *,
    noisy_cut: float | Float[Tensor, ""] = 2.0,
    faulty_cut: float | Float[Tensor, ""] = 3.0,
    form: Form = "density",
) -> Float[Tensor, " b"]:
    r"""Weight 1 for a pair that is not flagged; for a flagged one a Gaussian of its current loss.

    $$w_i=\frac1{\sigma\sqrt{2\pi}}\exp\Bigl(-\frac{z_i^2}2\Bigr),\qquad z_i=\frac{\mathcal L_i-\mu}\sigma$$

    This is a density, not a probability, and exceeds 1 where $\sigma\sqrt{2\pi}<e^{-z^2/2}$. Weights carry no gradient.

    Args:
        losses: current losses of the pairs.
        averages: their mean losses so far, by which they are flagged.
        statistics, noisy_cut, faulty_cut: see `bad_pairs`.
        form: "density" is the paper's; "capped" is $\min(1,w)$, "relative" $e^{-z^2/2}$ and "drop" 0.

    Raises:
        ValueError: for shapes, dtypes, cuts or a form other than these.

    Source:
        Lan, Yan, Hong and Feng (2024), arXiv:2302.03357, transformation module; the other forms are ours.

    Examples:
        >>> losses = torch.tensor([1.0] * 11 + [9.0])
        >>> statistics = loss_statistics(losses)
        >>> pair_weights(losses, losses, statistics, form="relative")[-2:].round(decimals=3)
        tensor([1.0000, 0.0040])
    """
    one_of("form", form, *FORMS)
    losses, averages = matching("n", losses=losses, averages=averages)
    losses = losses.detach()
    noisy, faulty = bad_pairs(averages, statistics, noisy_cut=noisy_cut, faulty_cut=faulty_cut)
    if form == "drop":
        weights = torch.zeros_like(losses)
    else:
        deviation = statistics["deviation"].clamp(min=torch.finfo(losses.dtype).tiny)
        weights = torch.exp(-((losses - statistics["mean"]) / deviation).square() / 2)
        if form != "relative":
            weights = weights / (deviation * math.sqrt(2 * math.pi))
        if form == "capped":
            weights = weights.clamp(max=1)
    return torch.where(noisy | faulty, weights, 1).to(losses.dtype)


def dynamic_bad_pair_loss(
    losses: Float[Tensor, " b"],
    averages: Float[Tensor, " b"],
    statistics: LossStatistics,
    *,
    noisy_cut: float | Float[Tensor, ""] = 2.0,
    faulty_cut: float | Float[Tensor, ""] = 3.0,
    form: Form = "density",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*b"]:
    r"""Losses of pairs, of which those that look noisy or faulty by their history count less.

    $$\frac1b\sum_iw_i\,\mathcal L_i$$

    with the weights of `pair_weights`, constant for the gradient. One epoch of training::

        statistics = loss_statistics(memory["average"])             # once, before the epoch
        for inputs, index in batches:
            losses = info_nce(first, second, reduction="none")      # or any other loss that has a term for each pair
            loss = dynamic_bad_pair_loss(losses, memory["average"][index], statistics)
            memory = record_losses(memory, losses, index)

    In the first epochs, the warm-up, take the plain mean and record only: the official code waits 50 of 80. The memory
    is saved by `torch.save` as it is. A loss that is not finite makes the result so, but leaves the memory alone.

    Args:
        losses: of the pairs, with gradient; float16 and bfloat16 are computed in float32.
        averages, statistics, noisy_cut, faulty_cut, form: see `pair_weights`.
        reduction: "mean" (over all pairs, flagged or not), "sum", or "none".

    Raises:
        ValueError: for shapes, dtypes or hyperparameters other than these.

    Source:
        Lan, Yan, Hong and Feng (2024), arXiv:2302.03357.

    Examples:
        >>> losses = torch.tensor([1.0] * 19 + [9.0])
        >>> statistics = loss_statistics(losses)
        >>> round(dynamic_bad_pair_loss(losses, losses, statistics, form="drop").item(), 3)
        0.95
    """
    weights = pair_weights(losses, averages, statistics, noisy_cut=noisy_cut, faulty_cut=faulty_cut, form=form)
    return reduce(weights * floating("losses", losses), reduction)


def _cut(name: str, value: float | Tensor) -> float | Tensor:
    """The cut, a number of at least 0, infinity included; of a tensor only the form is checked."""
    return value if isinstance(value, float) and value == math.inf else number(name, value, least=0.0)
