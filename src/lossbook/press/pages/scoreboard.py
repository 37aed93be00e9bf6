"""The scoreboard: the score by part, a page a part with every check and claim, and a search over all of them."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote, urlencode

from markdown_it import MarkdownIt
from markupsafe import Markup

from lossbook import formats
from lossbook.formats import VERDICTS, badge
from lossbook.press.findings import ledgers, tables
from lossbook.press.pages import front_page
from lossbook.press.pages.html import render
from lossbook.press.pages.model import EXTRA, Page
from lossbook.press.pages.myst import counted, plain, write_page
from lossbook.press.pages.scripts import script
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

# The columns of the table of what a search found: what the address calls them, and what readers see.
COLUMNS = {
    "paper": "Paper",
    "entry": "Entry",
    "verdict": "Verdict",
    "statement": "Statement",
    "result": "Result",
    "runs": "Seeds or cases",
}
# The columns of the downloads.
FIELDS = (
    *("part", "slug", "title", "profile", "finished", "page", "kind", "id", "statement", "verdict"),
    *dict.fromkeys(key for keys in formats.FIELDS.values() for key in keys),
)


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Write the scoreboard, the pages of its parts, its scripts and its downloads into the book's folder."""
    downloads = folder / EXTRA / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    tables.write(downloads, "scoreboard", tables.frame(_records(pages), FIELDS))
    guides = {"reading": "How to read a page", "howto/statistics": "How the statistics work"}
    parts: dict[str, list[Page]] = {}
    for page in pages:
        parts.setdefault(page.paper.part, []).append(page)
    sections = [
        "# Scoreboard",
        "Every check and every claim of the book, as the runs behind this site found them: the name of a part leads to "
        "its claims and checks, a number to what it counts. "
        "<a href='#how-verdicts-are-made'>How verdicts are made</a>; <a href='#entries'>search all entries</a>.",
        front_page.score(project, pages),
        _stopped(pages),
        _by_part(project, parts),
        _search(project, parts, folder),
        _explained({name: title for name, title in guides.items() if (folder / f"{name}.md").is_file()}, pages),
    ]
    write_page(folder, "scoreboard", "\n\n".join(filter(None, sections)))
    for part, found in parts.items():
        write_page(folder, place(part), _part(project, part, found))


def place(part: str) -> str:
    """The page of a part, within the site and without ending."""
    return f"scoreboard/{part}"


def _records(pages: Iterable[Page]) -> list[dict[str, Any]]:
    """All entries as the downloads have them."""
    return [
        {
            **entry,
            "title": _title(page),
            "finished": notebooks.failure_of(page.notebook) is None,
            "page": _address(page, entry),
        }
        for page in pages
        for entry in page.entries
    ]


def _title(page: Page) -> str:
    """The page's title without markup."""
    return "".join(token.content for token in MarkdownIt().parseInline(page.heading)[0].children or ())


def _address(page: Page, entry: dict[str, Any]) -> str:
    """Where an entry was judged, within the site."""
    return f"{page.paper.page}.html#" + quote(f"{entry['kind']}-{entry['id']}")


def _stopped(pages: Iterable[Page]) -> str:
    """The papers whose run failed, by name."""
    failed = [page for page in pages if notebooks.failure_of(page.notebook)]
    items = [
        f"- [{page.heading}]({page.paper.page}.ipynb): The run did not finish. What it found until then is counted."
        for page in failed
    ]
    return "\n".join(items)


def _by_part(project: Project, parts: dict[str, list[Page]]) -> str:
    """The score of every part."""
    if not parts:
        return ""
    rows = [
        (
            Markup("<a href='{}.html'>{}</a>").format(place(part), project.part_title(part)),
            [(_papers(found), ""), *_counts(found, part)],
        )
        for part, found in parts.items()
    ]
    every = [page for found in parts.values() for page in found]
    rows.append((Markup("All parts"), [(_papers(every), ""), *_counts(every)]))
    return f"## Score by part\n\n{_score('Part', 'papers', rows=rows)}"


def _score(*columns: str, rows: Sequence[tuple[Markup, list[tuple[int, str]]]]) -> Markup:
    names = [*columns, *(verdict for verdicts in VERDICTS.values() for verdict in verdicts)]
    return render("scoreboard_score.html", columns=names, rows=rows)


def _counts(pages: Iterable[Page], part: str = "") -> list[tuple[int, str]]:
    """The numbers of verdicts, each with the address of what it counts."""
    score = ledgers.score(entry for page in pages for entry in page.entries)
    return [
        (
            score[kind][verdict],
            f"scoreboard.html?{urlencode({'verdict': verdict, 'part': part})}#entries" if part else "",
        )
        for kind, verdicts in VERDICTS.items()
        for verdict in verdicts
    ]


def _papers(pages: Iterable[Page]) -> int:
    return sum(not page.opening for page in pages)


def _part(project: Project, part: str, pages: Sequence[Page]) -> str:
    """The page of a part: its papers with their claims, checks folded."""
    listed = [page for page in pages if page.entries or not page.opening]
    rows = [
        (Markup("<a href='../{}.html'>{}</a>").format(quote(page.paper.page), _name(page)), _counts([page]))
        for page in listed
    ]
    blocks = [
        f"# {plain(project.part_title(part))}: claims and checks",
        "[The score of the whole book, and how verdicts are made](../scoreboard.md). Each name leads to the place on "
        "the paper's page where the claim or check was judged.",
        _score("Paper", rows=rows) if rows else "No paper of this part has a page yet.",
    ]
    for page in listed:
        blocks += [f"## [{page.heading}](../{page.paper.page}.ipynb)", _entries(page)]
    return "\n\n".join(filter(None, blocks))


def _entries(page: Page) -> str:
    found = [_entry(page, entry) for entry in page.entries]
    claims, checks = ([entry for entry in found if entry["kind"] == kind] for kind in ("claim", "check"))
    failed = sum(entry["verdict"] == "failed" for entry in checks)
    stopped = notebooks.failure_of(page.notebook)
    said = "The run did not finish. What it found until then is counted. " if stopped else ""
    said += f"Profile `{page.entries[0]['profile']}`." if found else "There is no entry yet."
    if not found:
        return said
    table = render("scoreboard_entries.html", claims=claims, checks=checks, failed=failed, up="../")
    return f"{said}\n\n{table}"


def _name(page: Page) -> str:
    """The page's title, which says so if the run failed."""
    return _title(page) + (" (run did not finish)" if notebooks.failure_of(page.notebook) else "")


def _explained(guides: dict[str, str], pages: Iterable[Page]) -> str:
    """How verdicts are made; `guides` are the pages that say more."""
    claims = sum(entry["kind"] == "claim" for page in pages for entry in page.entries)
    chance = (
        f" Were each of the {counted(claims, 'claim')} here just at its margin, at most {claims / 40:.1f} would be "
        "expected to be supported by chance."
    )
    more = " and ".join(f"[{title}]({name}.md)" for name, title in guides.items())
    return "\n\n".join(
        (
            "## How verdicts are made",
            "**Checks** are mathematics. The derivation is tried on random cases against an independent calculation; "
            "the *error* is the largest that was seen.",
            f"- {badge('verified')} The error is at most the *tolerance*, which allows for rounding or a "
            "stated Monte-Carlo error.\n"
            f"- {badge('failed')} It is larger. The notebook stops there.",
            "**Claims** are the paper's. What is measured, the direction and the *margin* are stated before the "
            "experiment. Each seed gives one value, mostly a difference between two methods that share the seed; the "
            "*effect* is the mean, and its 95 % interval comes from Student's $t$ distribution, "
            r"$\bar d \pm t_{n-1,\,0.975}\, s/\sqrt n$.",
            f"- {badge('supported')} The whole interval lies on the claimed side of the margin; for “no "
            "difference”, between minus and plus the margin, which is two one-sided tests.\n"
            f"- {badge('contradicted')} The whole interval lies on the other side.\n"
            f"- {badge('inconclusive')} The margin lies inside the interval: these seeds cannot tell.",
            "A claim about several comparisons must hold for each. Their intervals are widened together (Bonferroni), "
            "and the table shows the one that speaks most against the claim, after the word “against”.",
            "A claim that is not true comes out as supported with a probability of at most 2.5 %, as far as the values "
            "follow a normal distribution. Nothing corrects for the number of claims in the book."
            f"{chance if claims else ''} Seeds and profile say how large the experiment was, the paper's page says how "
            "it differs from the paper's.",
            f"More on this: {more}." if more else "",
        )
    ).strip()


def _search(project: Project, parts: dict[str, list[Page]], folder: Path) -> str:
    """What searches the entries, and the downloads."""
    pages = [page for found in parts.values() for page in found if page.entries]
    if not pages:
        return "## Entries\n\nThere is no entry yet."
    loaded = script(folder, "scoreboard.js")
    numbers = {kind: sum(entry["kind"] == kind for page in pages for entry in page.entries) for kind in VERDICTS}
    form = render(
        "scoreboard_search.html",
        data={kind: _write_data(folder, kind, pages) for kind in VERDICTS},
        verdicts=VERDICTS,
        parts={part: project.part_title(part) for part, found in parts.items() if any(page.entries for page in found)},
        said=f"{counted(numbers['claim'], 'claim')}, {counted(numbers['check'], 'check')}",
        columns=COLUMNS,
        loaded=Markup(loaded),
    )
    return (
        "## Entries\n\n"
        "To take away, with every number unrounded: "
        "<a href='downloads/scoreboard.csv' download>scoreboard.csv</a>, "
        "<a href='downloads/scoreboard.parquet' download>scoreboard.parquet</a>."
        f"{chr(10) * 2}{form if loaded else ''}"
    ).strip()


def _write_data(folder: Path, kind: str, pages: Sequence[Page]) -> str:
    """Write what the search knows of the entries of a kind; returns its address.

    It is a script: pages that are opened from a disk may load no other file.
    """
    papers = [[_name(page), page.paper.part, f"{page.paper.page}.html"] for page in pages]
    rows = []
    for number, page in enumerate(pages):
        for entry in page.entries:
            if entry["kind"] == kind:
                found = _entry(page, entry)
                rows.append(
                    [number, *(found[key] for key in ("id", "verdict", "statement", "result", "detail", "value"))]
                )
                rows[-1] += [found["size"], found["number"]]
    text = (
        f"lossbookEntries({json.dumps(kind)}, {json.dumps([papers, rows], separators=(',', ':'), allow_nan=False)});\n"
    )
    path = folder / EXTRA / "scripts" / f"scoreboard-{kind}s.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return f"scripts/{path.name}?v={hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _entry(page: Page, entry: dict[str, Any]) -> dict[str, Any]:
    """What the scoreboard shows of an entry. `value` and `number` are what it can be sorted by, as text."""
    common = {
        "kind": entry["kind"],
        "id": entry["id"],
        "verdict": entry["verdict"],
        "statement": _line(entry["statement"]),
        "address": _address(page, entry),
    }
    return common | (_check if entry["kind"] == "check" else _claim)(entry)


def _check(entry: dict[str, Any]) -> dict[str, Any]:
    """Error and cases."""
    return {
        "result": _number(entry["error"], "not finite"),
        "detail": f"tolerance\u00a0{_number(entry['tolerance'], 'none')}",
        "value": _sorted_by(entry["error"]),
        "size": _many(entry["cases"], "case"),
        "number": entry["cases"],
    }


def _claim(entry: dict[str, Any]) -> dict[str, Any]:
    """Effect and seeds. The ledger leaves out what is not finite: an interval without end, no effect."""
    low, high = _number(entry["low"], "−∞"), _number(entry["high"], "∞")
    against = f", against {_line(entry['against'])}" if entry["against"] else ""
    effect = f"{_number(entry['effect'], '')} {_line(entry['unit'])}".strip()
    return {
        "result": effect if _known(entry["effect"]) else "no value",
        "detail": f"[{low}, {high}], margin\u00a0{_number(entry['margin'], 'none')}{against}",
        "value": _sorted_by(entry["effect"]),
        "size": _many(entry["seeds"], "seed"),
        "number": entry["seeds"],
    }


def _sorted_by(value: float | None) -> str | None:
    """A number as JavaScript reads it; JSON has no infinity."""
    return str(float(value)).replace("inf", "Infinity") if _known(value) else None


def _number(value: float | None, missing: str) -> str:
    """A number as the ledger shows it."""
    return f"{value:.3g}".replace("-inf", "−∞").replace("inf", "∞") if _known(value) else missing


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def _line(text: str | None) -> str:
    """Text in one line: a blank one would end the table, which is HTML within Markdown."""
    return " ".join(str(text or "").split())


def _many(number: int | None, thing: str) -> str:
    return "" if number is None else counted(number, thing)
