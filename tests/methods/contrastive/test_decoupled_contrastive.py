"""Decoupled contrastive losses against loops over the definition and pytorch-metric-learning's NT-Xent."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss
from support import agree, extreme, in_blocks, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import (
    decoupled_contrastive_loss,
    decoupled_contrastive_weighted,
    negative_von_mises_fisher_weights,
    nt_xent,
)
from lossbook.methods.contrastive.decoupled_contrastive import decoupled_contrastive_from_cosines

BOTH = pytest.mark.parametrize(
    "loss", [decoupled_contrastive_loss, decoupled_contrastive_weighted], ids=["dcl", "dclw"]
)


def oracle(x, y, temperature=0.1, sigma=None):
    """The 2n losses, term by term from the definition; gradient through the weights."""
    n, views = len(x), [F.normalize(x), F.normalize(y)]
    agreement = torch.exp((views[0] * views[1]).sum(1) / (sigma or 1))
    weights = 2 - agreement / agreement.mean() if sigma else torch.ones(n, dtype=x.dtype)
    losses = []
    for k in (0, 1):
        for i in range(n):
            anchor = views[k][i]
            push = sum(torch.exp(anchor @ views[m][j] / temperature) for m in (0, 1) for j in range(n) if j != i)
            losses.append(-weights[i] * (anchor @ views[1 - k][i]) / temperature + push.log())
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(("n", "d"), [(2, 2), (7, 5)])
def test_dcl_is_its_definition(n, d, temperature):
    x, y = pair(n, d)
    theirs = oracle(x, y, temperature)
    losses = decoupled_contrastive_loss(x, y, temperature=temperature, reduction="none")
    torch.testing.assert_close(decoupled_contrastive_loss(x, y, temperature=temperature), losses.mean())
    torch.testing.assert_close(decoupled_contrastive_loss(x, y, temperature=temperature, reduction="sum"), losses.sum())
    agree(losses, theirs, (x, y))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_dclw_is_its_definition(sigma):
    x, y = pair(7, 5)
    agree(
        decoupled_contrastive_weighted(x, y, sigma=sigma, detach_weights=False, reduction="none"),
        oracle(x, y, sigma=sigma),
        (x, y),
    )


def test_detached_weights_are_constants():
    x, y = pair(7, 5)
    weights = negative_von_mises_fisher_weights(x, y).detach()
    losses = decoupled_contrastive_loss(x, y, reduction="none")
    cosines = F.cosine_similarity(x, y) / 0.1
    agree(
        decoupled_contrastive_weighted(x, y, reduction="none"),
        losses + ((1 - weights) * cosines).repeat(2),
        (x, y),
    )
    through = decoupled_contrastive_weighted(x, y, detach_weights=False)
    held = decoupled_contrastive_weighted(x, y)
    assert through.item() == held.item()
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (through, held)]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-2


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_softplus_gives_nt_xent_of_pytorch_metric_learning(temperature):
    x, y = pair()
    theirs = NTXentLoss(temperature)(torch.cat([x, y]), torch.arange(8).repeat(2))
    ours = F.softplus(decoupled_contrastive_loss(x, y, temperature=temperature, reduction="none")).mean()
    agree(ours, theirs, (x, y), tolerance=1e-8)


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 99))
def test_gradient_of_nt_xent_is_that_of_dcl_times_sigmoid(n, d, seed):
    x, y = pair(n, d, seed=seed)
    losses = decoupled_contrastive_loss(x, y, reduction="none")
    q = torch.sigmoid(losses).detach()
    for whole, decoupled in zip(
        torch.autograd.grad(nt_xent(x, y, reduction="sum"), (x, y)),
        torch.autograd.grad((q * losses).sum(), (x, y)),
        strict=True,
    ):
        torch.testing.assert_close(whole, decoupled, rtol=1e-10, atol=1e-10)


@BOTH
def test_one_way_takes_first_views_as_anchors(loss):
    x, y = pair()
    losses = loss(x, y, reduction="none")
    torch.testing.assert_close(loss(x, y, symmetric=False, reduction="none"), losses[:8])
    both = (loss(x, y, symmetric=False) + loss(y, x, symmetric=False)) / 2
    torch.testing.assert_close(loss(x, y), both, rtol=1e-12, atol=1e-12)


@BOTH
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_are_the_same(loss, rows):
    x, y = pair(9, 5)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    settings = {"temperature": temperature, "reduction": "none"}
    agree(loss(x, y, rows=rows, **settings), loss(x, y, **settings), (x, y, temperature), tolerance=1e-12)


LABELS = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])


def labelled(views, labels, more=None, *, temperature=0.1, sigma=None):
    """The terms with labels, and the anchor of each, from the definition."""
    keys = F.normalize(views if more is None else torch.cat([views, more]))
    cosines, n = keys[: len(views)] @ keys.T, len(views)
    pairs = [(a, p) for a in range(n) for p in range(n) if a != p and labels[a] == labels[p]]
    weights = torch.exp(torch.stack([cosines[pair] for pair in pairs]) / (sigma or 1))
    weights = 2 - weights / weights.mean() if sigma else torch.ones_like(weights)
    terms = []
    for weight, (a, p) in zip(weights, pairs, strict=True):
        others = [b for b in range(len(keys)) if b >= n or labels[a] != labels[b]]
        terms.append((cosines[a, others] / temperature).exp().sum().log() - weight * cosines[a, p] / temperature)
    return torch.stack(terms), torch.tensor(pairs)[:, 0]


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("rows", [None, 3])
def test_labels_are_their_definition(sigma, rows):
    (x, y), (more, _) = pair(), pair(3, seed=1)

    def ours(*views, **settings):
        if sigma is None:
            return decoupled_contrastive_loss(*views, rows=rows, **settings)
        return decoupled_contrastive_weighted(*views, rows=rows, sigma=sigma, detach_weights=False, **settings)

    terms, anchors = labelled(x, LABELS, sigma=sigma)
    agree(ours(x, labels=LABELS), terms.mean(), (x,))
    each = torch.zeros(8, dtype=torch.float64).index_add(0, anchors, terms)
    torch.testing.assert_close(ours(x, labels=LABELS, reduction="none"), each)
    terms, _ = labelled(torch.cat([x, y]), LABELS.repeat(2), more, sigma=sigma)
    agree(ours(x, y, labels=LABELS, negatives=more), terms.mean(), (x, y, more))
    terms, anchors = labelled(torch.cat([x, y]), torch.arange(8).repeat(2), more, sigma=sigma)
    agree(ours(x, y, negatives=more, reduction="none"), terms[anchors.argsort()], (x, y, more))
    agree(ours(x, y, labels=torch.arange(8)), ours(x, y), (x, y))


def test_one_way_with_labels_takes_first_views_as_anchors():
    x, y = pair()
    each = decoupled_contrastive_loss(x, y, labels=LABELS, reduction="none")
    one_way = decoupled_contrastive_loss(x, y, labels=LABELS, symmetric=False, reduction="none")
    torch.testing.assert_close(one_way, each[:8])


def test_nt_xent_with_labels_is_softplus_of_each_term():
    x, _ = pair()
    terms, _ = labelled(x, LABELS)
    agree(nt_xent(x, labels=LABELS), F.softplus(terms, threshold=50).mean(), (x,))


@BOTH
@pytest.mark.parametrize("labels", [torch.arange(8), torch.zeros(8, dtype=torch.long)], ids=["no pair", "no negative"])
def test_without_a_pair_or_a_negative_there_is_no_term(loss, labels):
    x, _ = pair()
    value = loss(x, labels=labels)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0 and not gradient.abs().max()


@BOTH
def test_one_pair_can_have_extra_negatives(loss):
    (x, y), (more, _) = pair(1), pair(3, seed=1)
    losses = loss(x, y, negatives=more, reduction="none")
    assert losses.shape == (2,) and losses.isfinite().all()


@BOTH
@pytest.mark.parametrize("labels", [None, torch.arange(60) // 7], ids=["views", "labels"])
def test_blocks_are_the_whole_in_little_memory(loss, labels):
    (x, y), (more, _) = pair(60, 4), pair(20, 4, seed=1)
    in_blocks(
        lambda rows: loss(x, y, labels=labels, negatives=more, rows=rows, reduction="none"), (x, y, more), most=1200
    )


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_from_cosines_leaves_the_diagonal_out(sigma):
    c = torch.empty(6, 6, dtype=torch.float64).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    c.requires_grad_()
    odds = torch.exp(c / 0.2)
    push = (odds.sum(1) - odds.diagonal()).log()
    share = torch.exp(2 * c.diagonal()).detach()
    weights = 1 if sigma is None else 2 - share / share.mean()
    ours = decoupled_contrastive_from_cosines(c, temperature=0.2, sigma=sigma, reduction="none")
    agree(ours, push - weights * c.diagonal() / 0.2, (c,))
    rejects(decoupled_contrastive_from_cosines, torch.ones(1, 1), names="cosines")
    rejects(decoupled_contrastive_from_cosines, torch.ones(2, 3), names="cosines")


def test_from_cosines_and_the_negatives_of_the_own_view_are_the_whole():
    x, y = pair(6, 4)
    # Odds of the first views among themselves, which the matrix does not have, are put back.
    own, cosines = F.normalize(x) @ F.normalize(x).T, F.normalize(x) @ F.normalize(y).T
    among = torch.logsumexp((own / 0.1).masked_fill(torch.eye(6, dtype=torch.bool), -math.inf), 1)
    positives = cosines.diagonal() / 0.1
    losses = decoupled_contrastive_from_cosines(cosines, reduction="none")
    expected = torch.logaddexp(losses + positives, among) - positives
    agree(decoupled_contrastive_loss(x, y, symmetric=False, reduction="none"), expected, (x, y))


@given(st.integers(1, 12), st.integers(1, 5), st.floats(0.05, 5), st.integers(0, 99))
def test_weights_have_mean_one_and_stay_in_their_range(n, d, sigma, seed):
    w = negative_von_mises_fisher_weights(*pair(n, d, seed=seed), sigma=sigma)
    assert w.mean().item() == pytest.approx(1, abs=1e-12)
    most = n / (1 + (n - 1) * math.exp(-2 / sigma))
    assert w.min() >= 2 - most - 1e-9 and w.max() <= 2 - n / (1 + (n - 1) * math.exp(2 / sigma)) + 1e-9


def test_flat_weights_give_dcl():
    x, y = pair()
    agree(decoupled_contrastive_weighted(x, y, sigma=1e9), decoupled_contrastive_loss(x, y), (x, y), tolerance=1e-7)
    agree(decoupled_contrastive_weighted(x, 2 * x.detach()), decoupled_contrastive_loss(x, 2 * x.detach()), (x,))


def test_one_aligned_pair_is_pushed_apart():
    # Five pairs, orthogonal within four, aligned in the fifth: its weight is 2 - 5 e²/(e² + 4) < 0.
    basis = torch.eye(9, dtype=torch.float64)
    w = negative_von_mises_fisher_weights(basis[:5], torch.cat([basis[5:], basis[4:5]]))
    assert w[4].item() == pytest.approx(2 - 5 * math.exp(2) / (math.exp(2) + 4)) and w[4] < 0


def test_lower_bounds_are_reached():
    # Two opposite pairs, and the simplex: N pairs at cosine -1/(N - 1).
    x = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    losses = decoupled_contrastive_loss(x, x, temperature=0.5, reduction="none")
    torch.testing.assert_close(losses, torch.full((4,), -4 + math.log(2), dtype=torch.float64))
    simplex = torch.eye(6, dtype=torch.float64) - 1 / 6
    expected = math.log(10) - 6 / (5 * 0.5)
    assert decoupled_contrastive_loss(simplex, simplex, temperature=0.5).item() == pytest.approx(expected)


@BOTH
def test_gradcheck(loss):
    x, y = pair(4, 3)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    more = {"detach_weights": False} if loss is decoupled_contrastive_weighted else {}
    assert torch.autograd.gradcheck(lambda x, y, t: loss(x, y, temperature=t, **more), (x, y, temperature))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row", "sharp"])
def test_extremes_stay_finite(loss, case, dtype):
    x, y = extreme(case, dtype)
    value = loss(x, y, temperature=1e-3 if case == "sharp" else 0.1)
    assert value.isfinite() and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    gradients = torch.autograd.grad(value, (x, y))
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients)


@BOTH
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_and_order_do_not_matter(loss, scale):
    x, y = pair()
    torch.testing.assert_close(loss(*pair(scale=scale)), loss(x, y), rtol=1e-10, atol=1e-10)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(x[order], y[order]), loss(x, y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss(y, x), loss(x, y), rtol=1e-12, atol=1e-12)


@BOTH
def test_autocast_does_not_reach_inside(loss):
    x, y = pair(64, 32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
    torch.testing.assert_close(value, loss(x, y), rtol=0, atol=0)


@BOTH
def test_mapped_is_one_by_one(loss):
    x, y = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    temperatures = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)

    def function(x, y, t):
        return loss(x, y, temperature=t)

    mapped = torch.func.vmap(torch.func.grad_and_value(function))(x, y, temperatures)
    for run in range(3):
        alone = torch.func.grad_and_value(function)(x[run], y[run], temperatures[run])
        torch.testing.assert_close([part[run] for part in mapped], list(alone), rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x, y = pair()
    with without_hooks():
        from lossbook.methods.contrastive import decoupled_contrastive_weighted as plain

        compiled = one_graph(plain)
        agree(compiled(x, y), decoupled_contrastive_weighted(x, y), (x, y))
        agree(compiled(x, labels=LABELS), decoupled_contrastive_weighted(x, labels=LABELS), (x,))


@BOTH
def test_bad_input_is_refused(loss):
    good = torch.ones(3, 2)
    assert "got 1" in rejects(loss, good[:1], good[:1], names="first")
    rejects(loss, torch.ones(3), torch.ones(3), names="first")
    rejects(loss, torch.ones(0, 2), torch.ones(0, 2), names="first")
    rejects(loss, good, torch.ones(4, 2), names="second")
    rejects(loss, good, good.int(), names="second")
    rejects(loss, good, good, temperature=0.0, names="temperature")
    rejects(loss, good, good, reduction="max", names="reduction")
    rejects(loss, good, good, rows=0, names="rows")
    rejects(negative_von_mises_fisher_weights, good, good, sigma=-1.0, names="sigma")


test_on_any_device = on_any_device(
    partial(decoupled_contrastive_loss, *pair(), symmetric=False, rows=3),
    partial(decoupled_contrastive_weighted, *pair(), sigma=torch.tensor(0.5), detach_weights=False),
    partial(decoupled_contrastive_loss, pair()[0], labels=LABELS, negatives=pair()[0]),
    partial(decoupled_contrastive_weighted, *pair(), labels=LABELS, sigma=torch.tensor(0.5)),
    partial(negative_von_mises_fisher_weights, *pair()),
)
