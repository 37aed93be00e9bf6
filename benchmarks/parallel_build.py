"""Trivial notebooks, cold: one worker against two, and against Jupyter Book's own execution of the same notebooks.

    python benchmarks/parallel_build.py [--notebooks 40] [--without-jupyter-book]

Each is a fresh process with an empty store; the start of the warm process is included. Jupyter Book's figure is
its build with execution less its build without. The last lines are ratios.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import synthetic

RUN = """
import sys
from pathlib import Path
from rich.console import Console
from lossbook.press.runs import engine, notebooks
from lossbook.press.runs.parameters import Parameters
from lossbook.press.project import Project

if __name__ == "__main__":
    project = Project.find(Path(sys.argv[1]), Path(sys.argv[2]))
    requests = []
    for paper in project.papers.values():
        notebook = notebooks.read_script(paper)
        requests.append(engine.Request(paper, notebook, Parameters(paper, notebook).settings()))
    plans = engine.plan(project, requests)
    outcomes = engine.carry_out(project, plans, engine.Options(jobs=int(sys.argv[3])), Console(quiet=True))
    assert not any(notebooks.failure_of(outcome.executed) for outcome in outcomes)
"""


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def jupyter_book(root: Path, folder: Path, execution: str) -> float:
    import jupytext
    import yaml

    source = folder / f"source-{execution}"
    source.mkdir()
    (source / "intro.md").write_text("# Made up\n")
    chapters = []
    for script in sorted(root.glob("notebooks/*/*.py")):
        jupytext.write(jupytext.read(script), source / f"{script.stem}.ipynb")
        chapters.append({"file": script.stem})
    (source / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "intro", "chapters": chapters}))
    (source / "_config.yml").write_text(yaml.safe_dump({"title": "t", "execute": {"execute_notebooks": execution}}))
    return timed([str(Path(sys.executable).with_name("jupyter-book")), "build", str(source)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", type=int, default=40)
    parser.add_argument("--without-jupyter-book", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = synthetic.project(Path(folder, "project"), options.notebooks)
        script = Path(folder, "run.py")
        script.write_text(RUN)
        times = {}
        for jobs in (1, 2):
            times[jobs] = timed([sys.executable, str(script), str(root), str(Path(folder, f"out{jobs}")), str(jobs)])
            print(f"{options.notebooks} notebooks, {jobs} worker{'s' if jobs > 1 else ''}: {times[jobs]:.1f} s")
        if not options.without_jupyter_book:
            executing = jupyter_book(root, Path(folder), "force")
            theirs = executing - jupyter_book(root, Path(folder), "off")
            print(f"Jupyter Book: {theirs:.1f} s for the execution, of {executing:.1f} s")
            print(f"two workers are {theirs / times[2]:.1f} times as fast as Jupyter Book's own execution")
    print(f"two workers are {times[1] / times[2]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
