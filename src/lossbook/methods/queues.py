"""A memory of embeddings of past batches, which are more negatives than a batch has room for."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from lossbook.methods._validate import indices, shaped, whole

__all__ = ["EmbeddingQueue"]


class EmbeddingQueue(nn.Module):
    r"""The embeddings that were put in last, at most so many: a queue, first in, first out.

    For losses with more negatives than the batch has: `info_nce(queries, keys, negatives=queue.entries)`, then
    `queue.push(keys)`. Its state is nothing but its entries, from the oldest to the newest: how many there are says how
    far it is filled, and an empty queue has no negatives to give. They are buffers without gradient, saved in the
    `state_dict` and moved by `to`. A push makes new tensors and changes none, so that it may come before the backward
    pass of a loss that used the entries.

    It reads no values and works under `torch.compile`. Hand `entries` to a compiled loss as an argument: their number
    grows until the queue is full, and of a module's buffers torch.compile makes a graph for every shape. Over ranks,
    push what `distributed.gather` gives, so that all have the same queue.

    Args:
        size: how many embeddings it keeps at most.
        width: of an embedding.
        labelled: keep a label with every embedding.
        device, dtype: of the embeddings; what is pushed in another floating dtype is converted.

    Attributes:
        entries: the embeddings `(m, width)`, the oldest first, $m\le$ `size`.
        labels: their labels `(m,)` in int64, None without.

    Raises:
        ValueError: for sizes or dtypes other than these.

    Source:
        He, Fan, Wu, Xie and Girshick (2020), arXiv:1911.05722, sec. 3.2; with labels Wang, Zhang, Huang and Scott
        (2020), arXiv:1912.06798, sec. 3.2.

    Examples:
        >>> queue = queues.EmbeddingQueue(3, 2)
        >>> for value in (1.0, 2.0):
        ...     queue.push(torch.full((2, 2), value))
        >>> queue.entries
        tensor([[1., 1.],
                [2., 2.],
                [2., 2.]])
    """

    entries: Float[Tensor, "m width"]
    labels: Int[Tensor, " m"] | None

    def __init__(
        self,
        size: int,
        width: int,
        *,
        labelled: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size, self.width = whole("size", size), whole("width", width)
        entries = torch.empty(0, width, device=device, dtype=dtype)
        if not entries.is_floating_point():
            raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
        self.register_buffer("entries", entries)
        self.register_buffer("labels", torch.empty(0, device=device, dtype=torch.int64) if labelled else None)
        self.register_load_state_dict_pre_hook(EmbeddingQueue._room)

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "n width"], labels: Integer[Tensor, " n"] | None = None) -> None:
        """Put these in, the last row as the newest; the oldest go where there is no room.

        Args:
            embeddings: rows, of which no gradient is kept.
            labels: a whole number for each, if the queue is labelled.

        Raises:
            ValueError: for shapes, dtypes or devices other than these.
        """
        shaped("embeddings", embeddings, "n d")
        if embeddings.shape[1] != self.width:
            raise ValueError(f"embeddings: expected {self.width} columns, got {embeddings.shape[1]}")
        if embeddings.device != self.entries.device:
            raise ValueError(f"embeddings: expected the queue's device, {self.entries.device}, got {embeddings.device}")
        if (labels is None) != (self.labels is None):
            wanted, got = ("None", "labels") if self.labels is None else ("labels, as the queue is labelled", "None")
            raise ValueError(f"labels: expected {wanted}, got {got}")
        if labels is not None and self.labels is not None:
            labels = indices("labels", labels, len(embeddings)).to(self.labels.device)
            self.labels = self._newest(self.labels, labels)
        self.entries = self._newest(self.entries, embeddings.to(self.entries.dtype))

    def _newest(self, old: Tensor, new: Tensor) -> Tensor:
        every = torch.cat([old, new])
        # A copy, so that what is cut off is freed.
        return every[len(every) - self.size :].clone() if len(every) > self.size else every

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        """A module is true, also when nothing is in it."""
        return True

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.size}, {self.width}, labelled={self.labels is not None}"

    def _room(self, state_dict: Mapping[str, Any], prefix: str, *__: Any) -> None:
        """Make room for as many entries as were saved; what does not fit the queue is refused by PyTorch."""
        for name in ("entries", "labels"):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(saved, Tensor) and own is not None and len(saved) <= self.size:
                setattr(self, name, own.new_empty(len(saved), *own.shape[1:]))
