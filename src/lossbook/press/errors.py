"""What can go wrong, as the user reads it."""

from collections.abc import Iterable
from difflib import get_close_matches

STATUSES = "Exit status 0: done; 1: something failed; 2: refused, nothing was started; 128 + n: stopped by signal n."


class PressError(Exception):
    """Something failed; the text says what and where."""

    status = 1


class Refused(PressError):
    """What was asked for cannot be done; nothing was started."""

    status = 2


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """A message for an unknown name that offers the nearest valid one."""
    valid = sorted(valid)
    nearest = get_close_matches(name, valid, n=1, cutoff=0.4)
    if nearest:
        return f"unknown {kind} {name!r}; did you mean {nearest[0]!r}?"
    return f"unknown {kind} {name!r}; there is {', '.join(map(repr, valid)) or 'none'}"
