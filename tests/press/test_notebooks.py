import pytest

from lossbook.press.errors import Refused
from lossbook.press.project import Paper
from lossbook.press.runs.notebooks import Scripts


@pytest.fixture
def paper(tmp_path):
    script = tmp_path / "one.py"
    script.write_text("# %% [markdown]\n# # One\n\n# %%\nx = 1\n", encoding="utf-8")
    return Paper("part", "one", script, "One")


def read(paper, folder):
    """The cells, and whether they were read anew and kept."""
    scripts = Scripts(folder)
    notebook = scripts.read(paper)
    before = {path: path.read_bytes() for path in folder.glob("*")}
    scripts.keep()
    return [cell.source for cell in notebook.cells], before != {path: path.read_bytes() for path in folder.glob("*")}


def test_a_script_is_read_again_only_after_an_edit(paper, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    Scripts(kept).read(paper)
    assert not kept.exists()
    assert read(paper, kept) == (["# One", "x = 1"], True)
    with monkeypatch.context() as without:
        without.setattr("jupytext.reads", None)
        assert read(paper, kept) == (["# One", "x = 1"], False)
    paper.script.write_text(paper.script.read_text(encoding="utf-8").replace("x = 1", "x = 2"), encoding="utf-8")
    assert read(paper, kept) == (["# One", "x = 2"], True)
    for damaged in ("", "{}", "[]", "null", '{"content": 1}'):
        (kept / "one.json").write_text(damaged, encoding="utf-8")
        assert read(paper, kept) == (["# One", "x = 2"], True)


def test_an_edit_while_a_build_begins_is_not_kept_as_what_was_read(paper, tmp_path):
    scripts = Scripts(tmp_path / "kept")
    scripts.read(paper)
    paper.script.write_text("# %%\nx = 2\n", encoding="utf-8")
    scripts.keep()
    assert read(paper, tmp_path / "kept") == (["x = 2"], True)


def test_a_script_with_a_date_in_its_front_matter_is_read(paper, tmp_path):
    paper.script.write_text("# ---\n# jupyter:\n#   day: 2026-01-31\n# ---\n\n# %%\nx = 1\n", encoding="utf-8")
    for _ in range(2):
        assert read(paper, tmp_path / "kept")[0][-1] == "x = 1"


def test_a_script_that_cannot_be_read_is_named(paper, tmp_path):
    paper.script.write_bytes(b"# \xff")
    with pytest.raises(Refused, match="notebooks/part/one.py: .*utf-8"):
        Scripts(tmp_path).read(paper)
