"""What lies under `fit`: networks that can be stacked, what is shared within one, random numbers for each run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# Attributes that a network has beside tensors and that can be compared.
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, type(None))


def check_network(module: nn.Module) -> None:
    """Refuse a network that cannot be stacked, by the name of what stands in the way.

    Raises:
        ValueError: for parameters that are not dense real floating-point numbers or that have no shape yet, for no
            parameter to train, for batch normalisation with a cumulative mean, for `spectral_norm`.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"build: expected parameters with shapes, got one that waits for a first input: {name}")
        if not parameter.is_floating_point() or parameter.layout != torch.strided:
            kind = f"{parameter.dtype}, {parameter.layout}"
            raise ValueError(f"build: expected dense, real floating-point parameters, got {kind} for {name}")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("build: expected a network with parameters to train, got none that requires a gradient")
    for name, each in module.named_modules():
        if isinstance(each, _BatchNorm) and each.track_running_stats and each.momentum is None:
            raise ValueError(f"build: expected batch normalisation with a momentum, got None for {name or each}")
        if isinstance(each, _SpectralNorm):
            raise ValueError(f"build: expected no spectral_norm, whose iteration vmap cannot take, got {name}")


def check_alike(first: nn.Module, other: nn.Module, run: int) -> None:
    """Refuse a network that differs from the first in more than the values of parameters and buffers.

    Only these are stacked: all else is taken from the first network.

    Raises:
        ValueError: naming what differs.
    """
    if str(other) != str(first):
        raise ValueError(f"build: expected networks of one structure, got {first} for run 0 and {other} for run {run}")
    for kind, states in (
        ("parameter", [dict(each.named_parameters()) for each in (first, other)]),
        ("buffer", [dict(each.named_buffers()) for each in (first, other)]),
    ):
        here, there = ({name: (tuple(each.shape), each.requires_grad) for name, each in s.items()} for s in states)
        for name in here.keys() | there.keys():
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"build: expected networks of one structure, got for {kind} {name} (shape, whether it is trained) "
                    f"{here.get(name)} in run 0 and {there.get(name)} in run {run}"
                )
    if _aliases(first) != _aliases(other):
        raise ValueError(f"build: expected networks that share the same parameters, got others for run {run}")
    values = [dict(_attributes(each)) for each in (first, other)]
    for name in values[0].keys() | values[1].keys():
        here, there = (each.get(name) for each in values)
        if not _equal(here, there):
            got = [f"a tensor of shape {tuple(e.shape)}" if isinstance(e, Tensor) else repr(e) for e in (here, there)]
            raise ValueError(
                f"build: expected networks that differ in parameters and buffers alone, got for {name} {got[0]} in "
                f"run 0 and {got[1]} in run {run}; what register_buffer makes may differ"
            )


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, each in module.named_modules():
        for key, value in vars(each).items():
            # What begins with an underscore is PyTorch's own, or a cache.
            plain = all(isinstance(part, PLAIN) for part in (value if isinstance(value, tuple) else (value,)))
            if not key.startswith("_") and (plain or isinstance(value, Tensor)):
                yield f"{path}.{key}".lstrip("."), value


def _equal(here: Any, there: Any) -> bool:
    if isinstance(here, Tensor) and isinstance(there, Tensor):
        return here.shape == there.shape and (here is there or here.is_meta or torch.equal(here, there))
    return type(here) is type(there) and bool(here == there or here != here)


def _aliases(module: nn.Module) -> dict[str, str]:
    """The names of tensors that have an earlier name as well, and that name."""
    first: dict[int, str] = {}
    found = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, value in named(remove_duplicate=False):
            if (other := first.setdefault(id(value), name)) != name:
                found[name] = other
    return found


def still_tied(change: Callable[[nn.Module], nn.Module], module: nn.Module) -> nn.Module:
    """A changed module that shares what it shared: moved to or from the meta device, PyTorch parts tied tensors."""
    aliases = _aliases(module)
    module = change(module)
    places = {name: _place(module, name) for pair in aliases.items() for name in pair}
    for name, other in aliases.items():
        table, key = places[other]
        places[name][0][places[name][1]] = table[key]
    return module


def called(module: nn.Module, state: Mapping[str, Tensor], inputs: tuple, keywords: dict | None = None) -> Any:
    """What a module returns with other parameters and buffers, by the names that `named_parameters` gives."""
    shared = {}
    for name, other in _aliases(module).items():
        (table, key), (others, other_key) = _place(module, name), _place(module, other)
        # (A module with two names has its tensors in one place. PyTorch fills it twice, and empties it wrongly.)
        if (table is not others or key != other_key) and other in state:
            shared[name] = state[other]
    return functional_call(module, {**state, **shared}, inputs, keywords, tie_weights=False)


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    return owner._parameters if key in owner._parameters else owner._buffers, key


class OwnDraws(TorchDispatchMode):
    """Random numbers of each run of a stack, from a generator of its own: what it draws does not depend on the stack.

    Args:
        seeds: of the runs.
        device: on which they are drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        super().__init__()
        if device.type == "cuda":
            torch.cuda.init()
            self._generator = torch.cuda.default_generators[device.index or 0]
        else:
            self._generator = torch.default_generator
        self._states = [torch.Generator(device).manual_seed(seed).get_state() for seed in seeds]

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call an operator; one that is random once for each run, with its part of the stack."""
        keywords = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **keywords)
        runs = len(self._states)
        places = [index for index, value in enumerate(args) if self._is_stacked(value)]
        if not places:
            raise ValueError(f"loss: {function} cannot be drawn for each run of a stack; draw it in `noise`")
        before, parts = self._generator.get_state(), []
        try:
            for run, state in enumerate(self._states):
                own = [
                    value if index not in places
                    else value.chunk(runs)[run] if isinstance(value, Tensor)
                    else [value[0] // runs, *value[1:]]
                    for index, value in enumerate(args)
                ]  # fmt: skip
                self._generator.set_state(state)
                parts.append(function(*own, **keywords))
                self._states[run] = self._generator.get_state()
        finally:
            self._generator.set_state(before)
        # In place it is done.
        if function._schema.name.endswith("_"):
            return args[0]
        return tree_map(lambda *each: torch.cat(each), *parts)

    def _is_stacked(self, value: Any) -> bool:
        """Whether a tensor or a shape has the runs along its first dimension."""
        shape = value.shape if isinstance(value, Tensor) else value
        sized = isinstance(shape, list | torch.Size) and len(shape) > 0
        return sized and shape[0] > 0 and shape[0] % len(self._states) == 0
