"""The report as a browser has it."""

import json

import pytest
import torch

from browser import open_chromium, open_file, require_browser, serious_violations
from pdiff_hf.report.write import write_report
from small_results import evaluate

require_browser()

HOSTILE = '"><img src=x onerror="window.hit=1"><script>window.hit=1</script>'
DESK, PHONE = {"width": 1200, "height": 900}, {"width": 320, "height": 640}
# Where a row of a series is on the screen.
PLACE = """([name, series, row]) => {
    const figure = [...document.querySelectorAll("[data-chart]")][name];
    const width = figure.querySelector(".wide").offsetParent ? "wide" : "narrow";
    const svg = figure.querySelector(`.${width} svg`);
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const [x, y] = JSON.parse(figure.querySelector("script").textContent).places[width][series][row];
    scrollBy(0, svg.getBoundingClientRect().top + y * scale - innerHeight / 2);
    const box = svg.getBoundingClientRect();
    return [box.left + x * scale, box.top + y * scale];
}"""


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    result, folder = evaluate(num_originals=8, num_generated=6), tmp_path_factory.mktemp("report")
    generator = torch.Generator().manual_seed(0)
    latents = {name: torch.randn(n, 4, generator=generator) for name, n in (("original", 8), ("generated", 6))}
    names = {"generated": [HOSTILE, *(f"0000{number}.safetensors" for number in range(1, 6))]}
    write_report(result, folder, task={"dataset": HOSTILE}, latents=latents, names=names)
    return folder / "report.html"


@pytest.fixture
def page(browser, file):
    with browser.new_context(viewport=DESK) as context:
        yield open_file(context, file)[0]


def find_series(page, chart, title, field):
    data = json.loads(page.locator("[data-chart] script").nth(chart).text_content())
    (place,) = (i for i, s in enumerate(data["series"]) if s["title"] == title and s["fields"][0] == field)
    return place, data["series"][place]


def hover(page, chart, series, row):
    page.mouse.move(*page.evaluate(PLACE, [chart, series, row]))


def test_nothing_but_the_file_is_asked_for(browser, file):
    with browser.new_context(viewport=DESK) as context:
        page, seen = open_file(context, file)
        page.wait_for_load_state("networkidle")
        assert seen == [file.resolve().as_uri()]
        # The policy holds: neither a request nor another script.
        script = "document.body.append(Object.assign(document.createElement('{}'), {{ {} }}))"
        page.evaluate(script.format("img", "src: 'http://127.0.0.1:9/x.png'"))
        page.evaluate(script.format("script", "textContent: 'window.hit = 1'"))
        page.wait_for_timeout(100)
        assert page.evaluate("window.hit") is None
        assert all("Content Security Policy" in text for text in seen[1:] if not text.startswith("http")) and seen[1:]


@pytest.mark.parametrize("chart", [0, 1], ids=["accuracy_similarity", "latent_pca"])
def test_a_pointer_on_a_point_shows_its_network(page, chart):
    place, series = find_series(page, chart, "generated", "network")
    tip = page.locator("[data-chart] .tip").nth(chart)
    assert tip.is_hidden()
    # Others may lie on it; those are of the same accuracy and similarity.
    hover(page, chart, place, 2)
    assert tip.is_visible()
    if chart == 1:
        expected = [f"{field}: {value}" for field, value in zip(series["fields"], series["rows"][2], strict=True)]
        assert tip.locator("span").all_text_contents() == expected and "00002.safetensors" in expected[0]
    box, plot = tip.bounding_box(), page.locator("[data-chart] .plot").nth(chart).bounding_box()
    assert box["x"] >= plot["x"] - 1 and box["x"] + box["width"] <= plot["x"] + plot["width"] + 1
    page.mouse.move(5, 5)
    assert tip.is_hidden()


def test_keys_lead_from_point_to_point(page):
    plot = page.locator("[data-chart] .plot").nth(1)
    tip = plot.locator(".tip")
    page.locator("[data-chart]").nth(1).locator(".legend button").last.focus()
    page.keyboard.press("Tab")
    assert plot.evaluate("element => element === document.activeElement") and tip.is_visible()
    assert plot.get_attribute("role") == "application" and tip.get_attribute("role") == "status"
    seen = []
    for _ in range(8):
        seen.append(tip.text_content())
        page.keyboard.press("ArrowRight")
    assert len(set(seen)) == 8 and all(text.startswith("original") for text in seen), "from left to right, to the last"
    page.keyboard.press("ArrowRight")
    assert tip.text_content() == seen[-1]
    page.keyboard.press("Home")
    assert tip.text_content() == seen[0]
    page.keyboard.press("ArrowDown")
    assert tip.text_content().startswith("generated")
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_group_is_hidden_and_shown_by_its_button(page):
    figure = page.locator("[data-chart]").nth(1)
    button = figure.get_by_role("button", name="generated")
    marks = figure.locator('.wide g[data-group="1"]')
    place, _ = find_series(page, 1, "generated", "network")
    assert button.get_attribute("aria-pressed") == "true" and marks.first.is_visible()
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert all(mark.is_hidden() for mark in figure.locator('g[data-group="1"]').all())
    for row in range(6):
        hover(page, 1, place, row)
        assert not (figure.locator(".tip").text_content() or "").startswith("generated")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true" and marks.first.is_visible()


def test_a_table_is_sorted_by_its_headers(page):
    table = page.locator("table").first
    headers = table.locator("thead th[aria-sort]")
    names = table.locator("tbody th").all_text_contents()
    title = headers.all_text_contents().index("mean accuracy, % (95 %)".replace(" %", "\u00a0%"))
    button, column = headers.nth(title).get_by_role("button"), title + 1  # that of the bars has no name

    def values():
        cells = [row.locator("th, td").nth(column).text_content() for row in table.locator("tbody tr").all()]
        return [float(cell.split()[0]) for cell in cells]

    before = values()
    button.click()
    assert headers.nth(title).get_attribute("aria-sort") == "ascending" and values() == sorted(before)
    button.focus()
    page.keyboard.press("Space")
    assert headers.nth(title).get_attribute("aria-sort") == "descending"
    assert values() == sorted(before, reverse=True)
    headers.first.get_by_role("button").click()
    assert headers.nth(title).get_attribute("aria-sort") == "none"
    assert table.locator("tbody th").all_text_contents() == sorted(names, key=str.casefold)
    headers.first.get_by_role("button").click()
    headers.first.get_by_role("button").click()
    assert table.locator("tbody th").all_text_contents() == names


def test_numbers_are_sorted_as_numbers_and_what_is_missing_is_last(page):
    cells = ["–", "1,234", "−0.5 (−1 to 0)", "9", "", "1.2e-05"]
    page.evaluate(
        """cells => {
            const table = document.createElement("table");
            table.createTHead().insertRow().append(document.createElement("th"));
            const body = table.createTBody();
            for (const cell of cells) body.insertRow().insertCell().textContent = cell;
            document.body.append(table);
            makeSortable(table);
        }""",
        cells,
    )
    table = page.locator("table").last
    table.get_by_role("button").click()
    assert table.locator("td").all_text_contents() == ["−0.5 (−1 to 0)", "1.2e-05", "9", "1,234", "–", ""]
    table.get_by_role("button").click()
    assert table.locator("td").all_text_contents() == ["1,234", "9", "1.2e-05", "−0.5 (−1 to 0)", "–", ""]


def test_hostile_names_are_shown_as_they_are(page):
    place, _ = find_series(page, 1, "generated", "network")
    hover(page, 1, place, 0)
    assert HOSTILE in page.locator("[data-chart] .tip").nth(1).text_content()
    assert page.evaluate("window.hit") is None and page.locator("img").count() == 0


def test_a_phone_scrolls_in_one_direction_and_a_finger_shows_networks(browser, file):
    with browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True) as context:
        page, _ = open_file(context, file)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        place, _ = find_series(page, 1, "generated", "network")
        page.touchscreen.tap(*page.evaluate(PLACE, [1, place, 3]))
        tip = page.locator("[data-chart] .tip").nth(1)
        assert "00003.safetensors" in tip.text_content()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        sizes = [button.bounding_box() for button in page.locator(".legend button").all()]
        assert sizes and all(size["height"] >= 24 for size in sizes), "WCAG 2.5.8"


def test_without_scripts_all_is_there(browser, file):
    with browser.new_context(viewport=DESK, java_script_enabled=False) as context:
        page, _ = open_file(context, file)
        assert page.locator("button").count() == 0 and page.locator("table").first.is_visible()
        entries = page.locator("[data-chart] .legend").first
        assert entries.is_visible() and "generated" in entries.text_content()
        assert page.locator("[data-chart]").nth(1).locator('.wide g[data-group="0"]').is_visible()


def test_print_is_light_and_shows_what_is_folded(browser, file, tmp_path):
    with browser.new_context(viewport=DESK, color_scheme="dark") as context:
        page, _ = open_file(context, file)
        place, _ = find_series(page, 1, "generated", "network")
        hover(page, 1, place, 2)
        dark = page.evaluate("getComputedStyle(document.body).color")
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 35, 40)" != dark
        assert page.locator("[data-chart] .tip").nth(1).is_hidden()
        assert page.locator("details table").first.bounding_box()["height"] > 50
        page.pdf(path=tmp_path / "report.pdf", format="A4")
    pages = (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page\n")
    assert 3 <= pages <= 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_no_serious_violation_of_accessibility(browser, file, scheme, size):
    with browser.new_context(viewport=size, color_scheme=scheme) as context:
        page, _ = open_file(context, file)
        for details in page.locator("summary").all():
            details.click()
        page.locator("thead button").first.click()
        page.locator(".legend button").first.click()
        place, _ = find_series(page, 1, "generated", "network")
        hover(page, 1, place, 1)
        assert page.locator("[data-chart] .tip").nth(1).is_visible()
        assert serious_violations(page) == []
