"""Embeddings in chunks have the gradient of the whole batch."""

import copy
from functools import partial

import pytest
import torch
from devices import on_any_device
from support import rejects
from torch import nn

from lossbook.methods.accumulation import InChunks, in_chunks
from lossbook.methods.contrastive import info_nce, nt_xent, temperature_free_info_nce, vic_reg


def encoder(*, dropout=0.0, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)).double()


def views(number=2, n=10):
    return torch.randn(number, n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()


def gradients(loss, module):
    return torch.autograd.grad(loss, [*module.parameters()])


def three(x, y, z):
    return (info_nce(x, y) + info_nce(x, z) + vic_reg(y, z)) / 3


@pytest.mark.parametrize("size", [1, 3, 5, 10, 64])
@pytest.mark.parametrize(
    ("loss", "number"),
    [(nt_xent, 2), (partial(info_nce, symmetric=True), 2), (temperature_free_info_nce, 2), (three, 3)],
)
def test_the_gradient_is_that_of_the_whole_batch(loss, number, size):
    module, inputs = encoder(), views(number)
    whole = loss(*map(module, inputs))
    chunked = loss(*(in_chunks(module, view, size=size) for view in inputs))
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(chunked, module), gradients(whole, module), rtol=1e-10, atol=1e-12)


def test_adding_up_small_batches_is_something_else():
    module, (first, second) = encoder(), views(n=16)
    whole = torch.cat([g.flatten() for g in gradients(nt_xent(module(first), module(second)), module)])

    def apart(loss):
        return ((torch.cat([g.flatten() for g in gradients(loss, module)]) - whole).norm() / whole.norm()).item()

    small = [nt_xent(module(x), module(y)) for x, y in zip(first.split(4), second.split(4), strict=True)]
    assert apart(sum(small) / len(small)) > 0.05
    assert apart(nt_xent(*(in_chunks(module, view, size=4) for view in (first, second)))) < 1e-12


def test_dropout_draws_the_same_again():
    module, (first, second) = encoder(dropout=0.5), views()
    torch.manual_seed(3)
    loss = nt_xent(*(in_chunks(module, view, size=4) for view in (first, second)))
    found, following = gradients(loss, module), torch.rand(2)
    torch.manual_seed(3)
    loss = nt_xent(*(torch.cat([module(chunk) for chunk in view.split(4)]) for view in (first, second)))
    torch.testing.assert_close(found, gradients(loss, module), rtol=1e-10, atol=1e-12)
    assert torch.equal(following, torch.rand(2))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))])
def test_what_changes_with_every_call_begins_as_in_the_first(layer):
    first, second = views()
    outcomes = []
    for chunks in (lambda m, x: in_chunks(m, x, size=5), lambda m, x: torch.cat([m(chunk) for chunk in x.split(5)])):
        module = nn.Sequential(copy.deepcopy(layer), encoder()).double().train()
        loss = nt_xent(chunks(module, first), chunks(module, second))
        outcomes.append((gradients(loss, module), dict(module.named_buffers())))
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


def test_one_chunk_at_a_time_has_its_activations():
    log = []

    class Logged(nn.Module):
        def forward(self, inputs):
            log.append("made")
            outputs = inputs.sin()
            if outputs.requires_grad:
                outputs.register_hook(lambda _: log.append("used"))
            return outputs.cos()

    inputs = torch.randn(6, 2, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        loss = in_chunks(Logged(), inputs, size=2).square().sum()
    loss.backward()
    # In the backward pass each chunk is made again after the one before it has been used; only embeddings wait for it.
    assert log[:3] == ["made"] * 3 and log[3:] == ["made", "used"] * 3
    assert kept.count(torch.Size([2, 2])) == 3  # its inputs alone


@pytest.mark.parametrize("function", [False, True])
def test_under_autocast_the_second_pass_is_in_half_precision_too(function):
    module, (first, second) = encoder().float(), (view.float() for view in views())
    call = (lambda x: module(x)) if function else module
    seen = []
    module[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(in_chunks(call, first, size=5), in_chunks(call, second, size=5))
    loss.backward()
    assert seen == [torch.bfloat16] * 8 and all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_as_a_module():
    module, (first, second) = encoder(), views()
    chunked = InChunks(module, size=3)
    expected = gradients(nt_xent(module(first), module(second)), module)
    found = gradients(nt_xent(chunked(first), chunked(second)), chunked)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert "size=3" in repr(chunked)
    with torch.no_grad():
        assert torch.equal(chunked(first), torch.cat([module(chunk) for chunk in first.split(3)]))


def test_what_does_not_fit_is_refused():
    for wrong in (0, 1.5, True):
        rejects(in_chunks, encoder(), views()[0], size=wrong, names="size")
        rejects(InChunks, encoder(), size=wrong, names="size")
    rejects(in_chunks, encoder(), torch.ones(0, 6), size=2, names="inputs")
    rejects(in_chunks, encoder(), torch.tensor(1.0), size=2, names="inputs")


test_on_any_device = on_any_device(
    partial(in_chunks, nn.Sequential(nn.BatchNorm1d(6), encoder()).double(), views()[0], size=4),
    partial(InChunks(encoder(), size=4), views()[0]),
)
