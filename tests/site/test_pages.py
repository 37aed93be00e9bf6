"""Every page of the site, however many there are: each is opened once at a width and a colour scheme, and looked at."""

import re
from collections import defaultdict
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

# The site is built once, so whoever builds it looks at all of it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

ROOT = Path(__file__).parents[2]
PAPERS = sorted(f"{path.parent.name}/{path.stem}" for path in ROOT.glob("notebooks/*/*.py"))
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
# Pages alike, of which so many are opened at every width in every scheme, the others twice.
SAMPLE = 2
# Kept for people to look at.
SHOTS = ROOT / "_build" / "screenshots"
SHOWN = {"intro", "gallery", "scoreboard", "roadmap", "api/index", *PAPERS[:1]}

FORMULAS = """() => {
    const text = document.querySelector('main').cloneNode(true);
    text.querySelectorAll('pre, code, script, mjx-container').forEach(e => e.remove());
    return {
        sources: document.querySelectorAll('span.math, div.math').length,
        rendered: document.querySelectorAll('mjx-container').length,
        errors: document.querySelectorAll('mjx-merror').length,
        hidden: [...document.querySelectorAll('div.math > mjx-container')].filter(e =>
            e.firstElementChild.getBoundingClientRect().left < e.getBoundingClientRect().left - 1).length,
        text: text.textContent,
    };
}"""
IMAGES = """() => [...document.querySelectorAll('main img')].map(i =>
    [i.complete && i.naturalWidth > 0, i.alt, i.getBoundingClientRect().width])"""
BARE = """() => [...document.querySelectorAll('main figure:not(.lossbook-map)')].filter(e =>
    !(e.querySelector('figcaption')?.textContent.trim().length > 20)).map(e => e.outerHTML.slice(0, 200))"""
# What is wider than the screen must scroll in a box of its own.
WIDE = """width => [...document.querySelectorAll('main *')].filter(e => {
    if (e.getBoundingClientRect().right <= width + 1 || e.closest('mjx-assistive-mml, .headerlink, .copybtn')) return false;
    for (let p = e; p && p.tagName !== 'MAIN'; p = p.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
    return true;
}).map(e => e.outerHTML.slice(0, 120))"""
VERDICTS = """() => {
    const luminance = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
        return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
    return [...document.querySelectorAll('.lossbook-verdict')].map(e => { const s = getComputedStyle(e);
        const [a, b] = [luminance(s.color), luminance(s.backgroundColor)].sort((x, y) => y - x);
        return [e.textContent, (a + 0.05) / (b + 0.05)] });
}"""

# Axe would take most of its time for thousands of words of code and signs of formulas that are coloured alike: the first
# of each colour stays, the others become plain text.
THIN = """() => {
    const seen = new Set(), alike = [];
    // All are looked at before any is changed: styles would be computed anew each time.
    for (const e of document.querySelectorAll('pre span, mjx-container')) {
        const like = [e.tagName, e.className, getComputedStyle(e).color, e.closest('div')?.className].join();
        if (seen.has(like)) alike.push(e);
        else seen.add(like);
    }
    for (const e of alike) e.replaceWith(e.tagName === 'SPAN' ? e.textContent : 'x');
}"""


@dataclass(frozen=True)
class Visit:
    """What was seen of a page at one width in one colour scheme."""

    name: str
    width: int
    scheme: str
    theme: str
    complaints: list
    outside: list
    formulas: dict
    images: list
    bare: list
    scrolls: bool
    wide: list
    verdicts: list
    violations: list

    def __str__(self):
        return f"{self.name} at {self.width}, {self.scheme}"


def kind(name: str) -> str:
    """Which pages are made alike: the papers, the API's, the how-to pages; every other page is a kind of its own."""
    if name in PAPERS:
        return "paper"
    return name.split("/")[0] if "/" in name and not name.endswith("/index") else name


def combinations(names: list[str]):
    """Each page in both schemes, at both widths; of many pages alike, most at one width a scheme, in turn."""
    seen = defaultdict(int)
    for name in names:
        number = seen[kind(name)]
        seen[kind(name)] += 1
        for (i, width), (j, scheme) in product(enumerate(WIDTHS), enumerate(SCHEMES)):
            if number < SAMPLE or (i + j + number) % 2 == 0:
                yield name, width, scheme


def look(page, name: str, width: int, scheme: str, violations) -> Visit:
    # Pictures further down are there before they are looked at.
    page.evaluate("""Promise.all([...document.images].map(image => {
        image.loading = 'eager'; return image.decode().catch(() => null); }))""")
    seen = {
        "theme": page.evaluate("document.documentElement.dataset.theme"),
        "formulas": page.evaluate(FORMULAS),
        "images": page.evaluate(IMAGES),
        "bare": page.evaluate(BARE),
        "scrolls": page.evaluate("document.documentElement.scrollWidth") > width,
        "wide": page.evaluate(WIDE, width),
        "verdicts": page.evaluate(VERDICTS),
    }
    # Axe reads style sheets in its own way; what it asks for is not the page's doing.
    complaints = [*page.complaints]
    outside = [url for url in page.requests if not url.startswith((page.base, "data:", "blob:"))]
    if name in SHOWN:
        page.screenshot(path=SHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png", full_page=True)
    page.evaluate(THIN)
    seen["violations"] = violations(page)
    return Visit(name, width, scheme, complaints=complaints, outside=outside, **seen)


@pytest.fixture(scope="session")
def visits(names, contexts, address, visit, violations) -> list[Visit]:
    """Every page, opened."""
    made = []
    for name, width, scheme in combinations(names):
        page = visit(contexts(width, scheme), address, name)
        made.append(look(page, name, width, scheme, violations))
        page.close()
    return made


def faults(visits, of) -> dict:
    """What `of` finds wrong, by visit; pytest shows it when it should have been nothing."""
    return {str(visit): wrong for visit in visits if (wrong := of(visit))}


def test_every_page_was_looked_at_in_both_schemes(visits, names):
    assert {name for name in PAPERS} <= set(names)
    for scheme in SCHEMES:
        assert {visit.name for visit in visits if visit.scheme == scheme} == set(names)
    assert all(visit.theme == visit.scheme for visit in visits)
    assert {visit.width for visit in visits} == set(WIDTHS)


def test_nothing_is_complained_of(visits):
    assert faults(visits, lambda visit: visit.complaints) == {}


def test_nothing_leaves_this_machine(visits):
    assert faults(visits, lambda visit: visit.outside) == {}


def test_axe_finds_nothing(visits):
    assert faults(visits, lambda visit: visit.violations) == {}


def test_axe_would_find_something(open_page, violations):
    page = open_page("intro")
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=\"_static/logo.svg\">')")
    assert [violation.split(":")[0] for violation in violations(page)] == ["image-alt"]


def test_formulas_are_rendered(visits):
    def wrong(visit):
        found = visit.formulas
        # Nothing that looks like TeX was left in the text.
        left = re.search(r".{0,40}(\\[a-zA-Z]+\{|\$\$|\{eq\}|\{cite).{0,40}", found["text"])
        few = visit.name in PAPERS and found["sources"] <= 10
        if found["rendered"] != found["sources"] or found["errors"] or left or few:
            return {**found, "text": left and left[0]}

    assert faults(visits, wrong) == {}


def test_wide_formulas_start_at_their_left_end(visits):
    assert faults(visits, lambda visit: visit.formulas["hidden"]) == {}


def test_pictures_are_loaded_and_described(visits):
    def wrong(visit):
        few = visit.name in PAPERS and len(visit.images) < 2
        bad = [image for image in visit.images if not (image[0] and len(image[1]) > 20 and image[2] > 100)]
        return bad or (few and "too few")

    assert faults(visits, wrong) == {}


def test_figures_have_captions(visits):
    assert faults(visits, lambda visit: visit.bare) == {}


def test_pages_do_not_scroll_sideways(visits):
    assert faults(visits, lambda visit: visit.scrolls or visit.wide) == {}


def test_verdicts_are_words_that_can_be_read(visits):
    """Label and background differ by the contrast that WCAG asks of small text."""
    assert faults(visits, lambda visit: visit.name in PAPERS and not visit.verdicts) == {}
    assert (
        faults(visits, lambda visit: [v for v in visit.verdicts if v[1] < 4.5 or not re.search("[a-z]{4}", v[0])]) == {}
    )


def test_screenshots_are_kept(visits, names):
    for name, width, scheme in product(SHOWN & set(names), WIDTHS, SCHEMES):
        assert (SHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png").stat().st_size > 10_000


class Links(HTMLParser):
    """The links and anchors of a page, and what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.loads = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("script", "img", "iframe") and attributes.get("src"):
            self.loads.append(attributes["src"])
        if tag == "link" and attributes.get("href") and attributes.get("rel") != "canonical":
            self.loads.append(attributes["href"])


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    lost = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            if urlsplit(link).scheme:
                continue
            target, anchor = urldefrag(link)
            there = (path.parent / unquote(target.split("?")[0])).resolve() if target else path
            if not there.is_file() or (anchor and there in pages and unquote(anchor) not in pages[there].anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        assert [url for url in Links(path).loads if urlsplit(url).scheme not in ("", "data")] == []


def test_every_notebook_has_a_page_that_ran(site):
    for paper in PAPERS:
        text = (site / f"{paper}.html").read_text(encoding="utf-8")
        assert "did not finish" not in text and "This run" in text and "lossbook-entry" in text
