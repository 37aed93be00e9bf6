"""The site of the real notebooks, built once at `smoke`, and a browser that looks at it."""

import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from lossbook.press.site.server import server

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("LOSSBOOK_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    # A site built already can be looked at without building it again.
    if ready := os.environ.get("LOSSBOOK_SITE"):
        return Path(ready)
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "lossbook.press", "--root", str(ROOT), "--output", str(output)]
    done = subprocess.run([*command, "build", "--profile", "smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output / "html"


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
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()

    def found(page) -> list[str]:
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
