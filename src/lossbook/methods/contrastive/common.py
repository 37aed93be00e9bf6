"""What contrastive losses share: pairs of embeddings, their cosines, and the losses that others are measured by."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossbook.methods._validate import Reduction, floating, indices, positive, reduce, shaped, whole

__all__ = ["alignment", "cosine_similarity", "info_nce", "nt_xent", "pair_gradients", "uniformity", "vic_reg"]


def paired(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "n d"], names: tuple[str, str] = ("queries", "keys")
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Both sets of embeddings, checked against each other, in at least float32.

    Args:
        queries, keys: the embeddings.
        names: what the caller calls them, for the error.

    Raises:
        ValueError: if they are not floating-point matrices of the same shape, dtype and device, with
            at least one row and one column.
    """
    for name, value in zip(names, (queries, keys), strict=True):
        shaped(name, value, "n d")
    for what in ("shape", "dtype", "device"):
        expected, got = getattr(queries, what), getattr(keys, what)
        if expected != got:
            raise ValueError(f"{names[1]}: expected the {what} of {names[0]}, {expected}, got {got}")
    return floating(names[0], queries), floating(names[1], keys)


def unit(embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    r"""Rows of length one, $x/\lVert x\rVert_2$, whatever their scale; a row of zeros stays zero.

    The row is first divided by its largest entry. The direction does not depend on scale, so this
    constant needs no gradient; it keeps the squares from overflowing or vanishing.
    """
    largest = embeddings.detach().abs().amax(-1, keepdim=True)
    scaled = embeddings / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm == 0, 1, norm)


def inner_products(queries: Float[Tensor, "*b m d"], keys: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b m n"]:
    """Inner products, never in the half precision of autocast."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.mT


def cosine_similarity(queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Cosines of all pairs, $c_{ij}=q_i^\top k_j/(\lVert q_i\rVert\lVert k_j\rVert)$.

    Rounding may leave $[-1,1]$ by an ulp, a matrix product in TensorFloat-32 by far more. Autocast is
    switched off inside.
    """
    return inner_products(unit(queries), unit(keys))


def diagonal_cross_entropy(
    logits: Float[Tensor, "n n"], *, symmetric: bool = False, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Cross-entropy that picks the positive, on the diagonal, among the entries of its row.

    $$\ell_i=-\log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}$$

    With `symmetric`, the mean of the losses over rows and over columns.
    """
    positives = logits.diagonal()
    losses = torch.logsumexp(logits, 1) - positives
    if symmetric:
        losses = (losses + torch.logsumexp(logits, 0) - positives) / 2
    return reduce(losses, reduction)


def by_rows(
    losses: Callable[[Float[Tensor, "m d"], Int[Tensor, " m"]], Float[Tensor, "m *k"]],
    queries: Float[Tensor, "n d"],
    rows: int | None,
) -> Float[Tensor, "n *k"]:
    r"""What a function gives for each query, computed for this many queries at a time, and again in the backward pass.

    A loss whose term $i$ needs row $i$ of a matrix of similarities, and no other, then never holds more than
    `rows` rows: its memory grows like $n$ and not like $n^2$. Value and gradient are those of one call with all
    queries, up to rounding; the price is one more forward pass. Not under torch.func if there is more than one block.

    Args:
        losses: `losses(queries, index)` for some of the queries and their row numbers. It may use other tensors, such
            as the keys or a temperature; gradients reach them.
        queries: rows.
        rows: how many at a time; None for all at once.

    Raises:
        ValueError: if `rows` is not a positive whole number.
    """
    if rows is not None:
        whole("rows", rows)
    index = torch.arange(len(queries), device=queries.device)
    if rows is None or rows >= len(queries):
        return losses(queries, index)
    blocks = zip(queries.split(rows), index.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks])


def info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    symmetric: bool = False,
    groups: Int[Tensor, " n"] | None = None,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""InfoNCE: cross-entropy over cosines divided by a temperature.

    $$\ell_i=-\log\frac{\exp(c_{ii}/\tau)}{\sum_j\exp(c_{ij}/\tau)},\qquad
      c_{ij}=\frac{q_i^\top k_j}{\lVert q_i\rVert\lVert k_j\rVert}$$

    Query $i$ and key $i$ are two views of one thing; all other keys of the batch are negatives.

    Args:
        queries: raw embeddings `(n, d)`, normalised inside; float16 and bfloat16 are computed in float32.
        keys: as `queries`.
        temperature: $\tau>0$, a number, or a tensor without dimensions (to learn it, or to map over it).
        symmetric: average with the loss in which keys look for their queries.
        groups: pairs with the same number, such as duplicates, are not each other's negatives.
        rows: compute the similarities of this many queries at a time, so that memory grows like $n$: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Returns:
        The loss, between $\log(1+(n-1)e^{-2/\tau})$ and $\log(1+(n-1)e^{2/\tau})$.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4; with cosines and a temperature as in
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1.
    """
    positive("temperature", temperature)
    queries, keys = paired(queries, keys)
    if groups is not None:
        indices("groups", groups, len(queries))
    queries, keys = unit(queries), unit(keys)

    def logits(some, others, index):
        entries = inner_products(some, others) / temperature
        if groups is None:
            return entries
        other = index[:, None] != torch.arange(len(others), device=index.device)
        return entries.masked_fill(other & (groups[index][:, None] == groups), -math.inf)

    def one_way(queries, keys):
        def losses(some, index):
            entries = logits(some, keys, index)
            return torch.logsumexp(entries, 1) - entries.gather(1, index[:, None])[:, 0]

        return by_rows(losses, queries, rows)

    if rows is None:
        whole = logits(queries, keys, torch.arange(len(queries), device=queries.device))
        return diagonal_cross_entropy(whole, symmetric=symmetric, reduction=reduction)
    losses = one_way(queries, keys)
    if symmetric:
        losses = (losses + one_way(keys, queries)) / 2
    return reduce(losses, reduction)


def two_view_terms(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    temperature: float | Float[Tensor, ""],
    rows: int | None = None,
) -> tuple[Float[Tensor, " 2*n"], Float[Tensor, " 2*n"]]:
    r"""Pull and push of each of the $2n$ views, when all other views of the batch are negatives.

    $$s_a=\frac{\cos(z_a,z_{a'})}{\tau},\qquad u_a=\log\sum_{b\ne a,a'}\exp\frac{\cos(z_a,z_b)}{\tau}$$

    with $a'$ the other view of the same thing. Losses of the family are made of these two: NT-Xent is
    $\operatorname{softplus}(u-s)$, decoupled contrastive learning $u-s$. A batch of one has no negatives: $u=-\infty$.

    Args:
        first, second: raw embeddings, normalised inside.
        temperature: $\tau>0$.
        rows: see `by_rows`.

    Returns:
        $s$ and $u$, first views first.
    """
    positive("temperature", temperature)
    first, second = map(unit, paired(first, second, ("first", "second")))
    views = torch.cat([first, second])
    n = len(first)

    def terms(some, index):
        logits = inner_products(some, views) / temperature
        partner = (index + n) % (2 * n)
        pull = logits.gather(1, partner[:, None])[:, 0]
        image = torch.arange(2 * n, device=index.device) % n
        push = torch.logsumexp(logits.masked_fill(image == index[:, None] % n, -math.inf), 1)
        return torch.stack([pull, push], 1)

    return by_rows(terms, views, rows).unbind(1)


def nt_xent(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    rows: int | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""NT-Xent, the loss of SimCLR: each view looks for the other view of its thing among all $2n-1$ other views.

    $$\ell_a=-\log\frac{\exp(\cos(z_a,z_{a'})/\tau)}{\sum_{b\ne a}\exp(\cos(z_a,z_b)/\tau)}$$

    Args:
        first, second: raw embeddings of both views, normalised inside.
        temperature: $\tau>0$, a number or a tensor without dimensions.
        rows: compute the similarities of this many views at a time: see `by_rows`.
        reduction: "mean", "sum", or "none" for the `2n` losses, first views first.

    Raises:
        ValueError: for shapes, dtypes or a temperature other than these.

    Source:
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, eq. 1.
    """
    pull, push = two_view_terms(first, second, temperature=temperature, rows=rows)
    return reduce(torch.logaddexp(push, pull) - pull, reduction)


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, power: float = 2.0) -> Float[Tensor, ""]:
    r"""Mean distance of the two views on the sphere, $\frac1n\sum_i\lVert x_i-y_i\rVert^{\alpha}$; 0 is best.

    Args:
        first, second: raw embeddings, normalised inside.
        power: $\alpha>0$.

    Source:
        Wang and Isola (2020), arXiv:2005.10242, sec. 4.1.
    """
    positive("power", power)
    first, second = map(unit, paired(first, second, ("first", "second")))
    squares = (first - second).square().sum(-1)
    if power != 2:
        # The root has no slope at 0, where both views coincide.
        squares = torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares) ** (power / 2))
    return squares.mean()


def uniformity(embeddings: Float[Tensor, "n d"], *, scale: float = 2.0, rows: int | None = None) -> Float[Tensor, ""]:
    r"""Logarithm of the mean Gaussian potential of all pairs on the sphere.

    $$\log\mathbb E_{i\ne j}\,e^{-t\lVert x_i-x_j\rVert^2}$$

    Between $-4t$ and $0$, where all coincide; the smaller the more uniform.

    Args:
        embeddings: raw, at least two rows, normalised inside.
        scale: $t>0$.
        rows: compute the distances of this many rows at a time: see `by_rows`.

    Source:
        Wang and Isola (2020), arXiv:2005.10242, sec. 4.1.
    """
    positive("scale", scale)
    embeddings, _ = paired(embeddings, embeddings, ("embeddings", "embeddings"))
    n = len(embeddings)
    if n < 2:
        raise ValueError(f"embeddings: expected at least two rows, got {n}")
    embeddings = unit(embeddings)

    def potentials(some, index):
        exponents = 2 * scale * (inner_products(some, embeddings) - 1)
        own = index[:, None] == torch.arange(n, device=index.device)
        return torch.logsumexp(exponents.masked_fill(own, -math.inf), 1)

    return torch.logsumexp(by_rows(potentials, embeddings, rows), 0) - math.log(n * (n - 1))


def vic_reg(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    invariance: float | Float[Tensor, ""] = 25.0,
    variance: float | Float[Tensor, ""] = 25.0,
    covariance: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, ""]:
    r"""VICReg: views agree, every coordinate varies, no two coordinates vary together. No negatives.

    $$\lambda\frac1{nd}\lVert X-Y\rVert_F^2+\sum_{Z\in\{X,Y\}}
      \Bigl[\frac{\mu}{2d}\sum_k\max\bigl(0,1-\sqrt{C_{kk}+10^{-4}}\bigr)+\frac{\nu}{d}\sum_{k\ne l}C_{kl}^2\Bigr]$$

    with $C$ the covariance, with divisor $n-1$, of the rows of $Z$.

    Args:
        first, second: raw embeddings of both views, at least two rows; not normalised.
        invariance, variance, covariance: the weights $\lambda,\mu,\nu$.

    Source:
        Bardes, Ponce and LeCun (2022), arXiv:2105.04906, eq. 6; the half before the variance as in their code.
    """
    first, second = paired(first, second, ("first", "second"))
    n, d = first.shape
    if n < 2:
        raise ValueError(f"first: expected at least two rows, got {n}")
    loss = invariance * F.mse_loss(first, second)
    for embeddings in (first, second):
        centred = embeddings - embeddings.mean(0)
        products = inner_products(centred.mT, centred.mT) / (n - 1)
        deviations = (products.diagonal() + 1e-4).sqrt()
        apart = products.square().sum() - products.diagonal().square().sum()
        loss = loss + variance * (1 - deviations).clamp(min=0).mean() / 2 + covariance * apart / d
    return loss


def pair_gradients(
    loss: Callable[[Float[Tensor, "n m"]], Float[Tensor, ""]], similarities: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    r"""Gradient of a loss by the similarity of each pair, $\partial\mathcal L/\partial s_{ij}$.

    A pair whose entry is negative is pulled together, one whose entry is positive pushed apart.

    Args:
        loss: of a matrix of similarities, such as `lambda s: diagonal_cross_entropy(s / 0.1, reduction="sum")`.
        similarities: where the gradient is taken.
    """
    return torch.func.grad(loss)(similarities)
