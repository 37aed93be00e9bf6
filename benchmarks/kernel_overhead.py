"""What surrounds a notebook: a run inside a build, with the warm process up, against papermill alone.

    python benchmarks/kernel_overhead.py [--notebooks 10]

The notebook imports torch, pandas and seaborn and draws a figure. The start of the warm process is reported apart.
The last line is the ratio of the medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import synthetic
from rich.console import Console

from lossbook.press.project import Project
from lossbook.press.runs import engine, notebooks
from lossbook.press.runs.parameters import Parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Project.find(synthetic.project(Path(folder, "project"), 1))
        paper = project.paper("trivial_0")
        notebook = notebooks.read_script(paper)
        parameters = Parameters(paper, notebook)

        def build(seeds) -> list[engine.Outcome]:
            wanted = [engine.Request(paper, notebook, parameters.settings(given=[f"seed={seed}"])) for seed in seeds]
            plans = engine.plan(project, wanted)
            outcomes = engine.carry_out(project, plans, engine.Options(jobs=1), Console(quiet=True))
            assert all(outcome.ran and not notebooks.failure_of(outcome.executed) for outcome in outcomes)
            return outcomes

        started = time.perf_counter()
        build([0])
        first = time.perf_counter() - started
        ours = []
        for seed in range(1, options.notebooks + 1):
            started = time.perf_counter()
            build([seed])
            ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        build(range(100, 100 + options.notebooks))
        together = (time.perf_counter() - started) / options.notebooks

        import papermill

        theirs = []
        for _ in range(max(3, options.notebooks // 2)):
            started = time.perf_counter()
            papermill.execute_notebook(notebook, None, kernel_name="python3", progress_bar=False)
            theirs.append(time.perf_counter() - started)
    print(f"first run, with the start of the warm process: {first:.2f} s")
    print(f"a build of one notebook, planning and storing included: median {statistics.median(ours):.2f} s")
    print(f"a build of {options.notebooks}, one after another: {together:.2f} s a notebook")
    print(f"papermill alone: median {statistics.median(theirs):.2f} s")
    print(
        f"a notebook inside a build takes 1/{statistics.median(theirs) / together:.1f} of the time of papermill alone"
    )


if __name__ == "__main__":
    main()
