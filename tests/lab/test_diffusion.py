"""Schedules, samplers and denoisers: against the step-by-step process, exact denoisers, and runs alone."""

import math

import numpy as np
import pytest
import torch

from lossbook import lab
from lossbook.lab import diffusion, lora

SIGNAL = diffusion.noise_schedule(20)


def test_linear_schedule_is_the_product_of_its_steps():
    beta = np.linspace(1e-4, 0.02, 1000)
    expected = [math.prod(1 - beta[: t + 1]) for t in (0, 10, 999)]
    assert diffusion.noise_schedule(1000, "linear")[[0, 10, 999]].tolist() == pytest.approx(expected, rel=1e-10)
    assert math.log(diffusion.noise_schedule(100, "linear")[-1]) == pytest.approx(math.log(expected[-1]), rel=0.1)


def test_cosine_schedule():
    def share(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [share((t + 1) / 50) / share(0) for t in range(49)]
    signal = diffusion.noise_schedule(50)
    assert signal[:-1].tolist() == pytest.approx(expected, rel=1e-10)
    assert signal[-1].item() == pytest.approx(signal[-2].item() * 0.001, rel=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_schedules_fall_from_all_to_nothing(kind):
    for steps in (2, 10, 100):
        signal = diffusion.noise_schedule(steps, kind)
        assert len(signal) == steps and (signal > 0).all() and (signal.diff() < 0).all() and signal[-1] < 0.1


def test_noise_is_what_its_steps_add_up_to():
    # The moments after t steps of sqrt(1 - beta) z + sqrt(beta) noise, one by one.
    share, previous, mean, variance = SIGNAL.tolist(), 1.0, 1.0, 0.0
    for t in range(12):
        kept = share[t] / previous
        mean, variance, previous = mean * math.sqrt(kept), variance * kept + 1 - kept, share[t]
    inputs, noise = torch.ones(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    times = torch.tensor([11, 11])
    torch.testing.assert_close(diffusion.add_noise(inputs, noise, times, SIGNAL), inputs * mean)
    torch.testing.assert_close(diffusion.add_noise(noise, inputs, times, SIGNAL), inputs * math.sqrt(variance))


def test_error_map_and_loss_by_hand():
    draw = torch.Generator().manual_seed(0)
    inputs, noise = torch.randn(2, 6, 1, 4, 4, generator=draw)
    times, labels = torch.randint(0, 20, (6,), generator=draw), torch.randint(0, 3, (6,), generator=draw)
    denoiser = diffusion.Denoiser((1, 4, 4), steps=20, classes=3, width=16)
    maps = diffusion.error_map(denoiser, inputs, noise, times, SIGNAL, labels)
    for i in range(6):
        share = SIGNAL[times[i]].item()
        noisy = math.sqrt(share) * inputs[i] + math.sqrt(1 - share) * noise[i]
        expected = (denoiser(noisy[None], times[i : i + 1], labels[i : i + 1])[0] - noise[i]) ** 2
        torch.testing.assert_close(maps[i], expected)
    torch.testing.assert_close(diffusion.denoising_loss(denoiser, inputs, noise, times, SIGNAL, labels), maps.mean())


def gaussian(mean, spread):
    """The best denoiser of a Gaussian: the conditional mean of the noise."""

    def denoiser(noisy, times, labels):
        share = SIGNAL[times].view(-1, 1).to(noisy)
        return (1 - share).sqrt() * (noisy - share.sqrt() * mean) / (share * spread**2 + 1 - share)

    return denoiser


@pytest.mark.parametrize(("eta", "steps"), [(0.0, None), (1.0, None), (0.5, None), (0.0, 10)])
def test_samples_of_a_gaussian(eta, steps):
    new = diffusion.diffusion_sample(
        gaussian(1.5, 0.5), (20000, 1), SIGNAL, generator=torch.Generator().manual_seed(0), steps=steps, eta=eta
    )
    assert new.mean().item() == pytest.approx(1.5, abs=0.03)
    # Few steps leave the spread a little wrong, as for every discretisation.
    assert new.std().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_known_input_is_found_exactly(eta):
    known = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))

    def denoiser(noisy, times, labels):
        share = SIGNAL[times].view(-1, 1).to(noisy)
        return (noisy - share.sqrt() * known[labels]) / (1 - share).sqrt()

    labels = torch.tensor([2, 0, 1, 1])
    draw = torch.Generator().manual_seed(0)
    new = diffusion.diffusion_sample(denoiser, (4, 5), SIGNAL, generator=draw, labels=labels, eta=eta)
    torch.testing.assert_close(new, known[labels], rtol=1e-3, atol=1e-3)


def test_ancestral_step_has_the_posterior_mean_and_variance():
    # Two steps: after the first, the posterior of Ho et al., equation 7, given the predicted input.
    signal = torch.tensor([0.6, 0.2], dtype=torch.float64)
    seen = []

    def denoiser(noisy, times, labels):
        seen.append(noisy)
        return 0.3 * noisy

    diffusion.diffusion_sample(denoiser, (50000, 1), signal, generator=torch.Generator().manual_seed(0), eta=1.0)
    start, after = seen
    clean = (start - math.sqrt(0.8) * 0.3 * start) / math.sqrt(0.2)
    beta = 1 - 0.2 / 0.6
    mean = math.sqrt(0.6) * beta / 0.8 * clean + math.sqrt(1 - beta) * 0.4 / 0.8 * start
    rest = after - mean
    assert rest.mean().abs() < 0.01 and (rest * start).mean().abs() < 0.01
    assert rest.var().item() == pytest.approx(0.4 / 0.8 * beta, rel=0.03)


def test_limit_and_generator():
    def wild(noisy, times, labels):
        return 100 * noisy

    one, same = (
        diffusion.diffusion_sample(wild, (5, 2), SIGNAL, generator=torch.Generator().manual_seed(3), limit=1.0, steps=7)
        for _ in range(2)
    )
    assert torch.equal(one, same) and one.abs().max() <= 1


DENOISERS = {
    "residual": lambda **options: diffusion.Denoiser((1, 8, 8), steps=20, width=16, **options),
    "U-Net": lambda **options: diffusion.UNet((1, 8, 8), steps=20, channels=(8, 12, 16), **options),
}


@pytest.mark.parametrize("kind", list(DENOISERS))
@pytest.mark.parametrize("classes", [0, 3])
def test_denoisers_use_all_they_are_told(kind, classes):
    torch.manual_seed(0)
    denoiser = DENOISERS[kind](classes=classes)
    inputs, times = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 10, 19])
    labels = torch.tensor([0, 1, 2, 0]) if classes else None
    out = denoiser(inputs, times, labels)
    assert out.shape == inputs.shape
    torch.testing.assert_close(denoiser(inputs[1:2], times[1:2], labels if labels is None else labels[1:2]), out[1:2])
    assert not torch.allclose(denoiser(inputs, times.flip(0), labels), out)
    if classes:
        assert not torch.allclose(denoiser(inputs, times, labels.flip(0).roll(1)), out)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


@pytest.mark.parametrize("kind", list(DENOISERS))
def test_denoisers_learn_in_a_stack_what_they_learn_alone(kind):
    draw = torch.Generator().manual_seed(0)
    data = {"inputs": torch.randn(16, 1, 8, 8, generator=draw), "label": torch.randint(0, 3, (16,), generator=draw)}

    def noise(generator, steps):
        return {
            "noise": torch.randn(steps, 8, 1, 8, 8, generator=generator),
            "times": torch.randint(0, 20, (steps, 8), generator=generator),
        }

    def loss(model, batch, run):
        signal = SIGNAL.to(batch["noise"])
        return diffusion.denoising_loss(model, batch["inputs"], batch["noise"], batch["times"], signal, batch["label"])

    def fit(seeds):
        return lab.fit(
            lambda run: DENOISERS[kind](classes=3), loss, data, lab.grid(seed=seeds, learning_rate=[1e-2]),
            epochs=10, batch_size=8, noise=noise, device="cpu", progress=None, dtype=torch.float64,
        )  # fmt: skip

    both, alone = fit([0, 1]), fit([1])
    for name, value in alone.parameters.items():
        torch.testing.assert_close(both.parameters[name][1], value[0], rtol=1e-6, atol=1e-6)
    losses = both.history.query("run == 0")["loss"]
    assert losses.iloc[-4:].mean() < losses.iloc[:4].mean()


def test_bad_input_is_refused():
    draw = torch.Generator()
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 2, got 1"):
        diffusion.noise_schedule(1)
    with pytest.raises(ValueError, match=r"steps: expected 1 to 20 .* got 21"):
        diffusion.diffusion_sample(gaussian(0, 1), (2, 1), SIGNAL, generator=draw, steps=21)
    with pytest.raises(ValueError, match="eta: expected"):
        diffusion.diffusion_sample(gaussian(0, 1), (2, 1), SIGNAL, generator=draw, eta=1.5)
    with pytest.raises(ValueError, match="labels: expected 2 as in shape, got 3"):
        diffusion.diffusion_sample(
            gaussian(0, 1), (2, 1), SIGNAL, generator=draw, labels=torch.zeros(3, dtype=torch.long)
        )
    with pytest.raises(ValueError, match="labels: expected some, with 3 classes"):
        DENOISERS["residual"](classes=3)(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="shape: expected .* divisible by 4"):
        diffusion.UNet((1, 6, 6), steps=20, channels=(8, 8, 8))


INPUTS, NOISE = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([0, 5, 10, 19])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": torch.tensor([0, 5, 10, -1])}, "times: expected numbers from 0 to 19, got -1 to 10"),
        ({"times": torch.tensor([0, 5, 10, 20])}, "times: expected numbers from 0 to 19, got 0 to 20"),
        ({"times": TIMES.float()}, "times: expected whole numbers, got torch.float32"),
        ({"times": TIMES[:1]}, r"times: expected shape \(4,\), one for each input, got \(1,\)"),
        ({"noise": NOISE[:1]}, r"noise: expected shape \(4, 1, 8, 8\), that of the inputs, got \(1, 1, 8, 8\)"),
        ({"inputs": (255 * INPUTS).byte()}, "inputs: expected a floating-point tensor, got torch.uint8"),
    ],
)
def test_noise_of_other_inputs_and_times_is_refused(changes, message):
    arguments = {"inputs": INPUTS, "noise": NOISE, "times": TIMES, "signal": SIGNAL, **changes}
    with pytest.raises(ValueError, match=message):
        diffusion.add_noise(**arguments)
    for measure in (diffusion.error_map, diffusion.denoising_loss):
        with pytest.raises(ValueError, match=message):
            measure(lambda noisy, *_: noisy, **arguments)


def test_denoiser_that_answers_in_another_shape_is_refused():
    def blurred(noisy, times, labels):
        return noisy.mean((2, 3), keepdim=True)

    with pytest.raises(ValueError, match=r"denoiser: expected shape \(4, 1, 8, 8\), that of the inputs"):
        diffusion.denoising_loss(blurred, INPUTS, NOISE, TIMES, SIGNAL)
    with pytest.raises(ValueError, match=r"denoiser: expected shape \(2, 1, 8, 8\), that of the sample"):
        diffusion.diffusion_sample(blurred, (2, 1, 8, 8), SIGNAL, generator=torch.Generator())
    with pytest.raises(ValueError, match="limit: expected a positive, finite number, got -1"):
        diffusion.diffusion_sample(blurred, (2, 1, 8, 8), SIGNAL, generator=torch.Generator(), limit=-1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_times_and_labels_of_any_whole_dtype(dtype):
    labels, denoiser = torch.tensor([0, 1, 2, 0]), DENOISERS["residual"](classes=3)
    expected = diffusion.error_map(denoiser, INPUTS, NOISE, TIMES, SIGNAL, labels)
    found = diffusion.error_map(denoiser, INPUTS, NOISE, TIMES.to(dtype), SIGNAL, labels.to(dtype))
    torch.testing.assert_close(found, expected)


def test_under_vmap_a_time_outside_the_schedule_gives_nan():
    times = torch.stack([TIMES, TIMES - 1, TIMES + 1])
    found = torch.func.vmap(lambda t: diffusion.add_noise(INPUTS, NOISE, t, SIGNAL))(times)
    assert found.isnan().flatten(2).all(2).tolist() == [[False] * 4, [True] + [False] * 3, [False] * 3 + [True]]
    torch.testing.assert_close(found[0], diffusion.add_noise(INPUTS, NOISE, TIMES, SIGNAL))


def test_half_precision_has_the_noise_that_it_should():
    """In bfloat16 the first share of signal, 0.9981, and its complement would both be rounded: no noise would be left."""
    signal = diffusion.noise_schedule(100)
    inputs, noise, times = torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([0])
    found = diffusion.add_noise(inputs.bfloat16(), noise.bfloat16(), times, signal)
    expected = diffusion.add_noise(inputs, noise, times, signal)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("kind", list(DENOISERS))
def test_a_label_that_is_no_class_is_refused_or_nan(kind):
    denoiser = DENOISERS[kind](classes=3)
    for labels, got in (([0, 1, 2, 3], "0 to 3"), ([0, 1, 2, -1], "-1 to 2")):
        with pytest.raises(ValueError, match=f"labels: expected numbers from 0 to 2, got {got}"):
            denoiser(INPUTS, TIMES, torch.tensor(labels))
        found = torch.func.vmap(denoiser, in_dims=(None, None, 0))(INPUTS, TIMES, torch.tensor([labels]))
        assert found.isnan().flatten(2).all(2).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("kind", list(DENOISERS))
def test_denoisers_can_be_adapted_and_merged(kind):
    torch.manual_seed(0)
    denoiser = DENOISERS[kind](classes=3)
    adapted = lora.add_lora(denoiser, rank=2)
    inputs, times, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 10, 19]), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(adapted(inputs, times, labels), denoiser(inputs, times, labels))
    for name, value in adapted.named_parameters():
        if name.endswith("up.weight"):
            torch.nn.init.normal_(value, std=0.1)
    out = adapted(inputs, times, labels)
    assert not torch.allclose(out, denoiser(inputs, times, labels))
    torch.testing.assert_close(lora.merge_lora(adapted)(inputs, times, labels), out, rtol=1e-4, atol=1e-4)
