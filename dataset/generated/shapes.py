"""A small procedural dataset: long strips and compact things that only their shape tells apart.

Every surface draws its colour and its texture from one pool, so a network has to look at extent:
a wire crosses the whole image, a box of the same width and look ends after three widths. Nothing
is downloaded, and a scene is a pure function of seed, index and size.
"""

import math
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ...util.files import atomic_write, write_lines
from ...util.logger import progress
from ..description import describe
from ..labels import IGNORE_LABEL
from .canvas import UNITS, Canvas, Point


class Shape(IntEnum):
    """Class indices; names and colours live in catalog/shapes.yaml."""

    SKY = 0
    GROUND = 1
    POLE = 2
    WIRE = 3
    LANE = 4
    FENCE = 5
    DISC = 6
    BOX = 7
    BLOB = 8


class Horizon(NamedTuple):
    """What stands or lies on the ground refers to it."""

    centre: Point
    tilt: float


def render_scene(
    seed: int, index: int, *, height: int = 160, width: int = 160
) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB image (H, W, 3) and its label (H, W), both uint8; 255 is unlabelled."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    canvas = Canvas(rng, height, width)
    horizon = _paint_background(canvas)
    if rng.random() < 0.8:
        _paint_lane(canvas, horizon)
    strips = [_paint_pole, _paint_wire]
    for strip, share in ((_paint_pole, 0.4), (_paint_wire, 0.3), (_paint_fence, 0.8)):
        if rng.random() < share:
            strips.append(strip)
    crossings = [strips[position](canvas, horizon) for position in rng.permutation(len(strips))]
    _paint_compact_things(canvas, crossings)
    _paint_ego(canvas)
    _light(canvas)
    _unlabel_patches(canvas)
    return np.clip(canvas.image + 0.5, 0, 255).astype(np.uint8), canvas.label


def _paint_background(canvas: Canvas) -> Horizon:
    rng = canvas.rng
    centre = (canvas.width / 2, canvas.height * rng.uniform(0.38, 0.6))
    horizon = Horizon(centre, rng.uniform(-0.15, 0.15))
    everywhere = np.full_like(canvas.x, -1)
    canvas.paint(everywhere, Shape.SKY, canvas.surface(striped=0))
    _, below = canvas.along(*horizon)
    canvas.paint(-below, Shape.GROUND, canvas.surface(striped=0))
    return horizon


def _paint_lane(canvas: Canvas, horizon: Horizon) -> None:
    """A road that narrows from the lower edge to the horizon."""
    rng = canvas.rng
    _, below = canvas.along(*horizon)
    nearness = below / (canvas.height - horizon.centre[1])
    far = rng.uniform(0.3, 0.7) * canvas.width
    near = rng.uniform(0.1, 0.9) * canvas.width
    half_width = rng.uniform(3, 5) + rng.uniform(20, 30) * nearness
    across = np.abs(canvas.x - far - (near - far) * nearness)
    canvas.paint(np.maximum(across - half_width, -below), Shape.LANE, canvas.surface(striped=0))


def _paint_pole(canvas: Canvas, horizon: Horizon) -> Point:
    """An upright band from the ground to beyond the upper edge; returns a point on it."""
    rng = canvas.rng
    foot = (rng.uniform(0.12, 0.88) * canvas.width, horizon.centre[1] + rng.uniform(20, 55))
    upwards, across = canvas.along(foot, -math.pi / 2 + rng.uniform(-0.14, 0.14))
    distance = np.maximum(np.abs(across) - rng.uniform(6, 9), -upwards)
    canvas.paint(distance, Shape.POLE, canvas.surface())
    return foot[0], rng.uniform(0.2, 0.5) * canvas.height


def _paint_wire(canvas: Canvas, horizon: Horizon) -> Point:
    """A band across the whole image, not as steep as a pole; returns a point on it."""
    rng = canvas.rng
    centre = (canvas.width / 2, canvas.height / 2 + rng.uniform(-48, 48))
    angle = rng.uniform(-0.95, 0.95)
    _, across = canvas.along(centre, angle)
    canvas.paint(np.abs(across) - rng.uniform(6, 9), Shape.WIRE, canvas.surface())
    step = rng.uniform(-0.35, 0.35) * canvas.width
    return centre[0] + step * math.cos(angle), centre[1] + step * math.sin(angle)


def _paint_fence(canvas: Canvas, horizon: Horizon) -> Point:
    """Slats of two colours from the left edge to the right edge; returns a point on it."""
    rng = canvas.rng
    centre = (horizon.centre[0], horizon.centre[1] + rng.uniform(2, 40))
    angle = horizon.tilt + rng.uniform(-0.1, 0.1)
    _, across = canvas.along(centre, angle)
    canvas.paint(np.abs(across) - rng.uniform(12, 17), Shape.FENCE, canvas.surface(slats=angle))
    return centre[0] + rng.uniform(-0.4, 0.4) * canvas.width, centre[1]


def _paint_compact_things(canvas: Canvas, crossings: list[Point]) -> None:
    """Discs, boxes and blobs apart from one another, some of them right before a strip."""
    rng = canvas.rng
    counts = rng.integers((1, 2, 1), (3, 4, 3))
    things = [
        thing
        for thing, count in zip((_disc, _box, _blob), counts, strict=True)
        for _ in range(count)
    ]
    taken: list[Point] = []
    for position in rng.permutation(len(things)):
        for _ in range(12):  # a crowded scene goes without its last thing
            centre = (rng.uniform(0.1, 0.9) * canvas.width, rng.uniform(0.1, 0.9) * canvas.height)
            if rng.random() < 0.3:
                centre = crossings[rng.integers(len(crossings))]
            if all(math.dist(centre, other) > 38 for other in taken):
                taken.append(centre)
                things[position](canvas, centre)
                break


def _disc(canvas: Canvas, centre: Point) -> None:
    radius = canvas.rng.uniform(13, 19)
    canvas.paint(canvas.distance_from(centre) - radius, Shape.DISC, canvas.surface())


def _box(canvas: Canvas, centre: Point) -> None:
    """As wide as a pole or a wire, but it ends."""
    rng = canvas.rng
    along, across = canvas.along(centre, rng.uniform(0, math.pi))
    half_width = rng.uniform(7.5, 10.5)
    half_length = min(half_width * rng.uniform(1.5, 2.8), 23)
    distance = np.maximum(np.abs(along) - half_length, np.abs(across) - half_width)
    canvas.paint(distance, Shape.BOX, canvas.surface())


def _blob(canvas: Canvas, centre: Point) -> None:
    """A star with round arms."""
    rng = canvas.rng
    x, y = canvas.along(centre, rng.uniform(0, 2 * math.pi))
    wave = np.sin(np.arctan2(y, x) * float(rng.integers(3, 6)))
    radius = rng.uniform(15, 20) * (1 + rng.uniform(0.24, 0.32) * wave)
    canvas.paint(canvas.distance_from(centre) - radius, Shape.BLOB, canvas.surface())


def _paint_ego(canvas: Canvas) -> None:
    """The camera's own carrier in a lower corner: visible, but not labelled."""
    rng = canvas.rng
    if rng.random() < 0.5:
        corner = (canvas.width * float(rng.integers(2)), canvas.height + 4)
        x, y = canvas.along(corner, 0)
        distance = np.hypot(x / rng.uniform(1.2, 2.2), y) - rng.uniform(22, 34)
        canvas.paint(distance, IGNORE_LABEL, canvas.surface())


def _light(canvas: Canvas) -> None:
    """A slope of brightness, soft shadows and sensor noise over everything."""
    rng = canvas.rng
    along, _ = canvas.along((canvas.width / 2, canvas.height / 2), rng.uniform(0, 2 * math.pi))
    gain = rng.uniform(0.85, 1.1) + along * (rng.uniform(0, 0.3) / UNITS)
    gain *= 1 - 0.35 * np.clip(canvas.smooth_noise(4) - 0.4, 0, 1)
    canvas.image *= gain[..., None]
    canvas.image += rng.standard_normal(canvas.image.shape, np.float32) * rng.uniform(3, 8)


def _unlabel_patches(canvas: Canvas) -> None:
    """Annotators leave gaps: in a few places the label is lost, with nothing to see of it."""
    rng = canvas.rng
    for _ in range(3):
        centre = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
        canvas.label[canvas.distance_from(centre) < rng.uniform(4, 9)] = IGNORE_LABEL


def write_shapes(
    root: Path,
    *,
    train: int = 480,
    val: int = 48,
    seed: int = 0,
    height: int = 160,
    width: int = 160,
) -> None:
    """Write images, labels, lists, names and colours below `root`.

    Each file appears whole or not at all and the lists come last, so an interrupted run is
    completed by running again. Train and val draw from streams that no two seeds share.
    """
    root = Path(root)
    for split in ("train", "val"):  # while files change, no list may vouch for them
        (root / f"{split}.txt").unlink(missing_ok=True)
    description = describe("shapes")
    colors = [f"{red} {green} {blue}" for red, green, blue in description.colors]
    write_lines(root / "names.txt", description.names)
    write_lines(root / "colors.txt", colors)
    for stream, (split, count) in enumerate((("train", train), ("val", val))):
        pairs = []
        indices = range(1, count + 1)
        for index in progress(indices, total=count, unit="image", what=f"drawing {split}"):
            scene = render_scene(2 * seed + stream, index, height=height, width=width)
            pairs.append(_write_pair(root, split, f"shapes_{split}_{index:04}", *scene))
        write_lines(root / f"{split}.txt", pairs)


def _write_pair(root: Path, split: str, stem: str, image: np.ndarray, label: np.ndarray) -> str:
    """Write one image and its label and return their line of the list."""
    names = f"images/{split}/{stem}.jpg", f"labels/{split}/{stem}.png"
    options = [cv2.IMWRITE_JPEG_QUALITY, 92]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _write(root / names[0], cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes())
    _write(root / names[1], cv2.imencode(".png", label)[1].tobytes())
    return " ".join(names)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
