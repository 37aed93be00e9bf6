import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lossbook.formats import LEDGER_TYPE
from lossbook.press.pages import scoreboard
from lossbook.press.pages.model import Page
from lossbook.press.project import Paper, Project

CHECK = {
    "kind": "check", "id": "sum", "statement": "1 + 1 = 2", "verdict": "verified",
    "error": 1.234e-16, "tolerance": 1e-12, "cases": 1200, "evidence": "error 1e-16",
}  # fmt: skip
CLAIM = {
    "kind": "claim", "id": "c1", "statement": "Fast.", "verdict": "supported", "criterion": "above 0", "effect": 0.5,
    "low": 0.25, "high": 0.75, "margin": 0.0, "seeds": 5, "unit": "points", "against": None, "evidence": "0.5",
}  # fmt: skip


class Board(HTMLParser):
    """The rows of the tables of entries on a part's page: text and link of each cell."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.inside, self.cell = [], False, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "table":
            self.inside = attributes["class"] == "lossbook-entries"
        elif tag == "tr" and self.inside:
            self.rows.append([])
        elif tag in ("td", "th") and self.inside:
            self.rows[-1].append({"text": ""})
            self.cell = True
        elif tag == "a" and self.inside:
            self.rows[-1][-1]["link"] = attributes["href"]
        elif tag not in ("div", "caption", "thead", "tbody", "span", "small", "details", "summary", "a", "strong"):
            assert not self.inside, f"nobody wrote <{tag}>"

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "table"
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside and self.cell:
            self.rows[-1][-1]["text"] += data.strip("\n")

    @property
    def entries(self):
        return [dict(zip(CELLS, row, strict=True)) for row in self.rows if row[0]["text"] != "Verdict"]


CELLS = ("verdict", "entry", "statement", "result", "runs")


@pytest.fixture
def board(tmp_path):
    """`board(paper=[entry, ...])`: the text of the scoreboard; the files are in `board.folder`, see `part` and `data`."""

    def made(heading="*Title* of `x`", failure=None, guides=(), **found):
        pages = []
        for slug, each in found.items():
            outputs = [new_output("display_data", data={LEDGER_TYPE: entry}) for entry in each]
            notebook = new_notebook(cells=[new_markdown_cell(f"# {heading}"), new_code_cell("", outputs=outputs)])
            run = {"part": "layers", "slug": slug, "profile": "quick", "failure": failure}
            notebook.metadata["lossbook"] = {"run": run}
            pages.append(Page.of(Paper("layers", slug, Path(f"{slug}.py"), slug), notebook))
        made.folder = tmp_path / "book"
        for name in guides:
            (made.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (made.folder / name).write_text("# A guide\n")
        scoreboard.write(Project(tmp_path, tmp_path / "_build"), pages, made.folder)
        return (made.folder / "scoreboard.md").read_text(encoding="utf-8")

    made.part = lambda: (made.folder / "scoreboard/layers.md").read_text(encoding="utf-8")
    return made


def shown(text):
    return [{key: cell["text"] for key, cell in row.items()} for row in Board(text).entries]


def data(board, kind):
    """What the search loads: papers and rows."""
    text = (board.folder / f"extra/scripts/scoreboard-{kind}s.js").read_text()
    return json.loads(re.fullmatch(rf'lossbookEntries\("{kind}", (.*)\);\n', text)[1])


def test_a_row_says_what_was_found_and_leads_there(board):
    board(x=[CHECK, CLAIM])
    claim, check = shown(board.part())
    assert check == {
        "entry": "sum",
        "verdict": "✓ verified",
        "statement": "1 + 1 = 2",
        "result": "1.23e-16 tolerance\u00a01e-12",
        "runs": "1,200 cases",
    }
    assert claim["result"] == "0.5 points [0.25, 0.75], margin\u00a00" and claim["runs"] == "5 seeds"
    links = [row["entry"]["link"] for row in Board(board.part()).entries]
    assert links == ["../layers/x.html#claim-c1", "../layers/x.html#check-sum"]
    # Checks are folded, and there is one thing to say of them.
    assert "<summary>1 check, all verified</summary>" in board.part()
    board(x=[CHECK, CHECK | {"id": "other", "verdict": "failed"}])
    assert "<summary>2 checks, <strong>1 failed</strong></summary>" in board.part()


def test_the_search_knows_what_the_pages_show(board):
    board(guides=["_static/scoreboard.js"], x=[CHECK, CLAIM])
    papers, rows = data(board, "claim")
    assert papers == [["Title of x", "layers", "layers/x.html"]]
    result = "0.5 points", "[0.25, 0.75], margin\u00a00", "0.5", "5 seeds", 5
    assert rows == [[0, "c1", "supported", "Fast.", *result]]
    ((_, *check),) = data(board, "check")[1]
    assert check[:3] == ["sum", "verified", "1 + 1 = 2"] and check[5:] == ["1.234e-16", "1,200 cases", 1200]


def test_what_is_missing_or_infinite_is_said(board):
    nothing = dict.fromkeys(("effect", "low", "high"))
    endless = {"effect": -math.inf, "low": -math.inf, "high": math.inf}
    board(
        guides=["_static/scoreboard.js"],
        x=[
            CLAIM | nothing | {"seeds": 0, "unit": "decades"},
            CLAIM | endless | {"against": "8 groups", "margin": -1.0},
            CLAIM | {"effect": math.nan, "seeds": 1},
            CHECK | {"error": None, "verdict": "failed", "cases": 1},
            {"kind": "claim", "id": "bare", "statement": "Bare.", "verdict": "inconclusive"},
        ],
    )
    assert [(row["result"], row["runs"]) for row in shown(board.part())] == [
        ("no value [−∞, ∞], margin\u00a00", "0 seeds"),
        ("−∞ points [−∞, ∞], margin\u00a0-1, against 8 groups", "5 seeds"),
        ("no value [0.25, 0.75], margin\u00a00", "1 seed"),
        ("no value [−∞, ∞], margin\u00a0none", ""),
        ("not finite tolerance\u00a01e-12", "1 case"),
    ]
    assert [row[6] for row in data(board, "claim")[1]] == [None, "-Infinity", None, None]
    assert [row[6] for row in data(board, "check")[1]] == [None]


def test_text_stays_text(board):
    nasty = "<b>'bold'</b> & \"x\" | $a_1$ `c`\n\n# no heading\n\n</table>"
    heading = "Title <i>&</i> *more*"
    found = [CHECK | {"statement": nasty, "id": "a b'<c>"}, CLAIM | {"unit": "<u>", "against": "<s>\n\nx"}]
    text = board(heading=heading, guides=["_static/scoreboard.js"], x=found)
    claim, check = shown(board.part())
    assert check["statement"] == " ".join(nasty.split()) and check["entry"] == "a b'<c>"
    assert "0.5 <u> " in claim["result"] and claim["result"].endswith("against <s> x")
    assert Board(board.part()).entries[1]["entry"]["link"] == "../layers/x.html#check-a%20b%27%3Cc%3E"
    assert "Title &lt;i&gt;&amp;&lt;/i&gt; more</a>" in board.part()
    assert data(board, "claim")[0][0][0] == "Title <i>&</i> more"
    # A table is one block of HTML, as Markdown has it.
    for page, start in (
        (board.part(), '<div class="lossbook-board">'),
        (text, '<div class="lossbook-board" id="board"'),
    ):
        block = page[page.index(start) :].split("\n\n")[0]
        assert block.strip().endswith("</div>") and block.count("<div") == block.count("</div>")


def test_a_book_without_entries_says_so(board):
    for text in (board(), board(x=[])):
        assert "There is no entry yet." in text and "<form" not in text and "0 checks verified" in text
        table = pd.read_csv(board.folder / "extra/downloads/scoreboard.csv")
        assert table.empty and list(table) == list(scoreboard.FIELDS)
        assert list(pd.read_parquet(board.folder / "extra/downloads/scoreboard.parquet")) == list(scoreboard.FIELDS)


def test_downloads_agree_with_the_entries(board):
    found = [CHECK, CLAIM, CLAIM | {"id": "c2", "effect": None, "low": None, "high": None, "statement": 'a "b",\nc'}]
    board(x=found)
    folder = board.folder / "extra/downloads"
    for table in (pd.read_csv(folder / "scoreboard.csv"), pd.read_parquet(folder / "scoreboard.parquet")):
        assert list(table) == list(scoreboard.FIELDS)
        rows = json.loads(table.to_json(orient="records", double_precision=15))
        for row, entry in zip(rows, found, strict=True):
            for key, value in entry.items():
                assert row[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
            assert row["finished"] is True and row["title"] == "Title of x"
            assert row["page"] == f"layers/x.html#{entry['kind']}-{entry['id']}"


def test_a_run_that_failed_is_named(board):
    failure = {"cell": 1, "line": 1, "source": "", "error": "ValueError", "text": "no"}
    text = board(x=[CHECK], failure=failure)
    assert "(layers/x.ipynb): The run did not finish." in text
    assert "Title of x (run did not finish)</a>" in board.part() and "The run did not finish. What" in board.part()
    assert not pd.read_csv(board.folder / "extra/downloads/scoreboard.csv")["finished"].any()
    assert "did not finish" not in board(x=[CHECK]) + board.part()


def counted(text):
    """The rows of a table of scores."""
    cells = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text, re.DOTALL)
    clean = [(re.sub("<[^>]+>", "", name), re.findall("<td>(.*?)</td>", numbers)) for name, numbers in cells]
    return [(name, [int(re.sub("<[^>]+>", "", number)) for number in numbers]) for name, numbers in clean]


def test_the_score_counts_parts_and_papers(board):
    text = board(x=[CHECK, CLAIM], y=[CHECK, CLAIM | {"verdict": "contradicted"}], layers=[])
    # Papers, supported, contradicted, inconclusive, verified, failed; the opening page of a part is no paper.
    assert counted(text) == [("Layers", [2, 1, 1, 0, 2, 0]), ("All parts", [2, 1, 1, 0, 2, 0])]
    papers = counted(board.part().split("## ")[0])
    assert papers == [("Title of x", [1, 0, 0, 1, 0]), ("Title of x", [0, 1, 0, 1, 0])]
    assert 'href="scoreboard.html?verdict=contradicted&amp;part=layers#entries"' in text
    assert "<a href='scoreboard/layers.html'>Layers</a>" in text
    assert "verdict=failed" not in text


def test_only_guides_that_exist_are_linked(board):
    assert ".md)" not in board(x=[CHECK])
    assert "(../scoreboard.md)" in board.part()
    text = board(x=[CHECK], guides=["reading.md", "howto/statistics.md"])
    assert "(reading.md)" in text and "(howto/statistics.md)" in text


def test_the_script_leaves_the_folder_that_every_page_loads(board):
    text = board(x=[CHECK], guides=["_static/scoreboard.js"])
    script = re.search(r"<script defer src='(scripts/scoreboard\.js)\?v=\w{8}'>", text)
    for kind in ("claim", "check"):
        assert re.search(rf'data-{kind}="scripts/scoreboard-{kind}s\.js\?v=\w{{8}}"', text)
    assert (board.folder / "extra" / script[1]).is_file()
    assert not (board.folder / "_static/scoreboard.js").exists()
    assert "<script" not in board(x=[CHECK])
