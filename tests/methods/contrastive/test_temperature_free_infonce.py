"""The temperature-free loss against PyTorch's cross-entropy of PyTorch's logit, and what the derivation promises."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, extreme, in_blocks, one_graph, pair, rejects, unhooked

from lossbook.methods.contrastive import log_odds, temperature_free_info_nce


def oracle(x, y, reduction="mean"):
    logits = torch.special.logit((1 + F.normalize(x) @ F.normalize(y).T) / 2)
    return F.cross_entropy(logits, torch.arange(len(x)), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 2), (8, 5), (64, 16)])
def test_is_cross_entropy_over_log_odds(n, d, reduction):
    x, y = pair(n, d)
    agree(temperature_free_info_nce(x, y, reduction=reduction), oracle(x, y, reduction), (x, y))


def test_symmetric_is_the_mean_of_both_directions():
    x, y = pair()
    agree(temperature_free_info_nce(x, y, symmetric=True), (oracle(x, y) + oracle(y, x)) / 2, (x, y))


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(symmetric):
    assert torch.autograd.gradcheck(lambda x, y: temperature_free_info_nce(x, y, symmetric=symmetric), pair(4, 3))


@given(st.floats(-1 + 1e-6, 1 - 1e-6))
def test_log_odds_are_twice_the_inverse_hyperbolic_tangent(c):
    # Half of all digits are left at the ends, where the slope is a million.
    assert log_odds(torch.tensor(c, dtype=torch.float64)).item() == pytest.approx(
        2 * math.atanh(c), rel=1e-8, abs=1e-14
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_at_and_beyond_the_ends(dtype):
    end = math.log1p(1 / (2 * torch.finfo(dtype).eps))
    c = torch.tensor([-1.001, -1.0, 0.0, 1.0, 1.001], dtype=dtype, requires_grad=True)
    s = log_odds(c)
    torch.testing.assert_close(s, torch.tensor([-end, -end, 0.0, end, end], dtype=dtype))
    (slope,) = torch.autograd.grad(s.sum(), c)
    assert slope.isfinite().all() and (slope > 1).all()


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=20))
def test_log_odds_never_decrease(values):
    s = log_odds(torch.tensor(sorted(values), dtype=torch.float32))
    assert (s.diff() >= 0).all()


def test_gradient_is_that_of_infonce_at_the_local_temperature():
    c = torch.empty(8, 8, dtype=torch.float64).uniform_(-0.95, 0.95, generator=torch.Generator().manual_seed(0))
    c.requires_grad_()
    loss = F.cross_entropy(log_odds(c), torch.arange(8), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, c)
    p = torch.softmax(log_odds(c), 1)
    torch.testing.assert_close(gradient, (p - torch.eye(8)) / ((1 - c**2) / 2), rtol=1e-10, atol=1e-10)


def test_loss_vanishes_with_agreement_and_is_log_n_without():
    # Orthogonal everything: all log-odds are 0.
    basis = torch.eye(8, dtype=torch.float64)
    assert temperature_free_info_nce(basis[:4], basis[4:]).item() == pytest.approx(math.log(4))
    assert 0 <= temperature_free_info_nce(basis, basis).item() < 1e-13  # of log-odds of 36


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "duplicates", "zero row"])
def test_extreme_embeddings_stay_finite(case, dtype):
    x, y = extreme(case, dtype)
    loss = temperature_free_info_nce(x, y, symmetric=True)
    assert loss.isfinite() and loss >= 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, y)))


def test_duplicates_are_still_pushed_apart():
    # A clamp would give these a gradient of zero by their cosine.
    c = torch.ones(2, 2, dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(log_odds(c), torch.arange(2)), c)
    assert gradient[0, 1] > 1e5


@given(
    n=st.integers(1, 8),
    d=st.integers(1, 8),
    exponent=st.integers(-8, 8),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_any_shape_dtype_and_scale(n, d, exponent, dtype, seed):
    # float16 ends at 65504 and 6e-8.
    scale = 10.0 ** (max(-3, min(3, exponent)) if dtype == torch.float16 else exponent)
    x, y = pair(n, d, seed=seed, dtype=dtype, scale=scale)
    losses = temperature_free_info_nce(x, y, reduction="none")
    assert losses.shape == (n,) and losses.isfinite().all() and (losses >= 0).all()
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    gradients = torch.autograd.grad(losses.sum(), (x, y))
    # In one dimension cosines are ±1 and no direction is left to turn in.
    assert all(g.dtype == dtype for g in gradients)
    if exponent >= -4 or dtype == torch.float64:  # the gradient itself grows as the scale shrinks
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_scale_does_not_matter(scale):
    x, y = pair(scale=scale)
    loss = temperature_free_info_nce(x, y)
    torch.testing.assert_close(loss, oracle(*pair()), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(loss, x)
    (expected,) = torch.autograd.grad(oracle(*(unscaled := pair())), unscaled[0])
    torch.testing.assert_close(scale * gradient, expected, rtol=1e-9, atol=1e-10)


def test_single_precision_is_accurate():
    x, y = pair(64, 32)
    loss = temperature_free_info_nce(x.float(), y.float())
    assert loss.item() == pytest.approx(oracle(x, y).item(), rel=1e-5)


def test_vmap():
    batches = torch.randn(3, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mapped = torch.vmap(lambda pair: temperature_free_info_nce(pair[0], pair[1], symmetric=True))(batches)
    single = torch.stack([temperature_free_info_nce(*pair, symmetric=True) for pair in batches])
    torch.testing.assert_close(mapped, single, rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x, y = pair()
    loss = unhooked("lossbook.methods.contrastive.temperature_free_infonce").temperature_free_info_nce
    compiled = one_graph(loss)
    agree(compiled(x, y), oracle(x, y), (x, y))


def test_bad_input_is_refused():
    good = torch.ones(3, 2)
    assert "(4, 2)" in rejects(temperature_free_info_nce, good, torch.ones(4, 2), names="keys")
    rejects(temperature_free_info_nce, torch.ones(3), torch.ones(3), names="queries")
    rejects(temperature_free_info_nce, good.int(), good.int(), names="queries")
    rejects(temperature_free_info_nce, good, good, reduction="max", names="reduction")


LABELS = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])


@pytest.mark.parametrize("symmetric", [False, True])
def test_labels_positions_and_extra_negatives_are_those_of_info_nce(symmetric):
    # The same choice of pairs with other logits, told by its terms.
    (x, y), (more, _) = pair(), pair(3, seed=1)
    logits = torch.special.logit((1 + F.normalize(x) @ F.normalize(torch.cat([y, more])).T) / 2)
    places = torch.tensor([7, 0, 3, 4, 1, 2, 6, 5])
    terms = F.cross_entropy(logits, places, reduction="none")
    if symmetric:
        terms = (terms + F.cross_entropy(logits.T[places], torch.arange(8), reduction="none")) / 2
    settings = {"negatives": more, "symmetric": symmetric}
    agree(temperature_free_info_nce(x, y, positives=places, reduction="none", **settings), terms, (x, y, more))
    logits = torch.special.logit((1 + F.normalize(x) @ F.normalize(torch.cat([y, more])).T) / 2)
    same, terms = LABELS[:, None] == LABELS, []
    for i, p in same.nonzero():
        push = torch.cat([logits[i, :8][~same[i]], logits[i, 8:]])
        back = logits[:, p][~same[p]]
        term = F.softplus(push.logsumexp(0) - logits[i, p], threshold=50)
        if symmetric:
            term = (term + F.softplus(back.logsumexp(0) - logits[i, p], threshold=50)) / 2
        terms.append(term)
    agree(temperature_free_info_nce(x, y, labels=LABELS, **settings), torch.stack(terms).mean(), (x, y, more))


@pytest.mark.parametrize("labels", [None, torch.arange(60) // 7], ids=["views", "labels"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_blocks_are_the_whole_in_little_memory(labels, symmetric):
    x, y = pair(60, 4)
    in_blocks(
        lambda rows: temperature_free_info_nce(x, y, labels=labels, symmetric=symmetric, rows=rows, reduction="none"),
        (x, y),
        most=1000,
    )


def test_one_set_with_labels_has_finite_gradients():
    # The anchor itself, at a cosine of 1, is in nobody's sum.
    x, _ = pair(dtype=torch.float32)
    loss = temperature_free_info_nce(x, labels=LABELS)
    assert loss.isfinite() and torch.autograd.grad(loss, x)[0].abs().max() < 100


test_on_any_device = on_any_device(
    partial(log_odds, torch.linspace(-1, 1, 5)),
    partial(temperature_free_info_nce, pair()[0], labels=LABELS, negatives=pair()[0], rows=3),
    partial(temperature_free_info_nce, *pair(), symmetric=True),
)
