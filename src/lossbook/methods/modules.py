"""Any loss as a module of PyTorch, made from its function: settings, learned settings, `state_dict`, configuration."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lossbook import methods

__all__ = ["Loss"]

Setting = float | str | bool | None


class Loss(nn.Module):
    r"""A loss function with its settings; some of them learned.

    `Loss(info_nce, temperature=0.1)(queries, keys)` is `info_nce(queries, keys, temperature=0.1)`. What a call gives by
    keyword, such as labels, goes to the function too, before the settings. A learned setting $a>0$ is held as its
    logarithm, the parameter `log_a`, so that no step of an optimiser makes it negative; do not let weight decay pull
    $\log a$ to 0. `state_dict` holds these parameters, and no other settings: they are the code's, or `config`'s.

    Args:
        loss: a function whose settings are keyword-only, or the name of one of `lossbook.methods`, with the part before
            it, "contrastive.info_nce", where several parts have the name.
        learn: the names of settings to learn, positive numbers; they begin at the values given, or at their defaults.
        settings: numbers, words or None. Tensors belong to the call.

    Attributes:
        function: the loss.
        settings: those that are not learned.
        learned: the names of those that are.

    Raises:
        ValueError: for a function, a setting, or a value to learn other than these. Whether settings lie in their
            ranges is seen when the function is called.

    Examples:
        >>> loss = modules.Loss("info_nce", temperature=0.1, learn="temperature")
        >>> loss
        info_nce(temperature=0.1 (learned))
        >>> round(loss(torch.eye(3), torch.eye(3), symmetric=True).item(), 5)
        9e-05
        >>> dict(loss.state_dict())
        {'log_temperature': tensor(-2.3026)}
    """

    def __init__(self, loss: Callable[..., Any] | str, *, learn: str | Sequence[str] = (), **settings: Setting) -> None:
        super().__init__()
        self.function = _named(loss) if isinstance(loss, str) else loss
        if not callable(self.function):
            raise ValueError(f"loss: expected a function or its name, got {loss!r}")
        parameters = inspect.signature(self.function).parameters
        defaults = {name: each.default for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
        self.learned = (learn,) if isinstance(learn, str) else tuple(learn)
        for name in (*settings, *self.learned):
            if name not in defaults:
                raise ValueError(f"{name}: expected a setting of {self._name}, {', '.join(defaults)}, got another name")
        self.settings = {name: _plain(name, value) for name, value in settings.items() if name not in self.learned}
        for name in self.learned:
            value = _plain(name, settings.get(name, defaults[name]))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number to begin with, got {value!r}")
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(math.log(value))))

    def value(self, name: str) -> Tensor:
        """A learned setting, with its gradient.

        Examples:
            >>> modules.Loss("info_nce", temperature=0.5, learn="temperature").value("temperature")
            tensor(0.5000, grad_fn=<ExpBackward0>)
        """
        return self.get_parameter(f"log_{name}").exp()

    def forward(self, *tensors: Any, **keywords: Any) -> Any:
        """The function of these, with the settings; keywords come before settings of the same name."""
        return self.function(*tensors, **{**self.settings, **{n: self.value(n) for n in self.learned}, **keywords})

    def config(self) -> dict[str, Any]:
        """What makes this module anew: `Loss.from_config` of it; learned settings at their values of now.

        Raises:
            ValueError: if the function is none of `lossbook.methods`.

        Examples:
            >>> modules.Loss("info_nce", temperature=0.1).config()
            {'loss': 'contrastive.info_nce', 'temperature': 0.1}
        """
        name = next((name for name, each in _functions(self._name) if each is self.function), None)
        if name is None:
            raise ValueError(f"loss: expected a function of lossbook.methods, got {self.function!r}")
        now = {name: self.value(name).item() for name in self.learned}
        return {"loss": name, **self.settings, **now, **({"learn": [*self.learned]} if self.learned else {})}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Loss":
        """The loss that a configuration describes, such as one read from JSON or YAML.

        Args:
            config: the arguments of `Loss` by name: "loss", settings, and perhaps "learn".

        Raises:
            ValueError: if there is no "loss", or as for `Loss`.

        Examples:
            >>> modules.Loss.from_config({"loss": "info_nce", "temperature": 0.1})
            info_nce(temperature=0.1)
        """
        if "loss" not in config:
            raise ValueError(f"config: expected the name of a function under 'loss', got {', '.join(config) or 'none'}")
        return cls(**config)

    @property
    def _name(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def __repr__(self) -> str:
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        for name in self.learned:
            value = self.value(name).detach()
            settings.append(f"{name}={'?' if value.is_meta else format(value.item(), '.4g')} (learned)")
        return f"{self._name}({', '.join(settings)})"


def _named(name: str) -> Callable[..., Any]:
    """The function of `lossbook.methods` with this name."""
    part, _, own = name.rpartition(".")
    found = [(full, each) for full, each in _functions(own) if part in ("", full.rpartition(".")[0])]
    if len(found) != 1:
        what = " or ".join(full for full, _ in found) or "the name of a function of lossbook.methods"
        raise ValueError(f"loss: expected {what}, got {name!r}")
    return found[0][1]


def _functions(name: str) -> list[tuple[str, Callable[..., Any]]]:
    """The public functions of this name, with that of the part, or of the shared module, before it."""
    homes = [info.name for info in iter_modules(methods.__path__) if not info.name.startswith("_")]
    loaded = {home: import_module(f"{methods.__name__}.{home}") for home in homes}
    return [(f"{home}.{name}", getattr(each, name)) for home, each in loaded.items() if name in each.__all__]


def _plain(name: str, value: object) -> Setting:
    """A setting that a configuration can hold, NumPy's numbers as Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{name}: expected a number, a word or None, got {type(value).__name__}; tensors go into the call")
