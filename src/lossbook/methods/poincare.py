r"""The Poincaré ball: hyperbolic space in coordinates, for losses whose embeddings live in it.

The ball of curvature $-c$, $c>0$, holds the points with $\sqrt c\lVert x\rVert<1$. Its metric is the Euclidean one
times $\lambda_x^2$, with the conformal factor $\lambda_x=2/(1-c\lVert x\rVert^2)$. Everything here acts on the last
dimension; the others broadcast. As $c\to0$ the ball becomes flat space with all lengths doubled.

Formulas with $1-c\lVert x\rVert^2$ lose their digits by the boundary. The functions are therefore written in the gap
$g_x=1-c\lVert x\rVert^2$ and in $x\pm y$, where nothing cancels:
$1+2c\langle x,y\rangle+c^2\lVert x\rVert^2\lVert y\rVert^2=g_xg_y+c\lVert x+y\rVert^2$, for instance. A gap below the
dtype's spacing at 1 counts as that spacing, so that points on the boundary, or a little outside, have finite values and
gradients as well.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook.methods._validate import floating, number, positive

__all__ = [
    "clip_norm",
    "conformal_factor",
    "distance",
    "expmap",
    "expmap0",
    "hyperplane_logits",
    "logmap",
    "logmap0",
    "midpoint",
    "mobius_add",
    "project",
    "riemannian_gradient",
]

Points = Float[Tensor, "... d"]
Curvature = float | Float[Tensor, ""]


def clip_norm(vectors: Points, *, radius: float | Float[Tensor, ""]) -> Points:
    r"""Shorten vectors that are longer than a radius: $v\min(1,r/\lVert v\rVert)$.

    Applied before `expmap0` it keeps points away from the boundary, where the gradient of $\tanh$ vanishes.

    Args:
        vectors: `(..., d)`; float16 and bfloat16 are computed in float32, as by all functions here.
        radius: $r>0$.

    Raises:
        ValueError: for another dtype or a radius that is not positive.

    Source:
        Guo et al. (2022), Clipped Hyperbolic Classifiers Are Super-Hyperbolic Classifiers, arXiv:2107.11472.

    Examples:
        >>> poincare.clip_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), radius=1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    radius = positive("radius", radius)
    (vectors,) = _points(vectors=vectors)
    length = _norm(vectors)
    # Within the radius the factor is exactly 1, and at zero nothing is divided.
    beyond = ~(length <= radius)  # and where one of them is not a number
    return vectors * torch.where(beyond, radius / torch.where(beyond, length, 1), 1)


def project(points: Points, *, curvature: Curvature = 1.0, margin: float | None = None) -> Points:
    r"""Move points that are too near to the boundary, or beyond it, back along their radius.

    $$x\min\Bigl(1,\frac{1-m}{\sqrt c\lVert x\rVert}\Bigr)$$

    Args:
        points: `(..., d)`.
        curvature: $c>0$, as in all functions here.
        margin: $m$ in $[0,\frac12]$, relative to the ball's radius. None for the square root of the dtype's spacing at
            1 (float32: 0.00035), with which the gap $1-c\lVert x\rVert^2$ keeps half of its digits.

    Raises:
        ValueError: for another dtype, curvature or margin.

    Source:
        Nickel and Kiela (2017), arXiv:1705.08039, sec. 3.1; the margin for each dtype is ours.

    Examples:
        >>> poincare.project(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), margin=0.5)
        tensor([[0.3000, 0.4000],
                [0.3000, 0.4000]])
    """
    curvature = positive("curvature", curvature)
    (points,) = _points(points=points)
    kept = torch.finfo(points.dtype).eps ** 0.5 if margin is None else margin
    number("margin", kept, least=0.0, most=0.5)
    return clip_norm(points, radius=(1 - kept) / curvature**0.5)


def conformal_factor(points: Points, *, curvature: Curvature = 1.0) -> Float[Tensor, "..."]:
    r"""How much longer than in coordinates a short step at a point is: $\lambda_x=2/(1-c\lVert x\rVert^2)$.

    Args:
        points: $x$, `(..., d)`, in the ball.
        curvature: $c>0$.

    Raises:
        ValueError: for another dtype or curvature.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112, sec. 2.

    Examples:
        >>> poincare.conformal_factor(torch.tensor([[0.0, 0.0], [0.6, 0.0]])).round(decimals=3)
        tensor([2.0000, 3.1250])
    """
    curvature = positive("curvature", curvature)
    (points,) = _points(points=points)
    return 2 / _gap(points, curvature)[..., 0]


def mobius_add(left: Points, right: Points, *, curvature: Curvature = 1.0) -> Points:
    r"""Möbius addition: the translation of the ball that takes $0$ to $x$, applied to $y$.

    $$x\oplus y=\frac{(1+2c\langle x,y\rangle+c\lVert y\rVert^2)\,x+(1-c\lVert x\rVert^2)\,y}
    {1+2c\langle x,y\rangle+c^2\lVert x\rVert^2\lVert y\rVert^2}$$

    It is an isometry in $y$ and undone by $-x$: $-x\oplus(x\oplus y)=y$. It is neither commutative nor associative.

    Args:
        left: $x$, `(..., d)`.
        right: $y$, `(..., d)`.
        curvature: $c>0$.

    Raises:
        ValueError: for other dtypes, unequal last dimensions or another curvature.

    Source:
        Ganea, Bécigneul and Hofmann (2018), Hyperbolic Neural Networks, arXiv:1805.09112; written in gaps here.

    Examples:
        >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.5])
        >>> z = poincare.mobius_add(x, y)
        >>> z.round(decimals=3)
        tensor([0.5880, 0.3530])
        >>> torch.allclose(poincare.mobius_add(-x, z), y, atol=1e-6)
        True
    """
    curvature = positive("curvature", curvature)
    left, right = _points(left=left, right=right)
    return _translated(left, right, _gap(left, curvature), _gap(right, curvature), curvature)


def distance(left: Points, right: Points, *, curvature: Curvature = 1.0) -> Float[Tensor, "..."]:
    r"""Length of the shortest path between points.

    $$d(x,y)=\frac2{\sqrt c}\operatorname{artanh}(\sqrt c\lVert{-x}\oplus y\rVert)
    =\frac2{\sqrt c}\operatorname{arsinh}\sqrt{\frac{c\lVert x-y\rVert^2}{(1-c\lVert x\rVert^2)(1-c\lVert y\rVert^2)}}$$

    Computed is the second form, which keeps its digits for near and for far points alike. Where points coincide the
    gradient, which has no limit there, is zero. `distance(x[:, None], y[None])` has all pairs.

    Args:
        left: $x$, `(..., d)`.
        right: $y$, `(..., d)`.
        curvature: $c>0$.

    Raises:
        ValueError: for other dtypes, unequal last dimensions or another curvature.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [0.9, 0.0], [0.0, 0.9]])
        >>> poincare.distance(x[:, None], x).round(decimals=2)
        tensor([[0.0000, 2.9400, 2.9400],
                [2.9400, 0.0000, 5.2000],
                [2.9400, 5.2000, 0.0000]])
    """
    curvature = positive("curvature", curvature)
    left, right = _points(left=left, right=right)
    return 2 / curvature**0.5 * _half_sinh(left, right, curvature)[..., 0].asinh()


def expmap0(vectors: Points, *, curvature: Curvature = 1.0, margin: float | None = None) -> Points:
    r"""Exponential map at the origin: where the straight path with initial velocity $v$ is after unit time.

    $$\exp_0(v)=\tanh(\sqrt c\lVert v\rVert)\frac{v}{\sqrt c\lVert v\rVert}$$

    Its distance from the origin is $2\lVert v\rVert$, since $\lambda_0=2$.

    Args:
        vectors: $v$, `(..., d)`, of any length.
        curvature: $c>0$.
        margin: as of `project`, to which the result is subject: $\tanh$ rounds to 1.

    Raises:
        ValueError: for another dtype, curvature or margin.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112.

    Examples:
        >>> x = poincare.expmap0(torch.tensor([1.0, 0.0]))
        >>> x.round(decimals=3), poincare.distance(torch.zeros(2), x).round(decimals=3)
        (tensor([0.7620, 0.0000]), tensor(2.))
    """
    curvature = positive("curvature", curvature)
    (vectors,) = _points(vectors=vectors)
    scaled = curvature**0.5 * _norm(vectors)
    return project(vectors * _over(torch.tanh, scaled, -1 / 3, 2 / 15), curvature=curvature, margin=margin)


def logmap0(points: Points, *, curvature: Curvature = 1.0) -> Points:
    r"""Inverse of `expmap0`: $\log_0(x)=\operatorname{artanh}(\sqrt c\lVert x\rVert)\frac{x}{\sqrt c\lVert x\rVert}$.

    Args:
        points: $x$, `(..., d)`, in the ball.
        curvature: $c>0$.

    Raises:
        ValueError: for another dtype or curvature.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112, sec. 2.

    Examples:
        >>> v = torch.tensor([0.3, -0.4])
        >>> torch.allclose(poincare.logmap0(poincare.expmap0(v)), v, atol=1e-6)
        True
    """
    curvature = positive("curvature", curvature)
    (points,) = _points(points=points)
    scaled = (curvature**0.5 * _norm(points)).clamp(max=1 - torch.finfo(points.dtype).eps)
    return points * _over(torch.atanh, scaled, 1 / 3, 1 / 5)


def expmap(points: Points, vectors: Points, *, curvature: Curvature = 1.0, margin: float | None = None) -> Points:
    r"""Exponential map at a point: $\exp_x(v)=x\oplus\exp_0(\lambda_xv/2)$.

    Its distance from $x$ is $\lambda_x\lVert v\rVert$.

    Args:
        points: $x$, `(..., d)`, in the ball.
        vectors: $v$, `(..., d)`, tangential at $x$, in coordinates.
        curvature: $c>0$.
        margin: as of `project`, to which the result is subject.

    Raises:
        ValueError: for other dtypes, unequal last dimensions, another curvature or margin.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112.

    Examples:
        >>> x, v = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.75])
        >>> y = poincare.expmap(x, v)
        >>> y.round(decimals=3), poincare.distance(x, y).round(decimals=3)
        (tensor([0.6900, 0.4990]), tensor(2.))
    """
    curvature = positive("curvature", curvature)
    points, vectors = _points(points=points, vectors=vectors)
    gap = _gap(points, curvature)
    step = vectors / gap
    scaled = curvature**0.5 * _norm(step)
    moved = step * _over(torch.tanh, scaled, -1 / 3, 2 / 15)
    # The gap 1 - tanh² of the step keeps its digits where the step itself rounds to the boundary. The first form is
    # that of short steps, whose length has no derivative at zero.
    decay = torch.exp(-2 * scaled)
    short = 1 - curvature * moved.square().sum(-1, keepdim=True)
    moved_gap = torch.where(scaled < 1, short, 4 * decay / (1 + decay).square())
    moved_gap = moved_gap.clamp(min=torch.finfo(points.dtype).eps ** 2)
    return project(_translated(points, moved, gap, moved_gap, curvature), curvature=curvature, margin=margin)


def logmap(points: Points, targets: Points, *, curvature: Curvature = 1.0) -> Points:
    r"""Inverse of `expmap`: the tangential vector at $x$ that leads to $y$.

    $$\log_x(y)=\frac{d(x,y)}{\lambda_x}\,\frac{-x\oplus y}{\lVert{-x}\oplus y\rVert}$$

    Args:
        points: $x$, `(..., d)`, in the ball.
        targets: $y$, `(..., d)`, in the ball.
        curvature: $c>0$.

    Raises:
        ValueError: for other dtypes, unequal last dimensions or another curvature.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112.

    Examples:
        >>> x, y = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.5])
        >>> torch.allclose(poincare.expmap(x, poincare.logmap(x, y)), y, atol=1e-6)
        True
    """
    curvature = positive("curvature", curvature)
    points, targets = _points(points=points, targets=targets)
    half = _half_sinh(points, targets, curvature)
    # artanh(t)/t with t the length of the sum below; t = s / sqrt(1 + s²) for s = half, and artanh(t) = arsinh(s).
    stretch = _over(torch.asinh, half, -1 / 6, 3 / 40) * (1 + half.square()).sqrt()
    return _gap(points, curvature) * stretch * mobius_add(-points, targets, curvature=curvature)


def hyperplane_logits(
    points: Float[Tensor, "*n d"],
    offsets: Float[Tensor, "k d"],
    normals: Float[Tensor, "k d"],
    *,
    curvature: Curvature = 1.0,
) -> Float[Tensor, "*n k"]:
    r"""Logits of hyperbolic logistic regression: signed distances to $k$ hyperplanes, scaled by the normals' lengths.

    $$\frac{\lambda_{p_k}\lVert a_k\rVert}{\sqrt c}\operatorname{arsinh}
    \frac{2\sqrt c\,\langle{-p_k}\oplus x,a_k\rangle}{(1-c\lVert{-p_k}\oplus x\rVert^2)\lVert a_k\rVert}$$

    The hyperplane (gyroplane) of class $k$ consists of the straight paths through $p_k$ that leave it at right angles
    to $a_k$; the logit is positive on the side to which $a_k$ points, and tends to $4\langle a_k,x-p_k\rangle$ as
    $c\to0$. Memory grows as $nkd$.

    Args:
        points: $x$, `(..., d)`, in the ball.
        offsets: $p_k$, `(k, d)`, in the ball.
        normals: $a_k$, `(k, d)`, tangential at $p_k$. Parameters at the origin, $a'_k$, are brought there by
            $a_k=(1-c\lVert p_k\rVert^2)a'_k$.
        curvature: $c>0$.

    Raises:
        ValueError: for other dtypes or shapes, or another curvature.

    Source:
        Ganea, Bécigneul and Hofmann (2018), arXiv:1805.09112.

    Examples:
        >>> points, normals = torch.tensor([[0.0, 0.0], [0.5, 0.0]]), torch.eye(2)
        >>> poincare.hyperplane_logits(points, torch.zeros(2, 2), normals).round(decimals=3)
        tensor([[0.0000, 0.0000],
                [2.1970, 0.0000]])
    """
    curvature = positive("curvature", curvature)
    points, offsets, normals = _points(points=points, offsets=offsets, normals=normals)
    if offsets.ndim != 2 or normals.shape != offsets.shape:
        raise ValueError(
            f"normals: expected one for each of the offsets (k, d), got {tuple(normals.shape)} for offsets "
            f"{tuple(offsets.shape)}"
        )
    root, length = curvature**0.5, _norm(normals)
    unit = normals / torch.where(length > 0, length, 1)
    away, gap = points[..., None, :] - offsets, _gap(offsets, curvature)
    square = curvature * away.square().sum(-1)
    # Of -p ⊕ x over 1 - c|-p ⊕ x|² all but this cancels.
    along = gap[:, 0] * (away * unit).sum(-1) - square * (offsets * unit).sum(-1)
    sine = 2 * root * along / (gap[:, 0] * _gap(points, curvature))
    return 2 * length[:, 0] / (gap[:, 0] * root) * sine.asinh()


def midpoint(
    points: Float[Tensor, "*n m d"], weights: Float[Tensor, "*n m"] | None = None, *, curvature: Curvature = 1.0
) -> Float[Tensor, "*n d"]:
    r"""Weighted mean of $m$ points: the gyromidpoint, which is Einstein's midpoint in these coordinates.

    $$\bar x=\frac{S}{T+\sqrt{T^2-c\lVert S\rVert^2}},\qquad
    S=\sum_iw_i\lambda_{x_i}x_i,\quad T=\sum_iw_i(\lambda_{x_i}-1)$$

    It moves with the points under every isometry of the ball, and minimises
    $\sum_iw_i\cosh(\sqrt c\,d(x_i,\bar x))$. Of two points with equal weights it is the middle of the path between
    them; of more it is near to the Fréchet mean, which minimises the squares of distances, but not equal to it.

    Args:
        points: $x_i$, `(..., m, d)`, in the ball.
        weights: $w_i\ge0$, `(..., m)`, not all 0; None for equal ones.
        curvature: $c>0$.

    Raises:
        ValueError: for other dtypes or shapes, or another curvature.

    Source:
        Ungar (2008), Analytic Hyperbolic Geometry and Albert Einstein's Special Theory of Relativity.

    Examples:
        >>> points = torch.tensor([[0.8, 0.0], [0.0, 0.0]])
        >>> poincare.midpoint(points).round(decimals=3)  # their mean is (0.4, 0)
        tensor([0.5000, 0.0000])
    """
    curvature = positive("curvature", curvature)
    (points,) = _points(points=points)
    if points.ndim < 2:
        raise ValueError(f"points: expected shape (..., m, d), got {tuple(points.shape)}")
    if weights is None:
        weights = points.new_ones(points.shape[:-1])
    weights = floating("weights", weights)
    if weights.shape != points.shape[:-1]:
        raise ValueError(f"weights: expected shape {tuple(points.shape[:-1])}, got {tuple(weights.shape)}")
    weight = (weights / weights.sum(-1, keepdim=True))[..., None]
    # Time² and c|space|² cancel far from the origin. The mean of points that are moved to about their mean is near the
    # origin, and then moved back. Where they are moved to does not matter, and needs no gradient.
    with torch.no_grad():
        about = _midpoint(points, weight, curvature)
    near = _midpoint(mobius_add(-about[..., None, :], points, curvature=curvature), weight, curvature)
    return mobius_add(about, near, curvature=curvature)


def riemannian_gradient(points: Points, *, curvature: Curvature = 1.0) -> Points:
    r"""The points themselves; their gradient is divided by $\lambda_x^2$ on its way back.

    The gradient by coordinates, $\nabla$, becomes the Riemannian one,
    $\lambda_x^{-2}\nabla=\frac{(1-c\lVert x\rVert^2)^2}4\nabla$: the direction in which a function grows fastest
    for its length in the metric.

    Args:
        points: $x$, `(..., d)`, in the ball.
        curvature: $c>0$.

    Raises:
        ValueError: for another dtype or curvature.

    Source:
        Nickel and Kiela (2017), arXiv:1705.08039, sec. 3.1.

    Examples:
        >>> x = torch.tensor([0.5, 0.0], requires_grad=True)
        >>> poincare.riemannian_gradient(x).sum().backward()
        >>> x.grad.round(decimals=3)
        tensor([0.1410, 0.1410])
    """
    curvature = positive("curvature", curvature)
    (points,) = _points(points=points)
    here = points.detach()
    return here + (_gap(here, curvature) / 2).square() * (points - here)


def _points(**tensors: Tensor) -> list[Tensor]:
    """The tensors, in float32 at least; ValueError unless all have the same last dimension."""
    found = {name: floating(name, value) for name, value in tensors.items()}
    size = None
    for name, value in found.items():
        if not value.ndim or not value.shape[-1] or size not in (None, value.shape[-1]):
            wanted = "(..., d)" if size is None else f"(..., {size})"
            raise ValueError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
        size = value.shape[-1]
    return list(found.values())


def _norm(vectors: Tensor) -> Tensor:
    """Length, with the dimension kept: no overflow of squares, and a gradient of zero at zero."""
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    largest = torch.where(zero, 1, largest)
    return torch.where(zero, 0, largest * torch.where(zero, 1, vectors / largest).square().sum(-1, keepdim=True).sqrt())


def _gap(points: Tensor, curvature: Curvature) -> Tensor:
    """1 - c|x|², at least the dtype's spacing at 1, with the dimension kept."""
    return (1 - curvature * points.square().sum(-1, keepdim=True)).clamp(min=torch.finfo(points.dtype).eps)


def _midpoint(points: Tensor, weight: Tensor, curvature: Curvature) -> Tensor:
    """The formula of `midpoint`, for weights of sum 1."""
    factor = 2 / _gap(points, curvature)
    space = (weight * factor * points).sum(-2)
    time = (weight * (factor - 1)).sum(-2)
    # Each point alone has time² - c|space|² = 1, and no sum of them has less.
    rest = (time.square() - curvature * space.square().sum(-1, keepdim=True)).clamp(min=1)
    return space / (time + rest.sqrt())


def _translated(left: Tensor, right: Tensor, gap: Tensor, right_gap: Tensor, curvature: Curvature) -> Tensor:
    """Möbius addition of points with these gaps."""
    sum_ = left + right
    square = curvature * sum_.square().sum(-1, keepdim=True)
    return (gap * sum_ + square * left) / (gap * right_gap + square)


def _half_sinh(left: Tensor, right: Tensor, curvature: Curvature) -> Tensor:
    """sinh(√c d / 2), with the dimension kept."""
    gaps = _gap(left, curvature) * _gap(right, curvature)
    return curvature**0.5 * _norm(left - right) / gaps.sqrt()


def _over(function: Callable[[Tensor], Tensor], values: Tensor, second: float, fourth: float) -> Tensor:
    """function(t)/t for t >= 0, with the coefficients of its expansion 1 + second t² + fourth t⁴ near zero."""
    near = values < 1e-2
    square, apart = torch.where(near, values, 0).square(), torch.where(near, 1e-2, values)
    return torch.where(near, 1 + second * square + fourth * square.square(), function(apart) / apart)
