"""The site of the real notebooks, built once at `smoke`, and a browser that looks at it."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lossbook.press.server import server

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("LOSSBOOK_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    # The site is built once, so whoever builds it looks at all of it.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("site"))


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
