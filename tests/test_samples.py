"""Real pieces of the official downloads, where they are at hand (`STRIPSEG_SAMPLES`)."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stripseg.dataset.description import describe
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.layout import official_pairs
from stripseg.dataset.segmentation import read_pair

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "samples"
FOLDER = Path(os.environ.get("STRIPSEG_SAMPLES", BESIDE))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no samples in {FOLDER}; name their folder in STRIPSEG_SAMPLES"
)
SPLITS = [
    ("ade20k", "ade20k", "val", 3),
    ("cityscapes", "cityscapes", "train", 1),
    ("cityscapes", "cityscapes", "val", 1),
    ("voc2012", "voc2012", "train", 2),
    ("voc2012", "voc2012", "val", 2),
    ("lmo", "lmo_pseudo", "trainval", 4),
    ("lmo", "lmo_pseudo", "test", 2),
    ("pascal_context", "pascal_context", "train", 2),
    ("pascal_context60", "pascal_context", "val", 2),
    ("cocostuff", "cocostuff", "train", 3),
    ("cocostuff", "cocostuff", "val", 3),
]


@pytest.mark.parametrize(("dataset", "folder", "split", "count"), SPLITS)
def test_samples_load_with_train_ids(dataset: str, folder: str, split: str, count: int) -> None:
    description = describe(dataset)
    pairs = official_pairs(description, FOLDER / folder, split)
    assert len(pairs) == count
    encoding = choose_encoding(pairs, description, classes=description.classes)
    assert encoding.kind == ("raw" if description.raw_labels else "train_id")
    for index, pair in enumerate(pairs):
        label = read_pair(pair, encoding, index).label
        assert set(np.unique(label).tolist()) - {255} <= set(range(description.classes))
        assert (label != 255).any()


def test_contexts_colours_confirm_the_map_of_its_ids() -> None:
    """The sample's colour-coded labels are an independent witness of the same classes."""
    description = describe("pascal_context60")
    pairs = official_pairs(description, FOLDER / "pascal_context", "train")
    encoding = choose_encoding(pairs, description, classes=60)
    for index, pair in enumerate(pairs):
        label = read_pair(pair, encoding, index).label
        coded = FOLDER / "pascal_context" / "rgb_coded" / f"{pair.image.stem}.png"
        colours = np.array(Image.open(coded).convert("RGB")).astype(int) @ [65536, 256, 1]
        for class_id in np.unique(label):  # one colour a class, one class a colour
            assert len(np.unique(colours[label == class_id])) == 1
        assert len(np.unique(colours)) == len(np.unique(label))
