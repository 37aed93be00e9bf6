r"""Denoising diffusion: noise schedules, the denoising error, two samplers, two small denoisers.

A schedule is the tensor of the shares of signal $\bar\alpha_t$ that are left at step $t=0,\dots,T-1$. A denoiser is
called with noisy inputs, times and labels, and returns the noise that it sees in the inputs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from lossbook.lab._validate import class_numbers, has_shape, number, real, spoilt, whole

__all__ = ["Denoiser", "UNet", "add_noise", "denoising_loss", "diffusion_sample", "error_map", "noise_schedule"]

Predict = Callable[..., Tensor]


def noise_schedule(steps: int, kind: Literal["cosine", "linear"] = "cosine") -> Float[Tensor, " steps"]:
    r"""Shares of signal $\bar\alpha_t=\prod_{s\le t}(1-\beta_s)$, in float64.

    "linear" has $\beta_t$ from $10^{-4}$ to $0.02$ for a thousand steps, scaled for other numbers so that as little
    signal is left. "cosine" has $\bar\alpha_t=f(t+1)/f(0)$ with
    $f(t)=\cos^2\bigl(\tfrac{t/T+0.008}{1.008}\tfrac\pi2\bigr)$. In both, $\beta_t\le0.999$.

    Args:
        steps: $T$.
        kind: "cosine" or "linear".

    Raises:
        ValueError: for fewer than two steps or another kind.

    Source:
        Ho, Jain and Abbeel (2020), arXiv:2006.11239; Nichol and Dhariwal (2021), arXiv:2102.09672, equation 17.

    Examples:
        >>> signal = diffusion.noise_schedule(100)
        >>> signal.shape, round(signal[0].item(), 2), round(signal[-1].item(), 2)
        (torch.Size([100]), 1.0, 0.0)
    """
    steps = whole("steps", steps, least=2)
    if kind == "linear":
        beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    elif kind == "cosine":
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        share = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
        beta = 1 - share[1:] / share[:-1]
    else:
        raise ValueError(f"kind: expected 'cosine' or 'linear', got {kind!r}")
    return (1 - beta.clamp(max=0.999)).cumprod(0)


def add_noise(
    inputs: Float[Tensor, "n *shape"],
    noise: Float[Tensor, "n *shape"],
    times: Integer[Tensor, " n"],
    signal: Float[Tensor, " steps"],
) -> Float[Tensor, "n *shape"]:
    r"""Inputs as they are at their times, $z_t=\sqrt{\bar\alpha_t}\,z_0+\sqrt{1-\bar\alpha_t}\,\epsilon$.

    Both factors are computed in the precision of the schedule. Under `vmap`, where nothing can be raised, an input
    whose time the schedule does not have becomes NaN.

    Args:
        inputs: $z_0$.
        noise: $\epsilon$, standard normal.
        times: $t$ of each input, from 0 to `len(signal) - 1`.
        signal: $\bar\alpha_t$, as `noise_schedule` returns it.

    Raises:
        ValueError: for inputs that are not floating-point, noise or times that do not fit them, or a time that the
            schedule does not have.

    Examples:
        >>> inputs, noise, signal = torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.81, 0.25])
        >>> diffusion.add_noise(inputs, noise, torch.tensor([0, 1]), signal).round(decimals=3)
        tensor([[0.9000, 0.9000, 0.9000],
                [0.5000, 0.5000, 0.5000]])
    """
    for name, value in (("inputs", inputs), ("noise", noise)):
        if not value.is_floating_point():
            raise ValueError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    has_shape("noise", noise, inputs.shape, "that of the inputs")
    has_shape("times", times, inputs.shape[:1], "one for each input")
    times = class_numbers("times", times, len(signal))
    at = times.clamp(0, len(signal) - 1)
    kept, added = (
        spoilt(factor.sqrt().to(inputs)[at], times != at).view(-1, *(1 for _ in inputs.shape[1:]))
        for factor in (signal, 1 - signal)
    )
    return kept * inputs + added * noise


def error_map(
    denoiser: Predict,
    inputs: Float[Tensor, "n *shape"],
    noise: Float[Tensor, "n *shape"],
    times: Integer[Tensor, " n"],
    signal: Float[Tensor, " steps"],
    labels: Integer[Tensor, " n"] | None = None,
) -> Float[Tensor, "n *shape"]:
    r"""Squared error of the predicted noise in every element, $e=(\hat\epsilon(z_t,t,c)-\epsilon)^{\odot2}$.

    Args:
        denoiser: called with noisy inputs, times and labels.
        inputs: $z_0$.
        noise: $\epsilon$, standard normal.
        times: $t$ of each input.
        signal: $\bar\alpha_t$, as `noise_schedule` returns it.
        labels: the condition $c$; None for a denoiser without one.

    Raises:
        ValueError: as `add_noise`, or if the predicted noise has another shape.

    Examples:
        >>> signal, times = diffusion.noise_schedule(100), torch.tensor([0, 99])
        >>> inputs, noise = torch.ones(2, 3), torch.full((2, 3), 2.0)
        >>> blind = lambda noisy, times, labels: 0 * noisy  # it predicts no noise
        >>> diffusion.error_map(blind, inputs, noise, times, signal)
        tensor([[4., 4., 4.],
                [4., 4., 4.]])
    """
    predicted = denoiser(add_noise(inputs, noise, times, signal), times, labels)
    has_shape("denoiser", predicted, noise.shape, "that of the inputs")
    return (predicted - noise).square()


def denoising_loss(
    denoiser: Predict,
    inputs: Float[Tensor, "n *shape"],
    noise: Float[Tensor, "n *shape"],
    times: Integer[Tensor, " n"],
    signal: Float[Tensor, " steps"],
    labels: Integer[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of `error_map` over inputs and elements, with the same arguments and errors: the usual training loss.

    Args:
        denoiser, inputs, noise, times, signal, labels: as of `error_map`.

    Raises:
        ValueError: as `error_map`.

    Examples:
        >>> signal, times = diffusion.noise_schedule(100), torch.tensor([0, 99])
        >>> inputs, noise = torch.ones(2, 3), torch.full((2, 3), 2.0)
        >>> blind = lambda noisy, times, labels: 0 * noisy  # it predicts no noise
        >>> diffusion.denoising_loss(blind, inputs, noise, times, signal)
        tensor(4.)
    """
    return error_map(denoiser, inputs, noise, times, signal, labels).mean()


@torch.no_grad()
def diffusion_sample(
    denoiser: Predict,
    shape: Sequence[int],
    signal: Float[Tensor, " steps"],
    *,
    generator: torch.Generator,
    labels: Integer[Tensor, " n"] | None = None,
    steps: int | None = None,
    eta: float = 0.0,
    limit: float | None = None,
) -> Float[Tensor, "n *shape"]:
    r"""New inputs from noise, by DDIM ($\eta=0$: nothing random after the start) or DDPM ($\eta=1$).

    From a time with share of signal $\bar\alpha$ to the next one used, with $\bar\alpha'$ (1 after the last),

    $$z'=\sqrt{\bar\alpha'}\,\hat z_0+\sqrt{1-\bar\alpha'-\sigma^2}\,\hat\epsilon+\sigma\xi,\qquad
    \hat z_0=\frac{z-\sqrt{1-\bar\alpha}\,\hat\epsilon}{\sqrt{\bar\alpha}},\qquad
    \sigma^2=\eta^2\,\frac{1-\bar\alpha'}{1-\bar\alpha}\Bigl(1-\frac{\bar\alpha}{\bar\alpha'}\Bigr).$$

    With $\eta=1$ and all times this is ancestral sampling with the posterior's variance.

    Args:
        denoiser: called with noisy inputs, times and labels.
        shape: of the sample, `(n, ...)`.
        signal: $\bar\alpha_t$, as `noise_schedule` returns it.
        generator: of all that is random; the sample is on its device.
        labels: the condition of each of the `n`; None for a denoiser without one.
        steps: how many of the times are used, evenly spread and the last among them; None for all.
        eta: $\eta$ in $[0,1]$.
        limit: $\hat z_0$ is kept within plus and minus this, and $\hat\epsilon$ follows; None for no limit.

    Raises:
        ValueError: for more steps than the schedule has, `eta` outside $[0,1]$, a limit that is not positive, labels of
            another number, or a denoiser that predicts noise of another shape.

    Examples:
        >>> signal, generator = diffusion.noise_schedule(100), torch.Generator().manual_seed(0)
        >>> denoiser = diffusion.Denoiser((1, 8, 8), steps=100)
        >>> shape, options = (4, 1, 8, 8), {"generator": generator, "steps": 5}
        >>> diffusion.diffusion_sample(denoiser, shape, signal, **options).shape
        torch.Size([4, 1, 8, 8])
    """
    total = len(real("signal", signal))
    steps = total if steps is None else whole("steps", steps)
    if steps > total:
        raise ValueError(f"steps: expected 1 to {total} (the schedule's), got {steps}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected a number from 0 to 1, got {eta}")
    if labels is not None and len(labels) != shape[0]:
        raise ValueError(f"labels: expected {shape[0]} as in shape, got {len(labels)}")
    limit = None if limit is None else float(number("limit", limit, positive=True))
    device = generator.device
    used = torch.linspace(total - 1, 0, steps).round().long().tolist() if steps > 1 else [total - 1]
    shares = [float(signal[time]) for time in used] + [1.0]
    state = torch.randn(*shape, generator=generator, device=device)
    for index, time in enumerate(used):
        now, then = shares[index : index + 2]
        noise = denoiser(state, torch.full((shape[0],), time, device=device), labels)
        has_shape("denoiser", noise, state.shape, "that of the sample")
        clean = (state - math.sqrt(1 - now) * noise) / math.sqrt(now)
        if limit is not None:
            clean = clean.clamp(-limit, limit)
            noise = (state - math.sqrt(now) * clean) / math.sqrt(1 - now)
        variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        state = math.sqrt(then) * clean + math.sqrt(max(0.0, 1 - then - variance)) * noise
        if variance > 0:
            state = state + math.sqrt(variance) * torch.randn(*shape, generator=generator, device=device)
    return state


class _Condition(nn.Module):
    """Time, as sines and cosines, and label, as a unit vector, to one vector."""

    def __init__(self, classes: int, width: int, steps: int):
        super().__init__()
        self.classes, self.frequencies, self.steps = classes, 16, steps
        self.time = nn.Linear(2 * self.frequencies, width)
        self.label = nn.Linear(classes, width, bias=False) if classes else None
        self.mix = nn.Linear(width, width)

    def forward(
        self, times: Integer[Tensor, " n"], labels: Integer[Tensor, " n"] | None, dtype: torch.dtype
    ) -> Float[Tensor, "n w"]:
        if (labels is None) != (self.label is None):
            raise ValueError(f"labels: expected {'some' if self.label else 'None'}, with {self.classes} classes")
        # Wavelengths from twice the schedule's length down to a few steps.
        octave = torch.arange(self.frequencies, device=times.device) * (7 / (self.frequencies - 1))
        angle = (times[:, None] / self.steps).to(dtype) * math.pi * (2**octave).to(dtype)
        hidden = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        if self.label is not None and labels is not None:
            # A label that is none of the classes would be no condition at all.
            labels = class_numbers("labels", labels, self.classes)
            known = labels[:, None] == torch.arange(self.classes, device=times.device)
            hidden = hidden + spoilt(self.label(known.to(dtype)), ~known.any(1, keepdim=True))
        return self.mix(F.silu(hidden))


class _DenseBlock(nn.Module):
    """Residual block of two linear layers between which the condition enters."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.condition, self.second = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Float[Tensor, "n w"], condition: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        inner = self.first(F.silu(self.norm(hidden))) + self.condition(condition)
        return hidden + self.second(F.silu(inner))


class Denoiser(nn.Module):
    """Residual network of linear layers that predicts noise in inputs of any shape.

    To what the layers say it adds the noisy inputs, by a factor that depends on the condition: where little signal is
    left the inputs are the noise.

    Examples:
        >>> denoiser = diffusion.Denoiser((1, 8, 8), steps=100, classes=10)
        >>> denoiser(torch.zeros(2, 1, 8, 8), torch.tensor([0, 99]), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, shape: Sequence[int], *, steps: int, classes: int = 0, width: int = 128, blocks: int = 2):
        """Make one.

        Args:
            shape: of an input, without the batch.
            steps: of the noise schedule.
            classes: how many labels there are; 0 for a denoiser without condition.
            width: of the hidden layers.
            blocks: how many residual blocks.
        """
        super().__init__()
        self.enter, self.leave = nn.Linear(math.prod(shape), width), nn.Linear(width, math.prod(shape))
        self.condition, self.factor = _Condition(classes, width, steps), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(_DenseBlock(width) for _ in range(blocks))

    def forward(
        self,
        noisy: Float[Tensor, "n *shape"],
        times: Integer[Tensor, " n"],
        labels: Integer[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n *shape"]:
        """The noise predicted in each input at its time."""
        condition = F.silu(self.condition(times, labels, noisy.dtype))
        flat = noisy.flatten(1)
        hidden = self.enter(flat)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return (self.leave(F.silu(hidden)) + self.factor(condition) * flat).view_as(noisy)


class _Block(nn.Module):
    """Residual block of two convolutions between which the condition enters."""

    def __init__(self, before: int, after: int, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.norm, self.inner = nn.GroupNorm(math.gcd(8, before), before), nn.GroupNorm(math.gcd(8, after), after)
        self.condition = nn.Linear(width, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, hidden: Float[Tensor, "n c h w"], condition: Float[Tensor, "n k"]) -> Float[Tensor, "n d h w"]:
        inner = self.first(F.silu(self.norm(hidden))) + self.condition(condition)[:, :, None, None]
        return self.skip(hidden) + self.second(F.silu(self.inner(inner)))


class UNet(nn.Module):
    """Small U-Net that predicts noise in pictures: a level for each number of channels, each at half the resolution.

    Examples:
        >>> network = diffusion.UNet((1, 8, 8), steps=100, channels=(8, 16))
        >>> network(torch.zeros(2, 1, 8, 8), torch.tensor([0, 99])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, shape: Sequence[int], *, steps: int, classes: int = 0, channels: Sequence[int] = (32, 64)):
        """Make one.

        Args:
            shape: of a picture: channels, height, width; the last two divisible by 2 for each level but the first.
            steps: of the noise schedule.
            classes: how many labels there are; 0 for a denoiser without condition.
            channels: of each level.

        Raises:
            ValueError: for a shape that cannot be halved so often.
        """
        super().__init__()
        inputs, *sides = shape
        scale = 2 ** (len(channels) - 1)
        if len(sides) != 2 or any(side % scale for side in sides):
            raise ValueError(
                f"shape: expected channels, height and width, the last two divisible by {scale}, got {shape}"
            )
        width = 2 * channels[-1]
        self.condition = _Condition(classes, width, steps)
        self.enter = nn.Conv2d(inputs, channels[0], 3, padding=1)
        widths = [channels[0], *channels]
        self.down = nn.ModuleList(_Block(a, b, width) for a, b in zip(widths, channels, strict=False))
        self.middle = _Block(channels[-1], channels[-1], width)
        above = [channels[0], *channels[:-1]]
        self.up = nn.ModuleList(_Block(2 * b, a, width) for a, b in zip(above, channels, strict=True))
        self.norm = nn.GroupNorm(math.gcd(8, channels[0]), channels[0])
        self.leave = nn.Conv2d(channels[0], inputs, 3, padding=1)

    def forward(
        self, noisy: Float[Tensor, "n c h w"], times: Integer[Tensor, " n"], labels: Integer[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """The noise predicted in each picture at its time."""
        condition = F.silu(self.condition(times, labels, noisy.dtype))
        hidden, levels = self.enter(noisy), []
        for index, block in enumerate(self.down):
            hidden = block(F.avg_pool2d(hidden, 2) if index else hidden, condition)
            levels.append(hidden)
        hidden = self.middle(hidden, condition)
        for index in reversed(range(len(levels))):
            hidden = self.up[index](torch.cat([hidden, levels[index]], 1), condition)
            if index:
                hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
        return self.leave(F.silu(self.norm(hidden)))
