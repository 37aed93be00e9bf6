"""The site of the real notebooks, built once at `smoke` by all workers together, and a browser for each."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from lossbook.press.site.server import server

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "_build" / "test"
CHROMIUM = os.environ.get("LOSSBOOK_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Contrast would take axe most of its time: of the texts with the same colours, size and weight, the first few are marked.
MARK = "data-looked-at"
MARK_SOME = """mark => {
    const seen = new Map();
    const back = e => {
        const found = [];
        for (; e; e = e.parentElement) {
            const s = getComputedStyle(e);
            if (s.backgroundImage !== "none") found.push(s.backgroundImage.slice(0, 80));
            if (s.backgroundColor !== "rgba(0, 0, 0, 0)") found.push(s.backgroundColor);
            if (s.backgroundColor.startsWith("rgb(")) break;
        }
        return found;
    };
    // All are looked at before any is changed: styles would be computed anew each time.
    const some = [...document.body.querySelectorAll("*")].filter(e => {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) return false;
        const s = getComputedStyle(e), like = [s.color, s.fontSize, s.fontWeight, s.opacity, back(e)].join();
        seen.set(like, (seen.get(like) ?? 0) + 1);
        return seen.get(like) <= 3;
    });
    for (const e of some) e.setAttribute(mark, "");
}"""
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]


@pytest.fixture(scope="session")
def site(chosen_paper, testrun_uid) -> Path:
    """The folder of the site, built by whichever worker asks first; of one paper alone, if one was named."""
    # A site built already can be looked at without building it again.
    if ready := os.environ.get("LOSSBOOK_SITE"):
        return Path(ready)
    BUILT.mkdir(parents=True, exist_ok=True)
    # The user's site stays as it is; runs are stored by all that decides them, so whoever made one, it counts.
    (ROOT / "_build" / "runs").mkdir(exist_ok=True)
    with FileLock(BUILT / ".first"):
        if not (BUILT / "runs").is_symlink():
            (BUILT / "runs").symlink_to("../runs", target_is_directory=True)
        said = BUILT / "said.json"
        if not said.is_file() or json.loads(said.read_text())["session"] != testrun_uid:
            only = ["--only", chosen_paper.slug] if chosen_paper else []
            command = [sys.executable, "-m", "lossbook.press", "--root", str(ROOT), "--output", str(BUILT)]
            done = subprocess.run([*command, "build", "--profile", "smoke", *only], capture_output=True, text=True)
            said.write_text(json.dumps({"session": testrun_uid, "status": done.returncode, "words": done.stderr}))
        built = json.loads(said.read_text())
    assert built["status"] == 0, built["words"]
    return BUILT / "html"


@pytest.fixture(scope="session")
def address(site: Path):
    """Where it is served."""
    with server(site, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/"
        serving.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Chromium."""
    if os.environ.get("LOSSBOOK_NO_BROWSER") == "1":
        pytest.skip("LOSSBOOK_NO_BROWSER=1")
    if not Path(CHROMIUM).is_file():
        pytest.fail(
            "the pages are tested in Chromium, which is missing: apt-get install chromium "
            "(or LOSSBOOK_CHROMIUM=path, or LOSSBOOK_NO_BROWSER=1 to go without)",
            pytrace=False,
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def names(site: Path) -> list[str]:
    """Every page of the site, as `open_page` takes it: `gallery`, `contrastive/temperature_free_infonce`."""
    found = (path.relative_to(site).with_suffix("") for path in site.rglob("*.html"))
    # `index` sends its readers to the front page.
    return sorted(name.as_posix() for name in found if name.parts[0] not in ("_static", "index"))


@pytest.fixture(scope="session")
def violations():
    """`violations(page)`: what axe finds against WCAG 2.2 A and AA on a page, as `rule: element: reason`."""
    from axe_playwright_python.base import AXE_SCRIPT
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe(f"{AXE_SCRIPT}; axe.configure({{rules: [{{id: 'color-contrast', selector: '[{MARK}]'}}]}})")

    def found(page) -> list[str]:
        page.evaluate(MARK_SOME, MARK)
        response = axe.run(page, options={"runOnly": WCAG, "resultTypes": ["violations"]}).response
        return [
            f"{rule['id']}: {node['html'][:160]}: {node['failureSummary']}"
            for rule in response["violations"]
            for node in rule["nodes"]
        ]

    return found


@pytest.fixture(scope="session")
def contexts(browser):
    """`contexts(width, scheme)`: a browser's window of that width and colour scheme, the same one for everybody."""
    made = {}

    def context(width: int = 1280, scheme: str = "light"):
        if (width, scheme) not in made:
            made[width, scheme] = _window(browser, width, scheme)
        return made[width, scheme]

    yield context
    for one in made.values():
        one.close()


@pytest.fixture
def context(browser):
    """A window of one's own, which remembers nothing and may use the clipboard."""
    with closing(_window(browser, 1280, "light")) as one:
        yield one


@pytest.fixture(scope="session")
def visit():
    """`visit(context, base, name)`: a page of the site in that window, loaded.

    `page.complaints` and `page.requests` gather what it complains of and asks for.
    """
    return _visit


@pytest.fixture
def open_page(contexts, address):
    """`open_page("gallery", width=390, scheme="dark")`: a page, loaded; see `visit`. It is closed after the test.

    `context=` opens it in another window (the fixture `context` has one that remembers nothing), `base=` from another
    address than the site's.
    """
    opened = []

    def open_one(name: str, *, width: int = 1280, scheme: str = "light", context=None, base: str | None = None):
        opened.append(_visit(context or contexts(width, scheme), base or address, name))
        return opened[-1]

    yield open_one
    for page in opened:
        page.close()


def _window(browser, width: int, scheme: str):
    return browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
        accept_downloads=True,
    )


def _visit(context, base: str, name: str):
    page = context.new_page()
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: page.requests.append(request.url))
    # `name` may end in a query or an anchor.
    path, mark, rest = re.match(r"([^?#]*)([?#]?)(.*)", name).groups()
    page.goto(f"{base}{path}.html{mark}{rest}", wait_until="load")
    page.name, page.base = name, base
    return page
