"""The canvas that the shapes are drawn on: an image and its label, painted back to front."""

import math
from collections.abc import Iterator

import cv2
import numpy as np

from ..labels import IGNORE_LABEL

UNITS = 160.0  # the shorter side of any image, in the length unit of all drawing
Point = tuple[float, float]


class Canvas:
    """Regions arrive as signed distances (negative inside), surfaces as colours per pixel.

    All randomness comes from `rng`, in drawing order, so a scene is a function of its seed.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.pixel = UNITS / min(height, width)
        self.height, self.width = height * self.pixel, width * self.pixel
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        self.y, self.x = (rows + 0.5) * self.pixel, (columns + 0.5) * self.pixel
        self.image = np.zeros((height, width, 3), np.float32)
        self.label = np.full((height, width), IGNORE_LABEL, np.uint8)
        self._palette = _distinct_colours(rng)

    def along(self, centre: Point, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of every pixel along and across the direction `angle` from `centre`."""
        x, y = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        cosine, sine = math.cos(angle), math.sin(angle)  # numpy's would widen to float64
        return x * cosine + y * sine, y * cosine - x * sine

    def distance_from(self, centre: Point) -> np.ndarray:
        distance: np.ndarray = np.hypot(*self.along(centre, 0))
        return distance

    def paint(self, distance: np.ndarray, label: int, surface: np.ndarray) -> None:
        """Cover the inside of a region: soft edges in the image, hard ones in the label."""
        coverage = np.clip(0.5 - distance / self.pixel, 0, 1)[..., None]
        self.image += coverage * (surface - self.image)
        self.label[distance < 0] = label

    def surface(self, *, slats: float | None = None, striped: float = 0.15) -> np.ndarray:
        """A colour, a slow gradient, and a texture that any class may have: (H, W, 3).

        `slats` is the direction in which two colours alternate; without it they do so by chance.
        """
        rng = self.rng
        surface = np.broadcast_to(next(self._palette), self.image.shape)
        along, _ = self.along((self.width / 2, self.height / 2), rng.uniform(0, np.pi))
        shade = along * rng.uniform(-0.25, 0.25)
        kind = rng.random()
        if slats is not None or kind < striped:
            stripe = self._stripes(rng.uniform(0, np.pi) if slats is None else slats)
            surface = surface + stripe[..., None] * (next(self._palette) - surface)
        elif kind < 0.45:
            shade = shade + self.smooth_noise(int(rng.integers(8, 24))) * rng.uniform(6, 14)
        elif kind < 0.75:
            shade = shade + rng.standard_normal(shade.shape, np.float32) * rng.uniform(8, 16)
        return surface + shade[..., None]

    def _stripes(self, direction: float) -> np.ndarray:
        along, _ = self.along((0, 0), direction)
        frequency = 2 * math.pi / self.rng.uniform(9, 12)
        wave = np.sin(along * frequency + self.rng.uniform(0, 2 * math.pi))
        return np.clip(0.5 + 2 * wave, 0, 1)

    def smooth_noise(self, cells: int) -> np.ndarray:
        """Noise of about unit size that varies over `cells` patches a side."""
        coarse = self.rng.standard_normal((cells, cells), np.float32)
        return cv2.resize(coarse, self.label.shape[::-1], interpolation=cv2.INTER_CUBIC)


def _distinct_colours(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless colours, each the farthest of a few candidates from those before it: neighbours
    can be told apart, and no class owns a hue."""
    chosen = [rng.uniform(30, 225, 3)]
    while True:
        yield chosen[-1].astype(np.float32)
        candidates = rng.uniform(30, 225, (12, 3))
        gaps = np.linalg.norm(candidates[:, None] - np.array(chosen), axis=2)
        chosen.append(candidates[gaps.min(axis=1).argmax()])
