"""The changelog: nobody lists papers, and every paper is listed once."""

import csv

import pytest

from lossbook.press.pages import changelog
from lossbook.press.project import Project

TOP = "# Changelog\n\nAll of it.\n\n"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "book").mkdir()
    with open(tmp_path / "book" / "catalogue.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("part", "slug", "title", "authors", "year"), ("toves", "gyre", "On *Gyring*: A", "C", "1871")]
        )
    for place in ("toves/gyre", "toves/gimble", "toves/toves"):
        script = tmp_path / "notebooks" / f"{place}.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.touch()

    def make(text: str) -> Project:
        (tmp_path / "CHANGELOG.md").write_text(TOP + text)
        return Project(tmp_path, tmp_path / "_build")

    return make


GIMBLE, GYRE = "- *gimble* (toves/gimble)\n", "- *On *Gyring*: A* (toves/gyre)\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("## Unreleased\n\n- b\n", f"## Unreleased\n\n- b\n\n### Papers\n\n{GIMBLE}{GYRE}"),
        (
            "## 2\n\n### Papers\n\n<!-- nobody\n types -->\n\n### Site\n\n- c\n\n## 1\n\n- d\n",
            f"## 2\n\n### Papers\n\n{GIMBLE}{GYRE}\n### Site\n\n- c\n\n## 1\n\n- d\n",
        ),
        (
            f"## 2\n\n- b\n\n## 1\n\n### Papers\n\n{GYRE}",
            f"## 2\n\n- b\n\n### Papers\n\n{GIMBLE}\n## 1\n\n### Papers\n\n{GYRE}",
        ),
    ],
    ids=["no section", "an empty section", "a paper of an earlier version"],
)
def test_new_papers_stand_under_the_newest_version(project, text, expected):
    found = changelog.written_out(project(text))
    assert found == TOP + expected
    # What was written out stays as it is.
    assert changelog.written_out(project(found.removeprefix(TOP))) == found


def test_papers_link_to_their_pages(project, tmp_path):
    changelog.write(project("## 1\n\n- b\n\n### Papers\n\n- *gone* (toves/gone)\n"), tmp_path)
    text = (tmp_path / "changelog.md").read_text()
    assert "- {doc}`gimble </toves/gimble>`\n" in text and "- {doc}`On *Gyring*: A </toves/gyre>`\n" in text
    assert "- *gone* (toves/gone)\n" in text


def test_a_project_without_a_changelog_has_no_page(project, tmp_path):
    found = project("")
    (tmp_path / "CHANGELOG.md").unlink()
    changelog.write(found, tmp_path)
    assert not (tmp_path / "changelog.md").exists()
