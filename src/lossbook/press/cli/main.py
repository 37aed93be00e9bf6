"""The entry point of the command `lossbook`: what goes wrong becomes one message and an exit status."""

import errno
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import typer


class Stopped(SystemExit):
    """A signal asked us to end. (A SystemExit, since asyncio hands on no other exception of a handler.)"""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


def _stop(number: int, frame: Any) -> None:
    # The second signal is not waited for.
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def _end(message: str, status: int) -> NoReturn:
    print(f"lossbook: {message}", file=sys.stderr)
    sys.exit(status)


def application() -> "typer.Typer":
    """The command line with all its commands."""
    # Importing a file adds its commands.
    from lossbook.press.cli import build, prune, record, run, sweep  # noqa: F401
    from lossbook.press.cli.options import app

    return app


def main() -> None:
    """Run the command line; its exit statuses are told by `errors`."""
    from lossbook.press.errors import PressError

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        application()(prog_name="lossbook")
    except PressError as error:
        _end(str(error), error.status)
    except Stopped as stop:
        _end(f"stopped by {signal.Signals(stop.number).name}; what was unfinished is discarded", 128 + stop.number)
    except ModuleNotFoundError as error:
        if (error.name or "lossbook").startswith("lossbook"):
            raise
        _end(f'{error.name} is not installed; running the book needs: pip install "lossbook[book]"', 1)
    except BrokenPipeError:
        # Whoever read us has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except shutil.Error as error:
        # Copying a folder collects its complaints; the first will do.
        _, target, reason = error.args[0][0]
        _end(f"{target}: {reason}", 1)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = f"{reason}; the disk is full. What was finished is kept, this file is not written"
        _end(f"{error.filename or 'cannot go on'}: {reason}", 1)
