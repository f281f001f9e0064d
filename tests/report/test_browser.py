"""The report in a real browser, Debian's Chromium: what is pressed there does what it says."""

from __future__ import annotations

import csv
import io
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from made_up_run import PATIENTS, made_up_run
from PIL import Image

from dyefreenet.report import write_report

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
sync_api.expect.set_options(timeout=60_000)  # machines may be busy

pytestmark = pytest.mark.program("chromium")

FLAGS = [
    "--no-sandbox",  # tests may run as root, and the page is our own
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READ = """shown => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [shown.width, shown.height];
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(shown, 0, 0);
  return [copy.height, copy.width, ...context.getImageData(0, 0, copy.width, copy.height).data];
}"""
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of the made-up run, with two patients in its viewer."""
    run = made_up_run(tmp_path_factory.mktemp("browser"))
    return "file://" + write_report(run)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page; afterwards nothing was asked of a network, and nothing complained."""
    contexts, asked, said = [], [], []

    def open_page(**settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.locator("#shown:not(:empty)").wait_for(state="attached")  # the first picture is drawn
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not re.match(r"(file|data|blob):", url)] == []
    assert said == []


def canvas(page, number=0):
    """Grey values or colours of a picture of the viewer, [H, W, 4]."""
    drawn = page.locator("#tiles canvas").nth(number)
    values = drawn.evaluate(READ)
    return np.array(values[2:]).reshape(values[0], values[1], 4)


def shown(page):
    """Patient, slice and window that the viewer says it shows."""
    text = page.locator("#shown").text_content()
    return re.match(r"Patient (\S+), slice (\d+) .*; (Soft tissue|Angio|Bone)", text).groups()


def waits_for(page, patient, index, window):
    text = re.compile(rf"Patient {patient}, slice {index} .*; {window}")
    sync_api.expect(page.locator("#shown")).to_have_text(text)


def saved(page, name):
    """Content of the file that a button saves, under the name of the run."""
    with page.expect_download() as download:
        page.locator(f'[data-take="{name}"]').click()
    assert download.value.suggested_filename == f"trial-{name}"
    return download.value.path().read_bytes()


def test_the_slider_moves_the_pictures(opened):
    page = opened()
    assert shown(page) == (PATIENTS[0], "5", "Soft tissue")
    before = canvas(page)
    page.locator("#slice").fill("2")
    waits_for(page, PATIENTS[0], 6, "Soft tissue")
    assert (canvas(page) != before).any()


def test_pictures_show_the_stored_hu_in_each_window(opened, address):
    page = opened()
    path = address.removeprefix("file://").replace("report/index.html", "evaluate/panels/")
    arrays = np.load(f"{path}{PATIENTS[0]}.npz")
    for name, level, width in (("Soft tissue", 40, 400), ("Angio", 200, 600), ("Bone", 400, 1500)):
        page.get_by_label(name).check()
        waits_for(page, PATIENTS[0], 5, name)
        grey = ((arrays["plain"][1] - (level - width / 2)) / width * 255).clip(0, 255)
        # Pictures keep steps of 4 HU in soft tissue, and coarser ones beyond.
        coarse = np.where(np.abs(arrays["plain"][1] - 200) <= 400, 2.1, 42) * 255 / width + 1
        assert (np.abs(canvas(page)[..., 0] - grey) <= coarse).all()


def test_keys_move_slice_patient_and_window(opened):
    page = opened()
    page.locator("#tiles canvas").first.click()
    for key, expected in (
        ("ArrowRight", (PATIENTS[0], 6, "Soft tissue")),
        ("ArrowRight", (PATIENTS[0], 6, "Soft tissue")),  # the last one
        ("ArrowLeft", (PATIENTS[0], 5, "Soft tissue")),
        ("2", (PATIENTS[0], 5, "Angio")),
        ("3", (PATIENTS[0], 5, "Bone")),
        ("ArrowDown", (PATIENTS[1], 5, "Bone")),
        ("ArrowUp", (PATIENTS[0], 5, "Bone")),
        ("]", (PATIENTS[1], 5, "Bone")),
        ("]", (PATIENTS[1], 5, "Bone")),  # the last one
        ("[", (PATIENTS[0], 5, "Bone")),
        ("1", (PATIENTS[0], 5, "Soft tissue")),
    ):
        page.keyboard.press(key)
        waits_for(page, *expected)


def test_keys_elsewhere_leave_the_viewer_alone(opened):
    page = opened()
    page.locator("h1").click()
    before = page.evaluate("[slice.value, patient.selectedIndex]")
    for key in ("ArrowRight", "3", "]"):
        page.keyboard.press(key)
        assert page.evaluate("[slice.value, patient.selectedIndex]") == before  # set at once
    assert shown(page) == (PATIENTS[0], "5", "Soft tissue")


def test_whoever_tabs_sees_where_the_focus_is(opened):
    page = opened()
    page.locator("#larger").focus()
    for _ in range(3):  # over the button that saves the pictures
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "tiles":
            break
    outline = page.locator("#tiles").evaluate("e => getComputedStyle(e).outline")
    assert page.evaluate("document.activeElement.id") == "tiles"
    assert "solid" in outline and "0px" not in outline


def test_a_worst_case_opens_its_patient_in_the_viewer(opened):
    page = opened()
    button = page.locator(f'table.cases button[data-pair="{PATIENTS[1]}"]').last
    button.click()
    sync_api.expect(page.locator("#shown")).to_have_text(re.compile(f"Patient {PATIENTS[1]}"))
    sync_api.expect(page.locator("#tiles")).to_be_focused()
    sync_api.expect(page.locator("#pictures h2")).to_be_in_viewport()


def test_pictures_of_the_worst_cases_follow_the_method(opened):
    page = opened()
    row = page.locator(".case-row:visible")
    assert row.get_attribute("data-method") == "refine"
    assert row.locator("canvas").count() == 6  # of two patients: true, predicted, difference
    page.locator("#case-method").select_option("unet")
    sync_api.expect(row).to_have_attribute("data-method", "unet")
    sync_api.expect(row.locator("canvas")).to_have_count(6)


def test_every_kind_of_file_arrives(opened):
    page = opened()
    rows = list(csv.DictReader(io.StringIO(saved(page, "patients-mae-vessel.csv").decode())))
    assert rows[-1]["patient"] == PATIENTS[7] and float(rows[-1]["value"]) == pytest.approx(110.3)
    assert saved(page, "MODEL_CARD.md").startswith(b"# Model card: run trial")

    drawing = ET.fromstring(saved(page, "validation-psnr.svg"))
    texts = ["".join(node.itertext()) for node in drawing.iter() if node.tag.endswith("text")]
    assert "PSNR, dB" in texts and "Primary GAN" in texts  # its title and its legend
    (line, *_) = (node for node in drawing.iter() if node.tag.endswith("polyline"))
    assert line.get("stroke", "").startswith("rgb(") and line.get("fill") == "none"

    pixels = Image.open(io.BytesIO(saved(page, "patients-mae-vessel.png")))
    assert pixels.width == 3 * (460 + 16)
    assert len(pixels.convert("RGB").getcolors(1 << 20)) > 20  # drawn, not blank

    together = np.asarray(Image.open(io.BytesIO(saved(page, "pictures.png"))))
    assert together.shape[1] == 7 * (32 + 8) - 8
    assert np.array_equal(together[44 : 44 + 32, :32], canvas(page))  # pixel for pixel


def test_a_figure_is_saved_in_light_colours_from_a_dark_page(opened):
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    name = "bland-altman-refine.svg"
    assert saved(dark, name) == saved(light, name)


def luminance(colour):
    """Of a CSS colour rgb(r, g, b), as WCAG defines it."""
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(opened, scheme):
    page = opened(color_scheme=scheme)
    ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.05) == (scheme == "dark")
    for selector in ("h1", ".note", ".better .tag", ".worse .tag", "a", "td small", ".missing, dd"):
        colour = page.locator(selector).first.evaluate("e => getComputedStyle(e).color")
        low, high = sorted((ground, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector  # WCAG AA


def test_a_phone_needs_no_sideways_scroll(opened):
    page = opened(viewport=PHONE, has_touch=True)
    for part in page.locator("details").all():
        part.evaluate("e => { e.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for name in ("#slice", "#patient", "#larger", "#case-method"):
        place = page.locator(name).bounding_box()
        assert place["x"] >= 0 and place["x"] + place["width"] <= PHONE["width"]
        assert place["height"] >= 16
    page.get_by_label("Bone").tap()
    waits_for(page, PATIENTS[0], 5, "Bone")


def test_print_has_everything_and_cuts_nothing(opened):
    page = opened(viewport={"width": 695, "height": 1000}, color_scheme="dark")  # A4 within margins
    page.locator("#slice").fill("2")
    printed = page.pdf(format="A4", print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 4
    assert page.locator("details[open]").count() == 0  # as it was before

    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("#shown").is_visible()
    assert not page.locator("#viewer-controls").is_visible()
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    for part in page.locator("table, pre, .tiles, .charts").all():
        if part.is_visible():
            place = part.bounding_box()
            assert place["x"] + place["width"] <= 696, part.inner_text()[:80]


def test_without_a_script_the_figures_can_still_be_read(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("table.headline").first.is_visible()
    assert not page.locator(".take").first.is_visible()  # buttons that would do nothing
    assert page.locator("noscript").first.is_visible()
    context.close()
