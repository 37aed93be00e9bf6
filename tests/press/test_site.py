"""Whatever was edited between two renders, the site is the one that a render from nothing gives."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
import pytest
import starter
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lossbook.press.errors import PressError
from lossbook.press.project import Project
from lossbook.press.site import render

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
METADATA = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
RENDER = """
import sys
from pathlib import Path
from lossbook.press.errors import PressError
from lossbook.press.site import render
from lossbook.press.project import Project
try:
    render.render(Project(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]), int(sys.argv[4]))
except PressError as error:
    sys.exit(str(error))
"""
LIBRARY = '''
"""A library."""


def answer() -> int:
    """Give the old answer."""
    return 42
'''
EVERY = {"intro", "references", "part/one", "part/two", "library", "last"}


class Book:
    """An assembled source of a few pages that refer to each other, and the places where it is rendered."""

    def __init__(self, folder: Path, python):
        self.folder, self.source, self.python = folder, folder / "source", python
        # Whatever the configuration speaks of.
        shutil.copytree(ROOT / "book", self.source, ignore=shutil.ignore_patterns("*.md", "howto"))
        shutil.copy(ROOT / "_config.yml", self.source)
        (self.source / "extra").mkdir()
        self.write("extra/data.csv", "a\n1\n")
        self.write("files/kept.txt", "kept")
        self.write("files/dropped.txt", "dropped")
        self.write("intro.md", "# Intro\n\nSee {doc}`part/one`, {eq}`two-sum` and [the place](place).\n")
        self.write("last.md", "# Last\n\nIt speaks of nobody.\n")
        self.write("references.md", "# References\n\nSee {ref}`place`.\n\n```{bibliography}\n```\n")
        self.paper("one", "Paper one", "Said by {cite:t}`comp_sum_losses`.\n\n```{index} borogove\n```\n")
        downloads = "{download}`a <../files/kept.txt>` {download}`b <../files/dropped.txt>`"
        self.paper(
            "two", "Paper two", f"(place)=\n## Place\n\n$$1 + 1 = 2$$ (two-sum)\n\n{downloads}\n", picture=b"old"
        )
        # Where renders find it, since they run there.
        self.module = folder / "library.py"
        self.module.write_text(LIBRARY)
        self.library()
        self.project, self.fresh = Project(folder, folder / "kept"), Project(folder, folder / "fresh")

    def write(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.source / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def paper(self, slug: str, title: str, text: str, picture: bytes = b"picture") -> None:
        cells = [new_markdown_cell(f"# {title}"), new_markdown_cell(text)]
        # What stands behind the end of a picture is not looked at.
        data = {"image/png": b64encode(PIXEL + picture).decode(), "text/plain": "a picture"}
        cells.append(new_code_cell("draw()", outputs=[new_output("display_data", data)], execution_count=1))
        for number, cell in enumerate(cells):
            cell.id = f"{slug}-{number}"
        self.write(f"part/{slug}.ipynb", nbformat.writes(new_notebook(cells=cells, metadata=METADATA)))
        self.contents()

    def contents(self) -> None:
        pages = [{"file": f"part/{path.stem}"} for path in sorted(self.source.glob("part/*.ipynb"))]
        behind = [{"file": name} for name in ("references", "library", "last")]
        parts = [{"caption": "A part", "chapters": pages}, {"caption": "Behind", "chapters": behind}]
        self.write("_toc.yml", yaml.safe_dump({"format": "jb-book", "root": "intro", "parts": parts}))

    def library(self, old: str = "", new: str = "") -> None:
        """Edit the library and write its page: like the press, with a digest of the source."""
        self.module.write_text(self.module.read_text().replace(old, new))
        digest = hashlib.sha256(self.module.read_bytes()).hexdigest()
        self.write(
            "library.md", f"# Library\n\n% {digest}\n\n```{{eval-rst}}\n.. automodule:: library\n   :members:\n```\n"
        )

    def arguments(self, project: Project) -> list[str]:
        return [str(path) for path in (self.folder, project.output, self.source)]

    def make(self, project: Project, jobs: int) -> None:
        done = self.python(RENDER, *self.arguments(project), str(jobs), cwd=self.folder)
        if done.returncode:
            raise PressError(done.stderr)

    def render(self) -> tuple[set[str], set[str]]:
        """Render; returns which pages were read and which were written."""
        # One after the other, so that the log names each page.
        self.make(self.project, jobs=1)
        assert render.current(self.project, self.source)
        log = re.sub(r"\x1b\[[0-9;]*m", "", (self.project.output / "render.log").read_text())
        return tuple(
            set(re.findall(rf"{step}\.\.\. \[ *\d+%\] (\S+)", log)) for step in ("reading sources", "writing output")
        )

    def page(self, name: str) -> str:
        return (self.project.site / f"{name}.html").read_text(encoding="utf-8")

    def is_as_from_nothing(self) -> None:
        shutil.rmtree(self.fresh.output, ignore_errors=True)
        self.make(self.fresh, jobs=2)
        ours, theirs = (
            {str(path.relative_to(each.site)): path.read_bytes() for path in each.site.rglob("*") if path.is_file()}
            for each in (self.project, self.fresh)
        )
        assert sorted(ours) == sorted(theirs)
        assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, python) -> tuple[Book, Path]:
    """A book after its first render, and a copy of all its files."""
    folder = tmp_path_factory.mktemp("site")
    book = Book(folder / "book", python)
    assert book.render() == (EVERY, EVERY)
    return book, Path(shutil.copytree(book.folder, folder / "copy"))


@pytest.fixture
def book(rendered: tuple[Book, Path]) -> Book:
    """A book that was rendered once; in the same place for every test, since Sphinx remembers it."""
    book, copy = rendered
    shutil.rmtree(book.folder)
    shutil.copytree(copy, book.folder)
    return book


def test_an_edit_renders_what_depends_on_it(book):
    # Words alone: nobody else shows them. (The front page is always written.)
    book.replace("part/one.ipynb", "Said by", "With a borogrove, said by")
    book.write("extra/data.csv", "a\n2\n")
    assert book.render() == ({"part/one"}, {"intro", "part/one"})
    assert "With a borogrove" in book.page("part/one") and (book.project.site / "data.csv").read_text() == "a\n2\n"
    index = (book.project.site / "searchindex.js").read_text()
    assert "borogrov" in index and '"borogove"' in index
    book.is_as_from_nothing()

    # A title is in every sidebar and in references; a picture and a download go.
    book.replace("part/two.ipynb", "Paper two", "Paper the second")
    book.replace("part/two.ipynb", " {download}`b <../files/dropped.txt>`", "")
    book.replace("part/two.ipynb", b64encode(PIXEL + b"old").decode(), b64encode(PIXEL + b"new").decode())
    assert book.render() == ({"part/two"}, EVERY - {"library", "last"})
    assert all("Paper the second" in book.page(name) and "Paper two" not in book.page(name) for name in EVERY)
    assert "Paper the second" in book.page("_modules/library")
    book.is_as_from_nothing()

    # A label, an equation and a citation are shown on other pages.
    book.replace("part/two.ipynb", "## Place", "## Elsewhere")
    assert book.render() == ({"part/two"}, {"intro", "part/two", "references"})
    assert "Elsewhere" in book.page("part/two") and "Elsewhere" in book.page("references")
    book.is_as_from_nothing()
    book.replace("part/one.ipynb", "cite:t}`comp_sum_losses`", "cite:t}`dice_loss`")
    assert book.render() == ({"part/one"}, {"intro", "part/one", "references"})
    book.is_as_from_nothing()


def test_an_edit_of_the_library_renders_the_pages_that_show_it(book):
    book.library("the old answer", "the new answer")
    assert book.render() == ({"library"}, {"intro", "library"})
    assert "the new answer" in book.page("library") and "the new answer" in book.page("_modules/library")
    book.is_as_from_nothing()
    # A new name is for whoever speaks of the library, and for the index.
    book.library("def answer", 'def question() -> int:\n    """Ask."""\n    return 6 * 9\n\n\ndef answer')
    assert book.render() == ({"library"}, {"intro", "library"})
    book.is_as_from_nothing()


def test_formulas_are_kept_whatever_starts_from_nothing(book):
    made, site = book.project.output / "formulas.sqlite", book.page("part/two")
    before = made.stat().st_mtime_ns
    shutil.rmtree(book.project.output / "render")
    (book.project.site / ".source").unlink()
    book.render()
    assert made.stat().st_mtime_ns == before and book.page("part/two") == site
    # What cannot be read is no reason to stop.
    made.write_bytes(b"damaged" * 1000)
    (book.project.site / ".source").unlink()
    shutil.rmtree(book.project.output / "render")
    book.render()
    assert book.page("part/two") == site


def test_styles_and_contents_start_from_nothing(book):
    book.write("_static/lossbook.css", "body { color: rebeccapurple }\n")
    assert book.render() == (EVERY, EVERY)
    assert "rebeccapurple" in (book.project.site / "_static/lossbook.css").read_text()
    book.paper("three", "Paper three", "Late.")
    assert book.render() == ({*EVERY, "part/three"},) * 2
    assert "Paper three" in book.page("references")
    (book.source / "part/three.ipynb").unlink()
    book.contents()
    assert book.render() == (EVERY, EVERY)
    assert not (book.project.site / "part/three.html").exists()
    book.is_as_from_nothing()


def test_a_warning_does_not_pass_the_second_time(book):
    before = book.page("part/one")
    # The page that refers to it is not touched, and the warning is that page's.
    book.replace("part/two.ipynb", "(two-sum)", "(two-total)")
    for _ in range(2):
        with pytest.raises(PressError, match=r"intro\.md.*two-sum"):
            book.render()
        assert book.page("part/one") == before and not render.current(book.project, book.source)
    book.replace("part/two.ipynb", "(two-total)", "(two-sum)")
    read, _ = book.render()
    assert "intro" in read
    # A warning while reading: the page itself stays as it is.
    book.replace("part/one.ipynb", "Said by", "{nothing}`x` Said by")
    for _ in range(2):
        with pytest.raises(PressError, match=r"one\.ipynb.*nothing"):
            book.render()
    book.replace("part/one.ipynb", "{nothing}`x` Said by", "Said by")
    book.render()
    assert book.page("part/one") == before
    book.is_as_from_nothing()


def test_a_killed_render_leaves_the_last_site_and_does_not_spoil_the_next(book, alive, wait_for):
    before = book.page("part/one")
    book.replace("part/one.ipynb", "Said by", "Uttered by")
    log = book.project.output / "render.log"
    log.unlink()
    press = starter.python(RENDER, *book.arguments(book.project), "1", cwd=book.folder, env=dict(os.environ))
    # It says so once it reads, and what state was there is gone by then.
    wait_for(lambda: log.exists() and "Source Folder" in log.read_text(), press)
    assert not (book.project.output / "render/state").exists()
    [child] = subprocess.run(["pgrep", "-P", str(press.pid)], capture_output=True, text=True).stdout.split()
    os.kill(press.pid, signal.SIGKILL)
    press.wait()
    # Nobody is left to write into the folder.
    wait_for(lambda: not alive(int(child)))
    assert book.page("part/one") == before
    assert book.render()[0] == EVERY
    assert "Uttered by" in book.page("part/one")
    book.is_as_from_nothing()


def test_a_reader_never_sees_half_a_site(book):
    opened = (book.project.site / "part/one.html").open(encoding="utf-8")
    before = book.page("part/one")
    book.replace("part/one.ipynb", "Said by", "Uttered by")
    book.render()
    # Whoever has a page open reads it to its end: it is not written over.
    assert opened.read() == before != book.page("part/one")
    opened.close()


def test_a_swap_that_was_cut_short_is_undone(book):
    before = book.page("part/one")
    os.rename(book.project.site, book.project.output / "html.old")
    book.replace("part/one.ipynb", "Said by", "{nothing}`x`")
    with pytest.raises(PressError):
        book.render()
    assert book.page("part/one") == before


def test_sync_touches_only_what_differs(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    (source / "empty").mkdir()
    for name in ("same", "folder/other", "gone"):
        (source / name).write_text(name)
    render.sync(source, target)
    for path in target.rglob("*"):
        os.utime(path, (1, 1))
    (source / "gone").unlink()
    (source / "folder/other").write_text("OTHER")
    (source / "new").write_text("")
    render.sync(source, target)
    assert {str(path.relative_to(target)) for path in target.rglob("*")} == {
        "same",
        "folder",
        "folder/other",
        "empty",
        "new",
    }
    assert (target / "same").stat().st_mtime == 1 < (target / "folder/other").stat().st_mtime
    assert (target / "folder/other").read_text() == "OTHER"
