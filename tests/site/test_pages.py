"""Pages in a browser: as `visits` chooses them, each at a width and a colour scheme.

What can be said of a page without a browser is said by the build, of every page; see `lossbook.press.site.check`.
"""

import os
from importlib.metadata import version
from pathlib import Path

import pytest
import visits
from filelock import FileLock

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAPERS = sorted(f"{path.parent.name}/{path.stem}" for path in ROOT.glob("notebooks/*/*.py"))
# Visits are dealt to so many tests, which any worker may take.
SHARES = 12
STORE = visits.Store(ROOT / "_build" / "visits")
# Kept for people to look at.
SHOTS = ROOT / "_build" / "screenshots"
SHOWN = {"intro", "gallery", "scoreboard", "roadmap", "api/index", *PAPERS[:1]}

# Pictures further down are there before they are looked at.
LOAD = """Promise.all([...document.images].map(image => {
    image.loading = 'eager'; return image.decode().catch(() => null); }))"""
# Of displayed formulas that are wider than their box, the left end must be in sight.
HIDDEN = """() => [...document.querySelectorAll('div.math > mjx-container')].filter(e =>
    e.firstElementChild.getBoundingClientRect().left < e.getBoundingClientRect().left - 1).map(e => e.outerHTML.slice(0, 120))"""
IMAGES = """() => [...document.querySelectorAll('main img')].filter(i =>
    !(i.complete && i.naturalWidth > 0 && i.getBoundingClientRect().width > 100)).map(i => i.outerHTML.slice(0, 200))"""
# What is wider than the screen must scroll in a box of its own.
WIDE = """width => [...document.querySelectorAll('main *')].filter(e => {
    if (e.getBoundingClientRect().right <= width + 1 || e.closest('mjx-assistive-mml, .headerlink, .copybtn')) return false;
    for (let p = e; p && p.tagName !== 'MAIN'; p = p.parentElement)
        if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
    return true;
}).map(e => e.outerHTML.slice(0, 120))"""


def look(page, visit: visits.Visit, violations) -> list[str]:
    """What is wrong with a page that was just opened."""
    page.evaluate(LOAD)
    # Before axe, which reads style sheets in its own way: what it asks for is not the page's doing.
    found = {
        "complains of": [*page.complaints],
        "asks elsewhere for": [url for url in page.requests if not url.startswith((page.base, "data:", "blob:"))],
        "has the theme": [
            theme for theme in [page.evaluate("document.documentElement.dataset.theme")] if theme != visit.scheme
        ],
        "hides the start of": page.evaluate(HIDDEN),
        "does not show": page.evaluate(IMAGES),
        "is too narrow for": page.evaluate(WIDE, visit.width),
    }
    width = page.evaluate("document.documentElement.scrollWidth")
    found["scrolls sideways, to"] = [width] if width > visit.width else []
    if visit.page in SHOWN:
        page.screenshot(path=SHOTS / f"{visit.page.replace('/', '-')}-{visit.width}-{visit.scheme}.png", full_page=True)
    found["breaks axe's rule"] = violations(page)
    return [f"{visit} {what} {each}" for what, some in found.items() for each in some]


@pytest.fixture(scope="session")
def planned(site, names, chosen_paper, browser) -> list[visits.Visit]:
    """The visits that there are, known or not; of one paper alone, if one was named."""
    code = [Path(__file__), Path(__file__).with_name("conftest.py"), Path(visits.__file__)]
    shared = visits.shared(site, code, [browser.version, version("axe-playwright-python"), version("playwright")])
    if chosen_paper:
        return visits.visits(site, [chosen_paper.page], [chosen_paper.page], shared)
    every = visits.visits(site, names, visits.sample(names, PAPERS), shared)
    STORE.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(STORE.folder / ".lock"):
        STORE.begin(every)
    return every


@pytest.mark.parametrize("share", range(SHARES))
def test_pages_in_the_browser(planned, share, contexts, address, visit, violations):
    wrong = []
    for each in planned[share::SHARES]:
        if STORE.knows(each) and os.environ.get("LOSSBOOK_VISITS") != "all":
            continue
        page = visit(contexts(each.width, each.scheme), address, each.page)
        found = look(page, each, violations)
        page.close()
        wrong += found
        if not found:
            STORE.add(each)
    assert wrong == []


# What makes the front page bad, and what is then said of it.
BAD = {
    "a picture without words": (
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=\"_static/logo.svg\" width=200>')",
        "breaks axe's rule image-alt",
    ),
    "pale text": (
        "document.querySelector('article p').innerHTML = '<span style=\"color: #bbb; background: #fff\">pale</span>'",
        "breaks axe's rule color-contrast",
    ),
    "a small target": (
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<button style=\"all: unset; font-size: 9px\">a"
        "</button><button style=\"all: unset; font-size: 9px\">b</button>')",
        "breaks axe's rule target-size",
    ),
    "a picture that is not there": (
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=nothing.png alt=\"nothing at all\">')",
        "does not show <img",
    ),
    "a table that is too wide": (
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<div style=\"width: 3000px\">wide</div>')",
        "is too narrow for <div",
    ),
    "a formula whose start is out of sight": (
        "document.querySelector('article').insertAdjacentHTML('beforeend', '<div class=math><mjx-container style=\"display: "
        "block\"><i style=\"position: relative; left: -50px\">x</i></mjx-container></div>')",
        "hides the start of <mjx-container",
    ),
    "a script that fails": ("setTimeout(() => { throw Error('so it is') })", "complains of so it is"),
    "a script that asks elsewhere": ("fetch('http://127.0.0.1:9/').catch(() => null)", "asks elsewhere for http://127.0.0.1:9/"),
    "another theme": ("document.documentElement.dataset.theme = 'dark'", "has the theme dark"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_is_bad_in_a_page_is_found(open_page, violations, bad):
    page = open_page("intro")
    script, words = BAD[bad]
    page.evaluate(script)
    found = look(page, visits.Visit("intro.html", 1280, "light", True, ""), violations)
    assert [text for text in found if words in text], found


def test_every_notebook_has_a_page_that_ran(site, chosen_paper):
    for name in [chosen_paper.page] if chosen_paper else PAPERS:
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert "did not finish" not in text and "This run" in text and "lossbook-entry" in text
        # A page of a paper derives something and shows it.
        assert text.count("<mjx-container") > 10 and text.count("<figure") >= 2
