"""The scoreboard: every check and claim of the book in one table, and the score by part and paper."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote, urlencode

from markdown_it import MarkdownIt

from lossbook.formats import FIELDS, badge
from lossbook.press.findings import ledgers, tables
from lossbook.press.pages import catalogue, front_page
from lossbook.press.pages.model import EXTRA, Page
from lossbook.press.pages.myst import counted
from lossbook.press.pages.scripts import script
from lossbook.press.project import Project
from lossbook.press.runs import notebooks

VERDICTS = {"check": catalogue.CHECKS, "claim": catalogue.CLAIMS}
# The columns of the table: what the address calls them, and what readers see.
COLUMNS = {
    "paper": "Paper",
    "part": "Part",
    "entry": "Entry",
    "verdict": "Verdict",
    "statement": "Statement",
    "result": "Result",
    "runs": "Seeds or cases",
    "profile": "Profile",
}
# The columns of the downloads.
FIELDS = (
    *("part", "slug", "title", "profile", "finished", "page", "kind", "id", "statement", "verdict"),
    *dict.fromkeys(key for keys in FIELDS.values() for key in keys),
)


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Write the scoreboard, its script and its downloads into the book's folder."""
    downloads = folder / EXTRA / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    tables.write(downloads, "scoreboard", tables.frame(_records(pages), FIELDS))
    guides = {"reading": "How to read a page", "howto/statistics": "How the statistics work"}
    sections = [
        "# Scoreboard",
        "Every check and every claim of the book, as the runs behind this site found them. Each row of the table leads "
        "to the place on the paper's page where it was judged. "
        "<a href='#how-verdicts-are-made'>How verdicts are made</a>; <a href='#entries'>all entries</a>.",
        front_page.score(project, pages),
        _stopped(pages),
        _by_part(project, pages),
        _explained({name: title for name, title in guides.items() if (folder / f"{name}.md").is_file()}, pages),
        _everything(project, pages, script(folder, "scoreboard.js")),
    ]
    (folder / "scoreboard.md").write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")


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


def _by_part(project: Project, pages: Sequence[Page]) -> str:
    """The score of every part, and of every paper, folded."""
    parts: dict[str, list[Page]] = {}
    for page in pages:
        parts.setdefault(page.paper.part, []).append(page)
    if not parts:
        return ""
    rows = [
        f"<tr><th scope='row'>{_link(project.part_title(part), part=part)}</th>"
        f"<td>{_papers(found)}</td>{_counts(found, part)}</tr>"
        for part, found in parts.items()
    ]
    total = f"<tr><th scope='row'>All parts</th><td>{_papers(pages)}</td>{_counts(pages)}</tr>"
    papers = [
        f"<tr><th scope='row'>{_paper(page)}</th>{_counts([page])}</tr>"
        for page in pages
        if page.entries or not page.opening
    ]
    return (
        "## Score by part\n\n"
        f"{_score_table(['Part', 'papers'], [*rows, total])}\n\n"
        "<details class='lossbook-by-paper'><summary>Score by paper</summary>\n"
        f"{_score_table(['Paper'], papers)}\n</details>"
    )


def _score_table(first: Sequence[str], rows: Sequence[str]) -> str:
    names = [*first, *(verdict for verdicts in VERDICTS.values() for verdict in verdicts)]
    head = "".join(f"<th scope='col'><span>{name}</span></th>" for name in names)
    body = "\n".join(rows)
    return (
        "<div class='lossbook-scroll'><table class='lossbook-counts'>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _counts(pages: Iterable[Page], part: str = "") -> str:
    """Cells with the numbers of verdicts, each of which leads to the entries it counts."""
    score = ledgers.score(entry for page in pages for entry in page.entries)
    numbers = [(verdict, score[kind][verdict]) for kind, verdicts in VERDICTS.items() for verdict in verdicts]
    return "".join(
        f"<td>{_link(f'{number:,}', part=part, verdict=verdict) if number and part else f'{number:,}'}</td>"
        for verdict, number in numbers
    )


def _link(text: str, **filters: str) -> str:
    """A link to the table with its filters set."""
    return f"<a href='scoreboard.html?{escape(urlencode(filters))}#entries'>{escape(text)}</a>"


def _papers(pages: Iterable[Page]) -> int:
    return sum(not page.opening for page in pages)


def _paper(page: Page) -> str:
    """A link to a paper's page, which says so if the run failed."""
    stopped = " <small>(run did not finish)</small>" if notebooks.failure_of(page.notebook) else ""
    return f"<a href='{quote(page.paper.page)}.html'>{escape(_title(page))}</a>{stopped}"


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


def _everything(project: Project, pages: Sequence[Page], loaded: str) -> str:
    """The table of all entries, with what searches it and the downloads."""
    rows = [_row(project, page, entry) for page in pages for entry in page.entries]
    if not rows:
        return "## Entries\n\nThere is no entry yet."
    head = "".join(f"<th scope='col' data-key='{key}'>{name}</th>" for key, name in COLUMNS.items())
    body = "\n".join(rows)
    return (
        "## Entries\n\n"
        "To take away, with every number unrounded: "
        "<a href='downloads/scoreboard.csv' download>scoreboard.csv</a>, "
        "<a href='downloads/scoreboard.parquet' download>scoreboard.parquet</a>.\n\n"
        f"<div class='lossbook-board'>\n{_form(project, pages, len(rows))}\n"
        "<table><caption class='visually-hidden'>All checks and claims</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>{loaded}\n</div>"
    )


def _form(project: Project, pages: Sequence[Page], number: int) -> str:
    """What searches and filters the table. It does nothing without the script, and is not shown then."""
    parts = {page.paper.part: project.part_title(page.paper.part) for page in pages if page.entries}
    verdicts = {verdict: verdict for verdicts in VERDICTS.values() for verdict in verdicts}
    return (
        "<form role='search' aria-label='Entries' autocomplete='off'>"
        "<label class='lossbook-search'>Search the entries <input type='search' name='text' spellcheck='false'></label>"
        f"{_choice('kind', {'check': 'checks', 'claim': 'claims'})}"
        f"{_choice('verdict', verdicts)}{_choice('part', parts)}"
        "<button type='reset'>Clear</button>"
        f"<p role='status'>{number:,} of {number:,} entries</p></form>"
    )


def _choice(name: str, options: dict[str, str]) -> str:
    listed = "".join(f"<option value='{escape(value)}'>{escape(text)}</option>" for value, text in options.items())
    return f"<label>{name.capitalize()} <select name='{name}'><option value=''>all</option>{listed}</select></label>"


def _row(project: Project, page: Page, entry: dict[str, Any]) -> str:
    """An entry as a row; `data-value` is what a column of numbers is sorted by."""
    kind, verdict = escape(entry["kind"]), escape(entry["verdict"])
    result, size = (_check if entry["kind"] == "check" else _claim)(entry)
    cells = [
        f"<td>{_paper(page)}</td>",
        f"<td>{escape(project.part_title(page.paper.part))}</td>",
        f"<th scope='row'><a href='{_address(page, entry)}'>{kind} {escape(entry['id'])}</a></th>",
        f"<td>{badge(entry['verdict'])}</td>",
        f"<td>{escape(_line(entry['statement']))}</td>",
        result,
        size,
        f"<td>{escape(entry['profile'])}</td>",
    ]
    part = escape(page.paper.part)
    return f"<tr data-kind='{kind}' data-verdict='{verdict}' data-part='{part}'>{''.join(cells)}</tr>"


def _check(entry: dict[str, Any]) -> tuple[str, str]:
    """The cells of error and cases."""
    shown = (
        f"{_number(entry['error'], 'not finite')} <small>tolerance\u00a0{_number(entry['tolerance'], 'none')}</small>"
    )
    return _cell(entry["error"], shown), _cell(entry["cases"], _many(entry["cases"], "case"))


def _claim(entry: dict[str, Any]) -> tuple[str, str]:
    """The cells of effect and seeds. The ledger leaves out what is not finite: an interval without end, no effect."""
    low, high = _number(entry["low"], "−∞"), _number(entry["high"], "∞")
    effect = f"{_number(entry['effect'], '')} {_line(entry['unit'])}" if _known(entry["effect"]) else "no value"
    against = f", against {_line(entry['against'])}" if entry["against"] else ""
    margin = f"margin\u00a0{_number(entry['margin'], 'none')}"
    shown = f"{escape(effect)} <small>[{low}, {high}], {margin}{escape(against)}</small>"
    return _cell(entry["effect"], shown), _cell(entry["seeds"], _many(entry["seeds"], "seed"))


def _cell(value: float | None, shown: str) -> str:
    number = f" data-value='{str(float(value)).replace('inf', 'Infinity')}'" if _known(value) else ""
    return f"<td{number}>{shown}</td>"


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
