"""The built site against the same pages built by Jupyter Book's defaults: requests, rendering, and building.

    python benchmarks/site.py [--visits 5] [--builds 3]

Both start from the same executed notebooks and the same Markdown, and both are served on the loopback to a Chromium
that has visited nothing and reaches no other host. Jupyter Book has its default configuration, but for the names of
the bibliography and of a folder of files that are copied; it executes nothing. It takes MathJax from elsewhere: that
request is counted, fails at once, and the formulas stay TeX, so the times of its pages leave out loading and running
MathJax. Building times are those of the whole commands, with the executed notebooks there already; the edit is
a sentence more in the prose of one paper. Every time is a median, every ratio theirs by ours.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbformat import NotebookNode
from playwright.sync_api import Browser, sync_playwright

from lossbook.press.cli.console import show, table
from lossbook.press.project import Project
from lossbook.press.site.server import server

ROOT = Path(__file__).parents[1]
# What a build of the book reads.
NEEDED = ("_config.yml", "constraints.txt", "pyproject.toml", "CHANGELOG.md", "book", "notebooks", "records")
CHROMIUM = os.environ.get("LOSSBOOK_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
NOWHERE_ELSE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
WATCH = """
window.shifts = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
}).observe({type: "layout-shift", buffered: true});
"""
# Loaded, fonts there, formulas set if MathJax is there.
RENDERED = """
async () => {
  if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
  await document.fonts.ready;
  return performance.now();
}
"""
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
QUANTITIES = ("requests", "of them outside", "kB", "first paint, ms", "all rendered, ms", "layout shift")


def timed(command: list[str], **options) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started


def edit(notebook: NotebookNode, number: int) -> NotebookNode:
    """One sentence more in the prose."""
    cell = next(
        cell
        for cell in notebook.cells
        if cell.cell_type == "markdown" and cell.source[:1].isalpha() and cell.source[-1] == "."
    )
    cell.source += f" This is sentence number {number} more."
    return notebook


def building(build: Callable[[], float], anew: Callable[[], None], change: Callable[[int], None], builds: int) -> dict:
    """Seconds of a build from nothing, and of one after an edit."""
    cold = []
    for _ in range(builds):
        anew()
        cold.append(build())
    edited = []
    for number in range(builds):
        change(number)
        edited.append(build())
    return {"cold": statistics.median(cold), "after one edit": statistics.median(edited)}


def ours(root: Path, builds: int) -> tuple[Project, dict]:
    """Build a copy of the book with lossbook."""
    root.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, root)
    project = Project.find(root)
    if (ROOT / "_build" / "runs").is_dir():
        shutil.copytree(ROOT / "_build" / "runs", project.output / "runs")
    script = next(iter(project.papers.values())).script
    command = [sys.executable, "-m", "lossbook.press", "--root", str(root), "--output", str(project.output), "build"]
    timed(command)

    def anew() -> None:
        for name in ("render", "html", "source"):
            shutil.rmtree(project.output / name)

    def change(number: int) -> None:
        jupytext.write(edit(jupytext.read(script), number), script, fmt="py:percent")

    return project, building(lambda: timed(command), anew, change, builds)


def theirs(project: Project, folder: Path, builds: int) -> tuple[Path, dict]:
    """Build the pages of a book with Jupyter Book's defaults."""
    shutil.copytree(project.output / "source", folder, ignore=shutil.ignore_patterns("_static", "_templates"))
    (folder / "_config.yml").write_text(
        yaml.safe_dump(
            {
                "title": "lossbook",
                "execute": {"execute_notebooks": "off"},
                "bibtex_bibfiles": ["references.bib"],
                "sphinx": {"config": {"html_extra_path": ["extra"] if (folder / "extra").is_dir() else []}},
            }
        )
    )
    page = folder / f"{next(iter(project.papers.values())).page}.ipynb"

    def change(number: int) -> None:
        nbformat.write(edit(nbformat.read(page, as_version=4), number), page)

    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(folder)]
    # Its output would drown in warnings about what its defaults do not know.
    seconds = building(
        lambda: timed(command), lambda: shutil.rmtree(folder / "_build", ignore_errors=True), change, builds
    )
    return folder / "_build" / "html", seconds


@contextmanager
def served(site: Path) -> Iterator[str]:
    with server(site, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/"
        serving.shutdown()


def visit(browser: Browser, address: str) -> tuple[float, ...]:
    """Every quantity of one visit by a reader who was never there."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    requests, sizes = [], []
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.requestWillBeSent", lambda event: requests.append(event["request"]["url"]))
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(address, wait_until="load")
    rendered = page.evaluate(RENDERED)
    # What moves late moves within this time.
    page.wait_for_timeout(500)
    painted, shifts = page.evaluate(PAINTED), page.evaluate("() => window.shifts")
    context.close()
    requests = [url for url in requests if not url.startswith(("data:", "blob:"))]
    outside = sum(not url.startswith("http://127.0.0.1:") for url in requests)
    return len(requests), outside, sum(sizes) / 1e3, painted, rendered, shifts


def kinds(project: Project) -> dict[str, str]:
    """One page of each kind that there is."""
    reference = sorted(path.stem for path in (project.site / "api").glob("*.html") if path.stem != "index")
    pages = {
        "front page": "intro.html",
        "gallery": "gallery.html",
        "paper": f"{next(iter(project.papers.values())).page}.html",
        "scoreboard": "scoreboard.html",
        "API": f"api/{reference[0] if reference else 'index'}.html",
        "glossary": "glossary.html",
    }
    return {kind: page for kind, page in pages.items() if (project.site / page).is_file()}


def ratio(their: float, our: float) -> str:
    return f"{their / our:.2f}" if our else "equal" if not their else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--builds", type=int, default=3)
    options = parser.parse_args()
    if not Path(CHROMIUM).is_file():
        sys.exit("Chromium is missing: apt-get install chromium, or LOSSBOOK_CHROMIUM=path")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        project, our_seconds = ours(Path(folder, "lossbook"), options.builds)
        site, their_seconds = theirs(project, Path(folder, "defaults"), options.builds)
        rows = table("page", "", *QUANTITIES)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*SWITCHES, NOWHERE_ELSE])
        with served(project.site) as here, served(site) as there:
            for kind, name in kinds(project).items():
                # In turns, so that a busy machine disturbs both alike.
                visits = [(visit(browser, here + name), visit(browser, there + name)) for _ in range(options.visits)]
                our, their = (
                    [statistics.median(each) for each in zip(*side, strict=True)] for side in zip(*visits, strict=True)
                )
                for who, values in (("lossbook", our), ("defaults", their)):
                    rows.add_row(
                        kind, who, *(f"{value:.3f}" if value % 1 and value < 10 else f"{value:.0f}" for value in values)
                    )
                rows.add_row(kind, "ratio", *map(ratio, their, our))
        browser.close()
    show(rows)
    print(
        "Outside: MathJax, which the defaults load from elsewhere. It is not reached here, and their formulas stay TeX."
    )
    for what, seconds in our_seconds.items():
        print(
            f"build, {what}: lossbook {seconds:.1f} s, Jupyter Book's defaults {their_seconds[what]:.1f} s, "
            f"ratio {their_seconds[what] / seconds:.2f}"
        )
    cold, edited = our_seconds.values()
    print(f"after one edit, lossbook builds {cold / edited:.1f} times as fast as from nothing")


if __name__ == "__main__":
    main()
