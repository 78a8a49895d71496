"""Is B better than A? Two tests of the same images, compared image by image.

The same draws of images are applied to both (paired bootstrap), and the two predictions of each
image change sides at random (paired permutation test; Good 2005, Permutation, Parametric and
Bootstrap Tests of Hypotheses). With several seeds of a method their spread is part of the interval
(Student's t), so that it holds for the method and not for its luckiest run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config.errors import DataError
from .intervals import (
    DRAWS,
    LEVEL,
    Interval,
    Tallies,
    bca,
    drawn_weights,
    iou_of,
    mean_iou_of,
    tallies,
)
from .records import ImageRecord, TestRecords


@dataclass(frozen=True)
class Difference:
    """A figure of B minus that of A.

    Attributes:
        interval: the difference with its 95 % interval.
        p: how likely a difference as large is, in either direction, where there is none.
    """

    interval: Interval
    p: float


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        a, b: the mean IoU of each run.
        mean: difference of the mean IoU.
        classes: difference of each class's IoU; None for one that never occurs.
        units: how many units were drawn; with images of one sequence together.
        images: of the test.
        changed: (image, difference of its mean IoU), the greatest loss first; over all runs.
    """

    a: list[float]
    b: list[float]
    mean: Difference
    classes: list[Difference | None]
    units: int
    images: int
    changed: list[tuple[str, float]]

    def sentence(self, first: str, second: str) -> str:
        """Return the verdict in one sentence."""
        d = self.mean
        low, high = 100 * d.interval.low, 100 * d.interval.high
        points = 100 * d.interval.value
        facts = f"(95 % interval {low:+.2f} to {high:+.2f}, p = {shown_p(d.p)}, {self.units} units)"
        if d.p < 1 - LEVEL:
            word = "better" if points > 0 else "worse"
            return f"{second} is {word} than {first} by {abs(points):.2f} points of mIoU {facts}"
        return f"{second} and {first} cannot be told apart: {points:+.2f} points of mIoU {facts}"


def shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(
    a: Sequence[TestRecords],
    b: Sequence[TestRecords],
    *,
    groups: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare the runs of method B with those of method A.

    Args:
        a, b: one test or more, of several seeds, all of the same images and classes.
        groups: which images are drawn together, as in `intervals.units_of`.
    Raises:
        DataError: the tests are not of the same images, labels and classes.
    """
    reference = a[0]
    for other in (*a[1:], *b):
        check_same(reference, other)
    classes = len(reference.names)
    sides = [
        [tallies(in_order(reference, run), classes, groups) for run in side] for side in (a, b)
    ]
    units = len(sides[0][0].units)
    rng = np.random.default_rng(seed)
    figures = [FigureDraws(side, drawn_weights(units, draws, seed)) for side in sides]
    one_each = len(a) == len(b) == 1
    chance = swapped(sides[0][0], sides[1][0], draws, rng) if one_each else None
    parts = [
        difference(
            *(f.column(index) for f in figures), rng, None if chance is None else chance[index]
        )
        for index in range(classes + 1)
    ]
    present = np.any([run.present for side in sides for run in side], axis=0)
    return Comparison(
        *(f.value[:, 0].tolist() for f in figures),
        parts[0],
        [part if here else None for part, here in zip(parts[1:], present, strict=True)],
        units,
        len(reference.images),
        changed_images(reference, a, b),
    )


class FigureDraws:
    """Mean IoU (column 0) and each class's IoU of the runs of one method.

    Attributes:
        value: (runs, 1 + K) of all units.
        draws: (draws, 1 + K), the mean over the runs.
        without: (U, 1 + K) with each unit left out, the mean over the runs.
    """

    def __init__(self, runs: Sequence[Tallies], weights: np.ndarray) -> None:
        every = [(run.hits, run.labelled, run.predicted) for run in runs]
        presents = [run.present for run in runs]
        pairs = list(zip(every, presents, strict=True))
        self.value = np.stack([with_mean([p.sum(0) for p in parts], own) for parts, own in pairs])
        self.draws = np.mean([with_mean([weights @ p for p in ps], own) for ps, own in pairs], 0)
        self.without = np.mean(
            [with_mean([p.sum(0) - p for p in parts], own) for parts, own in pairs], 0
        )

    def column(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.value[:, index], self.draws[:, index], self.without[:, index]


def with_mean(parts: Sequence[np.ndarray], present: np.ndarray) -> np.ndarray:
    """(..., 1 + K): the mean IoU, then the IoU of each class (0 where it does not occur)."""
    iou = iou_of(*parts)
    mean = mean_iou_of(iou, present)
    return np.concatenate([mean[..., None], np.where(present, iou, 0)], -1)


def difference(
    a: tuple[np.ndarray, np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray, np.ndarray],
    rng: np.random.Generator,
    chance: np.ndarray | None,
) -> Difference:
    """One figure of B minus that of A.

    Args:
        a, b: values of the runs, draws, and values without each unit.
        chance: the differences of predictions that changed sides at random; None with several
            seeds, whose p-value follows from the interval's draws.
    """
    value = float(b[0].mean() - a[0].mean())
    draws, without = b[1] - a[1], b[2] - a[2]
    if chance is not None:
        extreme = np.abs(chance) >= abs(value) - 1e-12
        return Difference(
            bca(value, draws, without), float((1 + extreme.sum()) / (1 + len(chance)))
        )
    draws = draws[~np.isnan(draws)]
    error, freedom = seed_error(a[0], b[0])
    draws = draws + error * rng.standard_t(freedom, len(draws))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    least = 1 / (1 + len(draws))
    return Difference(Interval(value, float(low), float(high)), float(min(1, max(least, 2 * tail))))


def seed_error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of two means of runs, and its degrees of freedom (Welch).

    A method with one run is given the spread of the other.
    """
    spreads = [runs.var(ddof=1) if len(runs) > 1 else None for runs in (a, b)]
    known = next(spread for spread in spreads if spread is not None)
    parts = [
        (known if spread is None else spread) / len(runs)
        for spread, runs in zip(spreads, (a, b), strict=True)
    ]
    total = sum(parts)
    if total == 0:
        return 0.0, 1.0
    freedom = total**2 / sum(
        part**2 / (len(runs) - 1) for part, runs in zip(parts, (a, b), strict=True) if len(runs) > 1
    )
    return float(np.sqrt(total)), float(freedom)


def swapped(a: Tallies, b: Tallies, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + K, draws): differences where each unit's two predictions change sides at random."""
    change = rng.integers(0, 2, (draws, len(a.units))).astype(np.float64)
    present = a.present | b.present
    sums = []
    for one, other in ((a, b), (b, a)):
        parts = [
            first.sum(0) + change @ (second - first)
            for first, second in (
                (one.hits, other.hits),
                (one.labelled, other.labelled),
                (one.predicted, other.predicted),
            )
        ]
        sums.append(with_mean(parts, present))
    return np.nan_to_num(sums[1] - sums[0]).T


def check_same(first: TestRecords, other: TestRecords) -> None:
    """Raises DataError unless two tests are of the same images, labels and classes."""
    if first.names != other.names:
        raise DataError("the tests have different classes; compare networks of one dataset")
    labels = [
        {image.name: labelled_pixels(image) for image in run.images} for run in (first, other)
    ]
    missing = sorted(labels[0].keys() ^ labels[1].keys())
    if missing:
        raise DataError(
            f"the tests are not of the same images: {len(missing)} are in one alone, such as "
            f"{missing[0]}; test both with one list"
        )
    wrong = [name for name in labels[0] if labels[0][name] != labels[1][name]]
    if wrong:
        raise DataError(
            f"the labels of {len(wrong)} images differ between the tests, such as those of "
            f"{wrong[0]}; test both again"
        )


def labelled_pixels(image: ImageRecord) -> dict[int, int]:
    """{class: labelled pixels}."""
    pixels: dict[int, int] = {}
    for label, _, count in image.counts:
        pixels[label] = pixels.get(label, 0) + count
    return pixels


def in_order(reference: TestRecords, run: TestRecords) -> list[ImageRecord]:
    """The images of a run in the order of the first test."""
    by_name = {image.name: image for image in run.images}
    return [by_name[image.name] for image in reference.images]


def changed_images(
    reference: TestRecords, a: Sequence[TestRecords], b: Sequence[TestRecords]
) -> list[tuple[str, float]]:
    """(image, mean IoU of its classes under B minus that under A), in ascending order."""
    scores = [
        np.mean([[image.mean_iou for image in in_order(reference, run)] for run in side], 0)
        for side in (a, b)
    ]
    names = [image.name for image in reference.images]
    pairs = zip(names, (scores[1] - scores[0]).tolist(), strict=True)
    return sorted(pairs, key=lambda pair: pair[1])
