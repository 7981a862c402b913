"""The page in a real browser: everything that somebody can do with it, and that it asks nothing of other machines."""

import re

import pytest
import torch
from browsers import served
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from browser import INSTALL, find_browser
from pdiff_hf.app.serve import serve

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'pdiff-hf[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright: pip install it")
if find_browser() is None:
    pytest.skip(INSTALL, allow_module_level=True)

POINT = "circle[data-network]"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tiny_run, tmp_path_factory):
    with served(tiny_run, log=tmp_path_factory.mktemp("page") / "log") as (url, _):
        yield url


@pytest.fixture(scope="module")
def subsets_address(subsets_run):
    """Of this process, which has imported all that it takes already."""
    told = []
    blocks = serve(str(subsets_run), wait=False, say=told.append)
    yield told[0]
    blocks.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page anew, as another user would; fails the test when it complains or asks other machines."""
    contexts, asked, errors = [], [], []

    def opened(url=address, viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#pd-plot svg")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:)", url)] == []
    assert errors == []


def number_box(page, label):
    return page.get_by_label(label).locator("visible=true").first


def generate(page, networks=6, seed=0):
    number_box(page, "number input for Networks").fill(str(networks))
    number_box(page, "number input for Steps of the denoiser").fill("5")
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("n => document.querySelectorAll('circle[data-network]').length === n", arg=networks)


def draw(page):
    canvas = page.locator("#pd-canvas canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y, height = box["x"] + box["width"] / 2, box["y"], box["height"]
    page.mouse.move(x, y + 0.15 * height)
    page.mouse.down()
    page.mouse.move(x, y + 0.85 * height, steps=5)
    page.mouse.up()


def test_the_originals_are_there_before_anything_is_generated(open_page, lab):
    page = open_page()
    assert page.locator("circle.pd-original").count() == min(300, len(lab.originals().vectors))
    assert page.locator(POINT).count() == 0 and page.get_by_role("heading", level=1).count() == 1


def test_networks_are_generated_looked_at_and_downloaded(open_page, lab, ask, tmp_path):
    page = open_page()
    generate(page, networks=6, seed=3)
    drawn = lab.draw(ask(num_samples=6, num_inference_steps=5, seed=3))
    assert (
        page.locator(f"{POINT}[data-network='2'] title")
        .text_content()
        .startswith(f"network 2: test accuracy {drawn.judged.score[2].item():.1%}")
    )
    place = page.locator(f"{POINT}[data-network='2']").bounding_box()
    page.mouse.click(place["x"] + 5, place["y"] + 5)
    page.wait_for_selector(f"{POINT}[aria-selected='true']")
    chosen = int(page.locator(f"{POINT}[aria-selected='true']").get_attribute("data-network"))
    page.get_by_role("heading", name=f"Network {chosen}:").wait_for()
    wrong = int(drawn.judged.wrong[chosen].sum())
    assert page.get_by_text(re.compile(rf"^{wrong} mistakes on ")).count() == 1
    assert page.locator(".pd-mistakes img").count() == min(24, wrong)
    norms = page.locator(".pd-norms tbody tr")
    assert norms.count() == len(lab.source.pipeline.layout.names)
    norm = drawn.vectors[chosen][: lab.source.pipeline.layout.tensors[0].numel].norm().item()
    assert f"{norm:.3f}" in norms.first.text_content()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "network.safetensors")
    state = load_file(tmp_path / "network.safetensors")
    assert torch.equal(lab.source.pipeline.layout.flatten(state), drawn.vectors[chosen])


def test_drawings_uploads_and_examples_are_voted_on(open_page, lab, ask, tmp_path):
    page = open_page()
    generate(page, networks=7)
    draw(page)
    sections = page.locator(".pd-votes section")
    page.wait_for_selector(".pd-votes")
    titles = page.locator(".pd-votes h3").all_text_contents()
    assert titles == ["What they see", "Generated", "Originals", "Soup of the originals"]
    assert re.search(r"agree.*uncertainty \d\.\d\d bits", sections.nth(1).text_content())
    page.get_by_role("button", name="Take a test example").click()
    page.get_by_text("test example 0").wait_for()
    vote = lab.vote(ask(num_samples=7, num_inference_steps=5), lab.judge.inputs[:1])["generated"]
    assert f"{vote.agreement:.0%} of 7 agree" in sections.nth(1).text_content()
    counts = sections.nth(1).locator("tbody tr td:nth-of-type(2)").all_text_contents()
    assert [int(count) for count in counts] == vote.counts
    image = Image.new("RGB", (100, 60), "white")
    ImageDraw.Draw(image).ellipse([30, 10, 70, 50], outline="black", width=8)
    image.save(tmp_path / "zero.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "zero.png")
    page.get_by_text("test example 0").wait_for(state="detached")
    assert sections.count() == 4


def test_a_vote_before_there_are_networks_is_refused_in_words(open_page):
    page = open_page()
    draw(page)
    page.get_by_text("generate networks first; then they vote.").wait_for()
    assert page.locator(".pd-votes").count() == 0


def test_all_is_reached_by_keyboard(open_page):
    page = open_page()
    page.get_by_label("Seed").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").strip() == "Generate":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector(POINT)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.network") == "0":
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.network") == "1"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Network 1:").wait_for()


def test_two_users_have_networks_of_their_own(open_page):
    first, second = open_page(), open_page()
    generate(first, networks=4, seed=1)
    generate(second, networks=9, seed=2)
    first.get_by_label("Network", exact=True).fill("3")
    first.get_by_role("button", name="Look at it").click()
    first.get_by_role("heading", name="Network 3:").wait_for()
    assert (first.locator(POINT).count(), second.locator(POINT).count()) == (4, 9)
    assert second.get_by_role("heading", name="Network 3:").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(open_page, scheme):
    page = open_page(viewport=PHONE, color_scheme=scheme, has_touch=True)
    generate(page, networks=5)
    page.locator(f"{POINT}[data-network='4']").tap(force=True)
    page.wait_for_selector(".pd-norms")
    draw(page)
    page.wait_for_selector(".pd-votes")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    buttons = [page.get_by_role("button", name=name) for name in ("Generate", "Look at it", "Take a test example")]
    for shown in (*buttons, *page.locator("#pd-plot svg, #pd-canvas canvas, .pd-norms, .pd-votes table").all()):
        box = shown.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    assert all(button.bounding_box()["height"] >= 32 for button in buttons)


CONTRAST = """
element => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const own = getComputedStyle(element);
  const ground = getComputedStyle(document.querySelector('gradio-app') || document.body).backgroundColor;
  const painted = ground.startsWith('rgba(0, 0, 0, 0') ? getComputedStyle(document.body).backgroundColor : ground;
  const [a, b] = [light(element.tagName === 'circle' ? own.fill : own.color), light(painted)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_points_and_texts_stand_out_from_the_ground(open_page, scheme):
    page = open_page(color_scheme=scheme)
    generate(page, networks=3)
    assert page.locator(POINT).first.evaluate(CONTRAST) >= 3
    assert page.locator(".pd-legend span").first.evaluate(CONTRAST) >= 4.5


UNNAMED = """
() => [...document.querySelectorAll('input, textarea, select, button')].filter(
  e => e.offsetParent !== null && !e.ariaLabel && !e.labels?.length && !e.textContent.trim() && !e.title
       && !e.getAttribute('aria-labelledby')
).map(e => e.outerHTML.slice(0, 200))
"""


def test_every_control_has_a_name(open_page):
    page = open_page()
    generate(page)
    unnamed = page.evaluate(UNNAMED)
    assert unnamed == []


def test_classes_are_chosen_by_their_names(open_page, subsets_address, subsets_lab, ask):
    page = open_page(subsets_address)
    page.get_by_label("0", exact=True).uncheck()
    page.get_by_label("7", exact=True).check()
    generate(page, networks=5)
    drawn = subsets_lab.draw(ask(condition={"classes": ["1", "7"]}, num_inference_steps=5))
    title = page.locator(f"{POINT}[data-network='0'] title").text_content()
    assert f"test accuracy {drawn.judged.score[0].item():.1%}" in title
    page.get_by_role("button", name="Take a test example").click()
    page.get_by_text("one of 1, 7").first.wait_for()
    for name in ("1", "7"):
        page.get_by_label(name, exact=True).uncheck()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("give an answer, or set guidance to 0").wait_for()
