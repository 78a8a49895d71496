"""What the values in label files mean: one judgement, which says how sure it is and why.

What is certain goes through with a line that says so; what is likely goes through with a warning
that names the option for the other reading; what is ambiguous or lossy stops with a question that
an option answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ...config.errors import DataError
from ..description import default_colors
from ..labels import IGNORE_LABEL
from .match import Inspection

Colour = tuple[int, int, int]
LARGE = 0.005  # share of the pixels from which a value is meant, where others are noise
ENOUGH_SOLID = 0.1  # share of the pixels inside areas of one value from which these decide
MEANT = 0.5  # share of the pixels that the values that are meant hold together, at least
SMALLEST = 0.02  # of the largest share: a smaller one is noise
STANDS_OUT = 0.3  # share that the commonest of neighbouring values has of them
MOST_CANDIDATES = 512  # values of which a peak may be one, the commonest
INSTANCES = 1000  # from this value on labels hold instances, in Cityscapes and its kin
IGNORED_FROM = 200  # a lone value this large, beside ids, may mean ignored
IGNORE_NAMES = ("ignore", "ignored")  # of a colour table's line
NEAR = 16  # grey levels or steps of a channel that noise moves a value by
FAR = 64  # grey levels or steps of a colour channel between two values that are both meant
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
        values: {stored value: class name}, in class order (`--values 0=road,128=car`).
        ids_from: the smallest class id in the files (`--ids-from`), or None.
        ignore: stored value that is ignored (`--ignore`).
        snap: take values that are noise for the nearest one that is meant (`--snap`).
    """

    values: Mapping[int, str] = field(default_factory=dict)
    ids_from: int | None = None
    ignore: int = IGNORE_LABEL
    ignore_given: bool = False
    snap: bool = False


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
        total = np.zeros(256, np.int64)
        for item in found:
            np.add.at(total, self.translate(item.values), item.counts)
        return total[: len(self.names)]


def number_classes(
    found: Sequence[Inspection],
    table: Sequence[tuple[Colour, str]] | None = None,
    choices: Choices | None = None,
) -> ClassNumbering:
    """What the values of all labels mean.

    Raises:
        DataError: labels of different kinds, more than 255 classes, a colour not in the table, or
            values that may mean several things: the message names the option that decides.
    """
    choices = choices or Choices()
    if table is not None or "colour" in {item.kind for item in found}:
        indexed = [item for item in found if item.kind == "index"]
        if all(item.palette for item in indexed):
            by_palette(indexed)  # colours of a table, or of other files, are their palette's
    kinds = {item.kind for item in found}
    if {"index", "colour"} <= kinds:
        examples = {item.kind: item.label for item in found}
        raise DataError(
            f"{examples['colour']} is a colour image and {examples['index']} holds indices; "
            "labels must all be of one kind: save all of them in the same way"
        )
    warnings = []
    if (pair := differing_palettes(found)) is not None:
        first, second, value = pair
        by_palette(found)
        kinds = {"colour"}
        warnings.append(
            f"the palettes differ: value {value} has one colour in {first} and another in {second};"
            " classes are taken by colour, not by index"
        )
    if "colour" in kinds or table is not None:
        numbering = number_colours(found, table, choices)
    else:
        numbering = number_indices(found, choices)
    refuse_one_class(found, numbering)
    return replace(numbering, warnings=(*warnings, *numbering.warnings))


def number_indices(found: Sequence[Inspection], choices: Choices) -> ClassNumbering:
    stored, shares = totals(found)
    plain = {item.kind for item in found} == {"index"}
    if choices.ids_from is not None and (choices.values or choices.snap):
        raise DataError("--ids-from does not fit --values and --snap; leave one of them out")
    if choices.values:
        return as_said(found, stored, choices)
    if choices.snap:
        return snapped(found, stored, choices)
    refuse_noise(found, stored, shares)
    ignore = choices.ignore
    classes = stored[stored != ignore]
    values = set(stored.tolist())
    if not choices.ignore_given and values <= {0, 1, 255} and 255 in values and len(values) > 1:
        together = any({1, 255} <= set(item.values.tolist()) for item in found)
        if not together:  # masks of 0 and 255, in some files perhaps of 0 and 1
            note = "values 0 and 255 are the two classes of a mask"
            warnings = ()
            if 1 in values:
                by_code = {int(item.values.max()): item.label for item in found}
                warnings = (
                    f"some masks are of 0 and 1 ({by_code[1]}) and some of 0 and 255 "
                    f"({by_code[255]}); 1 and 255 are taken for the same class. If 255 is to be "
                    "ignored: --ignore 255",
                )
            ids = np.array([min(value, 1) for value in stored])
            return ClassNumbering(
                stored,
                ids,
                class_names(2),
                default_colors(2),
                notes=(note,),
                warnings=warnings,
            )
    if len(classes) == 0:
        raise DataError(f"every label is entirely ignored ({ignore})")
    refuse_grey_levels(found, stored, choices)
    if classes.min() < 0:
        raise DataError(
            f"{example(found, int(classes.min()))}: has the value {int(classes.min())}; a class id "
            f"is 0 or more. If it means ignored: --ignore {int(classes.min())}"
        )
    first = choices.ids_from
    warnings = two_codes(found, choices)
    if first is None and classes.min() == 1 and len(classes) == classes.max() and len(classes) > 1:
        first = 1
        warnings += (
            f"ids seem to count from 1: {int(classes.max())} classes, value 1 becomes class 0. If "
            "class 0 only happens to be absent: --ids-from 0",
        )
    first = first or 0
    if classes.min() < first:
        raise DataError(
            f"--ids-from {first}: {example(found, int(classes.min()))} has the value "
            f"{int(classes.min())}; name the smallest id, or ignore it with --ignore"
        )
    count = int(classes.max()) - first + 1
    if are_ids(classes, first):
        ids = np.where(stored == ignore, IGNORE_LABEL, stored - first)
        absent = sorted(set(range(count)) - set(ids.tolist()))
        if absent:
            listed = ", ".join(str(value + first) for value in absent[:8])
            cure = f" (to count from {int(classes.min())}: --ids-from)" if absent[0] == 0 else ""
            warnings += (
                f"these ids occur in no label, and each counts IoU 0: {listed}"
                f"{', ...' * bool(absent[8:])}{cure}. To name those that are meant: --values "
                f"{named(classes)}",
            )
        return ClassNumbering(
            stored,
            ids,
            class_names(count),
            default_colors(count),
            plain=plain and first == 0 and ignore == IGNORE_LABEL,
            notes=(f"values are class ids, {first} to {int(classes.max())}",),
            warnings=warnings,
        )
    too_many(found, classes)
    refuse_lone_value(found, classes, choices)
    large = classes.astype(np.int64)
    instances = large[large >= INSTANCES] % INSTANCES
    if len(instances) > 1 and instances.max() < INSTANCES / 5 and instances.any():
        raise DataError(
            f"{example(found, int(classes.max()))}: has the value {int(classes.max())}; are these "
            "instance ids (class * 1000 + instance)? Take the files of class ids, or name every "
            "value with --values"
        )
    ids = np.where(stored == ignore, IGNORE_LABEL, np.searchsorted(classes, stored))
    names = [f"value {value}" for value in classes]
    notes = (f"{len(names)} values far apart are numbered in their order",)
    return ClassNumbering(
        stored, ids, names, default_colors(len(names)), notes=notes, warnings=warnings
    )


def are_ids(classes: np.ndarray, first: int = 0) -> bool:
    """Return whether values lie so near each other that they are class ids, some perhaps absent."""
    return int(classes.max()) - first < min(IGNORE_LABEL, 8 * len(classes))


def named(values: Sequence[int] | np.ndarray) -> str:
    """What --values takes, for a message."""
    listed = ",".join(f"{int(value)}=NAME" for value in values[:MOST_LEVELS])
    return listed + ",..." * (len(values) > MOST_LEVELS)


def two_codes(found: Sequence[Inspection], choices: Choices) -> tuple[str, ...]:
    """A warning where some files hold 0 and 255 alone, and others class ids."""
    drawn = [item for item in found if set(item.values.tolist()) == {0, 255}]
    if not drawn or len(drawn) == len(found) or choices.ignore_given:
        return ()
    return (
        f"{len(drawn)} label(s), such as {drawn[0].label}, hold 0 and 255 alone and others class "
        "ids; 255 is ignored there. If it is a class in these files, give them its id; if not, "
        "say so: --ignore 255",
    )


def refuse_lone_value(found: Sequence[Inspection], classes: np.ndarray, choices: Choices) -> None:
    """Raises DataError for class ids and one large value: a class, or is it ignored?"""
    ids, lone = classes[:-1], int(classes[-1])
    if len(ids) > 1 and are_ids(ids) and lone >= IGNORED_FROM and not choices.ignore_given:
        raise DataError(
            f"{example(found, lone)}: has the value {lone} beside the ids {int(ids[0])} to "
            f"{int(ids[-1])}; is it a class, or ignored? Say which: --values {named(classes)} or "
            f"--ignore {lone}"
        )


def refuse_one_class(found: Sequence[Inspection], numbering: ClassNumbering) -> None:
    """Raises DataError where all pixels are of one class: a network would learn nothing."""
    if np.count_nonzero(numbering.pixels(found)) != 1:
        return
    stored = [unpacked(v) if numbering.coloured else int(v) for v in numbering.stored]
    one = stored[int(np.flatnonzero(numbering.ids != IGNORE_LABEL)[0])]
    if numbering.coloured:
        cure = "is that the right folder?"
    elif len(stored) == 1:
        cure = "is that the right folder, or is the label in an alpha channel (--alpha)?"
    else:
        cure = f"if each of these values is a class: --values {named(stored)}"
    raise DataError(
        f"all pixels of the labels ({found[0].label} and others) are of one class, {one}, or "
        f"ignored, and a network learns nothing from that; {cure}"
    )


def as_said(found: Sequence[Inspection], stored: np.ndarray, choices: Choices) -> ClassNumbering:
    """`--values`: exactly these; with --snap others are taken for the nearest of them."""
    known = {value: index for index, value in enumerate(choices.values)}
    strange = [int(v) for v in stored if int(v) not in known and int(v) != choices.ignore]
    if choices.snap:
        _, weights = totals(found, solid=True)
        meant = [int(stored[index]) for index in peaks(stored[:, None], weights)]
        strange = [v for v in meant if v in strange and min(abs(v - k) for k in known) > FAR]
    if strange:
        raise DataError(
            f"--values names {', '.join(map(str, known))}, and {example(found, strange[0])} has "
            f"{', '.join(map(str, strange[:5]))}; add them, ignore one with --ignore"
            f"{'' if choices.snap else ', or take the nearest with --snap'}"
        )
    ids = np.array([class_of(int(value), known, choices) for value in stored])
    names = list(choices.values.values())
    return ClassNumbering(
        stored, ids, names, default_colors(len(names)), notes=("as --values says",)
    )


def class_of(value: int, known: Mapping[int, int], choices: Choices) -> int:
    said = choices.ignore_given or not choices.snap
    if value == choices.ignore and value not in known and said:
        return IGNORE_LABEL
    return known[min(known, key=lambda other: abs(other - value))]


def snapped(found: Sequence[Inspection], stored: np.ndarray, choices: Choices) -> ClassNumbering:
    """`--snap`: values that hold much are the classes, every other one is its nearest."""
    _, weights = totals(found, solid=True)
    meant = sorted(int(stored[index]) for index in peaks(stored[:, None], weights))
    if len(meant) == 1:
        raise DataError(
            f"--snap: of {len(stored)} values only {meant[0]} stands out, so that classes cannot "
            "be told apart: name them with --values VALUE=NAME,... --snap, or take the original "
            "files"
        )
    nearest = np.abs(stored[:, None].astype(np.int64) - np.array(meant)).argmin(axis=1)
    left = [
        value
        for value in meant
        if not (choices.ignore_given and abs(value - choices.ignore) <= NEAR)
    ]
    ids = np.array([left.index(meant[i]) if meant[i] in left else IGNORE_LABEL for i in nearest])
    names = class_names(2) if left == [0, 255] else [f"value {value}" for value in left]
    note = f"--snap: {len(stored)} values are taken for the nearest of {', '.join(map(str, meant))}"
    return ClassNumbering(stored, ids, names, default_colors(len(names)), notes=(note,))


def number_colours(
    found: Sequence[Inspection],
    table: Sequence[tuple[Colour, str]] | None,
    choices: Choices,
) -> ClassNumbering:
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
        return snapped_colours(found, stored, channels, table)
    if table is None:
        refuse_colour_noise(found, stored, channels, shares)
        too_many(found, stored)
        colors = [unpacked(value) for value in stored]
        names = [f"colour {r} {g} {b}" for r, g, b in colors]
        ids = np.arange(len(stored))
        return ClassNumbering(stored, ids, names, colors, coloured=True)
    names, colors, numbers = table_classes(table)
    known = {r << 16 | g << 8 | b: numbers[r, g, b] for (r, g, b), _ in table}
    strange = [unpacked(value) for value in stored if int(value) not in known]
    if strange:
        refuse_colour_noise(found, stored, channels, shares)
        raise DataError(
            f"the labels have colours that the table does not list: {strange[:5]}; add them, or "
            "leave the table out to see all colours"
        )
    ids = np.array([known[int(value)] for value in stored])
    return ClassNumbering(stored, ids, names, colors, coloured=True)


def table_classes(
    table: Sequence[tuple[Colour, str]],
) -> tuple[list[str], list[Colour], dict[Colour, int]]:
    """Names, colours, and the value of every colour; one that is called ignore is none."""
    classes = [(color, name) for color, name in table if name.casefold() not in IGNORE_NAMES]
    numbers = {color: IGNORE_LABEL for color, _ in table}
    numbers |= {color: index for index, (color, _) in enumerate(classes)}
    return [name for _, name in classes], [color for color, _ in classes], numbers


def snapped_colours(
    found: Sequence[Inspection],
    stored: np.ndarray,
    channels: np.ndarray,
    table: Sequence[tuple[Colour, str]] | None,
) -> ClassNumbering:
    """`--snap` of colours: to the nearest of the table, or of those that hold much.

    Raises:
        DataError: a colour that holds much is far from all of the table.
    """
    _, weights = totals(found, solid=True)
    meant = sorted(peaks(channels, weights))
    if table is None:
        table = [(unpacked(stored[i]), "colour {} {} {}".format(*channels[i])) for i in meant]
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
    if lossy is None:
        if shares[chosen].sum() < MEANT or max(meant) < 2 * FAR or len(meant) > MOST_LEVELS:
            return
        many = extra >= 4 and extra >= len(meant)
        if not many and (len(meant) < 2 or not are_blends(found, stored[:, None], chosen)):
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


def changed_by(found: Sequence[Inspection]) -> str | None:
    """What is known to have changed the values of a file."""
    item = next((item for item in found if item.lossy), None)
    return None if item is None else f"{item.label} is a {item.lossy}, which changes values"


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


def solid_of(item: Inspection, points: np.ndarray) -> np.ndarray:
    """(n,) pixels of a label inside areas of each of the values, one or three channels each."""
    packed = points @ (np.array([1 << 16, 1 << 8, 1]) if points.shape[1] == 3 else np.array([1]))
    counts = np.zeros(len(points))
    counts[np.searchsorted(packed, item.values)] = item.solid
    return counts


def refuse_colour_noise(
    found: Sequence[Inspection], stored: np.ndarray, channels: np.ndarray, shares: np.ndarray
) -> None:
    """The same for colours."""
    _, weights = totals(found, solid=True)
    meant = peaks(channels, weights)
    extra = len(stored) - len(meant)
    lossy = changed_by(found)
    if lossy is None:
        many = extra >= 4 and extra >= len(meant)
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


def refuse_grey_levels(found: Sequence[Inspection], stored: np.ndarray, choices: Choices) -> None:
    """Raises DataError for values such as 0, 128, 255: classes, or is 255 ignored?"""
    values = stored.tolist()
    between = [value for value in values if value not in (0, 255)]
    if 255 not in values or max(values) > 255 or not between or choices.ignore_given:
        return
    far_apart = not are_ids(stored[stored != 255])
    if far_apart or (0 in values and min(between) >= 32):
        raise DataError(
            f"the values {', '.join(map(str, values[:MOST_LEVELS]))} ({example(found, between[0])})"
            " look like classes drawn in grey levels, and 255 may be one of them or mean ignored; "
            f"say which: --values {named(values)} or --ignore 255"
        )


def example(found: Sequence[Inspection], value: int) -> str:
    """A file that has the value."""
    return str(next((item.label for item in found if value in item.values), found[0].label))


def differing_palettes(found: Sequence[HasPalette]) -> tuple[str, str, int] | None:
    """Two files that give one index different colours, and the index."""
    seen: dict[int, tuple[int, str]] = {}
    for item in found:
        for value, color in item.palette.items():
            before = seen.setdefault(value, (color, str(item.label)))
            if before[0] != color:
                return before[1], str(item.label), value
    return None


def by_palette(found: Sequence[Inspection]) -> None:
    """Replace indices by the colours of each file's own palette."""
    for item in found:
        if not item.palette:
            raise DataError(
                f"{item.label}: has no palette, and others have different ones; labels must all be "
                "of one kind"
            )
        item.values = np.array([item.palette[int(value)] for value in item.values])
        item.kind = "colour"
        item.by_palette = True
        merged, index = np.unique(item.values, return_inverse=True)
        item.counts = np.bincount(index, weights=item.counts).astype(np.int64)
        item.solid = np.bincount(index, weights=item.solid).astype(np.int64)
        item.values = merged


def as_colours(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as 0xRRGGBB; grey ones have three equal channels."""
    return values if kind == "colour" else values.astype(np.int64) * 0x10101


def unpacked(value: int) -> Colour:
    return int(value) >> 16, int(value) >> 8 & 255, int(value) & 255


def too_many(found: Sequence[Inspection], classes: np.ndarray) -> None:
    if len(classes) > 255:
        worst = max(found, key=lambda item: len(item.values))
        raise DataError(
            f"the labels have {len(classes)} different values ({worst.label} has "
            f"{len(worst.values)}), at most 255 classes are possible; were they saved as JPEG or "
            "smoothed, or are they instance ids?"
        )


def class_names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def read_choices(
    values: str | None, ids_from: int | None, ignore: int | None, *, snap: bool
) -> Choices:
    """The options of the command.

    Raises:
        DataError: `values` is not of the form 0=road,128=car.
    """
    named: dict[int, str] = {}
    for part in (values or "").split(",") if values else []:
        number, _, name = part.partition("=")
        if not number.strip().isdigit() or int(number) in named:
            raise DataError(f"--values {values}: expected VALUE=NAME,..., each once, not {part!r}")
        named[int(number)] = name.strip() or f"class {len(named)}"
    return Choices(
        named,
        ids_from=ids_from,
        ignore=IGNORE_LABEL if ignore is None else ignore,
        ignore_given=ignore is not None,
        snap=snap,
    )
