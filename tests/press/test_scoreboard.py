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
    """The rows of the table of entries: text, link and number of each cell."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.depth = [], 0
        self.feed(text[text.index("<div class='lossbook-board'>") :] if "lossbook-board" in text else "")

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "tr":
            self.rows.append({"of": attributes, "cells": []})
        elif tag in ("td", "th"):
            self.rows[-1]["cells"].append({"text": "", "value": attributes.get("data-value")})
        elif tag == "a" and self.rows:
            self.rows[-1]["cells"][-1]["link"] = attributes["href"]
        elif tag not in ("div", "form", "label", "input", "select", "option", "button", "p", "table", "caption", "thead",
                         "tbody", "span", "small", "script", "a"):  # fmt: skip
            raise AssertionError(f"nobody wrote <{tag}>")

    def handle_data(self, data):
        if self.rows and self.rows[-1]["cells"]:
            self.rows[-1]["cells"][-1]["text"] += data.strip("\n")

    @property
    def entries(self):
        return [dict(zip(scoreboard.COLUMNS, row["cells"], strict=True)) for row in self.rows[1:]]


@pytest.fixture
def board(tmp_path):
    """`board(paper=[entry, ...])`: the text of the scoreboard; the files are in `board.folder`."""

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

    return made


def shown(text):
    return [{key: cell["text"] for key, cell in row.items()} for row in Board(text).entries]


def test_a_row_says_what_was_found_and_leads_there(board):
    text = board(x=[CHECK, CLAIM])
    check, claim = shown(text)
    assert check == {
        "paper": "Title of x",
        "part": "Layers",
        "entry": "check sum",
        "verdict": "✓ verified",
        "statement": "1 + 1 = 2",
        "result": "1.23e-16 tolerance\u00a01e-12",
        "runs": "1,200 cases",
        "profile": "quick",
    }
    assert claim["result"] == "0.5 points [0.25, 0.75], margin\u00a00" and claim["runs"] == "5 seeds"
    links = [row["entry"]["link"] for row in Board(text).entries]
    assert links == ["layers/x.html#check-sum", "layers/x.html#claim-c1"]
    assert [row["result"]["value"] for row in Board(text).entries] == ["1.234e-16", "0.5"]
    assert [row["of"]["data-verdict"] for row in Board(text).rows[1:]] == ["verified", "supported"]


def test_what_is_missing_or_infinite_is_said(board):
    nothing = dict.fromkeys(("effect", "low", "high"))
    endless = {"effect": -math.inf, "low": -math.inf, "high": math.inf}
    text = board(
        x=[
            CLAIM | nothing | {"seeds": 0, "unit": "decades"},
            CLAIM | endless | {"against": "8 groups", "margin": -1.0},
            CLAIM | {"effect": math.nan, "seeds": 1},
            CHECK | {"error": None, "verdict": "failed", "cases": 1},
            {"kind": "claim", "id": "bare", "statement": "Bare.", "verdict": "inconclusive"},
        ]
    )
    assert [(row["result"], row["runs"]) for row in shown(text)] == [
        ("no value [−∞, ∞], margin\u00a00", "0 seeds"),
        ("−∞ points [−∞, ∞], margin\u00a0-1, against 8 groups", "5 seeds"),
        ("no value [0.25, 0.75], margin\u00a00", "1 seed"),
        ("not finite tolerance\u00a01e-12", "1 case"),
        ("no value [−∞, ∞], margin\u00a0none", ""),
    ]
    assert [row["result"]["value"] for row in Board(text).entries] == [None, "-Infinity", None, None, None]


def test_text_stays_text(board):
    nasty = "<b>'bold'</b> & \"x\" | $a_1$ `c`\n\n# no heading\n\n</table>"
    text = board(
        heading="Title <i>&</i> *more*",
        x=[CHECK | {"statement": nasty, "id": "a b'<c>"}, CLAIM | {"unit": "<u>", "against": "<s>\n\nx"}],
    )
    check, claim = shown(text)
    assert check["statement"] == " ".join(nasty.split())
    assert check["paper"] == "Title <i>&</i> more" and check["entry"] == "check a b'<c>"
    assert "0.5 <u> " in claim["result"] and claim["result"].endswith("against <s> x")
    assert Board(text).entries[0]["entry"]["link"] == "layers/x.html#check-a%20b%27%3Cc%3E"
    # The table is one block of HTML, as Markdown has it.
    block = text[text.index("<div class='lossbook-board'>") :]
    assert "\n\n" not in block.strip() and block.strip().endswith("</div>")


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
    assert shown(text)[0]["paper"] == "Title of x (run did not finish)"
    assert not pd.read_csv(board.folder / "extra/downloads/scoreboard.csv")["finished"].any()
    assert "did not finish" not in board(x=[CHECK])


def test_the_score_counts_parts_and_papers(board):
    text = board(x=[CHECK, CLAIM], y=[CHECK, CLAIM | {"verdict": "contradicted"}], layers=[])
    numbers = [
        (
            re.sub("<[^>]+>", "", name),
            [int(re.sub("<[^>]+>", "", cell)) for cell in re.findall("<td>(.*?)</td>", cells)],
        )
        for name, cells in re.findall("<tr><th scope='row'>(.*?)</th>(.*?)</tr>", text)
    ]
    # Papers, verified, failed, supported, contradicted, inconclusive; the opening page of a part is no paper.
    assert numbers[:2] == [("Layers", [2, 2, 0, 1, 1, 0]), ("All parts", [2, 2, 0, 1, 1, 0])]
    assert numbers[2:] == [("Title of x", [1, 0, 1, 0, 0]), ("Title of x", [1, 0, 0, 1, 0])]
    assert "href='scoreboard.html?part=layers&amp;verdict=contradicted#entries'" in text
    assert "verdict=failed" not in text


def test_only_guides_that_exist_are_linked(board):
    assert ".md)" not in board(x=[CHECK])
    text = board(x=[CHECK], guides=["reading.md", "howto/statistics.md"])
    assert "(reading.md)" in text and "(howto/statistics.md)" in text


def test_the_script_leaves_the_folder_that_every_page_loads(board):
    text = board(x=[CHECK], guides=["_static/scoreboard.js"])
    script = re.search(r"<script defer src='(scripts/scoreboard\.js)\?v=\w{8}'>", text)
    assert (board.folder / "extra" / script[1]).is_file()
    assert not (board.folder / "_static/scoreboard.js").exists()
    assert "<script" not in board(x=[CHECK])
