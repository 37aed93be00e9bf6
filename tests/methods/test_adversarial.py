"""TRADES against PyTorch's own losses put together by hand."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, one_graph, pair, unhooked

from lossbook.methods.adversarial import trades

TARGETS = torch.tensor([0, 4, 2, 2, 1, 3, 0, 4])


def oracle_trades(z, other, y, weight):
    """As in the code of TRADES: sums over the batch, divided by its size."""
    divergence = F.kl_div(F.log_softmax(other, 1), F.softmax(z, 1), reduction="sum") / len(z)
    return F.cross_entropy(z, y) + weight * divergence


@pytest.mark.parametrize("weight", [0.0, 1.0, 6.0])
def test_trades_is_that_of_pytorch_losses(weight):
    z, other = pair(scale=3.0)
    agree(trades(z, other, TARGETS, weight=weight), oracle_trades(z, other, TARGETS, weight), (z, other))


def test_reductions_gradcheck_and_compile():
    z, other = pair()
    each = trades(z, other, TARGETS, reduction="none")
    torch.testing.assert_close(trades(z, other, TARGETS), each.mean())
    torch.testing.assert_close(trades(z, other, TARGETS, reduction="sum"), each.sum())
    assert each.shape == (8,)
    assert torch.autograd.gradcheck(lambda z, other: trades(z, other, TARGETS), (z, other))
    compiled = one_graph(unhooked("lossbook.methods.adversarial").trades)
    agree(compiled(z, other, TARGETS), trades(z, other, TARGETS), (z, other))


test_on_any_device = on_any_device(partial(trades, *pair(), TARGETS, weight=torch.tensor(6.0)))
