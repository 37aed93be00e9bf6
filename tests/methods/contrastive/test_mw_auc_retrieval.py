"""The Mann-Whitney loss against PyTorch's binary cross-entropy, scikit-learn's AUC and SciPy's U."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score
from support import agree, extreme, in_blocks, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import (
    info_nce,
    mann_whitney_from_cosines,
    mann_whitney_from_scores,
    mann_whitney_loss,
)
from lossbook.methods.similarities import pair_gradients


def batch(n=6, hard=0, d=5, *, seed=0, dtype=torch.float64, scale=1.0):
    """Queries, and passages of which the first n belong to them."""
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, d, generator=draw, dtype=torch.float64) for size in (n, n * (1 + hard)))
    return (scale * x).to(dtype).requires_grad_(), (scale * y).to(dtype).requires_grad_()


def scores(n=7, m=11, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_() for size in (n, m)]


def cross_entropy(positives, negatives, temperature, reduction="mean"):
    differences = (positives[:, None] - negatives[None]) / temperature
    return F.binary_cross_entropy_with_logits(differences, torch.ones_like(differences), reduction=reduction)


def oracle(x, y, temperature, groups=None, pool="batch"):
    """Sum over all pairs that the loss compares, one query at a time, with negatives picked by hand."""
    cosines, n = F.normalize(x) @ F.normalize(y).T, len(x)
    groups = torch.arange(len(y)) if groups is None else groups
    own = [cosines[j][groups != groups[j]] for j in range(n)]
    total, met = cosines.new_zeros(()), 0
    for i in range(n):
        negatives = torch.cat(own) if pool == "batch" else own[i]
        total = total + cross_entropy(cosines[i, i][None], negatives, temperature, "sum")
        met += len(negatives)
    return total, met


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0, 50.0])
def test_scores_are_binary_cross_entropy_of_all_differences(temperature):
    p, q = scores()
    mean = mann_whitney_from_scores(p, q, temperature=temperature, over_negatives="mean")
    agree(mean, cross_entropy(p, q, temperature), (p, q))
    whole = mann_whitney_from_scores(p, q, temperature=temperature)
    agree(whole, len(q) * cross_entropy(p, q, temperature), (p, q))
    each = mann_whitney_from_scores(p, q, temperature=temperature, reduction="none")
    agree(each, cross_entropy(p, q, temperature, "none").sum(1), (p, q))


@pytest.mark.parametrize("pool", ["batch", "query"])
@pytest.mark.parametrize("hard", [0, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_batch_is_binary_cross_entropy_of_the_pairs(pool, hard, grouped):
    x, y = batch(6, hard)
    groups = torch.arange(len(y)) % 5 if grouped else None
    total, met = oracle(x, y, 0.1, groups, pool)
    loss = mann_whitney_loss(x, y, temperature=0.1, groups=groups, pool=pool)
    agree(loss, total / 6, (x, y))
    each = mann_whitney_loss(x, y, temperature=0.1, groups=groups, pool=pool, reduction="none")
    assert each.shape == (6,)
    if pool == "batch" or not grouped:  # else the queries have different numbers of negatives
        mean = mann_whitney_loss(x, y, temperature=0.1, groups=groups, pool=pool, over_negatives="mean")
        agree(mean, oracle(x, y, 0.1, groups, pool)[0] / met, (x, y))


def test_number_of_negatives():
    # Without a slope every pair costs log 2: B(HB + B - 1) negatives for each positive.
    x, y = batch(4, hard=5)
    loss = mann_whitney_loss(x, y, temperature=1e9)
    assert loss.item() == pytest.approx(4 * (5 * 4 + 4 - 1) * math.log(2), rel=1e-6)


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_gradcheck_by_embeddings_and_temperature(pool):
    x, y = batch(3, 1, 3)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 2, 0, 4, 5])
    assert torch.autograd.gradcheck(
        lambda x, y, t: mann_whitney_loss(x, y, temperature=t, groups=groups, pool=pool), (x, y, t)
    )


@pytest.mark.parametrize("pool", ["batch", "query"])
@pytest.mark.parametrize("rows", [1, 3, 6, 100])
def test_in_blocks_is_the_same(rows, pool):
    x, y = batch(7, 1)
    groups = torch.arange(14) % 9
    one, other = (mann_whitney_loss(x, y, groups=groups, pool=pool, rows=r) for r in (rows, None))
    agree(one, other, (x, y), tolerance=1e-12)
    p, q = scores()
    one, other = (mann_whitney_from_scores(p, q, rows=r, reduction="none") for r in (rows, None))
    agree(one, other, (p, q), tolerance=1e-12)


def test_a_shift_of_each_query_is_seen_by_the_pooled_loss_alone():
    draw = torch.Generator().manual_seed(0)
    c, g = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((6, 6), (6, 1)))
    alone = [mann_whitney_from_cosines(s, temperature=0.5, pool="query").item() for s in (c, c + g)]
    pooled = [mann_whitney_from_cosines(s, temperature=0.5).item() for s in (c, c + g, c + 3.0)]
    assert alone[0] == pytest.approx(alone[1], rel=1e-12)
    assert abs(pooled[0] - pooled[1]) > 0.1
    assert pooled[0] == pytest.approx(pooled[2], rel=1e-12)


def test_gradient_is_the_share_of_lost_comparisons():
    p, q = scores()
    loss = mann_whitney_from_scores(p, q, temperature=0.3)
    w = torch.sigmoid((q[None] - p[:, None]) / 0.3).detach() / (0.3 * len(p))
    by_p, by_q = torch.autograd.grad(loss, (p, q))
    torch.testing.assert_close(by_p, -w.sum(1))
    torch.testing.assert_close(by_q, w.sum(0))


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_pull_equals_push(pool):
    c = torch.randn(6, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = pair_gradients(lambda s: mann_whitney_from_cosines(s, temperature=0.2, pool=pool), c)
    assert gradient.sum().abs() < 1e-12 and (gradient.diagonal() <= 0).all()
    by_query = gradient.sum(1).abs().max()
    assert by_query < 1e-12 if pool == "query" else by_query > 0.1


@given(st.integers(0, 200), st.sampled_from([0.01, 0.1, 1.0, 10.0]), st.integers(2, 9))
def test_bounds_the_area_over_the_curve(seed, temperature, levels):
    # Whole numbers: many ties.
    draw = torch.Generator().manual_seed(seed)
    p, q = (torch.randint(0, levels, (size,), generator=draw).double() for size in (7, 12))
    auc = roc_auc_score([1] * 7 + [0] * 12, torch.cat([p, q]))
    assert auc == pytest.approx(mannwhitneyu(p, q).statistic / 84)
    loss = mann_whitney_from_scores(p, q, temperature=temperature, over_negatives="mean").item()
    assert 1 - auc <= loss / math.log(2) + 1e-12


def test_limits_of_the_temperature():
    p, q = (value.detach() for value in scores())
    z = p[:, None] - q
    cold = 1e-4 * mann_whitney_from_scores(p, q, temperature=1e-4, over_negatives="mean")
    torch.testing.assert_close(cold, (-z).clamp(min=0).mean(), rtol=0, atol=1e-4)
    hot = 1e5 * (mann_whitney_from_scores(p, q, temperature=1e5, over_negatives="mean") - math.log(2))
    torch.testing.assert_close(hot, -z.mean() / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.02, 0.2, 2.0])
def test_is_never_below_info_nce(temperature):
    x, y = pair()
    losses = [
        info_nce(x, y, temperature=temperature),
        mann_whitney_loss(x, y, temperature=temperature, pool="query"),
        mann_whitney_loss(x, y, temperature=temperature),
    ]
    assert losses[0] <= losses[1] + 1e-12 and losses[1] <= losses[2] + 1e-12
    # With one negative for each query the first two are the same.
    x, y = pair(2)
    agree(info_nce(x, y), mann_whitney_loss(x, y, temperature=0.1, pool="query"), (x, y))


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_without_negatives_there_is_nothing_to_lose(pool):
    for (x, y), groups in [(batch(1), None), (batch(3, 1), torch.zeros(6, dtype=torch.int64))]:
        for over in ("sum", "mean"):
            loss = mann_whitney_loss(x, y, groups=groups, pool=pool, over_negatives=over)
            assert loss.item() == 0
            assert all((g == 0).all() for g in torch.autograd.grad(loss, (x, y)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row", "huge", "tiny"])
@pytest.mark.parametrize("pool", ["batch", "query"])
def test_extreme_embeddings_stay_finite(case, pool, dtype):
    x, y = extreme(case, dtype)
    t = torch.tensor(0.01, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    loss = mann_whitney_loss(x, y, temperature=t, pool=pool)
    assert loss.isfinite() and loss >= 0
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    gradients = torch.autograd.grad(loss, (x, y, t))
    assert [g.dtype for g in gradients[:2]] == [dtype, dtype]
    if case != "tiny" or dtype in (torch.float32, torch.float64):  # else the gradient itself is beyond the dtype
        assert all(g.isfinite().all() for g in gradients)


def test_a_wrong_order_by_far_costs_its_distance():
    # log(sigmoid(-1000)) would be minus infinity, and its gradient not a number.
    p, q = torch.tensor([-5.0], requires_grad=True), torch.tensor([5.0])
    loss = mann_whitney_from_scores(p, q)
    assert loss.item() == pytest.approx(1000)
    assert torch.autograd.grad(loss, p)[0].item() == pytest.approx(-100)


def test_scale_of_embeddings_does_not_matter():
    (x, y), (big, huge) = batch(), batch(scale=1e6)
    assert mann_whitney_loss(x, y).item() == pytest.approx(mann_whitney_loss(big, huge).item(), rel=1e-10)


def test_single_precision_is_accurate():
    x, y = batch(32, 1, 16)
    for t in (0.01, 0.2):
        exact = mann_whitney_loss(x, y, temperature=t).item()
        assert mann_whitney_loss(x.float(), y.float(), temperature=t).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_vmap_over_batches_and_temperatures(pool):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 5, 4, generator=draw, dtype=torch.float64)
    t = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    groups = torch.tensor([0, 1, 2, 1, 4]).expand(3, 5)

    def loss(x, y, t, groups):
        return mann_whitney_loss(x, y, temperature=t, groups=groups, pool=pool, over_negatives="mean")

    single = torch.stack([loss(*each) for each in zip(x, y, t, groups, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(x, y, t, groups), single, rtol=1e-12, atol=1e-12)
    mapped = torch.vmap(torch.func.grad(loss))(x, y, t, groups)
    each = torch.stack([torch.func.grad(loss)(*row) for row in zip(x, y, t, groups, strict=True)])
    torch.testing.assert_close(mapped, each, rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x, y = batch(5, 1)
    with without_hooks():
        from lossbook.methods.contrastive import mann_whitney_loss as plain

        agree(one_graph(plain)(x, y, temperature=0.1), oracle(x, y, 0.1)[0] / 5, (x, y))


def test_bad_input_is_refused():
    good = torch.ones(3, 2)
    assert "(2, 2)" in rejects(mann_whitney_loss, good, torch.ones(2, 2), names="passages")
    rejects(mann_whitney_loss, good, torch.ones(3, 4), names="passages")
    rejects(mann_whitney_loss, torch.ones(3), good, names="queries")
    rejects(mann_whitney_loss, good.int(), good.int(), names="queries")
    rejects(mann_whitney_loss, torch.ones(0, 2), good, names="queries")
    rejects(mann_whitney_loss, good, good, groups=torch.zeros(4, dtype=torch.int64), names="groups")
    rejects(mann_whitney_loss, good, good, pool="all", names="pool")
    rejects(mann_whitney_loss, good, good, over_negatives="max", names="over_negatives")
    rejects(mann_whitney_loss, good, good, temperature=0.0, names="temperature")
    rejects(mann_whitney_loss, good, good, rows=0, names="rows")
    rejects(mann_whitney_loss, good, good, reduction="max", names="reduction")
    rejects(mann_whitney_from_cosines, good, names="cosines")
    rejects(mann_whitney_from_cosines, torch.ones(2, 2).int(), names="cosines")
    score = torch.ones(3)
    rejects(mann_whitney_from_scores, good, score, names="positives")
    rejects(mann_whitney_from_scores, score, torch.ones(0), names="negatives")
    rejects(mann_whitney_from_scores, score, score.int(), names="negatives")
    rejects(mann_whitney_from_scores, score, score, over_negatives="max", names="over_negatives")


GROUPS = torch.arange(12) // 2
LABELS = torch.tensor([3, -1, 3, 0, 3, 7])


@pytest.mark.parametrize("pool", ["batch", "query"])
@pytest.mark.parametrize("over_negatives", ["sum", "mean"])
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("views", [1, 2])
def test_labels_are_their_definition(pool, over_negatives, rows, views):
    (x, y), (more, _) = pair(6), pair(2, seed=1)
    given = (x,) if views == 1 else (x, y)
    scores = F.normalize(x) @ F.normalize(torch.cat([given[-1], more])).T / 0.2
    negative = torch.cat([LABELS[:, None] != LABELS, torch.ones(6, 2, dtype=torch.bool)], 1)
    terms = []
    for i in range(6):
        for p in range(6):
            if LABELS[i] == LABELS[p] and (views == 2 or i != p):
                others = scores[negative] if pool == "batch" else scores[i, negative[i]]
                each = F.softplus(others - scores[i, p], threshold=50)
                terms.append(each.sum() if over_negatives == "sum" else each.mean())
    ours = mann_whitney_loss(
        *given, labels=LABELS, negatives=more, temperature=0.2, pool=pool, over_negatives=over_negatives, rows=rows
    )
    agree(ours, torch.stack(terms).mean(), (*given, more))


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_positions_and_extra_negatives_are_passages_in_another_order(pool):
    (x, y), (more, _) = pair(6), pair(2, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = mann_whitney_loss(x, y[order.argsort()], positives=order, negatives=more, pool=pool)
    agree(moved, mann_whitney_loss(x, torch.cat([y, more]), pool=pool), (x, y, more))


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_blocks_are_the_whole_in_little_memory(pool):
    x, y = pair(24, 4)
    # A row of a block has a number for each passage, twice over the rows with the pool of the batch.
    in_blocks(lambda rows: mann_whitney_loss(x, y, pool=pool, rows=rows), (x, y), most=24 * 9)


@pytest.mark.parametrize("pool", ["batch", "query"])
def test_without_a_pair_there_is_nothing_to_learn(pool):
    x, _ = pair(6)
    for labels in (torch.arange(6), torch.zeros(6, dtype=torch.long)):
        value = mann_whitney_loss(x, labels=labels, pool=pool)
        assert value.item() == 0 and not torch.autograd.grad(value, x)[0].any()


test_on_any_device = on_any_device(
    partial(mann_whitney_loss, pair()[0], labels=torch.arange(8) // 2, negatives=pair()[0], rows=3),
    partial(mann_whitney_from_cosines, torch.randn(6, 12), pool="query", groups=GROUPS, rows=4),
    partial(mann_whitney_from_scores, *scores(), over_negatives="mean", rows=4),
    partial(mann_whitney_loss, *batch(6, 1), groups=GROUPS, over_negatives="mean"),
    partial(mann_whitney_loss, *batch(6, 1), temperature=torch.tensor(0.1), pool="query"),
)
