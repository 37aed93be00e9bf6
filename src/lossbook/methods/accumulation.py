"""Large batches on small devices: embeddings computed in chunks, with the gradient of the whole batch."""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lossbook.methods._validate import whole

__all__ = ["InChunks", "in_chunks"]


def in_chunks(
    encoder: Callable[[Tensor], Tensor], inputs: Shaped[Tensor, "n ..."], *, size: int
) -> Shaped[Tensor, "n ..."]:
    r"""What an encoder gives for a batch, computed for this many rows at a time, and again in the backward pass.

    A contrastive loss needs all embeddings of the batch, but no activations of the encoder. So embeddings are computed
    chunk by chunk without keeping activations; the backward pass of the loss ends at $g_i=\partial\mathcal L/\partial
    z_i$; then each chunk is computed once more, now with activations, and passes $g_i$ on:

    $$\frac{\partial\mathcal L}{\partial\theta}=\sum_{\text{chunks}}\sum_{i\in\text{chunk}}
      \Bigl(\frac{\partial z_i}{\partial\theta}\Bigr)^{\!\top}g_i$$

    The gradient is that of the whole batch, up to rounding, for any loss and any number of views, in the memory of one
    chunk's activations and at the price of one more forward pass. Adding up gradients of losses of small batches is
    something else: each then has negatives of its own chunk alone.

    The second pass repeats the first: it draws the same random numbers (dropout), under the same autocast, and begins
    with the same buffers, which it does not change once more (running statistics, vectors of a spectral norm). What
    mixes the rows of a batch sees those of a chunk: batch normalisation in training mode.

    Args:
        encoder: a module, or a function of one tensor, whose row $i$ depends on row $i$ of the inputs.
        inputs: rows.
        size: rows in a chunk.

    Returns:
        The encoder's results for all rows. Not under `torch.func`.

    Raises:
        ValueError: if `size` is not a positive whole number, or `inputs` has no rows.

    Source:
        Gao, Zhang, Han and Callan (2021), arXiv:2101.06983. They call the two passes one by one; here autograd does,
        by checkpoints, so that the loss, its `backward` and the scaler of mixed precision stay those of the caller.

    Examples:
        >>> encoder, inputs = torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> embeddings = accumulation.in_chunks(encoder, inputs, size=4)
        >>> torch.allclose(embeddings, encoder(inputs))
        True
    """
    size = whole("size", size)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"inputs: expected at least one row, got shape {tuple(inputs.shape)}")
    if not torch.is_grad_enabled():
        return torch.cat([encoder(chunk) for chunk in inputs.split(size)])
    return torch.cat([checkpoint(_Repeatable(encoder), chunk, use_reentrant=False) for chunk in inputs.split(size)])


class InChunks(nn.Module):
    """An encoder that takes its batches in chunks: `in_chunks` as a module.

    For DistributedDataParallel, which goes around it: `DistributedDataParallel(InChunks(encoder, size=64))`.

    Args:
        encoder: see `in_chunks`.
        size: rows in a chunk.

    Raises:
        ValueError: if `size` is not a positive whole number.

    Source:
        As of `in_chunks`.

    Examples:
        >>> encoder = accumulation.InChunks(torch.nn.Linear(3, 2), size=4)
        >>> encoder(torch.randn(8, 3)).shape
        torch.Size([8, 2])
    """

    def __init__(self, encoder: nn.Module, *, size: int) -> None:
        super().__init__()
        self.encoder, self.size = encoder, whole("size", size)

    def forward(self, inputs: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """See `in_chunks`."""
        return in_chunks(self.encoder, inputs, size=self.size)

    def extra_repr(self) -> str:
        """The size of a chunk."""
        return f"size={self.size}"


class _Repeatable:
    """An encoder that begins its second call with the buffers of the first, and leaves the module's own alone."""

    def __init__(self, encoder: Callable[[Tensor], Tensor]) -> None:
        self.encoder = encoder
        self.buffers: dict[str, Tensor] | None = None

    def __call__(self, chunk: Tensor) -> Tensor:
        if not isinstance(self.encoder, nn.Module):
            return self.encoder(chunk)
        if self.buffers is None:
            self.buffers = {name: buffer.detach().clone() for name, buffer in self.encoder.named_buffers()}
            return self.encoder(chunk)
        if not self.buffers:
            return self.encoder(chunk)
        return functional_call(self.encoder, {name: buffer.clone() for name, buffer in self.buffers.items()}, (chunk,))
