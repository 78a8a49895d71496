"""Stored label values become class ids: the result, what a user may say, and words for messages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ...config.errors import DataError
from ..annotations.parse import read_text
from ..labels import IGNORE_LABEL
from .match import Inspection

Colour = tuple[int, int, int]
IGNORE_NAMES = ("ignore", "ignored")  # of a colour table's line
FEWEST_COUNTED = 3  # labels, and different counts of objects, that tell of such numbers
MOST_NESTED = 6  # classes that may well lie within each other, so that labels leave no gap
MOST_VALUES = 2**16  # of a range that --values names
ROBOFLOW = "_classes.csv"  # beside its masks: a heading, then a value and a name per line
MOST_LEVELS = 16  # values of a label that is drawn in grey levels


class HasPalette(Protocol):
    """A label's palette, index -> 0xRRGGBB, and what messages call it."""

    palette: dict[int, int]

    @property
    def label(self) -> object: ...


@dataclass(frozen=True)
class Choices:
    """What a user has said about the values.

    Args:
        values: {stored value: class name}, in class order (`--values 0=road,128=car`); values of
            one name are one class, and those called ignore are ignored.
        ids_from: the smallest class id in the files (`--ids-from`), or None.
        ignore: stored value that is ignored (`--ignore`).
        snap: take values that are noise for the nearest one that is meant (`--snap`).
        origin: what says the `values`: the option, or a file beside the labels.
    """

    values: Mapping[int, str] = field(default_factory=dict)
    ids_from: int | None = None
    ignore: int = IGNORE_LABEL
    ignore_given: bool = False
    snap: bool = False
    origin: str = "--values"


@dataclass(frozen=True)
class ClassNumbering:
    """Stored label values -> class ids: `ids[i]` for `stored[i]`.

    `coloured` values are 0xRRGGBB; `plain` files hold ids already and need no rewriting. `notes`
    say what was decided, `warnings` what only seems likely.
    """

    stored: np.ndarray
    ids: np.ndarray
    names: list[str]
    colors: list[Colour]
    coloured: bool = False
    plain: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def translate(self, label: np.ndarray) -> np.ndarray:
        return self.ids[np.searchsorted(self.stored, label)].astype(np.uint8)

    def pixels(self, found: Sequence[Inspection]) -> np.ndarray:
        """(K,) pixels of each class."""
        return self._summed((item.values, item.counts) for item in found)

    def is_class(self, value: int) -> bool:
        """Return whether a stored index is a class, not ignored and not absent."""
        places = np.flatnonzero(self.stored == value)
        return not self.coloured and places.size > 0 and self.ids[places[0]] < len(self.names)

    def inner_pixels(self, found: Sequence[Inspection]) -> np.ndarray | None:
        """(K,) of these the pixels whose four neighbours are of the same class.

        None where several stored values are one class: values are what neighbours were compared by.
        """
        if len(np.unique(self.ids)) < len(self.ids):
            return None
        return self._summed((item.values, item.solid) for item in found)

    def _summed(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        total = np.zeros(256, np.int64)
        for values, counts in parts:
            np.add.at(total, self.translate(values), counts)
        return total[: len(self.names)]


def read_choices(
    values: str | None, ids_from: int | None, ignore: int | None, *, snap: bool
) -> Choices:
    """The options of the command.

    Raises:
        DataError: `values` is not of the form 0=road,128=car or 0=none,1-255=cell.
    """
    named: dict[int, str] = {}
    for part in (values or "").split(",") if values else []:
        numbers, _, name = part.partition("=")
        found = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", numbers)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        several = range(first, last + 1)
        if not 0 < len(several) <= MOST_VALUES or any(value in named for value in several):
            raise DataError(
                f"--values {values}: expected VALUE=NAME or FIRST-LAST=NAME,..., each value once, "
                f"not {part!r}"
            )
        named |= dict.fromkeys(several, name.strip() or f"class {len(named)}")
    return Choices(
        named,
        ids_from=ids_from,
        ignore=IGNORE_LABEL if ignore is None else ignore,
        ignore_given=ignore is not None,
        snap=snap,
    )


def with_listed_names(choices: Choices, folder: Path) -> Choices:
    """The choices with the values and names of Roboflow's `_classes.csv`, where there are such.

    Raises:
        DataError: a line is not `value, name`, or two of the files differ.
    """
    named: dict[int, str] | None = None
    for path in sorted(folder.rglob(ROBOFLOW)):
        rows = [line.split(",", 1) for line in read_text(path).splitlines()]
        values = {}
        for number, row in enumerate(rows[1:], 2):
            if len(row) == 2 and re.fullmatch(r"\s*[0-9]{1,9}\s*", row[0]) and row[1].strip():
                values[int(row[0])] = row[1].strip()
            elif row != [""]:
                raise DataError(f"{path}, line {number}: expected 'value, class'")
        if named not in (None, values):
            raise DataError(f"{path}: names other classes than {choices.origin}; use --values")
        named, choices = values, replace(choices, values=values, origin=str(path))
    return choices


def class_names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def named(values: Sequence[int] | np.ndarray) -> str:
    """What --values takes, for a message."""
    listed = ",".join(f"{int(value)}=NAME" for value in values[:MOST_LEVELS])
    return listed + ",..." * (len(values) > MOST_LEVELS)


def counted_objects(values: Iterable[Iterable[int]]) -> int | None:
    """The largest value where labels seem to number objects: 1, 2, 3, ... anew in every file.

    None where they do not. Class ids leave gaps: few images have all classes up to their largest.

    Args:
        values: what occurs in each label, without ignored pixels.
    """
    every = [sorted(set(label) - {0}) for label in values]
    labels = [label for label in every if label]
    counts = {len(label) for label in labels}
    gapless = all(label == list(range(1, len(label) + 1)) for label in labels)
    if len(labels) < FEWEST_COUNTED or len(counts) < FEWEST_COUNTED or not gapless:
        return None
    many = max(counts) >= max(MOST_NESTED, 2 * min(counts))
    return max(counts) if many else None


def example(found: Sequence[Inspection], value: int) -> str:
    """A file that has the value."""
    return str(next((item.label for item in found if value in item.values), found[0].label))


def unpacked(value: int) -> Colour:
    return int(value) >> 16, int(value) >> 8 & 255, int(value) & 255


def as_colours(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as 0xRRGGBB; grey ones have three equal channels."""
    return values if kind == "colour" else values.astype(np.int64) * 0x10101


def too_many(found: Sequence[Inspection], classes: np.ndarray) -> None:
    """Raises DataError for more values or colours than there may be classes."""
    if len(classes) > 255:
        worst = max(found, key=lambda item: len(item.values))
        raise DataError(
            f"the labels have {len(classes)} different values ({worst.label} has "
            f"{len(worst.values)}), at most 255 classes are possible; were they saved as JPEG or "
            "smoothed? Then take the original files, or the nearest of the values that are meant: "
            "--snap. If they are instance ids, take the files of class ids"
        )
