"""Sun and Kolter, Single Image Backdoor Inversion via Robust Smoothed Classifiers (2023), arXiv:2303.00215."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossbook.methods._validate import (
    Reduction,
    cross_entropy,
    floating,
    indices,
    number,
    one_of,
    picked,
    positive,
    reduce,
    together,
    whole,
)
from lossbook.methods.similarities import unit

__all__ = [
    "Inversion",
    "MaskedTrigger",
    "diffusion_step",
    "mask_inversion",
    "smooth_inversion",
    "smoothed_cross_entropy",
    "smoothed_gradient_bound",
    "smoothed_logits",
]

Classifier = Callable[[Tensor], Tensor]
Denoiser = Callable[[Tensor, int], Tensor]
Average = Literal["probabilities", "log-probabilities", "logits"]
PerProblem = float | Float[Tensor, " n"]


class Inversion(NamedTuple):
    """What `smooth_inversion` found.

    Attributes:
        perturbation: the recovered trigger, to be added to a picture, `(n, *shape)`.
        loss: of every step and problem, before the step was made, `(steps, n)`.

    Examples:
        >>> images, targets = torch.rand(2, 1, 4), torch.tensor([0, 1])
        >>> found = smooth_inversion(torch.nn.Linear(4, 3), images, targets, steps=5, samples=2)
        >>> found.perturbation.shape, found.loss.shape
        (torch.Size([2, 4]), torch.Size([5, 2]))
    """

    perturbation: Tensor
    loss: Tensor


class MaskedTrigger(NamedTuple):
    r"""What `mask_inversion` found; a picture $x$ becomes $(1-m)\odot x+m\odot p$.

    Attributes:
        mask: $m$ in $[0,1]$, shared by the channels, `(n, 1, h, w)`.
        pattern: $p$ in $[0,1]$, `(n, c, h, w)`.
        loss: of every step and problem, with the penalty, `(steps, n)`.

    Examples:
        >>> images, targets = torch.rand(2, 1, 1, 2, 2), torch.tensor([0, 1])
        >>> found = mask_inversion(torch.nn.Flatten(), images, targets, steps=5)
        >>> found.mask.shape, found.pattern.shape
        (torch.Size([2, 1, 2, 2]), torch.Size([2, 1, 2, 2]))
    """

    mask: Tensor
    pattern: Tensor
    loss: Tensor


def diffusion_step(alphas_cumprod: Float[Tensor, " t"], sigma: float | Float[Tensor, ""]) -> int:
    r"""Step of a diffusion whose noise matches the smoothing: the smallest $t\ge1$ with

    $$\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}\ge2\sigma.$$

    The 2 is there because the diffusion works on pictures in $[-1,1]$, the smoothing on pictures in $[0,1]$.

    Args:
        alphas_cumprod: $\bar\alpha_t$, falling, with values in $(0,1)$; index 0 is the step with the least noise.
        sigma: standard deviation of the noise, at least 0.

    Raises:
        ValueError: if no step has as much noise, and for shapes, dtypes or numbers other than these.

    Source:
        The official code, after Carlini et al. (2022), arXiv:2206.10550. It never takes the step of index 0.

    Examples:
        >>> diffusion_step(torch.tensor([0.99, 0.9, 0.8, 0.5]), sigma=0.2)
        2
    """
    alphas = floating("alphas_cumprod", alphas_cumprod)
    if alphas.ndim != 1 or len(alphas) < 2:
        raise ValueError(f"alphas_cumprod: expected shape (t,) with t of at least 2, got {tuple(alphas.shape)}")
    sigma = number("sigma", sigma, 0.0)
    if alphas.isnan().any():
        raise ValueError("alphas_cumprod: expected numbers, got NaN")
    enough = ((1 - alphas) / alphas).sqrt()[1:] >= 2 * sigma
    if not enough.any():
        raise ValueError(f"sigma: expected noise that the diffusion reaches, got {sigma!r}")
    return int(enough.nonzero()[0]) + 1


def smoothed_logits(
    model: Classifier,
    inputs: Float[Tensor, "n *shape"],
    noise: Float[Tensor, "n samples *shape"],
    *,
    sigma: PerProblem = 0.25,
    denoiser: Denoiser | None = None,
    alphas_cumprod: Float[Tensor, " t"] | None = None,
) -> Float[Tensor, "n samples k"]:
    r"""Logits of noisy copies, $z_{in}=f(x_i+\sigma\varepsilon_{in})$, whose mean softmax is the smoothed classifier.

    With a denoiser each copy is diffused to step $t$ of `diffusion_step` and restored in one step before it is
    classified,

    $$z_{in}=f\Bigl(\tfrac12\bigl(1+D(\sqrt{\bar\alpha_t}(2x_i-1)+\sqrt{1-\bar\alpha_t}\,\varepsilon_{in},\,t)\bigr)\Bigr)$$

    with $D$ cut off at $\pm1$; the gradient goes through it. The copies then carry noise of standard deviation
    $\frac12\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$, a little above $\sigma$.

    Args:
        model: from pictures `(m, *shape)` to logits `(m, k)`, in evaluation mode: batch statistics would leak from copy
            to copy. The copies of a picture come one after the other, so a model that is several stacked ones can part
            the rows again.
        inputs: pictures with values in $[0,1]$.
        noise: standard normal; float16 and bfloat16 are computed in float32.
        sigma: standard deviation in units of $[0,1]$, one number or, without denoiser, one a picture; 0: no noise.
        denoiser: predicts the clean picture in $[-1,1]$ from the diffused one and $t$.
        alphas_cumprod: the denoiser's $\bar\alpha_t$.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Sun and Kolter (2023), arXiv:2303.00215; the denoiser as in the official code.

    Examples:
        >>> model, noise = torch.nn.Linear(4, 3), torch.zeros(2, 5, 4)  # five copies of each
        >>> smoothed_logits(model, torch.rand(2, 4), noise, sigma=0.25).shape
        torch.Size([2, 5, 3])
    """
    inputs, noise = together(inputs=inputs, noise=noise)
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise ValueError(f"inputs: expected shape (n, *shape), no dimension of it 0, got {tuple(inputs.shape)}")
    if noise.ndim != inputs.ndim + 1 or noise.shape[1] == 0 or noise[:, 0].shape != inputs.shape:
        wanted = ", ".join(map(str, (len(inputs), "samples", *inputs.shape[1:])))
        raise ValueError(f"noise: expected shape ({wanted}), got {tuple(noise.shape)}")
    if (denoiser is None) != (alphas_cumprod is None):
        raise ValueError("denoiser: expected together with alphas_cumprod, or neither, got one of them")
    clean = inputs.unsqueeze(1)
    if denoiser is None or alphas_cumprod is None:
        scale = _per_problem("sigma", sigma, inputs)
        copies = (clean + _spread(scale, noise) * noise).flatten(0, 1)
    else:
        step = diffusion_step(alphas_cumprod, sigma)
        kept = alphas_cumprod[step].to(inputs)
        diffused = kept.sqrt() * (2 * clean - 1) + (1 - kept).sqrt() * noise
        copies = (1 + denoiser(diffused.flatten(0, 1), step).clamp(-1, 1)) / 2
    return model(copies).unflatten(0, noise.shape[:2])


def smoothed_cross_entropy(
    logits: Float[Tensor, "n samples k"],
    targets: Int[Tensor, " n"],
    *,
    average: Average = "probabilities",
    floor: float = 1e-20,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    r"""Cross-entropy of a classifier that is averaged over noisy copies.

    $$\ell=-\log\max\Bigl(\frac1N\sum_np_n,\,10^{-20}\Bigr),\qquad p_n=\operatorname{softmax}(z_n)_c$$

    Copies near the target dominate its gradient, $\sum_n\frac{p_n}{\sum_mp_m}\nabla(-\log p_n)$. With
    average="log-probabilities" it is $-\frac1N\sum_n\log p_n$, in which all copies weigh the same, never smaller;
    with "logits" the cross-entropy of $\frac1N\sum_nz_n$. These are other methods, for comparison.

    Args:
        logits: of `samples` noisy copies of `n` pictures; float16 and bfloat16 are computed in float32.
        targets: class wanted for each picture, $0$ to $k-1$; with another number the loss is not a number.
        average: what is averaged over the copies.
        floor: smallest averaged probability, at least 0 and below 1. Below it the gradient is zero: a picture that the
            classifier puts so far from the target stays where it is. 0 computes the logarithm exactly.
        reduction: "mean", "sum", or "none" for the `n` losses.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Sun and Kolter (2023), arXiv:2303.00215; the floor is the official code's.

    Examples:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])  # two noisy copies that disagree
        >>> targets = torch.tensor([0])
        >>> round(smoothed_cross_entropy(logits, targets).item(), 3)
        0.693
        >>> round(smoothed_cross_entropy(logits, targets, average="log-probabilities").item(), 3)
        2.018
    """
    logits = floating("logits", logits)
    if logits.ndim != 3 or 0 in logits.shape:
        raise ValueError(f"logits: expected shape (n, samples, k), no dimension of it 0, got {tuple(logits.shape)}")
    targets = indices("targets", targets, len(logits))
    one_of("average", average, "probabilities", "log-probabilities", "logits")
    floor = number("floor", floor, 0.0, 1 - 1e-9)
    if average == "logits":
        logits = logits.mean(1, keepdim=True)
    copies = logits.shape[1]
    logs = picked(logits.log_softmax(-1).flatten(0, 1), targets.repeat_interleave(copies)).unflatten(0, (-1, copies))
    mean = logs.mean(1) if average == "log-probabilities" else logs.logsumexp(1) - math.log(copies)
    if floor > 0:
        mean = mean.clamp(min=math.log(floor))
    return reduce(-mean, reduction)


def smoothed_gradient_bound(probabilities: Float[Tensor, "*shape"], *, sigma: float = 0.25) -> Float[Tensor, "*shape"]:
    r"""Longest possible gradient of a smoothed probability, whatever the classifier behind it.

    $$\lVert\nabla g_{\sigma,c}\rVert_2\le\frac1\sigma\,\phi\bigl(\Phi^{-1}(g_{\sigma,c})\bigr)
      \le\frac1{\sigma\sqrt{2\pi}}$$

    with $\phi,\Phi$ density and distribution function of the standard normal. Half-spaces attain it. It holds for the
    expectation over the noise, not for the mean over a finite sample of it.

    Args:
        probabilities: $g_{\sigma,c}$ in $[0,1]$; float16 and bfloat16 are computed in float32.
        sigma: standard deviation of the noise, above 0.

    Returns:
        The bound, 0 for probabilities of 0 and 1.

    Raises:
        ValueError: for dtypes or numbers other than these.

    Source:
        Salman et al. (2019), arXiv:1906.04584, appendix A.

    Examples:
        >>> smoothed_gradient_bound(torch.tensor([0.5, 0.9, 1.0]), sigma=0.25).round(decimals=3)
        tensor([1.5960, 0.7020, 0.0000])
    """
    sigma = positive("sigma", sigma)
    quantile = torch.special.ndtri(floating("probabilities", probabilities))
    return torch.exp(-quantile.square() / 2) / (sigma * math.sqrt(2 * math.pi))


@torch.inference_mode(False)  # gradients are computed wherever it is called
def smooth_inversion(
    model: Classifier,
    images: Float[Tensor, "n support *shape"],
    targets: Int[Tensor, " n"],
    *,
    radius: PerProblem = 10.0,
    sigma: PerProblem = 0.25,
    samples: int = 40,
    steps: int = 400,
    step_size: PerProblem | None = None,
    momentum: float = 0.9,
    halve_every: int = 300,
    average: Average = "probabilities",
    floor: float = 1e-20,
    denoiser: Denoiser | None = None,
    alphas_cumprod: Float[Tensor, " t"] | None = None,
    generator: torch.Generator | None = None,
) -> Inversion:
    r"""SmoothInv: draw the trigger of a backdoored classifier by gradient descent on its smoothed version.

    From $\delta=0$, each step draws fresh noise, and with $\nabla$ the gradient of `smoothed_cross_entropy`

    $$v\leftarrow mv+\frac\nabla{\lVert\nabla\rVert_2},\qquad\delta\leftarrow
      \Pi_{\lVert\delta\rVert_2\le\epsilon}\,\Pi_{0\le x+\delta\le1}\,(\delta-\eta v),$$

    a gradient that is zero or not finite counting as zero. The problems are solved side by side and do not touch each
    other. With `sigma=0` and `samples=1` it is projected gradient descent on the classifier itself.

    Args:
        model: as in `smoothed_logits`; it sees `n * support * samples` rows, problem by problem.
        images: clean pictures with values in $[0,1]$ from which a problem starts; the paper has one, `support=1`. With
            more, the losses are averaged, $\delta$ is held in the union of the pictures' boxes, and $x+\delta$ is cut
            off at 0 and 1 in the loss (ours). Computed in float32 if they come in half precision.
        targets: class to be reached.
        radius: $\epsilon$, above 0, one number or one a problem.
        sigma: standard deviation of the noise, at least 0, one number or one a problem; one with a denoiser.
        samples: noisy copies of each picture in each step, $N$.
        steps: steps of gradient descent.
        step_size: $\eta$, above 0, one number or one a problem; the official $\epsilon/20$ if None.
        momentum: $m$ in $[0,1)$.
        halve_every: the step size is halved after each so many steps.
        average: as in `smoothed_cross_entropy`.
        floor: as in `smoothed_cross_entropy`.
        denoiser: as in `smoothed_logits`.
        alphas_cumprod: as in `smoothed_logits`.
        generator: source of the noise, on the device of the images.

    Returns:
        Perturbations and losses, cut from the graph.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Sun and Kolter (2023), arXiv:2303.00215, and its official code.

    Examples:
        >>> model = torch.nn.Flatten()  # the class is the brighter of two pixels
        >>> images, targets = torch.full((1, 1, 2), 0.5), torch.tensor([0])
        >>> found = smooth_inversion(model, images, targets, radius=0.2, steps=20)
        >>> found.perturbation.sign(), round(found.perturbation.norm().item(), 3)
        (tensor([[ 1., -1.]]), 0.2)
    """
    images, targets = _support("images", images, targets)
    radius = _per_problem("radius", radius, images, strict=True)
    rate = radius / 20 if step_size is None else _per_problem("step_size", step_size, images, strict=True)
    spread = sigma if denoiser is not None else _per_problem("sigma", sigma, images)
    samples = whole("samples", samples)
    steps = whole("steps", steps)
    halve_every = whole("halve_every", halve_every)
    momentum = number("momentum", momentum, 0.0, 1 - 1e-9)
    count, support = images.shape[:2]
    lowest, highest = -images.amax(1), 1 - images.amin(1)
    if isinstance(spread, Tensor):
        spread = spread.repeat_interleave(support)

    def losses(delta: Tensor) -> Tensor:
        points = images + delta.unsqueeze(1)
        # One picture is in its box already, and a cut at the edge would only lose gradients to rounding.
        points = points.clamp(0, 1) if support > 1 else points
        points = points.flatten(0, 1)
        shape = (len(points), samples, *points.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=points.dtype, device=points.device)
        logits = smoothed_logits(model, points, noise, sigma=spread, denoiser=denoiser, alphas_cumprod=alphas_cumprod)
        wanted = targets.repeat_interleave(support)
        each = smoothed_cross_entropy(logits, wanted, average=average, floor=floor, reduction="none")
        return each.unflatten(0, (count, support)).mean(1)

    delta, velocity, history = torch.zeros_like(images[:, 0]), torch.zeros_like(images[:, 0]), []
    for step in range(steps):
        value, gradient = _gradient(losses, delta)
        history.append(value)
        flat = gradient.flatten(1)
        # Their length may overflow. One that is not finite would stay in the velocity, and of one whose length vanishes
        # rounding decides the direction.
        followed = flat.isfinite().all(1, keepdim=True) & (flat.norm(dim=1, keepdim=True) > 0)
        velocity = momentum * velocity + unit(torch.where(followed, flat, 0)).view_as(gradient)
        delta = delta - _spread(rate, delta) * 0.5 ** (step // halve_every) * velocity
        delta = torch.minimum(torch.maximum(delta, lowest), highest)
        # Shrinking keeps a point in a box that contains zero.
        delta = delta * (_spread(radius, delta) / _norms(delta).clamp(min=1e-30)).clamp(max=1)
    return Inversion(delta, torch.stack(history))


@torch.inference_mode(False)
def mask_inversion(
    model: Classifier,
    images: Float[Tensor, "n support c h w"],
    targets: Int[Tensor, " n"],
    *,
    penalty: float = 1e-3,
    steps: int = 400,
    learning_rate: float = 0.1,
    threshold: float = 0.99,
    patience: int = 5,
    factor: float = 1.5,
    generator: torch.Generator | None = None,
) -> MaskedTrigger:
    r"""Inversion with an explicit mask and pattern, as in Neural Cleanse: the baseline.

    $$\min_{m,p}\ \frac1S\sum_s-\log f_c\bigl((1-m)\odot x_s+m\odot p\bigr)+\lambda\lVert m\rVert_1$$

    with $m$ and $p$ held in $[0,1]$ by $(1+\tanh)/2$, by Adam. $\lambda$ starts at `penalty`; after `patience` steps in
    a row in which the share of pictures that reach the target is at least `threshold` it is multiplied by `factor`,
    after as many in a row below it is divided by `factor` to the power 1.5. Returned is, of the steps at or above the
    threshold, the trigger with the smallest mask, or the last trigger where there was none.

    Args:
        model: from pictures `(m, c, h, w)` to logits `(m, k)`; it sees `n * support` rows, problem by problem.
        images: clean pictures with values in $[0,1]$, `support` for each problem.
        targets: class to be reached.
        penalty: $\lambda$ at the start, at least 0.
        steps: steps of Adam.
        learning_rate: of Adam.
        threshold: share of pictures in $[0,1]$.
        patience: steps.
        factor: at least 1.
        generator: source of the random start, on the device of the images.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Wang et al. (2019), Neural Cleanse, IEEE Symposium on Security and Privacy, section IV.

    Examples:
        >>> model = torch.nn.Flatten()  # the class is the brightest of four pixels
        >>> images = torch.full((1, 1, 1, 2, 2), 0.5)
        >>> found = mask_inversion(model, images, torch.tensor([3]), steps=50)
        >>> model((1 - found.mask) * images[:, 0] + found.mask * found.pattern).argmax(1)
        tensor([3])
    """
    images, targets = _support("images", images, targets)
    if images.ndim != 5:
        raise ValueError(f"images: expected shape (n, support, c, h, w), got {tuple(images.shape)}")
    penalty = number("penalty", penalty, 0.0)
    threshold = number("threshold", threshold, 0.0, 1.0)
    factor = number("factor", factor, 1.0)
    learning_rate = positive("learning_rate", learning_rate)
    steps = whole("steps", steps)
    patience = whole("patience", patience)
    count, support, channels, height, width = images.shape
    draw = partial(torch.randn, generator=generator, dtype=images.dtype, device=images.device)
    mask = draw((count, 1, height, width)).requires_grad_()
    pattern = draw((count, channels, height, width)).requires_grad_()
    optimizer = torch.optim.Adam([mask, pattern], lr=learning_rate, betas=(0.5, 0.9))
    weight = images.new_full((count,), penalty)
    above, below = torch.zeros_like(targets), torch.zeros_like(targets)
    smallest = images.new_full((count,), math.inf)
    best_mask, best_pattern = _sigmoid(mask).detach(), _sigmoid(pattern).detach()
    wanted, history = targets.repeat_interleave(support), []
    with torch.enable_grad():
        for _ in range(steps):
            m, p = _sigmoid(mask), _sigmoid(pattern)
            logits = floating("model", model(((1 - m).unsqueeze(1) * images + (m * p).unsqueeze(1)).flatten(0, 1)))
            fit = cross_entropy(logits, wanted)
            size = m.flatten(1).sum(1)
            losses = fit.unflatten(0, (count, support)).mean(1) + weight * size
            optimizer.zero_grad()
            mask.grad, pattern.grad = torch.autograd.grad(losses.sum(), (mask, pattern))
            optimizer.step()
            history.append(losses.detach())
            reached = (logits.argmax(-1) == wanted).unflatten(0, (count, support)).to(images.dtype).mean(1)
            holds, size = reached >= threshold, size.detach()
            better = (holds & (size < smallest)) | smallest.isinf()
            best_mask = torch.where(_spread(better, m), m.detach(), best_mask)
            best_pattern = torch.where(_spread(better, p), p.detach(), best_pattern)
            smallest = torch.where(holds & (size < smallest), size, smallest)
            above, below = torch.where(holds, above + 1, 0), torch.where(holds, 0, below + 1)
            weight = torch.where(above == patience, weight * factor, weight)
            weight = torch.where(below == patience, weight / factor**1.5, weight)
            above, below = above % patience, below % patience
    return MaskedTrigger(best_mask, best_pattern, torch.stack(history))


def _gradient(losses: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the problems, and of each the gradient by its own row."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        values = losses(point)
        (gradient,) = torch.autograd.grad(values.sum(), point)
    return values.detach(), gradient


def _sigmoid(value: Tensor) -> Tensor:
    return (1 + value.tanh()) / 2


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """One value a problem, with as many dimensions as its pictures."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))


def _norms(values: Tensor) -> Tensor:
    return _spread(values.flatten(1).norm(dim=1), values)


def _support(name: str, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    images = floating(name, images)
    if images.ndim < 3 or 0 in images.shape:
        raise ValueError(
            f"{name}: expected shape (n, support, *shape), no dimension of it 0, got {tuple(images.shape)}"
        )
    targets = indices("targets", targets, len(images))
    # What was made in inference mode may be no part of a graph, its copy may.
    images, targets = (each.clone() if each.is_inference() else each for each in (images.detach(), targets))
    return images, targets


def _per_problem(name: str, value: PerProblem, like: Tensor, *, strict: bool = False) -> Tensor:
    """One value a problem; of a tensor only dtype and shape are checked."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.shape != like.shape[:1]:
            raise ValueError(
                f"{name}: expected a number or a floating-point tensor of shape ({len(like)},), "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        return value.to(like)
    value = positive(name, value) if strict else number(name, value, 0.0)
    return like.new_full(like.shape[:1], value)
