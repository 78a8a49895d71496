"""Contact sheets show the images, their labels, and what the augmentation makes of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stripseg.config.errors import ConfigError
from stripseg.dataset.build import Classes
from stripseg.tool import browse

CLASSES = Classes(["a <b>", "c"], np.array([[200, 0, 0], [0, 0, 200]], np.uint8))


def test_a_page_has_every_picture_inside(small_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.html"
    words = ["--config", str(small_config), "--count", "4", "--crops", "2"]
    browse.main([*words, "--output", str(output)])
    text = output.read_text()
    assert text.count("<h2>") == 4
    assert text.count('<img src="data:image/jpeg;base64,') == 4 * (2 + 2)
    assert "fence" in text


def test_a_picture_has_a_row_for_every_image(small_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    browse.main(["--config", str(small_config), "--count", "3", "--output", str(output)])
    sheet = np.array(Image.open(output))
    assert sheet.shape[0] == 3 * (browse.TILE + browse.GAP)
    assert sheet.std() > 10


def test_another_suffix_is_refused(small_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"sheet.pdf: a sheet is a .png or .html file"):
        browse.main(["--config", str(small_config), "--output", "sheet.pdf"])


def test_labels_are_laid_over_the_pixels_they_belong_to() -> None:
    label = np.array([[0] * 8 + [1] * 8 + [255] * 8] * 16, np.uint8)
    image = np.full((16, 24, 3), 100, np.uint8)
    shown = browse.with_label(image, label, CLASSES).astype(int)
    assert (shown[:, :8, 0] > shown[:, :8, 2] + 50).all()
    assert (shown[:, 9:16, 2] > shown[:, 9:16, 0] + 50).all()
    assert (shown[:, 8] == 0).all()  # the border of the regions
    assert (shown[:, 17:] == 255).all(axis=2).any()


def test_names_cannot_write_into_the_page() -> None:
    class Nothing:
        def __len__(self) -> int:
            return 1

    text = browse.page({"<script>.png": []}, Nothing(), CLASSES)
    assert "<script>" not in text
    assert "a &lt;b&gt;" in text
