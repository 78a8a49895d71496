"""The augmentation: what each choice does to pixels, labels beside images, purity."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from stripseg.config.load import load_config
from stripseg.dataset import augmentation as module
from stripseg.dataset.augmentation import (
    Augmentation,
    crop_start,
    jittered,
    paste,
    rare_pixel,
    rarity,
    rotation,
    source_window,
    warp,
    warp_image,
)
from stripseg.dataset.build import build_training_set

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


def rare_label() -> np.ndarray:
    """Class 0 everywhere, 100 pixels of class 1, four of class 2, and some that are ignored."""
    label = np.zeros((200, 260), np.uint8)
    label[50:60, 30:40] = 1
    label[180:182, 240:242] = 2
    label[:5] = 255
    return label


def test_classes_are_drawn_by_the_inverse_root_of_their_pixels() -> None:
    label = rare_label()
    classes, probabilities = rarity(label, ignore_label=255)
    weights = np.array([1 / np.sqrt((label == index).sum()) for index in range(3)])
    assert classes.tolist() == [0, 1, 2]
    np.testing.assert_allclose(probabilities, weights / weights.sum())
    drawn = [rare_pixel(label, generator(seed), ignore_label=255) for seed in range(2000)]
    shares = np.bincount([label[y, x] for x, y in drawn]) / len(drawn)
    assert np.abs(shares - probabilities).max() < 0.04
    places = {pixel for pixel in drawn if label[pixel[1], pixel[0]] == 2}
    assert places == {(240, 180), (241, 180), (240, 181), (241, 181)}  # any of its pixels
    assert rare_pixel(np.full((4, 4), 255, np.uint8), generator(), ignore_label=255) is None


@pytest.mark.parametrize(("side", "crop"), [(30, 7), (30, 30), (5, 12)])
def test_a_crop_around_a_position_is_any_that_contains_it(side: int, crop: int) -> None:
    allowed = {crop_start(side, crop, generator(seed)) for seed in range(400)}
    for around in (-0.4, 0.0, 3.3, side - 1.0, side - 0.6):
        starts = {crop_start(side, crop, generator(s), around=around) for s in range(400)}
        inside = min(max(around, 0), side - 1)
        assert starts == {s for s in allowed if s <= inside <= s + crop - 1}, around
    assert crop_start(side, min(crop, side), generator(), around=-9.0) == 0
    assert crop_start(side, min(crop, side), generator(), around=99.0) == side - min(crop, side)


def test_a_rare_class_is_in_the_crop() -> None:
    """Without it in few; with it in as many as draw class 1 or 2, whose places are far apart."""
    label = rare_label()
    image = COLORS[np.minimum(label, 3)]
    common = Augmentation(crop=(40, 40), scale=(1.0, 1.5), rotate_probability=0.0)
    rare = replace(common, rare_class_probability=1.0)
    found = {}
    for name, augmentation in (("common", common), ("rare", rare)):
        labels = [augmentation(image, label, generator(seed))[1] for seed in range(300)]
        found[name] = np.mean([np.isin(crop, (1, 2)).any() for crop in labels])
    _, probabilities = rarity(label, ignore_label=255)
    assert found["common"] < 0.2
    assert found["rare"] > probabilities[1:].sum() - 0.06


@pytest.mark.parametrize("seed", range(20))
def test_the_wanted_pixel_is_in_the_crop_whatever_is_drawn(seed: int) -> None:
    """Scaled, mirrored and turned about the centre: far from the corners it stays in the frame."""
    augmentation = Augmentation(crop=(40, 50), rotation=(-30.0, 30.0), rotate_probability=1.0)
    wanted = tuple(generator(seed).integers(60, 100, 2).tolist())
    to_source = augmentation.sample_map((160, 160), generator(seed), wanted=wanted)
    x, y = np.linalg.inv(np.vstack([to_source, [0, 0, 1]]))[:2] @ [*wanted, 1]
    assert -1e-6 <= x <= 49 + 1e-6
    assert -1e-6 <= y <= 39 + 1e-6


def test_a_share_of_no_rare_crops_draws_nothing() -> None:
    """The crops of the option at 0 are those from before it was there."""
    image, label = picture(90, 110)
    augmentation = Augmentation(crop=(48, 48))
    to_source = augmentation.sample_map((90, 110), generator(5))
    fill = [round(value) for value in augmentation.fill]
    plain = replace(augmentation, blur_probability=0.0)(image, label, generator(5))
    assert np.array_equal(plain[0], warp_image(image, to_source, (48, 48), fill))


def test_jitter_is_brightness_contrast_saturation() -> None:
    """Each by its definition, without rounding in between."""
    image = generator(3).integers(60, 190, (30, 40, 3), np.uint8)
    for largest in ([0.3, 0, 0], [0, 0.5, 0], [0, 0, 1.0], [0.1, 0.2, 0.3]):
        random = generator(4)
        factors = [random.uniform(1 - a, 1 + a) for a in largest]
        x = image.astype(float) * factors[0]
        x = factors[1] * x + (1 - factors[1]) * (x @ [0.299, 0.587, 0.114]).mean()
        grey = (x @ [0.299, 0.587, 0.114])[..., None]
        x = factors[2] * x + (1 - factors[2]) * grey
        ours = jittered(image, largest, generator(4))
        assert ours.dtype == np.uint8
        assert np.abs(ours - x.clip(0, 255)).max() <= 1.5, largest
    assert np.array_equal(jittered(image, [0, 0, 0], generator()), image)


def test_jitter_leaves_the_label_and_the_source() -> None:
    image, label = picture()
    before = image.copy()
    ours = replace(PLAIN, color_jitter=(0.5, 0.5, 0.5))(image, label, generator(1))
    assert np.array_equal(ours[1], label)
    assert np.array_equal(image, before)
    assert not np.array_equal(ours[0], image)


def test_half_of_the_classes_are_pasted() -> None:
    image, label = picture()
    other_label = rare_label()[160:, 210:]  # classes 0 and 2
    other_image = np.full((40, 50, 3), 7, np.uint8)
    chosen = []
    for seed in range(40):
        mixed, ids = paste(
            (image, label), (other_image, other_label), generator(seed), ignore_label=255
        )
        pasted = (mixed == 7).all(2)
        value = int(other_label[pasted][0])
        assert np.array_equal(pasted, other_label == value)  # one class, whole
        assert np.array_equal(ids, np.where(pasted, value, label))
        assert np.array_equal(mixed[~pasted], image[~pasted])
        chosen.append(value)
    assert set(chosen) == {0, 2}
    assert chosen.count(2) > chosen.count(0)  # the rare one more often
    nothing = (other_image, np.full((40, 50), 255, np.uint8))
    assert paste((image, label), nothing, generator(), ignore_label=255)[0] is image


def test_what_is_not_said_is_the_configs_default(small_config: Path) -> None:
    configured = build_training_set(load_config(small_config)).augmentation
    plain = Augmentation(crop=(48, 40))
    for field in fields(Augmentation):
        ours, theirs = getattr(plain, field.name), getattr(configured, field.name)
        assert np.array_equal(ours, theirs), field.name
