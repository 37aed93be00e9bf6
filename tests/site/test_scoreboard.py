"""The scoreboard in the browser: the table sorts, searches and filters, and is a table without any script."""

import io
import re
import unicodedata

import pandas as pd
import pytest

# The site is built once, so whoever builds it looks at all of it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

COLUMNS = ["paper", "part", "entry", "verdict", "statement", "result", "runs", "profile"]
NUMBERS = {"result": ("effect", "error"), "runs": ("seeds", "cases")}
ROWS = ".lossbook-board tbody tr"
# Of every row in sight: where it leads, and the text of its cells.
READ = f"""() => [...document.querySelectorAll("{ROWS}:not([hidden])")].map(row =>
    [row.querySelector("th a").getAttribute("href"), ...[...row.cells].map(cell => cell.textContent.trim())])"""


@pytest.fixture(scope="module")
def table(site):
    """The download, in the order of the book."""
    return pd.read_parquet(site / "downloads/scoreboard.parquet")


def places(page):
    """Where the rows in sight lead, in their order."""
    return [row[0] for row in page.evaluate(READ)]


def count(page):
    return page.locator(".lossbook-board [role=status]").inner_text()


def settled(page, pattern):
    """Wait until the address is as it should be: it follows with a delay."""
    page.wait_for_url(re.compile(pattern))


def test_the_table_has_every_entry(open_page, table):
    page = open_page("scoreboard")
    assert places(page) == list(table["page"]) and len(table) > 20
    assert count(page) == f"{len(table):,} of {len(table):,} entries"
    shown = [row[4] for row in page.evaluate(READ)]
    assert [text.split()[-1] for text in shown] == list(table["verdict"])


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_both_ways_and_back(open_page, table, column):
    page = open_page("scoreboard")
    head = page.locator(f".lossbook-board th[data-key={column}]")
    for direction in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        assert page.locator(".lossbook-board [aria-sort]").count() == 1
        assert f", by {head.inner_text().split('↕')[0].strip().lower()}, {direction}" in count(page)
        rows = page.evaluate(READ)
        assert sorted(row[0] for row in rows) == sorted(table["page"])
        if column in NUMBERS:
            claims, checks = (table.set_index("page")[name] for name in NUMBERS[column])
            numbers = [float(claims.fillna(checks)[row[0]]) for row in rows]
            known = [number for number in numbers if number == number]
            # What is missing comes last either way.
            assert len(set(known)) > 3 and all(number != number for number in numbers[len(known) :])
            assert known == sorted(known, reverse=direction == "descending")
        else:
            texts = [row[1 + COLUMNS.index(column)] for row in rows]
            ordered = page.evaluate(
                """([texts, sign]) => texts.every((text, i) => !i ||
                    sign * texts[i - 1].localeCompare(text, "en", {numeric: true, sensitivity: "base"}) <= 0)""",
                [texts, 1 if direction == "ascending" else -1],
            )
            assert ordered, texts
        settled(page, rf"sort={'-' if direction == 'descending' else ''}{column}$")
    head.get_by_role("button").click()
    assert places(page) == list(table["page"]) and head.get_attribute("aria-sort") is None
    settled(page, r"scoreboard\.html$")


def test_search_finds_words_in_any_order_and_spelling(open_page):
    page = open_page("scoreboard")
    everything = page.evaluate(READ)

    def simple(text):
        text = unicodedata.normalize("NFKD", text).replace("−", "-").lower()
        return "".join(letter for letter in text if not unicodedata.combining(letter))

    for sought in ("gradient", "GRADIENT closed", "closed gradient", "contradicted", "-1", "(1 - c2)/2", "nats"):
        page.get_by_label("Search the entries").fill(sought)
        expected = [
            row[0] for row in everything if all(word in simple(" ".join(row[1:])) for word in sought.lower().split())
        ]
        assert places(page) == expected and 0 < len(expected) < len(everything), sought
        assert count(page).startswith(f"{len(expected)} of ")
    page.get_by_label("Search the entries").fill("no such thing <b>")
    assert places(page) == [] and count(page).startswith("0 of ")


def test_filters_and_sorting_work_together_and_are_cleared(open_page, table):
    page = open_page("scoreboard")
    form = page.locator(".lossbook-board form")
    form.get_by_label("Kind").select_option("claims")
    claims = table[table["kind"] == "claim"]
    assert places(page) == list(claims["page"])
    verdict = claims["verdict"].mode()[0]
    form.get_by_label("Verdict").select_option(verdict)
    some = claims[claims["verdict"] == verdict]
    part = some["part"].iloc[0]
    form.get_by_label("Part").select_option(value=part)
    some = some[some["part"] == part]
    page.locator(".lossbook-board thead button", has_text="Result").click()
    assert places(page) == list(some.sort_values("effect", kind="stable")["page"])
    settled(page, f"kind=claim&verdict={verdict}&part={part}&sort=result$")
    form.get_by_role("button", name="Clear").click()
    assert form.locator("[role=status]").inner_text() == f"{len(table):,} of {len(table):,} entries"
    assert places(page) == list(table["page"])
    settled(page, r"scoreboard\.html$")


def test_the_address_restores_what_was_chosen(open_page, table):
    page = open_page("scoreboard?text=gradient&kind=check&sort=-result#entries")
    assert page.get_by_label("Search the entries").input_value() == "gradient"
    assert page.locator("[name=kind]").input_value() == "check"
    assert page.locator("[data-key=result]").get_attribute("aria-sort") == "descending"
    shown = places(page)
    assert 0 < len(shown) < len(table) and shown == list(
        table.set_index("page").loc[shown].sort_values("error", ascending=False, kind="stable").index
    )
    page.get_by_label("Search the entries").press("End")
    page.keyboard.type("s")
    settled(page, "text=gradients&kind=check&sort=-result#entries$")
    page.reload()
    assert page.get_by_label("Search the entries").input_value() == "gradients"
    # An address that somebody mistyped shows everything.
    page = open_page("scoreboard?kind=poem&sort=up&verdict=")
    assert places(page) == list(table["page"]) and page.complaints == []


def test_numbers_by_part_lead_to_the_entries_they_count(open_page):
    page = open_page("scoreboard")
    links = page.locator(".lossbook-counts td a")
    found = [(links.nth(i).get_attribute("href"), int(links.nth(i).inner_text())) for i in range(links.count())]
    assert len(found) > 3
    for address, number in found:
        there = open_page(address.replace(".html", ""))
        assert len(places(there)) == number, address
        there.close()


def test_every_row_leads_to_its_place(open_page, table):
    page = open_page("scoreboard")
    for paper, rows in table.groupby("slug", sort=False):
        page.locator(f'{ROWS} a[href="{rows["page"].iloc[-1]}"]').click()
        page.wait_for_url(f"**/{rows['page'].iloc[-1]}")
        missing = page.evaluate(
            "ids => ids.filter(id => !document.getElementById(id)?.matches('.lossbook-entry'))",
            [place.partition("#")[2] for place in rows["page"]],
        )
        assert missing == [] and page.locator(".lossbook-entry:target").count() == 1, paper
        page.go_back()


def test_it_works_by_keyboard(open_page, table):
    page = open_page("scoreboard")
    page.get_by_label("Search the entries").focus()
    page.keyboard.type("claim")
    assert "entries" in count(page) and len(places(page)) < len(table)
    for name in ("kind", "verdict", "part"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == name
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "reset"
    for column in COLUMNS:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.parentElement.dataset.key") == column
    page.keyboard.press("Enter")
    assert page.locator("[data-key=profile]").get_attribute("aria-sort") == "ascending"
    # The focus stays (the site gives it back after the theme took it), so the same key turns the order round.
    page.wait_for_timeout(50)
    page.keyboard.press("Space")
    assert page.locator("[data-key=profile]").get_attribute("aria-sort") == "descending"
    page.wait_for_timeout(50)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") > 0


def test_on_a_phone_rows_are_cards_within_the_screen(open_page):
    page = open_page("scoreboard", width=390)
    page.locator(f"{ROWS} >> nth=0").scroll_into_view_if_needed()
    boxes = page.evaluate(
        f"""() => [...document.querySelectorAll("{ROWS}")].slice(0, 5).flatMap(row => [...row.cells]
            .map(cell => [cell.textContent, cell.getBoundingClientRect().left, cell.getBoundingClientRect().right,
                cell.scrollWidth - cell.clientWidth]))"""
    )
    assert len(boxes) == 5 * len(COLUMNS)
    assert all(left >= 0 and right <= 390 and over <= 0 for _, left, right, over in boxes), boxes
    page.locator(".lossbook-board thead button", has_text="Result").click()
    assert page.locator("[data-key=result]").get_attribute("aria-sort") == "ascending"


def test_without_javascript_it_is_a_table_with_links(browser, address, table):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 844})
    page = context.new_page()
    page.goto(f"{address}scoreboard.html")
    assert page.locator(ROWS).count() == len(table)
    links = page.locator(f"{ROWS} th a")
    assert [links.nth(i).get_attribute("href") for i in range(len(table))] == list(table["page"])
    # What would do nothing is not offered.
    assert page.locator(".lossbook-board button, .lossbook-board input, .lossbook-board select").all() and not any(
        control.is_visible() for control in page.locator(".lossbook-board :is(button, input, select)").all()
    )
    links.first.click()
    assert page.url.endswith(table["page"][0])
    context.close()


def test_it_works_from_a_folder(context, site, table):
    page = context.new_page()
    page.goto((site / "scoreboard.html").as_uri() + "?verdict=verified")
    assert len(places(page)) == sum(table["verdict"] == "verified")
    page.locator(".lossbook-board thead button", has_text="Paper").click()
    settled(page, "verdict=verified&sort=paper$")


def test_downloads_are_what_the_table_shows(open_page, table):
    page = open_page("scoreboard")
    for ending, read in {"csv": pd.read_csv, "parquet": pd.read_parquet}.items():
        with page.expect_download() as download:
            page.get_by_role("link", name=f"scoreboard.{ending}").click()
        with open(download.value.path(), "rb") as file:
            found = read(io.BytesIO(file.read()))
        assert list(found["page"]) == places(page) and list(found) == list(table)
        assert found["verdict"].isin(["verified", "failed", "supported", "contradicted", "inconclusive"]).all()
        claims = found[found["kind"] == "claim"]
        decided = claims[claims["verdict"] != "inconclusive"]
        assert ((decided["low"] <= decided["effect"]) & (decided["effect"] <= decided["high"])).all()


def test_the_script_is_on_this_page_alone(site):
    users = [path.name for path in site.rglob("*.html") if "scripts/scoreboard.js" in path.read_text(encoding="utf-8")]
    assert users == ["scoreboard.html"] and (site / "scripts/scoreboard.js").stat().st_size < 8000
    assert not (site / "_static/scoreboard.js").exists()
