"""Logit-DP against automatic differentiation pair by pair, the authors' formula and case, and what the sensitivity promises."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from support import agree, extreme, one_graph, pair, rejects, unhooked
from torch import nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from lossbook.methods.contrastive import (
    logit_dp_gradient,
    logit_dp_influence,
    logit_dp_loss,
    logit_dp_sensitivity,
    logit_dp_weights,
    pair_gradient_norms,
)
from lossbook.methods.contrastive.infonce import info_nce
from lossbook.methods.similarities import cosine_similarity

INFINITE = 1e12


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(bias=True, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)]
        encoder = nn.Sequential(*layers).double()
    return encoder, {name: value.detach() for name, value in encoder.named_parameters()}


def cosines(encoder, parameters, first, second):
    return cosine_similarity(*(functional_call(encoder, parameters, (each,)) for each in (first, second)))


def flat(gradients, lead=0):
    return torch.cat([value.flatten(lead) for value in gradients.values()], lead)


def all_gradients(encoder, parameters, first, second):
    """(n, n, p), by automatic differentiation."""
    return flat(jacrev(lambda w: cosines(encoder, w, first, second))(parameters), 2)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("route", ["linear", "jacobian", "auto"])
def test_norms_are_those_of_automatic_differentiation(route, bias):
    encoder, parameters = network(bias)
    first, second = draw(2, 7, 2, 3)
    expected = all_gradients(encoder, parameters, first, second).norm(dim=2)
    norms = pair_gradient_norms(encoder, parameters, first, second, route=route)
    torch.testing.assert_close(norms, expected, rtol=1e-10, atol=1e-10)


def test_norms_of_a_convolutional_encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    parameters = dict(encoder.named_parameters())
    first, second = draw(2, 4, 1, 6, 6)
    expected = all_gradients(encoder, parameters, first, second).norm(dim=2)
    norms = pair_gradient_norms(encoder, parameters, first, second)
    torch.testing.assert_close(norms, expected, rtol=1e-10, atol=1e-10)


def test_rows_do_not_matter():
    encoder, parameters = network()
    first, second = draw(2, 7, 6)
    whole, blocks = (
        pair_gradient_norms(encoder, parameters, first, second, route="jacobian", rows=rows) for rows in (None, 3)
    )
    torch.testing.assert_close(whole, blocks, rtol=1e-12, atol=1e-12)
    settings = {"clip": 0.3, "temperature": 0.5}
    whole, blocks = (logit_dp_gradient(encoder, parameters, first, second, rows=rows, **settings) for rows in (None, 3))
    torch.testing.assert_close(whole, blocks, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_without_clipping_it_is_cross_entropy(n, temperature):
    x, y = pair(n, 5)
    norms = torch.ones(n, n, dtype=torch.float64)
    for settings in ({}, {"norms": norms, "clip": 1.0}):
        logits = F.normalize(x) @ F.normalize(y).T / temperature
        oracle = F.cross_entropy(logits, torch.arange(n), reduction="sum")
        agree(logit_dp_loss(x, y, temperature=temperature, **settings), oracle, (x, y))


@pytest.mark.parametrize("clip", [0.1, 1.0, INFINITE])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_gradient_is_the_sum_of_clipped_gradients(temperature, clip):
    encoder, parameters = network()
    first, second = draw(2, 6, 6)
    gradients = all_gradients(encoder, parameters, first, second)
    gradients = gradients * (clip / gradients.norm(dim=2, keepdim=True).clamp(min=clip))
    weights = torch.softmax(cosines(encoder, parameters, first, second) / temperature, 1) - torch.eye(6)
    expected = torch.einsum("ij,ijp->p", weights, gradients) / temperature
    ours = logit_dp_gradient(encoder, parameters, first, second, clip=clip, temperature=temperature)
    torch.testing.assert_close(flat(ours), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("clip", [0.01, 0.1, 1.14, INFINITE])
@pytest.mark.parametrize("temperature", [0.2, 1.9, 1.0])
def test_the_case_of_the_authors_code(temperature, clip):
    # One weight w, similarities (w x)(w y), and their formula: minus the mean of (diagonal - numerator / denominator).
    w, x, y = 0.15, torch.tensor([3.14, 2.71], dtype=torch.float64), torch.tensor([0.15, 4.35], dtype=torch.float64)
    similarities, gradients = w * w * torch.outer(x, y), 2 * w * torch.outer(x, y)
    total = 0.0
    for i in range(2):
        clipped = [float(g / max(g, clip)) * clip / temperature for g in gradients[i]]
        exponentials = [math.exp(float(z) / temperature) for z in similarities[i]]
        numerator = sum(g * e for g, e in zip(clipped, exponentials, strict=True))
        total += clipped[i] - numerator / sum(exponentials)
    weights = logit_dp_weights(similarities, gradients, clip=clip, temperature=temperature)
    assert float((weights * gradients.clamp(max=INFINITE)).sum() / 2) == pytest.approx(-total / 2, rel=1e-12)


def encoders_worst_case(n, temperature):
    """The movement of a step of a one-parameter encoder on the circle when the last pair goes."""

    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, inputs):
            angle = inputs[:, 0] + self.w * inputs[:, 1]
            return torch.stack([angle.cos(), angle.sin()], 1)

    small, steep = 1e-3, 2e3
    anchors = torch.tensor([[0.0, 0.0]] * (n - 1) + [[math.pi, 0.0]], dtype=torch.float64)
    partners = torch.tensor([[math.pi - small, steep]] * (n - 1) + [[-small, steep]], dtype=torch.float64)
    with_pair, without = (
        logit_dp_gradient(Turn(), {"w": torch.zeros((), dtype=torch.float64)}, anchors[:m], partners[:m],
                          temperature=temperature)["w"]
        for m in (n, n - 1)
    )  # fmt: skip
    return float((with_pair - without).abs())


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 10, 60])
def test_sensitivity_is_attained_by_an_encoder(n, temperature):
    moved = encoders_worst_case(n, temperature)
    derived, published = (logit_dp_sensitivity(n, temperature=temperature, form=f) for f in ("derived", "published"))
    assert published < moved <= derived * (1 + 1e-12)
    assert moved == pytest.approx(derived, rel=1e-4)


def test_sensitivity_of_the_code_is_five_times_too_small_at_its_defaults():
    code = logit_dp_sensitivity(100, temperature=0.2, form="code")
    assert code == pytest.approx(100 * (0.01 + 2 * math.exp(10) / (99 + math.exp(10))))
    assert 4.9 < encoders_worst_case(100, 0.2) / code < 5


@pytest.mark.parametrize(("n", "value"), [(2, 3.523), (10, 10.086), (200, 16.248)])
def test_sensitivity_in_numbers(n, value):
    assert logit_dp_sensitivity(n) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(("n", "value"), [(2, 2.0), (10, 9.214), (200, 16.177)])
def test_published_sensitivity_in_numbers(n, value):
    assert logit_dp_sensitivity(n, form="published") == pytest.approx(value, abs=5e-4)


@given(n=st.integers(1, 10**6), clip=st.floats(1e-3, 1e3), temperature=st.floats(0.001, 10))
def test_sensitivity_grows_with_the_batch_to_its_supremum(n, clip, temperature):
    one, more, all_of_them = (logit_dp_sensitivity(m, clip=clip, temperature=temperature) for m in (n, n + 1, None))
    assert 0 <= one <= more * (1 + 1e-12) and more <= all_of_them * (1 + 1e-12)
    assert one == pytest.approx(clip * logit_dp_sensitivity(n, temperature=temperature))
    assert one <= 2 * n * clip / temperature * (1 + 1e-12)  # all rows change by all that they can
    if temperature > 0.01:
        assert all_of_them == pytest.approx(2 * clip * (1 + math.exp(2 / temperature)) / temperature)


def test_sensitivity_at_extremes():
    assert logit_dp_sensitivity(1) == 0
    assert logit_dp_sensitivity(1000, temperature=1e-6) == pytest.approx(2e3 / 1e-6)
    assert logit_dp_sensitivity(temperature=1e-6) == math.inf


@given(st.integers(2, 8), st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 1.0]))
def test_no_pair_moves_the_step_by_more_than_its_influence(n, seed, temperature):
    draws = torch.Generator().manual_seed(seed)
    c = 2 * torch.rand(n, n, generator=draws, dtype=torch.float64) - 1
    vectors = torch.randn(n, n, 2, generator=draws, dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=2, keepdim=True)
    influence = logit_dp_influence(c, temperature=temperature)
    assert (influence <= logit_dp_sensitivity(n, temperature=temperature) * (1 + 1e-12)).all()
    whole = torch.einsum("ij,ijp->p", logit_dp_weights(c, temperature=temperature), vectors)
    for k in range(n):
        rest = [i for i in range(n) if i != k]
        left = logit_dp_weights(c[rest][:, rest], temperature=temperature)
        moved = whole - torch.einsum("ij,ijp->p", left, vectors[rest][:, rest])
        assert moved.norm() <= influence[k] * (1 + 1e-12) + 1e-12


def test_what_is_no_member_does_not_matter():
    x, y = pair(6)
    members = torch.tensor([True, False, True, True, False, True])
    norms = draw(6, 6).abs() + 0.5
    ours = logit_dp_loss(x, y, norms, clip=1.0, temperature=0.5, members=members)
    theirs = logit_dp_loss(x[members], y[members], norms[members][:, members], clip=1.0, temperature=0.5)
    agree(ours, theirs, (x, y))


def test_a_batch_without_members_has_no_gradient():
    x, y = pair(3)
    loss = logit_dp_loss(x, y, torch.ones(3, 3), members=torch.zeros(3, dtype=torch.bool))
    gradients = torch.autograd.grad(loss, (x, y))
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients)


def test_noise_has_the_size_asked_for_and_is_unrelated_between_parameters():
    encoder, parameters = network()
    first, second = draw(2, 3, 6)
    quiet = flat(logit_dp_gradient(encoder, parameters, first, second))

    def noise(seed, **settings):
        settings = {"noise_multiplier": 1.5, **settings}
        noisy = logit_dp_gradient(
            encoder, parameters, first, second, generator=torch.Generator().manual_seed(seed), **settings
        )
        return flat(noisy) - quiet

    sample = torch.stack([noise(seed, sensitivity=2.0) for seed in range(100)])
    assert float(sample.std()) == pytest.approx(3.0, rel=0.05)
    related = torch.corrcoef(sample.T) - torch.eye(sample.shape[1])
    assert float(related.abs().max()) < 0.6
    torch.testing.assert_close(noise(0, sensitivity=2.0), noise(0, sensitivity=2.0))
    by_default = noise(0)
    torch.testing.assert_close(by_default, noise(0, sensitivity=logit_dp_sensitivity()))


def renyi_epsilon(multiplier, rate, steps, delta):
    """Poisson-sampled Gaussian: the moments of the density ratio, integrated numerically."""
    orders = torch.arange(1.1, 20, 0.1, dtype=torch.float64)
    z = torch.linspace(-15 * multiplier, 20 + 15 * multiplier, 10_000, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), multiplier)
    ratio = torch.log1p(rate * torch.expm1((2 * z - 1) / (2 * multiplier**2)))
    moments = torch.logsumexp(normal.log_prob(z) + orders[:, None] * ratio, 1) + torch.log(z[1] - z[0])
    spent = steps * moments / (orders - 1) + torch.log1p(-1 / orders) - torch.log(delta * orders) / (orders - 1)
    return float(spent.min())


@pytest.mark.filterwarnings("ignore:Optimal order")
@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(5.0, 32 / 1078, 150), (1.0, 0.01, 1000)])
def test_the_accountant_that_the_notebook_uses(epsilon, rate, steps):
    utils = pytest.importorskip("opacus.accountants.utils")
    multiplier = utils.get_noise_multiplier(
        target_epsilon=epsilon, target_delta=1e-3, sample_rate=rate, steps=steps, accountant="rdp"
    )
    assert renyi_epsilon(multiplier, rate, steps, 1e-3) == pytest.approx(epsilon, rel=0.03)


def test_the_accountant_against_the_exact_gaussian_mechanism():
    # Without sampling, T steps are one Gaussian mechanism at multiplier sigma/sqrt(T): Balle and Wang (2018), theorem 8.
    utils = pytest.importorskip("opacus.accountants.utils")
    steps, delta = 10, 1e-3
    multiplier = utils.get_noise_multiplier(
        target_epsilon=5.0, target_delta=delta, sample_rate=1.0, steps=steps, accountant="rdp"
    )
    mu = math.sqrt(steps) / multiplier

    def excess(epsilon):
        upper, lower = stats.norm.cdf(mu / 2 - epsilon / mu), stats.norm.cdf(-mu / 2 - epsilon / mu)
        return upper - math.exp(epsilon) * lower - delta

    exact = optimize.brentq(excess, 0.1, 20)
    assert exact <= 5.0  # the accountant is an upper bound,
    assert exact > 4.3  # and not a loose one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row"])
def test_extreme_embeddings_stay_finite(case, dtype):
    x, y = extreme(case, dtype)
    norms = torch.zeros(8, 8, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    norms[0] = 1e30
    loss = logit_dp_loss(x, y, norms, temperature=0.01)
    assert loss.isfinite() and loss.dtype == norms.dtype
    gradients = torch.autograd.grad(loss, (x, y))
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients)


def test_single_precision_norms_are_accurate():
    encoder, parameters = network()
    first, second = draw(2, 7, 6)
    exact = pair_gradient_norms(encoder, parameters, first, second)
    encoder = encoder.float()
    single = pair_gradient_norms(
        encoder, {name: value.float() for name, value in parameters.items()}, first.float(), second.float()
    )
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("clip", [0.05, 0.37, 1.3])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("route", ["linear", "jacobian"])
def test_no_clipped_gradient_exceeds_the_clip(route, autocast, clip, dtype):
    encoder, _ = network()
    encoder = encoder.to(dtype)
    parameters = dict(encoder.named_parameters())
    first, second = (3 * draw(7, 6, seed=seed).to(dtype) for seed in (0, 1))
    with torch.autocast("cpu", enabled=autocast):
        norms = pair_gradient_norms(encoder, parameters, first, second, route=route)
        similarities = torch.zeros(7, 7)
        factors = logit_dp_weights(similarities, norms, clip=clip) / logit_dp_weights(similarities)
    assert norms.dtype == torch.float32 and (norms > clip).any()
    # The exact gradients of the very network that has these rounded parameters.
    exact = copy.deepcopy(encoder).double()
    state = {name: value.detach() for name, value in exact.named_parameters()}
    lengths = all_gradients(exact, state, first.double(), second.double()).norm(dim=2)
    assert (factors.double() * lengths <= clip).all()
    torch.testing.assert_close(norms.double(), lengths, rtol=1e-4, atol=1e-4)
    # Norms that are kept in half precision may have been rounded down.
    kept = logit_dp_weights(similarities, norms.to(dtype), clip=clip) / logit_dp_weights(similarities)
    assert (kept.double() * lengths <= clip).all() and (kept >= 0.9 * factors).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_of_a_half_precision_network_are_computed_in_single_precision(dtype):
    encoder, _ = network()
    encoder = encoder.to(dtype)
    first, second = (3 * draw(7, 6, seed=seed).to(dtype) for seed in (0, 1))
    exact = copy.deepcopy(encoder).double()
    settings = {"clip": 0.3, "temperature": 0.5}
    expected = logit_dp_gradient(exact, dict(exact.named_parameters()), first.double(), second.double(), **settings)
    for autocast in (False, True):
        with torch.autocast("cpu", enabled=autocast):
            found = logit_dp_gradient(encoder, dict(encoder.named_parameters()), first, second, **settings)
        assert all(value.dtype == torch.float32 and not value.requires_grad for value in found.values())
        torch.testing.assert_close(flat(found).double(), flat(expected), rtol=1e-4, atol=1e-5)


def test_dtypes_meet_in_the_widest():
    encoder, parameters = network()
    first, second = draw(2, 5, 6)
    mixed = {**parameters, "1.bias": parameters["1.bias"].bfloat16()}
    rounded = {name: value.double() for name, value in mixed.items()}
    inputs = first.half(), second
    for route in ("linear", "jacobian"):
        found = pair_gradient_norms(encoder, mixed, *inputs, route=route)
        expected = pair_gradient_norms(encoder, rounded, first.half().double(), second, route=route)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found, expected = (logit_dp_gradient(encoder, each, *inputs) for each in (mixed, rounded))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_half_precision_does_not_overflow_on_the_way():
    encoder = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4)).half()
    first, second = (100 * draw(4, 512, seed=seed).half() for seed in (0, 1))
    parameters = dict(encoder.named_parameters())
    assert pair_gradient_norms(encoder, parameters, first, second).isfinite().all()
    assert flat(logit_dp_gradient(encoder, parameters, first, second)).isfinite().all()


def test_views_that_are_nearly_equal_do_not_look_shorter_than_they_are():
    # Both parts of the gradient of a positive pair then cancel, in float32 down to rounding.
    encoder, parameters = network()
    first = draw(20, 6)
    second = first + 1e-4 * draw(20, 6, seed=1)
    single, state = copy.deepcopy(encoder).float(), {name: value.float() for name, value in parameters.items()}
    wide = copy.deepcopy(single).double()
    exact = all_gradients(wide, dict(wide.named_parameters()), first.float().double(), second.float().double())
    assert (pair_gradient_norms(single, state, first.float(), second.float()) >= exact.norm(dim=2)).all()


@pytest.mark.parametrize("route", ["auto", "linear", "jacobian"])
@pytest.mark.parametrize("frozen", ["1.weight", "3.bias", "1."])
def test_frozen_parameters_may_be_left_out(frozen, route):
    encoder, parameters = network()
    first, second = draw(2, 5, 6)
    trained = {name: value for name, value in parameters.items() if not name.startswith(frozen)}
    expected = all_gradients(encoder, parameters, first, second)
    kept = torch.cat([torch.full((value.numel(),), name in trained) for name, value in parameters.items()])
    norms = pair_gradient_norms(encoder, trained, first, second, route=route)
    torch.testing.assert_close(norms, expected[..., kept].norm(dim=2), rtol=1e-10, atol=1e-10)
    gradients = logit_dp_gradient(encoder, trained, first, second, clip=0.3)
    assert gradients.keys() == trained.keys()
    # They need not be frozen by requires_grad: what comes out is constant all the same.
    for name, value in encoder.named_parameters():
        assert value.requires_grad, name
    assert not norms.requires_grad and not any(value.requires_grad for value in gradients.values())
    half = copy.deepcopy(encoder).half()  # what is left out is in half precision as well
    some = {name: value for name, value in half.named_parameters() if name in trained}
    assert flat(logit_dp_gradient(half, some, first.half(), second.half(), clip=0.3)).isfinite().all()


@pytest.mark.parametrize("names", ["one", "both"])
def test_tied_parameters(names):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    encoder[2].weight = encoder[0].weight
    first, second = draw(2, 5, 6)
    parameters = dict(encoder.named_parameters(remove_duplicate=names == "one"))
    assert ("2.weight" in parameters) == (names == "both")
    single = {name: value.detach() for name, value in encoder.named_parameters()}
    expected = all_gradients(encoder, single, first, second)
    norms = pair_gradient_norms(encoder, parameters, first, second)
    torch.testing.assert_close(norms, expected.norm(dim=2), rtol=1e-10, atol=1e-10)
    draws = torch.Generator().manual_seed(0)
    gradients = logit_dp_gradient(encoder, parameters, first, second, noise_multiplier=1.0, generator=draws)
    assert gradients.keys() == parameters.keys()
    if names == "both":
        assert torch.equal(gradients["0.weight"], gradients["2.weight"])
    rejects(pair_gradient_norms, encoder, single, first, second, route="linear", names="encoder")


def test_where_the_other_constants_are_too_small():
    for n in (2, 3, 8, 64, 1000, None):
        assert all(
            logit_dp_sensitivity(n, temperature=t, form="published") <= logit_dp_sensitivity(n, temperature=t)
            for t in (0.1, 0.5, 1.0, 2.0, 10.0)
        )
        for temperature, smaller in ((0.1, True), (0.5, True), (1.1, False), (2.0, False), (20.0, False)):
            code, ours = (logit_dp_sensitivity(n, temperature=temperature, form=form) for form in ("code", "derived"))
            assert (code < ours) == smaller, (n, temperature)


def test_vmap_over_networks():
    networks = [network(seed=seed)[0] for seed in range(3)]
    stacked, _ = stack_module_state(networks)
    stacked = {name: value.detach() for name, value in stacked.items()}
    first, second = draw(2, 4, 6)

    def step(parameters):
        return flat(logit_dp_gradient(networks[0], parameters, first, second, clip=0.3))

    single = [step({name: value[k] for name, value in stacked.items()}) for k in range(3)]
    torch.testing.assert_close(vmap(step)(stacked), torch.stack(single), rtol=1e-12, atol=1e-12)


def test_clip_and_temperature_may_be_tensors():
    x, y = pair()
    norms = draw(8, 8).abs()
    clips = torch.tensor([0.1, 1.0], dtype=torch.float64)

    def step(clip):
        return grad(lambda x: logit_dp_loss(x, y.detach(), norms, clip=clip, temperature=2 * clip))(x.detach())

    single = torch.stack([step(clip) for clip in clips])
    torch.testing.assert_close(vmap(step)(clips), single, rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x, y = pair()
    norms = draw(8, 8).abs()
    loss = unhooked("lossbook.methods.contrastive.logit_dp").logit_dp_loss
    compiled = one_graph(loss)
    agree(compiled(x, y, norms, temperature=0.5), logit_dp_loss(x, y, norms, temperature=0.5), (x, y))


def test_value_is_info_nce():
    x, y = pair()
    expected = info_nce(x, y, temperature=0.3, reduction="sum")
    torch.testing.assert_close(logit_dp_loss(x, y, draw(8, 8).abs(), clip=0.1, temperature=0.3), expected)


def test_bad_input_is_refused():
    encoder, parameters = network()
    good, inputs = torch.ones(3, 2), torch.ones(3, 6, dtype=torch.float64)
    rejects(logit_dp_loss, good, torch.ones(4, 2), names="keys")
    rejects(logit_dp_loss, good, good, torch.ones(2, 2), names="norms")
    rejects(logit_dp_loss, good, good, clip=0.0, names="clip")
    rejects(logit_dp_loss, good, good, temperature=-1.0, names="temperature")
    rejects(logit_dp_loss, good, good, members=torch.ones(3), names="members")
    rejects(logit_dp_weights, torch.ones(2, 3), names="similarities")
    rejects(logit_dp_influence, torch.ones(3), names="cosines")
    rejects(logit_dp_sensitivity, 0, names="n")
    rejects(logit_dp_sensitivity, 2.0, names="n")
    rejects(logit_dp_sensitivity, 2, form="paper", names="form")
    rejects(pair_gradient_norms, encoder, parameters, inputs, inputs[:2], names="second")
    rejects(pair_gradient_norms, encoder, parameters, inputs, inputs, route="fast", names="route")
    rejects(pair_gradient_norms, encoder, parameters, inputs, inputs, rows=0, names="rows")
    rejects(pair_gradient_norms, encoder, {"2.weight": parameters["1.weight"]}, inputs, inputs, names="parameters")
    rejects(pair_gradient_norms, encoder, {}, inputs, inputs, names="parameters")
    rejects(pair_gradient_norms, encoder, parameters, inputs[:0], inputs[:0], names="first")
    rejects(logit_dp_gradient, encoder, parameters, inputs[:0], inputs[:0], names="first")
    rejects(pair_gradient_norms, nn.Conv2d(1, 1, 1), {}, inputs, inputs, route="linear", names="encoder")
    unflattened = nn.Sequential(nn.Linear(3, 2)).double()
    rejects(
        pair_gradient_norms, unflattened, dict(unflattened.named_parameters()), inputs.view(3, 2, 3),
        inputs.view(3, 2, 3), names="encoder",
    )  # fmt: skip
    rejects(logit_dp_gradient, encoder, parameters, inputs, inputs, noise_multiplier=-1.0, names="noise_multiplier")
    rejects(
        logit_dp_gradient, encoder, parameters, inputs, inputs, noise_multiplier=1.0, sensitivity=0.0,
        names="sensitivity",
    )  # fmt: skip


ENCODED = (*network(), draw(4, 6), draw(4, 6, seed=1))  # an encoder, its parameters and two views
MEMBERS = torch.tensor([True, True, False, True])
test_on_any_device = on_any_device(
    partial(logit_dp_gradient, *ENCODED, noise_multiplier=1.0),
    partial(logit_dp_influence, torch.eye(4), clip=torch.tensor(0.5)),
    partial(logit_dp_loss, *pair(4), torch.ones(4, 4), clip=torch.tensor(0.5), members=MEMBERS),
    partial(logit_dp_loss, *pair(4)),
    partial(logit_dp_sensitivity, 4),
    partial(logit_dp_weights, torch.eye(4), torch.ones(4, 4), members=MEMBERS),
    partial(logit_dp_weights, torch.eye(4), torch.ones(4, 4), temperature=torch.tensor(0.5)),
    *(partial(pair_gradient_norms, *ENCODED, route=route, rows=3) for route in ("linear", "jacobian")),
)
