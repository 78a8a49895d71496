"""The pictures of README.md and docs/: `python docs/pictures.py RESULT_FOLDER`.

RESULT_FOLDER is that of a test of the built-in shapes: exp/shapes/spnet18/result/val/ss after
`make demo OPTIONS="TRAIN.width 0.5"`; its run is exp/shapes/spnet18/model. Needs matplotlib, a
Chromium and playwright (extra `test`).
"""

import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

from stripseg.report.explain import explain
from stripseg.report.explain_page import write_explanation
from stripseg.tool import browse
from stripseg.tool import curves as curves_of
from stripseg.trained_network import load

IMAGES = Path(__file__).with_name("images")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHOWN = 4  # scenes of prediction.jpg
SIDE = 240  # pixels of each
EXPLAINED = ("prediction", "receptive_field", "strip_pooling_02", "mixed_pooling_01")
WIDTH = 1200  # pixels of the widest picture


def smaller(source: Path, name: str, width: int = WIDTH) -> None:
    """Copy a picture to IMAGES, at most `width` pixels wide."""
    picture = cv2.imread(str(source))
    scale = min(1.0, width / picture.shape[1])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(IMAGES / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])


def predictions(result: Path, data: Path) -> None:
    """prediction.jpg: scenes above, their predicted classes below."""
    columns = []
    for path in sorted((result / "color").glob("*.png"))[:SHOWN]:
        photo = cv2.imread(str(data / "images/val" / f"{path.stem}.jpg"))
        pair = [cv2.resize(part, (SIDE, SIDE)) for part in (photo, cv2.imread(str(path)))]
        columns.append(np.vstack(pair))
    gap = np.full((2 * SIDE, 8, 3), 255, np.uint8)
    row = [part for column in columns for part in (column, gap)][:-1]
    cv2.imwrite(str(IMAGES / "prediction.jpg"), np.hstack(row))


def report(result: Path) -> None:
    """report.png, confusion.png, viewer.png: parts of the page as a browser shows them."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1000, "height": 720})
        page.goto((result / "report.html").resolve().as_uri())
        page.evaluate("document.querySelector('pre').remove()")  # the command has our paths
        page.screenshot(path=IMAGES / "report.png")
        page.locator("#confusion").scroll_into_view_if_needed()
        page.locator("#confusion").screenshot(path=IMAGES / "confusion.png")
        page.locator("#gallery .card").first.click()
        page.select_option("#right", label="errors")
        page.wait_for_timeout(500)
        page.locator("#viewer").screenshot(path=IMAGES / "viewer.png")
        chromium.close()


def explanations(checkpoint: Path, data: Path) -> None:
    """explained_*.jpg: what `stripseg explain` shows of the first scene."""
    explanation = explain(load(checkpoint), data / "images/val/shapes_val_0001.jpg")
    with tempfile.TemporaryDirectory() as folder:
        write_explanation(explanation, Path(folder), title="")
        for name in EXPLAINED:
            smaller(Path(folder, f"{name}.png"), f"explained_{name}.jpg")


def curves(run: Path) -> None:
    """curves.jpg: what `stripseg curves RUN --output curves.png` draws."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "curves.png")
        curves_of.main([str(run), "--output", str(picture)])
        smaller(picture, "curves.jpg")


def samples(data: Path) -> None:
    """browse.jpg: what `stripseg browse` shows of three training images."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "browse.png")
        words = ["DATA.data_root", str(data), "--count", "3", "--output", str(picture)]
        browse.main(["shapes", "spnet18", *words])
        smaller(picture, "browse.jpg")


if __name__ == "__main__":
    result = Path(sys.argv[1])
    data = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("dataset/shapes/data")
    IMAGES.mkdir(exist_ok=True)
    run = result.parents[2] / "model"
    predictions(result, data)
    report(result)
    explanations(run / "best.pth", data)
    curves(run)
    samples(data)
