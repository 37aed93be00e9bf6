"""Supervised contrastive learning: all of a class attract each other, and share one softmax."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, over_terms, pooled, total
from lossbook.methods._validate import Reduction, one_of, positive

__all__ = ["supervised_contrastive"]


def supervised_contrastive(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.1,
    form: Literal["out", "in"] = "out",
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""SupCon: each anchor looks for its class among all others, positives being in each other's denominator.

    $$\ell_a=-\frac1{|P_a|}\sum_{p\in P_a}\log\frac{e^{s_{ap}}}{\sum_{b\ne a}e^{s_{ab}}}
      \qquad\text{or, with form="in",}\qquad
      \ell_a=-\log\frac1{|P_a|}\sum_{p\in P_a}\frac{e^{s_{ap}}}{\sum_{b\ne a}e^{s_{ab}}}$$

    with $s_{ab}=\cos(z_a,z_b)/\tau$ and $P_a$ all other rows of the class of $a$. "out" is at least "in" (Jensen); its
    gradient vanishes only when all positives are equally close. In `nt_xent` with labels the denominator of a positive
    does not hold the other positives.

    Args:
        first: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        second: their other views, of the same classes, pooled with the first; or None.
        labels: the class of each row. None with two views: the other view is the only positive, and both forms are
            `nt_xent`.
        negatives: more embeddings `(k, d)`, of no anchor's class, such as a queue.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        form: "out", the paper's choice, or "in".
        rows: compute the similarities of this many anchors at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean" over the anchors that have a positive (0 if none has), "sum", or "none" for the loss of each
            anchor, 0 where it has no positive, first views first.

    Returns:
        The loss, at least 0; "out" is at least the mean of $\log|P_a|$.

    Raises:
        ValueError: for shapes, dtypes, a temperature or a form other than these.

    Source:
        Khosla et al. (2020), arXiv:2004.11362, eq. 2 and 3, without the factor $\tau/0.07$ of the official code.

    Examples:
        >>> x, labels = torch.eye(3), torch.tensor([0, 0, 1])
        >>> round(supervised_contrastive(x, labels=labels, temperature=1.0).item(), 3)
        0.693
        >>> supervised_contrastive(x, labels=labels, reduction="none").shape
        torch.Size([3])
    """
    temperature = positive("temperature", temperature)
    one_of("form", form, "out", "in")
    pairs = pooled(first, second, ("first", "second"), labels=labels, negatives=negatives, one_way=False)

    def losses(block: Block) -> Tensor:
        count = block.positive.sum(1, keepdim=True).to(block.pull.dtype)
        # Where there is no positive the row is left as it is: what comes out is finite, and not counted.
        near = torch.logsumexp(block.pull.masked_fill(~block.positive & (count > 0), -math.inf), 1, keepdim=True)
        everyone = torch.logaddexp(block.push(), near)
        number = count.clamp(min=1)
        if form == "out":
            pull = torch.where(block.positive, block.pull, 0).sum(1, keepdim=True) / number
        else:
            pull = near - number.log()
        return total(everyone - pull, count > 0)

    return over_terms(pairs.over(losses, rows, lambda cosines: cosines / temperature), reduction)
