"""Showing the finished site on this machine."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lossbook.press.errors import PressError

HOST = "127.0.0.1"


class Handler(SimpleHTTPRequestHandler):
    """Files, without a log, and never from a browser's memory: the site may have been rebuilt."""

    def end_headers(self) -> None:
        """Add the header that keeps browsers from remembering."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server that a reader who goes away does not disturb."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over broken connections."""
        if not isinstance(sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def server(folder: Path, port: int) -> Server:
    """A server of `folder` on the loopback interface alone; port 0 picks a free one.

    Raises:
        PressError: if there is no site, or the port is taken.
    """
    if not (folder / "index.html").is_file():
        raise PressError(f"there is no site in {folder} yet: lossbook build")
    try:
        return Server((HOST, port), partial(Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise PressError(f"cannot serve on port {port} ({error}); choose another with --port, 0 for any") from None
