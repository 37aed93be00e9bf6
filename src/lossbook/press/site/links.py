"""The links of a built site that lead elsewhere, and whether they still lead there."""

import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urldefrag, urlsplit
from urllib.request import Request, urlopen

from lossbook import __version__
from lossbook.press.errors import PressError

# Several hosts are asked at once, each of them one thing at a time.
HOSTS = 8
# Seconds that a host has for an answer.
PATIENCE = 15.0
# Answers that say who asks is not welcome, and nothing about the page.
SHUT = {401, 403, 405, 406, 418, 429, 451, 503, 999}


@dataclass(frozen=True)
class Link:
    """An address outside the site."""

    address: str
    # How often it is linked, and the first page that does.
    places: int
    page: str


@dataclass(frozen=True)
class Answer:
    """What came of visiting an address."""

    # "alive", "dead", "unclear" (the host does not let programs in) or "unreached" (no connection).
    state: str
    detail: str


class _Anchors(HTMLParser):
    """Collects the addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href") if tag in ("a", "area") else None
        if address and urlsplit(address).scheme in ("http", "https"):
            self.found.append(address)


def external(site: Path) -> list[Link]:
    """Every external link of a site, by address.

    Raises:
        PressError: if there is no site.
    """
    if not (site / "index.html").is_file():
        raise PressError(f"there is no site in {site}; lossbook build makes it")
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(site.rglob("*.html")):
        anchors = _Anchors()
        anchors.feed(path.read_text(encoding="utf-8"))
        for address in anchors.found:
            places[address].append(str(path.relative_to(site)))
    return [Link(address, len(pages), pages[0]) for address, pages in sorted(places.items())]


def check(
    addresses: Iterable[str], told: Callable[[int, int], None] = lambda done, total: None, patience: float = PATIENCE
) -> dict[str, Answer]:
    """Visit addresses; places within a page are not looked for.

    Args:
        addresses: what is visited, each page once.
        told: hears how many are done, of how many.
        patience: seconds that a host has for an answer; one that takes no connection is not asked again.
    """
    addresses = list(addresses)
    hosts: dict[str, list[str]] = defaultdict(list)
    for page in sorted({urldefrag(address).url for address in addresses}):
        hosts[urlsplit(page).netloc].append(page)
    total, answers, lock = sum(map(len, hosts.values())), {}, threading.Lock()

    def visit(pages: list[str]) -> None:
        for page, answer in _visits(pages, patience):
            with lock:
                answers[page] = answer
                told(len(answers), total)

    with ThreadPoolExecutor(HOSTS) as pool:
        list(pool.map(visit, hosts.values()))
    return {address: answers[urldefrag(address).url] for address in addresses}


def _visits(pages: list[str], patience: float) -> Iterator[tuple[str, Answer]]:
    """Visit the pages of one host, until it takes no connection."""
    silent = None
    for page in pages:
        answer = silent or _visit(page, patience)
        if answer.state == "unreached":
            silent = answer
        yield page, answer


def _visit(page: str, patience: float) -> Answer:
    answer = _ask(page, "HEAD", patience)
    # Some hosts do not know HEAD, or answer it wrongly.
    return answer if answer.state in ("alive", "unreached") else _ask(page, "GET", patience)


def _ask(page: str, method: str, patience: float) -> Answer:
    headers = {"User-Agent": f"lossbook/{__version__} (checks the links of a book)", "Accept": "*/*"}
    try:
        with urlopen(Request(page, headers=headers, method=method), timeout=patience) as response:
            moved = f", now {response.url}" if response.url != page else ""
            return Answer("alive", f"{response.status}{moved}")
    except HTTPError as error:
        error.close()
        return Answer("unclear" if error.code in SHUT else "dead", f"{error.code} {error.reason}")
    except URLError as error:
        # No connection: true of every page there.
        unknown = isinstance(error.reason, socket.gaierror)
        return Answer("unreached", "the name is unknown" if unknown else str(error.reason))
    except TimeoutError:
        return Answer("dead", f"no answer in {patience:g} s")
    except (HTTPException, OSError, ValueError) as error:
        return Answer("dead", f"{type(error).__name__}: {error}")
