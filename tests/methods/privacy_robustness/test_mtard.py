"""B-MTARD against PyTorch's kl_div, SciPy's entropy and a plain loop of the official rules."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from support import agree, one_graph, rejects, unhooked

from lossbook.methods.privacy_robustness import (
    Balance,
    b_mtard,
    balance_temperatures,
    balance_weights,
    start_balance,
    teacher_divergence,
    tempered_entropy,
)


def logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()


def four(seed=0, n=8, k=5, dtype=torch.float64):
    return [logits(n, k, seed=4 * seed + index, dtype=dtype) for index in range(4)]


def pair(*values):
    return torch.tensor(values, dtype=torch.float64)


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", ["mean", "sum"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_that_of_pytorch(temperature, classes, reduction):
    student, teacher, *_ = four()
    terms = F.kl_div(student.log_softmax(1), (teacher.detach() / temperature).softmax(1), reduction="none")
    each = terms.mean(1) if classes == "mean" else terms.sum(1)
    theirs = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    ours = teacher_divergence(student, teacher, temperature=temperature, classes=classes, reduction=reduction)
    agree(ours, theirs, (student,))


def test_default_divides_by_batch_and_classes():
    student, teacher, *_ = four()
    theirs = F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="mean")
    agree(teacher_divergence(student, teacher), theirs, (student,))


def test_official_form_differs_by_a_small_constant():
    student, teacher, *_ = four()
    t = teacher.detach().softmax(1)
    theirs = (-student.log_softmax(1) * t + torch.log(t + 1e-5) * t).mean()
    ours = teacher_divergence(student, teacher, form="official")
    agree(ours, theirs, (student,))
    assert 0 < ours - teacher_divergence(student, teacher) < 1e-5


def test_the_teacher_gets_no_gradient():
    student, teacher, *_ = four()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(teacher_divergence(student, teacher), teacher)


def test_gradient_is_student_minus_target():
    student, teacher, *_ = four()
    (gradient,) = torch.autograd.grad(teacher_divergence(student, teacher, temperature=3.0), student)
    expected = (student.softmax(1) - (teacher / 3).softmax(1)) / student.numel()
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_entropy_is_that_of_scipy(temperature):
    z = logits(6, 7)
    p = (z.detach() / temperature).softmax(1).numpy()
    ours = tempered_entropy(z, temperature=temperature, reduction="none")
    torch.testing.assert_close(ours.detach(), torch.tensor(scipy.stats.entropy(p, axis=1)), rtol=1e-12, atol=1e-12)


def test_entropy_rises_with_temperature_by_the_variance():
    z, temperature = logits(1, 6).detach(), pair(1.7)[0].requires_grad_()
    (slope,) = torch.autograd.grad(tempered_entropy(z, temperature=temperature), temperature)
    p = (z / temperature.detach()).softmax(1)
    variance = (p * z**2).sum() - (p * z).sum() ** 2
    torch.testing.assert_close(slope, variance / temperature.detach() ** 3)


# The controllers ----------------------------------------------------------------------------------


def official(t_n, t_a, w_n, w_a, losses, first, entropies, r_t, r_w):
    """The rules as the official script writes them, in plain numbers."""
    t_n, t_a = (
        t_n - r_t * np.sign(entropies[0] / entropies[1] - 1),
        t_a - r_t * np.sign(entropies[1] / entropies[0] - 1),
    )
    t_n, t_a = max(min(10, t_n), 1), max(min(10, t_a), 1)
    relative = [loss / start for loss, start in zip(losses, first, strict=True)]
    rates = [value / (sum(relative) / 2) for value in relative]
    w_n = max(w_n - r_w * (w_n - rates[0] / sum(rates)), 0)
    w_a = max(w_a - r_w * (w_a - rates[1] / sum(rates)), 0)
    return t_n, t_a, w_n / (w_a + w_n), w_a / (w_a + w_n)


def test_a_run_follows_the_official_rules():
    balance, state, first = start_balance(dtype=torch.float64), (1.0, 1.0, 0.5, 0.5), None
    for step in range(30):
        clean, attacked, nat, adv = four(step)
        step_result = b_mtard(
            clean, attacked, nat, 0.5 * adv, balance, temperature_rate=0.1, weight_rate=0.1, form="official"
        )
        losses, entropies = [], []
        for student, teacher, t in ((clean, nat, state[0]), (attacked, 0.5 * adv, state[1])):
            p = (teacher.detach() / t).softmax(1)
            losses.append(((p + 1e-5).log() * p - student.log_softmax(1) * p).mean())
            entropies.append(float((p * (p + 1e-5).log()).mean()))
        values = [float(loss) for loss in losses]
        first = first or values
        state = official(*state, values, first, entropies, 0.1, 0.1)
        expected = state[2] * losses[0] + state[3] * losses[1]
        agree(step_result.loss, expected, (clean, attacked))
        balance = step_result.balance
        torch.testing.assert_close(balance["temperatures"], pair(*state[:2]))
        torch.testing.assert_close(balance["weights"], pair(*state[2:]))
        torch.testing.assert_close(balance["anchors"], pair(*first))
        assert balance["steps"] == step + 1
    assert balance["temperatures"][0] > 1.5 and balance["temperatures"][1] < 1.5


def test_rates_of_zero_are_the_fixed_sum():
    clean, attacked, nat, adv = four()
    start = start_balance(temperatures=(3.0, 1.0), weights=(4.0, 1.0), dtype=torch.float64)
    result = b_mtard(clean, attacked, nat, adv, start, temperature_rate=0.0, weight_rate=0.0)
    expected = 0.2 * teacher_divergence(attacked, adv) + 0.8 * teacher_divergence(clean, nat, temperature=3.0)
    agree(result.loss, expected, (clean, attacked))
    assert torch.equal(result.balance["temperatures"], start["temperatures"])
    torch.testing.assert_close(result.balance["weights"], pair(0.8, 0.2))


def test_anchors_may_be_the_mean_of_several_steps():
    balance, seen = start_balance(dtype=torch.float64), []
    for step in range(5):
        result = b_mtard(*four(step), balance, anchor_steps=3)
        balance = result.balance
        seen.append(result.losses)
    torch.testing.assert_close(balance["anchors"], torch.stack(seen[:3]).mean(0))


@given(st.floats(1, 10), st.floats(1, 10), st.floats(0, 2.3), st.floats(0, 2.3), st.floats(0, 0.5))
def test_temperatures_move_oppositely_within_bounds(t_a, t_n, h_a, h_n, rate):
    before = pair(t_a, t_n)
    after = balance_temperatures(before, pair(h_a, h_n), rate=rate)
    change = after - before
    assert change[0] * change[1] <= 0 and (change.abs() <= rate + 1e-12).all()
    assert ((after >= 1) & (after <= 10)).all()
    if h_a > h_n:
        assert change[0] <= 0 <= change[1]


def test_no_entropy_at_all_divides_nothing_by_zero():
    torch.testing.assert_close(balance_temperatures(pair(1.0, 1.0), pair(0.5, 0.0), rate=0.1), pair(1.0, 1.1))
    torch.testing.assert_close(balance_temperatures(pair(2.0, 2.0), pair(0.0, 0.0), rate=0.1), pair(2.0, 2.0))


@given(
    st.floats(0, 1),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(1e-6, 1e6),
    st.floats(1e-6, 1e6),
    st.floats(0, 1),
    st.floats(0, 20),
)
def test_weights_stay_shares(w, l_a, l_n, first_a, first_n, rate, exponent):
    after = balance_weights(pair(w, 1 - w), pair(l_a, l_n), pair(first_a, first_n), rate=rate, exponent=exponent)
    assert after.isfinite().all() and (after >= 0).all()
    assert after.sum().item() == pytest.approx(1, abs=1e-12)


def test_weights_are_an_exponential_moving_average():
    weights, losses, anchors = pair(0.5, 0.5), pair(0.3, 0.2), pair(0.5, 1.0)
    target = pair(0.6, 0.2) / 0.8
    for _ in range(25):
        weights = balance_weights(weights, losses, anchors, rate=0.1)
    torch.testing.assert_close(weights, target + 0.9**25 * (pair(0.5, 0.5) - target))
    sharper = balance_weights(pair(0.5, 0.5), losses, anchors, rate=1.0, exponent=2.0)
    torch.testing.assert_close(sharper, pair(9.0, 1.0) / 10)


def test_scale_of_a_loss_does_not_matter_to_the_weights():
    one = balance_weights(pair(0.4, 0.6), pair(0.3, 0.2), pair(0.5, 1.0))
    other = balance_weights(pair(0.4, 0.6), pair(30, 2e-8), pair(50, 1e-7))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["ordinary", "equal", "one class", "confident", "opposed"])
def test_extremes_stay_finite(case, dtype):
    sizes = {"one class": 1}
    clean, attacked, nat, adv = (value.detach() for value in four(k=sizes.get(case, 5), dtype=dtype))
    huge = {torch.float16: 6e4, torch.bfloat16: 1e30}.get(dtype, 1e30)
    if case == "equal":
        clean, attacked, nat = adv, adv, adv
    if case in ("confident", "opposed"):
        hot = huge * F.one_hot(torch.arange(8) % 5, 5).to(dtype)
        nat = adv = hot
        clean = attacked = hot if case == "confident" else hot.roll(1, 1)
    clean, attacked = clean.clone().requires_grad_(), attacked.clone().requires_grad_()
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    result = b_mtard(clean, attacked, nat, adv, start_balance(dtype=wanted), temperature_rate=0.1)
    assert result.loss.isfinite() and result.loss >= -1e-6 and result.loss.dtype == wanted
    assert all(g.isfinite().all() for g in torch.autograd.grad(result.loss, (clean, attacked), retain_graph=True))
    assert all(value.isfinite().all() for value in result.balance.values())
    # The next step, from anchors that may be 0.
    again = b_mtard(clean, attacked, nat, adv, result.balance)
    assert again.loss.isfinite() and again.balance["weights"].isfinite().all()


def test_single_precision_is_accurate():
    values = four()
    exact = b_mtard(*values, start_balance(dtype=torch.float64)).loss.item()
    rounded = b_mtard(*(value.float() for value in values), start_balance(dtype=torch.float32)).loss.item()
    assert rounded == pytest.approx(exact, rel=1e-5)


def test_vmap_over_runs_with_rates_of_their_own():
    runs = [four(seed) for seed in range(3)]
    rates = torch.tensor([0.0, 0.05, 0.1], dtype=torch.float64)
    starts = [start_balance(weights=(1.0, 1.0 + run), dtype=torch.float64) for run in range(3)]
    stacked = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
    inputs = [torch.stack(parts) for parts in zip(*runs, strict=True)]

    def step(a, b, c, d, balance, rate):
        return b_mtard(a, b, c, d, balance, temperature_rate=rate, weight_rate=rate)

    mapped = torch.vmap(step)(*inputs, stacked, rates)
    for run in range(3):
        alone = step(*runs[run], starts[run], rates[run])
        torch.testing.assert_close(mapped.loss[run], alone.loss)
        torch.testing.assert_close({name: value[run] for name, value in mapped.balance.items()}, alone.balance)


def test_compile_without_graph_breaks():
    values, start = four(), start_balance(dtype=torch.float64)
    module = unhooked("lossbook.methods.privacy_robustness.mtard")
    compiled = one_graph(module.b_mtard)
    agree(compiled(*values, start).loss, b_mtard(*values, start).loss, values[:2])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", range(4))
def test_one_bad_batch_shows_and_leaves_no_trace(which, value):
    settings = {"temperature_rate": 0.1, "weight_rate": 0.1, "anchor_steps": 3}
    start, expected = start_balance(dtype=torch.float64), []
    for step in range(4):
        start = b_mtard(*four(step), start, **settings).balance if step else start
        expected.append(start)
    for balance in expected:
        bad = [each.detach().clone() for each in four()]
        bad[which][3, 1] = value
        result = b_mtard(*bad, balance, **settings)
        assert not result.loss.isfinite() and not result.losses.isfinite().all()
        assert all(torch.equal(result.balance[name], balance[name]) for name in balance)
        assert b_mtard(*four(9), result.balance, **settings).loss == b_mtard(*four(9), balance, **settings).loss


def test_one_bad_number_moves_neither_temperatures_nor_weights():
    for bad in (math.nan, math.inf):
        assert torch.equal(balance_temperatures(pair(2.0, 3.0), pair(bad, 1.0), rate=0.1), pair(2.0, 3.0))
        assert torch.equal(balance_weights(pair(0.3, 0.7), pair(1.0, bad), pair(1.0, 1.0), rate=0.1), pair(0.3, 0.7))


def test_a_saved_balance_goes_on_as_it_would_have(tmp_path):
    settings, balance = {"temperature_rate": 0.1, "weight_rate": 0.1}, start_balance(dtype=torch.float64)
    for step in range(3):
        balance = b_mtard(*four(step), balance, **settings).balance
    torch.save(balance, tmp_path / "balance.pt")
    loaded = torch.load(tmp_path / "balance.pt", weights_only=True)
    ours, theirs = (b_mtard(*four(9), each, **settings) for each in (balance, loaded))
    assert torch.equal(ours.loss, theirs.loss)
    assert ours.balance.keys() == theirs.balance.keys() == Balance.__annotations__.keys()
    assert all(torch.equal(ours.balance[name], theirs.balance[name]) for name in loaded)


def test_pairs_and_arguments_name_the_clean_teacher_first():
    clean, attacked, nat, adv = four()
    result = b_mtard(clean, attacked, nat, adv, start_balance(temperatures=(2.0, 3.0), dtype=torch.float64))
    expected = [teacher_divergence(clean, nat, temperature=2.0), teacher_divergence(attacked, adv, temperature=3.0)]
    torch.testing.assert_close(result.losses, torch.stack(expected).detach())


def test_gradcheck():
    clean, attacked, nat, adv = four(n=3, k=4)
    start = start_balance(weights=(1.0, 2.0), dtype=torch.float64)
    # With a rate above 0 the weights follow the losses, by design without gradient.
    assert torch.autograd.gradcheck(
        lambda a, b: b_mtard(a, b, nat, adv, start, weight_rate=0.0).loss, (clean, attacked)
    )


def test_bad_input_is_refused():
    good, other, start = torch.ones(3, 4), torch.ones(3, 5), start_balance()
    assert "(3, 5)" in rejects(teacher_divergence, good, other, names="teacher_logits")
    rejects(teacher_divergence, good.int(), good, names="logits")
    rejects(teacher_divergence, good, good, temperature=0.0, names="temperature")
    rejects(teacher_divergence, good, good, classes="max", names="classes")
    rejects(teacher_divergence, good, good, form="other", names="form")
    rejects(teacher_divergence, good, good, reduction="max", names="reduction")
    rejects(tempered_entropy, torch.ones(3), names="logits")
    rejects(tempered_entropy, good, temperature=math.nan, names="temperature")
    two = torch.ones(2)
    rejects(balance_temperatures, torch.ones(3), two, names="temperatures")
    rejects(balance_temperatures, two, two, rate=-1.0, names="rate")
    rejects(balance_temperatures, two, two, lowest=2.0, highest=1.0, names="highest")
    rejects(balance_weights, two, torch.ones(2, 1), two, names="losses")
    rejects(balance_weights, two, two, two, rate=1.5, names="rate")
    rejects(start_balance, weights=(0.0, 0.0), names="weights")
    rejects(start_balance, temperatures=(0.0, 1.0), names="temperatures")
    rejects(b_mtard, good, good, good, good, start, anchor_steps=0, names="anchor_steps")
    rejects(b_mtard, good, other, good, other, start, names="adversarial_logits")
    rejects(b_mtard, good, good, other, good, start, names="clean_teacher_logits")
    rejects(b_mtard, good, good, good, good, start, form="other", names="form")


BALANCE, RATE = start_balance(), torch.tensor(0.1)
test_on_any_device = on_any_device(
    partial(b_mtard, *four(), BALANCE, temperature_rate=RATE, weight_rate=RATE, form="official"),
    partial(balance_temperatures, torch.ones(2), torch.rand(2), rate=RATE),
    partial(balance_weights, torch.ones(2) / 2, torch.rand(2), torch.ones(2), rate=RATE),
    partial(start_balance, device="cpu"),
    partial(Balance, **BALANCE),
    partial(teacher_divergence, *four()[:2], temperature=torch.tensor(2.0), form="official"),
    partial(tempered_entropy, four()[0], temperature=torch.tensor(2.0)),
)
