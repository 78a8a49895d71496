"""Which of the values in labels are meant, and which are traces of JPEG or of smoothed edges."""

from collections.abc import Sequence

import numpy as np

from ...config.errors import DataError
from .class_numbering import MOST_LEVELS, named
from .match import Inspection

LARGE = 0.005  # share of the pixels from which a value is meant, where others are noise
ENOUGH_SOLID = 0.1  # share of the pixels inside areas of one value from which these decide
MEANT = 0.5  # share of the pixels that the values that are meant hold together, at least
SMALLEST = 0.02  # of the largest share: a smaller one is noise
FILLING = 0.2  # share of a value's pixels inside areas from which it fills them, as classes do
MANY = 128  # values of which most fill areas, if they are classes
STANDS_OUT = 0.3  # share that the commonest of neighbouring values has of them
MOST_CANDIDATES = 512  # values of which a peak may be one, the commonest
NEAR = 16  # grey levels or steps of a channel that noise moves a value by
FAR = 64  # grey levels or steps of a colour channel between two values that are both meant


def totals(found: Sequence[Inspection], *, solid: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Every stored value, ascending, and its share of all pixels.

    Args:
        solid: count those pixels alone that lie inside an area of their value, where there are
            such areas.
    """
    stored = np.unique(np.concatenate([item.values for item in found]))
    counts, inside = np.zeros(len(stored)), np.zeros(len(stored))
    for item in found:
        places = np.searchsorted(stored, item.values)
        counts[places] += item.counts
        if len(item.solid) == len(item.values):
            inside[places] += item.solid
    if solid and inside.sum() > ENOUGH_SOLID * counts.sum():
        counts = inside
    return stored, counts / max(counts.sum(), 1)


def peaks(points: np.ndarray, shares: np.ndarray) -> list[int]:
    """Indices of the values that are meant: (n, channels) values and their shares.

    Noise surrounds a value that is meant, so that what lies within `NEAR` of it counts with it.
    Between two of them smoothing spreads evenly: no value stands out there.
    """
    points = points.astype(np.int64)
    candidates = np.argsort(-shares, kind="stable")[:MOST_CANDIDATES]
    near = [np.abs(points - points[index]).max(axis=1) <= NEAR for index in candidates]
    weight = np.array([shares[close].sum() for close in near])
    chosen: list[int] = []
    for place in np.argsort(-weight, kind="stable"):
        close = near[place]
        if chosen and weight[place] < max(LARGE, SMALLEST * weight.max()):
            break
        best = int(np.flatnonzero(close)[shares[close].argmax()])
        distinct = all(np.abs(points[best] - points[o]).max() >= FAR / 2 for o in chosen)
        stands_out = shares[best] >= STANDS_OUT * weight[place]
        if not chosen or (distinct and stands_out):
            chosen.append(best)
    return chosen


def refuse_noise(found: Sequence[Inspection], stored: np.ndarray, shares: np.ndarray) -> None:
    """Raises DataError where most values are traces of JPEG or of smoothing around a few."""
    _, weights = totals(found, solid=True)
    chosen = peaks(stored[:, None], weights)
    meant = [int(stored[index]) for index in chosen]
    extra = len(stored) - len(meant)
    lossy = changed_by(found)
    points = stored[:, None].astype(np.int64)
    if lossy is None and not is_noise_everywhere(found, points):
        if shares[chosen].sum() < MEANT or max(meant) < 2 * FAR or len(meant) > MOST_LEVELS:
            return
        many = extra >= 4 and extra >= len(meant)
        many = many and not fill_areas(found, points, chosen)
        if not many and (len(meant) < 2 or not are_blends(found, points, chosen)):
            return
    if extra == 0:
        return
    cure = "the nearest of these values: --snap"
    if lossy is None and len(stored) <= MOST_LEVELS:
        cure += f". If each is a class: --values {named(stored)}"
    if len(meant) == 1:
        cure = "name the values that are meant, for the nearest: --values VALUE=NAME,... --snap"
    raise DataError(
        f"the labels have {len(stored)} values around {', '.join(map(str, sorted(meant)[:8]))}: "
        f"{lossy or 'they seem to be smoothed'}. Take the original files as PNG, or {cure}"
    )


def refuse_colour_noise(
    found: Sequence[Inspection], stored: np.ndarray, channels: np.ndarray, shares: np.ndarray
) -> None:
    """The same for colours."""
    _, weights = totals(found, solid=True)
    meant = peaks(channels, weights)
    extra = len(stored) - len(meant)
    lossy = changed_by(found)
    if lossy is None:
        many = extra >= 4 and extra >= len(meant) and not fill_areas(found, channels, meant)
        blends = len(stored) <= MOST_CANDIDATES and are_blends(found, channels, meant)
        if shares[meant].sum() < MEANT or not (many or blends):
            return
    if extra == 0:
        return
    listed = ", ".join("({} {} {})".format(*channels[index]) for index in sorted(meant)[:6])
    cause = lossy.replace("values", "colours") if lossy else "they seem to be smoothed"
    raise DataError(
        f"the labels have {len(stored)} colours around {len(meant)}, {listed}: {cause}. Take the "
        "original files as PNG, or the nearest of these colours: --snap. If each is a class, name "
        "them with --colors TABLE"
    )


def changed_by(found: Sequence[Inspection]) -> str | None:
    """What is known to have changed the values of a file."""
    item = next((item for item in found if item.lossy), None)
    return None if item is None else f"{item.label} is a {item.lossy}, which changes values"


def fill_areas(found: Sequence[Inspection], points: np.ndarray, chosen: Sequence[int]) -> bool:
    """Return whether the values but those chosen are classes: most of them fill areas.

    (n, channels) values: ids from 0 to 5 lie near each other like the noise around 0. But noise
    surrounds every value that is meant, and one of these, 255 or another, stands alone.
    """
    points = points.astype(np.int64)
    others = np.setdiff1d(np.arange(len(points)), chosen)
    near = np.abs(points[others][:, None] - points[list(chosen)][None]).max(axis=2) <= NEAR
    return filling(found, points, others) > FILLING and not near.any(axis=0).all()


def is_noise_everywhere(found: Sequence[Inspection], points: np.ndarray) -> bool:
    """Return whether there are many (n, channels) values of which most fill no area at all."""
    return len(points) > MANY and filling(found, points, np.arange(len(points))) == 0


def filling(found: Sequence[Inspection], points: np.ndarray, some: np.ndarray) -> float:
    """The median share of their pixels that some of the (n, channels) values have in areas."""
    inside = sum((solid_of(item, points) for item in found), np.zeros(len(points)))
    counts = sum((counts_of(item, points, item.counts) for item in found), np.zeros(len(points)))
    return float(np.median(inside[some] / np.maximum(counts[some], 1))) if len(some) else 0.0


def are_blends(found: Sequence[Inspection], points: np.ndarray, chosen: Sequence[int]) -> bool:
    """Return whether all values but those chosen lie between two of these, and never fill an area.

    (n, channels) values. Smoothing and resizing leave such ones along the edges.
    """
    solid = sum((solid_of(item, points) for item in found), np.zeros(len(points)))
    others = [index for index in range(len(points)) if index not in set(chosen)]
    if not others or solid[others].any():
        return False
    ends = points[list(chosen)].astype(np.float64)
    for value in points[others].astype(np.float64):
        steps = ends[:, None] - ends[None]  # from every end to every other
        length = np.maximum(np.square(steps).sum(axis=2), 1)
        along = ((value - ends[None]) * steps).sum(axis=2) / length
        off = np.abs(value - ends[None] - along[..., None] * steps).max(axis=2)
        if not ((along > 0) & (along < 1) & (off <= 2)).any():
            return False
    return True


def values_between(found: Sequence[Inspection], classes: np.ndarray) -> list[int]:
    """Ids that fill no area in any label and lie between ids that do; none for a single one.

    A class of thin lines fills no area either, and resizing with smoothing leaves several such ids.
    """
    empty = values_of_edges(found, classes)
    filling = np.setdiff1d(classes, empty)
    between = len(empty) > 1 and filling.min() < min(empty) and max(empty) < filling.max()
    return empty if between else []


def values_of_edges(found: Sequence[Inspection], classes: np.ndarray) -> list[int]:
    """Of the values those that fill no area in any label; none where fewer than two fill one."""
    points = np.unique(np.concatenate([item.values for item in found]))
    solid = sum((solid_of(item, points[:, None]) for item in found), np.zeros(len(points)))
    filling = np.intersect1d(points[solid > 0], classes)
    return np.setdiff1d(classes, filling).tolist() if len(filling) > 1 else []


def solid_of(item: Inspection, points: np.ndarray) -> np.ndarray:
    """(n,) pixels of a label inside areas of each of the values, one or three channels each."""
    return counts_of(item, points, item.solid)


def counts_of(item: Inspection, points: np.ndarray, counts_of_values: np.ndarray) -> np.ndarray:
    """(n,) counts of each of the values, from those of the label's own values."""
    packed = points @ (np.array([1 << 16, 1 << 8, 1]) if points.shape[1] == 3 else np.array([1]))
    counts = np.zeros(len(points))
    counts[np.searchsorted(packed, item.values)] = counts_of_values
    return counts
