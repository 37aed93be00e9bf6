"""Hyp-OC against geoopt and PyTorch's cross-entropy, and what the derivation promises."""

import copy
import math
from functools import partial

import geoopt
import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, extreme, one_graph, pair, rejects, unhooked

from lossbook.methods.poincare import conformal_factor, distance, expmap0
from lossbook.methods.privacy_robustness import (
    HyperbolicHead,
    hyp_oc_loss,
    hyperbolic_pairwise_confusion,
    pseudo_negatives,
)


def ball(curvature):
    return geoopt.PoincareBall(c=torch.tensor(curvature, dtype=torch.float64))


def embedded(n=8, d=5, *, curvature=0.1, seed=0, dtype=torch.float64):
    x, _ = pair(n, d, seed=seed)
    return expmap0(x.detach(), curvature=curvature).to(dtype).requires_grad_()


def head(d=5, **options):
    torch.manual_seed(0)
    found = HyperbolicHead(d, **options).double()
    with torch.no_grad():
        found.base.uniform_(-0.3, 0.3)
    return found


@pytest.mark.parametrize("curvature", [0.01, 0.1, 1.0])
def test_confusion_is_half_the_mean_distance_of_pairs(curvature):
    x = embedded(curvature=curvature)
    for reduction in ("mean", "sum", "none"):
        distances = ball(curvature).dist(x[:4], x[4:])
        expected = {"mean": distances.mean() / 2, "sum": distances.sum(), "none": distances}[reduction]
        agree(hyperbolic_pairwise_confusion(x, curvature=curvature, reduction=reduction), expected, (x,))


@pytest.mark.parametrize("curvature", [0.01, 0.1, 1.0])
def test_confusion_of_the_official_code(curvature):
    x = embedded(curvature=curvature)
    length = ball(curvature).mobius_add(-x[:4], x[4:]).norm(dim=-1)
    root = math.sqrt(curvature)
    agree(
        hyperbolic_pairwise_confusion(x, curvature=curvature, inverse="arctan"),
        (2 / root * (root * length).atan()).sum() / 8,
        (x,),
    )
    assert hyperbolic_pairwise_confusion(x, curvature=curvature, inverse="arctan", reduction="none").max() < math.pi / (
        2 * root
    )


@given(seed=st.integers(0, 999), c=st.sampled_from([0.1, 1.0, 4.0]))
def test_the_official_codes_distance_is_a_metric(seed, c):
    x, y, z = embedded(3, curvature=c, seed=seed).detach()[:, None]

    def between(a, b):
        return hyperbolic_pairwise_confusion(torch.cat([a, b]), curvature=c, inverse="arctan", reduction="sum")

    assert between(x, y) <= between(x, z) + between(z, y) + 1e-12
    torch.testing.assert_close(between(x, y), between(y, x))


def test_pull_of_a_pair():
    # The gradient has length 1 in the metric, and with arctan 1 / cosh(√c d).
    x = embedded(curvature=0.5)
    fades = 1 / (math.sqrt(0.5) * distance(x[:4], x[4:], curvature=0.5)).cosh()
    for inverse, expected in (("artanh", torch.ones(4).double()), ("arctan", fades)):
        loss = hyperbolic_pairwise_confusion(x, curvature=0.5, inverse=inverse, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close((gradient.norm(dim=-1) / conformal_factor(x, curvature=0.5))[:4], expected)


def test_head_is_geoopt():
    model, vectors = head(riemannian=False), 2 * pair()[0].detach()
    vectors.requires_grad_()
    points, logits = model(vectors)
    b = ball(float(model.curvature))
    lengths = vectors.norm(dim=-1, keepdim=True)
    base = b.expmap0(model.base)
    expected = b.expmap(base, torch.where(lengths > 2, 2 / lengths, 1) * vectors)
    offsets = b.expmap0(model.offsets)
    normals = model.normals * (1 - b.c * offsets.square().sum(1, keepdim=True))
    planes = b.dist2plane(expected[:, None], offsets[None], normals[None], signed=True, scaled=True)
    torch.testing.assert_close(points, expected, rtol=1e-8, atol=1e-8)
    agree(logits, planes * b.lambda_x(offsets), (model.normals, model.offsets, model.base, vectors), 1e-7)


def test_riemannian_scaling_is_on_the_way_back_only():
    vectors = pair()[0]
    scaled, plain = head(), head(riemannian=False)
    (points, logits), (same, others) = scaled(vectors), plain(vectors)
    assert torch.equal(points, same) and torch.equal(logits, others)
    # At the base point 0 the chain is: gradient by the point, times 1 / λ².
    for model in (scaled, plain):
        torch.nn.init.zeros_(model.base)
    weight = torch.ones(5, dtype=torch.float64)
    origin = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    gradients = [torch.autograd.grad((model(origin)[0] @ weight).sum(), origin)[0] for model in (scaled, plain)]
    torch.testing.assert_close(gradients[0], gradients[1] / 4)


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_clipping_bounds_points_and_distances(radius):
    torch.manual_seed(0)
    model = HyperbolicHead(5, radius=radius).double()
    points, _ = model(100 * pair()[0])
    root = math.sqrt(0.1)
    assert points.norm(dim=-1).max() <= math.tanh(root * radius) / root + 1e-9
    assert distance(points[:, None], points, curvature=0.1).max() <= 4 * radius + 1e-8
    assert conformal_factor(points, curvature=0.1).max() <= 2 * math.cosh(root * radius) ** 2 + 1e-8


def test_without_clipping_points_are_kept_within_the_margin():
    points, logits = HyperbolicHead(5, radius=None, margin=0.01)(1e6 * pair(dtype=torch.float32)[0])
    assert points.norm(dim=-1).max() < 0.991 / math.sqrt(0.1) and logits.isfinite().all()


def test_loss_is_cross_entropy_and_confusion():
    points = embedded()
    logits, others = (pair(8, 2, seed=seed)[0] for seed in (1, 2))
    targets = torch.cat([torch.zeros(8), torch.ones(8)]).long()
    entropy = F.cross_entropy(torch.cat([logits, others]), targets)
    confusion = ball(0.1).dist(points[:4], points[4:]).mean() / 2
    agree(hyp_oc_loss(points, logits, others, confusion=0.3), entropy + 0.3 * confusion, (points, logits, others), 1e-9)


def test_pseudo_negatives_follow_the_mean():
    features, noise = pair()
    mean = torch.ones(5, dtype=torch.float64)
    samples, carried = pseudo_negatives(features, mean, noise, deviation=0.5)
    expected = 0.8 * mean + 0.2 * features.mean(0)
    torch.testing.assert_close(carried, expected.detach())
    torch.testing.assert_close(samples, expected.detach() + 0.5 * noise)
    same, batch = pseudo_negatives(features, mean, noise, deviation=0.5, memory="batch")
    assert torch.equal(same, samples)
    torch.testing.assert_close(batch, features.mean(0).detach())
    assert not carried.requires_grad and not batch.requires_grad


@pytest.mark.parametrize("memory", ["average", "batch"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_batch_shows_in_its_samples_and_leaves_no_trace(bad, memory):
    features, noise = (value.detach() for value in pair())
    _, mean = pseudo_negatives(features, torch.ones(5, dtype=torch.float64), noise, memory=memory)
    spoilt = features.clone()
    spoilt[2, 3] = bad
    samples, carried = pseudo_negatives(spoilt, mean, noise, memory=memory)
    assert not samples[:, 3].isfinite().any() and torch.equal(carried, mean)
    assert all(value.isfinite().all() for value in pseudo_negatives(features, carried, noise, memory=memory))


def test_the_official_std_dev_is_a_variance():
    # The published script draws from MultivariateNormal(mean, std_dev * identity).
    drawn = torch.distributions.MultivariateNormal(torch.zeros(3), 4.0 * torch.eye(3))
    samples, _ = pseudo_negatives(torch.zeros(1, 3), torch.zeros(3), torch.ones(1, 3), deviation=2.0)
    torch.testing.assert_close(drawn.stddev, samples[0])


def test_a_saved_mean_goes_on_as_it_would_have(tmp_path):
    features, noise = pair()
    _, mean = pseudo_negatives(features, torch.ones(5, dtype=torch.float64), noise)
    torch.save(mean, tmp_path / "mean.pt")
    loaded = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert torch.equal(pseudo_negatives(features, loaded, noise)[0], pseudo_negatives(features, mean, noise)[0])


def test_memory_of_a_running_mean_and_of_a_batch():
    # Weights of past batch means after many steps: geometric, or two of them.
    batches = torch.eye(6, dtype=torch.float64)
    noise = torch.zeros(1, 6, dtype=torch.float64)
    for memory, weights in (
        ("average", [0.2 * 0.8**k for k in range(5, -1, -1)]),
        ("batch", [0, 0, 0, 0, 0.8, 0.2]),
    ):
        carried = torch.zeros(6, dtype=torch.float64)
        for batch in batches:
            samples, carried = pseudo_negatives(batch[None], carried, noise, memory=memory)
        torch.testing.assert_close(samples[0], torch.tensor(weights, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row", "huge", "tiny"])
def test_extremes_stay_finite(case, dtype):
    x, y = extreme(case, dtype)
    model = HyperbolicHead(5, radius=None).to(torch.float64 if dtype == torch.float64 else torch.float32)
    (points, logits), (_, others) = model(x), model(y)
    for inverse in ("artanh", "arctan"):
        loss = hyp_oc_loss(points, logits, others, inverse=inverse)
        gradients = torch.autograd.grad(loss, (x, y, *model.parameters()), retain_graph=True)
        assert loss.isfinite() and loss >= 0
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_head_in_half_precision_keeps_its_ball(dtype):
    model, x = HyperbolicHead(5, curvature=0.1, radius=1.3), pair(dtype=torch.float32)[0].to(dtype)
    half = copy.deepcopy(model).to(dtype)
    assert half.offsets.dtype == dtype and half.curvature.dtype == half.radius.dtype == torch.float32
    assert half.curvature == model.curvature and half.radius == model.radius
    # That of a head with the same, rounded, parameters.
    single = copy.deepcopy(half).float()
    torch.testing.assert_close(half(x), single(x.float()))
    again = HyperbolicHead(5).to(dtype)
    again.load_state_dict(half.state_dict())
    torch.testing.assert_close(again(x), half(x))
    assert model.to("meta").curvature.device.type == "meta" and half.double().curvature.dtype == torch.float64


def test_collapse_is_the_minimum_of_confusion_alone():
    x = embedded()[:1].repeat(8, 1)
    assert hyperbolic_pairwise_confusion(x).item() == 0


def test_vmap_over_curvatures():
    x = embedded().detach()
    c = torch.tensor([0.05, 0.1], dtype=torch.float64)
    mapped = torch.vmap(lambda c: hyperbolic_pairwise_confusion(x, curvature=c))(c)
    torch.testing.assert_close(mapped, torch.stack([hyperbolic_pairwise_confusion(x, curvature=float(v)) for v in c]))


def test_compile_without_graph_breaks():
    plain = unhooked("lossbook.methods.privacy_robustness.hyp_oc")
    torch.manual_seed(0)
    model = plain.HyperbolicHead(5).double()
    x, y = pair()
    compiled = one_graph(model)
    agree(compiled(x)[1], model(x)[1], (x, *model.parameters()))
    points, logits, others = embedded(), pair(8, 2)[0], y[:, :2]
    compiled = one_graph(plain.hyp_oc_loss)
    agree(compiled(points, logits, others), hyp_oc_loss(points, logits, others), (points, logits, y))


def test_bad_input_is_refused():
    good = torch.zeros(4, 2)
    assert "got 3" in rejects(hyperbolic_pairwise_confusion, good[:3], names="points")
    rejects(hyperbolic_pairwise_confusion, good, inverse="tan", names="inverse")
    rejects(hyperbolic_pairwise_confusion, good, curvature=-1.0, names="curvature")
    rejects(hyperbolic_pairwise_confusion, good, reduction="max", names="reduction")
    rejects(hyp_oc_loss, good, good[:3], good, names="real_logits")
    rejects(hyp_oc_loss, good, good, torch.zeros(4, 3), names="pseudo_logits")
    rejects(hyp_oc_loss, good, good, good, confusion=-1.0, names="confusion")
    rejects(pseudo_negatives, good, torch.zeros(3), good, names="mean")
    rejects(pseudo_negatives, good, good[0], torch.zeros(4, 3), names="noise")
    rejects(pseudo_negatives, good, good[0], good, momentum=2.0, names="momentum")
    rejects(pseudo_negatives, good, good[0], good, deviation=-1.0, names="deviation")
    rejects(pseudo_negatives, good, good[0], good, memory="all", names="memory")
    rejects(HyperbolicHead, 0, names="dimensions")
    rejects(HyperbolicHead, 2, radius=0.0, names="radius")
    rejects(HyperbolicHead, 2, margin=1.0, names="margin")


test_on_any_device = on_any_device(
    partial(head(), pair()[0]),
    partial(head(radius=None, riemannian=False), pair()[0]),
    partial(hyp_oc_loss, embedded(), pair(8, 2)[0], pair(8, 2)[1], confusion=torch.tensor(0.5)),
    partial(hyperbolic_pairwise_confusion, embedded(), curvature=torch.tensor(0.1), inverse="arctan"),
    partial(pseudo_negatives, pair()[0], torch.ones(5), pair()[1]),
)
