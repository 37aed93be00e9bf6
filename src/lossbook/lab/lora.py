"""Low-rank adaptation: a frozen network learns through small factors added to its layers.

Factors can be saved alone (`lora_state`, `load_lora`), added to the weights (`merge_lora`) and taken out again
(`unmerge_lora`).
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["LoRA", "add_lora", "load_lora", "lora_state", "merge_lora", "unmerge_lora"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What code that knows linear layers and convolutions asks them, beside weight and bias.
_FACTS = {
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
    "groups", "padding_mode",
}  # fmt: skip


class LoRA(nn.Module):
    r"""A frozen linear or convolution layer with weights $W_0+s\,BA$.

    $A$ is a layer of the same kind that leads to $r$ features, $B$ one (of kernel size 1) that leads on to the
    layer's outputs. $A$ starts as PyTorch starts such layers, $B$ at zero: at first nothing is changed. Both are made
    on the layer's device and in its dtype. What reads `weight` and `bias` of a layer itself, as attention does, sees
    those of the adapted one.

    Attributes:
        base: the layer that is adapted, frozen; one that is adapted already keeps its own factors.
        down: $A$.
        up: $B$.
        rank: $r$.
        scale: $s$.

    Examples:
        >>> layer = lora.LoRA(torch.nn.Linear(8, 4), rank=2)
        >>> layer(torch.ones(3, 8)).shape
        torch.Size([3, 4])
        >>> [tuple(parameter.shape) for parameter in layer.parameters() if parameter.requires_grad]
        [(2, 8), (4, 2)]
    """

    base: Any  # a layer: its weight and bias are tensors

    def __init__(self, base: nn.Module, *, rank: int, scale: float = 1.0):
        r"""Adapt a layer.

        Args:
            base: an `nn.Linear`, a convolution with one group, or a `LoRA` of one.
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
        plain = _plain(base)
        if not _able(plain):
            raise ValueError(f"base: expected a linear layer or a convolution with one group, got {base}")
        # Not of the weight, which a parametrisation would compute, and some change by it.
        like = next(plain.parameters())
        options: dict[str, Any] = {"bias": False, "device": like.device, "dtype": like.dtype}
        if isinstance(plain, nn.Linear):
            self.down = nn.Linear(plain.in_features, rank, **options)
            self.up = nn.Linear(rank, plain.out_features, **options)
        else:
            # A union of classes, whose arguments no checker can match.
            kind: Any = next(each for each in _CONVOLUTIONS if isinstance(plain, each))
            layer: Any = plain
            self.down = kind(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                padding_mode=layer.padding_mode, **options,
            )  # fmt: skip
            self.up = kind(rank, layer.out_channels, 1, **options)
        nn.init.zeros_(self.up.weight)
        self.base, self.rank, self.scale = base.requires_grad_(False), rank, scale

    def __getattr__(self, name: str) -> Any:
        """Widths and the like are those of the layer."""
        return getattr(self._modules["base"], name) if name in _FACTS else super().__getattr__(name)

    @property
    def weight(self) -> Tensor:
        r"""$W_0+s\,BA$, with gradients to the factors."""
        return self.base.weight + self.change().to(self.base.weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """That of the layer."""
        return self.base.bias

    def change(self) -> Tensor:
        r"""What the factors add to the weights, $s\,BA$, in float32 at least."""
        down, up = (
            each.weight.to(torch.promote_types(each.weight.dtype, torch.float32)) for each in (self.down, self.up)
        )
        return self.scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])

    def extra_repr(self) -> str:
        """Rank and scale, for `repr`."""
        return f"rank={self.rank}, scale={self.scale:g}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the adapted layer."""
        return self.base(inputs) + self.scale * self.up(self.down(inputs))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        r"""A plain layer with the weights $W_0+s\,BA$; where $W_0$ is parametrised, with those of evaluation."""
        layer: Any = self.base.merged() if isinstance(self.base, LoRA) else _unparametrised(self.base)
        layer.weight.copy_(layer.weight + self.change())
        return layer


def add_lora(
    module: nn.Module,
    *,
    rank: int,
    scale: float = 1.0,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of a network, frozen but for low-rank factors in its linear and convolution layers.

    A layer that is adapted already gets new factors beside its own, which are frozen. Of `nn.MultiheadAttention` the
    output projection is adapted; the others are one bare parameter, not a layer.

    Args:
        module: any network, or a single layer.
        rank: of the factors.
        scale: of what they add.
        where: `where(name, layer)` says which layers are adapted, of an adapted one asked about the layer itself; None
            for all that can be.

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
        plain = _plain(layer)
        return LoRA(layer, rank=rank, scale=scale) if _able(plain) and (where is None or where(name, plain)) else None

    module, changed = _replaced(module, adapted)
    if not changed:
        raise ValueError(f"module: expected a network with a layer to adapt, got {module}")
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """A copy of a network in which every adapted layer is a plain one with the same outputs.

    A parametrised layer, such as one with spectral normalisation, has those of evaluation, and no parametrisation.

    Args:
        module: a network from `add_lora` or `load_lora`.

    Examples:
        >>> adapted = lora.add_lora(lab.mlp([64, 32, 10]), rank=2)
        >>> merged, x = lora.merge_lora(adapted), torch.ones(3, 64)
        >>> torch.allclose(merged(x), adapted(x), atol=1e-5)
        True
    """
    return _replaced(deepcopy(module), lambda _, layer: layer.merged() if isinstance(layer, LoRA) else None)[0]


def lora_state(module: nn.Module) -> dict[str, Tensor]:
    """The factors of a network and their scales, without the network: for `torch.save`, and back by `load_lora`.

    Args:
        module: a network from `add_lora` or `load_lora`.

    Returns:
        Tensors by name, on the CPU: `down.weight` and `up.weight` of each adapted layer as in its `state_dict`, and
        `scale`.

    Raises:
        ValueError: if nothing in the network is adapted.

    Examples:
        >>> state = lora.lora_state(lora.add_lora(torch.nn.Linear(32, 10), rank=2))
        >>> {name: tuple(value.shape) for name, value in state.items()}
        {'down.weight': (2, 32), 'up.weight': (10, 2), 'scale': ()}
    """
    state = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LoRA):
            lead = f"{name}." if name else ""
            for factor in ("down", "up"):
                state[f"{lead}{factor}.weight"] = getattr(layer, factor).weight.detach().cpu().clone()
            state[f"{lead}scale"] = torch.tensor(layer.scale, dtype=torch.float64)
    if not state:
        raise ValueError(f"module: expected a network with adapted layers, got {module}")
    return state


def load_lora(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with the factors that were saved from another copy; frozen but for these.

    Args:
        module: the network without these factors. Where it has others they stay, frozen.
        state: from `lora_state`.

    Raises:
        ValueError: if the network lacks a layer, one has another shape, or the state other entries.

    Examples:
        >>> network, x = lab.mlp([64, 32, 10]), torch.ones(3, 64)
        >>> adapted = lora.add_lora(network, rank=2)
        >>> loaded = lora.load_lora(network, lora.lora_state(adapted))
        >>> torch.equal(loaded(x), adapted(x))
        True
    """
    return _attached(module, state, merged=False)


def unmerge_lora(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a merged network in which the factors stand beside the weights again; the inverse of `merge_lora`.

    Args:
        module: the merged network. What the factors add is taken from its weights, which rounds.
        state: the factors that were merged, from `lora_state`.

    Raises:
        ValueError: if the network lacks a layer, one has another shape or is parametrised, or the state other entries.

    Examples:
        >>> adapted, x = lora.add_lora(lab.mlp([64, 32, 10]), rank=2), torch.ones(3, 64)
        >>> merged = lora.merge_lora(adapted)
        >>> again = lora.unmerge_lora(merged, lora.lora_state(adapted))
        >>> torch.allclose(again(x), merged(x), atol=1e-5)
        True
    """
    return _attached(module, state, merged=True)


def _attached(module: nn.Module, state: Mapping[str, Tensor], *, merged: bool) -> nn.Module:
    leads = [name.removesuffix("down.weight") for name in state if f".{name}".endswith(".down.weight")]
    expected = {f"{lead}{part}" for lead in leads for part in ("down.weight", "up.weight", "scale")}
    if not leads or expected != state.keys():
        odd = sorted(expected ^ state.keys())
        raise ValueError(
            f"state: expected down.weight, up.weight and scale of adapted layers, got other entries: {odd}"
        )
    # Adapters of one layer, the outermost first: "x." and, what it adapts, "x.base.".
    adapters: dict[str, list[str]] = {}
    for lead in sorted(leads, key=len):
        outer = lead.removesuffix("base.")
        layer = next((name for name, found in adapters.items() if outer != lead and outer in found), lead.rstrip("."))
        adapters.setdefault(layer, []).append(lead)
    missing = set(adapters)

    def attached(name: str, layer: nn.Module) -> nn.Module | None:
        if name not in adapters:
            return None
        missing.discard(name)
        plain = _plain(layer)
        if merged and parametrize.is_parametrized(plain):
            raise ValueError(f"module: expected merged layers, got {name!r} with a parametrisation")
        for lead in reversed(adapters[name]):
            down, up = state[f"{lead}down.weight"], state[f"{lead}up.weight"]
            layer = LoRA(layer, rank=len(down), scale=float(state[f"{lead}scale"]))
            for own, given in ((layer.down.weight, down), (layer.up.weight, up)):
                if own.shape != given.shape:
                    raise ValueError(
                        f"state: expected {lead}down.weight and {lead}up.weight for the layer {plain}, got shapes "
                        f"{tuple(down.shape)} and {tuple(up.shape)}"
                    )
                own.data.copy_(given)
            if merged:
                plain.weight.data.copy_(plain.weight - layer.change())
        return layer

    module, _ = _replaced(deepcopy(module).requires_grad_(False), attached)
    if missing:
        raise ValueError(f"module: expected a network with the layers {sorted(missing)}, got {module}")
    return module


def _able(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, _CONVOLUTIONS) and layer.groups == 1)


def _plain(layer: nn.Module) -> Any:
    """The layer that is adapted, by however many."""
    return _plain(layer.base) if isinstance(layer, LoRA) else layer


def _unparametrised(layer: nn.Module) -> Any:
    """A copy of a layer whose parameters are what its parametrisations, if it has any, make of them in evaluation."""
    copy: Any = deepcopy(layer).eval()
    if parametrize.is_parametrized(copy):
        # By hand: PyTorch would take the weight out of the class, which copies share.
        values = {name: getattr(copy, name).detach().clone() for name in copy.parametrizations}
        copy.__class__ = parametrize.type_before_parametrizations(copy)
        del copy.parametrizations
        for name, value in values.items():
            copy.register_parameter(name, nn.Parameter(value))
    for key, hook in list(copy._forward_pre_hooks.items()):
        # What older versions of the same do before each call.
        if isinstance(hook, (SpectralNorm, WeightNorm, prune.BasePruningMethod)):
            hook.remove(copy)
            del copy._forward_pre_hooks[key]
    return copy.requires_grad_(False).train(layer.training)


def _replaced(module: nn.Module, change: Callable[[str, nn.Module], nn.Module | None]) -> tuple[nn.Module, int]:
    """The network with some layers changed in place, and how many. Of adapted ones nothing inside is looked at.

    A layer that stands in several places is one layer afterwards as well.
    """
    done: dict[nn.Module, nn.Module] = {}
    changed = 0

    def visited(name: str, layer: nn.Module) -> nn.Module:
        nonlocal changed
        if layer not in done:
            new = change(name, layer)
            changed += new is not None
            done[layer] = layer if new is None else new
            if new is None and not isinstance(layer, LoRA):
                for last, child in list(layer._modules.items()):
                    if child is not None and (new := visited(f"{name}.{last}" if name else last, child)) is not child:
                        setattr(layer, last, new)
        return done[layer]

    return visited("", module), changed
