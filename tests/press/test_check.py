"""Every rule about pages catches a page that breaks it, and says which page and what."""

import shutil
from pathlib import Path

import pytest

from lossbook.press.errors import PressError
from lossbook.press.project import Project
from lossbook.press.site import check

FORMULA = '<span class="math"><mjx-container><mjx-math></mjx-math></mjx-container></span>'
GOOD = f"""<!DOCTYPE html>
<html lang="en"><head><title>Paper</title><link rel="stylesheet" href="../_static/book.css?v=1">
<link rel="canonical" href="https://example.org/paper.html"></head><body>
<nav><a href="../intro.html">Intro</a> <a href="#results">Results</a> <a href="https://example.org">elsewhere</a></nav>
<main><h1 id="paper">A paper</h1><p>Let {FORMULA} be. <code>\\frac{{a}}{{b}} {{cite:t}}</code></p>
<h2 id="results">Results<a class="headerlink" href="#results">#</a></h2>
<figure><a href="../figures/one.svg"><img src="../figures/one.svg" alt="Two curves that rise and then cross." width="400"
height="300"></a><figcaption>The first is steeper from the start.</figcaption></figure>
<p><span class="lossbook-verdict lossbook-supported">✓ supported</span> <a href="../intro.html#start">start</a></p>
<button aria-label="Copy"></button><script src="../_static/book.js"></script></main></body></html>
"""
INTRO = """<html lang="en"><head><title>Intro</title></head><body><main><h1 id="start">Intro</h1>
<a href="part/paper.html">the paper</a></main></body></html>"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A site of two pages that nothing is wrong with."""
    made = Project(tmp_path, tmp_path / "_build")
    for name, content in {
        "index.html": '<meta http-equiv="Refresh" content="0; url=intro.html" />',
        "intro.html": INTRO,
        "part/paper.html": GOOD,
        "_static/book.css": "a { background: url(data:image/png;base64,AAAA) }",
        "_static/book.js": "",
        "_static/brought-along.html": "<p id=a><p id=a>",
        "figures/one.svg": "<svg width='400pt'></svg>",
    }.items():
        (made.site / name).parent.mkdir(parents=True, exist_ok=True)
        (made.site / name).write_text(content)
    return made


def edit(project: Project, old: str, new: str, name: str = "part/paper.html") -> None:
    path = project.site / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_good_site_is_not_complained_of(project):
    assert check.check(project) == []


BROKEN = {
    "a language": (' lang="en"', "", "does not say its language"),
    "a title": ("<title>Paper</title>", "<title> </title>", "has no title"),
    "an id twice": ('<p>Let', '<p id="results">Let', "two elements have the id results"),
    "no heading": ("<h1 ", "<h2 ", "does not open with its only heading"),
    "two headings": ('<h2 id="results">', '<h1 id="results">', "does not open with its only heading"),
    "a heading too deep": ('<h2 id="results">', '<h3 id="results">', "'Results#' is of level 3, after one of level 1"),
    "an empty heading": ("Results<a", "<a", "a heading is empty"),
    "a formula as text": (FORMULA, '<span class="math"><code>a^2</code></span>', "not rendered: a^2"),
    "a formula twice": (
        "<mjx-math></mjx-math>",
        "<mjx-math></mjx-math></mjx-container><mjx-container>",
        "a formula was not rendered",
    ),
    "an error in a formula": ("<mjx-math></mjx-math>", "<mjx-merror>Missing brace</mjx-merror>", "error: Missing brace"),
    "TeX in the text": ("be. ", r"be \frac{a}{b}. ", r"left in the text: A paper Let be \frac{"),
    "dollars in the text": ("be. ", "be $$a$$. ", "left in the text: A paper Let be $$"),
    "a role in the text": ("be. ", "be {cite:t}`x`. ", "left in the text: A paper Let be {cite"),
    "no alternative text": ('alt="Two curves that rise and then cross."', "", "one.svg has no alternative text"),
    "a short one": ("Two curves that rise and then cross.", "Two curves.", "one.svg has no alternative text"),
    "a file's name for it": ("Two curves that rise and then cross.", "../figures/one.svg", "no alternative text"),
    "no width": ('width="400"', "", "one.svg does not say a width and a height"),
    "a tiny picture": ('height="300"', 'height="3"', "one.svg does not say a width and a height"),
    "no caption": ("<figcaption>The first is steeper from the start.</figcaption>", "", "a figure has no caption"),
    "a short caption": ("The first is steeper from the start.", "A figure.", "a figure has no caption"),
    "a link without a name": (">start</a>", "></a>", "a link or button has no name: <a href"),
    "a button without a name": (' aria-label="Copy"', "", "a link or button has no name: <button>"),
    "a verdict in colour alone": ("✓ supported", "✓", "a verdict does not say supported"),
    "a verdict of another word": ("✓ supported", "✗ contradicted", "a verdict does not say supported"),
    "a script from outside": ('src="../_static/book.js"', 'src="https://cdn.example/a.js"', "it loads https://cdn.exa"),
    "without a scheme": ('src="../_static/book.js"', 'src="//cdn.example/a.js"', "it loads //cdn.example/a.js"),
    "a style sheet from outside": ("../_static/book.css?v=1", "https://cdn.example/a.css", "it loads https://cdn.exa"),
    "a font from outside": ("<main>", "<style>@import 'https://fonts.example/a';</style><main>", "it loads https://fon"),
    "a background": ("<main>", '<main style="background: url(//x.example/a.png)">', "it loads //x.example/a.png"),
    "a picture from outside": ("<main>", '<main><video poster="http://x.example/a">', "it loads http://x.example/a"),
    "a larger one": ('width="400"', 'width="400" srcset="../figures/one.svg 1x, https://x.example/a 2x"', "it loads http"),
    "no main part": ("main>", "div>", "it has no main part"),
    "a page that is not there": ('"../intro.html"', '"../into.html"', "needs into.html, which is not there"),
    "a place that is not there": ("#start", "#end", "links to intro.html#end, and nothing there is called so"),
    "a place of its own": ('href="#results">R', 'href="#result">R', "part/paper.html#result, and nothing there"),
    "a file that is not there": ("../_static/book.js", "../_static/books.js", "needs _static/books.js, which is not"),
    "a place above the site": ('"../intro.html"', '"../../intro.html"', "needs ../intro.html, which is not there"),
    "too many bytes": ("</main>", f"<!--{'x' * check.LARGE}--></main>", "bytes, more than 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_wrong_with_a_page_is_told(project, broken):
    old, new, words = BROKEN[broken]
    edit(project, old, new)
    complaints = check.check(project)
    assert any(words in complaint for complaint in complaints), complaints
    assert all(complaint.startswith("page part/paper") for complaint in complaints)


def test_a_reference_may_be_long(project):
    edit(project, "</main>", f"<!--{'x' * check.LARGE}--></main>")
    (project.site / "api").mkdir()
    (project.site / "part/paper.html").rename(project.site / "api/paper.html")
    edit(project, "part/paper.html", "api/paper.html", "intro.html")
    assert check.check(project) == []


def test_files_are_looked_at(project):
    (project.site / "figures/one.svg").write_text("not found")
    assert check.check(project) == ["page part/paper: it needs figures/one.svg, which is no picture"]
    (project.site / "figures/one.svg").unlink()
    assert check.check(project) == ["page part/paper: it needs figures/one.svg, which is not there"]


def test_style_sheets_are_looked_at(project):
    (project.site / "_static/book.css").write_text("@font-face { src: url('https://fonts.example/a.woff') }")
    assert check.check(project) == ["style sheet _static/book.css: it loads https://fonts.example/a.woff"]


def test_what_many_pages_have_is_told_once(project):
    for name in ("one", "two"):
        shutil.copy(project.site / "part/paper.html", project.site / f"part/{name}.html")
    for name in ("one", "two", "paper"):
        edit(project, '"../intro.html"', '"../into.html"', f"part/{name}.html")
    assert check.check(project) == ["page part/one and 2 more: it needs into.html, which is not there"]


def test_only_what_changed_is_parsed_again(project, monkeypatch):
    looked = []
    examine = check.examine
    monkeypatch.setattr(check, "examine", lambda name, *rest: looked.append(name) or examine(name, *rest))
    edit(project, "Two curves that rise and then cross.", "Two curves.")
    first = check.check(project)
    assert looked == ["index.html", "intro.html", "part/paper.html"] and len(first) == 1
    # What was wrong still is.
    assert check.check(project) == first and len(looked) == 3
    # The page that links there is not parsed again, and its link is lost all the same.
    edit(project, 'id="start"', 'id="begin"', "intro.html")
    found = check.check(project)
    assert looked[3:] == ["intro.html"] and len(found) == 2
    assert "page part/paper: it links to intro.html#start, and nothing there is called so" in found
    # Other rules, or a file that is damaged: all of them.
    kept = project.output / "checks.json"
    kept.write_text(kept.read_text()[:100])
    assert check.check(project) == found and len(looked) == 7
    monkeypatch.setattr(check, "_version", lambda: "other rules")
    assert check.check(project) == found and len(looked) == 10


def test_before_the_first_build(tmp_path):
    with pytest.raises(PressError, match="there is no site in"):
        check.check(Project(tmp_path, tmp_path / "_build"))


@pytest.mark.slow
def test_a_build_tells_it_and_shows_the_site_all_the_same(tiny):
    code = """\
from IPython.display import HTML, display
display(HTML('<p id="twice">a</p><p id="twice">b</p>'))
"""
    tiny.notebook("good")
    path = tiny.notebook("bad", code)
    words = "page part_one/bad: two elements have the id twice"
    for _ in range(2):
        # A site that is up to date is as bad as when it was made.
        done = tiny.run("build", "--profile", "smoke", status=1)
        assert f"the site is built, but not everything went well:\n  {words}\n" in done.stderr
        assert str(tiny.root / "_build/html/index.html") in done.stdout
    path.write_text(path.read_text().replace('</p><p id="twice">', "</p><p>"))
    done = tiny.run("build", "--profile", "smoke", "--only", "bad")
    assert str(tiny.root / "_build/html/part_one/bad.html") in done.stdout and words not in done.stderr
