"""Where the book is and which papers it has. Nothing is listed by hand: a notebook in its place is a paper."""

import csv
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lossbook.press.errors import Refused, unknown

# The profile of a notebook's own defaults.
DEFAULT_PROFILE = "quick"


@dataclass(frozen=True)
class Paper:
    """One notebook and what the catalogue says about its paper."""

    part: str
    slug: str
    script: Path
    title: str
    authors: str = ""
    year: str = ""
    arxiv: str = ""

    @property
    def page(self) -> str:
        """Its place in the site, without ending."""
        return f"{self.part}/{self.slug}"

    @property
    def opening(self) -> bool:
        """Whether it opens a part, which it is called like, and is no paper."""
        return self.slug == self.part

    @property
    def source(self) -> str:
        """The script's place in the project."""
        return f"notebooks/{self.part}/{self.slug}.py"


@dataclass(frozen=True)
class Project:
    """A folder that holds `_config.yml` and `notebooks/`, and where what is built from it goes."""

    root: Path
    output: Path

    @classmethod
    def find(cls, root: Path | None = None, output: Path | None = None) -> "Project":
        """The project at `root`, or else the one around the current folder.

        Raises:
            Refused: if there is none.
        """
        start = Path(root or os.curdir).resolve()
        for folder in [start] if root else [start, *start.parents]:
            if (folder / "_config.yml").is_file() and (folder / "notebooks").is_dir():
                return cls(folder, Path(output).resolve() if output else folder / "_build")
        where = f"{start} is not" if root else f"{start} is not inside"
        raise Refused(f"{where} a lossbook project: a folder with _config.yml and notebooks/ (choose one with --root)")

    @functools.cached_property
    def catalogue(self) -> dict[str, dict[str, str]]:
        """The rows of book/catalogue.csv by slug, without what some say in parentheses behind authors and year."""
        path = self.root / "book" / "catalogue.csv"
        if not path.is_file():
            return {}
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["authors"] = re.sub(r"\s*\([^()]*\)(?=,|$)", "", row.get("authors") or "")
            row["year"] = (row.get("year") or "")[:4]
        return {row["slug"]: row for row in rows}

    @functools.cached_property
    def _bibliography(self) -> dict[str, str]:
        path = self.root / "book" / "references.bib"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return {match[1]: match[0] for match in re.finditer(r"^@\w+\{([^,]+),.*?^\}", text, re.MULTILINE | re.DOTALL)}

    def bibtex(self, key: str) -> str:
        """An entry of book/references.bib as it stands there; empty if there is none."""
        return self._bibliography.get(key, "")

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Titles of parts, in the order of the book."""
        path = self.root / "book" / "parts.yml"
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def part_title(self, part: str) -> str:
        """What a part is called."""
        return self.parts.get(part, part.replace("_", " ").capitalize())

    @functools.cached_property
    def papers(self) -> dict[str, Paper]:
        """All papers by slug, in the order of the book.

        Raises:
            Refused: if two notebooks have the same name.
        """
        order = list(self.parts)
        scripts = sorted(
            self.root.glob("notebooks/*/*.py"),
            key=lambda path: (
                order.index(path.parent.name) if path.parent.name in order else len(order),
                path.parent.name,
                path.stem,
            ),
        )
        papers: dict[str, Paper] = {}
        for script in scripts:
            slug, part = script.stem, script.parent.name
            if slug in papers:
                raise Refused(f"two notebooks are called {slug}: {papers[slug].source} and notebooks/{part}/{slug}.py")
            row = self.catalogue.get(slug, {})
            title = row.get("title") or (self.part_title(part) if slug == part else slug.replace("_", " "))
            about = (row.get(key, "") for key in ("authors", "year", "arxiv"))
            papers[slug] = Paper(part, slug, script, title, *about)
        return papers

    def paper(self, slug: str) -> Paper:
        """The paper called `slug`.

        Raises:
            Refused: if there is none, naming the nearest.
        """
        if slug not in self.papers:
            raise Refused(unknown("paper", slug, self.papers))
        return self.papers[slug]

    def executed(self, paper: Paper) -> Path:
        """The notebook that the book's page is made of: the record of the paper's last run by `lossbook build`."""
        return self.output / "book" / paper.part / f"{paper.slug}.ipynb"

    @property
    def site(self) -> Path:
        """The finished site."""
        return self.output / "html"

    def short(self, path: Path) -> str:
        """A path as the user wants to read it."""
        try:
            return str(path.resolve().relative_to(Path.cwd()))
        except ValueError:
            return str(path)
