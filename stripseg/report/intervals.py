"""How sure the figures of a test are: intervals by resampling its images.

The mean IoU of a dataset is a ratio of sums over images, so images are drawn with replacement and
the figures are computed anew from the summed counts (Efron and Tibshirani 1993, An Introduction to
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
    def present(self) -> np.ndarray:
        """(K,) bool: whether a class occurs in any label or prediction."""
        return (self.labelled + self.predicted).sum(0) > 0


@dataclass(frozen=True)
class Interval:
    """A figure with its interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


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
        groups: "none" (each image alone), "folder", "prefix" (the name up to the first _ or -), a
            regular expression whose first group (or whole match) is the unit, or "auto": folders,
            else prefixes, where they look like sequences.
    Raises:
        ConfigError: the expression is wrong, or matches one of the names nowhere.
    """
    folders = [name.rpartition("/")[0] for name in names]
    files = [name.rpartition("/")[2] for name in names]
    prefixes = [re.split("[_-]", file, maxsplit=1)[0] for file in files]
    if groups == "none":
        return list(names)
    if groups == "folder":
        return folders
    if groups == "prefix":
        return prefixes
    if groups == "auto":
        return next((c for c in (folders, prefixes) if look_like_sequences(c)), list(names))
    return [first_match(groups, name) for name in names]


def look_like_sequences(units: Sequence[str]) -> bool:
    """Several images for most units, more than one unit, and none of them a mere year or split."""
    counts = Counter(units)
    plain = all(re.fullmatch("(19|20)[0-9]{2}", unit) for unit in counts)
    return not plain and 2 <= len(counts) <= len(units) / 2


def first_match(expression: str, name: str) -> str:
    try:
        match = re.search(expression, name)
    except re.error as error:
        raise ConfigError(
            f"--groups {expression}: expected auto, none, folder, prefix, or a regular expression "
            f"({error})"
        ) from None
    if match is None:
        raise ConfigError(f"--groups {expression}: matches nothing in the name {name}")
    return match.group(1 if match.re.groups else 0) or ""


def iou_of(hits: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(..., K) IoU; NaN where a class does not occur."""
    union = labelled + predicted - hits
    return np.divide(hits, union, out=np.full(np.shape(hits), np.nan), where=union > 0)


def mean_iou_of(iou: np.ndarray, present: np.ndarray) -> np.ndarray:
    """mIoU as semseg computes it: over all classes, one that never occurs counting 0.

    A class that only a draw lacks is left out of that draw's mean.
    """
    share = present.sum() / len(present)
    known = ~np.isnan(iou)
    total = np.where(known, iou, 0).sum(-1)
    return share * total / np.maximum(known.sum(-1), 1)


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
        self.mean_iou = mean_iou_of(self.iou, counted.present)
        self._value = iou_of(*(part.sum(0) for part in parts))
        self._without = iou_of(*(part.sum(0) - part for part in parts))  # (U, K): one left out

    def mean_interval(self) -> Interval:
        """Of the mean IoU."""
        present = self.tallies.present
        value, without = mean_iou_of(self._value, present), mean_iou_of(self._without, present)
        return bca(float(value), self.mean_iou, without)

    def class_intervals(self) -> list[Interval | None]:
        """Of each class's IoU; None for one that never occurs."""
        return [
            None
            if np.isnan(value)
            else bca(float(value), self.iou[:, index], self._without[:, index])
            for index, value in enumerate(self._value)
        ]


def bca(value: float, draws: np.ndarray, without: np.ndarray, level: float = LEVEL) -> Interval:
    """The bias-corrected and accelerated interval, widened for few units (`wide_quantile`).

    Args:
        value: the figure of all units.
        draws: the figure of each draw; NaN is left out.
        without: the figure with each unit left out, from which the acceleration follows.
    """
    draws, without = draws[~np.isnan(draws)], without[~np.isnan(without)]
    if not len(draws) or draws.min() == draws.max():
        return Interval(value, value, value)
    normal = NormalDist()
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / (2 * len(draws)), 1 - 1 / (2 * len(draws)))))
    deviations = without.mean() - without if len(without) else np.zeros(1)
    spread = (deviations**2).sum() ** 1.5
    acceleration = (deviations**3).sum() / (6 * spread) if spread > 0 else 0.0
    reach = wide_quantile((1 + level) / 2, len(without))
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
