"""What each of two processes computes in tests/methods/test_distributed.py.

A spawned process imports by name what it is to run. This folder is on its path; files of tests are on nobody's.
"""

import os
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
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
