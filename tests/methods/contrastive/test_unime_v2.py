"""The judge's loss against PyTorch's kl_div both ways, and the mining against a loop in plain Python."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, one_graph, rejects, unhooked

from lossbook.methods.contrastive import (
    judge_alignment,
    judge_alignment_from_cosines,
    judge_score,
    potential_negatives,
    reranker_loss,
    select_negatives,
)


def lists(n=6, m=5, d=4, *, seed=0, dtype=torch.float64, scale=1.0):
    """Queries, their candidates and the judge's scores, at random."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(n, d, generator=draw, dtype=torch.float64)
    c = torch.randn(n, m, d, generator=draw, dtype=torch.float64)
    s = torch.rand(n, m, generator=draw, dtype=torch.float64)
    return (scale * q).to(dtype).requires_grad_(), (scale * c).to(dtype).requires_grad_(), s.to(dtype)


def oracle(q, c, s, temperature=0.02, divergence="symmetric", reduction="mean", epsilon=0.0):
    u = torch.einsum("nd,nmd->nm", F.normalize(q, dim=-1), F.normalize(c, dim=-1))
    p, t = torch.softmax(u / temperature, 1), torch.softmax(s / temperature, 1)
    forward = F.kl_div((p + epsilon).log(), t, reduction="none").sum(1)
    backward = F.kl_div((t + epsilon).log(), p, reduction="none").sum(1)
    losses = {"symmetric": (forward + backward) / 2, "target": forward, "model": backward}[divergence]
    return {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("divergence", ["symmetric", "target", "model"])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 2), (2, 2, 3), (6, 9, 8)])
def test_is_kl_div_both_ways(n, m, d, divergence, reduction):
    q, c, s = lists(n, m, d)
    ours = judge_alignment(q, c, s, temperature=0.1, divergence=divergence, reduction=reduction)
    agree(ours, oracle(q, c, s, 0.1, divergence, reduction), (q, c))


def test_batchmean_of_kl_div_is_the_mean():
    q, c, s = lists()
    u = torch.einsum("nd,nmd->nm", F.normalize(q, dim=-1), F.normalize(c, dim=-1))
    log_p, log_q = torch.log_softmax(u / 0.02, 1), torch.log_softmax(s / 0.02, 1)
    expected = sum(
        F.kl_div(one, other, reduction="batchmean", log_target=True) / 2
        for one, other in ((log_p, log_q), (log_q, log_p))
    )
    agree(judge_alignment(q, c, s), expected, (q, c))


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_epsilon_is_that_of_the_official_code(temperature):
    q, c, s = lists()
    ours = judge_alignment(q, c, s, temperature=temperature, epsilon=1e-8)
    agree(ours, oracle(q, c, s, temperature, epsilon=1e-8), (q, c), tolerance=1e-9)


@pytest.mark.parametrize("divergence", ["symmetric", "target", "model"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_gradcheck(divergence, epsilon):
    q, c, s = lists(3, 4, 3)
    s.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *args: judge_alignment(*args, temperature=0.2, divergence=divergence, epsilon=epsilon), (q, c, s)
    )


def test_gradients_by_cosines_have_closed_forms():
    u = torch.empty(5, 6, dtype=torch.float64).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    s = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u.requires_grad_()
    p, q = torch.softmax(u.detach() / 0.1, 1), torch.softmax(s / 0.1, 1)
    ratio = p.log() - q.log()
    for divergence, expected in [
        ("target", (p - q) / 0.1),
        ("model", p * (ratio - (p * ratio).sum(1, keepdim=True)) / 0.1),
    ]:
        loss = judge_alignment_from_cosines(u, s, temperature=0.1, divergence=divergence, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, u)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
        assert gradient.sum(1).abs().max() < 1e-10


def test_zero_where_cosines_are_scores_plus_a_constant():
    s = torch.rand(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = (s - 0.7).requires_grad_()
    loss = judge_alignment_from_cosines(u, s)
    assert abs(loss.item()) < 1e-13  # of logits up to 50
    assert torch.autograd.grad(loss, u)[0].abs().max() < 1e-10


def test_one_hot_target_gives_infonce_one_way_and_no_bound_the_other():
    u = torch.empty(4, 9, dtype=torch.float64).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    cross_entropy = F.cross_entropy(u / 0.1, torch.zeros(4, dtype=torch.long)).item()
    values = []
    for gap in (10.0, 100.0):
        s = torch.zeros_like(u)
        s[:, 0] = gap
        target = judge_alignment_from_cosines(u, s, temperature=0.1, divergence="target")
        assert target.item() == pytest.approx(cross_entropy, abs=1e-12)
        values.append(judge_alignment_from_cosines(u, s, temperature=0.1, divergence="model").item())
    assert values[1] > 9 * values[0]


def test_order_of_candidates_does_not_matter():
    q, c, s = lists()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(judge_alignment(q, c, s), judge_alignment(q, c[:, order], s[:, order]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
@pytest.mark.parametrize("case", ["equal", "opposite", "zero", "one-hot scores", "tiny temperature"])
def test_extremes_stay_finite(case, epsilon, dtype):
    q, c, s = (value.detach() for value in lists(dtype=dtype))
    temperature = 0.02
    if case == "equal":
        c = q[:, None].expand_as(c)
    elif case == "opposite":
        c = torch.cat([q[:, None], -q[:, None].expand(-1, 4, -1)], 1)
    elif case == "zero":
        q = torch.zeros_like(q)
    elif case == "one-hot scores":
        s = F.one_hot(torch.arange(6) % 5, 5).to(dtype)
    else:  # exponentials underflow in every dtype
        c, temperature = torch.cat([q[:, None], -q[:, None].expand(-1, 4, -1)], 1), 1e-3
    q, c, s = (value.clone().requires_grad_() for value in (q, c, s))
    loss = judge_alignment(q, c, s, temperature=temperature, epsilon=epsilon)
    assert loss.isfinite() and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    gradients = torch.autograd.grad(loss, (q, c, s))
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_does_not_matter(scale):
    torch.testing.assert_close(judge_alignment(*lists(scale=scale)), judge_alignment(*lists()))


def test_single_precision_is_accurate():
    q, c, s = lists(64, 9, 32)
    loss = judge_alignment(q.float(), c.float(), s.float())
    assert loss.item() == pytest.approx(oracle(q, c, s).item(), rel=1e-5)


def test_vmap_over_lists_and_temperature():
    q, c, s = (torch.stack([one.detach(), 2 - one.detach()]) for one in lists())
    t = torch.tensor([0.02, 0.1], dtype=torch.float64)
    mapped = torch.vmap(lambda q, c, s, t: judge_alignment(q, c, s, temperature=t))(q, c, s, t)
    single = [judge_alignment(*each, temperature=float(t)) for *each, t in zip(q, c, s, t, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(single), rtol=1e-12, atol=1e-12)


def test_compile_without_graph_breaks():
    q, c, s = lists()
    loss = unhooked("lossbook.methods.contrastive.unime_v2").judge_alignment
    agree(one_graph(loss)(q, c, s), oracle(q, c, s), (q, c))


@given(st.floats(-1e4, 1e4), st.floats(-30, 30))
def test_score_is_a_softmax_over_two_answers(shift, gap):
    yes, no = torch.tensor([shift + gap], dtype=torch.float64), torch.tensor([shift], dtype=torch.float64)
    expected = torch.softmax(torch.cat([yes, no]), 0)[:1]
    torch.testing.assert_close(judge_score(yes, no), expected, rtol=1e-10, atol=1e-15)


def mined_by_hand(scores, target, beta, count, stride):
    """The rule of the paper for one query, in plain Python; None where it leaves no candidate."""
    kept = [i for i, score in enumerate(scores) if not score > target - beta]
    spread = [kept[i] for start in range(stride) for i in range(start, len(kept), stride)]
    return [spread[i % len(spread)] for i in range(count)] if spread else None


@given(
    m=st.integers(1, 60),
    beta=st.floats(-0.2, 0.8),
    stride=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_selection_by_hand(m, beta, stride, seed):
    scores = torch.rand(4, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = torch.tensor([0.05, 0.5, 0.9, 1.0], dtype=torch.float64)
    count = min(10, m)
    mined = select_negatives(scores, targets, beta=beta, count=count, stride=stride)
    for row, target, positions, values, kept in zip(scores, targets, *mined, strict=True):
        expected = mined_by_hand(row.tolist(), target.item(), beta, count, stride)
        assert kept == int((row <= target - beta).sum())
        if expected is None:
            assert len(set(positions.tolist())) == count and (values == 1).all()
        else:
            assert positions.tolist() == expected
            torch.testing.assert_close(values, row[positions])


def test_larger_beta_drops_a_superset():
    scores = torch.rand(20, 50, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(20, generator=torch.Generator().manual_seed(1))
    kept = [select_negatives(scores, targets, beta=beta).kept for beta in (0.0, 0.01, 0.1, 0.5)]
    assert all((less >= more).all() for less, more in itertools.pairwise(kept))


def test_random_negatives_come_from_the_generator():
    scores, targets = torch.ones(3, 50), torch.zeros(3)
    one, other, third = (
        select_negatives(scores, targets, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one.positions, other.positions) and not torch.equal(one.positions, third.positions)


@pytest.mark.parametrize("limit", [None, 0.3])
def test_potential_negatives_are_the_most_similar_without_the_target(limit):
    similarities = torch.empty(4, 12).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([3, 0, 11, 5])
    found = potential_negatives(similarities, targets, size=6, limit=limit)
    for row, target, ours in zip(similarities.tolist(), targets.tolist(), found.tolist(), strict=True):
        order = sorted((i for i in range(12) if i != target), key=lambda i: -row[i])
        within = [i for i in order if limit is None or row[i] < limit]
        beyond = [i for i in order if i not in within]
        assert ours == (within + beyond)[:6]


@pytest.mark.parametrize("limit", [None, 0.3, -2.0])
def test_the_target_is_no_negative_of_its_own_whatever_the_others_are(limit):
    lowest = -math.inf
    rows = [[0.9, lowest, 0.5], [lowest, 0.2, lowest], [lowest, lowest, lowest], [math.inf, 0.1, 0.2]]
    similarities, targets = torch.tensor(rows), torch.tensor([0, 2, 1, 0])
    found = potential_negatives(similarities, targets, size=2, limit=limit)
    assert not (found == targets[:, None]).any()
    assert [sorted(row) for row in found.tolist()] == [[1, 2], [0, 1], [0, 2], [1, 2]]
    if limit is None:
        assert found.tolist()[0] == [2, 1] and found.tolist()[1] == [1, 0]
    if limit == 0.3:  # what is beyond the limit comes after what is as far as can be
        assert found.tolist()[0] == [1, 2] and found.tolist()[1] == [1, 0]


def test_reranker_loss_is_three_cross_entropies():
    draw = torch.Generator().manual_seed(0)
    yes_no = torch.randn(2, 7, 2, generator=draw, dtype=torch.float64).requires_grad_()
    listed = torch.randn(7, 5, generator=draw, dtype=torch.float64).requires_grad_()
    positions = torch.randint(5, (7,), generator=draw)
    log_odds = yes_no[..., 0] - yes_no[..., 1]
    expected = (
        F.cross_entropy(yes_no[0], torch.zeros(7, dtype=torch.long), reduction="none")
        + F.cross_entropy(yes_no[1], torch.ones(7, dtype=torch.long), reduction="none")
        + F.cross_entropy(listed, positions, reduction="none")
    )
    agree(reranker_loss(*log_odds, listed, positions, reduction="none"), expected, (yes_no, listed))


def test_bad_input_is_refused():
    q, c, s = torch.ones(3, 2), torch.ones(3, 4, 2), torch.ones(3, 4)
    assert "(2, 4, 2)" in rejects(judge_alignment, q, torch.ones(2, 4, 2), s, names="candidates")
    rejects(judge_alignment, torch.ones(3), c, s, names="queries")
    rejects(judge_alignment, q, c, torch.ones(3, 5), names="scores")
    rejects(judge_alignment, q, c, s.int(), names="scores")
    rejects(judge_alignment, q, c, s, temperature=0.0, names="temperature")
    rejects(judge_alignment, q, c, s, divergence="js", names="divergence")
    rejects(judge_alignment, q, c, s, epsilon=-1.0, names="epsilon")
    rejects(judge_alignment, q, c, s, epsilon=math.nan, names="epsilon")
    rejects(judge_alignment, q, c, s, reduction="max", names="reduction")
    rejects(judge_score, torch.ones(3), torch.ones(2), names="no")
    rejects(potential_negatives, s, torch.zeros(2, dtype=torch.long), names="targets")
    rejects(potential_negatives, s, torch.zeros(3, dtype=torch.long), size=4, names="size")
    rejects(select_negatives, s, torch.ones(2), names="target_scores")
    rejects(select_negatives, s, torch.ones(3), count=5, names="count")
    rejects(select_negatives, s, torch.ones(3), count=2, stride=0, names="stride")
    rejects(select_negatives, s, torch.ones(3), count=2, beta=math.inf, names="beta")
    rejects(reranker_loss, torch.ones(3), torch.ones(3), s, torch.zeros(3), names="positions")
    rejects(reranker_loss, torch.ones(3), torch.ones(3), s[:2], torch.zeros(3).long(), names="position_logits")


test_on_any_device = on_any_device(
    partial(judge_alignment, *lists(), temperature=torch.tensor(0.02)),
    partial(judge_alignment_from_cosines, torch.rand(6, 5), torch.rand(6, 5), epsilon=1e-8),
    partial(judge_score, torch.randn(6), torch.randn(6)),
    partial(potential_negatives, torch.randn(6, 9), torch.arange(6), size=4, limit=0.9),
    partial(reranker_loss, torch.randn(6), torch.randn(6), torch.randn(6, 5), torch.arange(6) % 5),
    partial(select_negatives, torch.rand(6, 9), torch.rand(6), count=4, stride=2),
)
