"""Random scale, rotation, flip and crop, in one warp over the pixels that survive; then colours,
blur, and pasting of one crop into another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

WINDOW_MARGIN = 2  # pixels; interpolation reads one beyond, and OpenCV rounds positions


@dataclass(frozen=True)
class Augmentation:
    """The training augmentation of semseg and SPNet, as a pure function of a generator.

    Args:
        crop: output (height, width) in pixels; smaller images are padded.
        scale: smallest and largest factor of a uniform random scale.
        rotation: smallest and largest angle in degrees, drawn with `rotate_probability`.
        blur_probability: of a 5x5 Gaussian blur.
        flip_probability: of mirroring left and right.
        rare_class_probability: of laying the crop around a pixel that `rare_pixel` draws.
        color_jitter: largest change of brightness, contrast and saturation, of RGB images.
        fill: value of each channel in padding and of corners that rotate in.
        ignore_label: label of the same pixels.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    rotation: tuple[float, float] = (-10.0, 10.0)
    rotate_probability: float = 0.5
    blur_probability: float = 0.5
    flip_probability: float = 0.5
    rare_class_probability: float = 0.0
    color_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fill: Sequence[float] = (123.675, 116.28, 103.53)
    ignore_label: int = 255

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, C) uint8 and (H, W) uint8 -> the same, of the crop's size."""
        wanted = None
        if self.rare_class_probability and generator.random() < self.rare_class_probability:
            wanted = rare_pixel(label, generator, ignore_label=self.ignore_label)
        to_source = self.sample_map(image.shape[:2], generator, wanted=wanted)
        height, width = self.crop
        fill = [round(value) for value in self.fill]
        image = warp_image(image, to_source, (height, width), fill)
        label = warp(label, to_source, (height, width), [self.ignore_label], cv2.INTER_NEAREST)
        if any(self.color_jitter):
            image = jittered(image, self.color_jitter, generator)
        if generator.random() < self.blur_probability:
            image = cv2.GaussianBlur(image, (5, 5), 0).reshape(image.shape)
        return image, label[..., 0]

    def sample_map(
        self,
        size: tuple[int, int],
        generator: np.random.Generator,
        *,
        wanted: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """(2, 3) affine map from pixel (x, y) of the crop to pixel (x, y) of the image.

        Drawn as semseg and SPNet draw it: scale the image, rotate it about its centre, mirror it,
        pad it evenly up to the crop, and cut the crop anywhere, or anywhere around the pixel
        `wanted` (x, y) of the image. Where turning carries that out of the frame, the crop lies as
        near to it as the frame allows.
        """
        height, width = size
        scale = generator.uniform(*self.scale)
        angle = 0.0
        if generator.random() < self.rotate_probability:
            angle = generator.uniform(*self.rotation)
        mirror = generator.random() < self.flip_probability
        scaled_height, scaled_width = max(1, round(height * scale)), max(1, round(width * scale))
        unmirror = scaling(-1, 1, scaled_width - 1, 0) if mirror else np.eye(3)
        unrotate = rotation(angle, (scaled_width - 1) / 2, (scaled_height - 1) / 2)
        # between pixel centres: x_source + 1/2 = (x_scaled + 1/2) * width / scaled_width
        ratio_x, ratio_y = width / scaled_width, height / scaled_height
        unscale = scaling(ratio_x, ratio_y, (ratio_x - 1) / 2, (ratio_y - 1) / 2)
        x = y = None
        if wanted is not None:
            x, y, _ = np.linalg.inv(unscale @ unrotate @ unmirror) @ [*wanted, 1]
        top = crop_start(scaled_height, self.crop[0], generator, around=y)
        left = crop_start(scaled_width, self.crop[1], generator, around=x)
        return (unscale @ unrotate @ (unmirror @ translation(left, top)))[:2]


def warp_image(
    image: np.ndarray, to_source: np.ndarray, size: tuple[int, int], fill: Sequence[int]
) -> np.ndarray:
    """(h, w, C) of `size` from an (H, W, C) image of any number of channels.

    Of the image only the rectangle is read that the map leads to: pages of a mapped file that lie
    outside are never loaded. The rectangle keeps its place in a canvas that is otherwise
    uninitialised, since shifting the map instead would round differently.
    """
    height, width, channels = image.shape
    rows, columns = source_window(to_source, size, (height, width))
    canvas_size = (rows.stop, columns.stop, 4)
    if channels == 3:  # OpenCV warps four channels twice as fast as three, to the same values
        canvas = np.empty(canvas_size, np.uint8)
        cv2.cvtColor(image[rows, columns], cv2.COLOR_RGB2RGBA, dst=canvas[rows, columns])
        return cv2.cvtColor(warp(canvas, to_source, size, [*fill, 0]), cv2.COLOR_RGBA2RGB)
    parts = []
    for first in range(0, channels, 4):  # OpenCV's colour of the border has four channels
        part = image[rows, columns, first : first + 4]
        canvas = np.empty((*canvas_size[:2], part.shape[2]), np.uint8)
        canvas[rows, columns] = part
        parts.append(warp(canvas, to_source, size, fill[first : first + 4]))
    return np.concatenate(parts, axis=2)


def source_window(
    to_source: np.ndarray, crop: tuple[int, int], size: tuple[int, int]
) -> tuple[slice, slice]:
    """Rows and columns of an image of `size` that a crop can read, at least one of each."""
    height, width = crop
    corners = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
    slices = []
    for positions, side in zip((to_source @ corners)[::-1], size, strict=True):
        first = min(max(math.floor(positions.min()) - WINDOW_MARGIN, 0), side - 1)
        last = min(max(math.ceil(positions.max()) + WINDOW_MARGIN, first), side - 1)
        slices.append(slice(first, last + 1))
    return slices[0], slices[1]


def warp(
    image: np.ndarray,
    to_source: np.ndarray,
    size: tuple[int, int],
    fill: Sequence[int],
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """(h, w, channels) of `size`, each pixel sampled where the (2, 3) map `to_source` sends it."""
    warped = cv2.warpAffine(
        image,
        to_source,
        dsize=size[::-1],
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(fill),
    )
    return np.atleast_3d(warped)


def crop_start(
    side: int, crop: int, generator: np.random.Generator, *, around: float | None = None
) -> int:
    """First pixel of the crop along one side of the scaled image; negative where it is padded.

    With `around`, a position along that side, one of those whose crop contains it.
    """
    padding = max(crop - side, 0)
    first, last = 0, max(side, crop) - crop
    if around is not None and padding == 0:
        first, last = (
            min(max(start, 0), last) for start in (math.ceil(around) - crop + 1, math.floor(around))
        )
    return int(generator.integers(first, last + 1)) - padding // 2


def rarity(label: np.ndarray, *, ignore_label: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes of an (H, W) uint8 label, and the probabilities with which they are drawn.

    These are proportional to the inverse square root of the class's pixels, as Mahajan et al., ECCV
    2018, sample images by their words.
    """
    pixels = np.bincount(label.ravel(), minlength=256)
    pixels[ignore_label] = 0
    classes = np.flatnonzero(pixels)
    weights = 1 / np.sqrt(pixels[classes])
    return classes, weights / weights.sum()


def rare_pixel(
    label: np.ndarray, generator: np.random.Generator, *, ignore_label: int
) -> tuple[int, int] | None:
    """(x, y) of a pixel of a class drawn by `rarity`; None where nothing is labelled."""
    classes, probabilities = rarity(label, ignore_label=ignore_label)
    if len(classes) == 0:
        return None
    positions = np.flatnonzero(label == generator.choice(classes, p=probabilities))
    y, x = divmod(int(generator.choice(positions)), label.shape[1])
    return x, y


def paste(
    crop: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    generator: np.random.Generator,
    *,
    ignore_label: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) with the pixels of half of the other's classes in place of its own.

    ClassMix (Olsson et al., WACV 2021, Algorithm 1) with the classes drawn by `rarity`; of an odd
    number the smaller half, and at least one.
    """
    (image, label), (other_image, other_label) = crop, other
    classes, probabilities = rarity(other_label, ignore_label=ignore_label)
    if len(classes) == 0:
        return crop
    count = max(1, len(classes) // 2)
    chosen = np.zeros(256, bool)
    chosen[generator.choice(classes, count, replace=False, p=probabilities)] = True
    pasted = chosen[other_label]
    image = np.where(pasted[..., None], other_image, image)
    return image, np.where(pasted, other_label, label)


LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue (ITU-R BT.601)


def jittered(
    image: np.ndarray, largest: Sequence[float], generator: np.random.Generator
) -> np.ndarray:
    """(H, W, 3) RGB uint8 of another brightness, contrast and saturation, in this order.

    Each factor is uniform in 1 - largest .. 1 + largest: of the values, of their distance from the
    mean grey of the image, and of their distance from the pixel's own grey (Howard, arXiv
    1312.5402). Rounded once, at the end.
    """
    brightness, contrast, saturation = (generator.uniform(1 - a, 1 + a) for a in largest)
    grey = float(LUMA @ cv2.mean(image)[:3])
    mixing = saturation * np.eye(3) + (1 - saturation) * LUMA  # a row for each output channel
    shift = np.full((3, 1), brightness * (1 - contrast) * grey)
    return cv2.transform(image, np.hstack([brightness * contrast * mixing, shift]))


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scaling(x: float, y: float, shift_x: float, shift_y: float) -> np.ndarray:
    return np.array([[x, 0.0, shift_x], [0.0, y, shift_y], [0.0, 0.0, 1.0]])


def rotation(degrees: float, x: float, y: float) -> np.ndarray:
    """Rotation about (x, y)."""
    radians = np.deg2rad(degrees)
    cosine, sine = np.cos(radians), np.sin(radians)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return translation(x, y) @ turn @ translation(-x, -y)
