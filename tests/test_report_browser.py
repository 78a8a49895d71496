"""The report in a real browser: everything can be opened, sorted and moved, and nothing is asked of
any network. Needs a Chromium or Chrome on the machine, which playwright drives."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from stripseg.config.load import load_config
from stripseg.dataset.results import PredictionFiles
from stripseg.dataset.segmentation import Sample
from stripseg.report.page import write_report
from stripseg.report.records import TestRecords, examine

sync_api = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
CLASSES = ["sky", "<b>road</b>", "pole", "tree"]
COLORS = [[70, 130, 180], [128, 64, 128], [153, 153, 153], [107, 142, 35]]
IMAGES = 24


def scene(index: int, *, noisy: bool) -> np.ndarray:
    """(60, 80) classes; the prediction differs from the label, and more in later images."""
    classes = np.zeros((60, 80), np.uint8)
    classes[35:] = 1
    classes[20:50, 10 + index : 13 + index] = 2
    if noisy:
        classes[20 : 25 + index, 50:70] = 3
    else:
        classes[20:40, 50:70] = 3
    return classes


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of 24 images."""
    folder = tmp_path_factory.mktemp("report")
    labels = [scene(index, noisy=False) for index in range(IMAGES)]
    shown = [scene(index, noisy=True) for index in range(IMAGES)]
    names = [f"images/street_{index}.jpg" for index in range(IMAGES)]
    files = PredictionFiles(folder, names, np.array(COLORS, np.uint8))
    samples, records = [], []
    for index, (name, label, prediction) in enumerate(zip(names, labels, shown, strict=True)):
        photo = cv2.GaussianBlur(np.array(COLORS, np.uint8)[label], (5, 5), 0)
        samples.append(Sample(photo, label, name, index))
        files.save(name, prediction)
        counts = np.bincount(label.ravel().astype(int) * 4 + prediction.ravel(), minlength=16)
        confidence = np.full(label.shape, 250, np.uint8)
        records.append(
            examine(name, label, prediction, confidence, counts.reshape(4, 4), ignore_label=255)
        )
    facts = {
        "classes": CLASSES,
        "colors": COLORS,
        "scales": [0.5, 1.0],
        "flip": True,
        "crop": [60, 80],
        "base_size": 0,
        "checkpoint": "0123456789abcdef",
    }
    yaml = folder / "config.yaml"
    yaml.write_text("DATA:\n  dataset: streets\n  data_root: data\n  classes: 4\n")
    config = load_config(yaml, ["TEST.save_folder", str(folder)])
    return write_report(config, TestRecords(facts, records), samples, files)


class Opened:
    """The page in a browser, with what went wrong and what was fetched."""

    def __init__(self, page: "sync_api.Page", report: Path) -> None:
        self.page, self.problems, self.requests = page, [], []
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(report.as_uri())

    def column(self, index: int) -> list[str]:
        cells = self.page.locator(f".sortable tbody tr td:nth-child({index + 1})")
        return [cell.strip() for cell in cells.all_inner_texts()]


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def opened(browser, report: Path, request) -> Iterator[Opened]:
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    opened = Opened(context.new_page(), report)
    yield opened
    assert opened.problems == []
    fetched = [url for url in opened.requests if not url.startswith("data:")]
    assert fetched == [report.as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_table_sorts_by_any_heading(opened: Opened) -> None:
    assert opened.column(0) == CLASSES
    opened.page.get_by_role("button", name="IoU", exact=True).click()
    falling = [float(value) for value in opened.column(1)]
    assert falling == sorted(falling, reverse=True)
    opened.page.get_by_role("button", name="IoU", exact=True).click()
    assert [float(value) for value in opened.column(1)] == falling[::-1]
    opened.page.get_by_role("button", name="class", exact=True).click()
    assert opened.column(0) == sorted(CLASSES)


def test_a_cell_opens_the_images_that_contribute_most(opened: Opened) -> None:
    cell = opened.page.locator('.cell[data-cell="3,0"]')
    cell.focus()
    opened.page.keyboard.press("Enter")
    box = opened.page.locator("#opened")
    assert "labelled tree, predicted sky" in box.inner_text()
    cards = box.locator(".card")
    assert cards.count() == 6
    assert "street_0.jpg" in cards.nth(0).inner_text()
    opened.page.locator('.cell[data-cell="0,2"]').click()
    assert "in no image" in box.inner_text()


def test_the_matrix_is_one_stop_of_the_tab_key(opened: Opened) -> None:
    """Arrow keys move in it, so that the images are not K * K presses away."""
    page, here = opened.page, "document.activeElement.dataset.cell"
    page.locator('.cell[data-cell="0,0"]').focus()
    page.keyboard.press("ArrowUp")  # there is nothing above
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert page.evaluate(here) == "1,1"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(here) == "1,1"


def test_images_can_be_filtered_and_looked_at(opened: Opened) -> None:
    page = opened.page
    gallery = page.locator("#gallery")
    assert gallery.locator("h3").all_inner_texts() == ["Worst", "Median", "Best"]
    assert gallery.locator(".card").count() == 12 + 4 + 4
    page.select_option("#filter", label="tree")
    assert gallery.locator("h3").all_inner_texts() == ["tree: worst of 24"]
    shown = [float(card.split()[0]) for card in gallery.locator(".card").all_inner_texts()]
    assert shown == sorted(shown)
    assert len(shown) == 12
    gallery.locator(".card").first.click()
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    assert "pixel accuracy" in viewer.inner_text()
    natural = "image => image.naturalWidth"
    page.wait_for_function("document.getElementById('over').naturalWidth == 80")
    assert viewer.locator("#under").evaluate(natural) == 80
    page.locator("#split").focus()
    page.keyboard.press("Home")
    assert "0%" in viewer.locator("#over").evaluate("image => image.style.clipPath")
    before = viewer.locator("#over").get_attribute("src")
    page.select_option("#right", label="errors")
    assert viewer.locator("#over").get_attribute("src") != before
    assert viewer.locator("li").count() == 4  # its classes
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    page.evaluate("data.images[data.gallery[0][1][0]].full = -1")  # as of most in a large test
    page.select_option("#filter", index=0)
    gallery.locator(".card").first.click()
    assert "Only a small picture of this image" in viewer.inner_text()
    assert not page.locator("#split").is_visible()
    assert not page.locator("#over").is_visible()


def test_names_are_shown_as_they_are(opened: Opened) -> None:
    assert opened.page.locator(".sortable b").count() == 0
    assert opened.page.locator("#filter option", has_text="<b>road</b>").count() == 1


def test_dark_and_light(browser, report: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(report.as_uri())
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert papers[0] == "rgb(255, 255, 255)"
    assert papers[0] != papers[1]
