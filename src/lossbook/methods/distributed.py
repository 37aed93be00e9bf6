r"""Losses of a batch that is spread over the ranks of `torch.distributed`, with the gradient of the whole batch.

A contrastive loss is no mean of terms that each rank could compute alone: the negatives are all other embeddings.
Without a gather each rank has those of its own share, which is another loss, and nothing warns.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["gather", "own_rows"]


def gather(embeddings: Shaped[Tensor, "n ..."], group: dist.ProcessGroup | None = None) -> Shaped[Tensor, "m ..."]:
    r"""The rows of all ranks, in the order of ranks, through which gradients go back to the rank they came from.

    Rank $r$ has $z_r$ and computes a loss $\mathcal L_r(z_1,\dots,z_W)$. The backward pass gives it

    $$\sum_{s=1}^W\frac{\partial\mathcal L_s}{\partial z_r},$$

    the gradient of the *sum* of all ranks' losses. DistributedDataParallel, which averages the gradients of parameters
    over ranks, makes of this the gradient of their *mean*. The gradient of the loss $\mathcal L$ of the whole batch
    thus comes out exactly, without any factor, in two ways:

    - Every rank gathers all that goes into the loss, labels too, and computes $\mathcal L_r=\mathcal L$, as in
      `nt_xent(gather(first), gather(second))`. This holds for every loss and for shares of any size.
    - Each rank computes the mean over its own anchors, against all keys, as in
      `info_nce(first, gather(second), positives=own_rows(second))`. The mean over ranks is $\mathcal L$ if all ranks
      have as many rows; no rank does the others' work.

    Args:
        embeddings: this rank's rows; also labels and other tensors without gradient. The numbers of rows may differ
            between ranks, all else must not. They are exchanged first, for which a GPU is waited for.
        group: the ranks; None for all.

    Returns:
        All rows; the argument itself where no process group is initialised, or where it has one rank.

    Raises:
        ValueError: if rows are not of the same size on all ranks; every rank raises it.

    Source:
        SimCLR's loss over all cores: Chen, Kornblith, Norouzi and Hinton (2020), arXiv:2002.05709, sec. 2.2. The
        account of factors is ours.

    Examples:
        >>> distributed.gather(torch.ones(2, 3)).shape  # one process: all rows are its own
        torch.Size([2, 3])
    """
    sizes = _sizes(embeddings, group)
    return embeddings if len(sizes) == 1 else _Gather.apply(embeddings, sizes, group)


def own_rows(embeddings: Shaped[Tensor, "n ..."], group: dist.ProcessGroup | None = None) -> Int[Tensor, " n"]:
    """Where this rank's rows are among those of all ranks: the positives of its queries, if keys are gathered.

    Args:
        embeddings: as in `gather`.
        group: as in `gather`.

    Raises:
        ValueError: as in `gather`.

    Source:
        Ours, as `gather`.

    Examples:
        >>> distributed.own_rows(torch.ones(2, 3))
        tensor([0, 1])
    """
    sizes = _sizes(embeddings, group)
    before = sum(sizes[: dist.get_rank(group)]) if len(sizes) > 1 else 0
    return torch.arange(before, before + len(embeddings), device=embeddings.device)


def _sizes(embeddings: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many rows each rank has."""
    if embeddings.ndim == 0:
        raise ValueError("embeddings: expected at least one dimension, got a tensor without")
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return [len(embeddings)]
    own = torch.tensor([len(embeddings), embeddings.ndim, embeddings[:1].numel() if len(embeddings) else -1])
    own = own.to(embeddings.device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    sizes, dimensions, entries = torch.stack(every).T.tolist()
    entries = [number for number in entries if number >= 0]
    if len({*dimensions}) > 1 or len({*entries}) > 1:
        raise ValueError(
            f"embeddings: expected rows of one size on all ranks, got {entries} entries in {dimensions} dimensions"
        )
    return sizes


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        # Ranks exchange as many rows each; what fills up is cut off.
        own = F.pad(embeddings.detach(), (*(0, 0) * (embeddings.ndim - 1), 0, max(sizes) - len(embeddings)))
        every = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in sizes]
        dist.all_gather(every, own.contiguous(), group=group)
        return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.sizes)[dist.get_rank(ctx.group)], None, None
