"""The three terms of MSBReg against plain NumPy and SciPy, and what the derivation promises."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, one_graph, rejects, unhooked

from lossbook.methods.contrastive import brownian, centroid_attraction, centroids, msbreg_loss, singular_isotropy

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def collapsed(n=12, d=5, spread=0.0):
    """Rows at a distance of about `spread` from one direction."""
    away = draw(n, d).detach()
    away[:, 0] = 0
    away = away - away.mean(0)
    return (F.one_hot(torch.tensor(0), d) + spread * F.normalize(away)).requires_grad_()


@pytest.mark.parametrize("v", [1, 2, 4])
def test_attraction_pulls_each_view(v):
    z, t = draw(v, 6, 4), draw(3, 6, 4, seed=1).detach()
    goal = F.normalize(F.normalize(t, dim=-1).sum(0), dim=-1)

    def oracle():
        return (F.normalize(z, dim=-1) - goal).square().sum(-1).mean(0)

    agree(centroid_attraction(z, t, reduction="none"), oracle(), (z,))
    agree(centroid_attraction(z, t), oracle().mean(), (z,))
    agree(centroid_attraction(z, t, reduction="sum"), oracle().sum(), (z,))


def test_attraction_pulls_the_centroid():
    z, t = draw(2, 6, 4), draw(2, 6, 4, seed=1)
    oracle = (centroids(z) - centroids(t).detach()).square().sum(-1)
    agree(centroid_attraction(z, t, pull="centroid", reduction="none"), oracle, (z,))
    assert torch.autograd.grad(centroid_attraction(z, t), t, allow_unused=True) == (None,)


def test_between_centroids_nothing_is_left_where_both_networks_agree():
    z = draw(3, 6, 4)
    (idle,) = torch.autograd.grad(centroid_attraction(z, z, pull="centroid"), z)
    (pulled,) = torch.autograd.grad(centroid_attraction(z, z), z)
    assert idle.abs().max() < 1e-14 and pulled.abs().max() > 1e-2


def test_brownian_is_the_mean_inner_product_with_shared_kicks():
    z, g = draw(2, 6, 4), draw(6, 4, seed=1).detach()

    def oracle():
        return torch.einsum("vnd,nd->n", F.normalize(z, dim=-1), F.normalize(g, dim=-1)) / 2

    agree(brownian(z, g, reduction="none"), oracle(), (z,))
    agree(brownian(z, g), oracle().mean(), (z,))


def test_brownian_is_odd_in_the_kicks_and_blind_to_their_length():
    z, g = draw(2, 6, 4), draw(6, 4, seed=1).detach()
    torch.testing.assert_close(brownian(z, -g), -brownian(z, g))
    torch.testing.assert_close(brownian(z, 1e6 * g), brownian(z, g))
    assert brownian(z, torch.zeros_like(g)) == 0


@pytest.mark.parametrize(("n", "d"), [(1, 3), (4, 4), (12, 5), (5, 12)])
def test_singular_isotropy_is_numpys(n, d):
    z = draw(n, d)
    rows, rank = F.normalize(z).detach().numpy(), min(n, d)
    sigma = np.linalg.svd(rows, compute_uv=False)
    loss = singular_isotropy(z)
    assert loss.item() == pytest.approx(np.mean((sigma * math.sqrt(rank / n) - 1) ** 2), abs=1e-12)
    assert loss.item() == pytest.approx(2 - 2 / math.sqrt(n * rank) * np.linalg.norm(rows, "nuc"), abs=1e-12)
    assert -1e-12 <= loss.item() <= 2 - 2 / math.sqrt(rank) + 1e-12


def test_gradient_of_the_singular_form_is_the_tangential_polar_factor():
    z = F.normalize(draw(12, 5)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(singular_isotropy(z), z)
    factor = torch.from_numpy(scipy.linalg.polar(z.detach().numpy())[0])
    tangential = factor - (factor * z).sum(-1, keepdim=True) * z
    torch.testing.assert_close(gradient, -2 / math.sqrt(60) * tangential, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(12, 5), (5, 12), (1, 4)])
def test_pairwise_form_is_the_sum_of_squared_cosines(n, d):
    z, rank = draw(n, d), min(n, d)
    rows = F.normalize(z)
    others = (rows @ rows.T).fill_diagonal_(0).square().sum()
    agree(singular_isotropy(z, form="pairwise"), rank / n**2 * (n + others) - 1, (z,))


@pytest.mark.parametrize("form", ["singular", "pairwise"])
def test_gradcheck(form):
    assert torch.autograd.gradcheck(lambda z: singular_isotropy(z, form=form), draw(6, 3))
    t, g = draw(2, 4, 3, seed=1).detach(), draw(4, 3, seed=2).detach()
    assert torch.autograd.gradcheck(lambda z: msbreg_loss(z, t, g, form=form), draw(2, 4, 3))


@pytest.mark.parametrize("form", ["singular", "pairwise"])
def test_isotropy_vanishes_for_a_frame_and_is_largest_on_a_line(form):
    frame = torch.cat([torch.eye(4), -torch.eye(4), torch.eye(4)]).double()
    assert singular_isotropy(frame, form=form).item() == pytest.approx(0, abs=1e-12)
    line = torch.ones(12, 4, dtype=torch.float64)
    line[::2] *= -1  # two opposite clusters are as bad as one
    most = {"singular": 1.0, "pairwise": 3.0}[form]
    assert singular_isotropy(line, form=form).item() == pytest.approx(most, abs=1e-12)


@pytest.mark.parametrize("form", ["singular", "pairwise"])
def test_rotations_signs_and_scales_do_not_matter(form):
    z = draw(12, 5).detach()
    turn = torch.linalg.qr(draw(5, 5, seed=1).detach()).Q
    factors = torch.linspace(-3, 1e3, 12, dtype=torch.float64)[:, None]
    torch.testing.assert_close(singular_isotropy(factors * z @ turn, form=form), singular_isotropy(z, form=form))


def test_only_the_singular_form_pushes_out_of_a_collapse():
    forces = {}
    for form in ("singular", "pairwise"):
        for spread in (1e-2, 1e-5):
            z = collapsed(spread=spread)
            (gradient,) = torch.autograd.grad(singular_isotropy(z, form=form), z)
            forces[form, spread] = gradient.norm().item()
    assert forces["singular", 1e-5] == pytest.approx(2 * math.sqrt(4 / 60), rel=1e-3)
    assert forces["pairwise", 1e-5] == pytest.approx(1e-3 * forces["pairwise", 1e-2], rel=1e-2)


@pytest.mark.parametrize("pull", ["views", "centroid"])
@pytest.mark.parametrize("form", ["singular", "pairwise"])
def test_the_whole_is_the_weighted_sum(pull, form):
    z, t, g = draw(3, 8, 4), draw(3, 8, 4, seed=1).detach(), draw(8, 4, seed=2).detach()
    parts = torch.stack([singular_isotropy(view, form=form) for view in z]).mean()
    oracle = centroid_attraction(z, t, pull=pull) + 0.7 * parts + 0.3 * brownian(z, g)
    agree(msbreg_loss(z, t, g, singular=0.7, brownian_weight=0.3, pull=pull, form=form), oracle, (z,))
    alone = msbreg_loss(z, t, g, singular=0.0, brownian_weight=0.0, pull=pull, form=form)
    agree(alone, centroid_attraction(z, t, pull=pull), (z,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["equal", "opposite", "zero row", "huge", "tiny", "one line"])
def test_extreme_embeddings_stay_finite(case, dtype):
    z, t = draw(2, 8, 4, dtype=dtype).detach(), draw(2, 8, 4, seed=1, dtype=dtype).detach()
    if case == "equal":
        z = z[:1, :1].expand_as(z)
    elif case == "opposite":
        z = torch.stack([z[0], -z[0]])
    elif case == "zero row":
        z[:, 0] = t[:, 0] = 0
    elif case == "huge":
        z = z * 1e4
    elif case == "tiny":
        z = z * 1e-3
    else:
        z = z[:1, :1] * torch.tensor([1, -1] * 4, dtype=dtype)[:, None].expand(2, 8, 1)
    z = z.clone().requires_grad_()
    for form in ("singular", "pairwise"):
        for pull in ("views", "centroid"):
            loss = msbreg_loss(z, t, t[0], form=form, pull=pull)
            (gradient,) = torch.autograd.grad(loss, z)
            assert loss.isfinite() and gradient.isfinite().all() and gradient.dtype == dtype
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("form", ["singular", "pairwise"])
def test_vmap_and_grad(form):
    z, t, g = (draw(3, *shape, seed=s).detach() for s, shape in enumerate([(2, 6, 4), (2, 6, 4), (6, 4)]))
    mapped = torch.vmap(torch.func.grad(lambda *each: msbreg_loss(*each, form=form)))(z, t, g)
    single = [torch.func.grad(lambda *each: msbreg_loss(*each, form=form))(*each) for each in zip(z, t, g, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(single), rtol=1e-10, atol=1e-12)


def test_compile_without_graph_breaks():
    z, t, g = draw(2, 6, 4), draw(2, 6, 4, seed=1).detach(), draw(6, 4, seed=2).detach()
    loss = unhooked("lossbook.methods.contrastive.msbreg").msbreg_loss
    agree(one_graph(loss)(z, t, g), msbreg_loss(z, t, g), (z,))


def test_weights_can_be_tensors():
    z, t, g = draw(2, 6, 4), draw(2, 6, 4, seed=1).detach(), draw(6, 4, seed=2).detach()
    weight = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(msbreg_loss(z, t, g, singular=weight), msbreg_loss(z, t, g, singular=0.5))


def test_bad_input_is_refused():
    z, g = torch.ones(2, 3, 4), torch.ones(3, 4)
    rejects(msbreg_loss, g, z, g, names="views")
    rejects(msbreg_loss, z.int(), z, g, names="views")
    assert "(2, 3, 5)" in rejects(msbreg_loss, z, torch.ones(2, 3, 5), g, names="targets")
    assert "(3, 4)" in rejects(msbreg_loss, z, z, torch.ones(2, 4), names="kicks")
    rejects(msbreg_loss, z, z, g, singular=-1.0, names="singular")
    rejects(msbreg_loss, z, z, g, brownian_weight=math.inf, names="brownian_weight")
    rejects(msbreg_loss, z, z, g, singular="strong", names="singular")
    rejects(msbreg_loss, z, z, g, pull="mean", names="pull")
    rejects(singular_isotropy, g, form="frobenius", names="form")
    rejects(singular_isotropy, z, names="embeddings")
    rejects(centroid_attraction, z, z, reduction="max", names="reduction")


test_on_any_device = on_any_device(
    partial(brownian, draw(2, 6, 4), draw(6, 4)),
    partial(centroid_attraction, draw(2, 6, 4), draw(3, 6, 4), pull="centroid"),
    partial(centroids, draw(2, 6, 4)),
    partial(msbreg_loss, draw(2, 6, 4), draw(3, 6, 4), draw(6, 4), singular=torch.tensor(0.1)),
    partial(singular_isotropy, draw(6, 4), form="pairwise"),
    partial(singular_isotropy, draw(4, 6), form="pairwise"),
)
