import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAPERS = sorted(f"{path.parent.name}/{path.stem}" for path in ROOT.glob("notebooks/*/*.py"))
PAGES = ["intro", "reading", "scoreboard", "references", *PAPERS]
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(
    scope="module", params=[(page, width) for width in WIDTHS for page in PAGES], ids=lambda p: f"{p[0]}-{p[1]}"
)
def visited(request, browser, address):
    """A page open in the browser, what it asked for and what it complained of."""
    name, width = request.param
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 844})
    page = context.new_page()
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(f"{address}{name}.html", wait_until="load")
    page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => null) : null")
    # Pictures further down are there before they are looked at.
    page.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => null)))")
    page.name, page.address = name, address
    yield page
    context.close()


def test_nothing_is_complained_of(visited):
    assert visited.complaints == []


def test_nothing_leaves_this_machine(visited):
    assert visited.requests
    assert [url for url in visited.requests if not url.startswith((visited.address, "data:", "blob:"))] == []


def test_formulas_are_rendered(visited):
    sources = visited.locator("span.math, div.math").count()
    assert visited.locator("mjx-container").count() == sources
    assert visited.locator("mjx-merror").count() == 0
    if visited.name in PAPERS:
        assert sources > 10
    # Nothing that looks like TeX was left in the text.
    text = visited.locator("article").evaluate(
        "a => { const c = a.cloneNode(true); c.querySelectorAll('pre, code, script, mjx-container').forEach(e => e.remove()); return c.textContent }"
    )
    assert not re.search(r"\\[a-zA-Z]+\{|\$\$|\{eq\}|\{cite", text), re.search(
        r".{40}(\\[a-zA-Z]+\{|\$\$|\{eq\}|\{cite).{40}", text
    )


def test_pictures_are_loaded_and_described(visited):
    pictures = visited.evaluate(
        "[...document.querySelectorAll('article img')].map(i => [i.complete && i.naturalWidth > 0, i.alt, i.getBoundingClientRect().width])"
    )
    assert all(loaded and len(alt) > 20 and width > 100 for loaded, alt, width in pictures), pictures
    if visited.name in PAPERS:
        assert len(pictures) >= 2


def test_the_page_does_not_scroll_sideways(visited):
    width = visited.viewport_size["width"]
    assert visited.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than the screen must scroll in a box of its own.
    wide = visited.evaluate(
        """width => [...document.querySelectorAll('article *')].filter(e => {
            if (e.getBoundingClientRect().right <= width + 1 || e.closest('mjx-assistive-mml, .headerlink, .copybtn')) return false;
            for (let p = e; p && p.tagName !== 'ARTICLE'; p = p.parentElement)
                if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
            return true;
        }).map(e => e.outerHTML.slice(0, 120))""",
        width,
    )
    assert wide == []


def test_wide_formulas_start_at_their_left_end(visited):
    hidden = visited.evaluate(
        """[...document.querySelectorAll('div.math > mjx-container')].filter(e =>
            e.firstElementChild.getBoundingClientRect().left < e.getBoundingClientRect().left - 1).length"""
    )
    assert hidden == 0


def test_verdicts_are_words_that_can_be_read(visited):
    """Label and background differ by the contrast that WCAG asks of small text."""
    contrasts = visited.evaluate(
        """() => { const luminance = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
                return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
            const all = []; for (const theme of ['light', 'dark']) { document.documentElement.dataset.theme = theme;
                for (const e of document.querySelectorAll('.lossbook-verdict')) { const s = getComputedStyle(e);
                    const [a, b] = [luminance(s.color), luminance(s.backgroundColor)].sort((x, y) => y - x);
                    all.push([e.textContent, theme, (a + 0.05) / (b + 0.05)]) } } return all }"""
    )
    assert all(re.search(r"[a-z]{4}", text) and contrast >= 4.5 for text, _, contrast in contrasts), contrasts
    if visited.name != "references":
        assert contrasts


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
