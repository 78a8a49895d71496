"""What the geometry of labels tells about how they were made: specks, blended values, shifts.

Each is measured on every pair and judged over the whole set: one image proves nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SPECK = 9  # pixels of the largest region that counts as a speck
SHIFTS = range(-3, 4)  # pixels that labels may be displaced by
GRID = 12  # cells along a side of the map of where a class occurs
ENOUGH = 2000  # edges over the whole set before anything is said of them
BLENDED = 0.2  # of the borders between distant ids
SHARPER = 1.08  # how much steeper image edges must be elsewhere than at the labels' edges


@dataclass(frozen=True)
class Geometry:
    """Of one label and its image.

    Attributes:
        specks: regions of at most `SPECK` pixels that lie within one other class.
        borders: (direct ones, those with one pixel of an id between) along rows, of ids that differ
            by two or more.
        edges: (2, 7, 2) for columns and rows and each of `SHIFTS`: sum of the image's steps there,
            and how many.
        places: {class: (12, 12) uint8 share of each cell, 255 is all of it}.
    """

    specks: int
    borders: tuple[int, int]
    edges: np.ndarray
    places: dict[int, np.ndarray]


def measure(image: np.ndarray, label: np.ndarray, ignore_label: int) -> Geometry:
    """Measure a pair: (H, W, C) uint8 and (H, W) uint8 classes."""
    return Geometry(
        specks_of(label, ignore_label),
        borders_of(label, ignore_label),
        edges_of(image, label, ignore_label),
        places_of(label, ignore_label),
    )


def specks_of(label: np.ndarray, ignore_label: int) -> int:
    """How many tiny regions lie within one other class."""
    specks = 0
    for index in np.unique(label):
        if index == ignore_label:
            continue
        mask = (label == index).astype(np.uint8)
        _, _, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for left, top, width, height, area in facts[1:]:
            if area > SPECK or not area:
                continue
            box = np.s_[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1]
            around = np.unique(label[box][mask[box] == 0])
            specks += len(around) == 1 and around[0] != ignore_label
    return specks


def borders_of(label: np.ndarray, ignore_label: int) -> tuple[int, int]:
    """Borders along rows between ids that differ by two or more: direct, and through an id between.

    A mask that was resized with blended values has pixels of id 2 between ids 0 and 4.
    """
    row = label.astype(np.int16)
    first, middle, last = row[:, :-2], row[:, 1:-1], row[:, 2:]
    known = (first != ignore_label) & (middle != ignore_label) & (last != ignore_label)
    distant = known & (abs(first - last) >= 2)
    between = distant & (np.minimum(first, last) < middle) & (middle < np.maximum(first, last))
    direct = distant & (middle == first)
    return int(direct.sum()), int(between.sum())


def edges_of(image: np.ndarray, label: np.ndarray, ignore_label: int) -> np.ndarray:
    """(2, 7, 2): how steep the image is at the label's edges, displaced by each of `SHIFTS`."""
    grey = image.mean(axis=2, dtype=np.float32)
    result = np.zeros((2, len(SHIFTS), 2))
    for axis in (0, 1):  # columns: edges between neighbours in a row; then rows
        picture, classes = (grey, label) if axis == 0 else (grey.T, label.T)
        known = (classes[:, :-1] != ignore_label) & (classes[:, 1:] != ignore_label)
        edge = known & (classes[:, :-1] != classes[:, 1:])
        steps = np.abs(np.diff(picture, axis=1))
        reach = max(SHIFTS)
        inner = edge[:, reach:-reach]
        for place, shift in enumerate(SHIFTS):
            moved = steps[:, reach + shift : steps.shape[1] - reach + shift]
            result[axis, place] = moved[inner].sum(), inner.sum()
    return result


def places_of(label: np.ndarray, ignore_label: int) -> dict[int, np.ndarray]:
    """Where each class of the label occurs."""
    return {
        int(index): cv2.resize(
            (label == index).astype(np.uint8) * 255, (GRID, GRID), interpolation=cv2.INTER_AREA
        )
        for index in np.unique(label)
        if index != ignore_label
    }


def blended(parts: Sequence[Geometry]) -> float | None:
    """The share of borders with a pixel between, where it is too large for labels as drawn."""
    direct, between = np.sum([part.borders for part in parts], axis=0) if parts else (0, 0)
    total = direct + between
    return between / total if total >= ENOUGH and between > BLENDED * total else None


def displacement(parts: Sequence[Geometry]) -> tuple[int, int] | None:
    """(right, down): by how many pixels labels lie beside the edges of their images.

    None where they lie on them, or where the edges do not tell.
    """
    if not parts:
        return None
    edges = np.sum([part.edges for part in parts], axis=0)
    found = []
    for sums, counts in (edges[0].T, edges[1].T):
        steepness = sums / np.maximum(counts, 1)
        best = int(steepness.argmax())
        clear = counts[0] >= ENOUGH and steepness[best] > SHARPER * steepness[list(SHIFTS).index(0)]
        found.append(-SHIFTS[best] if clear else 0)
    return (found[0], found[1]) if any(found) else None


def judgements(parts: Sequence[tuple[str, Geometry]]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(kind, message, files) of what looks wrong over the whole set.

    Args:
        parts: (name, measured) of each pair.
    """
    every = [part for _, part in parts]
    specks = sorted(((part.specks, name) for name, part in parts if part.specks), reverse=True)
    if len(specks) > max(2, len(parts) / 5):
        total = sum(count for count, _ in specks)
        yield (
            "specks",
            f"{len(specks)} of {len(parts)} labels have isolated specks of at most {SPECK} pixels "
            f"within one class, {total} in all: noise of drawing, or of an automatic labelling",
            tuple(f"{name}: {count}" for count, name in specks),
        )
    if (share := blended(every)) is not None:
        yield (
            "blended",
            f"{share:.0%} of the borders between distant classes have one pixel of a class between "
            "them: labels were resized with blended values. Resize them with nearest neighbours",
            (),
        )
    if (shift := displacement(every)) is not None:
        right, down = shift
        ways = [f"{abs(right)} px {'right' if right > 0 else 'left'}"] * bool(right)
        ways += [f"{abs(down)} px {'down' if down > 0 else 'up'}"] * bool(down)
        yield (
            "shifted",
            f"labels lie {' and '.join(ways)} of the edges of their images, over the whole set: "
            "were images and labels cropped or resized by different rules?",
            (),
        )
