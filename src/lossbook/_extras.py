"""What the library needs only in parts, and what it says where that is not installed."""

from importlib.util import find_spec


def require(*modules: str, extra: str, by: str) -> None:
    """See whether modules are there, without importing them.

    Args:
        modules: that are needed.
        extra: of this distribution, which brings them.
        by: what needs them.

    Raises:
        ModuleNotFoundError: naming those that are not there, and what installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise ModuleNotFoundError(f'{by} needs {names}: pip install "lossbook[{extra}]"', name=missing[0])
