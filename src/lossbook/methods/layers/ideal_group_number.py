r"""On the Ideal Number of Groups for Isometric Gradient Propagation.

Bum Jun Kim, Hyeyeon Choi, Hyeonah Jang and Sang Woo Kim (2023), arXiv:2302.03193.

The paper's idea: the number of groups $G$ of a group normalisation (GN) changes the scale of the
gradient that passes back through it, so choose $G$ for every layer, from its own widths, such that
the gradient keeps its scale.

Our derivation: the closed form that the paper prints was not available to us. The gains below were
derived independently, for the unit linear map, GN, ReLU, and the choice built on them is called
isometric group selection. None of the formulas is to be read as the authors' own.

Gains are ratios of per-element second moments, from the output $x'$ of the unit to its input $x$:
$q = \mathbb E[(\partial L/\partial x_j)^2] / \mathbb E[(\partial L/\partial x'_i)^2]$.
The ratio of squared norms is another quantity, $n_{in}/n_{out}$ times $q$.
"""

import copy
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossbook.methods._validate import alike, floating, number, positive, together, whole

__all__ = [
    "conv_group_norm_gain",
    "group_norm_backward",
    "group_norm_gain",
    "ideal_number_of_groups",
    "isometric_group_number",
    "measured_gain",
    "set_group_numbers",
]


def group_norm_gain(in_features: int, out_features: int, num_groups: int, *, second_moment: float = 0.5) -> float:
    r"""Gradient gain of linear map, group normalisation, ReLU, in closed form.

    $$q(G) = \frac{n_{in}-1}{n_{in}} \cdot \frac{n_{out}}{n_{in}} \cdot \frac{1}{2s}
             \cdot \frac{m-2}{m-3}, \qquad m = n_{out}/G.$$

    Exact for Gaussian weights of mean zero (their scale cancels), an input of squared norm
    $n_{in} s$, an upstream gradient of independent entries of mean zero, and no epsilon. If the
    squared norm of the input varies, replace $1/(n_{in}s)$ by its mean reciprocal.

    With $m = 3$ the mean is infinite, and that is returned. With $m \le 2$ or $n_{in} = 1$ the
    gradient is identically zero, and so is the gain. For $m < 6$ the mean is finite but the
    variance is not: simulations then converge slowly.

    Args:
        in_features: width $n_{in}$ of the linear map's input, at least 1.
        out_features: its number of outputs $n_{out}$, a multiple of `num_groups`.
        num_groups: number of groups $G$, at least 1.
        second_moment: mean square $s > 0$ of the input's elements: 1/2 after GN and ReLU, 1 for
            standardised data.

    Returns:
        The gain, in $[0, \infty]$.

    Raises:
        ValueError: if a number is out of range or the groups do not divide the outputs.

    Source:
        the object is the paper's, the formula our derivation.

    Examples:
        >>> round(group_norm_gain(512, 256, 64), 3), round(group_norm_gain(512, 256, 16), 3)
        (0.998, 0.537)
    """
    size = _group_size(num_groups, in_features=in_features, out_features=out_features)
    second_moment = positive("second_moment", second_moment)
    if in_features == 1 or size <= 2:
        return 0.0
    if size == 3:
        return math.inf
    widths = (in_features - 1) / in_features * out_features / in_features
    return widths / (2 * second_moment) * (size - 2) / (size - 3)


def conv_group_norm_gain(
    in_channels: int,
    out_channels: int,
    num_groups: int,
    *,
    second_moment: float = 0.5,
    mean_share: float = 1 / math.pi,
    pixel_ratio: float = 1.0,
) -> float:
    r"""Gradient gain of convolution, group normalisation, ReLU on large images.

    $$q(G) = \frac{C_{out}}{C_{in}} \cdot \frac{1}{2s\rho} \cdot \frac{1}{1-r/m},
             \qquad m = C_{out}/G.$$

    With many pixels a group's variance hardly fluctuates, and what depends on $G$ is how much of
    the channels' own means is removed. For inputs independent from pixel to pixel this is exact at
    $m=1$ (instance normalisation) as the pixels become many. At other $m$ the group variance
    is replaced by its mean, which underestimates: by 5 % at $m=2$, 4 % at $m=4$ and 1 % at $m=16$
    for ReLU inputs.

    Args:
        in_channels: channels $C_{in}$ of the input, at least 1. With a grouped convolution, as
            without, all channels count.
        out_channels: channels $C_{out}$ of the output, a multiple of `num_groups`.
        num_groups: number of groups $G$, at least 1.
        second_moment: mean square $s > 0$ of the input's elements.
        mean_share: share $r \in [0, 1]$ of that mean square which is the square of a channel's
            mean over the pixels: $1/\pi$ for spatially independent ReLU inputs, 0 for
            standardised data, towards 1 for smooth images.
        pixel_ratio: input pixels for each output pixel $\rho > 0$, such as 4 for stride 2 in two
            dimensions.

    Returns:
        The gain, positive; infinite where nothing of the input remains ($r = m = 1$).

    Raises:
        ValueError: if a number is out of range or the groups do not divide the channels.

    Source:
        the object is the paper's, the formula our derivation.

    Examples:
        >>> round(conv_group_norm_gain(64, 64, 8), 3)
        1.041
        >>> round(conv_group_norm_gain(64, 128, 8, pixel_ratio=4.0), 3)  # with stride 2
        0.51
    """
    size = _group_size(num_groups, in_channels=in_channels, out_channels=out_channels)
    second_moment = positive("second_moment", second_moment)
    pixel_ratio = positive("pixel_ratio", pixel_ratio)
    mean_share = number("mean_share", mean_share, 0.0, 1.0)
    remaining = 1 - mean_share / size
    if remaining == 0:
        return math.inf
    return out_channels / in_channels / (2 * second_moment * pixel_ratio * remaining)


def ideal_number_of_groups(in_features: int, out_features: int, *, second_moment: float = 0.5) -> float:
    r"""Solve `group_norm_gain` = 1 for a real number of groups.

    $$G^* = n_{out}\,\frac{\rho-1}{3\rho-2}, \qquad
      \rho = 2s\,\frac{n_{in}}{n_{out}}\cdot\frac{n_{in}}{n_{in}-1}.$$

    For wide layers after a ReLU this is $n_{out}(n_{in}-n_{out})/(3n_{in}-2n_{out})$: a quarter of
    the outputs if the layer halves the width, towards a third if it contracts without bound.

    Args:
        in_features: width $n_{in}$ of the input, at least 2.
        out_features: number of outputs $n_{out}$, at least 1.
        second_moment: mean square $s > 0$ of the input's elements.

    Returns:
        The root, in $[0, n_{out}/3]$; 0 where there is none, because the gain exceeds 1 for every
        number of groups ($\rho \le 1$).

    Raises:
        ValueError: if a number is out of range.

    Source:
        our derivation; the paper's own closed form may differ.

    Examples:
        >>> round(ideal_number_of_groups(512, 256), 1)  # a quarter of the outputs, nearly
        64.1
        >>> ideal_number_of_groups(256, 512)  # none keeps the scale where the width grows
        0.0
    """
    in_features = whole("in_features", in_features, least=2)
    out_features = whole("out_features", out_features)
    second_moment = positive("second_moment", second_moment)
    ratio = 2 * second_moment * in_features**2 / (out_features * (in_features - 1))
    return out_features * (ratio - 1) / (3 * ratio - 2) if ratio > 1 else 0.0


def isometric_group_number(
    in_features: int,
    out_features: int,
    *,
    second_moment: float = 0.5,
    gain: Callable[..., float] = group_norm_gain,
    min_group_size: int = 4,
) -> int:
    r"""Isometric group selection: the number of groups whose gain is nearest to 1.

    $$\arg\min_{G \mid n_{out},\; n_{out}/G \ge m_{min}} |\log q(G)|,$$
    and the smaller $G$ where two are equally near.

    Args:
        in_features: width of the input (or its channels), at least 1.
        out_features: number of outputs (or channels), at least `min_group_size`.
        second_moment: mean square $s > 0$ of the input's elements.
        gain: the gain model, called as `gain(in_features, out_features, num_groups,
            second_moment=second_moment)`.
        min_group_size: fewest features in a group, at least 1. The default excludes the sizes at
            which the gain of a linear layer is zero or infinite.

    Returns:
        The number of groups, a divisor of `out_features`.

    Raises:
        ValueError: if a number is out of range, or `out_features` is less than one group.

    Source:
        choosing groups by isometry is the paper's idea, this rule is ours.

    Examples:
        >>> isometric_group_number(512, 256)
        64
        >>> isometric_group_number(64, 64, gain=conv_group_norm_gain)
        1
    """
    in_features = whole("in_features", in_features)
    out_features = whole("out_features", out_features)
    min_group_size = whole("min_group_size", min_group_size)
    second_moment = positive("second_moment", second_moment)
    if out_features < min_group_size:
        raise ValueError(f"out_features: expected at least min_group_size={min_group_size}, got {out_features}")

    def distance(num_groups: int) -> float:
        q = gain(in_features, out_features, num_groups, second_moment=second_moment)
        return abs(math.log(q)) if q > 0 else math.inf

    largest = out_features // min_group_size
    return min((g for g in range(1, largest + 1) if out_features % g == 0), key=distance)


@torch.inference_mode(False)  # gradients are computed wherever it is called
def measured_gain(
    module: nn.Module,
    inputs: Float[Tensor, "n *features"],
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Gradient gain of a module at given inputs, by simulation.

    Standard Gaussian gradients enter at the output $y$ and are propagated back to the input $x$;
    the result is $\operatorname{mean}[(\partial L/\partial x)^2] /
    \operatorname{mean}[(\partial L/\partial y)^2]$, means over all elements, so per element, for
    linear and convolutional modules alike.

    The module runs in the mode it is in. Its parameters' gradients, its buffers and its mode stay
    as they are. Half precision propagates as it is; the means are taken in float32.

    Args:
        module: maps one floating-point tensor to another.
        inputs: the inputs $x$, `(n, *features)`.
        samples: number of independent upstream gradients, at least 1.
        generator: source of the upstream gradients, on the device of the output; torch's own if
            absent.

    Returns:
        The gain, a tensor without dimensions, in float32 or the inputs' wider type.

    Raises:
        ValueError: if `inputs` is not floating point or empty, `samples` is not positive, or the
            output is not a floating-point tensor with a gradient.

    Source:
        ours; the measured counterpart of the gains in closed form.

    Examples:
        >>> gain = measured_gain(torch.nn.Identity(), torch.ones(8, 4), samples=2)
        >>> round(gain.item(), 3)
        1.0
    """
    if floating("inputs", inputs).numel() == 0:
        raise ValueError(f"inputs: expected at least one element, got shape {tuple(inputs.shape)}")
    samples = whole("samples", samples)
    with torch.enable_grad():
        x = _usable(inputs.detach()).requires_grad_()
        # Running statistics move in copies of the buffers, changes in place in a copy of x.
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        state |= {name: _usable(parameter) for name, parameter in module.named_parameters()}
        y = torch.func.functional_call(module, state, (x.clone(),))
        floating("module's output", y)
        if not y.requires_grad:
            raise ValueError("module: expected an output that has a gradient, got one without")
        received = injected = torch.zeros((), dtype=y.dtype, device=y.device)
        for _ in range(samples):
            upstream = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
            (gradient,) = torch.autograd.grad(y, x, upstream, retain_graph=True, materialize_grads=True)
            received = received + floating("gradient", gradient).square().mean()
            injected = injected + floating("upstream", upstream).square().mean()
    return received / injected


def group_norm_backward(
    grad_output: Float[Tensor, "n c *spatial"],
    inputs: Float[Tensor, "n c *spatial"],
    num_groups: int,
    *,
    weight: Float[Tensor, " c"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "n c *spatial"]:
    r"""Gradient of group normalisation with respect to its input, in closed form.

    With $\delta_i = \gamma_i\,\partial L/\partial z_i$ and, in a group $g$ of $m$ elements,
    $\hat y_i = (y_i-\mu_g)/\sqrt{\sigma_g^2+\epsilon}$,
    $$\frac{\partial L}{\partial y_i} = \frac{1}{\sqrt{\sigma_g^2+\epsilon}}
      \Big(\delta_i - \frac1m\sum_{j\in g}\delta_j
      - \hat y_i\,\frac1m\sum_{j\in g}\hat y_j\delta_j\Big).$$

    Args:
        grad_output: $\partial L/\partial z$ of the same shape as `inputs`.
        inputs: $y$, `(n, c)` or `(n, c, *spatial)`.
        num_groups: number of groups, a divisor of `c`.
        weight: the scales $\gamma$, `(c,)`; ones if absent.
        eps: $\epsilon \ge 0$; with 0, no group may be constant.

    Returns:
        $\partial L/\partial y$, in the shape of `inputs` and the widest dtype of what is given. Half
        precision is computed in float32.

    Raises:
        ValueError: if a shape, dtype or number is not as described.

    Source:
        the derivative of the definition of group normalisation.

    Examples:
        >>> inputs = torch.tensor([[0.0, 2.0, 1.0, 5.0]])
        >>> gradient = group_norm_backward(inputs, inputs, num_groups=1)
        >>> bool(gradient.abs().max() < 1e-4)  # their scale does not matter to the result
        True
    """
    tensors = {"inputs": inputs, "grad_output": grad_output} | ({} if weight is None else {"weight": weight})
    y, delta, *scale = together(**tensors)
    if y.ndim < 2:
        raise ValueError(f"inputs: expected shape (n, c, ...), got {tuple(y.shape)}")
    alike("grad_output", delta, "inputs", y, "shape")
    channels = y.shape[1]
    num_groups = whole("num_groups", num_groups)
    if channels % num_groups:
        raise ValueError(f"num_groups: expected a divisor of {channels} channels, got {num_groups}")
    eps = number("eps", eps, 0.0, math.inf)
    for each in scale:
        if each.shape != (channels,):
            raise ValueError(f"weight: expected shape ({channels},), got {tuple(each.shape)}")
        delta = delta * each.reshape(-1, *[1] * (y.ndim - 2))

    y = y.reshape(y.shape[0], num_groups, -1)
    delta = delta.reshape(y.shape)
    centred = y - y.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = centred * inverse
    gradient = inverse * (delta - delta.mean(-1, keepdim=True) - normed * (normed * delta).mean(-1, keepdim=True))
    dtype = functools.reduce(torch.promote_types, (each.dtype for each in tensors.values()))
    return gradient.reshape(inputs.shape).to(dtype)


@torch.inference_mode(False)  # what is made in it has no version, by which changes in place are noticed
def set_group_numbers(
    model: nn.Module,
    inputs: Float[Tensor, "n *features"],
    *,
    rule: Callable[..., int] = isometric_group_number,
) -> dict[str, int]:
    r"""Set the number of groups of every `nn.GroupNorm` in a model, in place, layer by layer.

    A copy of the model sees `inputs` once, in the model's mode, without gradients and with one
    group everywhere, so that the result does not depend on the groups set before. The layer that
    feeds a GroupNorm is the Linear or Conv whose output tensor is the very tensor that the
    GroupNorm receives. The mean square $s$ of that layer's input is measured in this run: about
    1/2 after GN and ReLU, what it is for data, sums of residual branches, dropout or pooling. The
    model's parameters, buffers and mode, and the state of the random generators, stay as they are.

    The rule is called as `rule(in_features, out_features, second_moment=s, gain=gain,
    min_group_size=size)`. After a linear layer `gain` is `group_norm_gain` and `size` is 4. After
    a convolution `gain` is `conv_group_norm_gain` with the measured share of the means and ratio
    of pixels, and `size` gives a group at least 4 elements, pixels counted: large images may get
    one channel a group. For a constant choice give `rule=lambda *_, **__: 8`.

    Args:
        model: any model that runs on `inputs`.
        inputs: a batch `(n, *features)` of typical inputs.
        rule: maps the widths of a layer to its number of groups.

    Returns:
        The number of groups chosen, by the name of the GroupNorm, in the model's order.

    Raises:
        ValueError: if `inputs` is not floating point or is empty; naming the GroupNorm, if it did not run,
            if its input is not the unchanged output of a Linear on `(n, features)` or of a Conv1d,
            Conv2d or Conv3d, if the input of that layer has a mean square of 0 or is not finite, if it
            runs twice with different results, or if the rule's answer does not divide its channels.

    Source:
        layer-wise selection is the paper's idea; the gains and the measured $s$ are ours.

    Examples:
        >>> layers = torch.nn.Linear(512, 256), torch.nn.GroupNorm(1, 256), torch.nn.ReLU()
        >>> model = torch.nn.Sequential(*layers)
        >>> set_group_numbers(model, torch.full((8, 512), 0.7))
        {'1': 64}
        >>> model[1].num_groups
        64
    """
    if floating("inputs", inputs).numel() == 0:
        raise ValueError(f"inputs: expected at least one element, got shape {tuple(inputs.shape)}")
    trial = copy.deepcopy(model)
    norms = _group_norms(trial)
    # What layers gave out, by identity: the tensor (so that its identity is not used again), its
    # version (which tells a change in place) and what the rule is to know of the layer.
    produced: dict[int, tuple[Tensor, int, dict[str, Any]]] = {}
    chosen: dict[str, int] = {}

    def remember(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not isinstance(layer, nn.Linear) or output.ndim == 2:
            x = (*args, *kwargs.values())[0]
            produced[id(output)] = output, output._version, _layer_facts(x, output)

    def choose(name: str, norm: nn.GroupNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received = (*args, *kwargs.values())[0]
        output, version, facts = produced.get(id(received), (received, None, {}))
        if output._version != version:
            raise ValueError(
                f"model: expected GroupNorm {name!r} to receive the output of a Linear or Conv "
                "layer unchanged, got another tensor"
            )
        groups = _apply_rule(rule, name, **facts)
        if chosen.setdefault(name, groups) != groups:
            raise ValueError(
                f"model: expected one number of groups for GroupNorm {name!r}, which runs more "
                f"than once, got {chosen[name]} and {groups}"
            )

    for layer in trial.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            layer.register_forward_hook(remember, with_kwargs=True)
    for name, norm in norms.items():
        norm.num_groups = 1
        norm.register_forward_pre_hook(partial(choose, name), with_kwargs=True)
    tensors = [inputs, *model.parameters(), *model.buffers()]
    devices = {t.device.index for t in tensors if t.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.no_grad():
        trial(inputs.clone())

    for name in norms:
        if name not in chosen:
            raise ValueError(f"model: expected GroupNorm {name!r} to run, got no call of it")
    for name, norm in _group_norms(model).items():
        norm.num_groups = chosen[name]
    return {name: chosen[name] for name in norms}


def _usable(value: Tensor) -> Tensor:
    """The tensor, or a copy that may be part of a graph, where it was made in inference mode."""
    return value.clone() if value.is_inference() else value


def _group_norms(model: nn.Module) -> dict[str, nn.GroupNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)}


def _layer_facts(x: Tensor, output: Tensor) -> dict[str, Any]:
    """Widths, and statistics of the input at the time when the layer saw it."""
    x = floating("input of a layer", x)
    return {
        "widths": (x.shape[1], output.shape[1]),
        "second_moment": x.square().mean(),
        "squared_mean": x.flatten(2).mean(-1).square().mean() if x.ndim > 2 else None,
        "pixels": (x[0, 0].numel(), output[0, 0].numel()),
    }


def _apply_rule(
    rule: Callable[..., object],
    name: str,
    *,
    widths: tuple[int, int],
    second_moment: Tensor,
    squared_mean: Tensor | None,
    pixels: tuple[int, int],
) -> int:
    """Ask the rule for the number of groups of GroupNorm `name`, after a layer with these facts."""
    square = second_moment.item()
    if not 0 < square < math.inf:
        raise ValueError(
            f"model: expected the layer before GroupNorm {name!r} to have inputs of positive, "
            f"finite mean square, got {square}"
        )
    gain, min_group_size = group_norm_gain, 4
    if squared_mean is not None:
        gain = partial(
            conv_group_norm_gain,
            mean_share=min(squared_mean.item() / square, 1.0),
            pixel_ratio=pixels[0] / pixels[1],
        )
        min_group_size = -(-4 // pixels[1])
    try:
        groups = rule(*widths, second_moment=square, gain=gain, min_group_size=min_group_size)
    except ValueError as error:
        error.add_note(f"The rule was asked for GroupNorm {name!r} with widths {widths}.")
        raise
    if not isinstance(groups, int) or groups < 1 or widths[1] % groups:
        raise ValueError(f"rule: expected a divisor of the {widths[1]} channels of GroupNorm {name!r}, got {groups!r}")
    return groups


def _group_size(num_groups: int, **widths: int) -> int:
    """Features per group, after checking the widths (the last is that of the output) and groups."""
    for name, width in widths.items():
        whole(name, width)
    num_groups = whole("num_groups", num_groups)
    name, width = list(widths.items())[-1]
    if width % num_groups:
        raise ValueError(f"num_groups: expected a divisor of {name}={width}, got {num_groups}")
    return width // num_groups
