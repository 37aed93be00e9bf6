"""One training loop that trains many runs at once.

Seeds and hyperparameter values are a batch dimension: the parameters of all runs are stacked, the loss is
mapped over them, and one optimiser updates them together. What a run learns does not depend on which others
it was stacked with.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from lossbook.lab._stacks import OwnDraws, called, check_alike, check_network, still_tied

__all__ = ["Fitted", "Model", "NonFiniteError", "choose_device", "fit", "grid", "moving_average"]

Hyperparameters = Mapping[str, Any]
Loss = Callable[..., Any]
Initial = Callable[[Hyperparameters, nn.Module], Any]
Noise = Callable[[torch.Generator, int], Mapping[str, Tensor]]

# Noise is drawn for this many steps at a time. A constant, because a run's noise must not depend on anything else.
NOISE_STEPS = 16
# How often the loop looks for non-finite values: each look waits for the device.
LOOK_EVERY = 25


class NonFiniteError(RuntimeError):
    """A run whose loss, gradient or parameters became NaN or infinite.

    Examples:
        >>> data, runs = {"x": torch.ones(8, 2)}, lab.grid(seed=[0], learning_rate=[0.1])
        >>> loss = lambda model, batch, run: model(batch["x"]).square().mean() / 0
        >>> lab.fit(lambda run: lab.mlp([2, 1]), loss, data, runs, epochs=1, batch_size=8)
        Traceback (most recent call last):
            ...
        lossbook.lab.fitting.NonFiniteError: run 0 (seed=0, learning_rate=0.1), step 0: loss is inf
    """


def choose_device(device: str = "auto") -> torch.device:
    """Device by name: "auto" is CUDA where there is one, else the CPU; all other names are PyTorch's.

    Args:
        device: "auto" or a name of PyTorch's.

    Raises:
        ValueError: for a name that PyTorch does not know or a device that is not there.

    Examples:
        >>> lab.choose_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device: expected "auto", "cpu" or "cuda", got {device!r} ({reason})') from error


def grid(**values: Iterable) -> list[dict[str, Any]]:
    """All combinations of the values: `grid(seed=range(5), learning_rate=[0.1, 0.3])` are ten runs.

    Args:
        values: of each hyperparameter, by its name.

    Examples:
        >>> lab.grid(seed=range(2), temperature=[0.1])
        [{'seed': 0, 'temperature': 0.1}, {'seed': 1, 'temperature': 0.1}]
        >>> len(lab.grid(seed=range(5), learning_rate=[0.1, 0.3]))
        10
    """
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


@dataclass(frozen=True)
class Model:
    """The network of one run as its loss sees it: called as a module is.

    Attributes:
        parameters: by name.

    Examples:
        >>> data, runs = {"x": torch.ones(64, 2)}, lab.grid(seed=[0], learning_rate=[0.1])
        >>> loss = lambda model, batch, run: (
        ...     model(batch["x"]).square().mean() + model.parameters["1.weight"].square().sum())
        >>> fitted = lab.fit(lambda run: lab.mlp([2, 1]), loss, data, runs, epochs=9, batch_size=4)
        >>> bool(fitted.parameters["1.weight"].abs().max() < 0.05)
        True
    """

    parameters: dict[str, Tensor]
    _buffers: dict[str, Tensor] = field(repr=False)
    _module: nn.Module = field(repr=False)

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Outputs of the network."""
        return called(self._module, {**self.parameters, **self._buffers}, inputs, keywords)

    def at(self, parameters: Mapping[str, Tensor]) -> "Model":
        """The same network with other parameters, such as a teacher's; buffers, as of batch norm, are shared."""
        return Model(dict(parameters), self._buffers, self._module)


def moving_average(
    average: Mapping[str, Tensor], values: Mapping[str, Tensor], decay: float | Tensor
) -> dict[str, Tensor]:
    r"""Exponential moving average, $\bar\theta\leftarrow m\bar\theta+(1-m)\theta$, without gradient.

    Args:
        average: tensors by name.
        values: as `average`, such as `model.parameters`.
        decay: $m$ in $[0,1]$, a number or a tensor without dimensions.

    Examples:
        >>> teacher, student = {"weight": torch.zeros(2)}, {"weight": torch.ones(2)}
        >>> fitting.moving_average(teacher, student, 0.9)["weight"].round(decimals=3)
        tensor([0.1000, 0.1000])
    """
    return {name: decay * old + (1 - decay) * values[name].detach() for name, old in average.items()}


@dataclass(frozen=True)
class Fitted:
    """Runs after training.

    Attributes:
        runs: one row a run, its hyperparameters in columns.
        history: one row a run and step: `loss`, and `gradient_norm` before clipping.
        logged: what the loss function returned beside the loss, by name, `(runs, steps, ...)`, on the CPU.
        parameters: by name, with the runs along the first dimension.
        buffers: likewise.
        seconds: how long training took.
        state: what `loss` returned last as its state, with the runs along the first dimension, on the CPU.

    Examples:
        >>> data, runs = {"x": torch.ones(8, 2)}, lab.grid(seed=[0, 1, 2], learning_rate=[0.1])
        >>> loss = lambda model, batch, run: model(batch["x"]).square().mean()
        >>> fitted = lab.fit(lambda run: lab.mlp([2, 4]), loss, data, runs, epochs=2, batch_size=4)
        >>> fitted.predict(torch.zeros(5, 2)).shape, len(fitted.runs), len(fitted.history)
        (torch.Size([3, 5, 4]), 3, 12)
    """

    runs: pd.DataFrame
    history: pd.DataFrame = field(repr=False)
    logged: dict[str, Tensor] = field(repr=False)
    parameters: dict[str, Tensor] = field(repr=False)
    buffers: dict[str, Tensor] = field(repr=False)
    seconds: float
    _module: nn.Module = field(repr=False)
    state: Any = field(default_factory=dict, repr=False)

    def module(self, run: int) -> nn.Module:
        """The network of one run, an ordinary module in evaluation mode, with parameters of its own."""
        from copy import deepcopy

        device = next(iter(self.parameters.values())).device
        module = still_tied(lambda module: module.to_empty(device=device), deepcopy(self._module))
        with torch.no_grad():
            for stacked, own in ((self.parameters, module.named_parameters()), (self.buffers, module.named_buffers())):
                for name, value in own:
                    value.copy_(stacked[name][run])
        return module.eval()

    def _placed(self, value: Tensor) -> Tensor:
        """Inputs where and as the parameters are, as `fit` takes data."""
        like = next(iter(self.parameters.values()))
        return value.to(like.device, like.dtype if value.is_floating_point() else None)

    def each(self, inputs: Tensor) -> Any:
        """Outputs of every run for inputs of its own, `(runs, n, ...)`, in evaluation mode, with their gradient."""
        self._module.eval()

        def call(state, inputs):
            return called(self._module, state, (inputs,))

        return vmap(call)({**self.parameters, **self.buffers}, self._placed(inputs))

    @torch.no_grad()
    def predict(self, *inputs: Tensor, batch_size: int = 1024) -> Any:
        """Outputs of all runs for the same inputs, in evaluation mode, on the CPU: `(runs, n, ...)`."""
        state = {**self.parameters, **self.buffers}
        self._module.eval()

        def call(state, *chunk):
            return called(self._module, state, chunk)

        chunks = [
            tree_map(
                _on_cpu,
                vmap(call, in_dims=(0, *(None for _ in chunk)))(state, *map(self._placed, chunk)),
            )
            for chunk in zip(*(value.split(batch_size) for value in inputs), strict=True)
        ]
        return tree_map(lambda *parts: torch.cat(parts, 1), *chunks)

    @torch.no_grad()
    def means(self, function: Callable[..., Any], *inputs: Tensor, batch_size: int = 64) -> Any:
        """Mean over examples of what a function of a network and a batch returns: `(runs, ...)`, on the CPU.

        Args:
            function: `function(model, *batch)` returns tensors, in any nesting, that are means over the batch. It is
                mapped over runs; `model` is called as a module is (see `Model`), in evaluation mode.
            inputs: tensors with the examples along the first dimension.
            batch_size: examples at a time.

        Raises:
            ValueError: without an example, or for inputs of different numbers of them.
        """
        if not inputs or not len(inputs[0]):
            raise ValueError("inputs: expected at least one example, got none")
        numbers = [len(value) for value in inputs]
        if len({*numbers}) > 1:
            raise ValueError(f"inputs: expected as many examples in each, got {numbers}")
        module = self._module.eval()
        total: Any = None
        for chunk in zip(*(value.split(batch_size) for value in inputs), strict=True):
            batch, share = [self._placed(part) for part in chunk], len(chunk[0]) / len(inputs[0])

            def call(parameters, buffers, batch=batch):
                return function(Model(parameters, buffers, module), *batch)

            means = vmap(call)(self.parameters, self.buffers)
            means = tree_map(lambda value, share=share: share * _on_cpu(value), means)
            total = means if total is None else tree_map(torch.add, total, means)
        return total


def fit(
    build: Callable[[Hyperparameters], nn.Module],
    loss: Loss,
    data: Mapping[str, Tensor],
    runs: Iterable[Hyperparameters],
    *,
    epochs: int,
    batch_size: int,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    options: Mapping[str, Any] | None = None,
    schedule: Callable[[float], float] | None = None,
    noise: Noise | None = None,
    transform: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    clip_norm: float | None = None,
    state: Initial | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    progress: str | None = "fit",
) -> Fitted:
    """Train all runs together and return them.

    Of a run's `seed` come its initial parameters, the order of its examples, its noise and what else is drawn in its
    loss, as by dropout: two runs with the same seed differ in nothing but their other hyperparameters.

    Args:
        build: makes the network of a run from its hyperparameters. All must have the same structure and differ in
            nothing but the values of parameters and buffers.
        loss: `loss(model, batch, run)` returns the loss of one run, or a pair of it and a dictionary of tensors to
            log. It is mapped over runs: `model` is called as a module is (see `Model`), `batch` holds rows of `data`
            and this step's noise, `run` the run's hyperparameters that are numbers or truth values as tensors without
            dimensions (texts and None are for `build`), and `run["step"]`, the number of steps done, and
            `run["fraction"]`, their share of all. It must not branch on values.
        data: tensors with the examples along the first dimension.
        runs: hyperparameters of each run: `seed` and `learning_rate` always, others as `build` and `loss` need them.
        epochs: passes over the data; the last, incomplete batch of a pass is left out.
        batch_size: examples a step.
        optimizer: any of torch.optim whose step is proportional to its learning rate.
        options: its further arguments; the learning rate is the runs'.
        schedule: factor on the learning rate at a fraction, 0 to 1, of the steps done.
        noise: `noise(generator, steps)` returns tensors with the steps along the first dimension, drawn from the
            generator of one run (on its device).
        transform: makes a batch of what `loss` needs from rows and noise, for instance views of pictures. It does not
            see hyperparameters, so it is done once for all runs of a seed.
        state: makes what a run carries from step to step, such as a teacher's parameters or a memory, from its
            hyperparameters and its network before training: tensors in any nesting of dictionaries and tuples. The
            loss is then `loss(model, batch, run, state)` and returns `(loss, logged, new state)`; the new state is cut
            from the graph.
        clip_norm: gradients of a run with a larger norm are scaled down to it (`torch.nn.utils.clip_grad_norm_`).
        device: "auto" (CUDA, else CPU) or a device. On "meta" all steps are gone through without a number being
            computed: it shows whether a large setting would run, and the shapes of what it would return.
        dtype: of parameters and of floating-point data. Hyperparameters are in single precision at least.
        progress: what the progress line calls this; None for no line.

    Raises:
        ValueError: for runs without a seed or learning rate, tensors of unequal length, a batch larger than the data,
            networks that cannot be stacked; at the first steps for a loss that is not a number of each run, does not
            depend on the parameters, or logs what does not keep its shape.
        NonFiniteError: naming run, step and quantity, as soon as anything is NaN or infinite.

    Examples:
        >>> data, runs = {"x": torch.ones(64, 1)}, lab.grid(seed=[0, 1], learning_rate=[0.1])
        >>> loss = lambda model, batch, run: (model(batch["x"]) - 3).square().mean()
        >>> fitted = lab.fit(lambda run: lab.mlp([1, 1]), loss, data, runs, epochs=9, batch_size=4)
        >>> fitted.predict(torch.ones(1, 1)).flatten().round(decimals=1)
        tensor([3., 3.])
    """
    runs = [dict(run) for run in runs]
    device, frame, examples = choose_device(str(device)), _check_runs(runs), _check_data(data, batch_size, epochs)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point one, got {dtype}")
    if "lr" in (options or {}):
        raise ValueError("options: expected no lr, since every run has its learning_rate")
    data = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in data.items()}
    module, parameters, buffers, carried = _stack(build, state, runs, device, dtype)
    hyperparameters = _hyperparameters(runs, device, torch.promote_types(dtype, torch.float32))
    seeds = [int(run["seed"]) for run in runs]
    batches = _batches(data, examples, batch_size, epochs, seeds, noise, transform, device, dtype)

    def losses(parameters, buffers, batch, run, clock, carried):
        arguments = (Model(parameters, buffers, module), batch, _Run({**run, **clock}))
        result = loss(*arguments) if state is None else loss(*arguments, carried)
        if state is None:
            result = (*result, {}) if isinstance(result, tuple) else (result, {}, {})
        if not isinstance(result, tuple) or len(result) != 3:
            expected = "loss or (loss, logged)" if state is None else "(loss, logged, new state) where there is a state"
            raise ValueError(f"loss: expected {expected}, got {type(result)}")
        value, logged, carried = result
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
            raise ValueError(f"loss: expected a tensor without dimensions for each run, got {got}")
        return value, {name: torch.as_tensor(each, device=device) for name, each in logged.items()}, carried

    stacked_losses = _with_own_draws(losses, buffers, seeds, device)
    leaves = list(parameters.values())
    stepper = optimizer(leaves, lr=1.0, **(options or {}))
    steps = epochs * (examples // batch_size)
    watch, logged, started = _Watch(frame, device), [], time.perf_counter()
    with _progress_line(progress, len(frame), steps, device) as advance:
        for step, batch in enumerate(batches):
            clock = {
                "step": torch.tensor(step, device=device),
                "fraction": torch.tensor(step / steps, device=device, dtype=dtype),
            }
            values, extra, carried = stacked_losses(parameters, buffers, batch, hyperparameters, clock, carried)
            if not values.requires_grad:
                raise ValueError("loss: expected a loss that depends on the parameters, got one without a gradient")
            extra = {name: value.detach() for name, value in extra.items()}
            if logged and (first := _shapes(logged[0])) != _shapes(extra):
                raise ValueError(f"loss: expected to log the same at every step, got {first}, now {_shapes(extra)}")
            stepper.zero_grad()
            # No run's loss depends on another run's parameters: the gradient of the sum is all gradients.
            values.sum().backward()
            norms = _gradient_norms(leaves)
            if clip_norm is not None:
                _scale_gradients(leaves, (clip_norm / (norms + 1e-6)).clamp(max=1))
            rates = hyperparameters["learning_rate"] * (schedule(step / steps) if schedule else 1)
            _step(stepper, leaves, rates)
            watch.see(values.detach(), norms)
            logged.append(extra)
            carried = tree_map(Tensor.detach, carried)
            advance()
    watch.finish(leaves)
    return Fitted(
        runs=frame,
        history=watch.history(),
        logged={name: _on_cpu(torch.stack([entry[name] for entry in logged], 1)) for name in logged[0]},
        parameters={name: value.detach() for name, value in parameters.items()},
        buffers=buffers,
        seconds=time.perf_counter() - started,
        state=tree_map(_on_cpu, carried),
        _module=module,
    )


class _Run(dict[str, Any]):
    """What a loss sees of its run."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"run: {name!r} is not a number in every run, so the loss does not see it; it has {', '.join(self)}"
        )


def _is_number(value: Any) -> bool:
    """Whether a hyperparameter is a number or a truth value; NaN is what a table has in place of a text or None."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex() and not value.isnan()
    return isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating) and value == value


def _check_runs(runs: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(runs)
    for name in ("seed", "learning_rate"):
        if name not in frame or frame[name].isna().any():
            raise ValueError(f"runs: every run needs a {name}, got columns {list(frame.columns)}")
        for run in runs:
            whole = name == "learning_rate" or (_is_number(run[name]) and int(run[name]) == run[name])
            if not _is_number(run[name]) or not whole:
                kind = "whole number" if name == "seed" else "number"
                raise ValueError(f"runs: expected a {kind} for {name}, got {run[name]!r}")
    for name in ("step", "fraction"):
        if name in frame:
            raise ValueError(f"runs: expected hyperparameters, got {name!r}, which the loop itself sets")
    return frame


def _hyperparameters(runs: list[dict[str, Any]], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What all runs have as numbers or truth values, stacked."""
    found = {}
    for name in runs[0]:
        values: list[Any] = [run.get(name) for run in runs]
        if all(_is_number(value) for value in values):
            truths = all(isinstance(value, bool | np.bool_) for value in values)
            column = torch.tensor([float(value) for value in values], dtype=torch.float64)
            found[name] = column.to(device, torch.bool if truths else dtype)
    return found


def _check_data(data: Mapping[str, Tensor], batch_size: int, epochs: int) -> int:
    for name, value in data.items():
        if not isinstance(value, Tensor) or not value.ndim or value.layout != torch.strided:
            kind = f"{value.layout}, shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
            raise ValueError(f"data: expected dense tensors with examples along a dimension, got {kind} for {name}")
    lengths = {name: len(value) for name, value in data.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"data: expected tensors of the same length, got {lengths}")
    examples = next(iter(lengths.values()))
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batch_size: expected 1 to {examples} (the examples), got {batch_size}")
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    return examples


def _stack(build, state, runs, device, dtype):
    """A module without storage that gives the structure, the stacked parameters and buffers, and the stacked state."""
    modules, states = [], []
    for index, run in enumerate(runs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(run["seed"]))
            module = build(run)
            check_network(module)
            modules.append(still_tied(lambda module: module.to(device, dtype), module).train())
            if state is not None:
                states.append(state(run, modules[-1]))
        check_alike(modules[0], modules[-1], index)
    parameters, buffers = stack_module_state(modules)

    def stacked(*parts):
        if not all(isinstance(part, Tensor) for part in parts):
            raise ValueError(f"state: expected tensors, got {type(parts[0])}")
        return torch.stack([part.detach().to(device, dtype if part.is_floating_point() else None) for part in parts])

    structure = still_tied(lambda module: module.to("meta"), modules[0])
    return structure, parameters, buffers, tree_map(stacked, *states) if states else {}


def _with_own_draws(losses, buffers, seeds, device):
    """Losses of all runs, which may draw: then each draws its own, whatever it is stacked with."""
    in_dims, draws = (0, 0, 0, 0, None, 0), None
    exact = vmap(losses, in_dims=in_dims)
    drawing = vmap(losses, in_dims=in_dims, randomness="different")
    # Watching all operators costs time: it begins when the first step turns out to draw, and begins again.
    start: dict[str, Tensor] | None = {name: value.clone() for name, value in buffers.items()}

    def stacked(*arguments):
        nonlocal draws, start
        if draws is None and start is not None:
            try:
                return exact(*arguments)
            except RuntimeError as error:
                if "randomness error mode" not in str(error):
                    raise
                for name, value in start.items():
                    buffers[name].copy_(value)
                # The meta device draws nothing.
                draws = nullcontext() if device.type == "meta" else OwnDraws(seeds, device)
            finally:
                start = None
        if draws is None:
            return exact(*arguments)
        with draws:
            return drawing(*arguments)

    return stacked


def _batches(data, examples, batch_size, epochs, seeds, noise, transform, device, dtype):
    """What each step sees: by name, `(runs, batch, ...)`. Runs of one seed see the same."""
    distinct = list(dict.fromkeys(seeds))
    run_of = None if distinct == seeds else torch.tensor([distinct.index(seed) for seed in seeds], device=device)
    orders = [torch.Generator().manual_seed(seed) for seed in distinct]
    # The meta device has no generator.
    draws = [torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed) for seed in distinct]
    step, drawn = 0, []
    for _ in range(epochs):
        order = torch.stack([torch.randperm(examples, generator=each) for each in orders]).to(device)
        for start in range(0, examples - batch_size + 1, batch_size):
            rows = order[:, start : start + batch_size]
            batch = {name: value[rows] for name, value in data.items()}
            if noise is not None:
                now = step % NOISE_STEPS
                if now == 0:
                    drawn = [noise(each, NOISE_STEPS) for each in draws]
                for name in drawn[0]:
                    value = torch.stack([each[name][now] for each in drawn])
                    batch[name] = value.to(device, dtype if value.is_floating_point() else None)
            if transform is not None:
                batch = vmap(transform)(batch)
            yield batch if run_of is None else {name: value[run_of] for name, value in batch.items()}
            step += 1


def _per_run(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in like.shape[1:])).to(like.dtype)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _gradient_norms(leaves: list[Tensor]) -> Tensor:
    # In single precision at least, where half would overflow.
    wide = [_wide(leaf.grad) for leaf in leaves if leaf.grad is not None]
    return torch.stack([each.reshape(len(each), -1).square().sum(1) for each in wide]).sum(0).sqrt()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape[1:]) for name, value in tensors.items()}


def _scale_gradients(leaves: list[Tensor], factors: Tensor) -> None:
    for leaf in leaves:
        if leaf.grad is not None:
            leaf.grad.mul_(_per_run(factors, leaf))


@torch.no_grad()
def _step(stepper: torch.optim.Optimizer, leaves: list[Tensor], rates: Tensor) -> None:
    # torch.optim has one learning rate for a tensor, we need one a run: go at rate 1, keep a run's share of the way.
    before = [leaf.clone() for leaf in leaves]
    stepper.step()
    for leaf, start in zip(leaves, before, strict=True):
        leaf.copy_(torch.lerp(start, leaf, _per_run(rates, leaf)))


def _on_cpu(value: Tensor) -> Tensor:
    # What has no values cannot be copied.
    return value if value.is_meta else value.cpu()


class _Watch:
    """Keeps losses and gradient norms on the device, and now and then looks whether all are finite."""

    def __init__(self, runs: pd.DataFrame, device: torch.device):
        self.runs = runs
        self.blind = device.type == "meta"
        self.kept: dict[str, list[Tensor]] = {"loss": [], "gradient_norm": []}
        self.looked = 0

    def see(self, losses: Tensor, norms: Tensor) -> None:
        self.kept["loss"].append(losses)
        self.kept["gradient_norm"].append(norms)
        if len(self.kept["loss"]) - self.looked >= LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Raise for the first loss or gradient norm, since the last look, that is not finite."""
        if self.blind or self.looked == len(self.kept["loss"]):
            return
        new = {name: torch.stack(values[self.looked :]) for name, values in self.kept.items()}
        bad = ~torch.stack(list(new.values()), -1).isfinite()  # (steps, runs, quantities)
        if bad.any():
            step, run, quantity = bad.nonzero()[0].tolist()
            name = list(new)[quantity]
            self._raise(run, self.looked + step, name, new[name][step, run].item())
        self.looked = len(self.kept["loss"])

    def finish(self, leaves: Iterable[Tensor]) -> None:
        """A last look, and one at the parameters: after the last step no loss would show what became of them."""
        self.look()
        for leaf in () if self.blind else leaves:
            if not leaf.isfinite().all():
                where = (~leaf.isfinite()).nonzero()[0].tolist()
                self._raise(where[0], len(self.kept["loss"]) - 1, "parameter", leaf[tuple(where)].item())

    def _raise(self, run: int, step: int, quantity: str, value: float):
        settings = ", ".join(f"{name}={value}" for name, value in self.runs.to_dict("records")[run].items())
        raise NonFiniteError(f"run {run} ({settings}), step {step}: {quantity.replace('_', ' ')} is {value}")

    def history(self) -> pd.DataFrame:
        stacked = {name: torch.stack(values, 1) for name, values in self.kept.items()}
        columns = {
            # (NumPy has no bfloat16.)
            name: np.full(value.shape, np.nan) if self.blind else _wide(value).cpu().numpy()
            for name, value in stacked.items()
        }
        runs, steps = columns["loss"].shape
        index = pd.MultiIndex.from_product([range(runs), range(steps)], names=["run", "step"])
        return pd.DataFrame({name: values.reshape(-1) for name, values in columns.items()}, index=index).reset_index()


@contextmanager
def _progress_line(name: str | None, runs: int, steps: int, device: torch.device):
    """A bar in a terminal; in a notebook a line that is rewritten, and ends by saying what it took."""
    if name is None:
        yield lambda: None
        return
    if not _in_notebook():
        with tqdm(total=steps, desc=f"{name}, {runs} runs", leave=False, disable=None) as bar:
            yield bar.update
        return
    started, done, shown = time.perf_counter(), 0, 0.0

    def advance():
        nonlocal done, shown
        done += 1
        if (now := time.perf_counter()) - shown > 0.5:
            shown = now
            print(f"\r{name}: {runs} runs, step {done} of {steps}".ljust(79), end="", flush=True)

    yield advance
    seconds = time.perf_counter() - started
    print(f"\r{name}: {runs} runs of {steps} steps in {seconds:.1f} s on {device.type}".ljust(79))


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None
