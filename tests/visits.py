"""Which pages a browser must look at: a sample of every kind, and whatever is not as it was when it was looked at.

A visit is a page at a width in a colour scheme. One that found nothing wrong is stored by all that it depends on: what
the page has of its own, and what all pages share (style sheets, scripts, axe, the browser, the checks). It is made again
when any of that is different.

A store that is new, as in a fresh clone, takes the pages outside the sample as they are. So this is promised. Always:
one page of every kind, and two papers of every part, are looked at in every width and scheme, with the sidebars that they
have now. From the second run on: so is, at one width a scheme, every page that is new, or whose content, style sheets or
scripts are not what they were. What only a browser can tell of the other pages of a fresh clone (nothing is too wide, axe
is content) is promised by their likeness to the sample; all else was checked when the site was built.
"""

import hashlib
import os
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
# Of the papers of a part; of other pages alike, one.
PAPERS_OF_A_PART = 2


@dataclass(frozen=True)
class Visit:
    """A page that is looked at."""

    page: str
    width: int
    scheme: str
    # Whether its page is one of the sample.
    sampled: bool
    # Of all that it depends on.
    digest: str

    def __str__(self):
        return f"{self.page} at {self.width}, {self.scheme}"


def kind(page: str, papers: Collection[str]) -> str:
    """Which pages are made alike: the papers of a part, modules in the reference, source code, how-to pages."""
    folder, _, name = page.rpartition("/")
    if page in papers:
        return f"paper of {folder}"
    if folder in ("", "api") or name == "index":
        return page
    return f"{folder.split('/')[0]}, {page.count('/')} deep"


def sample(pages: Iterable[str], papers: Collection[str]) -> set[str]:
    """The pages that are looked at in any case."""
    alike: dict[str, list[str]] = {}
    for page in sorted(pages):
        alike.setdefault(kind(page, papers), []).append(page)
    return {page for some in alike.values() for page in some[: PAPERS_OF_A_PART if some[0] in papers else 1]}


def visits(site: Path, pages: Collection[str], thorough: Collection[str], shared: str) -> list[Visit]:
    """Every visit to the pages of a site, whether it was made before or not.

    Args:
        site: its folder.
        pages: its pages.
        thorough: those looked at in every width and scheme, with their sidebars; the others at one width a scheme.
        shared: a digest of what all pages share.
    """
    found = []
    for page in sorted(pages):
        content = (site / f"{page}.html").read_text(encoding="utf-8")
        content = content if page in thorough else own(content)
        for (i, width), (j, scheme) in product(enumerate(WIDTHS), enumerate(SCHEMES)):
            if page in thorough or (i + j + zlib.crc32(page.encode())) % 2 == 0:
                digest = _hash(shared, page, str(width), scheme, content)
                found.append(Visit(page, width, scheme, page in thorough, digest))
    return found


def own(content: str) -> str:
    """What a page's HTML has of its own: sidebars, and the links to its neighbours, change with other pages."""
    article = LexborHTMLParser(content).css_first("article")
    return article.html or "" if article else content


def shared(site: Path, code: Iterable[Path], versions: Iterable[str]) -> str:
    """A digest of what all pages share: style sheets, scripts, and what looks at them."""
    files = sorted(path for path in (site / "_static").rglob("*") if path.suffix in (".css", ".js"))
    return _hash(
        *versions, *(str(path.relative_to(site)) for path in files), *(each.read_bytes() for each in [*files, *code])
    )


class Store:
    """The visits that found nothing wrong, one file each."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, visits: Iterable[Visit]) -> None:
        """Take all pages outside the sample as they are, if the store is new."""
        mark = self.folder / "begun"
        if not mark.is_file():
            for visit in visits:
                if not visit.sampled:
                    self.add(visit)
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def knows(self, visit: Visit) -> bool:
        """Whether it need not be made."""
        return (self.folder / visit.digest).is_file()

    def add(self, visit: Visit) -> None:
        """Remember a visit that found nothing wrong."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: two that write it write the same.
        part = self.folder / f".{visit.digest}.{os.getpid()}"
        part.write_text(f"{visit}\n")
        part.replace(self.folder / visit.digest)


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()[:24]
