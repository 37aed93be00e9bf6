"""What a reader does with the site: fold, copy, search, switch the theme, download, walk by keyboard, print."""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pandas
import pytest

from lossbook.press.site.server import server

# The site is built once, so whoever builds it looks at all of it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

ROOT = Path(__file__).parents[2]
PAPERS = sorted(
    path.relative_to(ROOT / "notebooks").with_suffix("").as_posix() for path in ROOT.glob("notebooks/*/*.py")
)
PAPER = PAPERS[0]
# What has the focus, and whether it shows it.
FOCUS = """() => {
    const e = document.activeElement;
    if (!e || e === document.body) return null;
    // An arrow within the element may show it instead.
    const all = [e, ...e.children], outlined = e => { const s = getComputedStyle(e);
        return (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0) || s.boxShadow !== 'none'; };
    return { name: (e.getAttribute('aria-label') || e.title || e.textContent || e.id).trim().slice(0, 60),
             tag: e.tagName, path: e.className + ' ' + (e.getAttribute('href') || ''),
             shown: all.some(outlined),
             visible: e.checkVisibility({opacityProperty: true, visibilityProperty: true})
                 && all.some(e => e.getBoundingClientRect().width > 0) };
}"""


def press(page, key: str, until: str, most: int = 60) -> None:
    """Press a key until what has the focus matches a selector."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate("selector => document.activeElement.matches(selector)", until):
            return
    pytest.fail(f"{most} times {key} never reached {until}")


@pytest.mark.parametrize("paper", PAPERS[:3])
def test_what_is_folded_opens_by_keyboard_and_by_mouse(open_page, paper):
    page = open_page(paper)
    folded = page.locator("main details")
    assert folded.count() >= 1
    for number in (0, folded.count() - 1):
        one = folded.nth(number)
        before = one.evaluate("e => e.open")
        one.locator("> summary").focus()
        page.keyboard.press("Enter")
        assert one.evaluate("e => e.open") is not before
        one.locator("> summary").click()
        assert one.evaluate("e => e.open") is before


def test_copy_buttons_copy_the_code_alone(open_page, context):
    page = open_page(PAPER, context=context)
    cell = page.locator("div.cell_input div.highlight, div.highlight-sh div.highlight").locator("visible=true").first
    code = cell.locator("pre").inner_text()
    button = cell.locator("button.copybtn")
    button.focus()
    assert button.evaluate("e => e.getAttribute('aria-label') || e.title || e.dataset.tooltip")
    page.wait_for_function("e => getComputedStyle(e).opacity === '1'", arg=button.element_handle())
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()").strip() == code.strip()
    assert page.complaints == []


def test_the_theme_switch_is_remembered_and_keeps_the_focus(open_page, context):
    page = open_page("intro", context=context)
    root = page.locator("html")
    assert root.get_attribute("data-theme") == "light"
    page.locator(".theme-switch-button").first.focus()
    for _ in range(3):
        page.keyboard.press("Enter")
        page.wait_for_timeout(50)
        assert page.evaluate("document.activeElement.matches('.theme-switch-button')")
        if root.get_attribute("data-mode") == "dark":
            break
    assert root.get_attribute("data-theme") == "dark"
    for name in ("reading", PAPER):
        assert open_page(name, context=context).locator("html").get_attribute("data-theme") == "dark"
    page.emulate_media(color_scheme="dark")
    assert root.get_attribute("data-theme") == "dark"


def test_a_printed_page_is_white_whatever_the_theme(open_page):
    page = open_page(PAPER, scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    seen = page.locator(".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .copybtn, .prev-next-footer")
    assert seen.locator("visible=true").count() == 0
    torn = page.evaluate("""() => [...document.querySelectorAll('main pre')].filter(e => e.checkVisibility()
        && (getComputedStyle(e).whiteSpace !== 'pre-wrap' || e.scrollWidth > e.clientWidth + 1)).length""")
    assert torn == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("html").get_attribute("data-theme") == "dark"


@pytest.fixture(params=["http", "file"])
def base(request, address, site):
    """Where the site is read: served, or opened from the disk."""
    return address if request.param == "http" else f"{site.as_uri()}/"


@pytest.mark.parametrize(
    ("query", "page_found"),
    [
        ("how to read a page", "reading"),
        ("temperature", "contrastive/temperature_free_infonce"),
        ("tau", ""),
        ("info_nce", ""),
    ],
)
def test_the_search_finds_titles_symbols_and_functions(open_page, base, query, page_found):
    page = open_page("intro", base=base)
    page.keyboard.press("Control+k")
    page.locator("#pst-search-dialog input").wait_for(state="visible")
    page.keyboard.type(query)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=*")
    # Results come one after the other.
    page.wait_for_function(
        "part => [...document.querySelectorAll('#search-results ul.search li a')].some(a => a.href.includes(part))",
        arg=page_found,
    )
    found = page.locator("#search-results ul.search li a").evaluate_all("all => all.map(a => a.href)")
    assert any(f"/{page_found}" in url for url in found) and all(url.startswith(base) for url in found), found
    page.locator("#search-results ul.search li a").first.click()
    page.locator("main h1").first.wait_for()
    # Leaving a page stops what it still asks for.
    assert [text for text in page.complaints if "ERR_ABORTED" not in text] == []


def test_the_front_page_by_keyboard_alone(open_page):
    page = open_page("intro")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS)["name"] == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")
    page.reload()
    seen = []
    for _ in range(300):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus is None:
            break
        seen.append(focus)
    else:
        pytest.fail("the focus never leaves the page")
    assert [focus for focus in seen if not (focus["shown"] and focus["visible"] and focus["name"])] == []
    links = page.evaluate(
        "[...document.querySelectorAll('main a[href]:not(.headerlink)')].filter(e => e.checkVisibility({visibilityProperty: true})).length"
    )
    assert sum(focus["tag"] == "A" for focus in seen) >= links > 0
    assert any("theme-switch-button" in focus["path"] for focus in seen)


def test_the_search_dialog_closes_with_escape(open_page):
    page = open_page("intro")
    press(page, "Tab", ".search-button-field")
    page.keyboard.press("Enter")
    dialog = page.locator("#pst-search-dialog")
    assert dialog.evaluate("e => e.open") and page.evaluate("document.activeElement.name") == "q"
    page.keyboard.press("Escape")
    assert not dialog.evaluate("e => e.open")
    assert page.evaluate("document.activeElement.matches('.search-button-field')")


def test_the_sidebars_open_and_close_by_keyboard(open_page):
    phone = open_page(PAPER, width=390)
    for which in ("primary", "secondary"):
        press(phone, "Tab", f".{which}-toggle")
        phone.keyboard.press("Enter")
        dialog = phone.locator(f"#pst-{which}-sidebar-modal")
        assert dialog.evaluate("e => e.open")
        phone.keyboard.press("Tab")
        assert dialog.evaluate("e => e.contains(document.activeElement)")
        phone.keyboard.press("Escape")
        assert not dialog.evaluate("e => e.open")
        assert phone.evaluate(f"document.activeElement.matches('.{which}-toggle')")
    wide = open_page(PAPER)
    press(wide, "Tab", ".primary-toggle")
    for hidden in (True, False):
        wide.keyboard.press("Enter")
        wide.wait_for_timeout(600)
        assert (
            wide.locator("#pst-primary-sidebar").evaluate("e => getComputedStyle(e).visibility === 'hidden'") is hidden
        )
        assert wide.evaluate("document.activeElement.matches('.primary-toggle')")


def test_lines_stay_readable_on_a_wide_screen(open_page):
    page = open_page("reading", width=1920)
    widest = page.evaluate("""() => Math.max(...[...document.querySelectorAll('main article p')].map(p =>
        p.getBoundingClientRect().width / parseFloat(getComputedStyle(p).fontSize)))""")
    assert 30 < widest <= 60  # em; an em is about two letters


def test_nothing_moves_for_those_who_ask(open_page):
    page = open_page("intro")
    page.emulate_media(reduced_motion="reduce")
    moving = page.evaluate("""() => [...document.querySelectorAll('*')].filter(e =>
        getComputedStyle(e).transitionDuration.split(', ').some(d => parseFloat(d) > 0.001)).map(e => e.className)""")
    assert moving == []
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_what_is_downloaded_can_be_used(open_page, context, tmp_path):
    page = open_page(PAPER, context=context)
    files = {}
    for link in page.locator("main a[download]").all():
        with page.expect_download() as begun:
            link.click()
        path = tmp_path / begun.value.suggested_filename
        begun.value.save_as(path)
        files[path.suffix] = path
    assert {".py", ".ipynb"} <= set(files)
    notebook = nbformat.read(files[".ipynb"], as_version=4)
    nbformat.validate(notebook)
    assert any(cell.get("outputs") for cell in notebook.cells)
    if ".csv" in files:
        table = pandas.read_csv(files[".csv"])
        assert len(table) > 1 and not table.columns.duplicated().any()
    # The script is the whole notebook: in an otherwise empty project it runs.
    project = tmp_path / "project"
    part = project / "notebooks" / Path(PAPER).parent
    part.mkdir(parents=True)
    (project / "_config.yml").write_text("title: empty\n")
    shutil.copy(files[".py"], part / f"{Path(PAPER).name}.py")
    command = [
        sys.executable,
        "-m",
        "lossbook.press",
        "--root",
        str(project),
        "run",
        Path(PAPER).name,
        "--profile",
        "smoke",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_site_works_under_a_path_and_from_the_disk(open_page, names, site, tmp_path):
    (tmp_path / "index.html").write_text("")
    (tmp_path / "lossbook").symlink_to(site)
    some = [name for name in ("intro", "gallery", "scoreboard", "references", "api/index", PAPER) if name in names]
    with server(tmp_path, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        bases = f"http://127.0.0.1:{serving.server_address[1]}/lossbook/", f"{site.as_uri()}/"
        for base in bases:
            for name in some:
                page = open_page(name, base=base)
                assert page.complaints == []
                assert [url for url in page.requests if not url.startswith((base, "data:", "blob:"))] == []
                assert page.evaluate("[...document.styleSheets].length") >= 5
            link = page.locator(".bd-links a").nth(1)
            place = link.evaluate("a => a.href")
            link.click()
            page.wait_for_url(place)
            assert page.url.startswith(base) and page.locator("main h1").count()
        serving.shutdown()


def test_every_page_can_be_reached_from_the_front_page(site, names):
    """By links alone; the page that shows what a search found is reached by the search field."""
    reached, new = set(), {"intro"}
    while new:
        reached |= new
        found = set()
        for name in new:
            path = site / f"{name}.html"
            for href in re.findall(r'<a\b[^>]*?\bhref=["\']([^"\'#?]+\.html)', path.read_text(encoding="utf-8")):
                there = (path.parent / href).resolve()
                if "://" not in href and there.is_relative_to(site.resolve()):
                    found.add(there.relative_to(site.resolve()).with_suffix("").as_posix())
        new = (found & set(names)) - reached
    lost = set(names) - reached - {"search"}
    assert sorted(lost) == []


def test_no_paper_is_left_out_of_the_index_of_the_search(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)\s*", text, re.DOTALL)[1])
    assert {*PAPERS} <= set(index["docnames"])
