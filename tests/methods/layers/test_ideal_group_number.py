"""Ideal group number: gains in closed form, the choice built on them, and their measurement."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device, only_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from support import one_graph, rejects, unhooked
from torch import nn

from lossbook.methods import layers
from lossbook.methods.layers import (
    conv_group_norm_gain,
    group_norm_backward,
    group_norm_gain,
    ideal_number_of_groups,
    isometric_group_number,
    measured_gain,
    set_group_numbers,
)

float64 = partial(torch.randn, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_public_names():
    assert {"group_norm_gain", "isometric_group_number", "set_group_numbers"} <= set(layers.__all__)


# The gradient, equation by equation.

SHAPES = [
    ((5, 12), 1),
    ((5, 12), 3),
    ((5, 12), 4),
    ((2, 6, 5), 6),
    ((2, 6, 4, 3), 2),
    ((2, 4, 2, 3, 2), 1),
]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e8])
@pytest.mark.parametrize("affine", [False, True])
def test_backward_equals_autograd(shape, groups, scale, affine):
    y = (scale * float64(shape)).requires_grad_()
    weight = float64(shape[1]) if affine else None
    upstream = float64(shape)
    z = F.group_norm(y, groups, weight, eps=1e-5)
    (expected,) = torch.autograd.grad(z, y, upstream)
    result = group_norm_backward(upstream, y.detach(), groups, weight=weight)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-11 * expected.abs().max().item())


def test_backward_of_one_group_is_layer_norm_and_of_single_channels_instance_norm():
    y, upstream = float64(3, 6, 4, 5).requires_grad_(), float64(3, 6, 4, 5)
    (layer,) = torch.autograd.grad(F.layer_norm(y, y.shape[1:]), y, upstream)
    (instance,) = torch.autograd.grad(F.instance_norm(y), y, upstream)
    torch.testing.assert_close(group_norm_backward(upstream, y.detach(), 1), layer)
    torch.testing.assert_close(group_norm_backward(upstream, y.detach(), 6), instance)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_backward_is_a_projection_of_rank_m_minus_2(groups):
    size = 12 // groups
    y = float64(12)

    def backward(upstream):
        return group_norm_backward(upstream[None], y[None], groups, eps=0.0)[0]

    jacobian = torch.vmap(backward)(torch.eye(12, dtype=torch.float64))
    for block, group in zip(range(0, 12, size), y.view(groups, size), strict=True):
        part = jacobian[block : block + size, block : block + size]
        normed = (group - group.mean()) / group.std(correction=0)
        projection = torch.eye(size, dtype=torch.float64) - 1 / size - torch.outer(normed, normed) / size
        torch.testing.assert_close(part * group.std(correction=0), projection)
        assert torch.linalg.matrix_rank(part, atol=1e-9) == size - 2
    outside = jacobian.clone()
    for block in range(0, 12, size):
        outside[block : block + size, block : block + size] = 0
    assert not outside.any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([0, 1, 2]),
    st.integers(0, 9),
)
def test_backward_has_no_mean_and_nothing_along_the_normalised_input(n, groups, size, dims, seed):
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shape = (n, groups * size, *[2] * dims)
    y, upstream = draw(shape), draw(shape)
    result = group_norm_backward(upstream, y, groups).reshape(n, groups, -1)
    scale = 1 + result.abs().max()
    assert result.sum(-1).abs().max() < 1e-9 * scale  # For any epsilon.
    elements = result.shape[-1]
    if elements > 1:
        result = group_norm_backward(upstream, y, groups, eps=0.0).reshape(n, groups, -1)
        normed = F.group_norm(y, groups, eps=0.0).reshape(n, groups, -1)
        assert (result * normed).sum(-1).abs().max() < 1e-9 * scale
    if elements <= 2:
        assert result.abs().max() < 1e-9 * scale


def test_backward_gradcheck():
    y, upstream, weight = (float64(2, 6, 2), float64(2, 6, 2), float64(6))
    for tensor in (y, upstream, weight):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda u, y, w: group_norm_backward(u, y, 2, weight=w), (upstream, y, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_backward_in_half_precision_is_computed_in_float32(dtype):
    y, upstream = torch.randn(3, 8).to(dtype) * 100, torch.randn(3, 8).to(dtype)
    result = group_norm_backward(upstream, y, 2)
    assert result.dtype == dtype
    torch.testing.assert_close(result, group_norm_backward(upstream.float(), y.float(), 2).to(dtype))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e8, 1e15])
def test_backward_is_finite(scale):
    assert group_norm_backward(torch.randn(3, 8), scale * torch.randn(3, 8), 2).isfinite().all()


def test_backward_under_vmap_and_compile():
    y, upstream = float64(4, 3, 6), float64(4, 3, 6)
    function = partial(group_norm_backward, num_groups=2)
    expected = torch.stack([function(u, x) for u, x in zip(upstream, y, strict=True)])
    torch.testing.assert_close(torch.vmap(function)(upstream, y), expected)
    backward = unhooked("lossbook.methods.layers.ideal_group_number").group_norm_backward
    compiled = one_graph(backward, backward=True)
    torch.testing.assert_close(compiled(upstream[0], y[0], 2), expected[0])


# The gain of a linear unit.


def upstream_through_unit(x, weight, groups):
    """Mean square of a Gaussian gradient after ReLU, GN and a linear map, at inputs x."""
    x = x.requires_grad_()
    output = F.group_norm(x @ weight.T, groups, eps=0.0).relu()
    return torch.autograd.grad(output, x, torch.randn_like(output))[0].square().mean()


def mean_and_error(values):
    values = torch.stack(values)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


# Six and more to a group: the variance is finite, so that a standard error means something.
@pytest.mark.parametrize(
    ("n_in", "n_out", "groups"),
    [(16, 16, 1), (16, 16, 2), (16, 8, 1), (8, 24, 4), (64, 48, 6), (2, 8, 1)],
)
def test_gain_equals_simulation(n_in, n_out, groups):
    draws = []
    for _ in range(600):
        x = float64(32, n_in)
        x = x * (n_in / 2) ** 0.5 / x.norm(dim=1, keepdim=True)
        draws.append(upstream_through_unit(x, float64(n_out, n_in), groups))
    mean, error = mean_and_error(draws)
    assert error < 0.03 * mean
    assert abs(mean - group_norm_gain(n_in, n_out, groups)) < 4 * error


def test_gain_with_varying_input_norms_takes_the_mean_reciprocal():
    n = 16  # For Gaussian inputs E[1/|x|^2] = 1/(n-2).
    draws = [upstream_through_unit(float64(32, n), float64(n, n), 2) for _ in range(600)]
    mean, error = mean_and_error(draws)
    expected = group_norm_gain(n, n, 2, second_moment=(n - 2) / n)
    assert abs(mean - expected) < 4 * error
    assert abs(mean - group_norm_gain(n, n, 2, second_moment=1.0)) > 10 * error


# Known values, to the digits known.
@pytest.mark.parametrize(
    ("n_out", "groups", "theory"),
    [(256, 16, 1.073), (256, 32, 1.195), (256, 64, 1.992), (64, 8, 0.299), (64, 16, 0.498)],
)
def test_gain_reference_values(n_out, groups, theory):
    assert group_norm_gain(256, n_out, groups) == pytest.approx(theory, abs=5e-4)


def test_gain_of_a_block_in_float32_follows_the_formula():
    for n_out, groups in [(256, 16), (256, 32), (64, 8)]:
        x = torch.randn(128, 256).relu()
        draws = []
        for _ in range(30):
            linear = nn.Linear(256, n_out, bias=False)
            nn.init.normal_(linear.weight)
            block = nn.Sequential(linear, nn.GroupNorm(groups, n_out), nn.ReLU())
            draws.append(measured_gain(block, x))
        mean, error = mean_and_error(draws)
        # Beside the random error: E[1/|x|^2] of half-normal inputs exceeds 2/n by 2 %.
        expected = group_norm_gain(256, n_out, groups) * 128 * (1 / x.square().sum(1)).mean().item()
        assert abs(mean - expected) < 4 * error


def test_gain_rises_with_groups_and_vanishes_where_the_gradient_does():
    gains = [group_norm_gain(96, 96, g) for g in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
    assert gains == sorted(gains)
    assert gains[-1] == math.inf
    assert group_norm_gain(96, 96, 48) == group_norm_gain(96, 96, 96) == 0
    assert group_norm_gain(1, 96, 1) == group_norm_gain(1, 96, 32) == 0
    assert group_norm_gain(96, 96, 4, second_moment=1.0) == group_norm_gain(96, 96, 4) / 2
    x, weight = float64(4, 1).requires_grad_(), float64(12, 1)
    (gradient,) = torch.autograd.grad(F.group_norm(x @ weight.T, 2, eps=0.0).sum(), x)
    assert gradient.abs().max() < 1e-12


# The gain of a convolution.


@pytest.mark.parametrize(("groups", "deviation"), [(16, 0.0), (1, 0.013), (2, 0.029), (4, 0.042), (8, 0.05)])
def test_convolution_gain_against_simulation(groups, deviation):
    """Exact for single channels; elsewhere the underestimate that the docstring states."""
    draws = []
    for _ in range(150):
        x = float64(1, 16, 16, 16).relu().requires_grad_()
        output = F.group_norm(F.conv2d(x, float64(16, 16, 1, 1)), groups, eps=0.0).relu()
        (gradient,) = torch.autograd.grad(output, x, torch.randn_like(output))
        draws.append(gradient.square().mean())
    mean, error = mean_and_error(draws)
    formula = conv_group_norm_gain(16, 16, groups)
    assert error < 0.02
    assert abs(mean / formula - 1 - deviation) < 4 * error / formula + 0.01


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (1, 2, 0), (3, 1, 0)])
def test_convolution_gain_with_strides_kernels_and_offsets(kernel, stride, padding):
    x = float64(2, 32, 17, 17) + 0.7  # Mean share 0.49 / 1.49.
    draws = []
    for _ in range(20):
        conv = nn.Conv2d(32, 32, kernel, stride, padding, bias=False).double()
        nn.init.normal_(conv.weight)
        block = nn.Sequential(conv, nn.GroupNorm(32, 32, eps=0.0).double(), nn.ReLU())
        draws.append(measured_gain(block, x))
    mean, error = mean_and_error(draws)
    ratio = 17**2 / conv(x)[0, 0].numel()
    expected = conv_group_norm_gain(32, 32, 32, second_moment=1.49, mean_share=0.49 / 1.49, pixel_ratio=ratio)
    # Zeros outside the image are not part of the derivation: a few per cent at this size.
    assert abs(mean - expected) < 4 * error + 0.05 * expected


def test_convolution_gain_limits():
    assert conv_group_norm_gain(64, 64, 64) == pytest.approx(math.pi / (math.pi - 1))
    assert conv_group_norm_gain(64, 32, 1) == pytest.approx(0.5 / (1 - 1 / (32 * math.pi)))
    assert conv_group_norm_gain(64, 64, 64, mean_share=1.0) == math.inf
    assert conv_group_norm_gain(64, 64, 8, mean_share=0.0) == 1
    assert conv_group_norm_gain(64, 64, 8, pixel_ratio=4.0) == conv_group_norm_gain(64, 64, 8) / 4


# The choice.


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((256, 128), 32),
        ((256, 64), 16),
        ((512, 256), 64),
        ((512, 128), 32),
        ((256, 256), 1),
        ((64, 256), 1),
        ((7, 5), 1),
        ((1, 8), 1),
    ],
)
def test_isometric_group_number(widths, expected):
    assert isometric_group_number(*widths) == expected


def test_root_has_gain_one_and_its_limits():
    for n_in, n_out, s in [(256, 128, 0.5), (200, 150, 0.5), (100, 300, 2.0), (64, 64, 0.5)]:
        size = n_out / ideal_number_of_groups(n_in, n_out, second_moment=s)
        widths = (n_in - 1) / n_in * n_out / n_in / (2 * s)
        assert widths * (size - 2) / (size - 3) == pytest.approx(1)
    assert ideal_number_of_groups(2 * 10**8, 10**8) == pytest.approx(10**8 / 4)
    assert ideal_number_of_groups(10**12, 96) == pytest.approx(96 / 3)
    assert ideal_number_of_groups(10**6, 10**6) == pytest.approx(1, rel=1e-5)
    assert ideal_number_of_groups(100, 200) == 0
    wide, narrow = 3 * 10**6, 2 * 10**6
    expected = narrow * (wide - narrow) / (3 * wide - 2 * narrow)
    assert ideal_number_of_groups(wide, narrow) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 8),
    st.floats(1e-3, 1e3),
    st.sampled_from([group_norm_gain, conv_group_norm_gain]),
)
def test_no_divisor_does_better(n_in, n_out, size, s, gain):
    n_out = max(n_out, size)
    groups = isometric_group_number(n_in, n_out, second_moment=s, gain=gain, min_group_size=size)
    assert n_out % groups == 0
    assert n_out // groups >= size

    def distance(g):
        q = gain(n_in, n_out, g, second_moment=s)
        return abs(math.log(q)) if q else math.inf

    for g in range(1, n_out // size + 1):
        if n_out % g == 0:
            assert distance(g) >= distance(groups)
            assert distance(g) > distance(groups) or g >= groups


def test_ties_go_to_fewer_groups_and_the_gain_is_pluggable():
    assert isometric_group_number(9, 24, gain=lambda *_, **__: 1.0) == 1
    assert isometric_group_number(9, 24, gain=lambda i, o, g, **_: {2: 2.0, 3: 0.5}.get(g, 9.0)) == 2
    assert isometric_group_number(9, 24, gain=lambda i, o, g, **_: g / 6) == 6


# Measurement.


def test_measured_gain_of_known_maps():
    x = torch.randn(50, 40)
    assert measured_gain(nn.Identity(), x) == 1
    linear = nn.Linear(40, 30)
    expected = linear.weight.square().sum() / 40  # The mean over upstream gradients.
    assert measured_gain(linear, x, samples=20).item() == pytest.approx(expected.item(), rel=0.02)
    conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular")
    expected = conv.weight.square().sum() / 3
    images = torch.randn(8, 3, 9, 9)
    assert measured_gain(conv, images, samples=20).item() == pytest.approx(expected.item(), rel=0.03)


def test_measured_gain_is_reproducible_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    model[2].eval()
    model[0].weight.grad = torch.ones(8, 6)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(16, 6)
    with torch.no_grad():
        gains = [measured_gain(model, x, samples=3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert gains[0] == gains[1]
    assert gains[0].shape == () and not gains[0].requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(8, 6))
    assert model[0].bias.grad is None
    assert x.grad is None and not x.requires_grad
    assert [m.training for m in model] == [True, True, False]


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_measured_gain_at_all_scales_and_dtypes(scale, dtype):
    if dtype == torch.float16 and scale == 1e8:
        scale = 1e4
    block = nn.Sequential(nn.Linear(32, 64), nn.GELU()).to(dtype)
    x = (scale * torch.randn(64, 32, dtype=torch.float64)).to(dtype)
    gain = measured_gain(block, x, samples=10, generator=torch.Generator().manual_seed(0))
    assert gain.dtype == torch.promote_types(dtype, torch.float32)
    assert gain.isfinite() and gain > 0
    exact = measured_gain(copy.deepcopy(block).double(), x.double(), samples=10)
    assert gain.item() == pytest.approx(exact.item(), rel=0.1)


def test_measured_gain_is_free_of_the_input_scale_where_the_norm_is():
    linear = nn.Linear(32, 32, bias=False).double()
    block = nn.Sequential(linear, nn.GroupNorm(4, 32, eps=0.0).double(), nn.ReLU())
    x = float64(64, 32)
    gains = [
        measured_gain(block, s * x, generator=torch.Generator().manual_seed(0)).item() * s * s for s in (1e-8, 1.0, 1e8)
    ]
    assert gains == pytest.approx([gains[1]] * 3, rel=1e-9)


def test_measured_gain_of_a_module_that_works_in_place():
    x = torch.randn(500, 40)
    kept = x.clone()
    assert measured_gain(nn.ReLU(inplace=True), x).item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(x, kept)


def test_measured_gain_zero_where_nothing_passes():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.weight

    assert measured_gain(Unused(), torch.randn(2, 3)) == 0
    block = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(4, 8, eps=0.0)).double()
    assert measured_gain(block, float64(4, 8)) < 1e-15


@pytest.mark.parametrize("made_inside", ["nothing", "inputs", "all"])
def test_inference_mode_changes_nothing(made_inside):
    block, x = nn.Sequential(nn.Linear(8, 16), nn.GroupNorm(2, 16), nn.ReLU(), nn.BatchNorm1d(16)), torch.randn(6, 8)
    gain = measured_gain(block, x, generator=torch.Generator().manual_seed(0))
    numbers = set_group_numbers(copy.deepcopy(block), x)
    with torch.inference_mode():
        block = copy.deepcopy(block) if made_inside == "all" else block
        x = x if made_inside == "nothing" else x.clone()
        assert torch.equal(measured_gain(block, x, generator=torch.Generator().manual_seed(0)), gain)
        assert set_group_numbers(block, x) == numbers


# Whole models.


def unit(n_in, n_out, groups=1):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.GroupNorm(groups, n_out), nn.ReLU())


class Block(nn.Module):
    """A bottleneck with a residual connection."""

    def __init__(self, channels, inner, stride=1):
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.norm1 = nn.GroupNorm(2, inner)
        self.spatial = nn.Conv2d(inner, inner, 3, stride, 1)
        self.norm2 = nn.GroupNorm(2, inner)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.norm3 = nn.GroupNorm(2, channels)
        self.pool = nn.AvgPool2d(stride)

    def forward(self, x):
        h = self.norm1(self.reduce(x)).relu()
        h = self.norm2(self.spatial(h)).relu()
        return (self.norm3(self.expand(h)) + self.pool(x)).relu_()


def test_set_on_mlp():
    model = nn.Sequential(unit(64, 256), unit(256, 128, 128), unit(128, 96, 2), nn.Linear(96, 10))
    expected = {"0.1": 1, "1.1": 32, "2.1": 16}
    assert set_group_numbers(model, torch.randn(256, 64)) == expected
    assert {n: m.num_groups for n, m in model.named_modules() if hasattr(m, "num_groups")} == expected
    # What was set before has no influence.
    assert set_group_numbers(model, torch.randn(256, 64)) == expected
    assert set_group_numbers(nn.Linear(3, 3), torch.randn(2, 3)) == {}


def test_set_measures_the_input():
    for scale, expected in [(0.5**0.5, 1), (1.0, 16), (100.0, 16)]:
        x = torch.ones(4, 64) * scale
        assert set_group_numbers(unit(64, 64), x) == {"1": expected}


def test_set_on_convolutions():
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        Block(32, 16, 2),
        Block(32, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        unit(32, 16),
    )
    seen = []

    def rule(n_in, n_out, **facts):
        seen.append((n_in, n_out, facts))
        return isometric_group_number(n_in, n_out, **facts)

    groups = set_group_numbers(model, torch.randn(16, 4, 8, 8), rule=rule)
    assert list(groups) == [
        "1",
        "3.norm1",
        "3.norm2",
        "3.norm3",
        "4.norm1",
        "4.norm2",
        "4.norm3",
        "7.1",
    ]
    bottleneck = [(32, 16), (16, 16), (16, 32)]
    assert [(i, o) for i, o, _ in seen] == [(4, 32), *bottleneck, *bottleneck, (32, 16)]
    assert groups["1"] == 1  # Eight times as many channels: as little gain as can be had.
    assert groups["3.norm1"] == 16  # Half the channels: as much gain as can be had.
    assert groups["3.norm2"] == 16  # Stride 2.
    assert seen[2][2]["gain"].keywords["pixel_ratio"] == 4
    first = seen[0][2]
    assert first["second_moment"] == pytest.approx(1, abs=0.1)
    assert first["gain"].keywords["mean_share"] == pytest.approx(1 / 64, abs=0.01)
    assert first["min_group_size"] == 1
    assert seen[1][2]["second_moment"] == pytest.approx(0.5, abs=0.05)
    assert seen[-1][2]["gain"] is group_norm_gain
    assert seen[-1][2]["min_group_size"] == 4


def test_set_counts_pixels_in_small_images():
    sizes = []
    for pixels in (1, 2, 3, 5):
        model = nn.Sequential(nn.Conv1d(8, 8, 1), nn.GroupNorm(1, 8))
        set_group_numbers(
            model,
            torch.randn(4, 8, pixels),
            rule=lambda *_, min_group_size, **__: sizes.append(min_group_size) or 1,
        )
    assert sizes == [4, 2, 2, 1]


def test_set_leaves_everything_else():
    model = nn.Sequential(nn.BatchNorm1d(16), unit(16, 8), nn.Dropout(0.5), unit(8, 8), nn.Dropout(0.1))
    model[4].eval()
    model[1][0].weight.grad = torch.ones(8, 16)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    x = torch.randn(64, 16)
    state = torch.get_rng_state()
    set_group_numbers(model, x, rule=lambda *_, **__: 2)
    assert model[1][1].num_groups == model[3][1].num_groups == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[1][0].weight.grad, torch.ones(8, 16))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_set_accepts_keyword_calls_and_repeated_layers():
    class Shared(nn.Module):
        def __init__(self, *widths):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(w, 16) for w in widths)
            self.norm = nn.GroupNorm(1, 16)

        def forward(self, x):
            for layer in self.layers:
                x = self.norm(input=layer(input=x)).relu()
            return x

    four = set_group_numbers(Shared(16, 16), torch.randn(8, 16), rule=lambda *_, **__: 4)
    assert four == {"norm": 4}
    rules = iter([2, 4])
    message = rejects(
        set_group_numbers,
        Shared(16, 16),
        torch.randn(8, 16),
        rule=lambda *_, **__: next(rules),
        names="model",
    )
    assert "'norm'" in message and "2 and 4" in message


class After(nn.Module):
    """Something done between a linear layer and its GroupNorm."""

    def __init__(self, between, layer=None):
        super().__init__()
        self.layer, self.norm, self.between = layer or nn.Linear(8, 8), nn.GroupNorm(2, 8), between

    def forward(self, x):
        return self.norm(self.between(self.layer(x)))


@pytest.mark.parametrize("between", [lambda y: y + 1, lambda y: y.add_(1), lambda y: y.relu(), lambda y: y.view_as(y)])
def test_set_names_the_norm_without_feeder(between):
    model = After(between)
    message = rejects(set_group_numbers, model, torch.randn(4, 8), names="model")
    assert "'norm'" in message
    assert model.norm.num_groups == 2


def test_empty_batches_are_refused():
    for call in (measured_gain, set_group_numbers):
        assert "(0, 64)" in rejects(call, unit(64, 32), torch.empty(0, 64), names="inputs")


def test_set_refuses_what_it_cannot_know():
    after = After(lambda y: y)
    assert set_group_numbers(after, torch.ones(4, 8)) == {"norm": 2}
    # A linear layer over the last of three dimensions does not feed the channels.
    assert "'norm'" in rejects(set_group_numbers, after, torch.randn(4, 8, 8), names="model")
    idle = nn.Sequential(nn.Linear(8, 8))
    idle.norm, idle.forward = nn.GroupNorm(2, 8), lambda x: x
    assert "'norm'" in rejects(set_group_numbers, idle, torch.randn(4, 8), names="model")
    for x in (torch.zeros(4, 8), torch.full((4, 8), math.inf), torch.full((4, 8), math.nan)):
        assert "'norm'" in rejects(set_group_numbers, after, x, names="model")
    for answer in (3, 0, -2, 2.0):
        message = rejects(
            set_group_numbers,
            after,
            torch.randn(4, 8),
            rule=lambda *_, a=answer, **__: a,
            names="rule",
        )
        assert "'norm'" in message
    with pytest.raises(ValueError, match="out_features") as caught:
        set_group_numbers(unit(8, 2), torch.randn(4, 8))
    assert "GroupNorm '1'" in caught.value.__notes__[0]
    rejects(set_group_numbers, after, torch.ones(4, 8, dtype=torch.int64), names="inputs")


# Bad arguments.


@pytest.mark.parametrize("bad", [0, -1, 2.0, "4", True, None])
def test_integers(bad):
    for gain in (group_norm_gain, conv_group_norm_gain):
        first, second = ("features", "channels")[gain is conv_group_norm_gain], None
        second = first
        rejects(gain, bad, 8, 2, names=f"in_{first}")
        rejects(gain, 8, bad, 2, names=f"out_{second}")
        rejects(gain, 8, 8, bad, names="num_groups")
    for function in (isometric_group_number, ideal_number_of_groups):
        rejects(function, bad, 8, names="in_features")
        rejects(function, 8, bad, names="out_features")
    rejects(isometric_group_number, 8, 8, min_group_size=bad, names="min_group_size")
    rejects(measured_gain, nn.Identity(), torch.ones(2), samples=bad, names="samples")
    rejects(group_norm_backward, torch.ones(2, 4), torch.ones(2, 4), bad, names="num_groups")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "1", None])
def test_positive_numbers(bad):
    rejects(group_norm_gain, 8, 8, 2, second_moment=bad, names="second_moment")
    rejects(conv_group_norm_gain, 8, 8, 2, second_moment=bad, names="second_moment")
    rejects(conv_group_norm_gain, 8, 8, 2, pixel_ratio=bad, names="pixel_ratio")
    rejects(isometric_group_number, 8, 8, second_moment=bad, names="second_moment")
    rejects(ideal_number_of_groups, 8, 8, second_moment=bad, names="second_moment")


def test_other_arguments():
    message = rejects(group_norm_gain, 8, 8, 3, names="num_groups")
    assert "out_features=8" in message and "got 3" in message
    rejects(conv_group_norm_gain, 8, 8, 3, names="num_groups")
    rejects(ideal_number_of_groups, 1, 8, names="in_features")
    rejects(isometric_group_number, 8, 3, names="out_features")
    for bad in (-0.1, 1.1, math.nan, "1", True):
        rejects(conv_group_norm_gain, 8, 8, 2, mean_share=bad, names="mean_share")
    backward = partial(rejects, group_norm_backward)
    y = torch.ones(2, 4)
    backward(y, y, 3, names="num_groups")
    backward(y, torch.ones(4), 1, names="inputs")
    backward(torch.ones(2, 3), y, 1, names="grad_output")
    backward(y.int(), y, 1, names="grad_output")
    backward(y, [1.0], 1, names="inputs")
    backward(y, y, 1, weight=torch.ones(3), names="weight")
    backward(y, y, 1, eps=-1.0, names="eps")
    measure = partial(rejects, measured_gain)
    measure(nn.Identity(), torch.ones(2, 3).int(), names="inputs")
    measure(nn.Identity(), torch.ones(0, 3), names="inputs")

    class Returns(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return self.value

    for value in (torch.ones(2), torch.ones(2).int(), (torch.ones(2),)):
        measure(Returns(value), torch.ones(2, 3), names="module('s output)?")


test_on_any_device = on_any_device(
    partial(conv_group_norm_gain, 16, 8, 2),
    partial(group_norm_backward, torch.randn(2, 6, 5), torch.randn(2, 6, 5), 3, weight=torch.ones(6)),
    partial(group_norm_gain, 16, 8, 2),
    partial(ideal_number_of_groups, 16, 8),
    partial(isometric_group_number, 16, 8),
    partial(measured_gain, nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), torch.randn(5, 4), samples=2),
    only_on_cpu(
        "what each layer sees decides its number of groups", set_group_numbers, After(nn.Identity()), torch.ones(4, 8)
    ),
)
