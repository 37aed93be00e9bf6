"""How a part gathers the public names of its papers, so that adding a paper touches no list."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def public_names(package: dict[str, Any]) -> list[str]:
    """Import every module of a package and put the names of its `__all__` into the package's namespace.

    Args:
        package: `globals()` of the package's `__init__`.

    Returns:
        The names, sorted, for the package's own `__all__`.

    Raises:
        ImportError: if two modules export the same name.
    """
    exported_by: dict[str, str] = {}
    for info in iter_modules(package["__path__"]):
        module = import_module(f"{package['__name__']}.{info.name}")
        for name in module.__all__:
            if name in exported_by:
                raise ImportError(f"{name} is public in both {exported_by[name]} and {module.__name__}")
            exported_by[name] = module.__name__
            package[name] = getattr(module, name)
    return sorted(exported_by)
