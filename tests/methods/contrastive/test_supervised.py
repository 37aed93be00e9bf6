"""Supervised contrastive loss against pytorch-metric-learning's and sums over the definition."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from pytorch_metric_learning.losses import SupConLoss
from support import agree, in_blocks, mapped_is_one_by_one, one_graph, pair, rejects, without_hooks

from lossbook.methods.contrastive import nt_xent, supervised_contrastive

LABELS = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])


def oracle(views, labels, form, more=None, temperature=0.1):
    """The loss of each anchor that has a positive."""
    keys = F.normalize(views if more is None else torch.cat([views, more]))
    losses = {}
    for a in range(len(views)):
        shares = torch.softmax(torch.cat([keys[:a], keys[a + 1 :]]) @ keys[a] / temperature, 0)
        own = [b - (b > a) for b in range(len(views)) if b != a and labels[b] == labels[a]]
        if own:
            losses[a] = -shares[own].log().mean() if form == "out" else -shares[own].mean().log()
    return losses


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("labels", [LABELS, LABELS.clamp(max=0), torch.arange(8) // 2], ids=["mixed", "two", "pairs"])
def test_agrees_with_pytorch_metric_learning(labels, temperature):
    x, y = pair()
    theirs = SupConLoss(temperature)
    agree(supervised_contrastive(x, labels=labels, temperature=temperature), theirs(x, labels), (x,), tolerance=1e-8)
    pooled = theirs(torch.cat([x, y]), labels.repeat(2))
    agree(supervised_contrastive(x, y, labels=labels, temperature=temperature), pooled, (x, y), tolerance=1e-8)


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("rows", [None, 3])
def test_is_its_definition(form, rows):
    (x, y), (more, _) = pair(), pair(3, seed=1)
    losses = oracle(torch.cat([x, y]), LABELS.repeat(2), form, more)
    ours = supervised_contrastive(x, y, labels=LABELS, negatives=more, form=form, rows=rows)
    agree(ours, torch.stack([*losses.values()]).mean(), (x, y, more))
    losses = oracle(x, LABELS, form)
    each = supervised_contrastive(x, labels=LABELS, form=form, rows=rows, reduction="none")
    torch.testing.assert_close(each, torch.stack([losses.get(a, x.new_zeros(())) for a in range(8)]))


@pytest.mark.parametrize("form", ["out", "in"])
def test_views_alone_are_nt_xent(form):
    x, y = pair()
    agree(supervised_contrastive(x, y, form=form), nt_xent(x, y), (x, y))


def test_out_is_at_least_in():
    x, y = pair()
    outer, inner = (supervised_contrastive(x, y, labels=LABELS, form=form, reduction="none") for form in ("out", "in"))
    assert (outer >= inner - 1e-12).all() and (outer > inner + 0.1).any()


@pytest.mark.parametrize("form", ["out", "in"])
def test_gradcheck(form):
    x, y = pair(4, 3)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2])

    def loss(x, t):
        return supervised_contrastive(x, labels=labels, temperature=t, form=form, negatives=y.detach())

    assert torch.autograd.gradcheck(loss, (x, temperature))


@pytest.mark.parametrize("form", ["out", "in"])
def test_without_a_pair_there_is_nothing_to_learn(form):
    x, _ = pair()
    value = supervised_contrastive(x, labels=torch.arange(8), form=form)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0 and not gradient.abs().max()


@pytest.mark.parametrize("form", ["out", "in"])
def test_blocks_are_the_whole_in_little_memory(form):
    x, y = pair(60, 4)
    labels = torch.arange(60) // 7
    in_blocks(
        lambda rows: supervised_contrastive(x, y, labels=labels, form=form, rows=rows, reduction="none"),
        (x, y),
        most=1000,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    x, _ = pair(dtype=dtype)
    loss = supervised_contrastive(x, labels=LABELS)
    torch.testing.assert_close(loss, supervised_contrastive(x.float(), labels=LABELS), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(supervised_contrastive(x, labels=LABELS), loss, rtol=0, atol=0)


def test_mapped_is_one_by_one():
    mapped_is_one_by_one(lambda x, y: supervised_contrastive(x, y, labels=torch.tensor([0, 1, 1, 2, 3, 0])))


def test_compile_without_graph_breaks():
    x, _ = pair()
    with without_hooks():
        from lossbook.methods.contrastive import supervised_contrastive as plain

        agree(one_graph(plain, backward=True)(x, labels=LABELS), supervised_contrastive(x, labels=LABELS), (x,))


def test_bad_input_is_refused():
    x, y = pair()
    rejects(supervised_contrastive, x, names="second")
    rejects(supervised_contrastive, x, y, form="both", names="form")
    rejects(supervised_contrastive, x, y, temperature=0.0, names="temperature")
    rejects(supervised_contrastive, x, labels=LABELS[:3], names="labels")
    rejects(supervised_contrastive, x, y, reduction="max", names="reduction")


test_on_any_device = on_any_device(
    partial(supervised_contrastive, *pair(), labels=LABELS, negatives=pair()[0], temperature=torch.tensor(0.1)),
    partial(supervised_contrastive, pair()[0], labels=LABELS, form="in", rows=3),
    partial(supervised_contrastive, *pair()),
)
