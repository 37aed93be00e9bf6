"""Softmax, hard and simple contrastive losses against PyTorch, metric-learning and plain loops, and what is derived."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, extreme, in_blocks, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import (
    hard_info_nce,
    info_nce,
    relative_penalties,
    simple_contrastive,
    tolerance,
    uniformity,
)
from lossbook.methods.contrastive.contrastive_temperature import (
    hard_info_nce_from_cosines,
    simple_contrastive_from_cosines,
)


def cosines(x, y):
    return F.normalize(x) @ F.normalize(y).T


def kept_by_sorting(row, positive, share):
    """Negatives of one query by a plain sort: those at least as similar as the last one kept."""
    others = [k for k in range(len(row)) if k != positive]
    count = max(1, round(share * len(others)))
    last = sorted((row[k].item() for k in others), reverse=True)[count - 1]
    return [k for k in others if row[k].item() >= last]


def hard_oracle(s, temperature, share, positives=None):
    """PyTorch's cross-entropy, query by query, over the positive and what a plain sort keeps."""
    losses = []
    for i, row in enumerate(s):
        positive = i if positives is None else int(positives[i])
        chosen = row[[positive, *kept_by_sorting(row, positive, share)]] / temperature
        losses.append(F.cross_entropy(chosen[None], torch.tensor([0])))
    return torch.stack(losses)


def simple_oracle(s, weight, share):
    losses = []
    for i, row in enumerate(s):
        kept = kept_by_sorting(row, i, share)
        losses.append((weight or 1 / len(kept)) * row[kept].sum() - row[i])
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.7])
@pytest.mark.parametrize("share", [0.01, 0.0819, 0.3, 1.0])
@pytest.mark.parametrize(("n", "d"), [(2, 2), (8, 5), (40, 16)])
def test_hard_loss_is_cross_entropy_over_what_a_sort_keeps(n, d, share, temperature):
    x, y = pair(n, d)
    ours = hard_info_nce(x, y, temperature=temperature, share=share, reduction="none")
    agree(ours, hard_oracle(cosines(x, y), temperature, share), (x, y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_negatives_are_info_nce(reduction):
    x, y = pair(16, 6)
    ours = hard_info_nce(x, y, temperature=0.2, share=1.0, reduction=reduction)
    torch.testing.assert_close(ours, info_nce(x, y, temperature=0.2, reduction=reduction), rtol=1e-12, atol=1e-12)
    agree(ours, F.cross_entropy(cosines(x, y) / 0.2, torch.arange(16), reduction=reduction), (x, y))


def test_metric_learning_agrees():
    from pytorch_metric_learning.losses import NTXentLoss

    # A copy of the labels: given the same object, it takes keys for the queries themselves and leaves out the positives.
    x, y = pair(8, 5)
    labels = torch.arange(8)
    agree(
        hard_info_nce(x, y, temperature=0.1, share=1.0),
        NTXentLoss(temperature=0.1)(x, labels, ref_emb=y, ref_labels=labels.clone()),
        (x, y),
        tolerance=1e-8,
    )


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("weight", [None, 0.4])
def test_simple_loss_is_its_formula(weight, share):
    x, y = pair(12, 5)
    ours = simple_contrastive(x, y, weight=weight, share=share, reduction="none")
    agree(ours, simple_oracle(cosines(x, y), weight, share), (x, y))


def test_simple_loss_sees_only_the_means():
    x, y = pair(12, 5)
    u, v = F.normalize(x), F.normalize(y)
    means = (u.mean(0) * v.mean(0)).sum()
    agree(simple_contrastive(x, y), 12 / 11 * (means - (u * v).sum(1).mean()), (x, y))


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_memory_with_other_positives(share):
    x, _ = pair(6, 5)
    keys, _ = pair(30, 5, seed=1)
    positives = torch.tensor([7, 0, 29, 7, 3, 11])
    ours = hard_info_nce(x, keys, temperature=0.3, share=share, positives=positives, reduction="none")
    agree(ours, hard_oracle(cosines(x, keys), 0.3, share, positives), (x, keys))
    # Two queries may share a positive, and own rows give the default back.
    y, _ = pair(6, 5, seed=2)
    own = torch.arange(6)
    agree(simple_contrastive(x, y, share=share, positives=own), simple_contrastive(x, y, share=share), (x, y))


def test_from_cosines():
    x, y = pair(12, 5)
    hard = hard_info_nce_from_cosines(cosines(x, y), temperature=0.3, share=0.3)
    agree(hard, hard_info_nce(x, y, temperature=0.3, share=0.3), (x, y))
    agree(simple_contrastive_from_cosines(cosines(x, y), share=0.3), simple_contrastive(x, y, share=0.3), (x, y))


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("loss", [hard_info_nce, simple_contrastive], ids=["hard", "simple"])
def test_in_blocks_is_the_same(loss, share):
    x, y = pair(10, 5)
    agree(loss(x, y, share=share, rows=3), loss(x, y, share=share), (x, y), tolerance=1e-12)
    agree(loss(x, y, share=share, rows=3, reduction="none"), loss(x, y, share=share, reduction="none"), (x, y), 1e-12)


def test_tolerance_in_blocks_is_the_same():
    x, _ = pair(10, 5)
    targets = torch.arange(10) % 3
    agree(tolerance(x, targets, rows=3), tolerance(x, targets), (x,), tolerance=1e-12)


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("loss", [hard_info_nce, simple_contrastive], ids=["hard", "simple"])
def test_gradcheck(loss, share):
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, share=share), pair(6, 4))


def test_hard_loss_is_below_info_nce_and_pushes_what_it_keeps_harder():
    x, y = pair(30, 6)
    s = cosines(x, y).detach().requires_grad_()
    whole = hard_info_nce_from_cosines(s, temperature=0.2, share=1.0, reduction="none")
    hard = hard_info_nce_from_cosines(s, temperature=0.2, share=0.2, reduction="none")
    assert (hard < whole).all()
    (all_push,), (hard_push,) = (torch.autograd.grad(each.sum(), s) for each in (whole, hard))
    negatives = ~torch.eye(30, dtype=torch.bool)
    kept = negatives & (hard_push != 0)
    assert (kept.sum(1) == round(0.2 * 29)).all()
    assert (hard_push[kept] >= all_push[kept]).all()
    # Pull and push balance in both, and the pull of the hard loss is the weaker.
    torch.testing.assert_close(hard_push.sum(1), torch.zeros(30, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (hard_push.diagonal() >= all_push.diagonal()).all()


def test_tied_negatives_are_all_kept():
    s = torch.tensor([[0.1, 0.5, 0.5, 0.2], [0.0] * 4, [0.0] * 4, [0.0] * 4], dtype=torch.float64)
    first = hard_info_nce_from_cosines(s, temperature=1.0, share=0.1, reduction="none")[0]
    assert first.item() == pytest.approx(math.log(1 + 2 * math.exp(0.4)))
    assert simple_contrastive_from_cosines(s, share=0.1, reduction="none")[0].item() == pytest.approx(0.4)


def test_the_positive_is_never_dropped():
    # Its cosine is the smallest of the row.
    noise = torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = 1e-3 * noise - torch.eye(6)
    losses = hard_info_nce_from_cosines(s, temperature=0.5, share=0.2)
    assert losses.item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-2)


def test_small_temperature_is_the_triplet_loss_on_the_hardest_negative():
    x, y = pair(20, 4)
    s = cosines(x, y)
    largest = s.masked_fill(torch.eye(20, dtype=torch.bool), -2).amax(1)
    gap = 1e-4 * hard_info_nce(x, y, temperature=1e-4, share=1.0, reduction="none") - (largest - s.diagonal()).clamp(
        min=0
    )
    assert (gap >= -1e-12).all() and (gap <= 1e-4 * math.log(20)).all()


def test_large_temperature_is_the_simple_loss():
    x, y = pair(20, 4)
    tau = 1e4
    scaled = tau * (hard_info_nce(x, y, temperature=tau, share=1.0, reduction="none") - math.log(20))
    simple = 19 / 20 * simple_contrastive(x, y, reduction="none")
    remainder = cosines(x, y).var(1, correction=0) / (2 * tau)
    torch.testing.assert_close(scaled, simple + remainder, rtol=0, atol=1e-8)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_penalties_are_ratios_of_gradients(temperature):
    s = cosines(*pair(12, 5)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(s / temperature, torch.arange(12), reduction="sum"), s)
    ratios = gradient.abs() / gradient.diagonal().abs()[:, None]
    penalties = relative_penalties(s, temperature=temperature)
    off = ~torch.eye(12, dtype=torch.bool)
    torch.testing.assert_close(penalties[off], ratios[off], rtol=1e-8, atol=1e-12)
    assert (penalties.diagonal() == 0).all()
    torch.testing.assert_close(penalties.sum(1), torch.ones(12, dtype=torch.float64))


def test_entropy_of_the_penalties_grows_with_temperature():
    s = cosines(*pair(12, 5)).detach()

    def entropy(tau):
        # The diagonal is 0, where the entropy has no slope.
        return torch.special.entr(
            relative_penalties(s, temperature=tau)[~torch.eye(12, dtype=torch.bool)].view(12, 11)
        ).sum(1)

    tau = torch.tensor(0.3, dtype=torch.float64)
    slope = torch.func.jacfwd(entropy)(tau)
    r = relative_penalties(s, temperature=0.3)
    variance = (r * s**2).sum(1) - (r * s).sum(1) ** 2
    torch.testing.assert_close(slope, variance / 0.3**3, rtol=1e-9, atol=1e-10)


def test_tolerance_is_the_mean_over_pairs_of_one_class():
    x, _ = pair(9, 4)
    targets = torch.tensor([0, 0, 1, 2, 2, 2, 3, 1, 2])
    s = cosines(x, x)
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j and targets[i] == targets[j]]
    total = torch.stack([s[i, j] for i, j in pairs]).sum()
    agree(tolerance(x, targets), total / len(pairs), (x,))
    torch.testing.assert_close(tolerance(x, targets, joint=True), total / 72)


def test_tolerance_of_the_ends():
    one = torch.ones(6, 3, dtype=torch.float64)
    same, apart = torch.zeros(6, dtype=torch.long), torch.arange(6)
    assert tolerance(one, same).item() == pytest.approx(1)
    assert tolerance(one, apart).isnan() and tolerance(one, apart, joint=True) == 0


def test_uniformity_is_the_formula_of_pdist():
    x, _ = pair(20, 4)
    agree(uniformity(x), torch.pdist(F.normalize(x)).pow(2).mul(-2).exp().mean().log(), (x,))


def test_two_poles_are_as_good_as_it_gets_for_the_simple_loss():
    # Half of all pictures at one pole, half at the other: nothing is told apart within a half.
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).repeat(4, 1)
    assert simple_contrastive(poles, poles).item() == pytest.approx(-8 / 7)
    directions = torch.eye(8, dtype=torch.float64) - 1 / 8
    assert simple_contrastive(directions, directions).item() == pytest.approx(-8 / 7)


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row", "single"])
def test_extreme_embeddings_stay_finite(case, dtype, share):
    x, y = extreme(case, dtype)
    for loss in (hard_info_nce(x, y, temperature=0.01, share=share), simple_contrastive(x, y, share=share)):
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (x, y)))


@given(
    n=st.integers(1, 8),
    d=st.integers(1, 8),
    share=st.floats(0.01, 1),
    exponent=st.integers(-3, 3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_any_shape_dtype_and_scale(n, d, share, exponent, dtype, seed):
    x, y = pair(n, d, seed=seed, dtype=dtype, scale=10.0**exponent)
    for loss in (hard_info_nce, simple_contrastive):
        losses = loss(x, y, share=share, reduction="none")
        assert losses.shape == (n,) and losses.isfinite().all()
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        gradients = torch.autograd.grad(losses.sum(), (x, y))
        assert all(g.dtype == dtype and g.isfinite().all() for g in gradients)


def test_vmap_over_batches_and_temperatures():
    batches = torch.randn(3, 2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    temperatures = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)

    def loss(pair, tau):
        hard = hard_info_nce(pair[0], pair[1], temperature=tau, share=0.3)
        return hard + simple_contrastive(pair[0], pair[1], share=0.3) + tolerance(pair[0], torch.arange(8) % 2)

    mapped = torch.vmap(loss)(batches, temperatures)
    single = torch.stack([loss(*each) for each in zip(batches, temperatures, strict=True)])
    torch.testing.assert_close(mapped, single, rtol=1e-12, atol=1e-12)
    mapped = torch.vmap(torch.func.grad(loss))(batches, temperatures)
    single = torch.stack([torch.func.grad(loss)(*each) for each in zip(batches, temperatures, strict=True)])
    torch.testing.assert_close(mapped, single, rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    x, y = pair()
    with without_hooks():
        from lossbook.methods.contrastive import hard_info_nce as plain

        agree(one_graph(plain)(x, y, share=0.3), hard_oracle(cosines(x, y), 0.7, 0.3).mean(), (x, y))


@pytest.mark.parametrize("loss", [hard_info_nce, simple_contrastive], ids=["hard", "simple"])
def test_bad_input_is_refused(loss):
    good = torch.ones(3, 2)
    assert "(4, 2)" in rejects(loss, good, torch.ones(4, 2), names="keys")
    rejects(loss, torch.ones(3), torch.ones(3), names="queries")
    rejects(loss, good.int(), good.int(), names="queries")
    rejects(loss, good, good, reduction="max", names="reduction")
    for share in (0, 1.5, -0.1, True, "all", math.nan):
        rejects(loss, good, good, share=share, names="share")
    rejects(loss, good, torch.ones(5, 3), positives=torch.arange(3), names="keys")
    rejects(loss, good, torch.ones(5, 2), positives=torch.arange(4), names="positives")
    rejects(loss, good, torch.ones(5, 2), positives=torch.ones(3), names="positives")


def test_bad_numbers_and_targets_are_refused():
    good = torch.ones(3, 2)
    rejects(hard_info_nce, good, good, temperature=0.0, names="temperature")
    rejects(simple_contrastive, good, good, weight=-1.0, names="weight")
    rejects(relative_penalties, torch.ones(3, 2), names="similarities")
    rejects(relative_penalties, torch.ones(1, 1), names="similarities")
    rejects(tolerance, good, torch.ones(3), names="targets")
    rejects(tolerance, good[:1], torch.ones(1, dtype=torch.long), names="embeddings")


LABELS = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("views", [1, 2])
def test_labels_are_their_definition(share, views):
    (x, y), (more, _) = pair(), pair(3, seed=1)
    keys = torch.cat([x if views == 1 else y, more])
    given = (x,) if views == 1 else (x, y)
    cosines = F.normalize(x) @ F.normalize(keys).T
    hard, simple = [], []
    for i in range(8):
        others = cosines[i, [j for j in range(11) if j >= 8 or LABELS[j] != LABELS[i]]]
        kept = others.sort(descending=True).values[: max(1, round(share * len(others)))]
        for p in range(8):
            if LABELS[p] == LABELS[i] and (views == 2 or p != i):
                hard.append(torch.logsumexp(torch.cat([cosines[i, p : p + 1], kept]) / 0.3, 0) - cosines[i, p] / 0.3)
                simple.append(kept.mean() - cosines[i, p])
    settings = {"labels": LABELS, "negatives": more, "share": share}
    inputs = (*given, more)
    both = torch.stack(hard).mean() + 2 * torch.stack(simple).mean()
    agree(hard_info_nce(*given, temperature=0.3, **settings) + 2 * simple_contrastive(*given, **settings), both, inputs)


@pytest.mark.parametrize("loss", [hard_info_nce, simple_contrastive])
@pytest.mark.parametrize("labels", [None, torch.arange(60) // 7], ids=["views", "labels"])
def test_blocks_are_the_whole_in_little_memory(loss, labels):
    x, y = pair(60, 4)
    in_blocks(lambda rows: loss(x, y, labels=labels, share=0.2, rows=rows, reduction="none"), (x, y), most=1000)


@pytest.mark.parametrize("loss", [hard_info_nce, simple_contrastive])
def test_without_a_pair_there_is_nothing_to_learn(loss):
    x, _ = pair()
    value = loss(x, labels=torch.arange(8))
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0 and not gradient.abs().max()
    assert loss(x, labels=torch.zeros(8, dtype=torch.long)).isfinite()


test_on_any_device = on_any_device(
    partial(hard_info_nce, *pair(), rows=3),
    partial(hard_info_nce, *pair(), share=0.3, positives=torch.arange(8)),
    partial(relative_penalties, torch.eye(4), temperature=torch.tensor(0.1)),
    partial(hard_info_nce, pair()[0], labels=LABELS, negatives=pair()[0], share=0.3),
    partial(simple_contrastive, *pair(), labels=LABELS, key_labels=LABELS),
    partial(simple_contrastive, *pair(), share=0.3),
    partial(simple_contrastive, *pair(), weight=torch.tensor(2.0), positives=torch.arange(8), rows=3),
    partial(tolerance, pair()[0], torch.arange(8) % 3, rows=3),
    partial(tolerance, pair()[0], torch.arange(8) % 3, joint=True),
)
