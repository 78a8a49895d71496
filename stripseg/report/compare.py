"""Is B better than A? Two tests of the same images, compared image by image.

The same draws of images are applied to both (paired bootstrap), and the two predictions of each
image change sides at random (paired permutation test; Good 2005, Permutation, Parametric and
Bootstrap Tests of Hypotheses). Intervals of differences are percentiles, widened for few units:
differences are nearly symmetric with long tails, where a bias-corrected and accelerated interval
is too narrow. With several seeds of a method their spread is part of the interval (Student's t),
so that it holds for the method and not for its luckiest run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..config.errors import DataError
from .intervals import (
    DRAWS,
    FEWEST_UNITS,
    LEVEL,
    Interval,
    Tallies,
    drawn_weights,
    iou_of,
    mean_iou_of,
    tallies,
    wide_quantile,
)
from .records import ImageRecord, TestRecords

PROTOCOL = ("dataset", "split", "scales", "flip", "base_size", "crop", "precision")


@dataclass(frozen=True)
class Difference:
    """A figure of B minus that of A.

    Attributes:
        interval: the difference with its 95 % interval.
        p: how likely a difference as large is, in either direction, where there is none.
        clear: whether it is more than chance; of classes, with their number taken into account.
    """

    interval: Interval
    p: float
    clear: bool = False


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        a, b: the mean IoU of each run.
        mean: difference of the mean IoU.
        classes: difference of each class's IoU; None for one that no label has.
        units: how many units were drawn; with images of one sequence together.
        images: of the test.
        changed: (image, difference of its mean IoU), the greatest loss first; over all runs.
        notes: what limits the verdict: protocols that differ, few units, frames of one video.
    """

    a: list[float]
    b: list[float]
    mean: Difference
    classes: list[Difference | None]
    units: int
    images: int
    changed: list[tuple[str, float]]
    notes: list[str] = field(default_factory=list)

    def headline(self, first: str, second: str) -> str:
        """Return the verdict without its figures."""
        points = 100 * self.mean.interval.value
        if self.mean.clear:
            word = "better" if points > 0 else "worse"
            return f"{second} is {word} than {first} by {abs(points):.2f} points of mIoU"
        if not decidable(self.units):
            return f"too few units to decide: {second} has {points:+.2f} points of mIoU"
        return f"{second} and {first} cannot be told apart: {points:+.2f} points of mIoU"

    def facts(self) -> str:
        """Return the figures behind the verdict."""
        low, high = 100 * self.mean.interval.low, 100 * self.mean.interval.high
        interval = "no interval" if np.isnan(low) else f"95 % interval {low:+.2f} to {high:+.2f}"
        return f"{interval}, p {shown_p(self.mean.p)}, {self.units} units"

    def sentence(self, first: str, second: str) -> str:
        """Return the verdict in one sentence."""
        return f"{self.headline(first, second)} ({self.facts()})"


def decidable(units: int) -> bool:
    """Return whether so many units can give a p-value below 0.05 at all."""
    return 2.0 ** (1 - units) < 1 - LEVEL


def shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def significant(p_values: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of many differences are more than chance: at most a share `level` of them wrongly.

    Benjamini and Hochberg 1995, Controlling the False Discovery Rate.
    """
    order = np.argsort(p_values)
    ranks = np.arange(1, len(order) + 1)
    below = np.flatnonzero(np.asarray(p_values)[order] <= level * ranks / max(len(order), 1))
    count = below[-1] + 1 if len(below) else 0
    found = set(order[:count].tolist())
    return [index in found for index in range(len(order))]


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
    holding = [units, *sides[0][0].holding.tolist()]
    rng = np.random.default_rng(seed)
    figures = [FigureDraws(side, drawn_weights(units, draws, seed)) for side in sides]
    one_each = len(a) == len(b) == 1
    chance = swapped(sides[0][0], sides[1][0], draws, rng) if one_each else None
    mean, *classes_ = (
        difference(
            *(part.column(index) for part in figures),
            rng,
            None if chance is None else chance[index],
            units=holding[index],
        )
        for index in range(classes + 1)
    )
    known = np.flatnonzero(sides[0][0].occurring).tolist()
    clear = dict(zip(known, significant([classes_[index].p for index in known]), strict=True))
    return Comparison(
        *(part.value[:, 0].tolist() for part in figures),
        replace(mean, clear=mean.p < 1 - LEVEL),
        [
            replace(entry, clear=clear[index]) if index in clear else None
            for index, entry in enumerate(classes_)
        ],
        units,
        len(reference.images),
        changed_images(reference, a, b),
        list(limits_of(a, b, units)),
    )


def limits_of(a: Sequence[TestRecords], b: Sequence[TestRecords], units: int) -> Iterator[str]:
    """What a reader of the verdict should know."""
    facts = a[0].facts
    for run in (*a[1:], *b):
        for key in PROTOCOL:
            mine, other = facts.get(key), run.facts.get(key)
            if mine != other:
                yield f"the tests differ in {key}: {mine} and {other}"
    for side in (a, b):
        known = [run.facts.get("checkpoint") for run in side if run.facts.get("checkpoint")]
        if len(set(known)) < len(known):
            yield "two of the seeds are tests of one checkpoint"
    if units == len(a[0].images):
        yield "each image counts as independent; frames of one video are not (--groups)"
    if units < FEWEST_UNITS:
        yield f"{units} units are few: below {FEWEST_UNITS} an interval is unreliable"
    if len(a) == len(b) == 1:
        yield "this holds for two networks: with other seeds each would differ"


class FigureDraws:
    """Mean IoU (column 0) and each class's IoU of the runs of one method.

    Attributes:
        value: (runs, 1 + K) of all units.
        draws: (draws, 1 + K), the mean over the runs.
    """

    def __init__(self, runs: Sequence[Tallies], weights: np.ndarray) -> None:
        every = [((run.hits, run.labelled, run.predicted), run.occurring) for run in runs]
        self.value = np.stack([with_mean([p.sum(0) for p in parts], own) for parts, own in every])
        self.draws = np.mean([with_mean([weights @ p for p in ps], own) for ps, own in every], 0)

    def column(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.value[:, index], self.draws[:, index]


def with_mean(parts: Sequence[np.ndarray], occurring: np.ndarray) -> np.ndarray:
    """(..., 1 + K): the mean IoU, then the IoU of each class (0 where no label has it)."""
    iou = iou_of(*parts)
    mean = mean_iou_of(iou, occurring)
    return np.concatenate([mean[..., None], np.where(occurring, iou, 0)], -1)


def difference(
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    chance: np.ndarray | None,
    *,
    units: int,
) -> Difference:
    """One figure of B minus that of A.

    Args:
        a, b: values of the runs, and draws.
        chance: the differences of predictions that changed sides at random; None with several
            seeds, whose p-value follows from the interval's draws.
        units: that have a say in the figure.
    """
    value = float(b[0].mean() - a[0].mean())
    draws = b[1] - a[1]
    draws = draws[~np.isnan(draws)]
    if known := units >= 2 and len(draws) > 0:
        wider = wide_quantile(0.975, units) / wide_quantile(0.975, 1)
        draws = value + wider * (draws - value)
        if chance is None:
            error, freedom = seed_error(a[0], b[0])
            draws = draws + error * rng.standard_t(freedom, len(draws))
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = Interval(value, float(low), float(high))
    else:
        interval = Interval(value, float("nan"), float("nan"))
    if chance is not None:
        extreme = np.abs(chance) >= abs(value) - 1e-12
        p = (1 + extreme.sum()) / (1 + len(chance))
    elif known:
        tail = min((draws <= 0).mean(), (draws >= 0).mean())
        p = min(1.0, max(1 / (1 + len(draws)), 2 * tail))
    else:
        p = 1.0
    return Difference(interval, float(p))


def seed_error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of two means of runs, and its degrees of freedom (Welch).

    A method with one run is given the spread of the other.
    """
    spreads = [runs.var(ddof=1) if len(runs) > 1 else None for runs in (a, b)]
    if None in spreads:
        runs, spread = (a, spreads[0]) if spreads[1] is None else (b, spreads[1])
        return float(np.sqrt(spread / len(a) + spread / len(b))), float(len(runs) - 1)
    parts = [spread / len(runs) for spread, runs in zip(spreads, (a, b), strict=True)]
    total = sum(parts)
    if total == 0:
        return 0.0, 1.0
    freedom = total**2 / sum(
        part**2 / (len(runs) - 1) for part, runs in zip(parts, (a, b), strict=True)
    )
    return float(np.sqrt(total)), float(freedom)


def swapped(a: Tallies, b: Tallies, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + K, draws): differences where each unit's two predictions change sides at random."""
    change = rng.integers(0, 2, (draws, len(a.units))).astype(np.float64)
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
        sums.append(with_mean(parts, a.occurring))
    return np.nan_to_num(sums[1] - sums[0]).T


def check_same(first: TestRecords, other: TestRecords) -> None:
    """Raises DataError unless two tests are of the same images, labels and classes."""
    if first.names != other.names:
        raise DataError("the tests have different classes; compare networks of one dataset")
    labels = [{image.name: image.label for image in run.images} for run in (first, other)]
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
