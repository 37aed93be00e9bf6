"""The memory against a full table in numpy, the weights against SciPy's Gaussian, and what the derivation promises."""

import math
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from support import agree, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import (
    LossStatistics,
    PairMemory,
    bad_pairs,
    dynamic_bad_pair_loss,
    info_nce,
    loss_statistics,
    pair_memory,
    pair_weights,
    record_losses,
)

FORMS = ["density", "capped", "relative", "drop"]


def draw(*shape, seed=0, dtype=torch.float64):
    """Positive numbers, as losses are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).exp().to(dtype)


def oracle(losses, averages, everyone, noisy_cut, faulty_cut):
    """The paper's weights by numpy and SciPy."""
    mean, deviation = np.mean(everyone), np.std(everyone)
    flagged = (averages < mean - noisy_cut * deviation) | (averages > mean + faulty_cut * deviation)
    return np.where(flagged, norm(mean, deviation).pdf(losses), 1.0)


@pytest.mark.parametrize("noisy_cut", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("faulty_cut", [0.0, 1.0, 3.0])
def test_weights_are_the_papers(noisy_cut, faulty_cut):
    everyone, losses = draw(200), draw(200, seed=1)
    cuts = {"noisy_cut": noisy_cut, "faulty_cut": faulty_cut}
    weights = pair_weights(losses, everyone, loss_statistics(everyone), **cuts)
    expected = oracle(losses.numpy(), everyone.numpy(), everyone.numpy(), **cuts)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient_of_the_whole(reduction):
    x, y = pair(12, 5)
    averages = draw(12)
    statistics = loss_statistics(averages)
    ours = dynamic_bad_pair_loss(
        info_nce(x, y, temperature=0.2, reduction="none"),
        averages,
        statistics,
        noisy_cut=0.5,
        faulty_cut=0.5,
        reduction=reduction,
    )
    logits = F.normalize(x) @ F.normalize(y).T / 0.2
    losses = F.cross_entropy(logits, torch.arange(12), reduction="none")
    weights = torch.tensor(oracle(losses.detach().numpy(), averages.numpy(), averages.numpy(), 0.5, 0.5))
    assert 0 < (weights != 1).sum() < 12
    theirs = weights * losses
    agree(ours, {"mean": theirs.mean(), "sum": theirs.sum(), "none": theirs}[reduction], (x, y))


def test_memory_is_the_mean_of_a_table():
    # Every epoch leaves out other pairs; unused places of the table must not count as zeros.
    n, epochs, generator = 50, 7, torch.Generator().manual_seed(0)
    memory, table = pair_memory(n, dtype=torch.float64), np.full((n, epochs), np.nan)
    for epoch in range(epochs):
        for index in torch.randperm(n, generator=generator)[:40].split(10):
            losses = draw(10, seed=epoch)
            memory = record_losses(memory, losses, index)
            table[index, epoch] = losses.numpy()
    np.testing.assert_array_equal(memory["count"], (~np.isnan(table)).sum(1))
    np.testing.assert_allclose(memory["average"], np.nanmean(table, 1), rtol=1e-12)
    statistics = loss_statistics(memory["average"])
    assert statistics["mean"].item() == pytest.approx(np.mean(np.nanmean(table, 1)))
    assert statistics["deviation"].item() == pytest.approx(np.std(np.nanmean(table, 1)))


def test_gain_is_the_official_codes_rising_weight():
    losses, memory = draw(6, 20), pair_memory(20, dtype=torch.float64)
    for epoch in range(6):
        memory = record_losses(memory, losses[epoch], torch.arange(20), gain=(epoch + 1) / 10)
    weight = np.array([(1 + epoch) / 10 for epoch in range(6)])
    np.testing.assert_allclose(memory["average"], np.mean(losses.numpy().T * weight, axis=1), rtol=1e-12)


def test_recording_leaves_the_old_memory_and_takes_no_gradient():
    memory, losses = pair_memory(4), torch.ones(2, requires_grad=True)
    new = record_losses(memory, losses, torch.tensor([2, 0]))
    assert memory["average"].isnan().all() and not memory["count"].any()
    assert not new["average"].requires_grad
    assert new["count"].tolist() == [1, 0, 1, 0] and new["average"][[0, 2]].tolist() == [1, 1]


def trained(bad=None, epochs=range(3), memory=None):
    """A memory after some epochs over six pairs, in which one loss may be bad."""
    memory = pair_memory(6, dtype=torch.float64) if memory is None else memory
    for epoch in epochs:
        losses = draw(6, seed=epoch)
        if bad is not None and epoch == 1:
            losses[4] = bad
        memory = record_losses(memory, losses, torch.arange(6))
    return memory


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_bad_loss_shows_and_is_not_recorded(bad):
    memory, good = trained(bad), trained()
    assert memory["count"].tolist() == [3, 3, 3, 3, 2, 3]
    expected = torch.stack([draw(6, seed=0), draw(6, seed=2)]).mean(0)[4]
    torch.testing.assert_close(memory["average"][4], expected)
    others = torch.tensor([0, 1, 2, 3, 5])
    assert torch.equal(memory["average"][others], good["average"][others])
    # And flags still come.
    statistics = loss_statistics(memory["average"])
    noisy, faulty = bad_pairs(memory["average"], statistics, noisy_cut=0.0, faulty_cut=0.0)
    assert (noisy | faulty).all()
    # The first one that a pair has is not recorded either.
    first = record_losses(pair_memory(2), torch.tensor([bad, 1.0]), torch.tensor([0, 1]))
    assert first["count"].tolist() == [0, 1] and first["average"][0].isnan()
    losses = torch.tensor([bad, 1.0], dtype=torch.float64)
    for form in FORMS:
        assert not dynamic_bad_pair_loss(losses, memory["average"][:2], statistics, form=form).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_memory_in_half_precision_counts_on(dtype):
    index = torch.arange(2)
    memory = record_losses(pair_memory(2, dtype=dtype), torch.tensor([1.0, 2.0]), index)
    for _ in range(4):
        memory = record_losses({**memory, "count": memory["count"] + 999}, torch.tensor([1.0, 2.0]), index)
    assert memory["average"].dtype == dtype and memory["count"].tolist() == [4001, 4001]
    memory = record_losses(
        record_losses(pair_memory(1, dtype=dtype), torch.ones(1), index[:1]), 2 * torch.ones(1), index[:1]
    )
    assert memory["average"] == 1.5


def test_an_infinite_average_does_not_hide_the_others():
    averages = torch.tensor([1.0, 3.0, math.inf])
    statistics = loss_statistics(averages)
    assert statistics["mean"] == 2 and statistics["deviation"] == 1
    assert bad_pairs(averages, statistics)[1].tolist() == [False, False, True]


def test_saved_memory_goes_on_as_it_would_have(tmp_path):
    memory, statistics = trained(), loss_statistics(trained()["average"])
    torch.save((memory, statistics), tmp_path / "state.pt")
    loaded, ruler = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(trained(memory=loaded)["average"], trained(memory=memory)["average"])
    losses = draw(6, seed=7)
    ours, theirs = (
        dynamic_bad_pair_loss(losses, state["average"], scale, noisy_cut=0.5)
        for state, scale in ((memory, statistics), (loaded, ruler))
    )
    assert torch.equal(ours, theirs)


def test_pairs_never_seen_are_neither_counted_nor_flagged():
    everyone = torch.tensor([math.nan, 1.0, 2.0, 9.0, math.nan], dtype=torch.float64)
    statistics = loss_statistics(everyone)
    assert statistics["mean"].item() == pytest.approx(4)
    assert statistics["deviation"].item() == pytest.approx(np.std([1, 2, 9]))
    noisy, faulty = bad_pairs(everyone, statistics, noisy_cut=0.0, faulty_cut=0.0)
    assert noisy.tolist() == [False, True, True, False, False] and faulty.tolist() == [False, False, False, True, False]
    nobody = loss_statistics(pair_memory(5)["average"])
    assert pair_weights(torch.ones(5), torch.ones(5), nobody).tolist() == [1] * 5


def test_flags_follow_the_history_and_weights_the_current_loss():
    statistics = LossStatistics(mean=torch.tensor(1.0), deviation=torch.tensor(0.5))
    averages = torch.tensor([1.0, 3.0])  # only the second is flagged, though its loss now is the mean
    weights = pair_weights(torch.tensor([9.0, 1.0]), averages, statistics, faulty_cut=2.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1 / (0.5 * math.sqrt(2 * math.pi))]))


@pytest.mark.parametrize("form", FORMS)
def test_without_cuts_it_is_the_plain_loss(form):
    losses, averages = draw(30).requires_grad_(), draw(30, seed=1)
    loss = dynamic_bad_pair_loss(
        losses, averages, loss_statistics(averages), noisy_cut=math.inf, faulty_cut=math.inf, form=form
    )
    assert loss.item() == losses.mean().item()
    torch.testing.assert_close(torch.autograd.grad(loss, losses)[0], torch.full((30,), 1 / 30, dtype=torch.float64))


def test_cuts_of_zero_flag_all():
    averages = draw(31)
    noisy, faulty = bad_pairs(averages, loss_statistics(averages), noisy_cut=0.0, faulty_cut=0.0)
    assert (noisy ^ faulty).all()


@given(
    values=st.lists(st.floats(0, 1e4), min_size=2, max_size=30),
    cut=st.floats(0, 4),
)
def test_cantelli_bounds_each_tail(values, cut):
    averages = torch.tensor(values, dtype=torch.float64)
    for flagged in bad_pairs(averages, loss_statistics(averages), noisy_cut=cut, faulty_cut=cut):
        assert flagged.double().mean().item() <= 1 / (1 + cut**2) + 1e-9


@pytest.mark.parametrize(("deviation", "z", "weight"), [(0.05, 2.0, 1.0798), (0.1, 1.5, 1.2952)])
def test_density_can_exceed_one_and_the_safe_forms_cannot(deviation, z, weight):
    mean, deviation, losses, averages = torch.tensor([1.0, deviation, 1 + z * deviation, 9.0], dtype=torch.float64)
    statistics, losses, averages = LossStatistics(mean=mean, deviation=deviation), losses[None], averages[None]
    values = {form: pair_weights(losses, averages, statistics, form=form).item() for form in FORMS}
    assert values["density"] == pytest.approx(weight, abs=1e-4)
    assert values["capped"] == 1 and values["drop"] == 0
    assert values["relative"] == pytest.approx(math.exp(-(z**2) / 2))


def test_density_depends_on_the_unit_of_the_loss_and_relative_does_not():
    losses, averages = draw(20), draw(20, seed=1)
    for form, factor in [("density", 10), ("relative", 1)]:
        weights, scaled = (
            pair_weights(
                c * losses, c * averages, loss_statistics(c * averages), noisy_cut=0.0, faulty_cut=0.0, form=form
            )
            for c in (1, 10)
        )
        torch.testing.assert_close(factor * scaled, weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["all equal", "one apart", "tiny", "large", "zero"])
def test_extremes_stay_finite(case, dtype, form):
    averages = draw(8).to(dtype)
    if case == "all equal":
        averages = torch.ones(8, dtype=dtype)
    elif case == "one apart":
        averages = torch.tensor([1.0] * 7 + [1.01], dtype=dtype)
    elif case == "tiny":
        averages = averages * (1e-30 if dtype != torch.float16 else 1e-5)
    elif case == "large":
        averages = averages * (1e30 if dtype != torch.float16 else 1e3)
    else:
        averages = torch.tensor([0.0] * 7 + [1.0], dtype=dtype)
    losses = averages.flip(0).clone().requires_grad_()
    loss = dynamic_bad_pair_loss(losses, averages, loss_statistics(averages), noisy_cut=0.5, faulty_cut=0.5, form=form)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(loss, losses)
    assert loss.isfinite() and gradient.isfinite().all() and gradient.dtype == dtype


def test_equal_histories_flag_nobody():
    averages = torch.full((5,), 2.0)
    noisy, faulty = bad_pairs(averages, loss_statistics(averages), noisy_cut=0.0, faulty_cut=0.0)
    assert not (noisy | faulty).any()


def test_vmap_over_runs_and_cuts():
    losses, everyone, cuts = draw(3, 4), draw(3, 10, seed=1), torch.tensor([0.0, 0.5, math.inf], dtype=torch.float64)
    index = torch.tensor([[0, 3, 5, 7], [1, 2, 3, 4], [9, 8, 7, 6]])

    def step(losses, everyone, index, cut):
        memory = PairMemory(average=everyone, count=torch.ones(10).double())
        loss = dynamic_bad_pair_loss(losses, everyone[index], loss_statistics(everyone), noisy_cut=cut, faulty_cut=cut)
        return loss, record_losses(memory, losses, index)

    loss, memory = torch.vmap(step)(losses, everyone, index, cuts)
    for run in range(3):
        one_loss, one_memory = step(losses[run], everyone[run], index[run], cuts[run])
        torch.testing.assert_close(loss[run], one_loss)
        torch.testing.assert_close(memory["average"][run], one_memory["average"])


def test_compile_without_graph_breaks():
    losses, averages = draw(16).requires_grad_(), draw(16, seed=1)
    with without_hooks():
        module = import_module("lossbook.methods.contrastive.dynamic_bad_pair_mining")

        def loss(losses):
            return module.dynamic_bad_pair_loss(losses, averages, module.loss_statistics(averages), noisy_cut=0.5)

        agree(one_graph(loss)(losses), loss(losses), (losses,))


def test_bad_input_is_refused():
    good, statistics = torch.ones(3), loss_statistics(torch.ones(3))
    rejects(pair_memory, 0, names="n")
    rejects(pair_memory, 2.0, names="n")
    rejects(record_losses, pair_memory(3), good, torch.ones(3), names="index")
    rejects(record_losses, pair_memory(3), good, torch.arange(2), names="index")
    rejects(record_losses, pair_memory(3), good, torch.arange(3), gain=0.0, names="gain")
    rejects(loss_statistics, torch.ones(2, 2), names="averages")
    rejects(loss_statistics, torch.arange(3), names="averages")
    rejects(bad_pairs, good, statistics, noisy_cut=-1.0, names="noisy_cut")
    rejects(bad_pairs, good, statistics, faulty_cut=math.nan, names="faulty_cut")
    rejects(pair_weights, torch.ones(2, 2), good, statistics, names="losses")
    assert "(2,)" in rejects(pair_weights, good, torch.ones(2), statistics, names="averages")
    rejects(pair_weights, good, good, statistics, form="soft", names="form")
    rejects(dynamic_bad_pair_loss, good, good, statistics, reduction="max", names="reduction")


STATISTICS = LossStatistics(mean=torch.tensor(1.0), deviation=torch.tensor(0.5))
test_on_any_device = on_any_device(
    partial(bad_pairs, torch.rand(6), STATISTICS),
    *(partial(dynamic_bad_pair_loss, torch.rand(6), torch.rand(6), STATISTICS, form=form) for form in FORMS),
    partial(loss_statistics, torch.rand(6)),
    partial(pair_memory, 6, device="cpu"),
    partial(PairMemory, **pair_memory(6)),
    partial(LossStatistics, **STATISTICS),
    partial(pair_weights, torch.rand(6), torch.rand(6), STATISTICS, noisy_cut=torch.tensor(2.0)),
    partial(record_losses, pair_memory(6), torch.rand(3), torch.tensor([0, 2, 5]), gain=torch.tensor(0.5)),
)
