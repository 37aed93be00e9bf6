"""The scoreboard in the browser: its search sorts and filters, and a page a part has every entry without any script."""

import io
import re
import unicodedata
from contextlib import closing

import pandas as pd
import pytest

# The site is built once, so whoever builds it looks at all of it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

COLUMNS = ["paper", "entry", "verdict", "statement", "result", "runs"]
NUMBERS = {"result": ("effect", "error"), "runs": ("seeds", "cases")}
ROWS = ".lossbook-found tbody tr"
# Of every row: where it leads, and the text of its cells.
READ = f"""() => [...document.querySelectorAll("{ROWS}")].map(row =>
    [row.querySelector("th a").getAttribute("href"), ...[...row.cells].map(cell => cell.textContent.trim())])"""
# How many rows come at once.
STEP = 50


@pytest.fixture(scope="module")
def table(site):
    """The download, in the order of the book."""
    return pd.read_parquet(site / "downloads/scoreboard.parquet")


@pytest.fixture(scope="module")
def claims(table):
    return table[table["kind"] == "claim"]


def count(page):
    return page.locator(".lossbook-board [role=status]").inner_text()


def answered(page, number):
    """Wait until the search has found so many."""
    page.locator(".lossbook-board [role=status]", has_text=re.compile(rf"^{number:,} of ")).wait_for()


def unfolded(page):
    """All rows, however many there are."""
    while page.locator(".lossbook-more").is_visible():
        page.locator(".lossbook-more").click()
    return page.evaluate(READ)


def places(page):
    """Where the rows lead, in their order."""
    return [row[0] for row in unfolded(page)]


def choose(page, **fields):
    for name, value in fields.items():
        page.locator(f".lossbook-board [name={name}]").select_option(value)


def settled(page, pattern):
    """Wait until the address is as it should be: it follows with a delay."""
    page.wait_for_url(re.compile(pattern))


def test_nothing_is_loaded_until_somebody_asks(open_page, table, claims):
    page = open_page("scoreboard")
    assert [url for url in page.requests if re.search(r"scoreboard-\w+\.js", url)] == []
    assert count(page) == f"{len(claims):,} claims, {len(table) - len(claims):,} checks"
    assert page.locator(ROWS).count() == 0
    page.get_by_role("button", name="Show", exact=True).click()
    answered(page, len(claims))
    assert page.locator(ROWS).count() == min(STEP, len(claims))
    assert places(page) == list(claims["page"])
    assert not [url for url in page.requests if "scoreboard-checks" in url]
    # The focus is on the first of the new rows.
    if len(claims) > STEP:
        assert page.evaluate("document.activeElement.closest('tr').rowIndex") > STEP


def test_everything_is_found(open_page, table):
    page = open_page("scoreboard?verdict=all")
    answered(page, len(table))
    assert sorted(places(page)) == sorted(table["page"]) and len(table) > 20
    assert count(page) == f"{len(table):,} of {len(table):,} entries"
    verdicts = table.set_index("page")["verdict"]
    assert all(row[3].split()[-1] == verdicts[row[0]] for row in page.evaluate(READ))


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_both_ways_and_back(open_page, table, column):
    page = open_page("scoreboard?verdict=all")
    answered(page, len(table))
    before = places(page)
    head = page.locator(f".lossbook-board th[data-key={column}]")
    for direction in ("ascending", "descending"):
        head.get_by_role("button").click()
        page.locator(f"th[data-key={column}][aria-sort={direction}]").wait_for()
        assert page.locator(".lossbook-board [aria-sort]").count() == 1
        assert f", by {head.inner_text().split('↕')[0].strip().lower()}, {direction}" in count(page)
        rows = unfolded(page)
        assert sorted(row[0] for row in rows) == sorted(table["page"])
        if column in NUMBERS:
            effects, errors = (table.set_index("page")[name] for name in NUMBERS[column])
            numbers = [float(effects.fillna(errors)[row[0]]) for row in rows]
            known = [number for number in numbers if number == number]
            # What is missing comes last either way.
            assert len(set(known)) > 3 and all(number != number for number in numbers[len(known) :])
            assert known == sorted(known, reverse=direction == "descending")
        else:
            texts = [row[1 + COLUMNS.index(column)] for row in rows]
            if column == "verdict":
                texts = [text.split()[-1] for text in texts]
            ordered = page.evaluate(
                """([texts, sign]) => texts.every((text, i) => !i ||
                    sign * texts[i - 1].localeCompare(text, "en", {numeric: true, sensitivity: "base"}) <= 0)""",
                [texts, 1 if direction == "ascending" else -1],
            )
            assert ordered, texts
        settled(page, rf"sort={'-' if direction == 'descending' else ''}{column}$")
    head.get_by_role("button").click()
    settled(page, r"scoreboard\.html\?verdict=all$")
    page.wait_for_function("() => !document.querySelector('.lossbook-board [aria-sort]')")
    assert places(page) == before


def test_search_finds_words_in_any_order_and_spelling(open_page, table):
    page = open_page("scoreboard?verdict=all")
    answered(page, len(table))
    everything = unfolded(page)

    def simple(text):
        text = unicodedata.normalize("NFKD", text).replace("−", "-").lower()
        return "".join(letter for letter in text if not unicodedata.combining(letter))

    for sought in ("gradient", "GRADIENT closed", "closed gradient", "contradicted", "-1", "nats"):
        page.get_by_label("Search the entries").fill(sought)
        expected = [
            row[0] for row in everything if all(word in simple(" ".join(row[1:])) for word in sought.lower().split())
        ]
        answered(page, len(expected))
        assert places(page) == expected and 0 < len(expected) < len(everything), sought
    page.get_by_label("Search the entries").fill("no such thing <b>")
    answered(page, 0)
    assert not page.locator(".lossbook-found").is_visible()


def test_filters_and_sorting_work_together_and_are_cleared(open_page, claims):
    page = open_page("scoreboard")
    verdict = claims["verdict"].mode()[0]
    some = claims[claims["verdict"] == verdict]
    choose(page, verdict=verdict)
    answered(page, len(some))
    part = some["part"].iloc[0]
    some = some[some["part"] == part]
    choose(page, part=part)
    answered(page, len(some))
    page.locator(".lossbook-board thead button", has_text="Result").click()
    page.locator("[data-key=result][aria-sort=ascending]").wait_for()
    assert places(page) == list(some.sort_values("effect", kind="stable")["page"])
    settled(page, f"verdict={verdict}&part={part}&sort=result$")
    page.get_by_role("button", name="Clear").click()
    assert page.locator(ROWS).count() == 0 and "claims, " in count(page)
    settled(page, r"scoreboard\.html$")


def test_the_address_restores_what_was_chosen(open_page, table):
    page = open_page("scoreboard?text=gradient&verdict=check&sort=-result#entries")
    assert page.get_by_label("Search the entries").input_value() == "gradient"
    assert page.locator("[name=verdict]").input_value() == "check"
    page.locator("[data-key=result][aria-sort=descending]").wait_for()
    shown = places(page)
    assert 0 < len(shown) < len(table)
    errors = table.set_index("page").loc[shown, "error"]
    assert list(errors.dropna()) == sorted(errors.dropna(), reverse=True)
    page.get_by_label("Search the entries").press("End")
    page.keyboard.type("s")
    settled(page, "text=gradients&verdict=check&sort=-result#entries$")
    page.reload()
    assert page.get_by_label("Search the entries").input_value() == "gradients"
    # An address that somebody mistyped asks for nothing.
    page = open_page("scoreboard?verdict=poem&sort=up&part=")
    assert page.locator(ROWS).count() == 0 and page.complaints == []


def test_numbers_by_part_lead_to_the_entries_they_count(open_page):
    page = open_page("scoreboard")
    links = page.locator(".lossbook-counts td a")
    found = [(links.nth(i).get_attribute("href"), int(links.nth(i).inner_text())) for i in range(links.count())]
    assert len(found) > 3
    for address, number in found:
        there = open_page(address.replace(".html", ""))
        answered(there, number)
        assert len(places(there)) == number, address
        there.close()


def test_every_row_leads_to_its_place(open_page, table):
    for part, rows in table.groupby("part", sort=False):
        page = open_page(f"scoreboard/{part}")
        for paper, entries in rows.groupby("slug", sort=False):
            link = page.locator(f'.lossbook-entries a[href="../{entries["page"].iloc[0]}"]')
            if not link.is_visible():
                link.locator("xpath=ancestor::details/summary").click()
            link.click()
            page.wait_for_url(f"**/{entries['page'].iloc[0]}")
            missing = page.evaluate(
                "ids => ids.filter(id => !document.getElementById(id)?.matches('.lossbook-entry'))",
                [place.partition("#")[2] for place in entries["page"]],
            )
            assert missing == [] and page.locator(".lossbook-entry:target").count() == 1, paper
            page.go_back()


def test_it_works_by_keyboard(open_page, claims):
    page = open_page("scoreboard")
    page.get_by_label("Search the entries").focus()
    page.keyboard.type("claim")
    page.wait_for_function("document.querySelector('.lossbook-found').rows.length > 1")
    for name in ("verdict", "part"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == name
    for kind in ("submit", "reset"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.type") == kind
    for column in COLUMNS:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.parentElement.dataset.key") == column
    page.keyboard.press("Enter")
    page.locator("[data-key=runs][aria-sort=ascending]").wait_for()
    # The focus stays, so the same key turns the order round: the site gives it back after the theme took it, by a timer
    # that was set before this one.
    given_back = (
        "new Promise(done => setTimeout(() => done(document.activeElement.closest('[data-key=runs]') !== null)))"
    )
    assert page.evaluate(given_back)
    page.keyboard.press("Space")
    page.locator("[data-key=runs][aria-sort=descending]").wait_for()
    assert page.evaluate(given_back)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") > 0


@pytest.mark.parametrize("name", ["scoreboard?verdict=all", "scoreboard/contrastive"])
def test_on_a_phone_rows_are_cards_within_the_screen(open_page, name):
    page = open_page(name, width=390)
    rows = page.locator(".lossbook-entries tbody tr")
    rows.first.scroll_into_view_if_needed()
    boxes = page.evaluate(
        """() => [...document.querySelectorAll(".lossbook-entries tbody tr")].slice(0, 5).flatMap(row => [...row.cells]
            .map(cell => [cell.textContent, cell.getBoundingClientRect().left, cell.getBoundingClientRect().right,
                cell.scrollWidth - cell.clientWidth]))"""
    )
    assert len(boxes) >= 25
    assert all(left >= 0 and right <= 390 and over <= 0 for _, left, right, over in boxes), boxes


def test_without_javascript_a_page_a_part_has_every_entry(browser, address, table):
    with closing(browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 844})) as context:
        page = context.new_page()
        page.goto(f"{address}scoreboard.html")
        # What would do nothing is not offered.
        assert page.locator(".lossbook-board").count() == 1 and not page.locator(".lossbook-board").is_visible()
        for part, rows in table.groupby("part", sort=False):
            page.goto(f"{address}scoreboard.html")
            page.locator(f".lossbook-counts th a[href='scoreboard/{part}.html']").click()
            # A page that is read while it arrives has fewer.
            page.wait_for_url(f"**/scoreboard/{part}.html")
            links = page.locator(".lossbook-entries th a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
            assert sorted(links) == sorted(f"../{place}" for place in rows["page"])
            # Claims are seen at once, checks when somebody unfolds them.
            folded = page.locator(".lossbook-entries[class]").evaluate_all(
                "all => all.map(table => [table.caption.textContent, table.checkVisibility()])"
            )
            assert {(name, shown) for name, shown in folded} <= {("Claims", True), ("Checks", False)}
            page.locator(".lossbook-board summary").first.click()
            assert page.locator(".lossbook-board details[open] tbody tr").first.is_visible()


def test_it_works_from_a_folder(context, site, table):
    page = context.new_page()
    page.goto((site / "scoreboard.html").as_uri() + "?verdict=verified")
    answered(page, sum(table["verdict"] == "verified"))
    page.locator(".lossbook-board thead button", has_text="Paper").click()
    settled(page, "verdict=verified&sort=paper$")


def test_downloads_are_what_the_table_shows(open_page, table):
    page = open_page("scoreboard?verdict=all")
    answered(page, len(table))
    for ending, read in {"csv": pd.read_csv, "parquet": pd.read_parquet}.items():
        with page.expect_download() as download:
            page.get_by_role("link", name=f"scoreboard.{ending}").click()
        with open(download.value.path(), "rb") as file:
            found = read(io.BytesIO(file.read()))
        assert sorted(found["page"]) == sorted(places(page)) and list(found) == list(table)
        claims = found[found["kind"] == "claim"]
        decided = claims[claims["verdict"] != "inconclusive"]
        assert ((decided["low"] <= decided["effect"]) & (decided["effect"] <= decided["high"])).all()


def test_the_script_is_on_this_page_alone(site):
    users = [path.name for path in site.rglob("*.html") if "scripts/scoreboard.js" in path.read_text(encoding="utf-8")]
    assert users == ["scoreboard.html"] and (site / "scripts/scoreboard.js").stat().st_size < 9000
    assert not (site / "_static/scoreboard.js").exists()


def test_parts_are_folded_in_the_sidebar(browser, address, table):
    """Without scripts too: the part that the page is in is open, the others unfold."""
    with closing(browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 844})) as context:
        page = context.new_page()
        page.goto(f"{address}gallery.html")
        parts = page.locator(".bd-links details")
        assert parts.count() == table["part"].nunique() and page.locator(".bd-links details[open]").count() == 0
        parts.last.locator("summary").click()
        link = parts.last.locator("a").last
        name, place = link.inner_text(), link.get_attribute("href")
        link.click()
        page.wait_for_url(f"**/{place}")
        assert page.locator(".bd-links details[open]").count() == 1
        assert page.locator(".bd-links [aria-current=page]").inner_text() == name
