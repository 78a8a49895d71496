"""The built-in dataset: scenes follow from their seed, folders are whole, colour is no clue."""

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from stripseg.dataset.description import describe, read_colors, read_names
from stripseg.dataset.generated.shapes import Shape, render_scene, write_shapes
from stripseg.dataset.labels import IGNORE_LABEL

CLASSES = len(Shape)


def digest(seed: int, index: int) -> str:
    image, label = render_scene(seed, index, height=64, width=96)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


def folder_digest(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    pairs = [render_scene(11, index) for index in range(48)]
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def test_indices_and_catalog_agree():
    assert [shape.name.lower() for shape in Shape] == list(describe("shapes").names)
    assert list(Shape) == list(range(CLASSES))


@pytest.mark.parametrize(("height", "width"), [(160, 160), (97, 161), (200, 120), (33, 33)])
def test_any_size(height: int, width: int):
    image, label = render_scene(0, 0, height=height, width=width)
    assert image.shape == (height, width, 3)
    assert label.shape == (height, width)
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(CLASSES), IGNORE_LABEL}


def test_scene_depends_on_its_arguments_alone():
    indices = [0, 1, 2]
    forwards = [digest(4, index) for index in indices]
    np.random.seed(0)  # the global generator plays no part
    backwards = [digest(4, index) for index in reversed(indices)][::-1]
    assert forwards == backwards
    assert len({*forwards, digest(5, 0)}) == 4


def test_scene_is_the_same_in_another_process():
    script = (
        "import hashlib; from stripseg.dataset.generated.shapes import render_scene\n"
        "image, label = render_scene(4, 2, height=64, width=96)\n"
        "print(hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest(4, 2)


def test_every_class_has_a_fair_share(scenes):
    _, labels = scenes
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert shares[:CLASSES].min() > 0.02
    assert 0.005 < shares[IGNORE_LABEL] < 0.1
    presence = [(labels == shape).any(axis=(1, 2)).mean() for shape in Shape]
    assert min(presence) > 0.6


def test_strips_are_long_and_boxes_are_short(scenes):
    _, labels = scenes
    columns = [(label == Shape.WIRE).any(axis=0).sum() for label in labels]
    assert np.median(columns) > 120
    for label in labels:
        count, _, statistics, _ = cv2.connectedComponentsWithStats(
            (label == Shape.BOX).astype(np.uint8)
        )
        assert count > 1
        assert statistics[1:, cv2.CC_STAT_AREA].max() < 2 * 46 * 21


def mean_iou(prediction: np.ndarray, label: np.ndarray) -> float:
    seen = label != IGNORE_LABEL
    pairs = label[seen].astype(np.int64) * CLASSES + prediction[seen]
    confusion = np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    return float(np.mean(confusion.diagonal() / union))


def test_colour_alone_does_not_tell_the_class(scenes):
    images, labels = scenes
    bins = (images // 32).astype(np.int64) @ np.array([64, 8, 1])
    train, held_out = slice(0, 36), slice(36, None)
    histograms = np.stack(
        [np.bincount(bins[train][labels[train] == shape], minlength=512) for shape in Shape]
    )
    rates = histograms / histograms.sum(axis=1, keepdims=True)
    for votes in (histograms, rates):  # with and without the classes' frequencies
        assert mean_iou(votes.argmax(axis=0)[bins[held_out]], labels[held_out]) < 0.2


def test_place_alone_does_not_tell_the_class(scenes):
    _, labels = scenes
    counts = np.stack([(labels[:36] == shape).sum(axis=0) for shape in Shape])
    prior = np.broadcast_to(counts.argmax(axis=0), labels[36:].shape)
    assert mean_iou(prior, labels[36:]) < 0.25


def test_folder_holds_what_its_lists_name(tmp_path):
    write_shapes(tmp_path, train=3, val=2, seed=1, height=48, width=64)
    lists = {split: (tmp_path / f"{split}.txt").read_text() for split in ("train", "val")}
    assert lists["train"].splitlines()[0] == (
        "images/train/shapes_train_0001.jpg labels/train/shapes_train_0001.png"
    )
    assert [len(text.splitlines()) for text in lists.values()] == [3, 2]
    for split, text in lists.items():
        for index, line in enumerate(text.splitlines(), 1):
            image, label = (tmp_path / name for name in line.split())
            drawn, expected = render_scene(2 + (split == "val"), index, height=48, width=64)
            np.testing.assert_array_equal(cv2.imread(str(label), cv2.IMREAD_UNCHANGED), expected)
            decoded = cv2.imread(str(image))[..., ::-1].astype(int)
            assert np.abs(decoded - drawn).mean() < 6
    description = describe("shapes")
    assert read_names(tmp_path / "names.txt") == list(description.names)
    assert read_colors(tmp_path / "colors.txt") == list(description.colors)


def test_an_interrupted_run_is_mended(tmp_path, monkeypatch):
    size = {"train": 3, "val": 2, "height": 32, "width": 32}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_shapes(whole, **size)
    write_shapes(broken, **size, seed=9)  # older files are replaced, too

    def fail_at_second(seed: int, index: int, **keywords: int) -> tuple[np.ndarray, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return render_scene(seed, index, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr("stripseg.dataset.generated.shapes.render_scene", fail_at_second)
        with pytest.raises(KeyboardInterrupt):
            write_shapes(broken, **size)
    assert not list(broken.glob("train.txt")) + list(broken.glob("val.txt"))
    write_shapes(broken, **size)
    assert folder_digest(broken) == folder_digest(whole)
