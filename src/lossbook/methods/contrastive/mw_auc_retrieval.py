"""Sheikholeslami et al., Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval (2025)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from lossbook.methods._pairs import Block, matched, over_terms, total
from lossbook.methods._validate import Reduction, floating, indices, one_of, positive, reduce, shaped, together
from lossbook.methods.similarities import by_rows

__all__ = ["mann_whitney_from_cosines", "mann_whitney_from_scores", "mann_whitney_loss"]

Pool = Literal["batch", "query"]
OverNegatives = Literal["sum", "mean"]
# Where softplus becomes the identity: PyTorch's own 20 leaves an error of 2e-9, which double precision would show.
STRAIGHT = 40.0


def mann_whitney_from_scores(
    positives: Float[Tensor, " n"],
    negatives: Float[Tensor, " m"],
    *,
    temperature: float | Float[Tensor, ""] = 0.01,
    over_negatives: OverNegatives = "sum",
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Logistic loss of every positive score against every negative score, whichever query they belong to.

    $$\ell_i=\sum_{k=1}^m\log\bigl(1+e^{-(s_i^+-s_k^-)/\tau}\bigr)$$

    Divided by $nm\log2$, the sum over all pairs is at least the area over the ROC curve of the pooled scores. The
    scores may come from any model.

    Args:
        positives: scores of relevant pairs; float16 and bfloat16 are computed in float32.
        negatives: scores of irrelevant pairs.
        temperature: $\tau>0$, a number, or a tensor without dimensions (to learn it, or to map over it).
        over_negatives: "sum", as printed, or "mean", which estimates the expectation and is bounded whatever $m$.
        rows: compare this many positives at a time, so that memory does not grow like $nm$: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `n` losses of the positives.

    Returns:
        The loss, at least 0.

    Raises:
        ValueError: for shapes, dtypes, a temperature or names other than these.

    Source:
        Sheikholeslami et al. (2025), arXiv:2510.00137, the batch form of the MW loss; the temperature as in its lemma.

    Examples:
        >>> positives, negatives = torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.85])
        >>> round(mann_whitney_from_scores(positives, negatives, temperature=0.1).item(), 3)
        0.725
    """
    scores = together(positives=shaped("positives", positives, "n"), negatives=shaped("negatives", negatives, "m"))
    temperature = positive("temperature", temperature)
    one_of("over_negatives", over_negatives, "sum", "mean")
    positives, negatives = (value / temperature for value in scores)
    losses = _against_all(positives, negatives, rows)
    return reduce(losses / len(negatives) if over_negatives == "mean" else losses, reduction)


def mann_whitney_from_cosines(
    cosines: Float[Tensor, "n m"],
    *,
    temperature: float | Float[Tensor, ""] = 0.01,
    groups: Int[Tensor, " m"] | None = None,
    pool: Pool = "batch",
    over_negatives: OverNegatives = "sum",
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""The MW loss of a matrix of cosines, or of any scores: positives on the diagonal, all else negatives.

    $$\ell_i=\sum_{j}\sum_{k\ne j}\log\bigl(1+e^{-(s_{ii}-s_{jk})/\tau}\bigr)$$

    Args:
        cosines: scores $s_{ij}$ of query $i$ and passage $j$, $m\ge n$; float16 and bfloat16 are computed in float32.
        temperature, groups, pool, over_negatives, rows, reduction: as for `mann_whitney_loss`.

    Returns:
        The loss, at least 0; 0 where there are no negatives.

    Raises:
        ValueError: for shapes, dtypes, a temperature or names other than these.

    Source:
        Sheikholeslami et al. (2025), arXiv:2510.00137, the batch form of the MW loss.

    Examples:
        >>> cosines = torch.tensor([[0.9, 0.1], [0.2, 0.3]])
        >>> round(mann_whitney_from_cosines(cosines, temperature=0.1).item(), 3)
        0.221
    """
    cosines = floating("cosines", cosines)
    if cosines.ndim != 2 or not 0 < len(cosines) <= cosines.shape[1]:
        raise ValueError(f"cosines: expected shape (n, m) with m >= n >= 1, got {tuple(cosines.shape)}")
    temperature = positive("temperature", temperature)
    if groups is not None:
        groups = indices("groups", groups, cosines.shape[1])
    one_of("pool", pool, "batch", "query")
    one_of("over_negatives", over_negatives, "sum", "mean")
    n, m = cosines.shape
    out = torch.eye(n, m, dtype=torch.bool, device=cosines.device)
    if groups is not None:
        out = out | (groups[:n, None] == groups)
    # Divided first: behind the mask the temperature would meet infinities, and its gradient be undefined.
    scores = cosines / temperature
    positives, negatives = scores.diagonal(), scores.masked_fill(out, -math.inf)
    if pool == "batch":
        losses, met = _against_all(positives, negatives.flatten(), rows), (~out).sum()
    else:
        losses = by_rows(lambda some, index: _logistic(some, negatives[index]), positives[:, None], rows)
        met = (~out).sum(1)
    return reduce(losses / met.clamp(min=1) if over_negatives == "mean" else losses, reduction)


def mann_whitney_loss(
    queries: Float[Tensor, "n d"],
    passages: Float[Tensor, "m d"] | None = None,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    key_labels: Integer[Tensor, " m"] | None = None,
    positives: Integer[Tensor, " n"] | None = None,
    negatives: Float[Tensor, "k d"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.01,
    groups: Integer[Tensor, " m"] | None = None,
    pool: Pool = "batch",
    over_negatives: OverNegatives = "sum",
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Mann-Whitney loss of a batch: positives of all queries against negatives of all queries.

    $$\ell_i=\sum_{j}\sum_{k\ne j}\log\bigl(1+e^{-(c_{ii}-c_{jk})/\tau}\bigr),\qquad
      c_{jk}=\frac{q_j^\top p_k}{\lVert q_j\rVert\lVert p_k\rVert}$$

    InfoNCE compares within a query and does not see a shift of all its scores; this loss compares across queries too.
    With $n$ queries and $m$ passages there are about $n^2m$ comparisons.

    With labels every query and passage of one class are a positive pair, every two of different classes a negative one,
    and a term compares one positive with all negatives. All pairs are looked at: $n^2m^2$ comparisons with the pool
    "batch", for small batches, and $nm^2$ with "query".

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        passages: raw embeddings `(m, d)`, $m\ge n$. Passage $i$ is the positive of query $i$; those from $n$ on are
            nobody's positives, such as the hard negatives of all queries. None with labels: queries look for their
            class among each other.
        labels, key_labels: the class of each query and of each passage: see `info_nce`.
        positives: which passage is the positive of each query, where it is not the one in the same row.
        negatives: more passages `(k, d)`, such as a queue: nobody's positives.
        temperature: $\tau>0$, a number, or a tensor without dimensions (to learn it, or to map over it).
        groups: a number for each passage; a passage with the number of a query's positive is no negative of it.
        pool: "batch", or "query" for only the negatives of the positive's own query (the sum over $j$ has one term,
            $j=i$): the usual pairwise logistic loss, blind to shifts as InfoNCE is.
        over_negatives: "sum", as printed, which grows with the batch like $nm$, or "mean" over the negatives met.
        rows: take this many queries at a time, for their positives and for their negatives: at most `rows`² times $m$
            numbers are held at once, with labels times $m^2$ (pool "query": `rows` times $m$, or $m^2$). See `by_rows`.
        reduction: as in `info_nce`.

    Returns:
        The loss, at least 0; 0 where there are no negatives.

    Raises:
        ValueError: for shapes, dtypes, a temperature or names other than these.

    Source:
        Sheikholeslami et al. (2025), arXiv:2510.00137, the batch form of the MW loss, with duplicates left out; the
        temperature, 0.01, as in its lemma and experiments.

    Examples:
        >>> queries = torch.eye(2)
        >>> passages = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])  # the third: nobody's
        >>> round(mann_whitney_loss(queries, passages, temperature=0.5).item(), 3)
        1.556
    """
    temperature = positive("temperature", temperature)
    one_of("pool", pool, "batch", "query")
    one_of("over_negatives", over_negatives, "sum", "mean")
    if labels is None and positives is None and passages is not None:
        n, m = len(shaped("queries", queries, "n d")), len(shaped("passages", passages, "m d"))
        if m < n:
            raise ValueError(f"passages: expected at least {n} rows, got shape {tuple(passages.shape)}")
        positives = torch.arange(n, device=queries.device)
    pairs = matched(
        queries,
        passages,
        ("queries", "passages"),
        labels=labels,
        key_labels=key_labels,
        positives=positives,
        negatives=negatives,
        groups=groups,
    )

    def scores(cosines: Tensor) -> Tensor:
        return cosines / temperature

    def negative_scores(block: Block) -> Tensor:
        return block.similarities.masked_fill(~block.negative, -math.inf)

    def numbers(block: Block) -> Tensor:
        return block.negative.sum(1, keepdim=True).to(block.pull.dtype)

    met = pairs.over(numbers, rows, scores).sum()

    def losses(block: Block) -> Tensor:
        if pool == "query":
            values = _logistic(block.pull[:, :, None], negative_scores(block)[:, None])
            number = numbers(block)
        else:
            mine = block.pull.flatten()[:, None]
            theirs = pairs.over(lambda other: _logistic(mine, negative_scores(other)[:, None]), rows, scores)
            values, number = theirs.sum(0).view_as(block.pull), met
        return total(values / number.clamp(min=1) if over_negatives == "mean" else values, block.positive)

    return over_terms(pairs.over(losses, rows, scores), reduction)


def _against_all(
    positives: Float[Tensor, " n"], negatives: Float[Tensor, " m"], rows: int | None
) -> Float[Tensor, " n"]:
    return by_rows(lambda some, _: _logistic(some, negatives), positives[:, None], rows)


def _logistic(positives: Float[Tensor, "*p 1"], negatives: Float[Tensor, "*m"]) -> Float[Tensor, "*n"]:
    """For each positive the sum over its negatives, the last dimension; one of minus infinity adds nothing."""
    return F.softplus(negatives - positives, threshold=STRAIGHT).sum(-1)
