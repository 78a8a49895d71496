"""How sure the figures of a test are: intervals by resampling its images.

The mean IoU of a dataset is a ratio of sums over images, so images are drawn with replacement and
the figures are computed again from the summed counts (Efron and Tibshirani 1993, An Introduction to
the Bootstrap; bias-corrected and accelerated intervals: chapter 14.3). Images of one sequence are
not independent and are drawn together.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..config.errors import ConfigError
from .records import ImageRecord

DRAWS = 2000
LEVEL = 0.95
FEWEST_UNITS = 50  # below this an interval is unreliable
AUTO_UNITS = 20  # below this --groups auto does not draw units, of which nothing could be told
FEW_HOLDING = 10  # units with labelled pixels of a class, below which its interval is unreliable


@dataclass(frozen=True)
class Tallies:
    """What the figures need of each unit, which is an image or several that belong together.

    Attributes:
        hits, labelled, predicted: (U, K) pixels of each class.
        units: the name of each unit.
        images: how many images there are.
    """

    hits: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray
    units: list[str]
    images: int

    @property
    def occurring(self) -> np.ndarray:
        """(K,) bool: the classes of which any pixel is labelled; the others count 0 everywhere."""
        return self.labelled.sum(0) > 0

    @property
    def holding(self) -> np.ndarray:
        """(K,): how many units have labelled pixels of each class."""
        return (self.labelled > 0).sum(0)


@dataclass(frozen=True)
class Interval:
    """A figure with its interval of 95 %; both ends are NaN where one unit is all there is."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return not np.isnan(self.low)

    def __str__(self) -> str:
        ends = f"[{self.low:.4f}, {self.high:.4f}]" if self.known else "[unknown]"
        return f"{self.value:.4f} {ends}"


def tallies(records: Sequence[ImageRecord], classes: int, groups: str = "auto") -> Tallies:
    """Sum the counts of images that belong together (`units_of`)."""
    names = units_of([record.name for record in records], groups)
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    hits, labelled, predicted = np.zeros((3, len(order), classes))
    for record, name in zip(records, names, strict=True):
        unit = order[name]
        for label, prediction, pixels in record.counts:
            labelled[unit, label] += pixels
            predicted[unit, prediction] += pixels
            if label == prediction:
                hits[unit, label] += pixels
    return Tallies(hits, labelled, predicted, list(order), len(records))


def units_of(names: Sequence[str], groups: str = "auto") -> list[str]:
    """Return the unit of each image.

    Args:
        groups: "none" (each image alone), "folder", "prefix" (the name up to the first _ or -),
            "sequence" (the name without its last number), a regular expression whose first group
            (or whole match) is the unit, or "auto": the first of folders, prefixes and sequences
            that looks like several frames of each of many scenes, else "none".
    Raises:
        ConfigError: the expression is wrong, or matches one of the names nowhere.
    """
    files = [name.rpartition("/")[2] for name in names]
    ways = {
        "folder": [name.rpartition("/")[0] for name in names],
        "prefix": [re.split("[_-]", file, maxsplit=1)[0] for file in files],
        "sequence": [re.sub("[0-9]{2,}(?!.*[0-9]{2}).*$", "", name) for name in names],
    }
    if groups == "none":
        return list(names)
    if groups == "auto":
        return next((way for way in ways.values() if look_like_sequences(way)), list(names))
    return ways.get(groups) or [first_match(groups, name) for name in names]


def look_like_sequences(units: Sequence[str]) -> bool:
    """At least `AUTO_UNITS` units, two images for each on average, and none a mere year."""
    counts = Counter(units)
    plain = all(re.fullmatch("(19|20)[0-9]{2}_?", unit) for unit in counts)
    return not plain and AUTO_UNITS <= len(counts) <= len(units) / 2


def first_match(expression: str, name: str) -> str:
    try:
        match = re.search(expression, name)
    except re.error as error:
        raise ConfigError(
            f"--groups {expression}: expected auto, none, folder, prefix, sequence, or a regular "
            f"expression ({error})"
        ) from None
    unit = None if match is None else match.group(1 if match.re.groups else 0)
    if unit is None:
        raise ConfigError(f"--groups {expression}: matches nothing in the name {name}")
    return unit


def iou_of(hits: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(..., K) IoU; NaN where no pixel of a class is labelled."""
    union = labelled + predicted - hits
    return np.divide(hits, union, out=np.full(np.shape(hits), np.nan), where=labelled > 0)


def mean_iou_of(iou: np.ndarray, occurring: np.ndarray) -> np.ndarray:
    """mIoU as semseg computes it: over all classes, one without labelled pixels counting 0.

    A class that only a draw lacks is left out of that draw's mean, in every network's alike.
    """
    known = ~np.isnan(iou) & occurring
    total = np.where(known, iou, 0).sum(-1)
    return occurring.mean() * total / np.maximum(known.sum(-1), 1)


def drawn_weights(units: int, draws: int, seed: int) -> np.ndarray:
    """(draws, U): how often each unit is in each draw."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float64)


class Bootstrap:
    """The figures of a test over many draws of its units.

    Attributes:
        iou: (draws, K), NaN where a class is in none of a draw's units.
        mean_iou: (draws,).
    """

    def __init__(self, counted: Tallies, *, draws: int = DRAWS, seed: int = 0) -> None:
        self.tallies = counted
        parts = (counted.hits, counted.labelled, counted.predicted)
        weights = drawn_weights(len(counted.units), draws, seed)
        self.iou = iou_of(*(weights @ part for part in parts))
        self.mean_iou = mean_iou_of(self.iou, counted.occurring)
        self._value = iou_of(*(part.sum(0) for part in parts))
        self._without = iou_of(*(part.sum(0) - part for part in parts))  # (U, K): one left out

    def mean_interval(self) -> Interval:
        """Of the mean IoU."""
        occurring = self.tallies.occurring
        value, without = mean_iou_of(self._value, occurring), mean_iou_of(self._without, occurring)
        return bca(float(value), self.mean_iou, without, units=len(self.tallies.units))

    def class_intervals(self) -> list[Interval | None]:
        """Of each class's IoU; None for one that no label has."""
        return [
            None
            if np.isnan(value)
            else bca(float(value), self.iou[:, index], self._without[:, index], units=int(units))
            for index, (value, units) in enumerate(
                zip(self._value, self.tallies.holding, strict=True)
            )
        ]


def bca(
    value: float, draws: np.ndarray, without: np.ndarray, *, units: int, level: float = LEVEL
) -> Interval:
    """The bias-corrected and accelerated interval, widened for few units (`wide_quantile`).

    Args:
        value: the figure of all units.
        draws: the figure of each draw; NaN is left out.
        without: the figure with each unit left out, from which the acceleration follows.
        units: how many have a say in the figure; one alone gives no interval.
    """
    draws, without = draws[~np.isnan(draws)], without[~np.isnan(without)]
    if units < 2 or not len(draws):
        return Interval(value, float("nan"), float("nan"))
    if draws.min() == draws.max():
        return Interval(value, value, value)
    normal = NormalDist()
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / (2 * len(draws)), 1 - 1 / (2 * len(draws)))))
    deviations = without.mean() - without if len(without) else np.zeros(1)
    spread = (deviations**2).sum() ** 1.5
    acceleration = (deviations**3).sum() / (6 * spread) if spread > 0 else 0.0
    reach = wide_quantile((1 + level) / 2, units)
    ends = []
    for tail in (-reach, reach):
        shifted = bias + tail
        adjusted = bias + shifted / max(1 - acceleration * shifted, 1e-6)
        ends.append(float(np.quantile(draws, normal.cdf(adjusted))))
    return Interval(value, *ends)


def wide_quantile(share: float, units: int) -> float:
    """The normal quantile, widened as Student's t is, and by what draws of few units lack.

    Intervals of plain percentiles are too narrow by this much (Hesterberg 2015, What Teachers
    Should Know About the Bootstrap, section 4.3).
    """
    z = NormalDist().inv_cdf(share)
    if units < 2:
        return z
    free = units - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return t * (units / free) ** 0.5
