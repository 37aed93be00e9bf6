"""Gu et al., UniME-V2: MLLM-as-a-Judge for Universal Multimodal Embedding Learning (2025), arXiv:2510.13515."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import (
    Reduction,
    alike,
    full_precision,
    indices,
    number,
    one_of,
    picked,
    positive,
    reduce,
    shaped,
    together,
    whole,
)
from lossbook.methods.similarities import unit

__all__ = [
    "MinedNegatives",
    "judge_alignment",
    "judge_alignment_from_cosines",
    "judge_score",
    "potential_negatives",
    "reranker_loss",
    "select_negatives",
]

Divergence = Literal["symmetric", "target", "model"]


class MinedNegatives(NamedTuple):
    """Negatives chosen for each query.

    Attributes:
        positions: which of the query's candidates, `(n, count)`; some several times where few were left.
        scores: the judge's scores of these, or the fallback score.
        kept: how many candidates passed the filter, `(n,)`. Where it is 0 the negatives are random.

    Examples:
        >>> scores = torch.tensor([[0.9, 0.2, 0.1]])
        >>> mined = select_negatives(scores, torch.tensor([0.8]), count=2, stride=1)
        >>> mined.positions, mined.kept
        (tensor([[1, 2]]), tensor([2]))
    """

    positions: Int[Tensor, "n count"]
    scores: Float[Tensor, "n count"]
    kept: Int[Tensor, " n"]


def judge_score(yes: Float[Tensor, "*shape"], no: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The judge's score: the probability of "Yes" among the two answers.

    $$s=\frac{e^y}{e^y+e^n}=\operatorname{sigmoid}(y-n)$$

    Args:
        yes: logits $y$ of "Yes"; float16 and bfloat16 are computed in float32.
        no: logits $n$ of "No", of the same shape.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2510.13515, sec. "MLLM-as-a-Judge for hard negatives mining".

    Examples:
        >>> yes, no = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
        >>> judge_score(yes, no).round(decimals=3)
        tensor([0.8810, 0.5000])
    """
    yes, no = _alike("yes", yes, "no", no)
    return torch.sigmoid(yes - no)


def potential_negatives(
    similarities: Float[Tensor, "n m"], targets: Int[Tensor, " n"], *, size: int = 50, limit: float | None = None
) -> Int[Tensor, "n size"]:
    r"""The most similar candidates of each query, most similar first, without its target: the set $\Omega_p$.

    Args:
        similarities: of each query with each candidate, by an embedder trained before; $-\infty$ for a candidate that
            comes last, though still before the target, which is never taken.
        targets: which candidate is the query's target.
        size: how many to take, at most $m-1$.
        limit: $\delta$; candidates at least as similar are passed over, and come last if too few are left.
            None, our default, for no limit: the paper's is not known to us.

    Raises:
        ValueError: for shapes, dtypes or a size other than these.

    Source:
        arXiv:2510.13515, sec. "MLLM-as-a-Judge for hard negatives mining".

    Examples:
        >>> similarities, targets = torch.tensor([[0.9, 0.7, 0.8, 0.1]]), torch.tensor([0])
        >>> potential_negatives(similarities, targets, size=2)
        tensor([[2, 1]])
        >>> potential_negatives(similarities, targets, size=2, limit=0.75)
        tensor([[1, 3]])
    """
    similarities = shaped("similarities", similarities, "n m")
    n, m = similarities.shape
    targets = indices("targets", targets, n)
    size = whole("size", size, most=m - 1)
    own = targets[:, None] == torch.arange(m, device=similarities.device)
    if limit is None:
        ranked = similarities.masked_fill(own, -math.inf)
    else:
        # By rank, those within the limit before the others, in the order that they had.
        rank = similarities.argsort(dim=1, descending=True, stable=True).argsort(1)
        ranked = -torch.where(similarities < limit, rank, rank + m).masked_fill(own, 2 * m)
    # One more than asked for, since the target may stand before a candidate that is as low as can be; it goes last.
    best = ranked.topk(size + 1, dim=1).indices
    is_target = best == targets[:, None]
    return best.take_along_dim(is_target.long().argsort(dim=1, stable=True), 1)[:, :size]


def select_negatives(
    scores: Float[Tensor, "n m"],
    target_scores: Float[Tensor, " n"],
    *,
    beta: float = 0.01,
    count: int = 10,
    stride: int = 5,
    fallback_score: float = 1.0,
    generator: torch.Generator | None = None,
) -> MinedNegatives:
    r"""Drop what the judge takes for a match, and spread the choice over what is left.

    Candidate $c$ of query $q$ with target $c_t$ is a false negative, and dropped, if

    $$s_{q,c}>\alpha_q=s_{q,c_t}-\beta .$$

    Of the rest, in their order, every `stride`-th is taken: positions 0, 5, 10, ..., then 1, 6, 11, ..., and so on;
    where fewer than `count` are left they are taken again from the start. Where none is left, `count` random
    candidates are taken and given the fallback score.

    Args:
        scores: the judge's scores of each query's candidates, most similar first.
        target_scores: those of the targets.
        beta: $\beta$; the larger, the more is dropped.
        count: how many negatives, at most $m$.
        stride: distance between the ranks taken in one pass.
        fallback_score: of random negatives. The paper's 1.0 makes them at least as good as the target; see the page.
        generator: draws the random negatives.

    Raises:
        ValueError: for shapes, dtypes or hyperparameters other than these.

    Source:
        arXiv:2510.13515, sec. "MLLM-as-a-Judge for hard negatives mining". How the passes go on after the first is
        our reading of "cyclically". The official training uses the first 8 of the 10.

    Examples:
        >>> scores = torch.tensor([[0.9, 0.5, 0.4, 0.3]])  # the first is a match itself
        >>> select_negatives(scores, torch.tensor([0.8]), count=3, stride=1).positions
        tensor([[1, 2, 3]])
    """
    scores, target_scores = together(scores=shaped("scores", scores, "n m"), target_scores=target_scores)
    n, m = scores.shape
    if target_scores.shape != (n,):
        raise ValueError(f"target_scores: expected shape ({n},), got {tuple(target_scores.shape)}")
    beta = number("beta", beta)
    fallback_score = number("fallback_score", fallback_score)
    count = whole("count", count, most=m)
    stride = whole("stride", stride)
    keep = scores <= target_scores[:, None] - beta
    # What is not a number is no judgement: the query's scores are then not numbers either.
    unknown = (scores.isnan().any(1) | target_scores.isnan())[:, None]
    kept = keep.sum(1)
    rank = keep.cumsum(1) - 1
    # By pass first, then by rank; what was dropped comes last.
    order = torch.where(keep, (rank % stride) * m + torch.div(rank, stride, rounding_mode="floor"), m * stride)
    chosen = order.argsort(dim=1, stable=True)
    turn = torch.arange(count, device=scores.device) % kept.clamp(min=1)[:, None]
    chosen = chosen.take_along_dim(turn, 1)
    drawn = torch.rand(n, m, generator=generator, device=scores.device).argsort(1)[:, :count]
    none = (kept == 0)[:, None]
    positions = torch.where(none, drawn, chosen)
    found = torch.where(none, fallback_score, scores.take_along_dim(positions, 1))
    return MinedNegatives(positions, torch.where(unknown, math.nan, found), kept)


def judge_alignment_from_cosines(
    cosines: Float[Tensor, "n m"],
    scores: Float[Tensor, "n m"],
    *,
    temperature: float | Float[Tensor, ""] = 0.02,
    divergence: Divergence = "symmetric",
    epsilon: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Half the sum of both Kullback-Leibler divergences between the model's and the judge's softmax over a list.

    $$\ell=\tfrac12\bigl[\mathrm{KL}(P\|Q)+\mathrm{KL}(Q\|P)\bigr],\qquad
      P=\operatorname{softmax}(u/\tau),\quad Q=\operatorname{softmax}(s/\tau)$$

    It is zero where cosines and scores differ by a constant, and has no upper bound. (The paper speaks of the
    Jensen-Shannon divergence; this is half of Jeffreys'.)

    Args:
        cosines: $u$, of each query (row) with the candidates of its own list; float16 and bfloat16 are computed in
            float32.
        scores: the judge's $s$ of the same.
        temperature: $\tau>0$ of both softmaxes.
        divergence: "symmetric" as in the paper; "target" for $\mathrm{KL}(Q\|P)$ alone, cross-entropy with soft
            targets less their entropy; "model" for $\mathrm{KL}(P\|Q)$ alone.
        epsilon: added to the probability inside the second logarithm of each divergence; the official code has
            $10^{-8}$. The loss then no longer sees scores more than $\tau\log(1/\epsilon)$ below the best, and can be
            slightly negative.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or hyperparameters other than these.

    Source:
        arXiv:2510.13515, sec. "MLLM judgment based training framework"; official code, Embedding/src/loss.py.

    Examples:
        >>> scores = torch.tensor([[0.9, 0.5, 0.1]])  # of a query's three candidates
        >>> round(judge_alignment_from_cosines(scores.flip(1), scores, temperature=0.5).item(), 3)
        0.773
        >>> bool(judge_alignment_from_cosines(scores - 0.3, scores, temperature=0.5).abs() < 1e-5)
        True
    """
    cosines = shaped("cosines", cosines, "n m")
    cosines, scores = _alike("cosines", cosines, "scores", scores)
    temperature = positive("temperature", temperature)
    epsilon = number("epsilon", epsilon, least=0.0)
    one_of("divergence", divergence, "symmetric", "target", "model")
    log_p, log_q = (F.log_softmax(values / temperature, dim=1) for values in (cosines, scores))

    def kl(log_first: Tensor, log_second: Tensor) -> Tensor:
        if epsilon:
            log_second = torch.logaddexp(log_second, log_second.new_full((), math.log(epsilon)))
        return (log_first.exp() * (log_first - log_second)).sum(1)

    if divergence == "target":
        losses = kl(log_q, log_p)
    elif divergence == "model":
        losses = kl(log_p, log_q)
    else:
        losses = (kl(log_p, log_q) + kl(log_q, log_p)) / 2
    return reduce(losses, reduction)


def judge_alignment(
    queries: Float[Tensor, "n d"],
    candidates: Float[Tensor, "n m d"],
    scores: Float[Tensor, "n m"],
    *,
    temperature: float | Float[Tensor, ""] = 0.02,
    divergence: Divergence = "symmetric",
    epsilon: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""The embedding loss of UniME-V2: cosines with a query's own candidates follow the judge's scores.

    $$\mathcal L=\frac1N\sum_i\tfrac12\bigl[\mathrm{KL}(P_i\|Q_i)+\mathrm{KL}(Q_i\|P_i)\bigr],\qquad
      P_{ij}\propto e^{\cos(q_i,c_{ij})/\tau},\quad Q_{ij}\propto e^{s_{ij}/\tau}$$

    Only the $m=k+1$ candidates of the query's own list enter, its target and $k$ mined negatives; others do not.
    Their order has no meaning, and labels have none here: the judge's scores say what is alike.

    Args:
        queries: raw embeddings, normalised inside; float16 and bfloat16 are computed in float32.
        candidates: raw embeddings of each query's list.
        scores: the judge's scores of the same, in $(0,1)$.
        temperature, divergence, epsilon, reduction: see `judge_alignment_from_cosines`.

    Returns:
        The loss, at least 0 unless `epsilon` is positive.

    Raises:
        ValueError: for shapes, dtypes or hyperparameters other than these.

    Source:
        arXiv:2510.13515, sec. "MLLM judgment based training framework".

    Examples:
        >>> queries, candidates = torch.ones(1, 2), torch.tensor([[[0.8, 0.6], [0.0, 1.0]]])
        >>> scores = torch.tensor([[0.9, 0.1]])
        >>> round(judge_alignment(queries, candidates, scores, temperature=0.2).item(), 3)
        0.23
    """
    queries, candidates = together(queries=shaped("queries", queries, "n d"), candidates=candidates)
    n, d = queries.shape
    if candidates.ndim != 3 or candidates.shape[::2] != (n, d) or 0 in candidates.shape:
        raise ValueError(f"candidates: expected shape ({n}, m, {d}) with m at least 1, got {tuple(candidates.shape)}")
    with full_precision(queries):
        cosines = (unit(queries)[:, None] * unit(candidates)).sum(-1)
    return judge_alignment_from_cosines(
        cosines, scores, temperature=temperature, divergence=divergence, epsilon=epsilon, reduction=reduction
    )


def reranker_loss(
    target_log_odds: Float[Tensor, " n"],
    negative_log_odds: Float[Tensor, " n"],
    position_logits: Float[Tensor, "n m"],
    positions: Int[Tensor, " n"],
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""The reranker's loss: answer Yes for the target, No for the hardest negative, and name the target in a list.

    $$\ell=\log(1+e^{-z_t})+\log(1+e^{z_h})-\log\frac{e^{r_t}}{\sum_j e^{r_j}}$$

    The released code has another loss: next-token cross-entropy of the answers over the whole vocabulary, the mean over
    the tokens of all answers of a batch. This one looks at "Yes", "No" and the places alone, as the paper's text does.

    Args:
        target_log_odds: $z_t=y-n$, the logit of "Yes" less that of "No", for query and target.
        negative_log_odds: $z_h$, the same for query and hardest negative.
        position_logits: $r$, one for each place of the shuffled list.
        positions: the target's place; a place that the list has not makes the loss not a number.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        arXiv:2510.13515, sec. "UniME-V2-Reranker".

    Examples:
        >>> target, hardest = torch.tensor([2.0]), torch.tensor([-2.0])  # log-odds of "Yes"
        >>> places = torch.tensor([[3.0, 0.0, 0.0]])
        >>> round(reranker_loss(target, hardest, places, torch.tensor([0])).item(), 3)
        0.349
    """
    target, negative = _alike("target_log_odds", target_log_odds, "negative_log_odds", negative_log_odds)
    if target.ndim != 1 or not len(target):
        raise ValueError(f"target_log_odds: expected shape (n,) with n at least 1, got {tuple(target.shape)}")
    logits = shaped("position_logits", position_logits, "n m")
    if len(logits) != len(target):
        raise ValueError(f"position_logits: expected {len(target)} rows, got {len(logits)}")
    positions = indices("positions", positions, len(target))
    target, negative, logits = together(target_log_odds=target, negative_log_odds=negative, position_logits=logits)
    pair = F.softplus(-target) + F.softplus(negative)
    listed = torch.logsumexp(logits, 1) - picked(logits, positions)
    return reduce(pair + listed, reduction)


def _alike(name: str, value: object, other: str, second: object) -> tuple[Tensor, Tensor]:
    value, second = together(**{name: value, other: second})
    alike(other, second, name, value, "shape")
    return value, second
