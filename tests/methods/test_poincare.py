"""The Poincaré ball against geoopt, and near the boundary, where geoopt has no digits left, against exact values."""

import math
from functools import partial

import geoopt
import mpmath
import pytest
import torch
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, one_graph, rejects, unhooked

from lossbook.methods import poincare
from lossbook.methods.poincare import (
    clip_norm,
    conformal_factor,
    distance,
    expmap,
    expmap0,
    hyperplane_logits,
    logmap,
    logmap0,
    midpoint,
    mobius_add,
    project,
    riemannian_gradient,
)

CURVATURES = [0.01, 0.1, 1.0, 3.0]


def ball(curvature):
    return geoopt.PoincareBall(c=torch.tensor(curvature, dtype=torch.float64))


def points(number=6, d=4, *, curvature=1.0, reach=0.9, seed=0, sets=2):
    """Sets of points at up to this share of the radius, each set asking for gradients."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(sets, number, d, generator=draw, dtype=torch.float64)
    radii = reach * torch.rand(sets, number, 1, generator=draw, dtype=torch.float64) / math.sqrt(curvature)
    found = radii * directions / directions.norm(dim=-1, keepdim=True)
    return [each.clone().requires_grad_() for each in found]


UNARY = {
    "expmap0": (expmap0, lambda b, x: b.expmap0(x)),
    "logmap0": (logmap0, lambda b, x: b.logmap0(x)),
    "conformal_factor": (conformal_factor, lambda b, x: b.lambda_x(x)),
    "midpoint": (midpoint, lambda b, x: b.weighted_midpoint(x)),
}
BINARY = {
    "mobius_add": (mobius_add, lambda b, x, y: b.mobius_add(x, y)),
    "distance": (distance, lambda b, x, y: b.dist(x, y)),
    "expmap": (expmap, lambda b, x, y: b.expmap(x, y)),
    "logmap": (logmap, lambda b, x, y: b.logmap(x, y)),
}


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", UNARY)
def test_maps_of_one_set_are_those_of_geoopt(name, curvature):
    ours, theirs = UNARY[name]
    (x,) = points(curvature=curvature, sets=1)
    agree(ours(x, curvature=curvature), theirs(ball(curvature), x), (x,), tolerance=1e-9)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", BINARY)
def test_maps_of_two_sets_are_those_of_geoopt(name, curvature):
    ours, theirs = BINARY[name]
    x, y = points(curvature=curvature)
    agree(ours(x, y, curvature=curvature), theirs(ball(curvature), x, y), (x, y), tolerance=1e-9)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_hyperplane_logits_are_scaled_distances_of_geoopt(curvature):
    (x,) = points(7, curvature=curvature, sets=1)
    p, a = points(3, curvature=curvature, seed=1)
    b = ball(curvature)
    theirs = b.dist2plane(x[:, None], p[None], a[None], signed=True, scaled=True) * b.lambda_x(p)
    agree(hyperplane_logits(x, p, a, curvature=curvature), theirs, (x, p, a), tolerance=1e-9)


def test_weights_of_a_midpoint():
    (x,) = points(5, sets=1)
    weights = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    agree(midpoint(x, weights), ball(1.0).weighted_midpoint(x, weights), (x, weights))
    # Of two it is the middle of the path between them.
    middle = midpoint(x[:2])
    torch.testing.assert_close(middle, expmap(x[0], logmap(x[0], x[1]) / 2))
    # And it is where the sum of the cosh of distances has no slope.
    z = midpoint(x, weights).detach().requires_grad_()
    (slope,) = torch.autograd.grad((weights.detach() * distance(x.detach(), z).cosh()).sum(), z)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


@given(st.integers(0, 999), st.sampled_from(CURVATURES))
def test_what_holds_in_hyperbolic_space(seed, c):
    x, y, z = points(curvature=c, seed=seed, sets=3)
    translated = mobius_add(z, x, curvature=c), mobius_add(z, y, curvature=c)
    d = distance(x, y, curvature=c)
    torch.testing.assert_close(distance(*translated, curvature=c), d, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mobius_add(-z, translated[0], curvature=c), x, rtol=1e-9, atol=1e-9)
    assert (d <= distance(x, z, curvature=c) + distance(z, y, curvature=c) + 1e-10).all()
    torch.testing.assert_close(expmap(x, logmap(x, y, curvature=c), curvature=c), y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        conformal_factor(x, curvature=c) * logmap(x, y, curvature=c).norm(dim=-1), d, rtol=1e-9, atol=1e-9
    )


def test_flat_space_is_the_limit():
    x, y = points(curvature=1.0)
    p, a = points(3, seed=1)
    c = 1e-10
    torch.testing.assert_close(distance(x, y, curvature=c), 2 * (x - y).norm(dim=-1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(expmap0(x, curvature=c), x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mobius_add(x, y, curvature=c), x + y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(midpoint(x, curvature=c), x.mean(0), rtol=1e-8, atol=1e-8)
    flat = 4 * ((x[:, None] - p) * a).sum(-1)
    torch.testing.assert_close(hyperplane_logits(x, p, a, curvature=c), flat, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [*BINARY, "expmap0", "logmap0", "midpoint"])
def test_gradcheck(name):
    x, y = points(3, 3)
    if name in BINARY:
        assert torch.autograd.gradcheck(BINARY[name][0], (x, y)) and torch.autograd.gradgradcheck(
            BINARY[name][0], (x, y)
        )
    else:
        assert torch.autograd.gradcheck(UNARY[name][0], (x,)) and torch.autograd.gradgradcheck(UNARY[name][0], (x,))


@pytest.mark.parametrize("share", [0.0, 1e-8, 0.0099, 0.0101])
def test_maps_at_the_origin_where_their_series_begins(share):
    v = torch.tensor([share, 0.0], dtype=torch.float64, requires_grad=True)
    assert expmap0(v)[0].item() == pytest.approx(math.tanh(share), rel=1e-13)
    assert logmap0(v)[0].item() == pytest.approx(math.atanh(share), rel=1e-13)
    slopes = [1 / math.cosh(share) ** 2, math.tanh(share) / share if share else 1.0]
    found = torch.autograd.functional.jacobian(expmap0, v)
    torch.testing.assert_close(found, torch.tensor(slopes, dtype=torch.float64).diag(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_distances_near_the_boundary_keep_their_digits(gap, dtype):
    # Two points on a circle: with the gap g, sinh(d/2) = 2 r sin(angle/2) / g.
    radius = torch.tensor(math.sqrt(1 - gap), dtype=dtype).double().item()
    for angle in (math.pi, 1.0, 1e-3, 1e-6):
        x = torch.tensor([radius, 0.0], dtype=dtype)
        y = torch.tensor([radius * math.cos(angle), radius * math.sin(angle)], dtype=torch.float64).to(dtype)
        exact = x.double(), y.double()
        sine = (exact[0] - exact[1]).norm() / ((1 - exact[0].square().sum()) * (1 - exact[1].square().sum())).sqrt()
        expected = 2 * math.asinh(sine.item())
        precision = 4 * torch.finfo(dtype).eps / gap
        assert distance(x, y).item() == pytest.approx(expected, rel=precision)
        assert (2 * logmap(x, y).norm() / (1 - exact[0].square().sum())).item() == pytest.approx(
            expected, rel=4 * precision
        )


@pytest.mark.parametrize(("dtype", "radius"), [(torch.float64, 0.99), (torch.float32, 0.999)], ids=str)
def test_a_path_through_the_whole_ball_ends_where_it_should(dtype, radius):
    # The translation of the origin that it is made of lies nearer to the boundary than the margin, its end does not.
    a = torch.tensor([radius, 0.0], dtype=dtype, requires_grad=True)
    v = logmap(a, -a).detach().requires_grad_()
    end = expmap(a, v, margin=None if dtype == torch.float32 else 1e-3)
    precision = 8 * torch.finfo(dtype).eps / (1 - radius)
    torch.testing.assert_close(end, -a.detach(), rtol=precision, atol=precision)
    gradients = torch.autograd.grad(end.sum(), (a, v))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def exact(*tensors):
    """Vectors in as many digits as it takes."""
    return [mpmath.matrix([mpmath.mpf(number) for number in tensor.tolist()]) for tensor in tensors]


def exact_sum(x, y):
    """Möbius addition by its definition."""
    xy, xx, yy = ((a.T * b)[0] for a, b in ((x, y), (x, x), (y, y)))
    return ((1 + 2 * xy + yy) * x + (1 - xx) * y) / (1 + 2 * xy + xx * yy)


def exact_distance(x, y):
    return 2 * mpmath.atanh(mpmath.norm(exact_sum(-x, y)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_maps_near_the_boundary_are_exact_up_to_rounding(gap, dtype):
    # What comes out is compared as hyperbolic distance from the exact result: an error of a coordinate counts 1/gap.
    draw = torch.Generator().manual_seed(0)
    precision = 50 * torch.finfo(dtype).eps / gap

    def apart(found, end):
        """In units of what rounding the arguments and the result does."""
        own = 1 - mpmath.norm(end)
        return exact_distance(*exact(found), end) / (1 + gap / own)

    with mpmath.workdps(60):
        for _ in range(20):
            ends = torch.randn(2, 3, generator=draw, dtype=torch.float64)
            x, y = ((1 - gap) * ends / ends.norm(dim=1, keepdim=True)).to(dtype)
            v = torch.randn(3, generator=draw, dtype=torch.float64).to(dtype)
            v = v / v.norm() * gap * 6 * torch.rand((), generator=draw)
            (p, q, w) = exact(x, y, v)
            assert apart(mobius_add(x, y), exact_sum(p, q)) < precision
            scaled = mpmath.norm(w) / (1 - (p.T * p)[0])
            end = exact_sum(p, mpmath.tanh(scaled) / mpmath.norm(w) * w)
            assert apart(expmap(x, v, margin=0.0), end) < precision
            way = exact_sum(-p, q)
            way = (1 - (p.T * p)[0]) * mpmath.atanh(mpmath.norm(way)) / mpmath.norm(way) * way
            assert mpmath.norm(exact(logmap(x, y))[0] - way) < precision * mpmath.norm(way)
            middle = exact_sum(p, mpmath.tanh(mpmath.norm(way) / (1 - (p.T * p)[0]) / 2) / mpmath.norm(way) * way)
            assert apart(midpoint(torch.stack([x, y])), middle) < precision
            # Close together: half of their way is 0.05.
            y = expmap(x.double(), v.double() / v.double().norm() * gap / 10).to(dtype)
            way = exact_sum(-p, *exact(y))
            middle = exact_sum(p, mpmath.tanh(mpmath.atanh(mpmath.norm(way)) / 2) / mpmath.norm(way) * way)
            assert apart(midpoint(torch.stack([x, y])), middle) < precision


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-4, 0.3, 0.99, 1.01, 3.0])
def test_slopes_of_the_exponential_map_at_all_lengths(length):
    x = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    v = (length * (1 - x.detach().square().sum()) * torch.tensor([0.6, 0.8], dtype=torch.float64)).requires_grad_()
    if length:
        agree(expmap(x, v), ball(1.0).expmap(x, v), (x, v), tolerance=1e-7 if length < 1e-6 else 1e-11)
    else:  # the identity, to first order
        found = torch.autograd.functional.jacobian(expmap, (x, v))
        torch.testing.assert_close(found, (torch.eye(2).double(),) * 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("place", ["origin", "equal", "boundary", "opposite ends", "outside", "far outside"])
def test_extreme_points_have_finite_values_and_gradients(place, dtype):
    x, y = (value.detach() for value in points())
    if place == "origin":
        x, y = 0 * x, 0 * y
    elif place == "equal":
        y = x.clone()
    else:
        x, y = (value / value.norm(dim=-1, keepdim=True) for value in (x, y))
        y = -x if place == "opposite ends" else y
        far = 1e4 if dtype == torch.float16 else 1e25
        x, y = ({"outside": 1.5, "far outside": far}.get(place, 1.0) * value for value in (x, y))
    x, y = (value.to(dtype).requires_grad_() for value in (x, y))
    calls = [lambda: expmap0(x), lambda: clip_norm(x, radius=2.0), lambda: project(x), lambda: riemannian_gradient(x)]
    if place != "far outside":  # not points of the ball by any rounding, but vectors of any length are allowed
        calls += [lambda function=function: function(x, y) for function, _ in BINARY.values()]
        calls += [
            lambda: logmap0(x),
            lambda: midpoint(x),
            lambda: hyperplane_logits(x, y, y),
            lambda: conformal_factor(x),
        ]
    for index, call in enumerate(calls):
        value = call()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        gradients = torch.autograd.grad(value.sum(), (x, y), allow_unused=True)
        assert value.isfinite().all(), index
        if dtype != torch.float16 or place in ("origin", "equal"):  # its range ends at 65504, and the slope does not
            assert all(g.isfinite().all() for g in gradients if g is not None), index


def test_zero_normals_have_logit_zero():
    (x,) = points(sets=1)
    normals = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    logits = hyperplane_logits(x, x[:2].detach(), normals)
    assert not logits.any() and not torch.autograd.grad(logits.sum(), normals)[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_vectors_end_at_the_margin(dtype):
    v = torch.tensor([[1e3, 0.0], [3.0, 4.0], [0.0, 0.1]], dtype=dtype)
    ends = expmap0(v, curvature=4.0, margin=0.01).norm(dim=-1)
    torch.testing.assert_close(ends, torch.tensor([0.495, 0.495, math.tanh(0.2) / 2], dtype=dtype))
    assert (expmap0(v, curvature=4.0).norm(dim=-1) < 0.5).all()


def test_clipping_shortens_and_keeps_what_is_short():
    v = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clip_norm(v, radius=2.0), torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))


def test_not_a_number_is_not_within_a_radius():
    v, nan = torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor(math.nan)
    assert clip_norm(v, radius=nan).isnan().all() and project(v, curvature=nan).isnan().all()
    assert clip_norm(torch.tensor([[math.nan, 0.1], [0.3, 0.4]]), radius=1.0).isnan().any(1).tolist() == [True, False]


def test_riemannian_gradient_is_that_of_geoopt():
    x, y = points()
    (plain,) = torch.autograd.grad(distance(x, y, curvature=0.5).sum(), x)
    kept = riemannian_gradient(x, curvature=0.5)
    assert torch.equal(kept, x)
    (scaled,) = torch.autograd.grad(distance(kept, y, curvature=0.5).sum(), x)
    torch.testing.assert_close(scaled, ball(0.5).egrad2rgrad(x, plain))
    # A distance grows by one for each unit of length.
    torch.testing.assert_close(scaled.norm(dim=-1) * conformal_factor(x, curvature=0.5), torch.ones(6).double())


def test_vmap_over_points_and_curvatures():
    x, y = points()
    curvatures = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for function in (distance, mobius_add, expmap, logmap):
        mapped = torch.vmap(lambda c, function=function: function(x, y, curvature=c))(curvatures)
        single = torch.stack([function(x, y, curvature=float(c)) for c in curvatures])
        torch.testing.assert_close(mapped, single)


def test_compile_without_graph_breaks():
    plain = unhooked("lossbook.methods.poincare")
    x, y = points()

    def whole(x, y):
        z = plain.riemannian_gradient(plain.expmap(x, y, curvature=0.5), curvature=0.5)
        return plain.hyperplane_logits(z, x, y, curvature=0.5) + plain.distance(z, plain.logmap0(y))[:, None]

    agree(one_graph(whole)(x, y), whole(x, y), (x, y))


def test_bad_input_is_refused():
    good = torch.zeros(3, 2)
    assert "(..., 2)" in rejects(distance, good, torch.zeros(3, 4), names="right")
    rejects(expmap0, good.int(), names="vectors")
    rejects(logmap, good, torch.tensor(1.0), names="targets")
    rejects(mobius_add, good, good, curvature=0.0, names="curvature")
    rejects(project, good, margin=2.0, names="margin")
    rejects(clip_norm, good, radius=-1.0, names="radius")
    rejects(hyperplane_logits, good, good, torch.zeros(2, 2), names="normals")
    rejects(midpoint, good, torch.ones(2), names="weights")
    rejects(midpoint, good[0], names="points")


def test_the_module_is_public():
    from lossbook import methods

    assert methods.poincare.__all__ == poincare.__all__ and "poincare" in methods.__all__


X, Y = points()
CURVATURE = torch.tensor(0.5, dtype=torch.float64)
test_on_any_device = on_any_device(
    partial(clip_norm, X, radius=torch.tensor(0.5)),
    *(partial(function, X, curvature=CURVATURE) for function in (conformal_factor, expmap0, logmap0, midpoint)),
    *(partial(function, X, Y, curvature=CURVATURE) for function in (distance, expmap, logmap, mobius_add)),
    partial(hyperplane_logits, X, Y, Y, curvature=CURVATURE),
    partial(midpoint, X, torch.rand(6)),
    *(partial(function, X) for function in (project, riemannian_gradient)),
)
