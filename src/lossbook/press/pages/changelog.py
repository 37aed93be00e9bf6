"""The changelog: CHANGELOG.md, and under its newest version the papers that no earlier one names.

Nobody writes that list, so papers that arrive side by side do not collide. A release writes it out: `make changelog`.
"""

import re
from pathlib import Path

from lossbook.press.project import Paper, Project

_HEADING = "### Papers\n"
# Says in the file that nobody writes the list.
_NOTE = re.compile(r"<!--.*?-->\n*", re.DOTALL)
_LINE = re.compile(r"^- \*(.+)\* \((\w+/\w+)\)$", re.MULTILINE)


def written_out(project: Project) -> str:
    """CHANGELOG.md with a line for each paper that is new in its newest version, behind those it names already."""
    text = (project.root / "CHANGELOG.md").read_text(encoding="utf-8")
    named = {place for _, place in _LINE.findall(text)}
    new = [_line(paper) for paper in project.papers.values() if not paper.opening and paper.page not in named]
    if not new:
        return text
    head, newest, *earlier = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    before, heading, after = newest.partition(_HEADING)
    if not heading:
        before, after = f"{before.rstrip()}\n\n", ""
    # The list ends where the next section begins.
    listed, mark, rest = after.partition("\n### ")
    lines = "\n".join([*_NOTE.sub("", listed).strip().splitlines(), *new])
    end = mark + rest if mark else "\n" * bool(earlier)
    return f"{head}{before}{_HEADING}\n{lines}\n{end}{''.join(earlier)}"


def write(project: Project, folder: Path) -> None:
    """The page, on which papers link to theirs; none if there is no CHANGELOG.md."""
    if not (project.root / "CHANGELOG.md").is_file():
        return
    pages = {paper.page for paper in project.papers.values()}

    def linked(line: re.Match[str]) -> str:
        title, place = line.groups()
        return f"- {{doc}}`{title} </{place}>`" if place in pages else line[0]

    (folder / "changelog.md").write_text(_LINE.sub(linked, written_out(project)), encoding="utf-8")


def _line(paper: Paper) -> str:
    return f"- *{paper.title}* ({paper.page})"


if __name__ == "__main__":
    project = Project.find()
    (project.root / "CHANGELOG.md").write_text(written_out(project), encoding="utf-8")
