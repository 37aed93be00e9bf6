"""The gallery with its filters, the picture on the front page, and the roadmap."""

import csv
import re
from contextlib import closing
from pathlib import Path

import pytest

# The site is built once, so whoever builds it looks at all of it.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

ROOT = Path(__file__).parents[2]
# A notebook called like its part opens the part, and is no paper.
PAPERS = {path.stem: path.parent.name for path in ROOT.glob("notebooks/*/*.py") if path.stem != path.parent.name}
# A paper, and a part that it is not in.
ONE, ELSEWHERE = "ideal_group_number", "contrastive"
FIELDS = {"part": "All parts", "verdict": "Any verdict", "tag": "All tags"}


def rows() -> list[dict[str, str]]:
    with open(ROOT / "book" / "catalogue.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def field(page, name):
    return page.locator(f".lossbook-filters [name={name}]")


def status(page) -> str:
    return page.locator(".lossbook-filters [role=status]").inner_text()


def cards(page, which: str = ":visible") -> list[str]:
    """The titles of the cards that are shown, or hidden."""
    return [text.strip() for text in page.locator(f".lossbook-card{which} > p").all_text_contents()]


def search(page) -> str:
    return page.evaluate("location.search")


def check_count(page):
    shown, every = len(cards(page)), len(cards(page, ""))
    plural = "paper" if every == 1 else "papers"
    assert status(page) == (f"{every} {plural}" if shown == every else f"{shown or 'None'} of {every} {plural}")


def test_every_paper_has_a_card(open_page):
    page = open_page("gallery")
    links = page.locator(".lossbook-card > p a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert sorted(links) == sorted(f"{part}/{slug}.html" for slug, part in PAPERS.items())
    assert all(cards(page)) and page.complaints == []
    # A reader learns from a card what the paper is about and how it came out.
    for card in page.locator(".lossbook-card").all():
        # What is off the screen has no inner text: cards are laid out when they come into sight.
        assert re.search(r"\d{4}", card.locator(".lossbook-card-source").text_content())
        assert card.locator(".lossbook-verdict").count() >= 2
    check_count(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_cards_show_figures_on_white(open_page, scheme):
    page = open_page("gallery", scheme=scheme)
    for image in page.locator(".lossbook-card img").all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") > 100 and len(image.get_attribute("alt")) > 20
        assert image.evaluate("image => getComputedStyle(image).backgroundColor") == "rgb(255, 255, 255)"
        box = image.bounding_box()
        assert box["width"] > 200 and box["height"] > 100


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1280, 3)])
def test_cards_stand_in_columns(open_page, width, columns):
    page = open_page("gallery", width=width)
    made = page.locator(".lossbook-cards").evaluate("grid => getComputedStyle(grid).gridTemplateColumns")
    assert len(made.split()) == columns


@pytest.mark.parametrize("name", FIELDS)
def test_a_choice_leaves_the_cards_that_fit(open_page, name):
    page = open_page("gallery")
    options = field(page, name).locator("option").evaluate_all("all => all.map(o => [o.value, o.textContent])")
    assert options[0] == ["", FIELDS[name]] and len(options) > 1
    for value, text in options[1:]:
        field(page, name).select_option(value)
        for which, fits in ((":visible", True), ("[hidden]", False)):
            for card in page.locator(f".lossbook-card{which}").all():
                if name == "verdict":
                    assert (card.locator(f".lossbook-{value}").count() > 0) == fits
                else:
                    part, *tags = card.locator(".lossbook-card-tags").text_content().split(" · ")
                    assert (text in ([part] if name == "part" else tags)) == fits
        if name != "verdict":
            assert cards(page), "a choice is offered that no card fits"
        check_count(page)
        assert search(page).startswith(f"?{name}=")
    field(page, name).select_option("")
    assert len(cards(page)) == len(PAPERS) and search(page) == ""


def test_text_is_found_wherever_it_stands(open_page):
    page = open_page("gallery")
    card = page.locator(".lossbook-card").filter(has=page.locator("a[href$='/temperature_free_infonce.html']"))
    title = card.locator("p a").first.inner_text().strip()
    authors = next(row["authors"] for row in rows() if row["slug"] == "temperature_free_infonce")
    words = {
        "title": title.upper(),
        "author": authors.split(",")[0].lower(),
        "idea": card.locator("div > p").nth(1).inner_text(),
        "tag": card.locator(".lossbook-card-tags").inner_text().split(" · ")[-1],
        "slug": "temperature_free_infonce",
        "paper": "Temperature-Free Loss Function",
        "some of the words": "temperature  cosine ",
        "an accent too many": "témperaturé",
    }
    for where, text in words.items():
        field(page, "text").fill(text)
        assert title in cards(page), where
        check_count(page)
    field(page, "text").fill("temperature zzzz")
    assert cards(page) == [] and status(page).startswith("None of")


def test_filters_combine(open_page):
    page = open_page("gallery")
    field(page, "text").fill("normalisation")
    found = cards(page)
    assert 0 < len(found) < len(PAPERS)
    field(page, "part").select_option("layers")
    assert set(cards(page)) <= set(found) and cards(page)
    field(page, "part").select_option(ELSEWHERE)
    field(page, "text").fill("number ideal_group")
    assert cards(page) == []
    assert search(page) == f"?text=number+ideal_group&part={ELSEWHERE}"
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("location.search === ''")
    assert len(cards(page)) == len(PAPERS) and field(page, "text").input_value() == ""


@pytest.mark.parametrize("how", ["served", "file"])
def test_an_address_brings_the_choice_back(open_page, site, context, how):
    base = f"{site.as_uri()}/" if how == "file" else None
    page = open_page("gallery", context=context, base=base)
    field(page, "text").fill(ONE)
    field(page, "part").select_option(PAPERS[ONE])
    kept, found = search(page), cards(page)
    assert kept == f"?text={ONE}&part={PAPERS[ONE]}" and len(found) == 1

    def same(other):
        assert (field(other, "text").input_value(), field(other, "part").input_value()) == (ONE, PAPERS[ONE])
        assert cards(other) == found and search(other) == kept
        check_count(other)

    page.reload()
    same(page)
    page.locator(".lossbook-card:visible > p a").click()
    page.wait_for_url(f"**/{ONE}.html")
    page.go_back()
    page.wait_for_url("**/gallery.html*")
    same(page)
    same(open_page(f"gallery{kept}", context=context, base=base))
    # Leaving a page stops what it still asks for.
    assert [text for text in page.complaints if "ERR_ABORTED" not in text] == []


def test_an_address_with_nonsense_is_no_choice(open_page):
    page = open_page("gallery?part=nowhere&tag=%00&verdict=perfect&else=kept")
    assert len(cards(page)) == len(PAPERS) and page.complaints == []
    field(page, "verdict").select_option("supported")
    assert search(page) == "?verdict=supported&else=kept"


def test_back_and_forward_within_the_page(open_page):
    page = open_page("gallery?part=layers")
    page.evaluate("history.pushState(null, '', '?part=contrastive')")
    page.evaluate("history.back()")
    page.wait_for_function("location.search === '?part=layers'")
    assert field(page, "part").input_value() == "layers"
    page.evaluate("history.forward()")
    page.wait_for_function("document.querySelector('.lossbook-filters [name=part]').value === 'contrastive'")
    assert len(cards(page)) == sum(part == "contrastive" for part in PAPERS.values())


def test_the_gallery_by_keyboard_alone(open_page):
    page = open_page("gallery")
    here = "document.activeElement.name || document.activeElement.textContent.trim()"

    def tab_to(name):
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.lossbook-filters, .lossbook-card') !== null"):
                assert page.evaluate(here) == name
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                card = page.evaluate("document.activeElement.closest('.lossbook-card') !== null")
                assert card or outline != "none"
                return
        raise AssertionError(f"{name} is out of reach")

    tab_to("text")
    page.keyboard.type(ONE)
    # Enter is no way out of the page.
    page.keyboard.press("Enter")
    assert len(cards(page)) == 1
    tab_to("part")
    for _ in {*PAPERS.values()}:
        page.keyboard.press("ArrowDown")
        part = field(page, "part").input_value()
        assert len(cards(page)) == (part == PAPERS[ONE])
        if part == PAPERS[ONE]:
            break
    tab_to("verdict")
    tab_to("tag")
    tab_to("Reset")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search === ''")
    assert page.evaluate(here) == "Reset"
    title = cards(page)[0]
    tab_to(title)
    card = page.locator(".lossbook-card").first
    link = card.locator("p a").first.get_attribute("href")
    assert card.evaluate("card => getComputedStyle(card).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{link}")


def test_a_card_is_a_link_as_a_whole(open_page):
    page = open_page("gallery")
    card = page.locator(".lossbook-card").first
    box, link = card.locator("img").bounding_box(), card.locator("p a").first.get_attribute("href")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url(f"**/{link}")


def test_without_scripts_the_gallery_is_a_list(browser, address, visit):
    with closing(browser.new_context(java_script_enabled=False)) as context:
        page = visit(context, address, "gallery?part=layers")
        assert not page.locator(".lossbook-filters").is_visible()
        assert len(cards(page)) == len(PAPERS)
        first = page.locator(".lossbook-card > p a").first
        link = first.get_attribute("href")
        first.click()
        page.wait_for_url(f"**/{link}")


def test_its_script_is_loaded_there_alone(open_page):
    for name in ("gallery", "intro"):
        asked = [url for url in open_page(name).requests if "gallery.js" in url]
        assert len(asked) == (name == "gallery")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_front_page_shows_every_paper(open_page, site, width):
    page = open_page("intro", width=width)
    tiles = page.locator(".lossbook-tiles .lossbook-tile")
    assert tiles.count() == len({row["slug"] for row in rows()} | set(PAPERS))
    links = page.locator("a.lossbook-tile")
    assert sorted(links.evaluate_all("all => all.map(a => a.getAttribute('href'))")) == sorted(
        f"{part}/{slug}.html" for slug, part in PAPERS.items()
    )
    score = page.locator(".lossbook-score").inner_text()
    for verdict in ("supported", "contradicted", "inconclusive"):
        number = int(re.search(rf"(\d+) claims? {verdict}", score)[1])
        # Claims of pages that open a part are in the score, and have no square.
        with open(site / "downloads" / "scoreboard.csv", encoding="utf-8", newline="") as file:
            number -= sum(
                (row["kind"], row["verdict"]) == ("claim", verdict) and row["slug"] == row["part"]
                for row in csv.DictReader(file)
            )
        assert page.locator(f".lossbook-tiles .lossbook-mark.lossbook-{verdict}").count() == number
        said = [re.search(rf"(\d+) {verdict}", label) for label in links.evaluate_all("l => l.map(a => a.ariaLabel)")]
        assert sum(int(match[1]) for match in said if match) == number
    for tile in tiles.all():
        box = tile.bounding_box()
        assert box["width"] >= 24 and box["height"] >= 24 and box["x"] + box["width"] <= width
    # No part needs a second line.
    for row in page.locator(".lossbook-tiles").all():
        assert row.bounding_box()["height"] < 40
    links.first.focus()
    assert links.first.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"


def test_the_first_screen_says_what_the_book_is(open_page):
    page = open_page("intro")
    page.set_viewport_size({"width": 1280, "height": 800})
    bottom = page.evaluate(
        "() => ['article p', '.lossbook-score', '.lossbook-map li:nth-child(6)'].map("
        "name => document.querySelector(name).getBoundingClientRect().bottom)"
    )
    assert bottom == sorted(bottom) and bottom[-1] < 800


@pytest.mark.parametrize("width", [390, 1280])
def test_the_roadmap_has_every_paper(open_page, width):
    page = open_page("roadmap", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_role("rowheader").count() == page.locator("tr[id^=paper-]").count()
    total = page.locator(".lossbook-progress li").all_inner_texts()
    assert sum(int(re.search(r"(\d+) of \d+", text)[1]) for text in total) == len(PAPERS)
    for row in rows():
        line = page.locator(f"#paper-{row['slug']}")
        text = line.inner_text()
        assert row["title"] in text and f"arXiv:{row['arxiv']}" in text and row["year"][:4] in text
        assert ("official code" in text) == bool(row["official_code"])
        assert ("planned" in text) == (row["slug"] not in PAPERS)
    for slug, part in PAPERS.items():
        line = page.locator(f"#paper-{slug}")
        assert line.locator(f"th a[href='{part}/{slug}.html']").count() == 1
        assert line.locator(".lossbook-verdict").count() >= 2
        kept = len(list((ROOT / "records" / slug).glob("[!.]*/run.json")))
        assert (f"{kept} recorded run" in line.inner_text()) == (kept > 0)


def test_parts_of_the_picture_lead_to_the_roadmap(open_page):
    page = open_page("intro")
    page.locator(".lossbook-map-part a", has_text="Unlearning").click()
    page.wait_for_url("**/roadmap.html#part-unlearning")
    assert page.locator("#part-unlearning").count() == 1
