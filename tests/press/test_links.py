import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lossbook.press.errors import PressError
from lossbook.press.site import links


class Elsewhere(BaseHTTPRequestHandler):
    """Answers with the status that the path names; /get knows no HEAD, /slow takes long, /moved is elsewhere."""

    asked: list = []  # noqa: RUF012

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.asked.append((self.command, self.path))
        name = self.path.strip("/")
        if name == "slow":
            self.server.end.wait()
        if name == "moved":
            self.send_response(301)
            self.send_header("Location", "/200")
        else:
            self.send_response({"get": 200 if self.command == "GET" else 501, "slow": 200}.get(name) or int(name))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def elsewhere():
    Elsewhere.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        server.end = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.end.set()
        server.shutdown()


@pytest.fixture
def book(tiny):
    """Writes the pages of a site."""

    def write(**pages: str):
        for name, text in {"index": "", **pages}.items():
            path = tiny.root / "_build/html" / f"{name}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tiny

    return write


def test_external_links_are_listed_with_their_places(book):
    tiny = book(
        b='<a href="https://x.org/a?b=1&amp;c=2">a</a> <a href="https://x.org/#p">b</a><script src="http://no.org"></script>',
        a='<a class="y" href="https://x.org/#p">a</a> <a href="c.html">c</a> <a href="mailto:a@x.org">m</a> <a>n</a>',
    )
    found = links.external(tiny.root / "_build/html")
    assert found == [
        links.Link("https://x.org/#p", 2, "a.html"),
        links.Link("https://x.org/a?b=1&c=2", 1, "b.html"),
    ]
    shown = tiny.run("links").stdout.splitlines()
    assert any(line.split() == ["https://x.org/#p", "2", "a.html"] for line in shown)


def test_without_a_site_there_is_nothing_to_list(tiny):
    assert "lossbook build" in tiny.run("links", status=1).stderr


def test_visits_tell_the_living_from_the_dead(elsewhere):
    states = {
        "200": "alive",
        "moved": "alive",
        "get": "alive",
        "404": "dead",
        "410": "dead",
        "500": "dead",
        "403": "unclear",
        "429": "unclear",
    }
    told = []
    answers = links.check([f"{elsewhere}/{name}" for name in states], lambda *numbers: told.append(numbers))
    assert {address.rpartition("/")[2]: answer.state for address, answer in answers.items()} == states
    assert "404" in answers[f"{elsewhere}/404"].detail and f"{elsewhere}/200" in answers[f"{elsewhere}/moved"].detail
    assert told == [(done, 8) for done in range(1, 9)]
    assert [asked for asked in Elsewhere.asked if asked[1] == "/get"] == [("HEAD", "/get"), ("GET", "/get")]


def test_a_page_is_visited_once_whatever_place_in_it_is_meant(elsewhere):
    answers = links.check([f"{elsewhere}/200#a", f"{elsewhere}/200#b"])
    assert len(answers) == 2 and Elsewhere.asked == [("HEAD", "/200")]


def test_a_host_that_is_slow_or_gone(elsewhere):
    answers = links.check([f"{elsewhere}/slow", "http://127.0.0.1:1/a", "http://127.0.0.1:1/b"], patience=0.2)
    assert answers[f"{elsewhere}/slow"] == links.Answer("dead", "no answer in 0.2 s")
    assert answers["http://127.0.0.1:1/a"].state == answers["http://127.0.0.1:1/b"].state == "unreached"


def test_check_names_the_dead(book, elsewhere):
    tiny = book(a=f'<a href="{elsewhere}/404">a</a> <a href="{elsewhere}/200">b</a> <a href="{elsewhere}/403">c</a>')
    done = tiny.run("links", "--check", status=1)
    assert f"1 of 3 links are dead:\n  {elsewhere}/404 on a.html: 404" in done.stderr
    assert "alive" in done.stdout and "unclear" in done.stdout
    book(a=f'<a href="{elsewhere}/200">b</a>').run("links", "--check")


def test_without_a_network_nothing_is_said_about_the_links(book):
    tiny = book(a='<a href="http://127.0.0.1:1/a">a</a>')
    done = tiny.run("links", "--check", status=1)
    assert "there is no network" in done.stderr and "dead" not in done.stderr


def test_a_page_that_is_no_site(tmp_path):
    with pytest.raises(PressError, match="no site"):
        links.external(tmp_path)
