"""Shapes become pixels, by one rule for all formats.

The corner of the first pixel is (0, 0) and its centre (0.5, 0.5). A pixel belongs to a shape if its
centre lies inside; a centre on an edge belongs to the shape on its right or below, so that shapes
that share an edge share no pixel. What lies beyond the picture is cut off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...config.limits import CROSSINGS
from .model import Canvas, Patch, Shape

Overlap = Literal["first", "last", "smallest"]
Crowd = Literal["ignore", "keep"]
IGNORED = 255


@dataclass(frozen=True)
class Polygon:
    """(N, 2) x, y of an outline, even-odd where it crosses itself, without the holes.

    `relative` coordinates are shares of the picture's width and height.
    """

    outline: np.ndarray
    holes: Sequence[np.ndarray] = ()
    relative: bool = False

    def draw(self, canvas: Canvas) -> Patch:
        scale = np.array([canvas.width, canvas.height]) if self.relative else 1
        patch = fill(self.outline * scale, canvas)
        for hole in self.holes:
            remove(patch, fill(hole * scale, canvas))
        return patch


@dataclass(frozen=True)
class Ellipse:
    """Centre, radii in pixels along both axes, and the angle in degrees, clockwise on screen."""

    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0

    def draw(self, canvas: Canvas) -> Patch:
        if min(self.radii) <= 0:
            raise ValueError(f"has radii {self.radii}; they must be above 0")
        reach = max(self.radii)
        top, left, x, y = centers(np.array([self.center]), reach, canvas)
        turn = np.deg2rad(self.angle)
        x, y = x - self.center[0], y - self.center[1]
        along = (x * np.cos(turn) + y * np.sin(turn)) / self.radii[0]
        across = (y * np.cos(turn) - x * np.sin(turn)) / self.radii[1]
        return Patch(top, left, along**2 + across**2 <= 1)


@dataclass(frozen=True)
class Stroke:
    """A line of (N, 2) points, or one point, with round ends; `width` in pixels.

    Without a width it is the canvas's. A point marks at least the pixel that it lies in.
    """

    points: np.ndarray
    width: float | None = None

    def draw(self, canvas: Canvas) -> Patch:
        reach = (canvas.line_width if self.width is None else self.width) / 2
        top, left, x, y = centers(self.points, reach, canvas)
        whole = np.zeros((y.shape[0], x.shape[1]), bool)
        starts = self.points[:-1] if len(self.points) > 1 else self.points
        ends = self.points[1:] if len(self.points) > 1 else self.points
        for start, end in zip(starts, ends, strict=True):
            first_row, first_column, x, y = centers(np.array([start, end]), reach, canvas)
            step = end - start
            share = ((x - start[0]) * step[0] + (y - start[1]) * step[1]) / max(step @ step, 1e-12)
            share = np.clip(share, 0, 1)
            distance = np.hypot(x - start[0] - share * step[0], y - start[1] - share * step[1])
            rows = slice(first_row - top, first_row - top + distance.shape[0])
            columns = slice(first_column - left, first_column - left + distance.shape[1])
            whole[rows, columns] |= distance <= reach
        if len(self.points) == 1:
            column, row = np.floor(self.points[0]).astype(int) - (left, top)
            if 0 <= row < whole.shape[0] and 0 <= column < whole.shape[1]:
                whole[row, column] = True
        return Patch(top, left, whole)


def box(left: float, top: float, right: float, bottom: float, angle: float = 0.0) -> Polygon:
    """A rectangle by two opposite corners, turned clockwise by degrees around its centre."""
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    if angle:
        center = corners.mean(axis=0)
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        corners = (corners - center) @ np.array([[cos, sin], [-sin, cos]]) + center
    return Polygon(corners)


def within(low: float, high: float, size: int) -> tuple[int, int]:
    """The range of pixels, cut to the picture, that a stretch of a side touches."""
    first = int(np.clip(np.floor(low), 0, size))
    return first, max(first, int(np.clip(np.ceil(high), 0, size)))


def centers(
    points: np.ndarray, reach: float, canvas: Canvas
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Top, left, (1, w) x and (h, 1) y of the pixel centres within `reach` of the points' box."""
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    left, right = within(low[0], high[0] + 1, canvas.width)
    top, bottom = within(low[1], high[1] + 1, canvas.height)
    return top, left, np.arange(left, right)[None] + 0.5, np.arange(top, bottom)[:, None] + 0.5


def fill(ring: np.ndarray, canvas: Canvas) -> Patch:
    """The pixels whose centres a closed outline encloses an odd number of times.

    Args:
        ring: (N, 2) x, y; the last point is joined to the first.
    Raises:
        ValueError: the outline is absurdly long.
    """
    (low_x, low_y), (high_x, high_y) = ring.min(axis=0), ring.max(axis=0)
    left, right = within(low_x, high_x, canvas.width)
    top, bottom = within(low_y, high_y, canvas.height)
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)
    if toggles.shape[0] == 0 or toggles.shape[1] == 1:
        return Patch(top, left, toggles[:, :-1].astype(bool))
    start, end = ring, np.roll(ring, -1, axis=0)
    upward = (start[:, 1] > end[:, 1])[:, None]  # both directions of an edge cross alike
    start, end = np.where(upward, end, start), np.where(upward, start, end)
    # rows whose centres lie between the ends of an edge, the lower end excluded
    first = np.clip(np.ceil(start[:, 1] - 0.5), top, bottom).astype(np.int64)
    counts = np.clip(np.ceil(end[:, 1] - 0.5), top, bottom).astype(np.int64) - first
    if counts.sum() > CROSSINGS:
        raise ValueError("its outline crosses more rows than any drawing does; simplify it")
    edge = np.repeat(np.arange(len(ring)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    height = np.where(counts > 0, end[:, 1] - start[:, 1], 1)
    slope = (end[:, 0] - start[:, 0]) / height
    crossing = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(crossing - 0.5), left, right).astype(np.int64)
    np.bitwise_xor.at(toggles, (row - top, column - left), 1)
    inside = np.bitwise_xor.accumulate(toggles, axis=1)[:, :-1]
    return Patch(top, left, inside.astype(bool))


def remove(patch: Patch, hole: Patch) -> None:
    """Take the hole's pixels out of a patch, in place."""
    top, left = max(patch.top, hole.top), max(patch.left, hole.left)
    bottom = min(patch.top + patch.inside.shape[0], hole.top + hole.inside.shape[0])
    right = min(patch.left + patch.inside.shape[1], hole.left + hole.inside.shape[1])
    if top < bottom and left < right:
        part = hole.inside[top - hole.top : bottom - hole.top, left - hole.left : right - hole.left]
        patch.inside[
            top - patch.top : bottom - patch.top, left - patch.left : right - patch.left
        ] &= ~part


def draw_label(
    shapes: Sequence[Shape],
    canvas: Canvas,
    values: Mapping[str, int],
    *,
    background: int,
    overlap: Overlap,
    crowd: Crowd,
) -> tuple[np.ndarray, int]:
    """The label of one picture: (H, W) uint8, and how many shapes cover no pixel's centre.

    Args:
        values: class name -> value.
        background: value of pixels that no shape covers.
        overlap: which of two shapes a common pixel belongs to: the first, last or smallest.
        crowd: `ignore` gives crowds the value 255, below all other shapes.
    Raises:
        ValueError: a shape cannot be drawn; the message names it.
    """
    label = np.full((canvas.height, canvas.width), background, np.uint8)
    empty = 0
    for shape in in_order(shapes, canvas, overlap, crowd):
        ignored = (shape.crowd and crowd == "ignore") or not shape.name
        value = IGNORED if ignored else values[shape.name]
        drawn = 0
        for patch in patches(shape, canvas):
            height, width = patch.inside.shape
            view = label[patch.top : patch.top + height, patch.left : patch.left + width]
            view[patch.inside] = value
            drawn += bool(patch.inside.any())
        empty += drawn == 0
    return label, empty


def in_order(
    shapes: Sequence[Shape], canvas: Canvas, overlap: Overlap, crowd: Crowd
) -> Sequence[Shape]:
    """The shapes as they are painted, one over the other."""
    ordered = list(shapes)
    if overlap == "first":
        ordered.reverse()
    if overlap == "smallest":
        areas = [sum(int(p.inside.sum()) for p in patches(shape, canvas)) for shape in ordered]
        ordered = [ordered[i] for i in np.argsort([-area for area in areas], kind="stable")]
    if crowd == "ignore":
        ordered.sort(key=lambda shape: not shape.crowd)
    return ordered


def patches(shape: Shape, canvas: Canvas) -> list[Patch]:
    """The drawn regions of a shape; an error says which shape it is."""
    try:
        return [region.draw(canvas) for region in shape.regions]
    except ValueError as error:
        raise ValueError(f"{shape.item}: {error}") from None
