"""Gallery, roadmap and front page of made-up papers."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbformat.v4 import new_notebook

from lossbook.press.pages import catalogue, front_page, gallery, roadmap
from lossbook.press.pages.model import Figure, Page
from lossbook.press.project import Paper, Project

BAD = """<b>"Bold" & 'free'</b>"""


def project(tmp_path: Path, rows: str = "", parts: str = "") -> Project:
    (tmp_path / "book" / "_static").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    if rows:
        head = "part,slug,title,authors,year,venue,arxiv,official_code\n"
        (tmp_path / "book" / "catalogue.csv").write_text(head + rows)
    if parts:
        (tmp_path / "book" / "parts.yml").write_text(parts)
    return Project(tmp_path, tmp_path / "_build")


def entry(kind: str, verdict: str) -> dict:
    return {"kind": kind, "id": "c1", "verdict": verdict, "statement": "", "evidence": ""}


def page(slug="one", part="part_one", *, title="A title", heading="A heading", failed=False, **changes) -> Page:
    notebook = new_notebook(metadata={"lossbook": {"run": {"status": "failed" if failed else "finished"}}})
    if failed:
        notebook.metadata["lossbook"]["run"]["failure"] = {
            "error": "ValueError",
            "text": "no",
            "cell": 1,
            "line": 2,
            "source": "",
        }
    paper = Paper(part, slug, Path(f"{slug}.py"), title, changes.pop("authors", ""), changes.pop("year", ""))
    about = {"idea": "", "tags": (), "entries": (), "figures": (), "figure": None, "uses": frozenset()} | changes
    return Page(paper=paper, notebook=notebook, heading=heading, **about)


class Read(HTMLParser):
    """Start tags with their attributes, and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, kind=""):
        return [found for name, found in self.tags if name == tag and kind in found.get("class", "").split(" ")]


def written(writer, project: Project, pages, name: str) -> str:
    folder = project.root / "out"
    (folder / "_static").mkdir(parents=True, exist_ok=True)
    (folder / "_static" / f"{name}.js").write_text("// script")
    writer.write(project, pages, folder)
    return (folder / f"{name}.md").read_text()


def test_an_empty_book(tmp_path):
    empty = project(tmp_path)
    text = written(gallery, empty, [], "gallery")
    assert "No paper has a page yet" in text and "<form" not in text
    text = written(roadmap, empty, [], "roadmap")
    assert "0 papers; 0 have a page" in text and "<table" not in text
    assert front_page.picture(empty, []) == ""
    assert "0 papers" in front_page.score(empty, []) and " of " not in front_page.score(empty, [])


def test_a_book_of_plans_alone(tmp_path):
    plans = project(tmp_path, 'one,a,Title,"A, B",2020 (v2),,2001.00001,\none,b,Other,C,2021,,,x/y (JAX)\n')
    text = written(roadmap, plans, [], "roadmap")
    assert "2 papers; 0 have a page" in text and text.count("\nplanned\n</td>") == 2
    assert "https://arxiv.org/abs/2001.00001" in text and "<span>2020</span>" in text
    assert 'href="https://github.com/x/y"' in text and "</a> (JAX)" in text
    tiles = Read(front_page.picture(plans, []))
    # The last is in the legend.
    assert len(tiles.all("i", "lossbook-tile")) == 3 and tiles.all("a", "lossbook-tile") == []
    assert "0 of 2" in tiles.text


def test_markup_in_titles_stays_text(tmp_path):
    figure = Figure("figures/one.svg", BAD, 200, 100, b"")
    bad = page(title=BAD, idea=BAD, tags=(BAD, "b"), authors=BAD, year="2020", figure=figure)
    book = project(tmp_path)
    card = Read(written(gallery, book, [bad], "gallery"))
    (found,) = card.all("li", "lossbook-card")
    assert json.loads(found["data-tags"]) == [BAD, "b"] and BAD in found["data-text"]
    assert [image["alt"] for image in card.all("img")] == [BAD]
    assert BAD in [option["value"] for option in card.all("option")]
    assert card.all("b") == [] and card.text.count(BAD) == 4
    text = Read(written(roadmap, book, [bad], "roadmap"))
    assert text.all("b") == [] and text.text.count(BAD) == 2
    picture = Read(front_page.picture(book, [bad]))
    assert picture.all("b") == []
    assert picture.all("a", "lossbook-tile")[0]["aria-label"] == f"{BAD}: no claims"


def test_headings_are_markdown(tmp_path):
    text = written(gallery, project(tmp_path), [page(heading="The $\\ell_2$ *norm*")], "gallery")
    assert "\n\n[The $\\ell_2$ *norm*](part_one/one.ipynb)\n\n" in text


def test_what_a_paper_lacks_leaves_no_trace(tmp_path):
    text = written(gallery, project(tmp_path), [page()], "gallery")
    card = Read(text)
    assert card.all("img") == [] and card.all("p", "lossbook-outcome") == [] and "<p></p>" not in text
    assert card.all("p", "lossbook-card-source") == []
    assert card.all("li", "lossbook-card")[0]["data-tags"] == "[]"
    assert "1 paper</p>" in text


def test_no_blank_line_ends_a_block_of_html(tmp_path):
    """Markdown would take what follows for text."""
    figure = Figure("figures/one.svg", "A curve.", 200, 100, b"")
    text = written(gallery, project(tmp_path), [page(figure=figure, idea="An idea."), page("two")], "gallery")
    for block in re.split(r"\n\s*\n", text):
        assert block.startswith(("<", "#", "[", "Every")), block
    assert text.count("<li") == text.count("</li>") == 2


def test_verdicts_are_counted(tmp_path):
    found = [entry("claim", v) for v in ("supported", "contradicted", "supported", "inconclusive")]
    found += [entry("check", v) for v in ("verified", "failed", "verified")]
    judged = page(entries=tuple(found))
    lines = Read(catalogue.verdicts(judged)).text.split("\n")
    assert lines == ["Claims ✓ 2 supported ✗ 1 contradicted ? 1 inconclusive", "Checks ✓ 2 verified ✗ 1 failed"]
    card = Read(written(gallery, project(tmp_path), [judged], "gallery")).all("li", "lossbook-card")[0]
    assert card["data-verdicts"] == "supported contradicted inconclusive"
    tile = front_page.picture(Project(tmp_path, tmp_path), [judged])
    assert "A title: 2 supported, 1 contradicted, 1 inconclusive" in tile
    # One more of each is in the legend.
    assert [tile.count(f"lossbook-mark lossbook-{verdict}") for verdict in catalogue.CLAIMS] == [3, 2, 2]


def test_a_run_that_failed_says_so(tmp_path):
    book, failed = project(tmp_path), page(failed=True)
    assert "run not finished" in written(gallery, book, [failed], "gallery")
    assert "run not finished" in written(roadmap, book, [failed], "roadmap")
    assert "A title: run not finished" in front_page.picture(book, [failed])


def test_parts_keep_the_order_of_the_book(tmp_path):
    book = project(
        tmp_path, "b,later,Later,,2020,,,\na,planned,Planned,,2020,,,\n", "b: Part B\na: Part A\nempty: None\n"
    )
    pages = [page("extra", "c"), page("done", "a"), page("a", "a", heading="About A")]
    found = catalogue.parts(book, pages)
    assert [(part.title, [item.slug for item in part.items], part.done) for part in found] == [
        ("Part B", ["later"], 0),
        ("Part A", ["done", "planned"], 1),
        ("C", ["extra"], 1),
    ]
    # The opening page of a part is no paper.
    text = written(roadmap, book, pages, "roadmap")
    assert "[About A](a/a.ipynb)" in text and "4 papers; 2 have a page" in text
    assert written(gallery, book, pages, "gallery").count('<li class="lossbook-card"') == 2


def test_without_its_script_the_gallery_has_no_filters(tmp_path):
    book = project(tmp_path)
    (tmp_path / "out").mkdir()
    gallery.write(book, [page()], tmp_path / "out")
    text = (tmp_path / "out" / "gallery.md").read_text()
    assert "<form" not in text and "<script" not in text and "lossbook-card" in text


def test_the_script_moves_to_its_page(tmp_path):
    text = written(gallery, project(tmp_path), [page()], "gallery")
    assert re.search(r"<script defer src='scripts/gallery\.js\?v=[0-9a-f]{8}'></script>", text)
    assert (tmp_path / "out/extra/scripts/gallery.js").read_text() == "// script"
    assert not (tmp_path / "out/_static/gallery.js").exists()


def test_recorded_runs_and_the_library_are_linked(tmp_path):
    book = project(tmp_path)
    for name in ("one", "two", ".new"):
        (folder := tmp_path / "records" / "temperature_free_infonce" / name).mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    papers = [page("temperature_free_infonce", "contrastive")]
    text = written(roadmap, book, papers, "roadmap")
    assert 'temperature_free_infonce.html#recorded-runs">2 recorded runs</a>' in text and "\nlibrary module, " in text
    (reference := tmp_path / "out/api/methods/contrastive").mkdir(parents=True)
    (reference / "temperature_free_infonce.md").write_text("")
    text = written(roadmap, book, papers, "roadmap")
    assert '<a href="api/methods/contrastive/temperature_free_infonce.html">library module</a>' in text


@pytest.mark.parametrize("number", [1, 2, 5, 9, 10, 17])
def test_marks_stay_within_their_square(tmp_path, number):
    claims = tuple(entry("claim", catalogue.CLAIMS[i % 3]) for i in range(number))
    tiles = front_page.picture(project(tmp_path), [page(entries=claims)]).split("<figcaption")[0]
    places = re.findall(r"translate\(([\d.]+) ([\d.]+)\) scale\(([\d.]+)\)", tiles)
    places = [tuple(map(float, place)) for place in places]
    assert len(places) == number
    # Strokes are half a mark's radius wide.
    assert all(1.2 * radius <= min(x, y) and max(x, y) <= front_page.SIDE - 1.2 * radius for x, y, radius in places)
    for i, (x, y, radius) in enumerate(places):
        assert all(max(abs(x - u), abs(y - v)) > 2 * radius for u, v, _ in places[:i])


def test_places_in_hand_written_pages_are_filled(tmp_path):
    book = project(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "intro.md").write_text("# A\n\n<!-- lossbook:score -->\n\n<!-- lossbook:picture -->\n")
    (folder / "other.md").write_text("# B\n")
    front_page.write(book, [page()], folder)
    text = (folder / "intro.md").read_text()
    assert "<!--" not in text and "1 papers" not in text and "1 paper<" in text and "lossbook-map" in text
    assert (folder / "other.md").read_text() == "# B\n"
