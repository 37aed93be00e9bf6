import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from lossbook.press.errors import PressError
from lossbook.press.findings import compare, records
from lossbook.press.pages import comparison
from lossbook.press.pages.recorded import section
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

RECORD = """
table = {"name": "results", "columns": ["method", "accuracy"], "data": [["ours", 0.1 + 0.2], ["theirs", None]]}
display({"application/vnd.lossbook.results+json": table}, raw=True)
entry(kind="claim", id="c2", statement="a < b", criterion="", verdict="supported" if rate > 0.1 else "contradicted",
      effect=rate, low=0.0, high=1.0, margin=0.0, seeds=seeds, unit="", evidence="")
for i in range(2):
    html = f'<figure class="lossbook-figure"><img alt="picture {i} at {rate}" src="data:,"><figcaption>{i}</figcaption></figure>'
    display({"text/html": html, "text/plain": ""}, raw=True)
"""


def git(folder, *arguments):
    user = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", folder, *user, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def recorded(make_tiny, entries_code):
    """A project under git with two records of one paper and a build. Not to be changed."""
    tiny = make_tiny("recorded")
    tiny.notebook("paper", entries_code + RECORD)
    (tiny.root / ".gitignore").write_text("_build\n")
    git(tiny.root, "init", "--quiet")
    git(tiny.root, "add", ".")
    git(tiny.root, "commit", "--quiet", "-m", "all")
    # Both runs at once; what is stored is recorded as it is.
    tiny.run("sweep", "paper", "--profile", "smoke", "-p", "rate=0.001,0.9")
    tiny.first = tiny.run("record", "paper", "--profile", "smoke", "-p", "rate=0.001")
    tiny.project = Project.find(tiny.root)
    tiny.again = records.record(
        tiny.project, tiny.root / "_build" / "again", notebooks.read(stored(tiny, "rate=0.001"))
    )
    (tiny.root / "new.txt").write_text("changed")
    tiny.second = tiny.run("record", "paper", "--profile", "smoke", "-p", "rate=0.9")
    return tiny


def stored(tiny, word):
    [path] = [path for path in (tiny.root / "_build/runs/paper").glob("*.ipynb") if word in path.name]
    return path


def test_a_record_is_small_text_that_says_how_it_was_made(recorded):
    folder = recorded.root / recorded.first.stdout.splitlines()[-1]
    assert folder.parent == recorded.root / "records" / "paper" and re.fullmatch(
        r"smoke-rate=0.001-[a-z0-9_]+", folder.name
    )
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.json", "results.csv", "run.json"]
    run = json.loads((folder / "run.json").read_text())
    assert (run["profile"], run["slug"], run["parameters"]["seeds"]) == ("smoke", "paper", 2)
    assert run["device"]["kind"] in ("cpu", "cuda") and run["device"]["name"]
    assert {"python", "torch"} <= run["versions"].keys() and run["seconds"] > 0 and run["started"]
    head = subprocess.run(["git", "-C", recorded.root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert run["commit"] == {"id": head.strip(), "changed": False}
    assert (folder / "results.csv").read_text() == (
        "table,method,accuracy\nresults,ours,0.30000000000000004\nresults,theirs,\n"
    )
    assert [entry["id"] for entry in json.loads((folder / "ledger.json").read_text())] == ["sum", "c1", "c2"]


def test_another_setting_is_another_record_and_a_changed_tree_is_noted(recorded):
    one, other = records.of(recorded.project, "paper")
    assert [each.folder.name.split("-")[1] for each in (one, other)] == ["rate=0.001", "rate=0.9"]
    assert re.fullmatch("[0-9a-f]{9}", one.commit) and other.commit == f"{one.commit} with changes"
    assert other.run["parameters"]["rate"] == 0.9
    # A new record is no change of what decides results.
    assert recorded.again.commit == one.commit
    assert records.of(recorded.project, "no_paper") == []


def test_a_stored_run_is_recorded_without_running_and_replaces_the_whole(recorded):
    folder = records.of(recorded.project, "paper")[0].folder
    before = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "left.txt").write_text("from before")
    done = recorded.run("record", "paper", "--profile", "smoke", "-p", "rate=0.001")
    assert "not made again" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)
    assert json.loads((folder / "run.json").read_text())["started"] == json.loads(before["run.json"])["started"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        r.folder.name for r in records.of(recorded.project, "paper")
    ]


def test_a_record_that_cannot_be_written_leaves_the_old_one(recorded, monkeypatch, tmp_path):
    executed = notebooks.read(stored(recorded, "rate=0.9"))
    folder = tmp_path / "records" / "one"
    records.record(recorded.project, folder, executed)
    before = (folder / "run.json").read_text()

    def full(path, content):
        if path.name == "results.csv":
            raise OSError(28, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    monkeypatch.setattr(records, "write_whole", full)
    with pytest.raises(OSError, match="No space"):
        records.record(recorded.project, folder, executed)
    assert [path.name for path in folder.parent.iterdir()] == ["one"] and (folder / "run.json").read_text() == before


def test_a_run_that_fails_is_not_recorded(tiny):
    tiny.notebook("paper", "1 / 0")
    done = tiny.run("record", "paper", "--profile", "smoke", status=1)
    assert "ZeroDivisionError" in done.stderr and "nothing is recorded" in done.stderr
    assert list((tiny.root / "records").rglob("*.json")) == []


def test_a_record_needs_no_git(recorded, tmp_path):
    made = records.record(
        Project(tmp_path, tmp_path), tmp_path / "records" / "x", notebooks.read(stored(recorded, "rate=0.9"))
    )
    assert made.commit == "" and json.loads((made.folder / "run.json").read_text())["commit"] is None


def test_the_section_shows_recorded_runs_beside_the_fresh_one(recorded):
    paper, fresh = recorded.project.paper("paper"), notebooks.read(stored(recorded, "rate=0.9"))
    text = section(recorded.project, paper, fresh)
    heading, _, rest = text.partition("\n\n")
    assert heading == "## Recorded runs"
    table = ET.fromstring(rest.partition("\n\n")[2].replace("<br>", "<br/>"))
    head = ["".join(cell.itertext()) for cell in table.iter("th") if cell.get("scope") == "col"]
    rows = {
        row[0].text: ["".join(cell.itertext()) for cell in row]
        for row in table.iter("tr")
        if row[0].get("scope") == "row"
    }
    assert len(head) == 4 and len(rows) == 2
    assert (
        "profile smoke" in head[2] and "commit" in head[2] and "commit" not in head[1] and re.search(r"20\d\d", head[2])
    )
    assert any("rate=0.9" in cell for cell in head[2:])
    _, mine, *others = rows["claim c2: a < b"]
    assert mine == "✓ supported0.9 [0, 1]" and set(others) == {"✓ supported0.9 [0, 1]", "✗ contradicted0.001 [0, 1]"}
    assert rows["claim c1: Fast."][1] == "? inconclusive0.5 [−∞, 1.5] points"


def test_without_records_there_is_no_section_and_a_damaged_one_is_named(recorded, tiny):
    tiny.notebook("paper")
    project = Project.find(tiny.root)
    fresh = notebooks.read(stored(recorded, "rate=0.9"))
    assert section(project, project.paper("paper"), fresh) == ""
    for name, text in [("a", "{"), ("b", "[]"), ("c", '{"slug": 1}')]:
        (tiny.root / "records" / "paper" / name).mkdir(parents=True)
        (tiny.root / "records" / "paper" / name / "run.json").write_text(text)
    assert "`a`, `b`, `c`" in section(project, project.paper("paper"), fresh)
    with pytest.raises(PressError, match="damaged"):
        records.of(project, "paper")


def test_compare_shows_what_changed_and_the_figures(recorded):
    notebook, other = stored(recorded, "rate=0.001"), stored(recorded, "rate=0.9")
    done = recorded.run("compare", str(notebook), str(other))
    assert "contradicted → supported" in done.stdout and "effect +0.899" in done.stdout
    assert re.search(r"parameter rate +0\.001 +0\.9", done.stdout) and "parameter seeds" not in done.stdout
    path = recorded.root / done.stdout.splitlines()[-1]
    assert path.parent == recorded.root / "_build" / "compare"
    page = path.read_text()
    pairs = page.split("<section")[1:]
    assert len(pairs) == 2
    assert "picture 1 at 0.001" in pairs[1] and pairs[1].index("picture 1 at 0.001") < pairs[1].index(
        "picture 1 at 0.9"
    )
    # A record has no figures, and everything else.
    done = recorded.run("compare", str(records.of(recorded.project, "paper")[0].folder), str(other))
    assert "contradicted → supported" in done.stdout and "commit" in done.stdout
    assert "no figure" in (recorded.root / done.stdout.splitlines()[-1]).read_text()


def test_compare_takes_the_paper_in_the_book(recorded, tmp_path):
    assert "lossbook build" in recorded.run("compare", "paper", "paper", status=2).stderr
    place = recorded.project.executed(recorded.project.paper("paper"))
    place.parent.mkdir(parents=True)
    shutil.copy(stored(recorded, "rate=0.9"), place)
    try:
        done = recorded.run("compare", "paper", "paper")
        assert "made with" not in done.stdout and "→" not in done.stdout
        # Two runs of one name are told apart by where they are.
        copy = shutil.copy(place, tmp_path / "paper.ipynb")
        assert str(copy) in recorded.run("compare", "paper", str(copy)).stdout
    finally:
        place.unlink()


def test_entries_of_one_side_alone_are_said_to_be(recorded):
    side = compare.load(recorded.project, str(stored(recorded, "rate=0.9")))
    bare = compare.Side("bare", side.path, side.run, side.entries[:1], [])
    assert [row.change for row in compare.entry_rows(side, bare)] == ["", "only on the left", "only on the left"]
    assert [row.change for row in compare.entry_rows(bare, side)] == ["", "only on the right", "only on the right"]
    moved = [{**entry, "high": 9.0, "error": 1e-3} for entry in side.entries]
    other = compare.Side("other", side.path, side.run, moved, [])
    assert [row.change for row in compare.entry_rows(side, other)] == ["error", "interval", "interval"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "unknown run"),
        (lambda path: path.write_text("{"), "damaged"),
        (lambda path: path.write_bytes(b"\xff\x00"), "damaged"),
        (lambda path: path.mkdir(), "no record"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("[]")), "damaged"),
    ],
)
def test_what_is_no_run_is_refused(tiny, tmp_path, make, words):
    tiny.notebook("paper")
    path = tmp_path / "thing"
    if make:
        make(path)
    done = tiny.run("compare", str(path), str(path), status=2)
    assert words in done.stderr and not (tiny.root / "_build").exists()


def test_text_of_notebooks_is_text_in_the_page(recorded):
    side = compare.load(recorded.project, str(stored(recorded, "rate=0.9")))
    entries = [{**side.entries[0], "id": "<script>", "verdict": "<b>"}]
    page = comparison.page(compare.Side("<i>", side.path, side.run, entries, []), side)
    assert not re.search("<script|<b>|<i>", page)
