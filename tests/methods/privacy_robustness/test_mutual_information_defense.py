"""The information penalty against torch.distributions, scikit-learn and SciPy, and what the derivation promises."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device, only_on_cpu
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from sklearn.metrics import mutual_info_score
from sklearn.tree import DecisionTreeClassifier
from support import agree, extreme, one_graph, pair, rejects, unhooked
from torch.distributions import Independent, Normal, kl_divergence

from lossbook.methods.privacy_robustness import (
    MIDTree,
    StochasticBottleneck,
    bottleneck_information,
    bottleneck_sample,
    inversion_bound,
    linear_gaussian_information,
    linear_gaussian_mid,
    linear_gaussian_shrinkage,
    mid_kl,
    mid_loss,
    mid_tree,
)


def divergence(mean, rho, shift=5.0):
    code = Independent(Normal(mean, F.softplus(rho - shift)), 1)
    return kl_divergence(code, Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 5), (32, 64)])
def test_divergence_is_that_of_torch_distributions(n, k, reduction):
    mean, rho = pair(n, k)
    expected = divergence(mean, rho)
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    agree(mid_kl(mean, rho, reduction=reduction), expected, (mean, rho))


def test_gradients_by_mean_and_deviation_have_the_closed_form():
    mean, rho = pair()
    by_mean, by_rho = torch.autograd.grad(mid_kl(mean, rho, reduction="sum"), (mean, rho))
    std = F.softplus(rho - 5)
    torch.testing.assert_close(by_mean, mean)
    torch.testing.assert_close(by_rho, (std - 1 / std) * torch.sigmoid(rho - 5))


def test_divergence_vanishes_at_the_standard_gaussian_alone():
    one = torch.full((3, 4), 5 + math.log(math.e - 1), dtype=torch.float64)
    assert mid_kl(torch.zeros_like(one), one).abs() < 1e-14
    mean, rho = pair()
    assert (mid_kl(mean, rho, reduction="none") > 0).all()


def test_start_costs_four_and_a_half_nats_a_unit():
    zeros = torch.zeros(2, 10, dtype=torch.float64)
    assert mid_kl(zeros, zeros).item() / 10 == pytest.approx(4.5, abs=0.02)


def test_the_form_of_the_code_forgives_tiny_deviations():
    mean = torch.zeros(1, 1, dtype=torch.float64)
    rho = torch.full((1, 1), -60.0, dtype=torch.float64)
    assert mid_kl(mean, rho).item() == pytest.approx(64.5)
    assert mid_kl(mean, rho, form="code").item() == pytest.approx(-0.5 - math.log(1e-7), abs=1e-6)
    usual = torch.zeros(1, 1, dtype=torch.float64)
    assert mid_kl(mean, usual).item() == pytest.approx(mid_kl(mean, usual, form="code").item(), abs=2e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_cross_entropy_plus_weighted_divergence(reduction):
    mean, rho = pair()
    logits = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets = torch.arange(8) % 3
    expected = F.cross_entropy(logits, targets, reduction="none") + 0.01 * divergence(mean, rho)
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    agree(mid_loss(logits, targets, mean, rho, beta=0.01, reduction=reduction), expected, (logits, mean, rho))


def test_gradcheck():
    mean, rho = pair(4, 3)
    logits = mean.detach().clone().requires_grad_()
    targets = torch.tensor([0, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda *x: mid_loss(x[0], targets, *x[1:]), (logits, mean, rho))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["equal", "opposite", "zero row", "single", "huge", "tiny"])
def test_extremes_stay_finite(case, dtype):
    mean, rho = extreme(case, dtype)
    if dtype == torch.float32 and case == "huge":  # the square of the mean is as large as float32 allows
        rho = (rho * 1e-10).detach().requires_grad_()
    loss = mid_kl(mean, rho)
    assert loss.isfinite() and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (mean, rho)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deviation_that_underflows_keeps_its_price_and_its_gradient(dtype):
    mean = torch.zeros(1, 1, dtype=dtype)
    rho = torch.full((1, 1), -2000.0, dtype=dtype, requires_grad=True)
    loss = mid_kl(mean, rho)
    assert loss.item() == pytest.approx(2004.5)
    (gradient,) = torch.autograd.grad(loss, rho)
    assert gradient.item() == pytest.approx(-1)


def test_sample_is_reparametrised():
    mean, rho = pair()
    noise = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    agree(bottleneck_sample(mean, rho, noise), mean + F.softplus(rho - 5) * noise, (mean, rho))
    assert (bottleneck_sample(mean, rho, torch.zeros_like(noise)) == mean).all()
    drawn = [bottleneck_sample(mean, rho, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all() and not (drawn[0] == drawn[2]).all()


def test_bottleneck_draws_in_evaluation_mode_too():
    layer = StochasticBottleneck(6).double().eval()
    features = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, mean, rho = layer(features)
    assert layer.width == 3 and first.shape == mean.shape == rho.shape == (4, 3)
    assert not (layer(features)[0] == first).all()
    torch.testing.assert_close(torch.cat([mean, rho], 1), layer.linear(features))
    z = layer(features.repeat(20000, 1))[0].reshape(20000, 4, 3)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0), F.softplus(rho - 5), rtol=0.03, atol=0)


def test_information_against_quadrature_and_its_bound():
    mean = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)
    rho = 5 + torch.tensor([[0.5], [-0.2], [0.1]], dtype=torch.float64)
    std = F.softplus(rho - 5)
    noise = torch.randn(20000, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.linspace(-15, 15, 20001, dtype=torch.float64)
    densities = torch.exp(Normal(mean, std).log_prob(z))
    mixture = densities.mean(0)
    exact = (densities * (densities / mixture).log()).sum(1).mean() * (z[1] - z[0])
    found = bottleneck_information(mean, rho, noise)
    assert found.item() == pytest.approx(exact.item(), abs=0.01)
    marginal = (mixture * (mixture.log() - Normal(0.0, 1.0).log_prob(z))).sum() * (z[1] - z[0])
    assert (mid_kl(mean, rho) - exact).item() == pytest.approx(marginal.item(), abs=1e-9)


def test_information_ends():
    noise = torch.randn(200, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = 10 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert bottleneck_information(mean, torch.zeros_like(mean), noise).item() == pytest.approx(math.log(6))
    assert abs(bottleneck_information(mean[:1].expand(6, 4), torch.zeros_like(mean), noise).item()) < 1e-10


def random_covariance(d, seed):
    factor = torch.randn(d, d + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T / d


@pytest.mark.parametrize("penalty", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_linear_optimum_against_scipy(noise, penalty):
    covariance = random_covariance(4, 0)
    cross = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    least_squares = torch.linalg.solve(covariance, cross)

    def cost(theta):
        theta = torch.as_tensor(theta)
        gap = theta - least_squares
        information = linear_gaussian_information(theta, covariance, noise=noise)
        return float(gap @ covariance @ gap + penalty * information)

    starts = [least_squares, 0 * least_squares, -least_squares]
    best = min((minimize(cost, start.numpy(), tol=1e-12) for start in starts), key=lambda found: found.fun)
    ours = linear_gaussian_mid(covariance, cross, noise=noise, penalty=penalty)
    np.testing.assert_allclose(ours.numpy(), best.x, atol=1e-5)
    assert cost(ours) <= best.fun + 1e-12


def test_linear_information_is_that_of_the_joint_gaussian():
    covariance, theta = random_covariance(3, 1), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    joint = torch.cat([torch.cat([covariance, (covariance @ theta)[:, None]], 1), torch.zeros(1, 4)])
    joint[3, :3], joint[3, 3] = covariance @ theta, theta @ covariance @ theta + 0.49
    expected = 0.5 * (torch.logdet(covariance) + joint[3, 3].log() - torch.logdet(joint))
    torch.testing.assert_close(linear_gaussian_information(theta, covariance, noise=0.7), expected)


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 10), st.floats(0, 1e3))
def test_shrinkage_is_a_global_minimum(signal, noise, penalty):
    def cost(c):
        return signal * (c - 1) ** 2 + penalty / 2 * np.log1p(c**2 * signal / noise**2)

    ours = linear_gaussian_shrinkage(torch.tensor(signal, dtype=torch.float64), noise=noise, penalty=penalty).item()
    grid = np.linspace(0, 1, 2001)
    near = grid[cost(grid).argmin()]
    best = minimize_scalar(cost, bounds=(max(0, near - 1e-3), min(1, near + 1e-3)), options={"xatol": 1e-12})
    assert 0 <= ours <= 1 and cost(ours) <= best.fun * (1 + 1e-7) + 1e-9


def test_shrinkage_limits():
    v = torch.tensor([0.0, 1e-6, 1.0, 1e6], dtype=torch.float64)
    assert (linear_gaussian_shrinkage(v, noise=1.0, penalty=0.0) == 1).all()
    assert (linear_gaussian_shrinkage(v, noise=1.0, penalty=1e12) < 1e-5).all()
    # Little signal: the logarithm is its first term, and the answer that of ridge regression.
    assert linear_gaussian_shrinkage(v[1], noise=1.0, penalty=2.0).item() == pytest.approx(0.5, abs=1e-5)


def test_shrinkage_jumps_where_the_noise_is_small():
    penalties = torch.linspace(0.01, 1, 100)
    c = [
        linear_gaussian_shrinkage(torch.tensor(1.0, dtype=torch.float64), noise=0.02, penalty=float(p)).item()
        for p in penalties
    ]
    assert min(np.diff(c)) < -0.5 and max(np.diff(c)) <= 1e-9
    smooth = [
        linear_gaussian_shrinkage(torch.tensor(1.0, dtype=torch.float64), noise=0.3, penalty=float(p)).item()
        for p in penalties
    ]
    assert min(np.diff(smooth)) > -0.1


def rows(n=200, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64) > 0).long()
    return x, y + (x[:, 3] > 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tree_without_penalty_is_that_of_scikit_learn(depth):
    x, y = rows(2000)  # many rows, so that no two splits are worth exactly the same
    theirs = DecisionTreeClassifier(criterion="entropy", max_depth=depth, min_samples_leaf=5, random_state=0)
    expected = theirs.fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    ours = mid_tree(x, y, depth=depth)
    np.testing.assert_allclose(ours(x).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 0.1, 0.3])
def test_tree_pays_for_what_its_leaves_say(penalty):
    x, y = rows()
    tree = mid_tree(x, y, penalty=penalty)
    leaves = tree.leaves(x)
    counts = torch.bincount(leaves)
    share = counts[counts > 0].double() / len(x)
    assert tree.leaf_entropy == pytest.approx(-(share * share.log()).sum().item())
    # The leaves earn, in information on the label, more than the penalty times their entropy.
    assert mutual_info_score(leaves.numpy(), y.numpy()) >= penalty * tree.leaf_entropy
    assert counts[counts > 0].min() >= 5


def test_every_split_of_the_tree_has_a_gain_ratio_above_the_penalty():
    x, y = rows()
    tree = mid_tree(x, y, penalty=0.2, depth=5)
    node, at = tree.leaves(x), {}
    parent = {int(tree.left[i]) + side: i for i in range(len(tree.feature)) if tree.feature[i] >= 0 for side in (0, 1)}
    for row, leaf in enumerate(node.tolist()):
        while leaf in parent:
            at.setdefault(parent[leaf], []).append((row, leaf))
            leaf = parent[leaf]
    assert len(at) >= 2
    for members in at.values():
        chosen, sides = zip(*members, strict=True)
        gain = mutual_info_score(sides, y[list(chosen)].numpy())
        assert gain > 0.2 * mutual_info_score(sides, sides)


def test_a_saved_tree_is_the_tree_again(tmp_path):
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 3, generator=draw), torch.randint(3, (60,), generator=draw)
    tree = mid_tree(inputs, targets, penalty=0.1)
    torch.save(dataclasses.asdict(tree), tmp_path / "tree.pt")
    again = MIDTree(**torch.load(tmp_path / "tree.pt", weights_only=True))
    assert torch.equal(again(inputs), tree(inputs)) and again.leaf_entropy == tree.leaf_entropy
    assert len(tree.feature) > 1


def test_tree_with_a_penalty_of_one_says_nothing():
    x, y = rows()
    tree = mid_tree(x, y, penalty=1.0)
    assert tree.leaf_entropy == 0 and tree(x).unique(dim=0).shape == (1, 3)
    entropies = [mid_tree(x, y, penalty=penalty).leaf_entropy for penalty in (0.0, 0.1, 0.2, 0.4)]
    assert entropies[0] > entropies[-1]


def test_tree_knows_classes_that_it_did_not_see():
    x, y = rows()
    assert mid_tree(x, y, classes=7)(x).shape == (200, 7)


def guess(joint):
    """The best attacker's success, and the information."""
    information = (joint * (joint / joint.sum(1, keepdim=True) / joint.sum(0)).clamp(min=1e-300).log()).sum()
    return joint.amax(0).sum(), information


@pytest.mark.parametrize("form", ["fano", "pinsker"])
@given(st.integers(2, 6), st.integers(1, 6), st.floats(0.1, 20), st.integers(0, 1000))
def test_no_attacker_beats_the_bound(form, m, r, sharp, seed):
    draw = torch.Generator().manual_seed(seed)
    channel = torch.softmax(sharp * torch.randn(m, r, generator=draw, dtype=torch.float64), 1)
    success, information = guess(channel / m)
    assert success <= inversion_bound(information, m, form=form) + 1e-12


def test_bounds_at_the_ends():
    nothing, all_of_it = torch.tensor(0.0), torch.tensor(math.log(4))
    assert inversion_bound(nothing, 4).item() == 0.25 and inversion_bound(nothing, 4, form="fano").item() == 0.5
    assert inversion_bound(all_of_it, 4).item() == inversion_bound(all_of_it, 4, form="fano").item() == 1


def test_vmap_and_compile():
    mean, rho = (torch.stack([each.detach()] * 3) for each in pair())
    logits, targets = mean[..., :3], torch.arange(8) % 3
    stacked = torch.vmap(lambda z, m, r, b: mid_loss(z, targets, m, r, beta=b))(logits, mean, rho, torch.ones(3))
    torch.testing.assert_close(stacked[0], mid_loss(logits[0], targets, mean[0], rho[0], beta=1.0))
    signals = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    each = torch.vmap(lambda v: linear_gaussian_shrinkage(v, noise=0.5, penalty=1.0))(signals)
    torch.testing.assert_close(each, linear_gaussian_shrinkage(signals, noise=0.5, penalty=1.0))
    module = unhooked("lossbook.methods.privacy_robustness.mutual_information_defense")
    compiled = one_graph(module.mid_kl)
    torch.testing.assert_close(compiled(mean[0], rho[0]), mid_kl(mean[0], rho[0]))


def test_half_precision_is_computed_in_single():
    mean, rho = (each.detach().to(torch.bfloat16) for each in pair())
    assert mid_kl(mean, rho).dtype == torch.float32
    torch.testing.assert_close(mid_kl(mean, rho), mid_kl(mean.float(), rho.float()))


def test_bad_input_is_refused():
    mean, rho = (each.detach() for each in pair())
    rejects(mid_kl, mean[0], rho, names="mean")
    rejects(mid_kl, mean, rho[:3], names="rho")
    rejects(mid_kl, mean, rho, form="other", names="form")
    rejects(mid_kl, mean, rho, reduction="max", names="reduction")
    rejects(mid_kl, mean.long(), rho, names="mean")
    targets = torch.zeros(8, dtype=torch.long)
    rejects(mid_loss, mean, targets, mean, rho, beta=-1.0, names="beta")
    rejects(mid_loss, mean, targets[:3], mean, rho, names="targets")
    rejects(mid_loss, mean[:3], targets[:3], mean, rho, names="mean")
    rejects(bottleneck_sample, mean, rho, mean[:, :2], names="noise")
    rejects(bottleneck_information, mean, rho, mean[None, :3], names="noise")
    rejects(StochasticBottleneck, 0, names="features")
    rejects(StochasticBottleneck, 4, 0, names="width")
    rejects(linear_gaussian_information, mean[0], torch.eye(3), noise=1.0, names="covariance")
    rejects(linear_gaussian_mid, torch.eye(5), mean[0].float(), noise=0.0, penalty=1.0, names="noise")
    rejects(linear_gaussian_shrinkage, mean, noise=1.0, penalty=-1.0, names="penalty")
    rejects(mid_tree, mean, targets[:3], names="targets")
    rejects(mid_tree, mean, targets, penalty=-0.1, names="penalty")
    rejects(mid_tree, mean, targets, depth=0, names="depth")
    rejects(mid_tree, mean, targets, least=0, names="least")
    rejects(inversion_bound, torch.tensor(1.0), 1, names="values")
    rejects(inversion_bound, torch.tensor(1.0), 4, form="other", names="form")


test_on_any_device = on_any_device(
    partial(StochasticBottleneck(6, 3), torch.randn(8, 6)),
    partial(bottleneck_information, *pair(), torch.randn(2, 8, 5)),
    partial(bottleneck_sample, *pair()),
    partial(inversion_bound, torch.rand(3), 4),
    partial(inversion_bound, torch.rand(3), 4, form="fano"),
    partial(linear_gaussian_information, torch.ones(3), torch.eye(3), noise=torch.tensor(0.5)),
    partial(linear_gaussian_mid, torch.eye(3), torch.ones(3), noise=0.5, penalty=torch.tensor(0.3)),
    partial(linear_gaussian_shrinkage, torch.rand(3), noise=torch.tensor(0.5), penalty=0.3),
    partial(mid_kl, *pair(), form="code"),
    partial(mid_loss, torch.randn(8, 3), torch.arange(8) % 3, *pair(), beta=torch.tensor(0.01)),
    only_on_cpu("a tree grows by the values of what is left in its nodes", mid_tree, *rows()),
)
