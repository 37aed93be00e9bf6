"""Entropy-guided attention against PyTorch's own pieces, a loop over heads, and what the derivation promises."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, one_graph, rejects, unhooked
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lossbook.methods.privacy_robustness import (
    SpectralNormalisation,
    WeightNormalisation,
    attention_entropy,
    causal_attention,
    entropy_penalty,
    merged_linear,
    nonlinear_operations,
)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows(*shape, seed=0):
    return random(*shape, seed=seed).softmax(-1).requires_grad_()


# Attention and its entropy ---------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 2, 9])
def test_attention_is_that_of_pytorch(t):
    query, key, value = (random(3, 2, t, 4, seed=seed).requires_grad_() for seed in range(3))
    temperature = torch.tensor([0.5, 3.0], dtype=torch.float64)
    ours = causal_attention(query, key, temperature=temperature) @ value
    theirs = F.scaled_dot_product_attention(query / temperature[:, None, None], key, value, is_causal=True)
    agree(ours.square().sum(), theirs.square().sum(), (query, key, value))
    torch.testing.assert_close(causal_attention(query, key).sum(-1), torch.ones(3, 2, t, dtype=torch.float64))


def test_attention_stays_finite_at_extreme_logits_and_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        query = (100 * random(2, 6, 4)).to(dtype).requires_grad_()
        attention = causal_attention(query, query, temperature=torch.tensor([1e-3, 1e3]))
        entropy = attention_entropy(attention)
        assert attention.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert entropy.isfinite().all() and (entropy >= -1e-6).all()
        (gradient,) = torch.autograd.grad(entropy.sum(), query)
        assert gradient.isfinite().all() and gradient.dtype == dtype


def test_autocast_changes_nothing():
    query, key = (random(3, 2, 9, 16, seed=seed, dtype=torch.float32) for seed in (0, 1))
    first, second, bias = (random(*shape, dtype=torch.float32) for shape in ((16, 9), (5, 16), (16,)))
    norm = SpectralNormalisation(first, start=50).eval()
    calls = (
        lambda: causal_attention(query, key),
        lambda: causal_attention(query, key, temperature=torch.tensor([0.5, 2.0])),
        lambda: merged_linear(first, second, first_bias=bias),
        lambda: norm(first),
        lambda: SpectralNormalisation(first, start=50)(first),
    )
    for call in calls:
        expected = call()
        with torch.autocast("cpu"):
            torch.testing.assert_close(call(), expected, rtol=0, atol=0)


def test_dtypes_are_promoted():
    query, key = random(2, 4, 3), random(2, 4, 3, seed=1)
    mixed = causal_attention(query.bfloat16(), key, temperature=torch.ones(2).half())
    torch.testing.assert_close(mixed, causal_attention(query.bfloat16().double(), key))
    weight, bias = merged_linear(random(4, 3).half(), random(2, 4), first_bias=random(4).bfloat16())
    expected = merged_linear(random(4, 3).half().double(), random(2, 4), first_bias=random(4).bfloat16().double())
    torch.testing.assert_close((weight, bias), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_normalisations_of_half_precision_are_computed_in_single(dtype):
    weight = (100 * random(64, 300)).to(dtype)  # its squares overflow half precision
    spectral = SpectralNormalisation(weight, start=3000)
    exact = weight.double() / torch.linalg.matrix_norm(weight.double(), 2)
    assert spectral(weight).dtype == dtype
    torch.testing.assert_close(spectral(weight).double(), exact, rtol=1e-2, atol=1e-4)
    length = torch.full((64, 1), 2.0, dtype=dtype)
    rows = WeightNormalisation()(length, weight)
    assert rows.dtype == dtype
    torch.testing.assert_close(rows.double(), 2 * F.normalize(weight.double()), rtol=1e-2, atol=1e-3)
    spectral.half()
    assert spectral(weight.half()).dtype == torch.float16


@pytest.mark.parametrize("band", ["jump", "hinge"])
@pytest.mark.parametrize("ceiling", ["context", "row"])
def test_not_a_number_is_not_inside_the_band(band, ceiling):
    entropies = torch.full((2, 1, 3, 4), 0.7, dtype=torch.float64)
    entropies[..., 0] = 0  # all that the first row can have
    entropies[1, 0, 2, 3] = math.nan
    penalty = entropy_penalty(entropies, torch.full((3,), 0.5), margin=10.0, band=band, ceiling=ceiling)
    assert penalty.isnan()
    assert entropy_penalty(entropies[:1], torch.full((3,), 0.5), margin=10.0, band=band, ceiling=ceiling) == 0


def test_the_ceiling_of_a_context_longer_than_the_sequence():
    entropies = random(2, 3, 4, 5).abs()
    thresholds = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for context in (5, 128):
        deviation = entropies - thresholds[:, None, :, None] * math.log(context)
        outside = deviation.abs() > 0.2 * math.log(context)
        expected = 0.1 * (deviation.square() * outside).sum() / 8
        found = entropy_penalty(entropies, thresholds, weight=0.1, context=context)
        torch.testing.assert_close(found, expected)
    assert entropy_penalty(entropies, thresholds, context=5) == entropy_penalty(entropies, thresholds)
    # What a causal row can reach at most: of equal shares, the logarithm of how many it sees.
    equal = torch.ones(5, 5, dtype=torch.float64).tril()
    highest = attention_entropy(equal / equal.sum(-1, keepdim=True)).expand(1, 1, 1, 5)
    assert entropy_penalty(highest, torch.ones(1, dtype=torch.float64), ceiling="row", margin=0.01) == 0


def test_entropy_is_that_of_a_categorical():
    logits = random(3, 4, 7).requires_grad_()
    theirs = torch.distributions.Categorical(logits=logits).entropy()
    agree(attention_entropy(logits.softmax(-1)).square().sum(), theirs.square().sum(), (logits,))
    assert torch.autograd.gradcheck(attention_entropy, (rows(2, 5),))


def test_entropy_of_one_hot_uniform_and_masked_rows():
    assert attention_entropy(torch.eye(3)).tolist() == [0, 0, 0]
    uniform = torch.full((2, 8), 1 / 8, dtype=torch.float64)
    torch.testing.assert_close(attention_entropy(uniform), torch.full((2,), math.log(8), dtype=torch.float64))
    masked = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(attention_entropy(masked).sum(), masked)
    torch.testing.assert_close(gradient, torch.tensor([[math.log(2) - 1, math.log(2) - 1, 0]]))


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3])
def test_epsilon_is_the_official_form_and_moves_little(epsilon):
    attention = causal_attention(random(2, 6, 3), random(2, 6, 3, seed=1))
    official = -torch.nansum(attention * torch.log(attention + epsilon), dim=-1)
    ours = attention_entropy(attention, epsilon=epsilon)
    torch.testing.assert_close(ours, official, rtol=1e-12, atol=1e-12)
    # Up to the rounding of two entropies of at most log 6.
    assert (attention_entropy(attention) - ours).abs().max() <= 6 * epsilon + 1e-14


@given(st.floats(0.05, 20), st.integers(0, 99))
def test_entropy_rises_with_temperature_by_the_variance_of_the_logits(temperature, seed):
    logits, t = random(7, seed=seed), torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    entropy = attention_entropy((logits / t).softmax(-1))
    (slope,) = torch.autograd.grad(entropy, t)
    a = (logits / t.detach()).softmax(-1)
    variance = (a * logits.square()).sum() - (a * logits).sum().square()
    torch.testing.assert_close(slope, variance / t.detach() ** 3, rtol=1e-6, atol=1e-9)
    assert slope > -1e-12


# The penalty -----------------------------------------------------------------------------------------


def by_hand(attentions, thresholds, weight=1e-5, gamma=0.2):
    """The published rule, one head, sequence and row after another."""
    total = 0.0
    for layer, attention in enumerate(attentions):
        batch, heads, t, _ = attention.shape
        for head in range(heads):
            for b in range(batch):
                for i in range(t):
                    row = attention[b, head, i, : i + 1]
                    deviation = -(row * (row + 1e-9).log()).sum() - thresholds[layer][head] * math.log(t)
                    if abs(deviation.item()) > gamma * math.log(t):
                        total = total + deviation**2
    return weight * total / (len(attentions) * heads)


@pytest.mark.parametrize("shared", [False, True], ids=["for each layer", "shared"])
def test_penalty_is_the_published_rule(shared):
    layers = [causal_attention(2 * random(3, 2, 6, 4, seed=s), random(3, 2, 6, 4, seed=s + 9)) for s in range(3)]
    attentions = torch.stack(layers).requires_grad_()
    thresholds = torch.rand(2 if shared else (3, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    thresholds.requires_grad_()
    ours = entropy_penalty(attention_entropy(attentions, epsilon=1e-9), thresholds)
    theirs = by_hand(attentions, thresholds.expand(3, 2))
    assert ours > 0
    (by_threshold,) = torch.autograd.grad(ours, thresholds, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs, thresholds, retain_graph=True)
    torch.testing.assert_close(by_threshold, expected, rtol=1e-10, atol=1e-16)
    inside = torch.ones_like(attentions[0, 0, 0]).tril().bool()
    (by_attention,), (by_loop,) = (torch.autograd.grad(each, attentions) for each in (ours, theirs))
    torch.testing.assert_close(by_attention[..., inside], by_loop[..., inside], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-16)


def penalty_at(deviation, **keywords):
    """Penalty of one row whose entropy is off its threshold by this, and the gradients by entropy and threshold."""
    ceiling = math.log(4)
    entropy = torch.full((1, 1, 1, 4), 0.5 * ceiling, dtype=torch.float64)
    entropy[..., 3] += deviation
    entropy.requires_grad_()
    threshold = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    penalty = entropy_penalty(entropy, threshold, weight=1.0, **keywords)
    by_entropy, by_threshold = torch.autograd.grad(penalty, (entropy, threshold))
    return penalty.item(), by_entropy[..., 3].item(), by_threshold.item()


@pytest.mark.parametrize("sign", [-1, 1])
def test_jump_at_the_edge_and_signs(sign):
    edge = 0.2 * math.log(4)
    assert penalty_at(sign * (edge - 1e-9)) == (0, 0, 0)
    value, by_entropy, by_threshold = penalty_at(sign * (edge + 1e-9))
    assert value == pytest.approx(edge**2, rel=1e-6)
    assert by_entropy == pytest.approx(2 * sign * edge, rel=1e-6)
    # Going against the gradient, the threshold follows the entropy.
    assert by_threshold == pytest.approx(-2 * sign * edge * math.log(4), rel=1e-6)
    value, by_entropy, _ = penalty_at(sign * (edge + 0.1), band="hinge")
    assert (value, by_entropy) == (pytest.approx(0.01), pytest.approx(0.2 * sign))
    assert penalty_at(sign * (edge + 1e-9), band="hinge")[0] < 1e-15


def test_early_rows_are_penalised_whatever_the_model_does():
    t = 64
    best = torch.arange(1.0, t + 1).log().expand(1, 1, 1, t)
    for i in range(t):
        one = torch.full((1, 1, 1, t), 0.5 * math.log(t))
        one[..., i] = best[..., i].clamp(max=0.69 * math.log(t))  # inside the band, not on its edge
        out = entropy_penalty(one, torch.full((1, 1), 0.5)).item() > 0
        assert out == (i + 1 < t**0.3)
    assert entropy_penalty(0.5 * best, torch.full((1, 1), 0.5), ceiling="row").item() == 0


def test_mean_is_the_sum_divided_by_rows():
    entropies, thresholds = random(2, 5, 3, 7).abs(), torch.full((2, 3), 0.5, dtype=torch.float64)
    total = entropy_penalty(entropies, thresholds, weight=1e-5)
    torch.testing.assert_close(entropy_penalty(entropies, thresholds, weight=35e-5, rows="mean"), total)


def test_penalty_maps_over_runs_with_their_own_weights():
    entropies, thresholds = random(4, 2, 5, 3, 7).abs(), random(4, 2, 3).sigmoid()
    weights = torch.tensor([0.0, 1e-5, 0.1, 3.0], dtype=torch.float64)
    mapped = torch.vmap(lambda e, th, w: entropy_penalty(e, th, weight=w))(entropies, thresholds, weights)
    single = [entropy_penalty(e, th, weight=w) for e, th, w in zip(entropies, thresholds, weights, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(single))
    assert mapped[0] == 0


def test_half_precision_and_compile():
    half = entropy_penalty(random(2, 5, 3, 7).abs().half(), torch.full((2, 3), 0.5))
    assert half.dtype == torch.float32 and half.isfinite()
    module = unhooked("lossbook.methods.privacy_robustness.entropy_guided_attention")

    def compiled(name):
        return one_graph(getattr(module, name))

    query, entropies = random(2, 3, 6, 4).requires_grad_(), random(2, 5, 3, 7).abs().requires_grad_()
    attention, thresholds = rows(3, 6), torch.full((3,), 0.9, dtype=torch.float64, requires_grad=True)
    pairs = [
        (compiled("causal_attention")(query, query), causal_attention(query, query), (query,)),
        (compiled("attention_entropy")(attention), attention_entropy(attention), (attention,)),
        (
            compiled("entropy_penalty")(entropies, thresholds),
            entropy_penalty(entropies, thresholds),
            (entropies, thresholds),
        ),
    ]
    for ours, eager, inputs in pairs:
        agree(ours.square().sum(), eager.square().sum(), inputs)


# Linear feed-forward networks and their norms -----------------------------------------------------------


def test_two_linear_layers_are_one():
    first, second = nn.Linear(5, 11, dtype=torch.float64), nn.Linear(11, 4, dtype=torch.float64)
    x = random(6, 5)
    weight, bias = merged_linear(first.weight, second.weight, first_bias=first.bias, second_bias=second.bias)
    torch.testing.assert_close(F.linear(x, weight, bias), second(first(x)))
    weight, bias = merged_linear(first.weight, second.weight)
    assert torch.equal(bias, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(x @ weight.T, x @ first.weight.T @ second.weight.T)


def test_weight_normalisation_is_that_of_pytorch():
    weight = random(4, 6)
    ours, theirs = (nn.Linear(6, 4, bias=False, dtype=torch.float64) for _ in range(2))
    for layer in (ours, theirs):
        layer.weight.data.copy_(weight)
    parametrize.register_parametrization(ours, "weight", WeightNormalisation())
    parametrizations.weight_norm(theirs)
    x = random(3, 6, seed=2)
    torch.testing.assert_close(ours.weight, weight)
    gradients = []
    for layer in (ours, theirs):
        layer.parametrizations.weight.original0.data.mul_(1.5)
        layer(x).square().sum().backward()
        gradients.append([layer.parametrizations.weight.original0.grad, layer.parametrizations.weight.original1.grad])
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(*gradients)
    zero = WeightNormalisation()(torch.ones(1, 1), torch.zeros(1, 3, requires_grad=True))
    assert torch.equal(zero, torch.zeros(1, 3))


def test_spectral_normalisation_reaches_norm_one_as_pytorch_does():
    weight = random(7, 5)
    ours, theirs = (nn.Linear(5, 7, bias=False, dtype=torch.float64) for _ in range(2))
    for layer in (ours, theirs):
        layer.weight.data.copy_(weight)
    parametrize.register_parametrization(ours, "weight", SpectralNormalisation(ours.weight, start=200))
    parametrizations.spectral_norm(theirs, n_power_iterations=200)
    assert torch.linalg.matrix_norm(ours.weight.detach(), 2).item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-7, atol=1e-9)
    x = random(3, 5, seed=3)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(
        ours.parametrizations.weight.original.grad, theirs.parametrizations.weight.original.grad, rtol=1e-6, atol=1e-8
    )


def test_spectral_normalisation_follows_a_moving_weight_and_rests_in_evaluation():
    layer = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    layer.weight.data = torch.eye(6, dtype=torch.float64) + 0.2 * random(6, 6, seed=30)
    normalisation = SpectralNormalisation(layer.weight)
    parametrize.register_parametrization(layer, "weight", normalisation)
    for step in range(30):
        layer.parametrizations.weight.original.data += 0.02 * random(6, 6, seed=step)
        layer.weight  # noqa: B018 a call in training
    assert torch.linalg.matrix_norm(layer.weight.detach(), 2).item() == pytest.approx(1, abs=0.02)
    layer.eval()
    before = normalisation.left.clone()
    assert torch.equal(layer.weight, layer.weight) and torch.equal(normalisation.left, before)


def test_a_weight_that_is_not_finite_leaves_no_trace_in_the_estimate():
    weight = random(6, 4)
    norm, before = SpectralNormalisation(weight), SpectralNormalisation(weight).left.clone()
    spoilt = weight.clone()
    spoilt[2, 1] = math.nan
    assert norm(spoilt).isnan().any() and torch.equal(norm.left, before)
    assert norm(weight).isfinite().all()


def test_normalisations_train_in_a_stack_as_alone():
    from lossbook import lab

    data = {"x": random(32, 5, dtype=torch.float32), "y": random(32, 3, seed=1, dtype=torch.float32)}
    for kind in ("weight", "spectral"):

        def build(run, kind=kind):
            layer = nn.Linear(5, 3)
            how = WeightNormalisation() if kind == "weight" else SpectralNormalisation(layer.weight)
            parametrize.register_parametrization(layer, "weight", how)
            return nn.Sequential(layer)  # a layer with a parametrisation has a class of its own

        def train(seeds, build=build):
            return lab.fit(
                build,
                lambda model, batch, run: F.mse_loss(model(batch["x"]), batch["y"]),
                data,
                lab.grid(seed=seeds, learning_rate=[0.05]),
                epochs=3,
                batch_size=8,
                device="cpu",
                progress=None,
            )

        stacked, alone = train([0, 1]), train([1])
        for name, value in alone.parameters.items():
            torch.testing.assert_close(stacked.parameters[name][1], value[0], rtol=1e-4, atol=1e-6)
        if kind == "spectral":
            moved = stacked.buffers["0.parametrizations.weight.0.left"]
            assert not torch.allclose(moved[0], moved[1])
            norm = torch.linalg.matrix_norm(stacked.module(0)[0].weight.detach(), 2).item()
            assert norm == pytest.approx(1, abs=0.05)


# Counting, and errors ------------------------------------------------------------------------------------


def test_counts_are_those_of_the_papers_table():
    gpt2 = dict(layers=12, heads=12, width=768, hidden=3072, length=128)
    assert nonlinear_operations(**gpt2) == {
        "softmax": 144 * 128 * 128,
        "norm": 24 * 128 * 768,
        "activation": 12 * 128 * 3072,
    }
    bare = nonlinear_operations(**gpt2, norm=False, activation=False)
    assert bare == {"softmax": 144 * 128 * 128, "norm": 0, "activation": 0}
    assert nonlinear_operations(**gpt2, last_norm=True)["norm"] == 25 * 128 * 768


def test_bad_input_is_refused():
    q = torch.ones(2, 5, 3)
    rejects(causal_attention, q[0], q[0], names="query")
    rejects(causal_attention, q, q[:1], names="key")
    rejects(causal_attention, q.int(), q.int(), names="query")
    assert "(3,)" in rejects(causal_attention, q, q, temperature=torch.ones(3), names="temperature")
    rejects(attention_entropy, torch.ones(2, 0), names="attention")
    rejects(attention_entropy, q, epsilon=-1.0, names="epsilon")
    e, thresholds = torch.ones(2, 3, 4, 5), torch.ones(2, 4)
    rejects(entropy_penalty, e[0], thresholds, names="entropies")
    assert "(2, 4)" in rejects(entropy_penalty, e, torch.ones(3, 4), names="thresholds")
    for name, value in [
        ("weight", -1.0),
        ("margin", math.nan),
        ("ceiling", "rows"),
        ("band", "soft"),
        ("rows", "none"),
    ]:
        rejects(entropy_penalty, e, thresholds, **{name: value}, names=name)
    rejects(entropy_penalty, e, thresholds, context=4, names="context")
    rejects(entropy_penalty, e, thresholds, context=9, ceiling="row", names="context")
    w = torch.ones(4, 3)
    rejects(merged_linear, w, w, names="second")
    rejects(merged_linear, w, torch.ones(2, 4), first_bias=torch.ones(3), names="first_bias")
    rejects(merged_linear, w, torch.ones(2, 4), second_bias=torch.ones(4), names="second_bias")
    rejects(SpectralNormalisation, torch.ones(3), names="weight")
    rejects(SpectralNormalisation, w, start=0, names="start")
    sizes = dict(layers=1, heads=1, width=2, hidden=2, length=2)
    rejects(nonlinear_operations, **{**sizes, "heads": 0}, names="heads")


test_on_any_device = on_any_device(
    partial(SpectralNormalisation(torch.randn(4, 3)), torch.randn(4, 3)),
    partial(SpectralNormalisation, torch.randn(4, 3)),
    partial(WeightNormalisation(), torch.rand(4, 1), torch.randn(4, 3)),
    partial(attention_entropy, rows(2, 6), epsilon=1e-9),
    partial(causal_attention, random(2, 6, 3), random(2, 6, 3), temperature=torch.ones(2)),
    *(
        partial(
            entropy_penalty, random(2, 5, 3, 7), torch.rand(3), ceiling=ceiling, band=band, weight=torch.tensor(0.1)
        )
        for ceiling, band in (("row", "hinge"), ("context", "jump"))
    ),
    partial(merged_linear, random(4, 3), random(2, 4), first_bias=random(4)),
    partial(nonlinear_operations, layers=1, heads=1, width=2, hidden=2, length=2),
)
