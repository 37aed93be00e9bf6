"""The book with all papers of the catalogue: how long it builds, how large its pages are, how they behave in a browser.

    python benchmarks/whole_book.py [--keep FOLDER] [--times 3] [--suite]

Papers that have no notebook yet get one of those that exist, under their own name and title, with the run that is in
_build; no notebook is run, so `lossbook build --profile smoke` comes first. The package is copied too, so that a
docstring can be edited. Times are those of whole commands. A page is usable when it is painted and loaded and its last
long task is over. The browser has visited nothing before, and reads the site from the loopback.

With --suite, the tests of the project run on it instead, as `make test` runs them in a fresh clone: a paper without a
notebook has the tests of the one that it got, and every notebook is run at `smoke`. What fails there does not matter (a
title that is there twice, a count of papers); what it takes does.
"""

import argparse
import itertools
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, sync_playwright

from lossbook.press.project import Project
from lossbook.press.runs import engine, notebooks
from lossbook.press.runs.parameters import Parameters
from lossbook.press.site.server import server

ROOT = Path(__file__).parents[1]
# What a build of the book reads.
NEEDED = ("_config.yml", "constraints.txt", "pyproject.toml", "CHANGELOG.md", "book", "notebooks", "records", "src")
# What its tests read besides.
TESTED = (
    "tests", "benchmarks", "Makefile", "README.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "environment.yml",
    ".pre-commit-config.yaml", ".gitignore", ".ci",
)  # fmt: skip
# By paper, whose run stands for its own.
MODELS = "models.json"
# A method and a paper that are edited.
METHOD, PAPER = "src/lossbook/methods/layers/ideal_group_number.py", "notebooks/layers/ideal_group_number.py"
CHROMIUM = os.environ.get("LOSSBOOK_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
# Before anything else in a page: its long tasks.
WATCH = """
window.tasks = [];
new PerformanceObserver(list => window.tasks.push(...list.getEntries().map(each => [each.startTime, each.duration])))
  .observe({type: "longtask", buffered: true});
"""
USABLE = """() => {
  const [navigation] = performance.getEntriesByType("navigation");
  const painted = performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0;
  const ends = window.tasks.map(([start, duration]) => start + duration);
  return [Math.max(painted, navigation.domContentLoadedEventEnd, ...ends), Math.max(0, ...window.tasks.map(t => t[1]))];
}"""
# Milliseconds from filling a field until what it changes has been painted.
ANSWER = """([field, value, said]) => new Promise(resolve => {
  const start = performance.now(), element = document.querySelector(field);
  element.value = value;
  element.dispatchEvent(new Event("input", {bubbles: true}));
  const look = () => {
    const there = [...document.querySelectorAll("[role=status]")].some(each => new RegExp(said).test(each.textContent));
    requestAnimationFrame(there ? () => setTimeout(() => resolve(performance.now() - start)) : look);
  };
  look();
})"""


def renamed(text: str, slug: str, title: str, number: int) -> str:
    """A notebook's script under another name; its labels and formulas are its own, as they would be."""
    text = re.sub(r"\$\$ \(([\w-]+)\)", rf"$$ (\1-{slug})", text)
    text = re.sub(r"\{eq\}`([\w-]+)`", rf"{{eq}}`\1-{slug}`", text)
    text = re.sub(r"^# \(([\w-]+)\)=$", rf"# (\1-{slug})=", text, flags=re.MULTILINE)
    lines, opened = text.splitlines(keepends=True), False
    for place, line in enumerate(lines):
        if line.startswith("# $$"):
            opened = not opened
            lines[place] = f"# $${'{}' * number}{line[4:]}" if opened else line
        elif line.startswith("# ") and not opened:
            lines[place] = re.sub(r"(?<![\\$])\$(?!\$)([^$\n]+)\$", lambda m: f"${m[1]}{'{}' * number}$", line)
    text = "".join(lines)
    return re.sub(r"^# # .+$", lambda _: f"# # {title}", text, count=1, flags=re.MULTILINE)


def make(root: Path) -> None:
    """Write the project."""
    root.mkdir(parents=True)
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root)
    here = Project(ROOT, ROOT / "_build")
    if missing := [slug for slug, paper in here.papers.items() if not here.executed(paper).is_file()]:
        sys.exit(f"no run of {', '.join(missing)}: lossbook build --profile smoke")
    models = {slug: slug for slug in here.papers}
    papers = itertools.cycle([paper for paper in here.papers.values() if not paper.opening])
    for slug, row in here.catalogue.items():
        if slug not in here.papers:
            model = next(papers)
            number = list(models.values()).count(model.slug)
            models[slug] = model.slug
            script = root / "notebooks" / row["part"] / f"{slug}.py"
            script.parent.mkdir(exist_ok=True)
            script.write_text(
                renamed(model.script.read_text(encoding="utf-8"), slug, row["title"], number), encoding="utf-8"
            )
    (root / MODELS).write_text(json.dumps(models))


def store(root: Path, profile: str) -> int:
    """Store a run wherever one is missing; returns how many were."""
    here, project = Project(ROOT, ROOT / "_build"), Project(root, root / "_build")
    models, requests = json.loads((root / MODELS).read_text()), []
    for paper in project.papers.values():
        script = notebooks.read_script(paper)
        requests.append(engine.Request(paper, script, Parameters(paper, script).settings(profile)))
    missing = [plan for plan in engine.plan(project, requests) if plan.reason]
    for plan in missing:
        paper = plan.request.paper
        executed = notebooks.read(here.executed(here.papers[models[paper.slug]]))
        executed.metadata["lossbook"]["run"].update(part=paper.part, slug=paper.slug, key=dict(plan.key.parts))
        notebooks.write(plan.path, executed)
    return len(missing)


class Seconds(NamedTuple):
    """How long something took, by the clock and by processors: on a busy machine these differ."""

    clock: float
    processors: float

    def __str__(self) -> str:
        return f"{self.clock:.1f} s ({self.processors:.1f} s of processors)"


class Book:
    """The made-up project, and the commands that build it."""

    def __init__(self, root: Path):
        self.root, self.project = root, Project(root, root / "_build")
        if not (root / MODELS).is_file():
            make(root)
        here = Project(ROOT, ROOT / "_build")
        run = notebooks.read(here.executed(next(iter(here.papers.values())))).metadata["lossbook"]["run"]
        self.profile = run["profile"]

    def python(self, *arguments: str) -> str:
        """What Python prints, with the copied package."""
        path = os.pathsep.join([str(self.root / "src"), str(Path(__file__).parent)])
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{' '.join(arguments)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def build(self, *options: str) -> Seconds:
        """Seconds of `lossbook build`."""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        self.python("-m", "lossbook.press", "build", "--profile", self.profile, *options)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        return Seconds(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    def store(self) -> int:
        """Store the runs that are missing now; returns how many were."""
        code = f"import pathlib, whole_book; print(whole_book.store(pathlib.Path.cwd(), {self.profile!r}))"
        return int(self.python("-c", code).split()[-1])

    def clear(self) -> None:
        """Leave of what was built the runs alone."""
        for name in ("render", "html", "source"):
            shutil.rmtree(self.project.output / name, ignore_errors=True)

    def edited(self, name: str, old: str, times: int) -> tuple[Seconds, int]:
        """Seconds of a build after an edit behind a text, and how many notebooks would have run."""
        path, seconds, again = self.root / name, [], 0
        for number in range(times):
            path.write_text(path.read_text(encoding="utf-8").replace(old, f"{old} Edit {number}.", 1), encoding="utf-8")
            again += self.store()
            seconds.append(self.build())
        return sorted(seconds)[len(seconds) // 2], again


def suite(book: Book) -> None:
    """Run the tests as `make test` does."""
    for name in TESTED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, book.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, book.root)
    here, models = Project(ROOT, ROOT / "_build"), json.loads((book.root / MODELS).read_text())
    for slug, model in models.items():
        paper, tests = here.papers[model], book.root / "tests" / "methods"
        one = tests / paper.part / f"test_{model}.py"
        if slug != model and one.is_file():
            part = tests / book.project.papers[slug].part
            part.mkdir(exist_ok=True)
            shutil.copy(one, part / f"test_{slug}.py")
    shutil.rmtree(book.project.output, ignore_errors=True)
    options = ["--numprocesses", "2", "--dist", "load", "--maxschedchunk", "1", "--quiet"]
    command = [sys.executable, "-m", "pytest", *options]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=book.root,
        env={**os.environ, "PYTHONPATH": str(book.root / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (book.root / "suite.log").write_text(done.stdout)
    print(f"the suite with {len(book.project.papers)} notebooks: {(time.perf_counter() - started) / 60:.1f} min")
    print("\n".join(done.stdout.splitlines()[-3:]))


def building(book: Book, times: int) -> None:
    book.store()
    # Python's own compiled files are there, as they are after any use.
    planning = sorted(book.build("--explain") for _ in range(times))[times // 2]
    print(f"planning {len(book.project.papers)} notebooks: {planning}")
    book.clear()
    print(f"build from stored runs, nothing rendered: {book.build()}")
    print(f"build, nothing to do: {book.build()}")
    edits = {
        "prose of one page": (PAPER, "because somebody tried."),
        "title of one page": (PAPER, "# # How many groups?"),
        "docstring of one method": (METHOD, "the paper's own closed form may differ."),
        "docstring of the bench": ("src/lossbook/lab/plots.py", '"""'),
    }
    for what, (name, old) in edits.items():
        seconds, again = book.edited(name, old, times)
        print(f"build after an edit, {what}: {seconds}, {again} notebooks to run")


def sizes(site: Path) -> None:
    pages = sorted(site.rglob("*.html"), key=lambda path: -path.stat().st_size)
    for name in ("gallery.html", "scoreboard.html", "searchindex.js"):
        print(f"{name}: {(site / name).stat().st_size / 1e3:,.0f} kB")
    print(
        "largest pages:",
        ", ".join(f"{path.relative_to(site)} {path.stat().st_size / 1e3:,.0f} kB" for path in pages[:5]),
    )
    total = sum(each.stat().st_size for each in site.rglob("*") if each.is_file())
    print(f"site: {len(pages)} pages, {total / 1e6:,.0f} MB")


@contextmanager
def served(site: Path) -> Iterator[str]:
    with server(site, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/"
        serving.shutdown()


def visit(browser: Browser, address: str, fill: tuple[str, str, str] | None) -> tuple[float, float, float, float]:
    """Milliseconds until usable, of the longest task, and of the answer to a filled field and its longest task."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(address, wait_until="load")
    page.wait_for_timeout(700)
    usable, longest = page.evaluate(USABLE)
    page.evaluate("window.tasks = []")
    answer = page.evaluate(ANSWER, list(fill)) if fill else float("nan")
    page.wait_for_timeout(100)
    later = page.evaluate("Math.max(0, ...window.tasks.map(each => each[1]))")
    context.close()
    return usable, longest, answer, later


def browsing(site: Path, times: int) -> None:
    largest = max((path for path in site.glob("*/*.html") if path.parent.name != "api"), key=lambda p: p.stat().st_size)
    pages = {
        "intro.html": None,
        "gallery.html": (".lossbook-filters [name=text]", "temperature", r"\d of \d+"),
        "scoreboard.html": (".lossbook-board [name=text]", "temperature", r"\d of [\d,]+"),
        f"{largest.relative_to(site)}": None,
        "search.html?q=temperature": None,
        "search.html?q=gradient": None,
    }
    with sync_playwright() as playwright, served(site) as here:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        for name, fill in pages.items():
            visits = [visit(browser, here + name, fill) for _ in range(times)]
            usable, longest, answer, later = map(statistics.median, zip(*visits, strict=True))
            said = f", answers in {answer:.0f} ms (longest task {later:.0f} ms)" if fill else ""
            print(f"{name}: usable after {usable:.0f} ms, longest task {longest:.0f} ms{said}")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the book there, or go on with what is there")
    parser.add_argument("--times", type=int, default=3, help="how often an edit or a visit is repeated")
    parser.add_argument("--suite", action="store_true", help="run the tests on it, as `make test` does")
    parser.add_argument("--look", action="store_true", help="build nothing, look at what is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        book = Book((options.keep or Path(folder, "book")).resolve())
        if options.suite:
            suite(book)
            return
        if not options.look:
            building(book, options.times)
        sizes(book.project.site)
        browsing(book.project.site, options.times)


if __name__ == "__main__":
    main()
