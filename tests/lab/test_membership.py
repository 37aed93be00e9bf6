"""Membership attackers against scikit-learn, and their intervals against what they promise."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from lossbook.lab import membership

DRAW = torch.Generator().manual_seed(0)


def scores(n, m, shift=0.7, digits=None):
    members, others = torch.randn(n, generator=DRAW) + shift, torch.randn(m, generator=DRAW)
    return (members, others) if digits is None else (members.round(decimals=digits), others.round(decimals=digits))


@pytest.mark.parametrize("digits", [None, 0], ids=["distinct", "ties"])
@pytest.mark.parametrize(("n", "m"), [(30, 45), (1, 7), (200, 90)])
def test_against_scikit_learn(n, m, digits):
    members, others = scores(n, m, digits=digits)
    truth, score = np.r_[np.ones(n), np.zeros(m)], torch.cat([members, others]).numpy()
    assert membership.attack_auc(members, others).item() == pytest.approx(roc_auc_score(truth, score))
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    for rate in (0.05, 0.2):
        found = membership.judge_attack(members, others, false_positives=rate)
        assert found.power.effect == pytest.approx(true[false <= rate].max())
        assert found.auc.effect == pytest.approx(roc_auc_score(truth, score))
        for interval in found:
            assert 0 <= interval.low <= interval.effect <= interval.high <= 1


def test_area_of_many_runs_is_that_of_each():
    members, others = torch.randn(3, 20, generator=DRAW), torch.randn(3, 15, generator=DRAW)
    each = [membership.attack_auc(a, b) for a, b in zip(members, others, strict=True)]
    torch.testing.assert_close(membership.attack_auc(members, others), torch.stack(each))


def test_intervals_cover_as_often_as_they_say():
    truth = norm.cdf(0.7 / np.sqrt(2))
    within = [i.low <= truth <= i.high for i in (membership.judge_attack(*scores(40, 60)).auc for _ in range(300))]
    assert np.mean(within) == pytest.approx(0.95, abs=0.055)  # four standard errors


def test_interval_against_one_from_the_literature():
    # Hanley and McNeil (1982): area 0.893 of 51 and 58 pictures has a standard error of 0.032.
    members, others = torch.zeros(51), torch.zeros(58)
    members[:], others[:46], others[46:] = 1.0, 0.0, 1.0
    found = membership.judge_attack(members, others).auc
    assert found.effect == pytest.approx(1 - 0.5 * 12 / 58)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(0.032, abs=0.004)


def test_intervals_at_the_ends_do_not_shrink_to_a_point():
    apart = membership.judge_attack(torch.ones(20), torch.zeros(30))
    assert apart.auc.effect == apart.auc.high == apart.power.effect == 1
    assert 0.8 < apart.auc.low < 1 and apart.power.low == pytest.approx(0.025 ** (1 / 20))
    wrong = membership.judge_attack(torch.zeros(20), torch.ones(30))
    assert wrong.auc.effect == wrong.auc.low == 0 and wrong.auc.high == pytest.approx(1 - apart.auc.low)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["members smaller", "members larger"])
def test_threshold_attack_learns_the_direction(sign):
    members = torch.arange(60) < 30
    loss = sign * (torch.randn(2, 60, generator=DRAW) + (~members).float())
    asked = sign * torch.tensor([[0.0, 5.0], [3.0, -2.0]])
    (score,) = membership.threshold_attack(loss, members, asked)
    assert (score[0, 0] > score[0, 1]) and (score[1, 1] > score[1, 0])
    torch.testing.assert_close(score, -sign * asked)


def features(n, shift):
    """Only the second moment tells: no threshold on one feature does."""
    return torch.randn(2, n, 6, generator=DRAW) * torch.tensor([[[shift]], [[1.0]]])


def test_learned_attack_finds_what_is_there_and_nothing_else():
    known = torch.cat([features(150, 2.0), features(150, 1.0)], 1)
    member = torch.arange(300) < 150
    ours, theirs = membership.learned_attack(known, member, features(200, 2.0), features(200, 1.0), device="cpu")
    assert ours.shape == (2, 200)
    area = membership.attack_auc(ours, theirs)
    assert area[0] > 0.85 and abs(area[1] - 0.5) < 0.12


def test_learned_attack_of_a_run_does_not_depend_on_the_others_or_on_units():
    known, member = torch.cat([features(40, 2.0), features(20, 1.0)], 1), torch.arange(60) < 40
    asked = features(10, 1.0)
    (both,) = membership.learned_attack(known, member, asked, steps=40, device="cpu")
    (alone,) = membership.learned_attack(known[1:], member, asked[1:], steps=40, device="cpu")
    (scaled,) = membership.learned_attack(100 * known + 3, member, 100 * asked + 3, steps=40, device="cpu")
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both, scaled, rtol=1e-2, atol=1e-2)


def test_bad_input_is_refused():
    for attack in (membership.judge_attack, membership.attack_auc):
        with pytest.raises(ValueError, match="members: expected scores, got none"):
            attack(torch.zeros(0), torch.zeros(3))
        with pytest.raises(ValueError, match="others: expected scores, got none"):
            attack(torch.zeros(3), torch.zeros(0))
        with pytest.raises(ValueError, match="members: expected numbers, got NaN in 1 of 2 places"):
            attack(torch.tensor([0.0, np.nan]), torch.zeros(3))
        with pytest.raises(ValueError, match="others: expected numbers, got NaN in 3 of 3 places"):
            attack(torch.zeros(3), torch.full((3,), np.nan))
        with pytest.raises(ValueError, match="others: expected a floating-point tensor, got torch.int64"):
            attack(torch.zeros(3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"others: expected shape \(2, 4\), the runs of the members, got \(3, 4\)"):
        membership.attack_auc(torch.zeros(2, 3), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1, got 95"):
        membership.judge_attack(torch.zeros(3), torch.zeros(3), confidence=95)
    with pytest.raises(ValueError, match="false_positives: expected a number between 0 and 1"):
        membership.judge_attack(torch.zeros(3), torch.zeros(3), false_positives=0.0)
    with pytest.raises(ValueError, match="members: expected 4 flags of both kinds"):
        membership.threshold_attack(torch.zeros(4), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"asked: expected shape \(1, 3, 2\), runs and features"):
        membership.learned_attack(torch.zeros(1, 4, 2), HALF, torch.zeros(1, 3, 5))


HALF = torch.tensor([True, True, False, False])
ATTACKS = {
    "threshold": membership.threshold_attack,
    "learned": lambda auxiliary, members, *asked: membership.learned_attack(
        auxiliary[..., None], members, *(each[..., None] for each in asked), steps=2, device="cpu"
    ),
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("attack", ATTACKS)
def test_members_are_flags_and_no_positions(attack, dtype):
    # As positions 0 and 1 they would stand for the first two examples, and for the last two when negated.
    with pytest.raises(ValueError, match=f"members: expected flags \\(torch.bool\\), got {dtype}"):
        ATTACKS[attack](torch.tensor([[0.1, 0.9, 0.2, 0.8]]), HALF.to(dtype), torch.zeros(1, 2))


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_refuse_what_is_no_number_and_other_runs(attack):
    known, bad = torch.rand(2, 4, generator=DRAW), torch.tensor([[0.0, np.nan]] * 2)
    for arguments, message in (
        ((torch.cat([known[:, :2], bad], 1), HALF, known), "auxiliary: expected .*numbers, got NaN"),
        ((known, HALF, known, bad), "asked: expected .*numbers, got NaN"),
        ((known, HALF, known[:1]), r"asked: expected shape \(2, 4.*runs"),
    ):
        with pytest.raises(ValueError, match=message):
            ATTACKS[attack](*arguments)


def test_area_counts_infinities_and_equal_scores_of_either_sign():
    ends = torch.tensor([-np.inf, np.inf, 0.0, -0.0, 1.0], dtype=torch.float64)
    expected = np.mean([(a > b) + 0.5 * (a == b) for a in ends.tolist() for b in ends[1:].tolist()])
    assert membership.attack_auc(ends, ends[1:]).item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_area_in_any_precision_and_of_two(dtype):
    members, others = (each.to(dtype) for each in scores(50, 40, digits=1))
    expected = roc_auc_score(np.r_[np.ones(50), np.zeros(40)], torch.cat([members, others]).double().numpy())
    assert membership.attack_auc(members, others).item() == pytest.approx(expected)
    assert membership.attack_auc(members.double(), others).item() == pytest.approx(expected)


def test_area_under_vmap_is_nan_where_a_score_is():
    members, others = torch.randn(3, 20, generator=DRAW), torch.randn(3, 15, generator=DRAW)
    bad = members.clone()
    bad[1, 4] = np.nan
    found = torch.func.vmap(membership.attack_auc)(bad, others)
    expected = membership.attack_auc(members, others)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


def test_threshold_is_passed_by_as_many_as_were_asked_for():
    # 0.29 times 100 is a little less than 29 in binary.
    others = torch.arange(100.0)
    members = others + 0.5
    assert membership.judge_attack(members, others, false_positives=0.29).power.effect == 0.3
