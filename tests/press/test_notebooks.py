from lossbook.press.project import Paper
from lossbook.press.runs import notebooks


def test_a_script_is_read_again_only_after_an_edit(tmp_path, monkeypatch):
    script = tmp_path / "one.py"
    paper = Paper("part", "one", script, "One")
    script.write_text("# %% [markdown]\n# # One\n\n# %%\nx = 1\n", encoding="utf-8")
    kept = tmp_path / "kept"
    first = notebooks.read_script(paper, kept)
    assert [cell.source for cell in first.cells] == ["# One", "x = 1"]
    with monkeypatch.context() as without:
        without.setattr("jupytext.reads", None)
        assert notebooks.read_script(paper, kept) == first
        first.cells[1].source = "x = 3"
        assert notebooks.read_script(paper, kept).cells[1].source == "x = 1"
    script.write_text(script.read_text(encoding="utf-8").replace("x = 1", "x = 2"), encoding="utf-8")
    assert notebooks.read_script(paper, kept).cells[1].source == "x = 2"
    for damaged in ("", "{}", "[]", "null", '{"content": 1}'):
        (kept / "one.json").write_text(damaged, encoding="utf-8")
        assert notebooks.read_script(paper, kept).cells[1].source == "x = 2"


def test_a_script_with_a_date_in_its_front_matter_is_read(tmp_path):
    script = tmp_path / "one.py"
    script.write_text("# ---\n# jupyter:\n#   day: 2026-01-31\n# ---\n\n# %%\nx = 1\n", encoding="utf-8")
    for _ in range(2):
        assert notebooks.read_script(Paper("part", "one", script, "One"), tmp_path).cells[-1].source == "x = 1"
