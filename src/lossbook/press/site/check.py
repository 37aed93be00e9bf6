"""What can be said of the pages of a built site without a browser, and is said whenever it was built.

Each page is parsed once and judged by itself; what it links to is looked up among the other pages. What was found is
kept by the page's content, so that after an edit only the pages are parsed that it changed.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from selectolax.lexbor import LexborHTMLParser, LexborNode

from lossbook.press.errors import PressError
from lossbook.press.files import write_whole
from lossbook.press.project import Project

# Letters that an alternative text or a caption has at least.
SHORT = 20
# CSS pixels that a picture is wide and high at least.
SMALL = 100
# Bytes that a page has at most; the reference of a module is one page, however long.
LARGE, LARGE_REFERENCE = 1_000_000, 2_500_000
# What a browser fetches of its own accord, by element, with the attribute that says from where.
LOADS = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "embed": ("src",), "object": ("data",),
    "audio": ("src",), "video": ("src", "poster"), "source": ("src", "srcset"), "track": ("src",), "image": ("href",),
}  # fmt: skip
# Links in the head that only tell of another page.
TELLING = {"alternate", "author", "canonical", "index", "license", "next", "prev", "search"}
# TeX, or a role of MyST, in what should be readable text.
TEX = re.compile(r".{0,40}(?:\\[a-zA-Z]+\{|\$\$|\{eq\}|\{cite).{0,40}")
FROM_OUTSIDE = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""")

Page = LexborHTMLParser


@dataclass(frozen=True)
class Found:
    """What was found in a page."""

    digest: str
    # What is wrong, whatever other pages are like.
    complaints: list[str]
    # Where links may lead to, and where its own do: `page.html#anchor`, seen from the root of the site.
    anchors: list[str]
    links: list[str]


def check(project: Project) -> list[str]:
    """Everything that is wrong with the pages of the finished site, one line each, `page NAME: what`.

    Raises:
        PressError: if there is no site.
    """
    site, kept = project.site, project.output / "checks.json"
    if not (site / "index.html").is_file():
        raise PressError(f"there is no site in {site}; lossbook build makes it")
    known = _read(kept)
    found = {}
    for path in sorted(site.rglob("*.html")):
        name, content = path.relative_to(site).as_posix(), path.read_bytes()
        # What extensions bring along is none of the book's pages.
        if not name.startswith("_static/"):
            digest = hashlib.sha256(content).hexdigest()
            same = known.get(name)
            found[name] = same if same and same.digest == digest else examine(name, content, digest)
    _write(kept, found)
    complaints = [(page.removesuffix(".html"), words) for page, each in found.items() for words in each.complaints]
    complaints += [(page.removesuffix(".html"), words) for page, words in _lost(site, found)]
    pages: dict[str, list[str]] = {}
    for page, words in complaints:
        pages.setdefault(words, []).append(page)
    # What is wrong in a sidebar is wrong everywhere.
    more = {words: f" and {len(where) - 1} more" if len(where) > 1 else "" for words, where in pages.items()}
    return sorted(f"page {where[0]}{more[words]}: {words}" for words, where in pages.items()) + list(_styles(site))


def examine(name: str, content: bytes, digest: str = "") -> Found:
    """Look at one page, called `name` (`contrastive/paper.html`)."""
    page = LexborHTMLParser(content)
    if page.css_first('meta[http-equiv="Refresh" i]'):
        # It shows nothing, and sends its readers elsewhere.
        return Found(digest, [], [], [])
    anchors = {node.attributes.get(key) for key in ("id", "name") for node in page.css(f"[{key}]")}
    links = sorted({*_links(name, page)})
    complaints = [*_too_large(name, content)]
    for rule in RULES:
        complaints += rule(page)
    return Found(digest, complaints, sorted(filter(None, anchors)), links)


def _too_large(name: str, content: bytes) -> Iterator[str]:
    most = LARGE_REFERENCE if name.startswith("api/") else LARGE
    if len(content) > most:
        yield f"it has {len(content):,} bytes, more than {most:,}"


def names_itself(page: Page) -> Iterator[str]:
    """It has a language and a title."""
    root, title = page.css_first("html"), page.css_first("head > title")
    if not (root and root.attributes.get("lang")):
        yield "it does not say its language"
    if not (title and title.text().strip()):
        yield "it has no title"


def ids_are_unique(page: Page) -> Iterator[str]:
    """No two elements have the same id."""
    seen: set[str | None] = set()
    for node in page.css("[id]"):
        if (id := node.attributes["id"]) in seen:
            yield f"two elements have the id {id}"
        seen.add(id)


def headings_are_in_order(page: Page) -> Iterator[str]:
    """One heading of the first level, before all others; none is a level too deep."""
    headings = [(int((node.tag or "")[1:]), _text(node)) for node in page.css("main :is(h1, h2, h3, h4, h5, h6)")]
    if [level for level, _ in headings].count(1) != 1 or headings[0][0] != 1:
        yield "it does not open with its only heading of the first level"
    for (level, _), (next_level, text) in pairwise(headings):
        if next_level > level + 1:
            yield f"the heading {text!r} is of level {next_level}, after one of level {level}"
    for _, text in headings:
        if not text.strip("#"):
            yield "a heading is empty"


def formulas_are_rendered(page: Page) -> Iterator[str]:
    """Every formula is MathJax's HTML."""
    for node in page.css("span.math, div.math"):
        if len(node.css("mjx-container")) != 1:
            yield f"a formula was not rendered: {_text(node)[:80]}"
    for node in page.css("mjx-merror"):
        yield f"a formula has an error: {_text(node)[:80]}"


def pictures_are_described(page: Page) -> Iterator[str]:
    """Pictures of the text have an alternative text and say their size, so that nothing moves when they come."""
    for node in page.css("main img"):
        source, alt = node.attributes.get("src") or "", (node.attributes.get("alt") or "").strip()
        shown = "in the page" if source.startswith("data:") else source
        if len(alt) < SHORT or alt == source:
            yield f"the picture {shown} has no alternative text of {SHORT} letters: {alt!r}"
        sizes = [node.attributes.get(side) or "" for side in ("width", "height")]
        if not all(size.isdecimal() and int(size) >= SMALL for size in sizes):
            yield f"the picture {shown} does not say a width and a height of {SMALL} or more"


def figures_have_captions(page: Page) -> Iterator[str]:
    """Figures say in words what they show; the map of the book is its own caption."""
    for node in page.css("main figure:not(.lossbook-map)"):
        caption = node.css_first("figcaption")
        if not caption or len(_text(caption)) < SHORT:
            yield f"a figure has no caption of {SHORT} letters: {_text(node)[:80]!r}"


def what_can_be_pressed_has_a_name(page: Page) -> Iterator[str]:
    """Links and buttons say what they are."""
    for node in page.css("a[href], button, summary"):
        told = any(node.attributes.get(key) for key in ("aria-label", "aria-labelledby", "title"))
        if not told and not _text(node) and not any(image.attributes.get("alt") for image in node.css("img")):
            yield f"a link or button has no name: {node.html[:120] if node.html else node.tag}"


def verdicts_are_words(page: Page) -> Iterator[str]:
    """No verdict is a colour alone."""
    for node in page.css(".lossbook-verdict"):
        words = re.findall(r"\blossbook-(?!verdict\b)([\w-]+)", node.attributes["class"] or "")
        if not words or not all(word.replace("-", " ") in _text(node) for word in words):
            yield f"a verdict does not say {' '.join(words) or 'any'}: {_text(node)!r}"


def nothing_comes_from_outside(page: Page) -> Iterator[str]:
    """A browser that shows it asks nobody else for anything."""
    styles = [node.text() for node in page.css("style")]
    styles += [node.attributes["style"] or "" for node in page.css("[style]")]
    outside = [url for style in styles for url in FROM_OUTSIDE.findall(style)]
    outside += [url for url in _loads(page) if urlsplit(url).scheme not in ("", "data") or url.startswith("//")]
    for url in outside:
        yield f"it loads {url}"


def no_tex_is_left(page: Page) -> Iterator[str]:
    """Nothing in the text looks like TeX or a role that nobody understood."""
    main = page.css_first("main")
    if not main:
        yield "it has no main part"
        return
    for node in main.css("pre, code, script, style, template, textarea, mjx-container"):
        node.decompose()
    if left := TEX.search(" ".join(main.text(separator=" ").split())):
        yield f"TeX or markup was left in the text: {left[0]}"


# The last one takes out of the page what may have TeX in it.
RULES = (
    names_itself,
    ids_are_unique,
    headings_are_in_order,
    formulas_are_rendered,
    pictures_are_described,
    figures_have_captions,
    what_can_be_pressed_has_a_name,
    verdicts_are_words,
    nothing_comes_from_outside,
    no_tex_is_left,
)


def _text(node: LexborNode) -> str:
    return " ".join(node.text().split())


def _loads(page: Page) -> Iterator[str]:
    """Every address that the browser fetches of its own accord."""
    for node in page.css("link[href]"):
        if not TELLING & {*(node.attributes.get("rel") or "").split()}:
            yield node.attributes["href"] or ""
    for node in page.css(", ".join(f"{tag}[{key}]" for tag, keys in LOADS.items() for key in keys)):
        for key in LOADS[node.tag or ""]:
            value = node.attributes.get(key) or ""
            # Of several sizes of a picture each has an address, before its size.
            yield from (part.split()[0] for part in value.split(",") if part.strip()) if key == "srcset" else [value]


def _links(name: str, page: Page) -> Iterator[str]:
    """Where links and loads within the site lead, `page.html#anchor`."""
    links = [node.attributes["href"] or "" for node in page.css("a[href], area[href], link[href]")]
    for link in [*links, *_loads(page)]:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc and link:
            path = posixpath.normpath(
                posixpath.join(posixpath.dirname(name), unquote(parts.path) or posixpath.basename(name))
            )
            yield f"{path}#{unquote(parts.fragment)}" if parts.fragment else path


def _lost(site: Path, found: Mapping[str, Found]) -> Iterator[tuple[str, str]]:
    """Pages and what they link to in vain."""
    anchors = {name: {*each.anchors} for name, each in found.items()}
    files: dict[str, str] = {}
    for page, each in found.items():
        for link in each.links:
            name, _, anchor = link.partition("#")
            if name not in files:
                files[name] = "" if name in found else _unusable(site / name)
            if files[name]:
                yield page, f"it needs {name}, which {files[name]}"
            elif anchor and name in anchors and anchor not in anchors[name]:
                yield page, f"it links to {link}, and nothing there is called so"


def _unusable(path: Path) -> str:
    """What is wrong with a file that a page links to or shows."""
    if not path.is_file():
        return "is not there"
    mark = {".png": b"\x89PNG", ".svg": b"<svg"}.get(path.suffix, b"")
    with open(path, "rb") as file:
        return "" if mark in file.read(2000) else "is no picture"


def _styles(site: Path) -> Iterator[str]:
    """Style sheets that load something from elsewhere."""
    for path in sorted(site.rglob("*.css")):
        for url in FROM_OUTSIDE.findall(path.read_text(encoding="utf-8", errors="replace")):
            yield f"style sheet {path.relative_to(site)}: it loads {url}"


def _version() -> str:
    """Of the rules: what others found counts for nothing."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _read(path: Path) -> dict[str, Found]:
    """What the last check found, by page."""
    try:
        kept = json.loads(path.read_bytes())
        return {name: Found(**each) for name, each in kept["pages"].items()} if kept["rules"] == _version() else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _write(path: Path, found: Mapping[str, Found]) -> None:
    pages = {name: asdict(each) for name, each in found.items()}
    write_whole(path, json.dumps({"rules": _version(), "pages": pages}, ensure_ascii=False))
