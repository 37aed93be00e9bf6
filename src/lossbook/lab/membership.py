"""Membership inference: how well somebody tells what a model was trained on from what it was not.

An attacker gives every example a score, larger for those it takes for members. It is trained on *auxiliary*
examples whose membership it knows, and judged on others.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lossbook.lab._validate import flags, has_shape, real, share, some, spoilt, whole
from lossbook.lab.fitting import fit
from lossbook.lab.nets import mlp
from lossbook.lab.statistics import Interval

__all__ = ["Leakage", "attack_auc", "judge_attack", "learned_attack", "threshold_attack"]


def attack_auc(members: Float[Tensor, "*runs n"], others: Float[Tensor, "*runs m"]) -> Float[Tensor, "*runs"]:
    r"""Area under the ROC curve: how often a member's score is above a non-member's; ties count half.

    0.5 is chance. Below 0.5 the attacker is right with its scores reversed. Scores are sorted, not compared in pairs:
    memory grows like $n+m$. Under `vmap`, where nothing can be raised, the area is NaN if a score is.

    Args:
        members: scores of members.
        others: scores of non-members.

    Raises:
        ValueError: for no scores, scores that are not numbers, or sets of different runs.

    Examples:
        >>> members, others = torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0])
        >>> membership.attack_auc(members, others).item()
        0.875
    """
    for name, scores in (("members", members), ("others", others)):
        real(name, scores)
        some(name, scores.shape[-1], "scores")
    has_shape("others", others, (*members.shape[:-1], others.shape[-1]), "the runs of the members")
    # Sorting and searching need one dtype, and half precision has no search.
    dtype = torch.promote_types(torch.promote_types(members.dtype, others.dtype), torch.float32)
    asked, ranked = members.detach().to(dtype).contiguous(), others.detach().to(dtype).sort(-1).values
    beaten = torch.searchsorted(ranked, asked) + torch.searchsorted(ranked, asked, right=True)
    area = beaten.double().mean(-1) / (2 * others.shape[-1])
    return spoilt(area, members.isnan().any(-1), others.isnan().any(-1))


class Leakage(NamedTuple):
    """What an attack found.

    Attributes:
        auc: area under the ROC curve with its interval.
        power: true-positive rate at the asked false-positive rate, with its interval.

    Examples:
        >>> found = membership.judge_attack(torch.ones(20), torch.zeros(20))
        >>> found.auc.effect, found.power.effect, found.power.n
        (1.0, 1.0, 20)
    """

    auc: Interval
    power: Interval


def judge_attack(
    members: Float[Tensor, " n"],
    others: Float[Tensor, " m"],
    *,
    false_positives: float = 0.05,
    confidence: float = 0.95,
) -> Leakage:
    r"""Area under the ROC curve, and true-positive rate at a low false-positive rate, with intervals over examples.

    The interval of the area $\theta$ are the values that would not be rejected, $|\hat\theta-\theta|\le
    z\sqrt{V(\theta)}$, with the variance under exponential scores

    $$V(\theta)=\frac{\theta(1-\theta)}{nm}\Bigl[1+\Bigl(\frac{n+m}2-1\Bigr)\Bigl(\frac{1-\theta}{2-\theta}
    +\frac\theta{1+\theta}\Bigr)\Bigr].$$

    It stays inside $[0,1]$ and does not shrink to a point at its ends. The true-positive rate is the largest with a
    false-positive rate of at most `false_positives` on the non-members given; its interval is that of Clopper and
    Pearson for the members, at that threshold. It leaves out that the threshold was estimated: with few non-members
    it covers the true-positive rate at the asked false-positive rate less often than it says.

    Args:
        members: scores of members.
        others: scores of non-members.
        false_positives: at least one over the number of non-members, or only 0 can be measured.
        confidence: of both intervals.

    Raises:
        ValueError: for no scores, scores that are not numbers, or rates outside $(0,1)$.

    Source:
        Newcombe (2006), Statistics in Medicine 25, method 5; Carlini et al. (2022), arXiv:2112.03570, for the rate.

    Examples:
        >>> found = membership.judge_attack(torch.arange(10.0, 30.0), torch.arange(20.0))
        >>> round(found.auc.effect, 3), round(found.power.effect, 3)
        (0.875, 0.55)
    """
    from scipy.optimize import brentq
    from scipy.stats import binomtest, norm

    for name, scores in (("members", members), ("others", others)):
        has_shape(name, scores, (scores.numel(),), "scores in a row")
    share("false_positives", false_positives)
    share("confidence", confidence)
    n, m = len(members), len(others)
    area, z = attack_auc(members, others).item(), norm.ppf((1 + confidence) / 2)

    def outside(true: float) -> float:
        """Positive where this true area would be rejected."""
        spread = (1 - true) / (2 - true) + true / (1 + true)
        return (area - true) ** 2 - z**2 * true * (1 - true) * (1 + ((n + m) / 2 - 1) * spread) / (n * m)

    # At an area of 0 or 1 the end itself is a root; the other one is looked for.
    low = brentq(outside, 0, area * (1 - 1e-9)) if area > 0 else 0.0
    high = brentq(outside, max(area, 1e-9), 1) if area < 1 else 1.0
    # A threshold that so many non-members pass at most: the score of the first that must not. 0.29 of 100 are 29.
    threshold = others.sort(descending=True).values[int(false_positives * m * (1 + 1e-12))]
    found = int((members > threshold).sum())
    limits = binomtest(found, n).proportion_ci(confidence, "exact")
    return Leakage(Interval(area, low, high, n + m), Interval(found / n, limits.low, limits.high, n))


def threshold_attack(
    auxiliary: Float[Tensor, "*runs n"],
    members: Bool[Tensor, " n"],
    *asked: Float[Tensor, "*runs m"],
) -> list[Float[Tensor, "*runs m"]]:
    """Scores by one number an example, such as its loss; the direction is learned from auxiliary examples.

    Members are expected to have the smaller values unless the auxiliary ones say otherwise: a defence that makes
    members look worse than non-members is found out too.

    Args:
        auxiliary: the number of each auxiliary example, in each run.
        members: which of them are members.
        asked: the numbers of the examples to be scored.

    Returns:
        For each of `asked` the scores: the numbers, negated where members have the smaller ones.

    Raises:
        ValueError: if the auxiliary examples are not of both kinds, `members` are no flags (whole numbers would be
            taken for positions), numbers are NaN, or sets are of different runs.

    Examples:
        >>> losses, members = torch.tensor([0.1, 0.2, 0.9, 0.8]), torch.tensor([1, 1, 0, 0]).bool()
        >>> (scores,) = membership.threshold_attack(losses, members, torch.tensor([0.15, 0.85]))
        >>> scores  # the smaller loss has the larger score
        tensor([-0.1500, -0.8500])
    """
    _both(members, auxiliary.shape[-1])
    real("auxiliary", auxiliary)
    for values in asked:
        real("asked", values)
        has_shape("asked", values, (*auxiliary.shape[:-1], values.shape[-1]), "the runs of the auxiliary examples")
    members = members.to(auxiliary.device)
    smaller = attack_auc(-auxiliary[..., members], -auxiliary[..., ~members]) >= 0.5
    sign = torch.where(smaller, -1.0, 1.0).to(auxiliary).unsqueeze(-1)
    return [sign * values for values in asked]


def learned_attack(
    auxiliary: Float[Tensor, "runs n d"],
    members: Bool[Tensor, " n"],
    *asked: Float[Tensor, "runs m d"],
    hidden: tuple[int, ...] = (64, 32),
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> list[Float[Tensor, "runs m"]]:
    """Scores by a classifier of features, such as error maps, trained afresh for every run on auxiliary examples.

    Features are standardised by the auxiliary examples. All runs' classifiers are trained in one stack by AdamW on
    the cross-entropy in which both kinds have the same weight.

    Args:
        auxiliary: features of each auxiliary example, in each run.
        members: which of them are members.
        asked: features of the examples to be scored.
        hidden: widths of the hidden layers.
        steps: of the optimiser, up to a whole number of passes.
        batch_size: at most; never more than the auxiliary examples.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        seed: of initial weights and order, the same for every run.
        device: "auto" (CUDA, else CPU) or a device.

    Returns:
        For each of `asked` the scores: the classifier's logit of membership, on the CPU.

    Raises:
        ValueError: if the auxiliary examples are not of both kinds, `members` are no flags, features are not finite, or
            sets are of different runs or widths.

    Examples:
        >>> features, members = torch.linspace(-1, 1, 64)[None, :, None], torch.arange(64) >= 32
        >>> asked, options = torch.tensor([[[-0.5], [0.5]]]), {"learning_rate": 0.01, "steps": 50}
        >>> (scores,) = membership.learned_attack(features, members, asked, **options)
        >>> scores.shape, bool(scores[0, 1] > scores[0, 0])
        (torch.Size([1, 2]), True)
    """
    runs, number, width = auxiliary.shape
    _both(members, number)
    real("auxiliary", auxiliary, finite=True)
    for each in asked:
        real("asked", each, finite=True)
        has_shape("asked", each, (runs, each.shape[1], width), "runs and features of the auxiliary examples")
    steps, batch_size = whole("steps", steps), whole("batch_size", batch_size)
    mean, spread = auxiliary.mean(1, keepdim=True), auxiliary.std(1, keepdim=True).clamp(min=1e-8)
    standard = (auxiliary - mean) / spread
    weight = torch.where(members, number / (2 * members.sum()), number / (2 * (~members).sum()))
    batch_size = min(batch_size, number)

    def loss(model, batch, run):
        inputs = standard.to(batch["weight"])[run["run"].long(), batch["row"]]
        logits = model(inputs).squeeze(-1)
        return F.binary_cross_entropy_with_logits(logits, batch["member"], weight=batch["weight"])

    fitted = fit(
        lambda run: mlp([width, *hidden, 1]),
        loss,
        {"row": torch.arange(number), "member": members.float(), "weight": weight.float()},
        [{"seed": seed, "learning_rate": learning_rate, "run": run} for run in range(runs)],
        epochs=max(1, steps // (number // batch_size)),
        batch_size=batch_size,
        optimizer=torch.optim.AdamW,
        options={"weight_decay": weight_decay},
        device=device,
        progress=None,
    )
    networks = [fitted.module(run).cpu() for run in range(runs)]
    with torch.no_grad():
        return [
            torch.stack(
                [
                    network(((each[run] - mean[run]) / spread[run]).float().cpu()).squeeze(-1)
                    for run, network in enumerate(networks)
                ]
            )
            for each in asked
        ]


def _both(members: Tensor, number: int) -> None:
    flags("members", members)
    if members.shape != (number,) or members.all() or not members.any():
        raise ValueError(
            f"members: expected {number} flags of both kinds, as auxiliary examples, "
            f"got {int(members.sum())} of {members.numel()} set"
        )
