"""The two losses and the proxy attacker against PyTorch's cross-entropy, exact derivatives, and one another."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, one_graph, rejects, unhooked
from torch.autograd.functional import hessian

from lossbook.methods.privacy_robustness import MembershipAttacker, attacker_loss, mp_lora_loss, smp_lora_loss

DRAW = torch.Generator().manual_seed(0)


def logits(n=7, m=5, *, scale=1.0, dtype=torch.float64):
    both = torch.randn(n + m, 2, generator=DRAW, dtype=torch.float64) * scale
    return both[:n].to(dtype).requires_grad_(), both[n:].to(dtype).requires_grad_()


def scalars(loss=0.4, confusion=0.7, dtype=torch.float64):
    return tuple(torch.tensor(value, dtype=dtype, requires_grad=True) for value in (loss, confusion))


def test_attacker_loss_is_cross_entropy_of_a_balanced_batch():
    members, others = logits(6, 6)
    targets = torch.tensor([1] * 6 + [0] * 6)
    agree(attacker_loss(members, others), F.cross_entropy(torch.cat([members, others]), targets), (members, others))
    agree(attacker_loss(members), F.cross_entropy(members, torch.ones(6, dtype=torch.long)), (members,))


def test_attacker_loss_weighs_both_kinds_equally():
    members, others = logits(3, 90)
    weight = torch.tensor([1 / 90, 1 / 3], dtype=torch.float64)
    targets = torch.tensor([1] * 3 + [0] * 90)
    agree(attacker_loss(members, others), F.cross_entropy(torch.cat([members, others]), targets, weight=weight),
          (members, others))  # fmt: skip
    flat = torch.zeros(4, 2)
    assert attacker_loss(flat, flat[:1]).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("weight", [0.0, 0.3, 10.0])
def test_losses_are_the_official_lines(weight):
    loss, confusion = scalars()
    agree(mp_lora_loss(loss, confusion, weight=weight), loss - weight * confusion + 0 * confusion, (loss, confusion))
    official = loss / (1.0 + weight * confusion + 1e-5)
    agree(smp_lora_loss(loss, confusion, weight=weight), official, (loss, confusion))
    agree(smp_lora_loss(loss, confusion, weight=weight, offset=0.5, epsilon=0.1), loss / (0.6 + weight * confusion),
          (loss, confusion))  # fmt: skip


def test_limits_and_bounds():
    loss, confusion = scalars()
    assert smp_lora_loss(loss, confusion, weight=0.0).item() == pytest.approx(0.4 / (1 + 1e-5))
    for big in (1.0, 1e6, 1e30):
        value = smp_lora_loss(loss, torch.tensor(big, dtype=torch.float64)).item()
        assert 0 <= value <= 0.4
        assert mp_lora_loss(loss, torch.tensor(big, dtype=torch.float64)).item() == pytest.approx(0.4 - big)


def problem(x):
    """A smooth loss and an attacker's loss of the same parameters."""
    return (x.sin() + x.square() / 3).mean().square() + 0.2, F.softplus((x * x.roll(1)).sum())


def test_second_derivatives_are_those_of_the_derivation():
    alpha, beta, delta = 2.0, 0.7, 1e-5
    x = torch.randn(4, generator=DRAW, dtype=torch.float64)

    def ratio(x):
        return smp_lora_loss(*problem(x), weight=alpha, offset=beta, epsilon=delta)

    (loss, confusion), down = problem(x), beta + alpha * problem(x)[1] + delta
    slope_loss, slope_attack = (torch.func.grad(lambda x, i=i: problem(x)[i])(x) for i in (0, 1))
    slope = (slope_loss - alpha * loss / down * slope_attack) / down
    torch.testing.assert_close(torch.func.grad(ratio)(x), slope)
    bend_loss, bend_attack = (hessian(lambda x, i=i: problem(x)[i], x) for i in (0, 1))
    cross = torch.outer(slope_attack, slope) + torch.outer(slope, slope_attack)
    expected = (bend_loss - alpha * loss / down * bend_attack - alpha * cross) / down
    torch.testing.assert_close(hessian(ratio, x), expected)
    assert confusion > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_attacker_in_half_precision_computes_in_single(dtype):
    attacker, maps = MembershipAttacker(12, hidden=(8, 6)).to(dtype), torch.rand(5, 3, 4, generator=DRAW)
    kept = attacker.draw(DRAW, 5)
    single = copy.deepcopy(attacker).float()
    for inputs in (maps, maps.to(dtype), maps.double()):
        found = attacker(inputs, kept)
        assert found.dtype == (torch.float64 if inputs.dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            found.float(), single(inputs.to(dtype).float() if inputs.dtype == dtype else maps, kept)
        )
    found.sum().backward()
    assert all(value.grad.dtype == dtype for value in attacker.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_extremes_stay_finite(dtype, scale):
    members, others = logits(scale=scale, dtype=dtype)
    confusion = attacker_loss(members, others)
    assert confusion.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss = torch.tensor(1e4, dtype=dtype, requires_grad=True)
    for value in (mp_lora_loss(loss, confusion), smp_lora_loss(loss, confusion, offset=0.0)):
        gradients = torch.autograd.grad(value, (loss, members, others), retain_graph=True)
        assert value.isfinite() and all(g.isfinite().all() for g in gradients)


def test_perfect_attacker_and_no_offset():
    loss, confusion = scalars(0.4, 0.0, torch.float32)
    value = smp_lora_loss(loss, confusion, offset=0.0)
    gradients = torch.autograd.grad(value, (loss, confusion))
    assert value.item() == pytest.approx(4e4, rel=1e-4) and all(g.isfinite() for g in gradients)


def test_attacker_network():
    torch.manual_seed(0)
    attacker = MembershipAttacker(48)
    assert [tuple(layer.weight.shape) for layer in attacker.layers] == [(512, 48), (256, 512), (2, 256)]
    maps = torch.rand(5, 3, 4, 4)
    plain = torch.nn.Sequential(torch.nn.Flatten(), attacker.layers[0], torch.nn.ReLU(), attacker.layers[1],
                                torch.nn.ReLU(), attacker.layers[2])  # fmt: skip
    torch.testing.assert_close(attacker(maps), plain(maps))
    everything = [torch.ones(5, width, dtype=torch.bool) for width in (512, 256)]
    kept = attacker.draw(torch.Generator().manual_seed(0), 5)
    assert not torch.allclose(attacker(maps, kept), attacker(maps))
    assert [mask.float().mean().item() for mask in kept] == pytest.approx([0.5, 0.5], abs=0.07)
    whole = MembershipAttacker(48, dropout=0.0)
    torch.testing.assert_close(whole(maps, everything), whole(maps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attacker_in_half_precision_of_layers_maps_or_autocast_computes_in_single(dtype):
    attacker, maps = MembershipAttacker(48), torch.rand(5, 48)
    half, maps = copy.deepcopy(attacker).to(dtype), maps.to(dtype)
    kept = attacker.draw(torch.Generator().manual_seed(0), 5)
    expected = copy.deepcopy(half).float()(maps.float(), kept)
    for model, inputs in ((half, maps), (half, maps.float()), (copy.deepcopy(half).float(), maps)):
        assert torch.equal(model(inputs, kept), expected) and expected.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(inputs, kept), expected)
    torch.testing.assert_close(copy.deepcopy(half).double()(maps, kept), expected.double(), rtol=1e-5, atol=1e-6)
    attacker_loss(half(maps)).backward()
    assert all(value.grad.dtype == dtype for value in half.parameters())


def test_masks_are_dropout():
    """Given the masks that PyTorch drew, the outputs are PyTorch's."""
    attacker = MembershipAttacker(6, hidden=(40,), dropout=0.3)
    maps = torch.rand(4, 6)
    hidden = attacker.layers[0](maps).relu()
    dropped = F.dropout(torch.ones_like(hidden), 0.3)
    torch.testing.assert_close(attacker(maps, [dropped > 0]), attacker.layers[1](hidden * dropped))


def test_gradient_flows_through_the_attacker_into_the_maps():
    attacker = MembershipAttacker(6, hidden=(8,))
    maps = torch.rand(4, 6, requires_grad=True)
    value = smp_lora_loss(maps.mean(), attacker_loss(attacker(maps)))
    (gradient,) = torch.autograd.grad(value, maps)
    (plain,) = torch.autograd.grad(maps.mean(), maps)
    assert gradient.isfinite().all() and not torch.allclose(gradient, plain)


def test_vmap():
    members = torch.randn(3, 6, 2, generator=DRAW, dtype=torch.float64)
    weight = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)

    def value(logits, weight):
        confusion = attacker_loss(logits[:3], logits[3:])
        return smp_lora_loss(confusion**2, confusion, weight=weight) + mp_lora_loss(confusion, confusion, weight=weight)

    mapped = torch.vmap(value)(members, weight)
    torch.testing.assert_close(mapped, torch.stack([value(a, b) for a, b in zip(members, weight, strict=True)]))


def test_compile_without_graph_breaks():
    module = unhooked("lossbook.methods.privacy_robustness.smp_lora")
    for name, inputs in (("attacker_loss", logits()), ("mp_lora_loss", scalars()), ("smp_lora_loss", scalars())):
        plain = getattr(module, name)
        agree(one_graph(plain)(*inputs), plain(*inputs), inputs)


def test_bad_input_is_refused():
    good, one = torch.zeros(3, 2), torch.tensor(1.0)
    assert "got (3, 3)" in rejects(attacker_loss, torch.zeros(3, 3), names="member_logits")
    rejects(attacker_loss, good, torch.zeros(3), names="other_logits")
    rejects(attacker_loss, good.int(), names="member_logits")
    for loss in (mp_lora_loss, smp_lora_loss):
        rejects(loss, torch.ones(2), one, names="denoising_loss")
        rejects(loss, one, torch.ones(1), names="attacker_loss")
        rejects(loss, one, one, weight=-1.0, names="weight")
    rejects(smp_lora_loss, one, one, offset=-0.1, names="offset")
    rejects(smp_lora_loss, one, one, epsilon=0.0, names="epsilon")
    rejects(MembershipAttacker, 0, names="inputs")
    rejects(MembershipAttacker, 4, hidden=(0,), names="hidden")
    rejects(MembershipAttacker, 4, dropout=1.0, names="dropout")


ATTACKER = MembershipAttacker(6, hidden=(4,))
test_on_any_device = on_any_device(
    partial(ATTACKER, torch.rand(5, 2, 3), [torch.rand(5, 4) > 0.5]),
    partial(attacker_loss, *logits()),
    partial(mp_lora_loss, *scalars(), weight=torch.tensor(0.5)),
    partial(smp_lora_loss, *scalars(), weight=torch.tensor(0.5), offset=torch.tensor(1.0)),
)
