"""One rule for all public functions: dtypes that meet, labels, numbers of NumPy, compiled calls, half precision, NaN.

The calls are the examples that are repeated on another device: every public name has one.
"""

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, is_typeddict

import numpy as np
import pytest
import torch
from devices import OnlyOnCPU, examples_of
from support import annotations_unchecked, one_graph, without_hooks
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

# These run a network of the user's, in its dtype and at the precision that autocast gives it.
RUN_A_NETWORK = {
    "InChunks",
    "in_chunks",
    "logit_dp_gradient",
    "mask_inversion",
    "measured_gain",
    "pair_gradient_norms",
    "set_group_numbers",
    "smooth_inversion",
    "smoothed_logits",
}
# The result has the dtype of the memory, of the weight that is parametrised, of the gradient, or of rows handed on.
KEEP_A_DTYPE = {
    "logit_dp_weights",
    "record_losses",
    "SpectralNormalisation",
    "WeightNormalisation",
    "group_norm_backward",
    "by_rows",
    "gather",
}
# NaN stands for a pair that was never seen, or is no loss to be recorded.
NAN_IS_UNSEEN = {"bad_pairs", "dynamic_bad_pair_loss", "loss_statistics", "pair_weights", "record_losses"}
# A batch that is not finite leaves the state of the controllers as it was; the oldest entries of a queue fall out.
KEEP_THEIR_STATE = {"balance_temperatures", "balance_weights", "entries_after"}

FOUND = examples_of(Path(__file__).parent)
READ_VALUES = [example.call for example in FOUND if isinstance(example, OnlyOnCPU)]
# Dictionaries and tuples hold what they are given.
EXAMPLES = [
    call
    for call in (getattr(example, "call", example) for example in FOUND)
    if not is_typeddict(call.func) and not (isinstance(call.func, type) and issubclass(call.func, tuple))
]


def name(call: partial) -> str:
    return getattr(call.func, "__name__", type(call.func).__name__)


def over(*left_out: set[str]) -> Callable:
    """The test for each example but those of some functions."""
    chosen = [call for call in EXAMPLES if not any(name(call) in names for names in left_out)]
    return pytest.mark.parametrize("call", chosen, ids=name)


def tensors(call: partial) -> list[Tensor]:
    """The tensors that go in, in the order in which `changed` meets them; those of modules are not among them."""
    return [value for value in tree_leaves((call.args, dict(call.keywords))) if isinstance(value, Tensor)]


def changed(call: partial, change: Callable[[Tensor, int], Tensor] = lambda value, place: value) -> partial:
    """A copy of the call in which every tensor is changed; generators begin anew."""
    places = iter(range(len(tensors(call))))

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return torch.Generator().manual_seed(0)
        if isinstance(value, Tensor):
            return change(value.detach().clone(), next(places))
        return copy.deepcopy(value) if isinstance(value, nn.Module) else value

    args, keywords = tree_map(copied, (call.args, dict(call.keywords)))
    return partial(copied(call.func), *args, **keywords)


def outcome(call: Callable) -> list[Tensor | float]:
    """What comes out: tensors and numbers."""
    torch.manual_seed(0)
    with annotations_unchecked():
        result = call()
    if is_dataclass(result):
        result = [getattr(result, each.name) for each in fields(result)]
    return [
        value.detach() if isinstance(value, Tensor) else value
        for value in tree_leaves(result)
        if isinstance(value, (Tensor, int, float))
    ]


def rounded(dtype: torch.dtype, *, held: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    """Rounds floating-point tensors to one dtype and holds the result in another."""
    return lambda value, place: value.to(dtype).to(held) if value.is_floating_point() else value


def floats(call: partial) -> list[int]:
    return [place for place, value in enumerate(tensors(call)) if value.is_floating_point()]


def same(ours: list, theirs: list, tolerance: float, *, dtypes: bool = True) -> None:
    """Check that values are equal, and dtypes."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, check_dtype=dtypes)


@over(RUN_A_NETWORK, KEEP_A_DTYPE)
def test_mixed_dtypes_give_the_widest_and_its_value(call):
    if len(floats(call)) < 2:
        return
    expected = outcome(changed(call, rounded(torch.float32, held=torch.float64)))
    for narrow in floats(call):

        def mixed(value: Tensor, place: int, narrow: int = narrow) -> Tensor:
            held = torch.float32 if place == narrow else torch.float64
            return rounded(torch.float32, held=held)(value, place)

        given = changed(call, mixed)
        found = outcome(given)
        # As everywhere in PyTorch, tensors without dimensions do not widen those that have some.
        kinds = [value for value in tensors(given) if value.is_floating_point()]
        kinds = [value.dtype for value in kinds if value.ndim] or [value.dtype for value in kinds]
        widest = reduce(torch.promote_types, kinds)
        for value in found:
            assert not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == widest, value.dtype
        same(found, expected, 1e-6 if widest == torch.float64 else 1e-4, dtypes=False)


@over()
def test_labels_of_every_integer_dtype_are_those_of_int64(call):
    whole = [place for place, value in enumerate(tensors(call)) if not value.is_floating_point()]
    expected = outcome(changed(call)) if whole else None
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        for chosen in whole:

            def narrow(value: Tensor, place: int, chosen: int = chosen, dtype: torch.dtype = dtype) -> Tensor:
                fits = value.dtype != torch.bool and (value == value.to(dtype)).all()
                return value.to(dtype) if place == chosen and fits else value

            same(outcome(changed(call, narrow)), expected, 1e-12)


def hyperparameters(call: partial) -> dict[str, float]:
    """The keyword arguments of a function that are Python numbers, those by default among them."""
    if not (inspect.isfunction(call.func) or inspect.isclass(call.func)):
        return {}
    parameters = inspect.signature(call.func).parameters
    values = {
        key: call.keywords.get(key, parameter.default)
        for key, parameter in parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY
    }
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


@over()
def test_numbers_of_numpy_are_those_of_python(call):
    given = hyperparameters(call)
    for whole, real in ((np.int64, np.float64), (np.int32, np.float32)):
        numbers = {key: (whole if isinstance(value, int) else real)(value) for key, value in given.items()}
        plain = {key: value.item() for key, value in numbers.items()}
        ours, theirs = (partial(changed(call), **each) for each in (numbers, plain))
        same(outcome(ours), outcome(theirs), 1e-12)


def compiled_calls() -> Iterator[Any]:
    """One call of each function that takes tensors and numbers, and does not read values."""
    seen = RUN_A_NETWORK | {name(call) for call in READ_VALUES}
    for call in EXAMPLES:
        if name(call) not in seen and tensors(call) and any(type(v) is float for v in hyperparameters(call).values()):
            seen = seen | {name(call)}
            yield pytest.param(call, id=name(call))


@pytest.mark.parametrize("call", compiled_calls())
def test_a_number_may_change_between_calls_of_the_compiled_function(call):
    torch._dynamo.reset()
    with without_hooks():
        function = getattr(import_module(call.func.__module__), name(call))
        compiled = one_graph(function)
        for factor in (1.0, 0.5, 0.6):
            numbers = {key: value * factor for key, value in hyperparameters(call).items() if type(value) is float}
            given = changed(call)
            ours, theirs = (
                partial(each, *given.args, **{**given.keywords, **numbers}) for each in (compiled, function)
            )
            same(outcome(ours), outcome(theirs), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@over(RUN_A_NETWORK)
def test_half_precision_is_computed_in_single(call, dtype):
    ours = outcome(changed(call, rounded(dtype, held=dtype)))
    theirs = outcome(changed(call, rounded(dtype, held=torch.float32)))
    keeps = name(call) in KEEP_A_DTYPE
    same(ours, theirs, 8 * torch.finfo(dtype).eps if keeps else 2e-6, dtypes=not keeps)


@over(RUN_A_NETWORK)
def test_autocast_changes_nothing(call):
    call = changed(call, rounded(torch.float32, held=torch.float32))
    expected = outcome(changed(call))
    with torch.autocast("cpu", torch.bfloat16):
        same(outcome(changed(call)), expected, 2e-6)


@over()
def test_inference_mode_changes_nothing(call):
    expected, given = outcome(changed(call)), changed(call)
    with torch.inference_mode():
        # Modules are made outside, tensors inside.
        args, keywords = tree_map_only(Tensor, Tensor.clone, (given.args, dict(given.keywords)))
        same(outcome(partial(given.func, *args, **keywords)), expected, 1e-12)


@over(NAN_IS_UNSEEN, KEEP_THEIR_STATE)
def test_nan_gives_nan_or_a_named_error_and_never_a_number(call):
    for chosen in floats(call):

        def spoiled(value: Tensor, place: int, chosen: int = chosen) -> Tensor:
            if place == chosen:
                # A row of it, since a loss need not look at every entry.
                (value[0] if value.ndim else value).fill_(math.nan)
            return value

        try:
            found = outcome(changed(call, spoiled))
        except ValueError as error:
            assert re.match(r"[\w.\[\]]+: expected ", str(error)), error
            continue
        values = [torch.as_tensor(value) for value in found]
        values = [value for value in values if value.is_floating_point()]
        # Some say which rows alone.
        assert not values or any(value.isnan().any() for value in values), (chosen, found)
