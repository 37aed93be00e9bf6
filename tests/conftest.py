"""Shapes and dtypes of `lossbook.methods` are checked against its annotations; one thread a process; `--paper`; the slowest."""

import json
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports the library. The hook lives as long as the tests do.
install_import_hook("lossbook.methods", "beartype.beartype")

# The same examples everywhere, so that a red run can be repeated; no deadline on a busy machine.
settings.register_profile("lossbook", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lossbook")

ROOT = Path(__file__).parents[1]
# How many papers the end of a run names.
SLOWEST = 10


def pytest_addoption(parser):
    parser.addoption("--paper", metavar="SLUG", help="look at the page of this paper alone: make test PAPER=SLUG")


def pytest_configure(config):
    if slug := config.getoption("paper"):
        from lossbook.press.errors import Refused
        from lossbook.press.project import Project

        try:
            Project.find(ROOT).paper(slug)
        except Refused as error:
            raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def chosen_paper(pytestconfig):
    """The paper that `--paper` names; None if all are looked at."""
    from lossbook.press.project import Project

    slug = pytestconfig.getoption("paper")
    return Project.find(ROOT).paper(slug) if slug else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """One worker builds the site while the others test what needs none; what looks at it comes last."""
    mine = ROOT / "tests" / "site"
    with_site = [item for item in items if "site" in getattr(item, "fixturenames", ()) and mine in item.path.parents]
    others = [item for item in items if item not in {*with_site}]
    items[:] = [*with_site[:1], *others, *with_site[1:]]


def pytest_terminal_summary(terminalreporter):
    """The slowest papers: the time of their tests and of their run for the site."""
    tests: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            path = Path(getattr(report, "nodeid", "").split("::")[0])
            if path.parts[:2] == ("tests", "methods") and len(path.parts) == 4:
                tests[f"{path.parts[2]}/{path.stem.removeprefix('test_')}"] += getattr(report, "duration", 0)
    papers = {f"{path.parent.name}/{path.stem}" for path in ROOT.glob("notebooks/*/*.py")} & {*tests}
    if len(papers) < 2:
        return
    rows = []
    for paper in papers:
        try:
            notebook = json.loads((ROOT / "_build" / "test" / "book" / f"{paper}.ipynb").read_bytes())
            seconds = notebook["metadata"]["lossbook"]["run"]["seconds"]
        except (FileNotFoundError, KeyError, ValueError):
            seconds = 0.0
        rows.append((tests[paper] + seconds, tests[paper], seconds, paper))
    terminalreporter.section(f"the {min(SLOWEST, len(rows))} slowest papers")
    terminalreporter.line("seconds   tests   smoke run (when it was made)")
    for total, tested, run, paper in sorted(rows, reverse=True)[:SLOWEST]:
        terminalreporter.line(f"{total:7.1f} {tested:7.1f} {run:7.1f}   {paper}")
