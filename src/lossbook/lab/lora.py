"""Low-rank adaptation: a frozen network learns through small factors added to its layers."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LoRA", "add_lora", "merge_lora"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LoRA(nn.Module):
    r"""A frozen linear or convolution layer with weights $W_0+s\,BA$.

    $A$ is a layer of the same kind that leads to $r$ features, $B$ one (of kernel size 1) that leads on to the
    layer's outputs. $A$ starts as PyTorch starts such layers, $B$ at zero: at first nothing is changed.

    Attributes:
        base: the layer that is adapted, frozen.
        down: $A$.
        up: $B$.
        scale: $s$.

    Examples:
        >>> layer = lora.LoRA(torch.nn.Linear(8, 4), rank=2)
        >>> layer(torch.ones(3, 8)).shape
        torch.Size([3, 4])
        >>> [tuple(parameter.shape) for parameter in layer.parameters() if parameter.requires_grad]
        [(2, 8), (4, 2)]
    """

    def __init__(self, base: nn.Module, *, rank: int, scale: float = 1.0):
        r"""Adapt a layer.

        Args:
            base: an `nn.Linear`, or a convolution with one group.
            rank: $r$.
            scale: $s$, often written $\alpha/r$.

        Raises:
            ValueError: for another layer, a rank below 1 or a scale that is not finite.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        if not math.isfinite(scale):
            raise ValueError(f"scale: expected a finite number, got {scale}")
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        elif isinstance(base, _CONVOLUTIONS) and base.groups == 1:
            # A union of classes, whose arguments no checker can match.
            kind: Any = next(each for each in _CONVOLUTIONS if isinstance(base, each))
            self.down = kind(
                base.in_channels, rank, base.kernel_size, base.stride, base.padding, base.dilation,
                bias=False, padding_mode=base.padding_mode,
            )  # fmt: skip
            self.up = kind(rank, base.out_channels, 1, bias=False)
        else:
            raise ValueError(f"base: expected a linear layer or a convolution with one group, got {base}")
        nn.init.zeros_(self.up.weight)
        self.base, self.rank, self.scale = base.requires_grad_(False), rank, scale
        self.to(base.weight.device, base.weight.dtype)

    def extra_repr(self) -> str:
        """Rank and scale, for `repr`."""
        return f"rank={self.rank}, scale={self.scale:g}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the adapted layer."""
        return self.base(inputs) + self.scale * self.up(self.down(inputs))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        r"""A plain layer with the weights $W_0+s\,BA$."""
        layer = deepcopy(self.base)
        change = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        layer.weight += self.scale * change.view_as(layer.weight)
        return layer


def add_lora(
    module: nn.Module,
    *,
    rank: int,
    scale: float = 1.0,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of a network, frozen but for low-rank factors in its linear and convolution layers.

    Args:
        module: any network, or a single layer.
        rank: of the factors.
        scale: of what they add.
        where: `where(name, layer)` says which layers are adapted; None for all that can be.

    Raises:
        ValueError: if there is no layer to adapt, and as `LoRA`.

    Source:
        Hu et al. (2021), LoRA, arXiv:2106.09685.

    Examples:
        >>> network = lora.add_lora(lab.mlp([64, 32, 10]), rank=2)
        >>> [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        ['1.down.weight', '1.up.weight', '3.down.weight', '3.up.weight']
    """
    module = deepcopy(module).requires_grad_(False)

    def adapted(name: str, layer: nn.Module) -> nn.Module | None:
        able = isinstance(layer, nn.Linear) or (isinstance(layer, _CONVOLUTIONS) and layer.groups == 1)
        return LoRA(layer, rank=rank, scale=scale) if able and (where is None or where(name, layer)) else None

    module, changed = _replaced(module, adapted)
    if not changed:
        raise ValueError(f"module: expected a network with a layer to adapt, got {module}")
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """A copy of a network in which every adapted layer is a plain one with the same outputs.

    Examples:
        >>> adapted = lora.add_lora(lab.mlp([64, 32, 10]), rank=2)
        >>> merged, x = lora.merge_lora(adapted), torch.ones(3, 64)
        >>> torch.allclose(merged(x), adapted(x), atol=1e-5)
        True
    """
    return _replaced(deepcopy(module), lambda _, layer: layer.merged() if isinstance(layer, LoRA) else None)[0]


def _replaced(module: nn.Module, change: Callable[[str, nn.Module], nn.Module | None]) -> tuple[nn.Module, int]:
    """The network with some layers changed in place, and how many. What a change brings is not looked into."""
    if (whole := change("", module)) is not None:
        return whole, 1
    count = 0
    for name, layer in list(module.named_modules()):
        if not name or (new := change(name, layer)) is None:
            continue
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, new)
        count += 1
    return module, count
