"""A built-in set of ten classes of 32x32 images, written as CIFAR-10's archives.

Six of the classes are told apart only by what happens far away, along a line (does it go through?)
and across it (is there a second one?), the others by a small compact shape. Colours, position,
slope, shade and noise say nothing about the class.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..classification.cifar import SIDE, write_cifar10

CLASSES = (
    "wire",
    "broken wire",
    "pole",
    "broken pole",
    "two wires",
    "two poles",
    "disc",
    "box",
    "ring",
    "triangle",
)
Drawing = Callable[[np.random.Generator], np.ndarray]  # signed distance (32, 32), negative inside
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float32)


def band(rng: np.random.Generator, *, upright: bool, gap: bool, count: int = 1) -> np.ndarray:
    """`count` bands from edge to edge; `gap` cuts each once."""
    along, across = (ROWS, COLUMNS) if upright else (COLUMNS, ROWS)
    slope, half_width = rng.uniform(-0.12, 0.12), rng.uniform(0.8, 1.5)
    distance = np.full((SIDE, SIDE), np.inf, np.float32)
    first = rng.uniform(6, 25) if count == 1 else rng.uniform(5, 11)
    for place in [first, first + rng.uniform(9, 14)][:count]:
        middle = place + slope * (along - SIDE / 2)
        one = np.abs(across - middle) - half_width
        if gap:
            centre, half_gap = rng.uniform(5, SIDE - 5), rng.uniform(1.5, 3)
            one = np.maximum(one, half_gap - np.abs(along - centre))
        distance = np.minimum(distance, one)
    return distance


def compact(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A disc, box, ring or triangle of about the same area, anywhere and in any rotation."""
    radius = rng.uniform(4.5, 7)
    centre = rng.uniform(radius + 1, SIDE - radius - 2, 2)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = ROWS - centre[0], COLUMNS - centre[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(x, y)
    if kind == "disc":
        return distance - radius
    if kind == "ring":
        return np.abs(distance - radius) - radius / 4
    if kind == "box":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * radius
    sides = [u * np.cos(turn) + v * np.sin(turn) for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.max(sides, axis=0) - 0.75 * radius


def drawings() -> tuple[Drawing, ...]:
    """How each class is drawn, in index order."""
    return (
        lambda rng: band(rng, upright=False, gap=False),
        lambda rng: band(rng, upright=False, gap=True),
        lambda rng: band(rng, upright=True, gap=False),
        lambda rng: band(rng, upright=True, gap=True),
        lambda rng: band(rng, upright=False, gap=False, count=2),
        lambda rng: band(rng, upright=True, gap=False, count=2),
        lambda rng: compact(rng, "disc"),
        lambda rng: compact(rng, "box"),
        lambda rng: compact(rng, "ring"),
        lambda rng: compact(rng, "triangle"),
    )


def render(seed: int, stream: int, index: int) -> tuple[np.ndarray, int]:
    """((32, 32, 3) uint8 RGB, class) of one image, a function of the three numbers alone."""
    rng = np.random.Generator(np.random.PCG64([seed, stream, index]))
    label = int(rng.integers(len(CLASSES)))
    distance = drawings()[label](rng)
    background = rng.uniform(30, 225, 3)
    colour = (background + rng.uniform(70, 150, 3) * rng.choice([-1, 1], 3)) % 256
    while np.abs(colour - background).max() < 60:  # it must be seen
        colour = rng.uniform(0, 255, 3)
    shade = ROWS * rng.uniform(-1, 1) + COLUMNS * rng.uniform(-1, 1)
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    picture = background + shade[..., None] + coverage * (colour - background)
    picture += rng.standard_normal(picture.shape) * rng.uniform(3, 12)
    return np.clip(picture, 0, 255).astype(np.uint8), label


def write_shapes10(root: Path, *, train: int = 5000, val: int = 1000, seed: int = 0) -> Path:
    """Write the set as CIFAR-10's archives below `root`; the folder."""
    splits = {}
    for stream, (split, count) in enumerate((("train", train), ("val", val))):
        pictures = [render(seed, stream, index) for index in range(count)]
        images = np.stack([image for image, _ in pictures])
        splits[split] = images, np.array([label for _, label in pictures])
    return write_cifar10(root, splits, CLASSES)
