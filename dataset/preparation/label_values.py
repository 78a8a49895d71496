"""What the values in label files mean: one judgement, which says how sure it is and why.

What is certain goes through with a line that says so; what is likely goes through with a warning
that names the option for the other reading; what is ambiguous or lossy stops with a question that
an option answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...config.errors import DataError
from ..description import colors_of, default_colors
from ..labels import IGNORE_LABEL
from .class_numbering import (
    IGNORE_NAMES,
    MOST_LEVELS,
    Choices,
    ClassNumbering,
    Colour,
    class_names,
    counted_objects,
    example,
    named,
    too_many,
    unpacked,
)
from .label_colours import by_palette, differing_palettes, ignored_colours, number_colours
from .label_noise import FAR, NEAR, peaks, refuse_noise, totals, values_between, values_of_edges
from .match import Inspection

INSTANCES = (1000, 256)  # class * 1000 + instance in Cityscapes and its kin, 256 in Mapillary's
MOST_IDS = 254  # the largest class id of a label
FEWEST_STEPS = 3  # values, multiples of SMALLEST_STEP, that are codes and not ids with gaps
SMALLEST_STEP = 5
FULL = (1, 255, 65535)  # what masks of 1, 8 and 16 bits hold beside 0
IGNORED_FROM = 200  # a lone value this large, beside ids, may mean ignored


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
    void: frozenset[int] = frozenset()
    if table is not None or "colour" in {item.kind for item in found}:
        indexed = [item for item in found if item.kind == "index"]
        if all(item.palette for item in indexed):
            void = ignored_colours(indexed) if table is None else void
            by_palette(indexed)  # colours of a table, or of other files, are their palette's
    kinds = {item.kind for item in found}
    if {"index", "colour"} <= kinds:
        examples = {item.kind: item.label for item in found}
        raise DataError(
            f"{examples['colour']} is a colour image and {examples['index']} holds indices; "
            "labels must all be of one kind: save all of them in the same way"
        )
    warnings = []
    by_index = [item for item in found if item.kind == "index"]
    if (pair := differing_palettes(by_index)) is not None:
        first, second, value = pair
        void = ignored_colours(found)
        by_palette(found)
        kinds = {"colour"}
        warnings.append(
            f"the palettes differ: value {value} has one colour in {first} and another in {second};"
            " classes are taken by colour, not by index"
        )
    if "colour" in kinds or table is not None:
        numbering = number_colours(found, table, choices, void)
    else:
        numbering = number_indices(found, choices)
    refuse_one_class(found, numbering)
    return replace(numbering, warnings=(*warnings, *numbering.warnings))


def number_indices(found: Sequence[Inspection], choices: Choices) -> ClassNumbering:
    """What whole numbers mean: what the user says, a mask of two values, class ids, or a code."""
    stored, shares = totals(found)
    if choices.ids_from is not None and (choices.values or choices.snap):
        raise DataError("--ids-from does not fit --values and --snap; leave one of them out")
    if choices.values:
        return as_said(found, stored, choices)
    if choices.snap:
        return snapped(found, stored, choices)
    refuse_noise(found, stored, shares)
    if is_mask(found, stored, choices):
        return number_mask(found, stored)
    classes = stored[stored != choices.ignore]
    if len(classes) == 0:
        raise DataError(f"every label is entirely ignored ({choices.ignore})")
    refuse_grey_levels(found, stored, choices)
    refuse_below_zero(found, classes)
    codes = two_codes(found, choices)
    if choices.ignore not in (IGNORE_LABEL, *stored.tolist()):
        codes += (f"no label has the value {choices.ignore}, which --ignore names",)
    first, counted = first_id(found, classes, choices)
    step = step_of(classes) if choices.ids_from is None else 1
    if choices.ids_from is not None and int(classes.max()) - first > MOST_IDS:
        raise DataError(
            f"--ids-from {first}: {example(found, int(classes.max()))} has the value "
            f"{int(classes.max())}, and a label holds at most 255 classes; leave it out, or name "
            f"the values: --values {named(classes)}"
        )
    if choices.ids_from is not None or (step == 1 and are_ids(classes, first)):
        numbering = number_ids(found, stored, first, choices)
    else:
        numbering = number_codes(found, stored, choices)
    return replace(numbering, warnings=(*codes, *counted, *numbering.warnings))


def is_mask(found: Sequence[Inspection], stored: np.ndarray, choices: Choices) -> bool:
    """Return whether all files hold 0 and 255 alone, or some of them 0 and 1, or 0 and 65535."""
    values = set(stored.tolist())
    if choices.ignore_given or not values <= {0, *FULL} or 255 not in values or len(values) < 2:
        return False
    return all(len(set(item.values.tolist()) - {0}) <= 1 for item in found)


def number_mask(found: Sequence[Inspection], stored: np.ndarray) -> ClassNumbering:
    """Two classes: 0, and any of `FULL`."""
    warnings: tuple[str, ...] = ()
    codes = [code for code in FULL if code in stored]
    if len(codes) > 1:
        by_code = {int(item.values.max()): item.label for item in found}
        told = " and ".join(f"some of 0 and {code} ({by_code[code]})" for code in codes)
        warnings = (
            f"{told.replace('some', 'some masks are', 1)}; {' and '.join(map(str, codes))} are "
            "taken for the same class. If 255 is to be ignored: --ignore 255",
        )
    return ClassNumbering(
        stored,
        np.minimum(stored, 1),
        class_names(2),
        mask_colors(),
        notes=("values 0 and 255 are the two classes of a mask",),
        warnings=warnings,
    )


def mask_colors() -> list[Colour]:
    """Of the two classes of a mask: black, and the first of the usual colours."""
    return [(0, 0, 0), *default_colors(1)]


def refuse_below_zero(found: Sequence[Inspection], classes: np.ndarray) -> None:
    """Raises DataError for a value below 0, which is no class id."""
    smallest = int(classes.min())
    if smallest < 0:
        raise DataError(
            f"{example(found, smallest)}: has the value {smallest}; a class id is 0 or more. If it "
            f"means ignored: --ignore {smallest}"
        )


def first_id(
    found: Sequence[Inspection], classes: np.ndarray, choices: Choices
) -> tuple[int, tuple[str, ...]]:
    """The value of class 0, and a warning where it is 1 by the look of the values alone.

    Raises:
        DataError: a value is smaller than `--ids-from`.
    """
    smallest, largest = int(classes.min()), int(classes.max())
    if choices.ids_from is None:
        if smallest != 1 or len(classes) != largest or len(classes) < 2:
            return 0, ()
        return 1, (
            f"ids seem to count from 1: {largest} classes, value 1 becomes class 0. If class 0 "
            "only happens to be absent: --ids-from 0",
        )
    if smallest < choices.ids_from:
        raise DataError(
            f"--ids-from {choices.ids_from}: {example(found, smallest)} has the value {smallest}; "
            "name the smallest id, or ignore it with --ignore"
        )
    return choices.ids_from, ()


def number_ids(
    found: Sequence[Inspection], stored: np.ndarray, first: int, choices: Choices
) -> ClassNumbering:
    """Class ids from `first` on; those that occur nowhere are named in a warning."""
    classes = stored[stored != choices.ignore]
    count = int(classes.max()) - first + 1
    ids = np.where(stored == choices.ignore, IGNORE_LABEL, stored - first)
    absent = sorted(set(range(count)) - set(ids.tolist()))
    warnings: tuple[str, ...] = ()
    if absent:
        listed = ", ".join(str(value + first) for value in absent[:8])
        cure = f" (to count from {int(classes.min())}: --ids-from)" if absent[0] == 0 else ""
        warnings = (
            f"these ids are absent from all labels, and each counts as IoU 0: {listed}"
            f"{', ...' * bool(absent[8:])}{cure}. To name those that are meant: --values "
            f"{named(classes)}",
        )
    warnings += doubts_of_ids(found, classes, choices)
    indices = all(item.kind == "index" and not item.alpha for item in found)
    return ClassNumbering(
        stored,
        ids,
        class_names(count),
        default_colors(count),
        plain=indices and first == 0 and choices.ignore == IGNORE_LABEL,
        notes=(f"values are class ids, {first} to {int(classes.max())}",),
        warnings=warnings,
    )


def doubts_of_ids(
    found: Sequence[Inspection], classes: np.ndarray, choices: Choices
) -> tuple[str, ...]:
    """Warnings where class ids may be numbers of objects, or be mixed by resizing."""
    lines = []
    values = [set(item.values.tolist()) - {choices.ignore} for item in found]
    if (largest := counted_objects(values)) is not None:
        lines.append(
            f"every label counts 1, 2, 3, ... anew, to {largest} at most: are these numbers of "
            f"objects (instances)? Then --values 0=background,1-{largest}=object"
        )
    mixed = values_between(found, classes)
    if mixed:
        listed = ", ".join(map(str, mixed[:8]))
        meant = [value for value in classes.tolist() if value not in mixed]
        lines.append(
            f"the values {listed} fill no area anywhere and lie between others: were labels "
            "resized with smoothing? Then resize them with nearest neighbours, or take the nearest "
            f"of the others: --values {named(meant)} --snap"
        )
    return tuple(lines)


def number_codes(
    found: Sequence[Inspection], stored: np.ndarray, choices: Choices
) -> ClassNumbering:
    """Values far apart, numbered in their order.

    Raises:
        DataError: there are too many, one of them may mean ignored, or they are instance ids.
    """
    classes = stored[stored != choices.ignore]
    too_many(found, classes)
    refuse_lone_value(found, classes, choices)
    refuse_instances(found, classes)
    ids = np.where(stored == choices.ignore, IGNORE_LABEL, np.searchsorted(classes, stored))
    names = [f"value {value}" for value in classes]
    notes = (f"{len(names)} values far apart are numbered in their order",)
    colors = default_colors(len(names))
    warnings = one_class_in_codes(found, classes) + doubts_of_codes(found, classes)
    return ClassNumbering(stored, ids, names, colors, notes=notes, warnings=warnings)


def doubts_of_codes(found: Sequence[Inspection], classes: np.ndarray) -> tuple[str, ...]:
    """Warnings where codes may be ids with gaps after all, or traces of dithering."""
    lines: tuple[str, ...] = ()
    if step_of(classes) > 1 and are_ids(classes):
        listed = ", ".join(map(str, classes[:MOST_LEVELS].tolist()))
        lines += (
            f"the values {listed} are multiples of {step_of(classes)}, and taken for "
            f"{len(classes)} classes. If they are ids, of which others occur elsewhere: "
            "--ids-from 0",
        )
    if specks := values_of_edges(found, classes):
        listed = ", ".join(map(str, specks[:MOST_LEVELS]))
        meant = [value for value in classes.tolist() if value not in specks]
        lines += (
            f"the values {listed} fill no area anywhere: are they traces of dithering or "
            f"smoothing? Then save the labels again without it, or --values {named(meant)} --snap",
        )
    return lines


def one_class_in_codes(found: Sequence[Inspection], classes: np.ndarray) -> tuple[str, ...]:
    """A warning where each label has 0 and one other value, which is not the same in all."""
    others = {}
    for item in found:
        drawn = set(item.values.tolist()) & set(classes.tolist()) - {0}
        if len(drawn) > 1:
            return ()
        others |= dict.fromkeys(drawn, item.label)
    if len(others) < 2 or 0 not in classes:
        return ()
    (first, one), (second, two) = sorted(others.items())[:2]
    same = ",".join(f"{value}=object" for value in sorted(others))
    return (
        f"each label has 0 and one other value, such as {first} in {one} and {second} in {two}; "
        f"they are taken for different classes. If they are one: --values 0=background,{same}",
    )


def refuse_instances(found: Sequence[Inspection], classes: np.ndarray) -> None:
    """Raises DataError for values such as 26001, class * 1000 + instance, or 6657 by 256."""
    for base in INSTANCES:
        large = classes[classes >= base].astype(np.int64)
        instances = large % base
        several = base == INSTANCES[0] or len(np.unique(large // base)) < len(large)
        if len(large) > 1 and several and instances.max() < base / 5 and instances.any():
            raise DataError(
                f"{example(found, int(classes.max()))}: has the value {int(classes.max())}; are "
                f"these instance ids (class * {base} + instance)? Take the files of class ids, or "
                "name every value with --values"
            )


def are_ids(classes: np.ndarray, first: int = 0) -> bool:
    """Return whether values lie so near each other that they are class ids, some perhaps absent."""
    return int(classes.max()) - first < min(IGNORE_LABEL, 8 * len(classes))


def step_of(classes: np.ndarray) -> int:
    """The step of 0, 10, 20, ..., codes that leave out no id by chance; 1 for other values."""
    step = int(np.gcd.reduce(classes.astype(np.int64)))
    return step if len(classes) >= FEWEST_STEPS and step >= SMALLEST_STEP else 1


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
    names = [n for n in dict.fromkeys(choices.values.values()) if n.casefold() not in IGNORE_NAMES]
    too_many(found, np.arange(len(names)))
    number = {name: index for index, name in enumerate(names)}
    known = {value: number.get(name, IGNORE_LABEL) for value, name in choices.values.items()}
    strange = [int(v) for v in stored if int(v) not in known and int(v) != choices.ignore]
    if choices.snap:
        _, weights = totals(found, solid=True)
        meant = [int(stored[index]) for index in peaks(stored[:, None], weights)]
        strange = [v for v in meant if v in strange and min(abs(v - k) for k in known) > FAR]
    if strange:
        raise DataError(
            f"{choices.origin} names {', '.join(map(str, list(known)[:MOST_LEVELS]))}, and "
            f"{example(found, strange[0])} has {', '.join(map(str, strange[:5]))}; add them, "
            f"ignore one with --ignore{'' if choices.snap else ', or take the nearest with --snap'}"
        )
    ids = np.array([class_of(int(value), known, choices) for value in stored])
    return ClassNumbering(
        stored, ids, names, colors_of(names), notes=(f"as {choices.origin} says",)
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
