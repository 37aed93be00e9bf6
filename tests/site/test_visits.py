"""Which pages a browser looks at, in a fresh clone and after edits."""

from pathlib import Path

import pytest
import visits as chosen

PAPERS = [f"{part}/{name}" for part in ("one", "two") for name in ("a", "b", "c")]
PAGES = [
    "intro",
    "gallery",
    "api/index",
    "api/lab",
    "api/methods/one",
    "api/methods/one/a",
    "howto/index",
    "howto/x",
    "howto/y",
    *PAPERS,
]


class Book:
    """A site of these pages and what was seen of it."""

    def __init__(self, folder: Path):
        self.site, self.store = folder / "html", chosen.Store(folder / "visits")
        self.version = "1"
        (self.site / "_static").mkdir(parents=True)
        (self.site / "_static/book.css").write_text("a {}")
        (self.site / "_static/logo.svg").write_text("<svg/>")
        for page in PAGES:
            self.write(page)

    def write(self, page: str, text: str = "words", sidebar: str = "links") -> None:
        path = self.site / f"{page}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<nav>{sidebar}</nav><main><article><p>{text}</p></article></main>")

    def run(self, bad: tuple[str, ...] = ()) -> dict[str, int]:
        """Make the visits that are due, all of them well but those to `bad`; returns how many by page."""
        pages = [path.relative_to(self.site).with_suffix("").as_posix() for path in self.site.rglob("*.html")]
        shared = chosen.shared(self.site, [], [self.version])
        every = chosen.visits(self.site, pages, chosen.sample(pages, PAPERS), shared)
        self.store.begin(every)
        made: dict[str, int] = {}
        for visit in every:
            if not self.store.knows(visit):
                made[visit.page] = made.get(visit.page, 0) + 1
                if visit.page not in bad:
                    self.store.add(visit)
        return made


SAMPLE = {
    "intro",
    "gallery",
    "api/index",
    "api/lab",
    "api/methods/one",
    "api/methods/one/a",
    "howto/index",
    "howto/x",
    "one/a",
    "one/b",
    "two/a",
    "two/b",
}
OTHERS = {*PAGES} - SAMPLE


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def test_a_fresh_clone_looks_at_the_sample(book):
    assert book.run() == dict.fromkeys(SAMPLE, 4)
    assert book.run() == {}


def test_what_an_edit_reaches_is_looked_at(book):
    book.run()
    book.write("two/c", "other words")
    assert book.run() == {"two/c": 2}
    book.write("two/a", "other words")
    assert book.run() == {"two/a": 4}
    # What was seen once need not be seen again.
    book.write("two/c")
    assert book.run() == {}
    # A sidebar is looked at in the sample alone.
    for page in PAGES:
        book.write(page, sidebar="other links")
    assert book.run() == dict.fromkeys(SAMPLE, 4)
    book.write("howto/z")
    assert book.run() == {"howto/z": 2}


@pytest.mark.parametrize("what", ["style", "script", "version"])
def test_what_all_pages_share_reaches_all(book, what):
    book.run()
    if what == "version":
        book.version = "2"
    else:
        (book.site / {"style": "_static/book.css", "script": "_static/new.js"}[what]).write_text("a { color: red }")
    assert book.run() == dict.fromkeys(SAMPLE, 4) | dict.fromkeys(OTHERS, 2)
    (book.site / "_static/logo.svg").write_text("<svg></svg>")
    assert book.run() == {}


def test_what_was_bad_is_looked_at_until_it_is_good(book):
    assert book.run(bad=("gallery",))["gallery"] == 4
    assert book.run(bad=("gallery",)) == {"gallery": 4} == book.run()
    assert book.run() == {}


def test_both_widths_and_schemes_come_in_turn(book):
    shared = chosen.shared(book.site, [], [])
    made = [visit for visit in chosen.visits(book.site, PAGES, [], shared)]
    for page in PAGES:
        mine = [visit for visit in made if visit.page == page]
        assert {visit.width for visit in mine} == {*chosen.WIDTHS} and {visit.scheme for visit in mine} == {
            *chosen.SCHEMES
        }
    assert len({(visit.width, visit.scheme) for visit in made}) == 4
