"""A build with nothing to do, with 2 and with 120 notebooks.

    python benchmarks/planning.py

Every notebook is run once (stored by a stand-in for the execution, since only planning is measured), then the
planning is timed: reading all scripts, making all keys, looking into the store.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import synthetic

from lossbook.press.project import Project
from lossbook.press.runs import engine, notebooks
from lossbook.press.runs.parameters import Parameters


def planned(project: Project) -> list[engine.Plan]:
    requests = []
    for paper in project.papers.values():
        notebook = notebooks.read_script(paper)
        requests.append(engine.Request(paper, notebook, Parameters(paper, notebook).settings()))
    return engine.plan(project, requests)


def main() -> None:
    times = {}
    for number in (2, 120):
        with tempfile.TemporaryDirectory() as folder:
            root = synthetic.project(Path(folder, "project"), number)
            for plan in planned(Project.find(root)):
                request = plan.request
                executed = notebooks.lost(request.paper, request.notebook, request.settings, "", "")
                run = executed.metadata["lossbook"]["run"]
                run["status"] = "finished"
                del run["failure"]
                run["key"] = dict(plan.key.parts)
                notebooks.write(plan.path, executed)
            assert all(plan.reason is None for plan in planned(Project.find(root)))
            inside, whole = [], []
            for _ in range(5):
                started = time.perf_counter()
                planned(Project.find(root))
                inside.append(time.perf_counter() - started)
                started = time.perf_counter()
                command = [sys.executable, "-m", "lossbook.press", "--root", str(root), "build", "--explain"]
                subprocess.run(command, check=True, capture_output=True)
                whole.append(time.perf_counter() - started)
            times[number] = statistics.median(inside)
            print(
                f"{number} notebooks: planning {times[number]:.2f} s, "
                f"`lossbook build --explain` in all {statistics.median(whole):.2f} s"
            )
    print(f"planning 120 notebooks takes {times[120] / times[2]:.1f} times as long as planning 2")


if __name__ == "__main__":
    main()
