"""Narayan and Patel, Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing (2024), arXiv:2404.14406."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lossbook.methods._validate import Reduction, number, one_of, positive, reduce, shaped, whole
from lossbook.methods.poincare import (
    clip_norm,
    distance,
    expmap,
    expmap0,
    hyperplane_logits,
    riemannian_gradient,
)

__all__ = ["HyperbolicHead", "hyp_oc_loss", "hyperbolic_pairwise_confusion", "pseudo_negatives"]

Curvature = float | Float[Tensor, ""]


def pseudo_negatives(
    features: Float[Tensor, "n d"],
    mean: Float[Tensor, " d"],
    noise: Float[Tensor, "m d"],
    *,
    momentum: float = 0.8,
    deviation: float = 1.0,
    memory: Literal["average", "batch"] = "average",
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " d"]]:
    r"""Samples of a Gaussian around the running mean of the real features: the class that is missing.

    $$\mu_t=\alpha\mu_{t-1}+(1-\alpha)\bar\phi_t,\qquad\tilde\phi=\mu_t+\sigma\varepsilon$$

    No gradient flows through samples or mean. The official code puts the mean of the *previous batch*,
    $\bar\phi_{t-1}$, in the place of $\mu_{t-1}$, which is then no running mean: `memory="batch"`. A batch whose mean
    is not finite shows in its samples, and what is handed on stays as it was.

    Args:
        features: real ones, whose mean over rows is $\bar\phi_t$.
        mean: $\mu_{t-1}$: what the last call returned, zeros to begin with (in the official code at each epoch).
        noise: $\varepsilon$, standard normal, a row a sample.
        momentum: $\alpha$ in $[0,1]$.
        deviation: $\sigma\ge0$. The official code's `std_dev` is not this but the *variance*, $\sigma^2$: its
            `std_dev=4` draws as `deviation=2`.
        memory: what is handed on to the next call, "average" for $\mu_t$ or "batch" for $\bar\phi_t$.

    Returns:
        The samples, and what the next call takes for `mean`.

    Raises:
        ValueError: for other shapes, dtypes or hyperparameters.

    Source:
        arXiv:2404.14406; `memory="batch"`: the official code, `train.py`.

    Examples:
        >>> features, noise = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.zeros(4, 2)
        >>> samples, mean = pseudo_negatives(features, torch.zeros(2), noise, momentum=0.5)
        >>> samples.shape, mean
        (torch.Size([4, 2]), tensor([1., 0.]))
    """
    momentum = number("momentum", momentum, least=0.0, most=1.0)
    deviation = number("deviation", deviation, least=0.0)
    one_of("memory", memory, "average", "batch")
    features, mean, noise = (
        shaped("features", features, "n d"),
        shaped("mean", mean, "d"),
        shaped("noise", noise, "m d"),
    )
    for name, value in (("mean", mean), ("noise", noise)):
        if value.shape[-1] != features.shape[-1]:
            raise ValueError(f"{name}: expected {features.shape[-1]} dimensions, got {value.shape[-1]}")
    batch = features.detach().mean(0)
    average = momentum * mean.detach() + (1 - momentum) * batch
    handed = average if memory == "average" else batch
    # One bad batch would stay in the running mean for ever.
    return average + deviation * noise, torch.where(handed.isfinite().all(), handed, mean.detach())


def hyperbolic_pairwise_confusion(
    points: Float[Tensor, "n d"],
    *,
    curvature: Curvature = 0.1,
    inverse: Literal["artanh", "arctan"] = "artanh",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*pairs"]:
    r"""Hyp-PC: pull embeddings of different things together, in pairs, so that what tells them apart is lost.

    $$L_{PC}=\frac1n\sum_{i=1}^{n/2}d_c(x_i,x_{i+n/2})$$

    It is half of the mean distance of a pair, and zero where all points coincide: use it beside a loss that forbids
    that.

    The official code has $\frac2{\sqrt c}\arctan(\sqrt c\lVert{-x}\oplus y\rVert)$ in the place of the distance $d$,
    with $\operatorname{artanh}$: `inverse="arctan"`. This is $\frac1{\sqrt c}\operatorname{gd}(\sqrt c\,d)$ with
    $\operatorname{gd}(u)=2\arctan\tanh\frac u2$, which is a metric too, but below $\pi/(2\sqrt c)$, with a pull that
    fades with distance as $1/\cosh(\sqrt c\,d)$.

    Args:
        points: embeddings of real things in the ball, an even number of them in random order.
        curvature: $c>0$.
        inverse: "artanh" for the distance or "arctan" for the official code's function of it.
        reduction: "mean" divides the sum by the number of points, not of pairs, as the paper does; "sum"; or "none" for
            the `n/2` distances.

    Raises:
        ValueError: for an odd number of points, other shapes, dtypes or hyperparameters.

    Source:
        arXiv:2404.14406; `inverse="arctan"`: the official code, `loss.py`.

    Examples:
        >>> points = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.0], [0.5, 0.0]])
        >>> round(hyperbolic_pairwise_confusion(points, curvature=1.0).item(), 3)
        0.275
    """
    curvature = positive("curvature", curvature)
    one_of("inverse", inverse, "artanh", "arctan")
    one_of("reduction", reduction, "mean", "sum", "none")
    points = shaped("points", points, "n d")
    if len(points) % 2:
        raise ValueError(f"points: expected an even number, got {len(points)}")
    distances = distance(*points.chunk(2), curvature=curvature)
    if inverse == "arctan":
        root = curvature**0.5
        distances = 2 / root * (root / 2 * distances).tanh().atan()
    return distances.sum() / len(points) if reduction == "mean" else reduce(distances, reduction)


def hyp_oc_loss(
    points: Float[Tensor, "n d"],
    real_logits: Float[Tensor, "n 2"],
    pseudo_logits: Float[Tensor, "m 2"],
    *,
    curvature: Curvature = 0.1,
    confusion: float | Float[Tensor, ""] = 1.0,
    inverse: Literal["artanh", "arctan"] = "artanh",
) -> Float[Tensor, ""]:
    r"""Hyp-OC: cross-entropy of real against pseudo-negative (Hyp-CE), and pairwise confusion of the real (Hyp-PC).

    $$L=L_{CE}+w\,L_{PC}$$

    $L_{CE}$ is the mean over all $n+m$ rows, with class 0 for the real and class 1 for the pseudo-negative.

    Args:
        points: embeddings of the real things in the ball, an even number.
        real_logits: theirs, as of `HyperbolicHead`.
        pseudo_logits: those of the pseudo-negatives.
        curvature: $c>0$.
        confusion: $w\ge0$; 1 in the paper.
        inverse: as of `hyperbolic_pairwise_confusion`.

    Raises:
        ValueError: for other shapes, dtypes or hyperparameters.

    Source:
        arXiv:2404.14406.

    Examples:
        >>> points = torch.zeros(2, 4)
        >>> real, pseudo = torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        >>> round(hyp_oc_loss(points, real, pseudo).item(), 3)
        0.049
    """
    confusion = number("confusion", confusion, least=0.0)
    points = shaped("points", points, "n d")
    logits = []
    for name, value in (("real_logits", real_logits), ("pseudo_logits", pseudo_logits)):
        logits.append(shaped(name, value, "n k"))
        if logits[-1].shape[1] != 2:
            raise ValueError(f"{name}: expected two classes, got shape {tuple(value.shape)}")
    if len(real_logits) != len(points):
        raise ValueError(f"real_logits: expected {len(points)} rows, one a point, got {len(real_logits)}")
    # Softplus of the other class's lead is the cross-entropy of two classes.
    leads = torch.cat([logits[0][:, 1] - logits[0][:, 0], logits[1][:, 0] - logits[1][:, 1]])
    pull = hyperbolic_pairwise_confusion(points, curvature=curvature, inverse=inverse)
    return F.softplus(leads).mean() + confusion * pull


class HyperbolicHead(nn.Module):
    r"""Takes vectors into the Poincaré ball and classifies them there by hyperbolic logistic regression.

    Vectors are clipped to length $r$ and mapped by $\exp_b$ at a learned base point $b=\exp_0(b')$; their gradient
    becomes the Riemannian one on its way back. Logits are those of `hyperplane_logits` with $p_k=\exp_0(p'_k)$ and
    $a_k=(1-c\lVert p_k\rVert^2)a'_k$.

    Attributes:
        base: $b'$, zeros to begin with.
        offsets: $p'_k$, a row a class.
        normals: $a'_k$, a row a class.
        curvature: $c$, a buffer, which stays in float32 in a head in half precision.
        radius: $r$, likewise; infinite without clipping.
        riemannian: whether gradients are scaled.
        margin: how far from the boundary points are kept, relative to the ball's radius.

    Examples:
        >>> head = HyperbolicHead(dimensions=8, curvature=1.0)
        >>> points, logits = head(torch.ones(4, 8))
        >>> logits.shape, bool((points.norm(dim=1) < 1).all())
        (torch.Size([4, 2]), True)
    """

    curvature: Tensor
    radius: Tensor

    def __init__(
        self,
        dimensions: int,
        classes: int = 2,
        *,
        curvature: float = 0.1,
        radius: float | None = 2.0,
        riemannian: bool = True,
        margin: float = 1e-3,
    ):
        r"""Draw offsets and normals uniformly from $\pm1/\sqrt d$.

        Args:
            dimensions: $d$, of vectors and ball.
            classes: how many logits.
            curvature: $c>0$.
            radius: $r>0$; None not to clip.
            riemannian: scale gradients by $\lambda_x^{-2}$, as the official code does.
            margin: as of `lossbook.methods.poincare.project`.

        Raises:
            ValueError: for other hyperparameters.

        Source:
            arXiv:2404.14406, and the official code, `models.py` and `hyptorch/nn.py`.
        """
        super().__init__()
        dimensions = whole("dimensions", dimensions)
        classes = whole("classes", classes)
        curvature = positive("curvature", curvature)
        margin = number("margin", margin, least=0.0, most=0.5)
        if radius is not None:
            radius = positive("radius", radius)
        bound = 1 / math.sqrt(dimensions)
        self.base = nn.Parameter(torch.zeros(dimensions))
        self.offsets = nn.Parameter(torch.empty(classes, dimensions).uniform_(-bound, bound))
        self.normals = nn.Parameter(torch.empty(classes, dimensions).uniform_(-bound, bound))
        # Buffers, so that heads with different ones can be stacked.
        self.register_buffer("curvature", torch.tensor(float(curvature)))
        self.register_buffer("radius", torch.tensor(math.inf if radius is None else float(radius)))
        self.riemannian, self.margin = riemannian, margin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HyperbolicHead":
        """As of any module, but that half precision rounds what is learned and not the ball."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype.itemsize < 4:
                setattr(self, name, kept[name].to(buffer.device))
        return self

    def forward(self, vectors: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        """Points in the ball, and logits."""
        lift = partial(expmap0, curvature=self.curvature, margin=self.margin)
        clipped = clip_norm(shaped("vectors", vectors, "n d"), radius=self.radius)
        points = expmap(lift(self.base), clipped, curvature=self.curvature, margin=self.margin)
        if self.riemannian:
            points = riemannian_gradient(points, curvature=self.curvature)
        offsets = lift(self.offsets)
        normals = (1 - self.curvature * offsets.square().sum(1, keepdim=True)) * self.normals
        return points, hyperplane_logits(points, offsets, normals, curvature=self.curvature)
