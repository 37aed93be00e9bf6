import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from lossbook.formats import student_interval
from lossbook.press.errors import PressError, Refused
from lossbook.press.findings import figures, tables
from lossbook.press.project import Project
from lossbook.press.runs import grids
from lossbook.press.runs.notebooks import read_script
from lossbook.press.runs.parameters import Parameters

# What a notebook of a sweep records: two methods, `seeds` rows of each.
RECORD = """
import pandas as pd
from lossbook import lab

columns = ["method", "seed", "accuracy", "run"]
data = [[method, i, 10 * rate + i + shift, None] for method, shift in [("ours", 1), ("theirs", 0)] for i in range(seeds)]
lab.record(pd.DataFrame(data, columns=columns))
entry(kind="claim", id="c2", statement="", criterion="", verdict="supported" if rate > 1 else "contradicted",
      effect=rate, low=rate - 1, high=rate + 1, margin=1.0, seeds=seeds, unit="points", evidence="")
"""


def grid(tiny, *given, zipped=(), profile="quick"):
    tiny.notebook("paper")
    paper = Project.find(tiny.root).paper("paper")
    return grids.grid(Parameters(paper, read_script(paper)), profile, given, zipped)


def given(tiny, *texts, **options):
    return [settings.given for settings in grid(tiny, *texts, **options).settings]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1", ["1"]),
        ("1,2", ["1", "2"]),
        ("", [""]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{a: 1, b: [2, 3]}, x", ["{a: 1, b: [2, 3]}", " x"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("'it''s, so',c", ["'it''s, so'", "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        ("don't,won't", ["don't", "won't"]),
        ("a],b", ["a]", "b"]),
        ("[1,2", ["[1,2"]),
        ("',a", ["'", "a"]),
    ],
)
def test_commas_outside_brackets_and_quotes_part_values(text, parts):
    assert grids.split(text) == parts


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seeds=3", [3]),
        ("seeds=0:3", [0, 1, 2]),
        ("seeds=0:10:4,100", [0, 4, 8, 100]),
        ("seeds=3:0:-1", [3, 2, 1]),
        ("rate=0.1, 1e-3,2", [0.1, 0.001, 2.0]),
        ("rates=[1, 2],[3]", [[1.0, 2.0], [3.0]]),
        ("kind=plain,'fancy'", ["plain", "fancy"]),
        ("full=true,false", [True, False]),
        # A range is of integers alone.
        ("device=0:3", ["0:3"]),
        ("device=", [""]),
        ("device='a,b',c", ["a,b", "c"]),
    ],
)
def test_values_are_those_of_the_parameter(tiny, text, values):
    name = text.partition("=")[0]
    assert [each[name] for each in given(tiny, text)] == values


def test_parameters_are_crossed_or_zipped(tiny):
    assert given(tiny, "seeds=1,2", "rate=3,4") == [
        {"seeds": seeds, "rate": rate} for seeds in (1, 2) for rate in (3.0, 4.0)
    ]
    pairs = given(tiny, "seeds=1:3", "kind=plain,fancy", "rate=3,4", zipped=["rate,seeds"])
    assert [(each["seeds"], each["rate"], each["kind"]) for each in pairs] == [
        (1, 3, "plain"), (1, 3, "fancy"), (2, 4, "plain"), (2, 4, "fancy")
    ]  # fmt: skip
    # The order of names is as given, so that a run has the name that `lossbook run` gives it.
    assert list(pairs[0]) == ["seeds", "kind", "rate"]


def test_a_profile_is_under_the_grid(tiny):
    first, _ = grid(tiny, "rate=3,4", profile="smoke").settings
    assert (first.profile, first.values["seeds"], first.values["rate"]) == ("smoke", 2, 3.0)
    assert first.injected == {"seeds": 2, "rate": 3.0} and first.given == {"rate": 3.0}


def test_different_grids_have_different_names(tiny):
    grids = [
        grid(tiny, "seeds=1,2", "rate=3,4"),
        grid(tiny, "seeds=1,2", "rate=3,4", zipped=["seeds,rate"]),
        grid(tiny, "seeds=0:9"),
        grid(tiny, "seeds=0,1,2,3,4,5,7,8"),
        grid(tiny, "device=a b"),
        grid(tiny, "device=a_b"),
    ]
    names = [each.name for each in grids]
    assert names[0] == "quick-seeds=1+2-rate=3.0+4.0" and names[2].startswith("quick-seeds=0..8-")
    assert len(set(names)) == len(names) and all("/" not in name for name in names)


@pytest.mark.parametrize(
    ("texts", "zipped", "words"),
    [
        ([], [], ["nothing to sweep"]),
        (["seed=1"], [], ["'seeds'"]),
        (["seeds"], [], ["name=VALUES"]),
        (["seeds=1,x"], [], ["seeds", "int", "'x'"]),
        (["kind=plain,fanci"], [], ["kind", "'fanci'"]),
        (["rates=0.5,0.6"], [], ["rates: expected list[float], such as [0.1, 0.2], got 0.5"]),
        (["rates=[0.1"], [], ["rates", "[0.1"]),
        (["seeds=3:3"], [], ["seeds", "3:3", "empty"]),
        (["seeds=0:3:0"], [], ["0:3:0", "empty"]),
        (["seeds=0:999999999999"], [], ["100,000"]),
        (["seeds=0:1000", "rate=" + ",".join(map(str, range(1000)))], [], ["1,000,000"]),
        (["seeds=1,,2"], [], ["seeds", "commas"]),
        (["seeds=1,1"], [], ["seeds=1", "twice"]),
        (["seeds=1", "seeds=2"], [], ["given before"]),
        (["seeds=1,2", "rate=1,2,3"], ["seeds,rate"], ["seeds has 2", "rate has 3"]),
        (["seeds=1,2"], ["seeds,rat"], ["'rat'"]),
        (["seeds=1,2"], ["seeds"], ["two or more"]),
        (["seeds=1,2"], ["seeds,seeds"], ["already"]),
        (["seeds=1,2", "rate=1,2", "full=true,false"], ["seeds,rate", "full,seeds"], ["already"]),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(tiny, texts, zipped, words):
    with pytest.raises(Refused) as caught:
        grid(tiny, *texts, zipped=zipped)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "seeds=1,x"], ["seeds", "'x'"]),
        (["-p", "seeds=1,2", "--zip", "seeds"], ["--zip"]),
        (["-p", "seeds=1,2", "--plot", "x:rate"], ["'rate'"]),
        (["-p", "seeds=1", "--plot", "x"], ["several values"]),
        (["-p", "seeds=1,2", "--profile", "smok"], ["'smoke'"]),
        (["-p", "seeds=1,2", "-o", "_config.yml"], ["_config.yml"]),
    ],
)
def test_refusals_start_nothing(tiny, arguments, words):
    tiny.notebook("paper")
    done = tiny.run("sweep", "paper", *arguments, status=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == "" and not (tiny.root / "_build").exists()


def test_columns_have_one_type_each_and_missing_values():
    frame = tables.frame(
        [
            {"a": 1, "b": 1, "c": "x", "d": True, "e": [1], "f": None},
            {"a": None, "b": 0.5, "c": 2, "d": False, "g": 10**30},
        ]
    )
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert kinds == {
        "a": "Int64", "b": "float64", "c": "str", "d": "boolean", "e": "str", "f": "str", "g": "str"
    }  # fmt: skip
    assert frame["c"].tolist() == ["x", "2"] and frame["e"][0] == "[1]" and frame["f"].isna().all()
    assert frame["a"].tolist()[0] == 1 and frame["g"][1] == str(10**30)


def test_the_interval_is_that_of_student():
    low, high = student_interval([1, 2, 3])
    # The mean is 2, its standard error 1/√3, and t is 4.3027.
    assert low == pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-4) and high == pytest.approx(4 - low)


def test_figures_find_what_they_are_asked_for_and_load_no_torch():
    code = """
import sys, pandas as pd
from lossbook.press.findings import figures
frame = pd.DataFrame({"table": "t", "run": list("abab"), "param.rate": [0.1, 10.0] * 2, "y": [1.0, 2.0, 3.0, 5.0]})
svg = figures.draw(figures.find("t.y", frame, pd.DataFrame({"kind": [], "id": []})), "rate", label="step size")
assert svg == figures.draw(figures.find("y", frame, pd.DataFrame({"kind": [], "id": []})), "rate", label="step size")
assert b"y by rate" in svg
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    results = pd.DataFrame({"table": ["t", "u"], "run": ["a", "a"], "y": [1.0, 2.0], "word": ["p", "q"]})
    ledger = pd.DataFrame({"kind": ["claim"], "id": ["c1"], "effect": [1.0]})
    for name, words in [("y", "t.y, u.y"), ("z", "'y'"), ("word", "numeric"), ("claim.c", "'claim.c1'")]:
        with pytest.raises(PressError, match=words):
            figures.find(name, results, ledger)


@pytest.fixture(scope="module")
def swept(make_tiny, entries_code):
    """A sweep of four runs, one of which fails. Not to be changed."""
    tiny = make_tiny("swept")
    tiny.notebook("paper", entries_code + RECORD + "\n# %%\nassert (rate, kind) != (2.0, 'fancy'), 'not this one'\n")
    tiny.arguments = ["sweep", "paper", "-p", "rate=0.5,2", "-p", "kind=plain,fancy", "-p", "rates=[1]", "-j", "2"]
    tiny.finished = tiny.run(*tiny.arguments, "--plot", "accuracy", "--plot", "claim.c2:rate", status=1)
    [tiny.folder] = (tiny.root / "_build" / "sweeps" / "paper").iterdir()
    return tiny


def test_a_sweep_gathers_what_finished_and_says_what_failed(swept):
    done, folder = swept.finished, swept.folder
    assert folder.name == "quick-rate=0.5+2.0-kind=plain+fancy-rates=1.0"
    assert "1 run of 4 failed" in done.stderr and "not this one" in done.stderr and "kind=fancy-rate=2.0" in done.stderr
    assert "cell [" in done.stderr and "paper.py, line" in done.stderr
    results = pd.read_parquet(folder / "results.parquet")
    assert list(results) == [
        "run", "profile", "param.rate", "param.kind", "param.rates", "table", "method", "seed", "accuracy", "result.run"
    ]  # fmt: skip
    assert len(results) == 3 * 2 * 5 and results["run"].nunique() == 3
    one = results[(results["param.rate"] == 2) & (results["method"] == "ours")]
    assert one["accuracy"].tolist() == [21, 22, 23, 24, 25] and set(one["param.kind"]) == {"plain"}
    ledger = pd.read_parquet(folder / "ledger.parquet")
    assert len(ledger) == 3 * 3 and set(ledger["id"]) == {"sum", "c1", "c2"}
    assert dict(zip(ledger["param.rate"], ledger[ledger["id"] == "c2"]["effect"], strict=False))
    # The two kinds of file say the same.
    for name, frame in (("results", results), ("ledger", ledger)):
        text = pd.read_csv(folder / f"{name}.csv")
        assert list(text) == list(frame) and len(text) == len(frame)
        assert text["param.rate"].tolist() == frame["param.rate"].tolist()
    # A run can be found by its name.
    for name in results["run"].unique():
        assert (swept.root / "_build" / "runs" / "paper" / f"{name}.ipynb").is_file()


def test_the_summary_has_a_row_for_every_setting(swept):
    rows = [line.split() for line in swept.finished.stdout.splitlines()]
    assert ["0.5", "plain", "1", "verified,", "1", "inconclusive,", "1", "contradicted", "8", "7"] in rows
    assert ["2.0", "fancy", "failed"] in rows
    head, kinds, *_ = rows
    assert head == ["mean", "accuracy"] * 2 and kinds == ["rate", "kind", "verdicts", "ours", "theirs"]


def test_figures_have_title_and_labels(swept):
    names = {path.name for path in swept.folder.glob("*.svg")}
    assert names == {"accuracy-by-rate.svg", "accuracy-by-kind.svg", "claim.c2-by-rate.svg"}
    for name in names:
        text = (swept.folder / name).read_text()
        ET.fromstring(text)
        # Text is drawn as outlines, and stands beside them as comments.
        words = [name.partition("-by-")[0], f"by {name.removesuffix('.svg').partition('-by-')[2]}, paper"]
        assert all(word in text for word in words), name
    for words in ("rate: step size", "mean, 95 % interval"):
        assert words in (swept.folder / "accuracy-by-rate.svg").read_text()
    assert "theirs" in (swept.folder / "accuracy-by-rate.svg").read_text()
    assert "margin" in (swept.folder / "claim.c2-by-rate.svg").read_text()


def test_a_dry_run_tells_what_is_stored_and_how_long_the_rest_takes(swept):
    before = swept.files()
    done = swept.run(*swept.arguments, "--dry-run")
    assert "4 runs, 3 of them stored" in done.stdout and "the median of 3 earlier runs" in done.stdout
    assert done.stdout.count("yes") == 3 and "failed the last time" in done.stdout
    other = swept.run("sweep", "paper", "-p", "seeds=0:100", "--profile", "smoke", "--dry-run").stdout
    assert "100 runs, 0 of them stored" in other and "... 90 more" in other and "none with the profile smoke" in other
    assert swept.files() == before


def test_a_sweep_goes_on_where_it_stopped(swept):
    found = (swept.root / "_build/runs/paper").glob("*.ipynb")
    stored = {path: path.stat().st_mtime_ns for path in found if ".failed" not in path.name}
    assert len(stored) == 3
    done = swept.run(*swept.arguments, status=1)
    assert "4 runs: 1 made now, 3 stored before, 1 failed" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    # Without --plot: every claim against every number.
    assert (swept.folder / "claim.c1-by-rate.svg").is_file() and not (swept.folder / "claim.c1-by-kind.svg").exists()


def test_without_earlier_runs_there_is_no_estimate(tiny):
    tiny.notebook("paper")
    done = tiny.run("sweep", "paper", "-p", "seeds=1,2", "--dry-run")
    assert "no earlier runs" in done.stdout and tiny.files() == []


def test_a_folder_can_be_chosen_and_wrong_figures_are_named(swept, tmp_path):
    part = ["sweep", "paper", "-p", "rate=0.5,2", "-p", "kind=plain", "-p", "rates=[1]", "-o", str(tmp_path / "out")]
    done = swept.run(*part, "--plot", "accurac", "--plot", "claim.c1", status=1)
    assert "'accuracy'" in done.stderr and "2 runs: 0 made now, 2 stored before, 0 failed" in done.stderr
    # All the rest is there.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "claim.c1-by-rate.svg", "ledger.csv", "ledger.parquet", "results.csv", "results.parquet"
    ]  # fmt: skip
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 2 * 2 * 5


def test_a_full_disk_leaves_no_half_of_a_table(tmp_path, small_disk):
    frame = pd.DataFrame({"x": [str(i) * 20 for i in range(100_000)]})
    with pytest.raises(OSError, match="No space") as caught:
        tables.write(small_disk, "results", frame)
    assert caught.value.filename.startswith(str(small_disk / "results."))
    for path in small_disk.iterdir():
        assert path.suffix == ".parquet" and len(pd.read_parquet(path)) == len(frame)


def test_the_estimate_counts_rounds(tiny):
    tiny.notebook("paper")
    project = Project.find(tiny.root)
    folder = project.output / "runs" / "paper"
    folder.mkdir(parents=True)
    for name, seconds, profile in [("a", 100, "quick"), ("b", 300, "quick"), ("c", 9, "smoke"), ("d", None, "quick")]:
        run = {"status": "finished", "profile": profile, "seconds": seconds}
        (folder / f"{name}.ipynb").write_text(json.dumps({"metadata": {"lossbook": {"run": run}}}))
    (folder / "damaged.ipynb").write_text("{")
    words = grids.estimate(project, project.paper("paper"), "quick", 5, 2)
    assert words.startswith("about 10 min: 5 runs of 3 min") and "2 earlier runs" in words
    assert "nothing" in grids.estimate(project, project.paper("paper"), "quick", 0, 2)
