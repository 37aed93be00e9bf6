"""The divergence of predictions against torch.distributions."""

from functools import partial

import torch
from devices import on_any_device
from support import agree, mapped_is_one_by_one, pair, rejects

from lossbook.methods.divergences import kl_divergence


def test_divergence_is_that_of_pytorch_distributions():
    z, other = pair(scale=3.0)
    p, q = (torch.distributions.Categorical(logits=value) for value in (z, other))
    agree(kl_divergence(z, other, reduction="none"), torch.distributions.kl_divergence(p, q), (z, other))
    assert kl_divergence(z, z + 3.0).abs() < 1e-14


def test_gradcheck_and_mapped():
    assert torch.autograd.gradcheck(kl_divergence, pair(4, 3))
    mapped_is_one_by_one(kl_divergence)


def test_bad_input_is_refused():
    z = torch.ones(8, 5)
    rejects(kl_divergence, z, z[:2], names="others")
    rejects(kl_divergence, z.int(), z, names="logits")
    rejects(kl_divergence, z, z, reduction="max", names="reduction")


test_on_any_device = on_any_device(partial(kl_divergence, *pair()))
