"""Alignment and uniformity, against pairwise distances."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, in_blocks, mapped_is_one_by_one, pair, rejects

from lossbook.methods.contrastive import alignment, uniformity


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_alignment_is_the_mean_distance(power):
    x, y = pair()
    agree(alignment(x, y, power=power), (F.normalize(x) - F.normalize(y)).norm(dim=1).pow(power).mean(), (x, y))
    same = alignment(x, x, power=power)
    assert same.item() == 0 and torch.autograd.grad(same, x)[0].isfinite().all()


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_alignment_of_a_class_is_that_of_its_pairs(power):
    x, y = pair()
    labels = torch.tensor([3, -1, 3, 0, -1, 3, 7, 0])
    views, both = F.normalize(torch.cat([x, y])), labels.repeat(2)
    same = [(i, j) for i in range(16) for j in range(16) if i != j and both[i] == both[j]]
    expected = torch.stack([(views[i] - views[j]).norm() ** power for i, j in same]).mean()
    agree(alignment(x, y, labels=labels, power=power), expected, (x, y))
    agree(alignment(x, y, labels=torch.arange(8), power=power), alignment(x, y, power=power), (x, y))
    alone = alignment(x, labels=torch.arange(8), power=power)
    assert alone.item() == 0 and not torch.autograd.grad(alone, x)[0].abs().max()
    rejects(alignment, x, names="second")


def test_blocks_are_the_whole_in_little_memory():
    x, y = pair(60, 4)
    in_blocks(lambda rows: alignment(x, y, labels=torch.arange(60) // 7, power=1.0, rows=rows), (x, y), most=1000)
    in_blocks(lambda rows: uniformity(x, rows=rows), (x,), most=1000)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_uniformity_is_that_of_pairwise_distances(scale):
    x, _ = pair(9, 4)
    agree(uniformity(x, scale=scale), torch.pdist(F.normalize(x)).pow(2).mul(-scale).exp().mean().log(), (x,))
    opposite = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    assert uniformity(opposite, scale=scale).item() == pytest.approx(-4 * scale)
    assert uniformity(torch.ones(4, 3, dtype=torch.float64), scale=scale).item() == pytest.approx(0, abs=1e-14)
    rejects(uniformity, x[:1], names="embeddings")


@pytest.mark.parametrize("function", [alignment, lambda x, y: uniformity(x)], ids=["alignment", "uniformity"])
def test_gradcheck_and_mapped(function):
    assert torch.autograd.gradcheck(function, pair(5, 3))
    mapped_is_one_by_one(function)


test_on_any_device = on_any_device(
    partial(alignment, *pair(), power=1.0),
    partial(alignment, pair()[0], labels=torch.arange(8) // 2, power=1.0, rows=3),
    partial(uniformity, pair()[0], rows=3),
)
