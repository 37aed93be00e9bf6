"""Alignment and uniformity, against pairwise distances."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, mapped_is_one_by_one, pair, rejects

from lossbook.methods.contrastive import alignment, uniformity


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_alignment_is_the_mean_distance(power):
    x, y = pair()
    agree(alignment(x, y, power=power), (F.normalize(x) - F.normalize(y)).norm(dim=1).pow(power).mean(), (x, y))
    same = alignment(x, x, power=power)
    assert same.item() == 0 and torch.autograd.grad(same, x)[0].isfinite().all()


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_uniformity_is_that_of_pairwise_distances(scale):
    x, _ = pair(9, 4)
    agree(uniformity(x, scale=scale), torch.pdist(F.normalize(x)).pow(2).mul(-scale).exp().mean().log(), (x,))
    opposite = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    assert uniformity(opposite, scale=scale).item() == pytest.approx(-4 * scale)
    assert uniformity(torch.ones(4, 3, dtype=torch.float64), scale=scale).item() == pytest.approx(0, abs=1e-14)
    rejects(uniformity, x[:1], names="embeddings")


def test_uniformity_in_blocks_is_the_same():
    x, _ = pair(9, 5)
    agree(uniformity(x, rows=4), uniformity(x), (x,), tolerance=1e-12)


@pytest.mark.parametrize("function", [alignment, lambda x, y: uniformity(x)], ids=["alignment", "uniformity"])
def test_gradcheck_and_mapped(function):
    assert torch.autograd.gradcheck(function, pair(5, 3))
    mapped_is_one_by_one(function)


test_on_any_device = on_any_device(
    partial(alignment, *pair(), power=1.0),
    partial(uniformity, pair()[0], rows=3),
)
