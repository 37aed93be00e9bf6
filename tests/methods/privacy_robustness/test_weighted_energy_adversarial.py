"""WEAT against PyTorch's own losses put together by hand, and what the derivation promises of energies."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, extreme, one_graph, pair, rejects, unhooked

from lossbook.methods.adversarial import trades
from lossbook.methods.divergences import kl_divergence
from lossbook.methods.privacy_robustness.weighted_energy_adversarial import (
    divergence_in_energies,
    energy_weights,
    joint_energy,
    marginal_energy,
    weat,
)

TARGETS = torch.tensor([0, 4, 2, 2, 1, 3, 0, 4])


def oracle_weat(z, other, y, weight, form):
    total = 0.0
    for row, against, target in zip(z, other, y, strict=True):
        energy = -torch.log(torch.exp(row).sum()).item()
        w = 1 / math.log(1 + math.exp(abs(energy)))
        p, q = torch.softmax(row, 0), torch.softmax(against, 0)
        asked = p if form == "natural" else q
        total = total + w * (-torch.log(asked[target]) + weight * (p * torch.log(p / q)).sum())
    return total / len(z)


@pytest.mark.parametrize("weight", [0.0, 1.0, 6.0])
def test_weat_with_equal_weights_is_trades(weight):
    z, other = pair(scale=3.0)
    ours = weat(z, other, TARGETS, weight=weight, weights=torch.ones(8, dtype=torch.float64))
    agree(ours, trades(z, other, TARGETS, weight=weight), (z, other))


@pytest.mark.parametrize("form", ["natural", "adversarial"])
@pytest.mark.parametrize("weight", [0.0, 6.0])
def test_weat_is_the_sum_by_hand(weight, form):
    z, other = pair(scale=3.0)
    agree(weat(z, other, TARGETS, weight=weight, form=form), oracle_weat(z, other, TARGETS, weight, form), (z, other))


def test_reductions():
    z, other = pair()
    each = weat(z, other, TARGETS, reduction="none")
    torch.testing.assert_close(weat(z, other, TARGETS), each.mean())
    torch.testing.assert_close(weat(z, other, TARGETS, reduction="sum"), each.sum())
    assert each.shape == (8,)


def test_energies_give_posterior_cross_entropy_and_divergence():
    z, other = pair(scale=4.0)
    joint, marginal = joint_energy(z, TARGETS), marginal_energy(z)
    agree(joint - marginal, F.cross_entropy(z, TARGETS, reduction="none"), (z,))
    torch.testing.assert_close((marginal - joint).exp(), z.softmax(1)[torch.arange(8), TARGETS])
    parts = divergence_in_energies(z, other)
    agree(parts[0] + parts[1], kl_divergence(z, other, reduction="none"), (z, other))
    assert all((part < 0).any() for part in divergence_in_energies(*pair(200, scale=4.0)))


def test_marginal_energy_lies_between_its_bounds():
    z, _ = pair(200, 7, scale=5.0)
    energy, top = marginal_energy(z), z.amax(1)
    assert (energy <= -top).all() and (energy >= -top - math.log(7)).all()
    torch.testing.assert_close(marginal_energy(torch.zeros(2, 7)), torch.full((2,), -math.log(7)))


def test_weights_are_bounded_even_and_largest_at_energy_zero():
    energies = torch.tensor([-1e4, -30.0, -3.0, -1.0, 0.0, 1.0, 3.0, 30.0, 1e4], dtype=torch.float64)
    weights = energy_weights(-energies[:, None])  # of one class: the energy is minus the logit
    torch.testing.assert_close(weights, weights.flip(0))
    assert (weights[:5].diff() > 0).all() and weights[4].item() == pytest.approx(1 / math.log(2))
    assert weights[0].item() * 1e4 == pytest.approx(1)
    assert energy_weights(torch.zeros(1, 10)).item() == pytest.approx(1 / math.log(11))
    assert not energy_weights(torch.zeros(1, 10, requires_grad=True)).requires_grad


def test_shift_changes_the_weights_and_nothing_else():
    z, other = pair()
    shift = torch.linspace(-5, 5, 8, dtype=torch.float64)[:, None]
    moved = z + shift
    torch.testing.assert_close(marginal_energy(moved), marginal_energy(z) - shift[:, 0])
    for loss in (trades, lambda *a: weat(*a, weights=torch.full((8,), 0.3, dtype=torch.float64))):
        agree(loss(moved, other, TARGETS), loss(z, other, TARGETS), (z, other))
    losses = [weat(logits, other, TARGETS, reduction="none") for logits in (moved, z)]
    assert (losses[0] - losses[1]).abs().max() > 0.01
    # And so no gradient ever sets the level of the logits.
    gradients = torch.autograd.grad(weat(z, other, TARGETS), (z, other))
    assert all(gradient.sum(1).abs().max() < 1e-14 for gradient in gradients)


def test_gradcheck_with_fixed_weights():
    fixed = energy_weights(pair()[0])
    for form in ("natural", "adversarial"):
        assert torch.autograd.gradcheck(
            lambda z, other, form=form: weat(z, other, TARGETS, form=form, weights=fixed), pair()
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row", "huge", "tiny"])
def test_extreme_logits_stay_finite(case, dtype):
    z, other = extreme(case, dtype)
    for loss in (weat, trades):
        value = loss(z, other, TARGETS)
        assert value.isfinite() and value >= -1e-6
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for gradient in torch.autograd.grad(value, (z, other)):
            assert gradient.isfinite().all() and gradient.dtype == dtype
    assert energy_weights(z).isfinite().all() and (energy_weights(z) > 0).all()


def test_vmap_over_logits_and_weights():
    z, other = torch.randn(2, 3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.0, 1.0, 6.0], dtype=torch.float64)
    for loss in (weat, trades):
        mapped = torch.vmap(lambda z, o, w, loss=loss: loss(z, o, TARGETS, weight=w))(z, other, weights)
        single = [loss(*row, TARGETS, weight=w.item()) for *row, w in zip(z, other, weights, strict=True)]
        torch.testing.assert_close(mapped, torch.stack(single), rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    z, other = pair()
    loss = unhooked("lossbook.methods.privacy_robustness.weighted_energy_adversarial").weat
    compiled = one_graph(loss, backward=True)
    agree(compiled(z, other, TARGETS), oracle_weat(z, other, TARGETS, 6.0, "natural"), (z, other))


def test_bad_input_is_refused():
    z, y = torch.ones(8, 5), TARGETS
    for loss in (weat, trades):
        assert "(8, 4)" in rejects(loss, z, z[:, :4], y, names="adversarial_logits")
        rejects(loss, z[0], z, y, names="logits")
        rejects(loss, z.int(), z, y, names="logits")
        rejects(loss, z, z, y[:3], names="targets")
        rejects(loss, z, z, y.double(), names="targets")
        assert "-1" in rejects(loss, z, z, y, weight=-1, names="weight")
        rejects(loss, z, z, y, weight=math.nan, names="weight")
        rejects(loss, z, z, y, reduction="max", names="reduction")
    rejects(weat, z, z, y, form="both", names="form")
    assert "(8,)" in rejects(weat, z, z, y, weights=torch.ones(3), names="weights")
    rejects(weat, z, z, y, weights=1.0, names="weights")
    rejects(joint_energy, z, y[:2], names="targets")
    rejects(marginal_energy, z[0], names="logits")
    rejects(energy_weights, None, names="logits")
    rejects(divergence_in_energies, z, z[:2], names="adversarial_logits")


test_on_any_device = on_any_device(
    partial(divergence_in_energies, *pair()),
    partial(energy_weights, pair()[0]),
    partial(joint_energy, pair()[0], TARGETS),
    partial(marginal_energy, pair()[0]),
    partial(weat, *pair(), TARGETS, form="adversarial", weights=torch.rand(8)),
)
