"""SmoothInv against PyTorch's own optimiser and projection, SciPy's normal distribution, and what the derivation promises."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from devices import on_any_device, only_on_cpu
from support import agree, one_graph, rejects, unhooked
from torch import nn

from lossbook.methods.privacy_robustness import (
    diffusion_step,
    mask_inversion,
    smooth_inversion,
    smoothed_cross_entropy,
    smoothed_gradient_bound,
    smoothed_logits,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def images(n=3, support=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, support, 1, 4, 4, generator=generator, dtype=torch.float64)


def network(seed=0, classes=4):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, classes)]
    return nn.Sequential(*layers).double().eval()


ALPHAS = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)


# The smoothed classifier ---------------------------------------------------------------------------


def test_copies_of_a_picture_come_one_after_the_other():
    model, x, noise = network(), images()[:, 0].requires_grad_(), draw(3, 5, 1, 4, 4)
    sigma = torch.tensor([0.1, 0.0, 0.7], dtype=torch.float64)
    ours = smoothed_logits(model, x, noise, sigma=sigma)
    loop = torch.stack(
        [torch.stack([model((x[i] + sigma[i] * noise[i, j])[None])[0] for j in range(5)]) for i in range(3)]
    )
    agree(ours, loop, (x,))
    torch.testing.assert_close(ours[1], model(x[1:2]).expand(5, -1))


def test_without_noise_it_is_the_classifier():
    model, x = network(), images()[:, 0]
    torch.testing.assert_close(smoothed_logits(model, x, draw(3, 1, 1, 4, 4), sigma=0.0)[:, 0], model(x))


def test_denoiser_sees_the_diffused_picture_and_passes_gradients():
    model, x, noise = network(), images()[:, 0].requires_grad_(), draw(3, 5, 1, 4, 4)
    step = diffusion_step(ALPHAS, 0.25)
    kept = ALPHAS[step]

    def denoiser(diffused, t):
        assert t == step
        return diffused / kept.sqrt() * 0.9

    ours = smoothed_logits(model, x, noise, sigma=0.25, denoiser=denoiser, alphas_cumprod=ALPHAS)
    # In the units of [0, 1] the copies carry half the diffusion's noise-to-signal ratio.
    seen = 0.9 * (2 * (x[:, None] + ((1 - kept) / kept).sqrt() / 2 * noise) - 1)
    agree(ours, model(((seen.clamp(-1, 1) + 1) / 2).flatten(0, 1)).unflatten(0, (3, 5)), (x,))


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.12, 0.25, 0.5, 2.0])
def test_diffusion_step_is_the_first_with_enough_noise(sigma):
    t = 1
    while math.sqrt((1 - ALPHAS[t]) / ALPHAS[t]) < 2 * sigma:
        t += 1
    assert diffusion_step(ALPHAS, sigma) == t


# The loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_cross_entropy_of_the_mean_probability(reduction):
    z, targets = (3 * draw(4, 7, 5)).requires_grad_(), torch.tensor([0, 4, 2, 2])
    oracle = F.nll_loss(z.softmax(-1).mean(1).clamp(min=1e-20).log(), targets, reduction=reduction)
    agree(smoothed_cross_entropy(z, targets, reduction=reduction), oracle, (z,))


def test_other_averages():
    z, targets = draw(4, 7, 5).requires_grad_(), torch.tensor([0, 4, 2, 2])
    logs = F.cross_entropy(z.flatten(0, 1), targets.repeat_interleave(7), reduction="none").view(4, 7).mean(1)
    agree(smoothed_cross_entropy(z, targets, average="log-probabilities", reduction="none"), logs, (z,))
    agree(smoothed_cross_entropy(z, targets, average="logits"), F.cross_entropy(z.mean(1), targets), (z,))
    assert (smoothed_cross_entropy(z, targets, reduction="none") <= logs + 1e-12).all()


def test_gradcheck():
    z, targets = draw(2, 3, 4).requires_grad_(), torch.tensor([1, 3])
    assert torch.autograd.gradcheck(lambda z: smoothed_cross_entropy(z, targets, floor=0.0), (z,))


def test_gradient_is_dominated_by_the_copies_near_the_target():
    z = draw(1, 6, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(smoothed_cross_entropy(z, torch.tensor([1])), z)
    p = z.detach()[0].softmax(-1)
    weights = p[:, 1] / p[:, 1].sum()
    torch.testing.assert_close(gradient[0], weights[:, None] * (p - F.one_hot(torch.tensor(1), 3)))


def test_one_copy_makes_all_averages_equal():
    z, targets = draw(4, 1, 5), torch.tensor([0, 4, 2, 2])
    for average in ("probabilities", "log-probabilities", "logits"):
        loss = smoothed_cross_entropy(z, targets, average=average)
        torch.testing.assert_close(loss, F.cross_entropy(z[:, 0], targets))


def test_below_the_floor_there_is_no_gradient_and_without_it_there_is():
    z = torch.tensor([[[60.0, 0.0], [70.0, 0.0]]], requires_grad=True)
    at_floor = smoothed_cross_entropy(z, torch.tensor([1]))
    assert at_floor.item() == pytest.approx(20 * math.log(10))
    assert torch.autograd.grad(at_floor, z)[0].abs().max() == 0
    exact = smoothed_cross_entropy(z, torch.tensor([1]), floor=0.0)
    assert exact.item() == pytest.approx(60 + math.log(2), rel=1e-4)
    assert torch.autograd.grad(exact, z)[0].abs().max() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("average", ["probabilities", "log-probabilities", "logits"])
def test_extreme_logits_stay_finite(average, scale, dtype):
    z = (scale * draw(3, 4, 5)).to(dtype).requires_grad_()
    loss = smoothed_cross_entropy(z, torch.tensor([0, 1, 4]), average=average)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite() and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.isfinite().all() and gradient.dtype == dtype


def test_loss_under_vmap_and_compile():
    z, targets = draw(3, 2, 4, 5), torch.tensor([[0, 1], [2, 3], [4, 4]])
    mapped = torch.vmap(smoothed_cross_entropy)(z, targets)
    torch.testing.assert_close(mapped, torch.stack(list(map(smoothed_cross_entropy, z, targets))))
    plain = unhooked("lossbook.methods.privacy_robustness.smoothinv")
    model, x, noise = network(), images()[:, 0].requires_grad_(), draw(3, 5, 1, 4, 4)
    compiled = one_graph(plain.smoothed_logits)
    agree(compiled(model, x, noise, sigma=0.3), smoothed_logits(model, x, noise, sigma=0.3), (x,))
    logits, wanted = draw(3, 5, 4).requires_grad_(), torch.tensor([0, 1, 2])
    compiled = one_graph(plain.smoothed_cross_entropy)
    agree(compiled(logits, wanted), smoothed_cross_entropy(logits, wanted), (logits,))


# The bound ------------------------------------------------------------------------------------------


def test_bound_is_scipys():
    p = torch.linspace(1e-6, 1 - 1e-6, 99, dtype=torch.float64)
    expected = scipy.stats.norm.pdf(scipy.stats.norm.ppf(p.numpy())) / 0.3
    torch.testing.assert_close(smoothed_gradient_bound(p, sigma=0.3), torch.from_numpy(expected))
    ends = smoothed_gradient_bound(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), sigma=0.3)
    torch.testing.assert_close(ends, torch.tensor([0, 1 / (0.3 * math.sqrt(2 * math.pi)), 0], dtype=torch.float64))


def test_half_spaces_attain_the_bound():
    w, x, sigma = draw(6), draw(6, seed=1).requires_grad_(), 0.4
    g = torch.special.ndtr((w @ x - 0.2) / (sigma * w.norm()))
    (gradient,) = torch.autograd.grad(g, x)
    assert gradient.norm().item() == pytest.approx(smoothed_gradient_bound(g.detach(), sigma=sigma).item())


def test_smoothed_classifier_of_a_half_space_by_sampling():
    # A very steep softmax over two classes is the indicator of a half-space.
    w, x, sigma, samples = draw(6), draw(1, 6, seed=1), 0.4, 200_000
    noise = draw(1, samples, 6, seed=2)
    z = smoothed_logits(lambda v: 1e6 * torch.stack([v @ w, torch.zeros(len(v)).double()], 1), x, noise, sigma=sigma)
    exact = scipy.stats.norm.cdf((x @ w / (sigma * w.norm())).item())
    assert z.softmax(-1).mean(1)[0, 0].item() == pytest.approx(exact, abs=5 / math.sqrt(samples) / 2)


# The inversion --------------------------------------------------------------------------------------


def reference(model, x, target, *, radius, sigma, samples, steps, halve_every, generator):
    """One problem by PyTorch's SGD, schedule and renorm."""
    delta = torch.zeros_like(x).requires_grad_()
    optimizer = torch.optim.SGD([delta], lr=radius / 20, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, halve_every, gamma=0.5)
    losses = []
    for _ in range(steps):
        noise = torch.randn(1, samples, *x.shape[1:], generator=generator, dtype=x.dtype)
        p = model(x + delta + sigma * noise[0]).softmax(-1).mean(0, keepdim=True)
        loss = F.nll_loss(p.clamp(min=1e-20).log(), torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss, delta)
        delta.grad = gradient / gradient.norm()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            delta.copy_((x + delta).clamp(0, 1) - x)
            delta.copy_(delta.renorm(2, 0, radius))
        losses.append(loss.item())
    return delta.detach(), losses


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_is_sgd_with_momentum_and_two_projections(sigma):
    model, x = network(), images(1)
    options = {"radius": 0.8, "sigma": sigma, "samples": 6, "steps": 40, "halve_every": 15}
    ours = smooth_inversion(model, x, torch.tensor([2]), **options, generator=torch.Generator().manual_seed(3))
    delta, losses = reference(model, x[0], 2, **options, generator=torch.Generator().manual_seed(3))
    # PyTorch's renorm adds 1e-7 to every length.
    torch.testing.assert_close(ours.perturbation, delta, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.loss[:, 0], torch.tensor(losses, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_problems_do_not_touch_each_other():
    model, x, targets = network(), images(3), torch.tensor([0, 1, 2])
    radius = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    sigma = torch.zeros(3, dtype=torch.float64)
    step = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    together = smooth_inversion(model, x, targets, radius=radius, sigma=sigma, samples=1, steps=30, step_size=step)
    for i in range(3):
        alone = smooth_inversion(
            model,
            x[i : i + 1],
            targets[i : i + 1],
            radius=radius[i].item(),
            sigma=0.0,
            samples=1,
            steps=30,
            step_size=step[i].item(),
        )
        torch.testing.assert_close(together.perturbation[i], alone.perturbation[0], rtol=1e-9, atol=1e-9)


def test_stays_in_ball_and_box_and_lowers_the_loss():
    model, x = network(), images(4)
    found = smooth_inversion(model, x, torch.tensor([0, 1, 2, 3]), radius=0.7, samples=8, steps=60)
    assert (found.perturbation.flatten(1).norm(dim=1) <= 0.7 + 1e-12).all()
    moved = x[:, 0] + found.perturbation
    assert moved.min() >= -1e-12 and moved.max() <= 1 + 1e-12
    assert (found.loss[-10:].mean(0) < found.loss[0]).all()
    assert not found.perturbation.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_displacement_is_bounded_by_steps_and_momentum(momentum):
    x = torch.full((1, 1, 16), 0.5, dtype=torch.float64)
    for steps in (1, 5, 20):
        found = smooth_inversion(
            network(), x, torch.tensor([1]), radius=100.0, step_size=0.01, momentum=momentum, steps=steps, samples=4
        )
        assert found.perturbation.norm() <= steps * 0.01 / (1 - momentum) + 1e-12


def test_smoothing_does_not_turn_the_gradient_of_two_linear_classes():
    x = torch.full((1, 1, 16), 0.5, dtype=torch.float64)
    w = draw(16)

    def model(v):
        return torch.stack([v @ w, torch.zeros_like(v @ w)], 1)

    for sigma in (0.0, 0.1, 1.0):
        found = smooth_inversion(model, x, torch.tensor([0]), radius=0.3, sigma=sigma, samples=5, steps=3)
        assert F.cosine_similarity(found.perturbation[0], w, dim=0).item() == pytest.approx(1)


def test_without_gradient_nothing_moves():
    def model(v):
        return torch.stack([80 + v.sum(1), v.sum(1)], 1)  # never closer to class 1

    found = smooth_inversion(model, torch.rand(2, 1, 5), torch.tensor([1, 0]), steps=5, samples=3)
    assert found.perturbation.abs().max() == 0 and found.loss.isfinite().all()


def test_the_size_of_a_gradient_does_not_matter_and_none_that_is_not_finite_is_followed():
    x = torch.full((1, 1, 3), 0.5)

    def model(slope):
        return lambda v: torch.stack([slope * v[:, 0], 0 * v[:, 0]], 1)

    options = {"radius": 0.2, "sigma": 0.0, "samples": 1, "floor": 0.0}
    moved = [
        # The square of a length of 1e30 is beyond float32.
        smooth_inversion(model(slope), x, torch.tensor([1]), **options, steps=3).perturbation
        for slope in (1.0, 1e30)
    ]
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0].any()
    seen = []

    def once_bad(v):
        seen.append(len(seen))
        return model(math.nan if len(seen) == 2 else 1.0)(v)

    found = smooth_inversion(once_bad, x, torch.tensor([1]), **options, steps=4)
    assert found.loss.isnan().tolist() == [[False], [True], [False], [False]]
    assert found.perturbation.isfinite().all() and found.perturbation.any()


@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_changes_nothing(made_inside):
    model, targets = network(), torch.tensor([0, 1])
    x, pictures = images(2), images(2, support=2)
    calls = (
        lambda x: smooth_inversion(model, x, targets, samples=2, steps=4, generator=torch.Generator().manual_seed(0)),
        lambda x: mask_inversion(model, x, targets, steps=4, generator=torch.Generator().manual_seed(0)),
    )
    for call, inputs in zip(calls, (x, pictures), strict=True):
        expected = call(inputs)
        with torch.inference_mode():
            found = call(inputs.clone() if made_inside else inputs)
        torch.testing.assert_close(tuple(found), tuple(expected))


def test_same_generator_same_trigger():
    model, x = network(), images(2)
    runs = [
        smooth_inversion(
            model, x, torch.tensor([0, 1]), steps=5, samples=3, generator=torch.Generator().manual_seed(seed)
        ).perturbation
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_equal_support_images_are_one_image():
    model, x = network(), images(2)
    options = {"radius": 0.5, "sigma": 0.0, "samples": 1, "steps": 20}
    once = smooth_inversion(model, x, torch.tensor([0, 1]), **options)
    thrice = smooth_inversion(model, x.expand(2, 3, 1, 4, 4), torch.tensor([0, 1]), **options)
    torch.testing.assert_close(once.perturbation, thrice.perturbation, rtol=1e-6, atol=1e-6)


def test_inversion_through_a_denoiser():
    model, x = network(), images(2)
    targets = torch.tensor([0, 1])
    kept = ALPHAS[diffusion_step(ALPHAS, 0.12)]
    found = smooth_inversion(
        model,
        x,
        targets,
        radius=0.6,
        sigma=0.12,
        samples=4,
        steps=30,
        denoiser=lambda diffused, t: diffused / kept.sqrt(),
        alphas_cumprod=ALPHAS,
        generator=torch.Generator().manual_seed(0),
    )
    assert found.perturbation.abs().max() > 0
    assert (found.loss[-5:].mean(0) < found.loss[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    x = images(2).to(dtype)
    found = smooth_inversion(network().float(), x, torch.tensor([0, 1]), steps=4, samples=2)
    assert found.perturbation.dtype == torch.float32 and found.perturbation.isfinite().all()
    found = mask_inversion(network().float(), x, torch.tensor([0, 1]), steps=4)
    assert found.mask.dtype == torch.float32 and found.pattern.isfinite().all()


# The baseline with a mask -----------------------------------------------------------------------------


def test_mask_inversion_is_adam_with_a_scheduled_penalty():
    model, x, steps = network(), images(1, support=3), 60
    options = {"penalty": 0.02, "threshold": 0.6, "patience": 3, "factor": 1.4}
    ours = mask_inversion(
        model, x, torch.tensor([3]), steps=steps, generator=torch.Generator().manual_seed(5), **options
    )
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([a, b], lr=0.1, betas=(0.5, 0.9))
    weight, above, below, best, losses = 0.02, 0, 0, None, []
    for _ in range(steps):
        m, p = a.tanh() / 2 + 0.5, b.tanh() / 2 + 0.5
        logits = model((1 - m) * x[0] + m * p)
        loss = F.cross_entropy(logits, torch.full((3,), 3)) + weight * m.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (logits.argmax(1) == 3).double().mean() >= 0.6:
            above, below = above + 1, 0
            if best is None or m.sum() < best[0].sum():
                best = m.detach(), p.detach()
        else:
            above, below = 0, below + 1
        if above == 3:
            weight, above = weight * 1.4, 0
        if below == 3:
            weight, below = weight / 1.4**1.5, 0
    torch.testing.assert_close(ours.loss[:, 0], torch.tensor(losses, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    mask, pattern = best or (m.detach(), p.detach())  # the last trigger where none reached the threshold
    torch.testing.assert_close(ours.mask, mask, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.pattern, pattern, rtol=1e-8, atol=1e-8)


def test_mask_finds_the_one_pixel_that_matters():
    def model(v):
        return torch.stack([20 * v.flatten(1)[:, 5] - 10, torch.zeros(len(v), dtype=v.dtype)], 1)

    found = mask_inversion(model, 0.3 * images(2, support=4), torch.zeros(2, dtype=torch.long), penalty=0.05, steps=300)
    assert (found.mask.flatten(1).argmax(1) == 5).all()
    assert (found.mask.flatten(1).sum(1) < 2).all()
    assert (found.pattern.flatten(1)[:, 5] > 0.5).all()
    assert all(value.min() >= 0 and value.max() <= 1 for value in (found.mask, found.pattern))


# Errors ---------------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    model, x, targets = network(), images(3), torch.tensor([0, 1, 2])
    noise = draw(3, 5, 1, 4, 4)
    rejects(smoothed_logits, model, x[:, 0].long(), noise, names="inputs")
    assert "(3, samples, 1, 4, 4)" in rejects(smoothed_logits, model, x[:, 0], noise[:2], names="noise")
    rejects(smoothed_logits, model, x[:, 0], noise, sigma=-0.1, names="sigma")
    rejects(smoothed_logits, model, x[:, 0], noise, sigma=torch.ones(2), names="sigma")
    rejects(smoothed_logits, model, x[:, 0], noise, denoiser=lambda v, t: v, names="denoiser")
    rejects(diffusion_step, ALPHAS[:1], 0.1, names="alphas_cumprod")
    rejects(diffusion_step, ALPHAS, 50.0, names="sigma")
    z = draw(3, 5, 4)
    rejects(smoothed_cross_entropy, z[0], targets, names="logits")
    rejects(smoothed_cross_entropy, z, targets[:2], names="targets")
    rejects(smoothed_cross_entropy, z, targets.double(), names="targets")
    rejects(smoothed_cross_entropy, z, targets, average="mean", names="average")
    rejects(smoothed_cross_entropy, z, targets, floor=1.0, names="floor")
    rejects(smoothed_cross_entropy, z, targets, reduction="max", names="reduction")
    rejects(smoothed_gradient_bound, z, sigma=0.0, names="sigma")
    rejects(smooth_inversion, model, x[:, 0, 0, 0, 0], targets, names="images")
    rejects(smooth_inversion, model, x, targets[:2], names="targets")
    for name, value in [
        ("radius", 0.0),
        ("radius", torch.ones(2)),
        ("sigma", -1.0),
        ("samples", 0),
        ("steps", 0),
        ("step_size", 0.0),
        ("momentum", 1.0),
        ("halve_every", 0),
        ("average", "median"),
    ]:
        rejects(smooth_inversion, model, x, targets, **{name: value}, names=name)
    rejects(mask_inversion, model, x[:, :, 0], targets, names="images")
    for name, value in [
        ("penalty", -1.0),
        ("steps", 0),
        ("learning_rate", 0.0),
        ("threshold", 1.5),
        ("patience", 0),
        ("factor", 0.5),
    ]:
        rejects(mask_inversion, model, x, targets, **{name: value}, names=name)


def test_sampled_gradient_of_a_finite_sample_may_exceed_the_bound():
    # A single noisy copy of a steep classifier: the bound is on the expectation.
    w = torch.tensor([50.0], dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    z = smoothed_logits(lambda v: torch.stack([v @ w, torch.zeros_like(v @ w)], 1), x, torch.zeros(1, 1, 1).double())
    p = z.softmax(-1).mean(1)[0, 0]
    (gradient,) = torch.autograd.grad(p, x)
    assert gradient.norm() > 1 / (0.25 * np.sqrt(2 * np.pi))


TARGETS = torch.tensor([0, 1, 2])
TOWARDS = {"denoiser": lambda diffused, step: diffused, "alphas_cumprod": ALPHAS}
test_on_any_device = on_any_device(
    only_on_cpu("the step is a Python number", diffusion_step, ALPHAS, 0.25),
    partial(mask_inversion, network(), images(support=2), TARGETS, steps=3),
    partial(smooth_inversion, network(), images(support=2), TARGETS, radius=torch.ones(3), samples=2, steps=3),
    only_on_cpu(
        "the denoiser's step is a Python number", smooth_inversion, network(), images(), TARGETS, steps=1, **TOWARDS
    ),
    partial(smoothed_cross_entropy, draw(3, 5, 4), TARGETS),
    partial(smoothed_gradient_bound, torch.rand(3)),
    partial(smoothed_logits, network(), images()[:, 0], draw(3, 5, 1, 4, 4), sigma=torch.rand(3)),
)
