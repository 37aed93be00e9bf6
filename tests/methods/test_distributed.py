"""Two processes, each with its share of the batch, have the gradient of one process with the whole batch."""

import os
import traceback
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from devices import on_any_device
from support import rejects
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lossbook.methods.accumulation import InChunks
from lossbook.methods.contrastive import info_nce, nt_xent
from lossbook.methods.distributed import gather, own_rows

MINUTES = timedelta(minutes=5)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
VIEWS = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def towards(first, second):
    return info_nce(first, gather(second), positives=own_rows(second))


# What a rank computes, and what one process does with the whole batch.
LOSSES = {
    "nt_xent": (lambda x, y, _: nt_xent(gather(x), gather(y)), lambda x, y, _: nt_xent(x, y)),
    "nt_xent with labels": (
        lambda x, _, labels: nt_xent(gather(x), labels=gather(labels)),
        lambda x, _, labels: nt_xent(x, labels=labels),
    ),
    "info_nce of all": (lambda x, y, _: info_nce(gather(x), gather(y)), lambda x, y, _: info_nce(x, y)),
    "info_nce of its own": (lambda x, y, _: towards(x, y), lambda x, y, _: info_nce(x, y)),
    "info_nce, symmetric": (
        lambda x, y, _: (towards(x, y) + towards(y, x)) / 2,
        lambda x, y, _: info_nce(x, y, symmetric=True),
    ),
}
UNEVEN = ["nt_xent", "nt_xent with labels", "info_nce of all"]


def encoder(*, chunked=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    return InChunks(module, size=3) if chunked else module


def gradient(module, loss, first, second, labels):
    module.zero_grad()
    loss(module(first), module(second), labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def on_a_rank(rank, folder):
    """All that is asked of two ranks, in one process each; what is found is written to a file."""
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=MINUTES)
        found = {}
        for split in (4, 5):
            mine = slice(split) if rank == 0 else slice(split, 8)
            share = (VIEWS[0, mine], VIEWS[1, mine], LABELS[mine])
            for chunked in (False, True):
                model = DistributedDataParallel(encoder(chunked=chunked))
                for name, (loss, _) in LOSSES.items():
                    found[name, split, chunked] = gradient(model, loss, *share)
                if split == 4:
                    found["nothing gathered", chunked] = gradient(model, lambda x, y, _: nt_xent(x, y), *share)
            x = share[0].clone().requires_grad_()
            every = gather(x)
            (every * VIEWS[1] * (rank + 1)).sum().backward()
            found["gathered", split] = every.detach(), x.grad, own_rows(x), gather(share[2])
        try:
            gather(torch.ones(2, 3 + rank))
        except ValueError as error:
            found["refused"] = str(error)
        found["of none"] = (
            gather(torch.ones(2 * rank, 3)),
            gather(torch.full((1, 2), float(rank), dtype=torch.bfloat16)),
        )
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    # Gloo's threads may wait for each other for ever when they are taken down.
    os._exit(status)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(on_a_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("name", "split"), [*((name, 4) for name in LOSSES), *((name, 5) for name in UNEVEN)])
def test_the_gradient_is_that_of_one_process(ranks, name, split, chunked):
    expected = gradient(encoder(), LOSSES[name][1], *VIEWS, LABELS)
    for found in ranks:
        torch.testing.assert_close(found[name, split, chunked], expected, rtol=1e-10, atol=1e-12)


def test_without_a_gather_it_is_another(ranks):
    expected = gradient(encoder(), LOSSES["nt_xent"][1], *VIEWS, LABELS)
    for chunked in (False, True):
        assert (ranks[0]["nothing gathered", chunked] - expected).norm() > 0.02 * expected.norm()


@pytest.mark.parametrize("split", [4, 5])
def test_rows_come_in_the_order_of_ranks_and_gradients_go_back(ranks, split):
    for found, mine in zip(ranks, (slice(split), slice(split, 8)), strict=True):
        every, back, own, labels = found["gathered", split]
        assert torch.equal(every, VIEWS[0]) and torch.equal(labels, LABELS)
        torch.testing.assert_close(back, 3 * VIEWS[1, mine])
        assert torch.equal(own, torch.arange(8)[mine])


def test_rows_of_other_sizes_are_refused_and_no_rows_are_some(ranks):
    for found in ranks:
        assert found["refused"].startswith("embeddings: expected rows of one size on all ranks")
        none, half = found["of none"]
        assert torch.equal(none, torch.ones(2, 3))
        assert torch.equal(half, torch.tensor([[0.0, 0], [1, 1]], dtype=torch.bfloat16))


def test_one_process_has_all_rows():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x and own_rows(x).tolist() == [0, 1, 2]
    for function in (gather, own_rows):
        rejects(function, torch.tensor(1.0), names="embeddings")


test_on_any_device = on_any_device(partial(gather, torch.ones(3, 2)), partial(own_rows, torch.ones(3, 2)))
