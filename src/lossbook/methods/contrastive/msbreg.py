"""Moon et al., An Embedding-Dynamic Approach to Self-supervised Learning (2022), arXiv:2207.03552."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import Reduction, number, one_of, reduce, shaped, together
from lossbook.methods.similarities import inner_products, unit

__all__ = ["brownian", "centroid_attraction", "centroids", "msbreg_loss", "singular_isotropy"]

Scale = float | Float[Tensor, ""]
Pull = Literal["views", "centroid"]
Form = Literal["singular", "pairwise"]


def centroids(views: Float[Tensor, "v n d"]) -> Float[Tensor, "n d"]:
    r"""Middle of the views of each thing, on the sphere, $c_i=\sum_vz_i^v/\lVert\sum_vz_i^v\rVert$.

    Args:
        views: raw embeddings of `v` views of `n` things, normalised inside. Views that cancel have a centroid of zero.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Moon et al. (2022), arXiv:2207.03552.

    Examples:
        >>> views = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> centroids(views).round(decimals=3)
        tensor([[0.7070, 0.7070]])
    """
    return unit(_checked("views", views).mean(0))


def centroid_attraction(
    views: Float[Tensor, "v n d"],
    targets: Float[Tensor, "w n d"],
    *,
    pull: Pull = "views",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Multiview centroid loss (M): all views of a thing go to the centroid that a slower network sees.

    $$\ell_i=\frac1V\sum_v\bigl(2-2\langle z_i^v,\bar c_i\rangle\bigr)
      \qquad\text{or, with pull="centroid",}\qquad
      \ell_i=2-2\langle c_i,\bar c_i\rangle$$

    with $c_i$ the centroid of the views, $\bar c_i$ that of the targets, a constant in the backward pass. The second
    form is at its minimum, with no gradient, wherever both networks agree, and says nothing about the distance
    between views.

    Args:
        views: raw embeddings of the trained network, normalised inside; float16 and bfloat16 are computed in float32.
        targets: those of the target network (an average of past parameters); the number of views may differ.
        pull: "views" pulls each view, "centroid" only their centroid.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Returns:
        The loss, between 0 and 4.

    Raises:
        ValueError: for shapes, dtypes or names other than these.

    Source:
        Moon et al. (2022), arXiv:2207.03552: abstract ("pull different image view embeddings toward their centroid")
        and introduction (a distance between centroids).

    Examples:
        >>> views, others = torch.eye(2).repeat(2, 1, 1), torch.eye(2).flip(0).repeat(2, 1, 1)
        >>> [round(centroid_attraction(views, targets).item(), 3) for targets in (views, others)]
        [0.0, 2.0]
    """
    one_of("pull", pull, "views", "centroid")
    views, targets = together(views=shaped("views", views, "v n d"), targets=shaped("targets", targets, "w n d"))
    _like(targets, "targets", views)
    views, targets = unit(views), unit(targets)
    goal = unit(targets.mean(0)).detach()
    centroids = views.mean(0) if pull == "views" else unit(views.mean(0))
    return reduce(2 - 2 * (centroids * goal).sum(-1), reduction)


def brownian(
    views: Float[Tensor, "v n d"], kicks: Float[Tensor, "n d"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "*n"]:
    r"""Brownian loss (B): one random kick for each thing, shared by its views.

    $$\ell_i=\frac1V\sum_v\langle z_i^v,n_i\rangle,\qquad n_i\ \text{uniform on the sphere}$$

    Value and gradient are zero on average; what is left is the diffusion of things, independently of each other.

    Args:
        views: raw embeddings, normalised inside; float16 and bfloat16 are computed in float32.
        kicks: one row a thing, normalised inside; draw them anew at each step from a normal distribution. The same row
            for all things would draw them together.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Returns:
        The loss, between -1 and 1.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        Moon et al. (2022), arXiv:2207.03552; that views share the kick is inferred from a re-implementation.

    Examples:
        >>> views, kicks = torch.eye(3).repeat(2, 1, 1), torch.tensor([[2.0, 0.0, 0.0]] * 3)
        >>> brownian(views, kicks, reduction="none")
        tensor([1., 0., 0.])
    """
    views, kicks = together(views=shaped("views", views, "v n d"), kicks=kicks)
    if kicks.shape != views.shape[1:]:
        raise ValueError(f"kicks: expected shape {tuple(views.shape[1:])}, got {tuple(kicks.shape)}")
    return reduce((unit(views).mean(0) * unit(kicks)).sum(-1), reduction)


def singular_isotropy(embeddings: Float[Tensor, "n d"], *, form: Form = "singular") -> Float[Tensor, ""]:
    r"""Singular value loss (S), a reconstruction: all directions of space hold the same share of the embeddings.

    $$\frac1r\sum_{k=1}^{r}\Bigl(\sigma_k\sqrt{r/n}-1\Bigr)^2=2-\frac2{\sqrt{nr}}\sum_k\sigma_k
      \qquad\text{or, with form="pairwise",}\qquad
      \frac1r\sum_{k=1}^{r}\Bigl(\frac rn\sigma_k^2-1\Bigr)^2=\frac r{n^2}\Bigl(n+\sum_{i\ne j}c_{ij}^2\Bigr)-1$$

    with $\sigma_k$ the singular values of the unit rows, $c_{ij}$ their cosines, and $r=\min(n,d)$. The exact form
    in the paper is not known to us. The first pushes out of a collapse with a force that does not fade, the second
    needs no singular values but has no force there.

    Where singular values vanish the first form has a kink; the gradient is then one of its subgradients, finite, with
    directions that rounding chooses.

    Args:
        embeddings: raw, normalised inside; float16 and bfloat16 are computed in float32. Memory grows like `n`
            in both forms.
        form: "singular" or "pairwise".

    Returns:
        The loss, from 0 (isotropic; rows orthogonal if $n\le d$) to $2-2/\sqrt r$ or $r-1$ (all rows on one line).

    Raises:
        ValueError: for shapes, dtypes or names other than these.

    Source:
        Ours, after the description of the term in Moon et al. (2022), arXiv:2207.03552.

    Examples:
        >>> [round(singular_isotropy(x).item(), 3) for x in (torch.eye(3), torch.ones(3, 3))]
        [0.0, 0.845]
    """
    one_of("form", form, "singular", "pairwise")
    rows = _checked("embeddings", embeddings, "n d")
    n, d = rows.shape
    rank = min(n, d)
    if form == "singular":
        # The squares and not the nuclear norm: at least 0 whatever the rounding; the difference in gradient is radial.
        # Of what is not finite there are no singular values, and the result is not a number.
        finite = rows.isfinite().all()
        values = torch.linalg.svdvals(torch.where(finite, rows, 0))
        return torch.where(finite, (values * (rank / n) ** 0.5 - 1).square().mean(), torch.nan)
    gram = inner_products(rows.mT, rows.mT) if d <= n else inner_products(rows, rows)
    eye = torch.eye(rank, dtype=gram.dtype, device=gram.device)
    return (gram * (rank / n) - eye).square().sum() / rank


def msbreg_loss(
    views: Float[Tensor, "v n d"],
    targets: Float[Tensor, "w n d"],
    kicks: Float[Tensor, "n d"],
    *,
    singular: Scale = 0.1,
    brownian_weight: Scale = 0.1,
    pull: Pull = "views",
    form: Form = "singular",
) -> Float[Tensor, ""]:
    r"""MSBReg: attraction to the centroid, isotropy of the spectrum, and Brownian kicks.

    $$\mathcal L=\mathcal L_M+\lambda_S\mathcal L_S+\lambda_B\mathcal L_B$$

    Args:
        views: raw embeddings `(v, n, d)` of the trained network, normalised inside.
        targets: those of the target network, as in `centroid_attraction`.
        kicks: random directions `(n, d)`, drawn anew at each step, as in `brownian`.
        singular: $\lambda_S\ge0$; the paper's value is not known to us.
        brownian_weight: $\lambda_B\ge0$; the default is that of a re-implementation.
        pull: see `centroid_attraction`.
        form: see `singular_isotropy`, which is a reconstruction; the mean over views is taken.

    Raises:
        ValueError: for shapes, dtypes, weights or names other than these.

    Source:
        Moon et al. (2022), arXiv:2207.03552; the singular value loss is a reconstruction.

    Examples:
        >>> views, kicks = torch.eye(3).repeat(2, 1, 1), -torch.eye(3)
        >>> round(msbreg_loss(views, views, kicks, brownian_weight=0.1).item(), 3)
        -0.1
    """
    singular = number("singular", singular, least=0.0)
    brownian_weight = number("brownian_weight", brownian_weight, least=0.0)
    views, targets, kicks = together(views=views, targets=targets, kicks=kicks)
    isotropy = torch.stack([singular_isotropy(view, form=form) for view in _checked("views", views)]).mean()
    return (
        centroid_attraction(views, targets, pull=pull) + singular * isotropy + brownian_weight * brownian(views, kicks)
    )


def _checked(name: str, value: Tensor, shape: str = "v n d") -> Tensor:
    """Unit embeddings in at least float32."""
    return unit(shaped(name, value, shape))


def _like(value: Tensor, name: str, views: Tensor) -> None:
    """ValueError unless things and width are those of the views."""
    if value.shape[-2:] != views.shape[-2:]:
        wanted = ", ".join(map(str, views.shape[-2:]))
        raise ValueError(f"{name}: expected shape (..., {wanted}) as the views have, got {tuple(value.shape)}")
