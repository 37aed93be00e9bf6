"""CACR against loops over queries with torch.cdist, cross-entropy's softmax, and what the derivation promises."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, in_blocks, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import (
    alignment,
    cacr_from_cosines,
    cacr_loss,
    conditional_weights,
    contrastive_attraction,
    contrastive_repulsion,
    rbf_repulsion,
)
from lossbook.methods.similarities import cosine_similarity


def stack(v=3, n=6, d=4, *, seed=0, dtype=torch.float64, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    views = torch.randn(v, n, d, generator=draw, dtype=torch.float64)
    return (scale * views).to(dtype).requires_grad_()


def weigh(costs, scale, detach):
    weights = torch.softmax(scale * costs, 0)
    return (weights.detach() if detach else weights).dot(costs)


def attraction_oracle(views, scale=1.0, detach=True):
    """One query after the other."""
    z, total = F.normalize(views, dim=-1), []
    for i in range(z.shape[1]):
        for a in range(len(z)):
            others = torch.stack([z[b, i] for b in range(len(z)) if b != a])
            total.append(weigh((others - z[a, i]).square().sum(-1), scale, detach))
    return torch.stack(total).mean()


def negatives(views, symmetric=False):
    """Costs of each query to its negatives, one list for each pair of views."""
    z = F.normalize(views, dim=-1)
    pairs = list(combinations(range(len(z)), 2))
    for a, b in pairs + [(b, a) for a, b in pairs if symmetric]:
        costs = torch.cdist(z[a], z[b], compute_mode="donot_use_mm_for_euclid_dist").square()
        yield [torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(costs)]


def repulsion_oracle(views, scale=2.0, detach=True, symmetric=False):
    return -torch.stack([weigh(costs, -scale, detach) for pair in negatives(views, symmetric) for costs in pair]).mean()


def rbf_oracle(views, scale=2.0, width=2.0, detach=True, symmetric=False):
    logs = []
    for group in negatives(views, symmetric):
        weights = [torch.softmax(-scale * costs, 0) for costs in group]
        if detach:
            weights = [w.detach() for w in weights]
        logs.append(torch.stack([w.dot((-width * c).exp()) for w, c in zip(weights, group, strict=True)]).mean().log())
    return torch.stack(logs).mean()


DETACH = pytest.mark.parametrize("detach", [True, False], ids=["detached", "through"])
SCALES = pytest.mark.parametrize("scale", [0.0, 0.9, 2.0, 30.0], ids=["zero", "cifar-10", "cifar-100", "sharp"])


@DETACH
@SCALES
@pytest.mark.parametrize(("v", "n", "d"), [(2, 2, 1), (2, 5, 3), (5, 7, 4)], ids=["least", "two", "five"])
def test_attraction_and_repulsion_are_loops_over_queries(v, n, d, scale, detach):
    x = stack(v, n, d)
    agree(contrastive_attraction(x, scale=scale, detach=detach), attraction_oracle(x, scale, detach), (x,), 1e-8)
    agree(contrastive_repulsion(x, scale=scale, detach=detach), repulsion_oracle(x, scale, detach), (x,), 1e-8)


@DETACH
@pytest.mark.parametrize("symmetric", [False, True], ids=["one-way", "symmetric"])
def test_whole_loss_is_the_weighted_sum(symmetric, detach):
    x = stack()
    ours = cacr_loss(
        x,
        positive_scale=0.7,
        negative_scale=1.3,
        attraction=0.4,
        repulsion=2.5,
        detach=detach,
        symmetric=symmetric,
    )
    theirs = 0.4 * attraction_oracle(x, 0.7, detach) + 2.5 * repulsion_oracle(x, 1.3, detach, symmetric)
    agree(ours, theirs, (x,))


@DETACH
@pytest.mark.parametrize("scale", [0.0, 1.5], ids=["uniform", "conditional"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one-way", "symmetric"])
def test_rbf_repulsion_is_a_loop_over_queries(symmetric, scale, detach):
    x = stack()
    options = {"scale": scale, "width": 1.7, "detach": detach, "symmetric": symmetric}
    agree(rbf_repulsion(x, **options), rbf_oracle(x, **options), (x,))


def test_reductions():
    x = stack()
    assert cacr_loss(x, reduction="none").shape == (6,)
    agree(cacr_loss(x), cacr_loss(x, reduction="none").mean(), (x,))
    agree(cacr_loss(x, reduction="sum"), cacr_loss(x, reduction="none").sum(), (x,))


def test_gradcheck_through_the_weights():
    assert torch.autograd.gradcheck(lambda x: cacr_loss(x, detach=False, symmetric=True), (stack(3, 4, 3),))
    assert torch.autograd.gradcheck(lambda x: rbf_repulsion(x, detach=False), (stack(3, 4, 3),))


@DETACH
def test_rows_at_a_time_are_the_same(detach):
    x = stack(3, 7)
    for loss in (cacr_loss, rbf_repulsion):
        for symmetric in (False, True):
            options = {"detach": detach, "symmetric": symmetric}
            agree(loss(x, rows=3, **options), loss(x, **options), (x,), 1e-12)


def test_from_cosines_is_the_loss_of_two_views():
    x = stack(2)
    for detach in (True, False):
        options = {"negative_scale": 1.4, "attraction": 0.6, "repulsion": 1.2, "detach": detach}
        ours = cacr_from_cosines(cosine_similarity(x[0], x[1]), **options)
        agree(ours, cacr_loss(x, **options), (x,))


def test_weights_of_negatives_are_those_of_info_nce():
    # The gradient of cross-entropy by the logits of negatives, relative to each other.
    cosines = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tanh()
    logits = (cosines / 0.2).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor(0)), logits)
    expected = gradient[1:] / gradient[1:].sum()
    torch.testing.assert_close(conditional_weights(2 - 2 * cosines[1:], scale=-1 / 0.4), expected)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0], ids=["half", "two", "five"])
def test_detached_with_two_views_moves_as_decoupled_contrastive_loss(scale):
    x, temperature = stack(2), 1 / (2 * scale)
    logits = cosine_similarity(x[0], x[1]) / temperature
    others = torch.logsumexp(logits.masked_fill(torch.eye(6, dtype=torch.bool), -math.inf), 1)
    decoupled = 2 * temperature * (others - logits.diagonal()).mean()
    ours, theirs = (torch.autograd.grad(loss, x)[0] for loss in (cacr_loss(x, negative_scale=scale), decoupled))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_two_views_attract_by_plain_alignment():
    x = stack(2)
    for detach in (True, False):
        agree(contrastive_attraction(x, scale=9.0, detach=detach), alignment(x[0], x[1]), (x,))


def test_limits_of_the_scales():
    x = stack(4).detach()
    z = F.normalize(x, dim=-1)
    own = torch.eye(4, dtype=torch.bool)[..., None]
    costs = (z[:, None] - z).square().sum(-1)
    farthest = costs.masked_fill(own, -math.inf).amax(1).mean()
    torch.testing.assert_close(contrastive_attraction(x, scale=1e5), farthest)
    plain = costs.sum(1).mean() / 3
    torch.testing.assert_close(contrastive_attraction(x, scale=0.0), plain)
    nearest = torch.stack([c.min() for pair in negatives(x) for c in pair]).mean()
    torch.testing.assert_close(contrastive_repulsion(x, scale=1e5), -nearest)
    mean = torch.stack([c.mean() for pair in negatives(x) for c in pair]).mean()
    torch.testing.assert_close(contrastive_repulsion(x, scale=0.0), -mean)


@given(low=st.floats(0, 20), more=st.floats(0, 20), seed=st.integers(0, 30))
def test_both_costs_never_fall_with_their_scale(low, more, seed):
    x = stack(seed=seed).detach()
    for loss in (contrastive_attraction, contrastive_repulsion):
        assert loss(x, scale=low + more) >= loss(x, scale=low) - 1e-12


@given(seed=st.integers(0, 50), scale=st.floats(0, 50), d=st.integers(1, 5))
def test_bounds(seed, scale, d):
    x = stack(3, 4, d, seed=seed).detach()
    assert -1e-12 <= contrastive_attraction(x, scale=scale) <= 4 + 1e-12
    assert -4 - 1e-12 <= contrastive_repulsion(x, scale=scale) <= 1e-12
    assert -8 - 1e-12 <= rbf_repulsion(x, scale=scale) <= 1e-12


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 10.0], ids=["zero", "half", "two", "ten"])
def test_a_simplex_is_best_and_antipodes_only_without_weights(scale):
    n = 6
    simplex = torch.eye(n, dtype=torch.float64) - 1 / n
    poles = torch.zeros(n, n, dtype=torch.float64)
    poles[:, 0] = torch.tensor([1.0, -1.0]).repeat(n // 2)
    best, clusters = (contrastive_repulsion(x.expand(2, n, n), scale=scale).item() for x in (simplex, poles))
    assert best == pytest.approx(-2 * n / (n - 1))
    if scale:
        assert clusters > best + 0.1
    else:
        assert clusters == pytest.approx(best)


def test_scale_and_rotation_do_not_matter():
    x = stack().detach()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    for other in (1e8 * x, 1e-8 * x, x @ turn, x[:, torch.randperm(6)]):
        torch.testing.assert_close(cacr_loss(other), cacr_loss(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row"])
@DETACH
def test_extremes_stay_finite(case, dtype, detach):
    x = stack(3, dtype=dtype).detach().clone()
    if case == "equal":
        x = x[:1].repeat(3, 1, 1)
    elif case == "opposite":
        x[1] = -x[0]
    elif case == "all the same":
        x = x[:1, :1].repeat(3, 6, 1)
    else:
        x[0, 0] = 0
    x.requires_grad_()
    for scale in (0.0, 2.0, 1e4):
        losses = [
            cacr_loss(x, positive_scale=scale, negative_scale=scale, detach=detach),
            rbf_repulsion(x, scale=scale, width=50.0, detach=detach),
        ]
        for loss in losses:
            assert loss.isfinite()
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            (gradient,) = torch.autograd.grad(loss, x)
            assert gradient.isfinite().all() and gradient.dtype == dtype


def test_single_precision_is_accurate():
    x = stack(4, 32, 16).detach()
    assert cacr_loss(x.float()).item() == pytest.approx(cacr_loss(x).item(), abs=1e-5)


def test_vmap_over_embeddings_and_scales():
    x = torch.stack([stack(seed=seed).detach() for seed in range(3)])
    scales = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)

    def loss(views, scale):
        return cacr_loss(views, positive_scale=scale, negative_scale=scale, detach=False)

    mapped = torch.vmap(torch.func.grad(loss))(x, scales)
    single = torch.stack([torch.func.grad(loss)(views, scale.item()) for views, scale in zip(x, scales, strict=True)])
    torch.testing.assert_close(mapped, single, rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x = stack()
    with without_hooks():
        from lossbook.methods.contrastive import cacr_loss as plain

        agree(one_graph(plain)(x), attraction_oracle(x) + repulsion_oracle(x), (x,))
        labels = torch.arange(x.shape[1]) // 2
        agree(one_graph(plain)(x, labels=labels), cacr_loss(x, labels=labels), (x,))


def test_bad_input_is_refused():
    good = torch.ones(2, 3, 4)
    for function in (contrastive_attraction, contrastive_repulsion, cacr_loss, rbf_repulsion):
        assert "(1, 3, 4)" in rejects(function, good[:1], names="views")
        rejects(function, good[0], names="views")
        rejects(function, good.int(), names="views")
    for function in (contrastive_attraction, contrastive_repulsion, rbf_repulsion):
        assert "-1" in rejects(function, good, scale=-1, names="scale")
        rejects(function, good, scale=math.nan, names="scale")
        rejects(function, good, scale="1", names="scale")
        rejects(function, good, scale=torch.ones(2), names="scale")
    for name in ("positive_scale", "negative_scale", "attraction", "repulsion"):
        rejects(cacr_loss, good, **{name: -0.5}, names=name)
    rejects(contrastive_repulsion, good[:, :1], names="views")
    rejects(rbf_repulsion, good, width=0, names="width")
    rejects(cacr_loss, good, rows=0, names="rows")
    rejects(cacr_loss, good, reduction="max", names="reduction")
    rejects(cacr_from_cosines, torch.ones(2, 3), names="cosines")
    rejects(conditional_weights, torch.ones(3), scale=math.inf, names="scale")


LABELS = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])


def labelled(views, labels, more, up, down, width=None):
    """Attraction and repulsion of each query, from the definition; the potential of it, if there is a width."""
    keys, n = F.normalize(torch.cat([views, more])), len(views)
    costs = (keys[:n, None] - keys).square().sum(-1)
    pulls, pushes = [], []
    for i in range(n):
        own = [j for j in range(n) if j != i and labels[j] == labels[i]]
        others = [j for j in range(len(keys)) if j >= n or labels[j] != labels[i]]
        if own:
            pulls.append((torch.softmax(up * costs[i, own], 0).detach() * costs[i, own]).sum())
        weights = torch.softmax(-down * costs[i, others], 0).detach()
        value = -costs[i, others] if width is None else torch.exp(-width * costs[i, others])
        pushes.append((weights * value).sum())
    return torch.stack(pulls), torch.stack(pushes)


@pytest.mark.parametrize("rows", [None, 3])
def test_labels_are_their_definition(rows):
    (x, y), (more, _) = pair(), pair(3, seed=1)
    pulls, pushes = labelled(x, LABELS, more, 1.5, 0.7)
    settings = {"positive_scale": 1.5, "negative_scale": 0.7, "attraction": 2.0, "repulsion": 3.0, "rows": rows}
    expected = 2 * pulls.mean() + 3 * pushes.mean()
    agree(cacr_loss(x, labels=LABELS, negatives=more, **settings), expected, (x, more))
    pulls, pushes = labelled(torch.cat([x, y]), LABELS.repeat(2), more, 1.5, 0.7)
    expected = 2 * pulls.sum() + 3 * pushes.sum()
    both = cacr_loss(torch.stack([x, y]), labels=LABELS, negatives=more, reduction="sum", **settings)
    agree(both, expected, (x, y, more))
    _, potentials = labelled(x, LABELS, more, 1.0, 0.7, width=1.3)
    ours = rbf_repulsion(x, labels=LABELS, negatives=more, scale=0.7, width=1.3, rows=rows)
    agree(ours, potentials.mean().log(), (x, more))


def test_attraction_of_two_views_is_that_of_labels_of_their_own():
    x, y = pair()
    views = torch.stack([x, y])
    agree(contrastive_attraction(views, labels=torch.arange(8)), contrastive_attraction(torch.stack([x, y])), (x, y))


@pytest.mark.parametrize("rows", [None, 3])
def test_extra_negatives_are_negatives_of_all(rows):
    (x, y), (more, _) = pair(), pair(3, seed=1)
    keys = F.normalize(torch.cat([y, more]))
    costs = (F.normalize(x)[:, None] - keys).square().sum(-1)
    terms = []
    for i in range(8):
        others = [j for j in range(11) if j != i]
        terms.append(-(torch.softmax(-2 * costs[i, others], 0).detach() * costs[i, others]).sum())
    ours = contrastive_repulsion(torch.stack([x, y]), negatives=more, rows=rows, reduction="none")
    agree(ours, torch.stack(terms), (x, y, more))
    one = contrastive_repulsion(torch.stack([x, y])[:, :1], negatives=more)
    assert one.isfinite()


@pytest.mark.parametrize("loss", [cacr_loss, contrastive_repulsion, rbf_repulsion, contrastive_attraction])
@pytest.mark.parametrize("labels", [torch.arange(8), torch.zeros(8, dtype=torch.long)], ids=["no pair", "no negative"])
def test_what_is_not_there_has_no_term(loss, labels):
    x, _ = pair()
    value = loss(x, labels=labels)
    (gradient,) = torch.autograd.grad(value, x)
    missing = loss is contrastive_attraction if len(labels.unique()) == 8 else "repulsion" in loss.__name__
    assert gradient.isfinite().all() and (value.item() == 0 and not gradient.any()) == missing


@pytest.mark.parametrize("loss", [cacr_loss, rbf_repulsion])
@pytest.mark.parametrize("labels", [None, torch.arange(60) // 7], ids=["views", "labels"])
def test_blocks_are_the_whole_in_little_memory(loss, labels):
    x, y = pair(60, 4)
    in_blocks(lambda rows: loss(torch.stack([x, y]), labels=labels, rows=rows), (x, y), most=1000)


test_on_any_device = on_any_device(
    partial(cacr_loss, pair()[0], labels=LABELS, negatives=pair()[0], rows=3),
    partial(rbf_repulsion, pair()[0], labels=LABELS),
    partial(contrastive_repulsion, torch.stack(pair()), negatives=pair()[0], symmetric=True),
    partial(cacr_loss, stack(), symmetric=True, rows=2),
    partial(cacr_from_cosines, torch.eye(4)),
    partial(conditional_weights, torch.rand(3, 4), scale=torch.tensor(2.0)),
    partial(contrastive_attraction, stack()),
    partial(contrastive_repulsion, stack(), detach=False, reduction="none"),
    partial(rbf_repulsion, stack(), scale=torch.tensor(2.0)),
)
