"""Make the inventories, which say where the documentation of other libraries has the names that ours mentions.

    python make.py                                       those made from the installed libraries
    python make.py python=objects.inv pandas=objects.inv those cut from an inventory that the library publishes

The build reads only the files beside this script. torch, numpy, matplotlib and jaxtyping are made here, from the public
names of the installed libraries and the rules by which their sites place names. python and pandas are cut from
https://docs.python.org/3/objects.inv and https://pandas.pydata.org/docs/objects.inv.
"""

import inspect
import sys
import zlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
# Modules of torch whose public classes and functions have a page each, `generated/<name>.html`.
TORCH = ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.optim.lr_scheduler", "torch.func")
# Names whose place no rule gives.
PLACES = {
    "torch": {
        "torch.Tensor": "tensors.html",
        "torch.Generator": "generated/torch.Generator.html",
        "torch._C.Generator": "generated/torch.Generator.html#torch.Generator",
        "torch.Size": "size.html",
        "torch.dtype": "tensor_attributes.html",
        "torch.device": "tensor_attributes.html",
        "torch.layout": "tensor_attributes.html",
        "torch.memory_format": "tensor_attributes.html",
        "torch.optim.Optimizer": "optim.html",
        "torch.optim.optimizer.Optimizer": "optim.html#torch.optim.Optimizer",
        "torch.nn.parameter.Parameter": "generated/torch.nn.parameter.Parameter.html",
        "torch.nn.Parameter": "generated/torch.nn.parameter.Parameter.html#torch.nn.parameter.Parameter",
        "torch.nn.utils.clip_grad_norm_": "generated/torch.nn.utils.clip_grad_norm_.html",
        "torch.utils.data.DataLoader": "data.html",
        "torch.utils.data.Dataset": "data.html",
        "torch.utils.data.dataloader.DataLoader": "data.html#torch.utils.data.DataLoader",
        "torch.utils.data.dataset.Dataset": "data.html#torch.utils.data.Dataset",
        "torch.distributions.distribution.Distribution": "distributions.html",
    },
    "numpy": {
        "numpy.ndarray": "reference/generated/numpy.ndarray.html",
        "numpy.dtype": "reference/generated/numpy.dtype.html",
        "numpy.random.Generator": "reference/random/generator.html",
        "numpy.typing.ArrayLike": "reference/typing.html",
        "numpy.typing.NDArray": "reference/typing.html",
    },
    "matplotlib": {
        "matplotlib.figure.Figure": "api/figure_api.html",
        "matplotlib.axes.Axes": "api/_as_gen/matplotlib.axes.Axes.html",
        "matplotlib.axes._axes.Axes": "api/_as_gen/matplotlib.axes.Axes.html#matplotlib.axes.Axes",
    },
    "jaxtyping": {
        f"jaxtyping.{name}": "api/array/#dtype"
        for name in ("Bool", "Complex", "Float", "Inexact", "Int", "Integer", "Num", "Real", "Shaped", "UInt")
    },
}

# Name, role within Python's domain, place.
Row = tuple[str, str, str]


def public(module: ModuleType, prefix: str) -> Iterator[Row]:
    """The public classes and functions of a module, each on a page of its own."""
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith("_") or not inspect.getdoc(value):
            continue
        if inspect.isclass(value) and (getattr(value, "__module__", None) or "").startswith(module.__name__):
            place = f"{prefix}{module.__name__}.{name}.html"
            yield f"{module.__name__}.{name}", "class", place
            # Annotations name a class by where it is defined.
            yield f"{value.__module__}.{name}", "class", f"{place}#{module.__name__}.{name}"
        elif inspect.isroutine(value) or isinstance(value, np_ufunc()):
            yield f"{module.__name__}.{name}", "function", f"{prefix}{module.__name__}.{name}.html"


def np_ufunc() -> type:
    """The type of numpy's elementwise functions."""
    return import_module("numpy").ufunc


def placed(library: str) -> list[Row]:
    """The names of PLACES."""
    return [(name, "function" if name[-1] == "_" else "class", place) for name, place in PLACES[library].items()]


def made(library: str) -> list[Row]:
    """What is known of a library without its own inventory."""
    rows = []
    if library == "torch":
        rows = [row for name in TORCH for row in public(import_module(name), "generated/")]
    elif library == "numpy":
        rows = [row for row in public(import_module("numpy"), "reference/generated/") if row[1] == "function"]
    known = {name for name, _, _ in placed(library)}
    # A name found twice is one that a module only repeats.
    found = {name: row for row in rows if (name := row[0]) not in known}
    return [*found.values(), *placed(library)]


def cut(path: Path) -> list[Row]:
    """Modules, classes, functions, exceptions and data of a published inventory; methods and prose are left out."""
    content = path.read_bytes().split(b"\n", 4)
    rows = []
    for line in zlib.decompress(content[4]).decode().splitlines():
        name, kind, _, place, _ = line.split(" ", 4)
        domain, _, role = kind.partition(":")
        if domain == "py" and role in ("class", "function", "exception", "data", "module"):
            rows.append((name, role, place.replace("$", name)))
    return rows


def write(library: str, rows: Iterable[Row]) -> Path:
    """Write an inventory in the format of Sphinx, version 2."""
    lines = []
    for name, role, place in sorted(set(rows)):
        place = place if "#" in place else f"{place}#{name}"
        place = f"{place.removesuffix(name)}$" if place.endswith(name) else place
        lines.append(f"{name} py:{role} 1 {place} -\n")
    head = [
        "# Sphinx inventory version 2",
        f"# Project: {library}",
        "# Version: ",
        "# The remainder of this file is compressed using zlib.\n",
    ]
    path = HERE / f"{library}.inv"
    path.write_bytes("\n".join(head).encode() + zlib.compress("".join(lines).encode(), 9))
    return path


def main(arguments: list[str]) -> None:
    """Make the inventories that were asked for."""
    given = dict(argument.split("=", 1) for argument in arguments)
    for library, path in given.items():
        print(write(library, cut(Path(path))))
    for library in () if given else PLACES:
        print(write(library, made(library)))


if __name__ == "__main__":
    main(sys.argv[1:])
