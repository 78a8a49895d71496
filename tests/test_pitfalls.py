"""What goes wrong with the datasets of the field: each ends in the right labels or a clear message.

What other files already show: list formats (test_lists), shifts and who has made them
(test_labels), layouts, .mat files and gaps (test_layout), submissions, Cityscapes' own figures.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stripseg.config.errors import DataError
from stripseg.dataset.description import default_colors, describe
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.lists import Pair, read_list
from stripseg.dataset.preparation.check import examine_pair

IDS = np.arange(12).reshape(3, 4)


def pair(folder: Path, label: Image.Image, name: str = "label.png") -> Pair:
    Image.new("RGB", label.size).save(folder / "image.png")
    label.save(folder / name)
    return Pair("image.png", folder / "image.png", folder / name)


def error_of(found: Pair, dataset: str) -> str:
    description = describe(dataset)
    encoding = choose_encoding([found], description, classes=description.classes)
    return examine_pair(found, split="train", encoding=encoding, channels=3).error


def test_cityscapes_instance_ids_are_recognised(tmp_path: Path) -> None:
    instances = Image.fromarray(np.where(IDS > 5, IDS * 1000, IDS).astype(np.uint16))
    found = pair(tmp_path, instances, "a_gtFine_instanceIds.png")
    assert "look like instance ids (class * 1000 + instance): take the label ids" in error_of(
        found, "cityscapes"
    )


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_colour_coded_labels_are_refused(mode: str, tmp_path: Path) -> None:
    """Cityscapes' color.png, the full ADE20K's codes, the original CamVid's _L.png."""
    found = pair(tmp_path, Image.new(mode, (4, 3)))
    encoding = choose_encoding([found], None, classes=19)
    message = f"is a colour picture .mode {mode}.*one class index per pixel"
    with pytest.raises(DataError, match=message):
        encoding.read(found.label)


def test_vocs_palette_and_grey_labels_mix_in_one_list(tmp_path: Path) -> None:
    grey = Image.fromarray(IDS.astype(np.uint8))
    palette = grey.copy()
    palette.putpalette([v for color in [(0, 0, 0), *default_colors(255)] for v in color])
    description = describe("voc2012")
    pairs = [pair(tmp_path, grey, "grey.png"), pair(tmp_path, palette, "palette.png")]
    encoding = choose_encoding(pairs, description, classes=21)
    for found in pairs:
        assert np.array_equal(encoding.read(found.label), IDS)


def test_voc_labels_saved_as_grey_pictures_are_recognised(tmp_path: Path) -> None:
    colors = np.array([(0, 0, 0), *default_colors(20)], np.uint8)[IDS]
    found = pair(tmp_path, Image.fromarray(colors).convert("L"))
    assert "look like a palette PNG that was saved as grey" in error_of(found, "voc2012")


def test_vocs_lists_for_classification_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("2008_000008 -1\n2008_000015  1\n")
    with pytest.raises(DataError, match=r"line 1: '2008_000008 -1' is of a list for classificat"):
        read_list(tmp_path / "train.txt", tmp_path, split="train")


def test_a_published_file_that_is_broken_is_named(tmp_path: Path) -> None:
    """One image of Cityscapes' train_extra is."""
    found = pair(tmp_path, Image.fromarray(IDS.astype(np.uint8)), "a_gtCoarse_labelIds.png")
    found.image.write_bytes(found.image.read_bytes()[:40])
    assert "image.png: image file is truncated" in error_of(found, "cityscapes")


def test_bdds_train_ids_are_not_mapped_like_cityscapes(tmp_path: Path) -> None:
    found = pair(tmp_path, Image.fromarray(IDS.astype(np.uint8)))
    encoding = choose_encoding([found], describe("bdd100k"), classes=19)
    assert np.array_equal(encoding.read(found.label), IDS)


def test_two_ade20k_classes_share_a_colour_so_colours_are_not_read_back() -> None:
    description = describe("ade20k")
    twins = [description.names[i] for i, c in enumerate(description.colors) if c == (140, 140, 140)]
    assert twins == ["road", "skyscraper"]
