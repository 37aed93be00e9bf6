import json
import re
import signal
import subprocess

import nbformat
import pytest

pytestmark = pytest.mark.slow

CHECK_KEYS = {
    "part",
    "slug",
    "profile",
    "kind",
    "id",
    "statement",
    "verdict",
    "error",
    "tolerance",
    "cases",
    "evidence",
}
CLAIM_KEYS = {
    "part",
    "slug",
    "profile",
    "kind",
    "id",
    "statement",
    "verdict",
    "criterion",
    "against",
    "evidence",
    "effect",
    "low",
    "high",
    "margin",
    "seeds",
    "unit",
}


def page(project, name):
    return (project.root / "_build" / "html" / f"{name}.html").read_text()


def text(project, name):
    """What a reader sees of a page."""
    return re.sub(r"<[^>]*>", "", page(project, name))


def test_a_notebook_that_raises_costs_its_page_alone(built):
    line = (built.root / "notebooks/part_two/bad.py").read_text().splitlines().index("y = x / 0") + 1
    message = f"notebooks/part_two/bad.py, line {line}, cell [4]: ZeroDivisionError: division by zero"
    assert message in built.finished.stderr
    assert str(built.root / "_build/html/index.html") in built.finished.stdout
    bad = page(built, "part_two/bad")
    assert "did not finish" in bad and "division by zero" in bad and "Cell [4]" in bad
    # What was found before the exception is there; the script's later cells are shown without output.
    assert 'id="check-sum"' in bad and "never</pre>" not in bad.replace("\n", "")
    good = page(built, "part_one/good")
    assert "did not finish" not in good and 'id="check-sum"' in good


def test_a_page_says_how_it_was_run(built):
    good = text(built, "part_one/good")
    assert "lossbook run good" in good and "Parameters of this run" in good and "with the profile quick" in good
    assert page(built, "part_one/good").count("../downloads/good.") == 2
    downloads = {path.name for path in (built.root / "_build/html/downloads").glob("good.*")}
    assert downloads == {"good.py", "good.ipynb"}


def test_the_front_page_and_the_scoreboard_show_the_score(built):
    assert "2 checks verified" in page(built, "intro") and "2 claims inconclusive" in page(built, "intro")
    assert "The run did not finish." in page(built, "scoreboard")
    board = page(built, "scoreboard/part_one")
    assert 'href="../part_one/good.html#check-sum"' in board and "1 + 1 = 2 &amp; &lt;no&gt; tags" in board


def test_parts_and_titles_are_in_the_sidebar(built):
    intro = page(built, "intro")
    assert all(word in intro for word in ("Part one", "Title of good", "Part two", "Title of bad", "Scoreboard"))


def test_the_ledger_for_machines(built):
    found = json.loads(built.run("ledger", "--json").stdout)
    assert [(entry["slug"], entry["id"]) for entry in found] == [
        ("good", "sum"),
        ("good", "c1"),
        ("bad", "sum"),
        ("bad", "c1"),
    ]
    check, claim = found[:2]
    assert set(check) == CHECK_KEYS and set(claim) == CLAIM_KEYS
    assert check["error"] == 1e-16 and check["profile"] == "quick" and check["part"] == "part_one"
    assert claim["low"] is None and claim["seeds"] == 5 and claim["verdict"] == "inconclusive"


def test_the_ledger_for_people(built):
    shown = built.run("ledger").stdout
    assert "check sum" in shown and "bad" in shown and "inconclusive" in shown


def test_only_runs_what_it_names_and_keeps_the_rest(tiny):
    one, two = tiny.notebook("one", "print('first')"), tiny.notebook("two", "print('first')")
    # What was never run has a page that says so, for others may link to it.
    assert "two was never run" in tiny.run("build", "--only", "one").stderr
    assert "lossbook build --only two" in text(tiny, "part_one/two")
    tiny.swiftly("build", "--only", "two", "--profile", "smoke")
    for script in (one, two):
        script.write_text(script.read_text().replace("first", "second"))
    kept = (tiny.root / "_build/book/part_one/two.ipynb").read_bytes()
    tiny.run("build", "--only", "one")
    assert (tiny.root / "_build/book/part_one/two.ipynb").read_bytes() == kept
    assert "second\n</pre>" in page(tiny, "part_one/one") and "first\n</pre>" in page(tiny, "part_one/two")
    assert "lossbook run two --profile smoke" in text(tiny, "part_one/two")
    # A notebook that is gone leaves the book.
    two.unlink()
    tiny.run("build", "--only", "one")
    assert not (tiny.root / "_build/html/part_one/two.html").exists()


def test_a_damaged_record_is_named_left_out_and_made_again(tiny, entries_code):
    tiny.notebook("one", entries_code)
    tiny.notebook("two", entries_code)
    tiny.swiftly("build")
    path = tiny.root / "_build/book/part_one/two.ipynb"
    whole = path.read_text()
    for damaged in (
        whole[: len(whole) // 2],
        "",
        "null",
        "{}",
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
        "\0",
    ):
        path.write_text(damaged)
        assert "two.ipynb is damaged" in tiny.run("ledger", status=1).stderr
    done = tiny.run("build", "--only", "one", status=1)
    assert "two.ipynb is damaged" in done.stderr and "lossbook build --only two" in done.stderr
    assert "Not run yet" in text(tiny, "part_one/two")
    # Several papers may follow one --only.
    tiny.run("build", "--only", "one", "two")
    assert "Not run yet" not in text(tiny, "part_one/two")
    assert len(json.loads(tiny.run("ledger", "--json").stdout)) == 4


def test_an_interrupted_build_is_taken_up_again(tiny, sleeping, alive, entries_code):
    tiny.notebook("early", entries_code)
    tiny.run("build")
    site = page(tiny, "intro")
    press, kernel = sleeping("build")
    # A second build beside the first is refused.
    assert f"process {press.pid}" in tiny.run("build", "--only", "early", status=1).stderr
    press.send_signal(signal.SIGINT)
    tiny.finish(press, 130)
    assert not alive(kernel)
    # The site and the record are those of before, and nothing of the sleeper is taken for finished.
    assert page(tiny, "intro") == site and "book/part_one/sleeper.ipynb" not in tiny.files()
    assert len(json.loads(tiny.run("ledger", "--json").stdout)) == 2
    tiny.notebook("sleeper", entries_code)
    tiny.run("build")
    assert "2 checks verified" in page(tiny, "intro")


def test_an_interrupted_rendering_leaves_the_last_site(tiny, alive, wait_for):
    tiny.notebook("one", "print('first')")
    tiny.run("build")
    script = tiny.notebook("one", "print('second')")
    press = tiny.start("build")
    # What is kept for the next render is not to be relied on while one is under way.
    kept = tiny.root / "_build/render/state"
    wait_for(lambda: not kept.exists(), press)
    children = subprocess.run(["pgrep", "-P", str(press.pid)], capture_output=True, text=True).stdout.split()
    assert children
    press.send_signal(signal.SIGTERM)
    tiny.finish(press, 143)
    # The process that kernels fork from ends when it sees that the press has.
    wait_for(lambda: not any(alive(int(child)) for child in children))
    assert "first\n</pre>" in page(tiny, "part_one/one") and script.exists()
    tiny.run("build")
    assert "second\n</pre>" in page(tiny, "part_one/one") and kept.exists()


def test_a_warning_of_sphinx_fails_the_build_and_keeps_the_last_site(tiny):
    tiny.notebook("one")
    tiny.run("build")
    site = page(tiny, "part_one/one")
    tiny.notebook("one", "# %% [markdown]\n# See {eq}`nowhere`.\n")
    done = tiny.run("build", status=1)
    assert "nowhere" in done.stderr and "part_one/one.ipynb" in done.stderr and "render.log" in done.stderr
    assert page(tiny, "part_one/one") == site


def test_a_full_disk_while_building(tiny, small_disk):
    tiny.notebook("one")
    done = tiny.run("--output", str(small_disk), "build", status=1)
    assert "No space left" in done.stderr
    assert not (small_disk / "html").exists()


@pytest.fixture(scope="module")
def failed(make_tiny):
    """A project of two papers that fail, after a build. Not to be changed."""
    tiny = make_tiny("failed")
    tiny.notebook("odd", "raise ValueError('```<script>alert(1)</script> *a* [b](c) $x$ {d}`e`')")
    tiny.notebook("dead", "print('before')\n\n# %%\nimport os\nos.kill(os.getpid(), 9)")
    tiny.run("build", status=1)
    return tiny


def test_odd_text_survives_the_page(failed):
    shown = page(failed, "part_one/odd")
    assert "<script>alert" not in shown and "&lt;script&gt;alert(1)" in shown


def test_a_dead_kernel_is_shown_on_the_page(failed):
    shown = page(failed, "part_one/dead")
    assert "the kernel died" in shown and "before\n</pre>" in shown


def test_records_are_valid_notebooks(built):
    for path in (built.root / "_build/book").rglob("*.ipynb"):
        nbformat.validate(nbformat.read(path, as_version=4))
