"""The augmentation: what each choice does to pixels, labels beside images, purity."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from stripseg.dataset import augmentation as module
from stripseg.dataset.augmentation import Augmentation, rotation, source_window, warp, warp_image

PLAIN = Augmentation(
    crop=(40, 50), scale=(1.0, 1.0), rotate_probability=0, blur_probability=0, flip_probability=0
)
COLORS = np.array([[20, 30, 40], [200, 40, 60], [60, 220, 50], [70, 60, 240]], np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def picture(height: int = 40, width: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Large patches whose colour is their class."""
    coarse = generator(9).integers(0, 4, (6, 7), np.uint8)
    label = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return COLORS[label], label


def test_with_everything_off_nothing_changes() -> None:
    image, label = picture()
    ours = PLAIN(image, label, generator())
    assert np.array_equal(ours[0], image)
    assert np.array_equal(ours[1], label)


def test_a_flip_is_numpys() -> None:
    image, label = picture()
    ours = replace(PLAIN, flip_probability=1.0)(image, label, generator())
    assert np.array_equal(ours[0], image[:, ::-1])
    assert np.array_equal(ours[1], label[:, ::-1])


def test_a_blur_is_opencvs_and_leaves_the_label() -> None:
    image, label = picture()
    ours = replace(PLAIN, blur_probability=1.0)(image, label, generator())
    assert np.array_equal(ours[0], cv2.GaussianBlur(image, (5, 5), 0))
    assert np.array_equal(ours[1], label)


def test_a_small_picture_is_padded_evenly_with_the_mean() -> None:
    image, label = picture(31, 50)
    padded = PLAIN(image, label, generator())
    fill = [round(value) for value in PLAIN.fill]
    for rows in (slice(0, 4), slice(35, 40)):
        assert (padded[0][rows] == fill).all()
        assert (padded[1][rows] == 255).all()
    assert np.array_equal(padded[0][4:35], image)
    assert np.array_equal(padded[1][4:35], label)


def test_a_crop_is_a_part_of_the_picture_and_any_part_comes() -> None:
    image, label = picture(60, 70)
    seen = set()
    for seed in range(300):
        part, _ = replace(PLAIN, crop=(58, 67))(image, label, generator(seed))
        found = [
            (y, x)
            for y in range(3)
            for x in range(4)
            if np.array_equal(image[y : y + 58, x : x + 67], part)
        ]
        assert found
        seen.update(found)
    assert seen == {(y, x) for y in range(3) for x in range(4)}


@pytest.mark.parametrize("seed", range(12))
def test_labels_stay_with_their_pixels(seed: int) -> None:
    """Away from edges the colour of every pixel is still its label's, whatever was drawn."""
    image, label = picture(90, 110)
    augmentation = Augmentation(crop=(64, 64), scale=(0.7, 2.0), blur_probability=0)
    ours, ids = augmentation(image, label, generator(seed))
    assert ours.shape == (64, 64, 3)
    assert ids.shape == (64, 64)
    inner = cv2.erode(ids, np.ones((5, 5))) == cv2.dilate(ids, np.ones((5, 5)))
    inner &= ids != 255
    frame = np.pad(np.ones((60, 60), bool), 2)  # what lies beyond the crop is not seen here
    inner &= frame
    assert inner.sum() > 500
    assert np.abs(ours[inner].astype(int) - COLORS[ids[inner]]).max() <= 1


def test_a_rotation_is_about_the_centre_and_opencvs() -> None:
    image, label = picture(41, 51)
    augmentation = replace(PLAIN, crop=(41, 51), rotation=(30.0, 30.0), rotate_probability=1.0)
    ours, _ = augmentation(image, label, generator())
    turned = cv2.getRotationMatrix2D((25, 20), 30, 1)
    candidates = [
        cv2.warpAffine(image, m, (51, 41), borderValue=tuple(round(v) for v in PLAIN.fill))
        for m in (turned, cv2.invertAffineTransform(turned))
    ]
    assert min(np.abs(ours.astype(int) - c).mean() for c in candidates) < 0.5


def test_scale_and_angle_stay_within_their_limits() -> None:
    augmentation = Augmentation(crop=(50, 50), scale=(0.5, 1.5), rotation=(-20.0, 20.0))
    scales, angles = [], []
    for seed in range(400):
        (a, b, _), (c, d, _) = augmentation.sample_map((100, 100), generator(seed))
        scales.append(1 / np.sqrt(abs(a * d - b * c)))
        angles.append(np.degrees(np.arctan2(c, d)))
    assert 0.49 <= min(scales) < 0.56
    assert 1.44 < max(scales) <= 1.51
    assert np.abs(angles).max() <= 20.01
    turned = np.abs(angles) > 0.01
    assert 0.4 < turned.mean() < 0.6  # rotate_probability
    assert np.abs(angles).max() > 18


def test_the_result_is_a_function_of_the_generator() -> None:
    augmentation = Augmentation(crop=(48, 48))
    image, label = picture(90, 110)
    first, again, other = (augmentation(image, label, generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_the_source_is_not_changed() -> None:
    image, label = picture()
    before = image.copy(), label.copy()
    Augmentation(crop=(40, 50), blur_probability=1.0)(image, label, generator())
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])


def test_a_full_turn_is_the_identity() -> None:
    np.testing.assert_allclose(rotation(360, 3, 4), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation(90, 3, 4) @ [3, 4, 1], [3, 4, 1], atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_every_channel_is_moved_alike(channels: int) -> None:
    """Each band of a picture of any channels ends as it would alone, its padding as well."""
    rng = np.random.Generator(np.random.PCG64(3))
    image = rng.integers(0, 256, (40, 50, channels), np.uint8)
    label = rng.integers(0, 5, (40, 50), np.uint8)
    fill = [20.0 * channel for channel in range(channels)]
    augmentation = Augmentation((64, 64), blur_probability=1, rotate_probability=1, fill=fill)
    together, moved = augmentation(image, label, np.random.Generator(np.random.PCG64(4)))
    assert together.shape == (64, 64, channels)
    for channel in range(channels):
        alone = replace(augmentation, fill=fill[channel : channel + 1])
        band, same = alone(
            image[..., channel : channel + 1], label, np.random.Generator(np.random.PCG64(4))
        )
        difference = together[..., channel].astype(int) - band[..., 0]
        assert abs(difference).max() <= 1  # OpenCV rounds pairs of channels in its own way
        assert np.array_equal(moved, same)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_reading_only_the_window_changes_no_pixel(channels: int, monkeypatch) -> None:
    """Whatever lies in the canvas around the window, the crop is that of the whole picture."""
    rng = generator(channels)
    unset = SimpleNamespace(**vars(np))
    unset.empty = lambda size, _: rng.integers(0, 256, size, np.uint8)
    fill = list(range(60, 60 + channels))
    for seed in range(150):
        size, crop = rng.integers(2, 130, 2), tuple(rng.integers(2, 130, 2).tolist())
        image = rng.integers(0, 256, (*size, channels), np.uint8)
        turning = Augmentation(crop, rotation=(-180.0, 180.0), rotate_probability=0.7)
        to_source = turning.sample_map((int(size[0]), int(size[1])), generator(seed))
        padded = np.concatenate([image, image[..., :1]], axis=2) if channels == 3 else image
        whole = [
            warp(padded[..., c : c + 4].copy(), to_source, crop, [*fill, 0][c : c + 4])
            for c in range(0, channels, 4)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(module, "np", unset)
            ours = warp_image(image, to_source, crop, fill)
        expected = np.concatenate(whole, axis=2)[..., :channels]
        assert np.array_equal(ours, expected), f"{channels} channels, seed {seed}: window too small"


def test_the_window_is_a_part_of_the_picture_even_where_the_crop_is_beside_it() -> None:
    beside = np.array([[1.0, 0.0, 500.0], [0.0, 1.0, -900.0]])
    rows, columns = source_window(beside, (20, 30), (40, 50))
    assert (rows, columns) == (slice(0, 1), slice(49, 50))
    image = np.zeros((40, 50, 3), np.uint8)
    assert (warp_image(image, beside, (20, 30), [1, 2, 3]) == [1, 2, 3]).all()
    inside = np.array([[0.5, 0.0, 10.0], [0.0, 0.5, 4.0]])
    rows, columns = source_window(inside, (20, 30), (400, 500))
    assert (rows.start, columns.start) == (2, 8)
    assert rows.stop <= 18
    assert columns.stop <= 29
