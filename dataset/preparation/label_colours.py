"""What the colours of label files mean: by a table, by palettes, or numbered in their order."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from ...config.errors import DataError
from ..labels import IGNORE_LABEL
from .class_numbering import (
    IGNORE_NAMES,
    Choices,
    ClassNumbering,
    Colour,
    HasPalette,
    as_colours,
    too_many,
    unpacked,
)
from .label_noise import FAR, peaks, refuse_colour_noise, totals
from .match import Inspection


def number_colours(
    found: Sequence[Inspection],
    table: Sequence[tuple[Colour, str]] | None,
    choices: Choices,
    void: Collection[int] = (),
) -> ClassNumbering:
    """What colours mean; those of `void`, 0xRRGGBB, are ignored where no table says otherwise."""
    if choices.values or choices.ids_from is not None or choices.ignore_given:
        raise DataError(
            f"{found[0].label} and others are colours, and --values, --ids-from and --ignore are "
            "of labels that hold indices; name the classes with --colors TABLE, lines of 'R G B "
            "name' (the name ignore: pixels that are ignored)"
        )
    for item in found:
        item.values = as_colours(item.values, item.kind)
        item.kind = "colour"
    stored, shares = totals(found)
    channels = np.array([unpacked(value) for value in stored]).reshape(-1, 3)
    if choices.snap:
        return snapped_colours(found, stored, channels, table, void)
    if table is None:
        refuse_colour_noise(found, stored, channels, shares)
        too_many(found, stored)
        ignored = np.isin(stored, list(void))
        colors = [unpacked(value) for value in stored[~ignored]]
        names = [f"colour {r} {g} {b}" for r, g, b in colors]
        ids = np.where(ignored, IGNORE_LABEL, np.cumsum(~ignored) - 1)
        return ClassNumbering(stored, ids, names, colors, coloured=True)
    names, colors, numbers = table_classes(table)
    known = {r << 16 | g << 8 | b: numbers[r, g, b] for (r, g, b), _ in table}
    strange = [unpacked(value) for value in stored if int(value) not in known]
    if strange:
        refuse_colour_noise(found, stored, channels, shares)
        raise DataError(
            f"the labels have {len(strange)} colours that the table does not list, such as "
            f"{strange[:5]}; add them, leave the table out to see all colours, or, where they are "
            "noise of JPEG or smoothing, take the nearest of the table: --snap"
        )
    ids = np.array([known[int(value)] for value in stored])
    return ClassNumbering(stored, ids, names, colors, coloured=True, notes=notes_of(table))


def table_classes(
    table: Sequence[tuple[Colour, str]],
) -> tuple[list[str], list[Colour], dict[Colour, int]]:
    """Names, colours, and the value of every colour; one that is called ignore is none.

    Colours of one name are one class, which has the first of them.
    """
    classes: dict[str, Colour] = {}
    for color, name in table:
        if name.casefold() not in IGNORE_NAMES:
            classes.setdefault(name, color)
    names = list(classes)
    numbers = {color: names.index(n) if n in classes else IGNORE_LABEL for color, n in table}
    return names, list(classes.values()), numbers


def notes_of(table: Sequence[tuple[Colour, str]]) -> tuple[str, ...]:
    """What the table says that may be a slip: names of several colours, which are one class."""
    counts = Counter(name for _, name in table)
    return tuple(
        f"the table names {count} colours {name!r}: they are one class"
        for name, count in counts.items()
        if count > 1 and name.casefold() not in IGNORE_NAMES
    )


def snapped_colours(
    found: Sequence[Inspection],
    stored: np.ndarray,
    channels: np.ndarray,
    table: Sequence[tuple[Colour, str]] | None,
    void: Collection[int],
) -> ClassNumbering:
    """`--snap` of colours: to the nearest of the table, or of those that hold much.

    Raises:
        DataError: a colour that holds much is far from all of the table.
    """
    _, weights = totals(found, solid=True)
    meant = sorted(peaks(channels, weights))
    if table is None:
        names = ["colour {} {} {}".format(*channels[i]) for i in meant]
        names = [
            IGNORE_NAMES[0] if stored[i] in void else n for i, n in zip(meant, names, strict=True)
        ]
        table = [(unpacked(stored[i]), name) for i, name in zip(meant, names, strict=True)]
    too_many(found, np.arange(len(table)))
    centres = np.array([color for color, _ in table])
    strange = [i for i in meant if np.abs(centres - channels[i]).max(axis=1).min() > FAR]
    if strange:
        raise DataError(
            f"the labels have the colour {unpacked(stored[strange[0]])}, which is far from all of "
            "the table; add it"
        )
    names, colors, numbers = table_classes(table)
    nearest = [int(np.abs(centres - color).sum(axis=1).argmin()) for color in channels]
    ids = np.array([numbers[table[place][0]] for place in nearest])
    note = f"--snap: {len(stored)} colours are taken for the nearest of {len(table)}"
    return ClassNumbering(stored, ids, names, colors, coloured=True, notes=(note,))


def differing_palettes(found: Sequence[HasPalette]) -> tuple[str, str, int] | None:
    """Two files that give one index different colours, and the index.

    That of ignored pixels does not count where there are others than 0 and 255.
    """
    seen: dict[int, tuple[int, str]] = {}
    free = {IGNORE_LABEL} if any(set(item.palette) - {0, IGNORE_LABEL} for item in found) else set()
    for item in found:
        for value, color in item.palette.items():
            if value in free:
                continue
            before = seen.setdefault(value, (color, str(item.label)))
            if before[0] != color:
                return before[1], str(item.label), value
    return None


def ignored_colours(found: Sequence[Inspection]) -> frozenset[int]:
    """What palettes show 255 as, 0xRRGGBB, where labels have other classes than a mask's.

    Raises:
        DataError: it is the colour of a class in another file.
    """
    used = {color: item for item in found for v, color in item.palette.items() if v != IGNORE_LABEL}
    void = {item.palette[IGNORE_LABEL] for item in found if IGNORE_LABEL in item.palette}
    if not any(set(item.palette) - {0, IGNORE_LABEL} for item in found):
        return frozenset()
    if both := void & used.keys():
        color = both.pop()
        raise DataError(
            "the palettes differ: the colour {} {} {} is that of ignored pixels (255) in some "
            "files and of a class in {}; name the classes with --colors TABLE".format(
                *unpacked(color), used[color].label
            )
        )
    return frozenset(void)


def by_palette(found: Sequence[Inspection]) -> None:
    """Replace indices by the colours of each file's own palette."""
    for item in found:
        if not item.palette:
            raise DataError(
                f"{item.label}: has no palette, and others have different ones; labels must all be "
                "of one kind"
            )
        beyond = [value for value in item.values.tolist() if value not in item.palette]
        if beyond:
            raise DataError(
                f"{item.label}: has the index {beyond[0]}, and its palette has no colour for it"
            )
        item.values = np.array([item.palette[int(value)] for value in item.values])
        item.kind = "colour"
        item.by_palette = True
        merged, index = np.unique(item.values, return_inverse=True)
        item.counts = np.bincount(index, weights=item.counts).astype(np.int64)
        item.solid = np.bincount(index, weights=item.solid).astype(np.int64)
        item.values = merged
