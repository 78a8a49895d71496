"""What every annotation format comes down to: classes, and pictures with shapes in order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from ...config.errors import DataError

Colour = tuple[int, int, int]
Background = Literal["class", "ignore"]
MOST_CLASSES = 255
BACKGROUND_NAMES = ("background", "_background_", "__background__")


@dataclass(frozen=True)
class Canvas:
    """The picture that is drawn on: its size in pixels, and how wide lines without a width are."""

    height: int
    width: int
    line_width: float = 10.0


@dataclass(frozen=True)
class Patch:
    """A part of a mask: `inside` (h, w) bool, its first pixel in row `top` and column `left`."""

    top: int
    left: int
    inside: np.ndarray


class Region(Protocol):
    """A set of pixels, in whatever form the file has it."""

    def draw(self, canvas: Canvas) -> Patch:
        """The pixels of it that are on the canvas.

        Raises:
            ValueError: it cannot be drawn; the message says why.
        """


@dataclass(frozen=True)
class Shape:
    """One annotated object: all pixels of its regions.

    Args:
        name: of its class; "" for pixels that are to be ignored.
        crowd: many objects in one outline, as COCO's iscrowd.
        item: how messages call it, such as "annotation 17".
    """

    name: str
    regions: Sequence[Region]
    item: str
    crowd: bool = False


@dataclass
class Picture:
    """The shapes of one image, in the order in which they are painted: later ones cover earlier.

    Args:
        file: the image's name as the annotations have it: a path or a part of one.
        origin: the annotation file, for messages.
        size: (height, width) that the coordinates refer to, or None where the file does not say.
        suffix: whether `file` ends in the image's own suffix.
    """

    file: str
    origin: str
    size: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    suffix: bool = True


@dataclass
class Annotations:
    """What the files of one format hold.

    Args:
        format: its name, for messages.
        classes: name -> colour, or None where the format has none; in class order.
        skipped: shapes that cannot be drawn, by kind.
        unlabelled: what pixels without a shape are where the user does not say.
        notes: lines that say what was decided.
    """

    format: str
    classes: dict[str, Colour | None] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unlabelled: Background = "class"
    notes: list[str] = field(default_factory=list)

    def add_class(self, name: str, color: Colour | None = None) -> str:
        """Take a class into the list, once; its name as a list of names holds it.

        Raises:
            ValueError: the name is empty or too many classes.
        """
        name = " ".join(str(name).split())
        if not name or not name.isprintable():
            raise ValueError(f"a class has the name {name!r}; give it one of visible characters")
        if self.classes.get(name) is None:
            self.classes[name] = color
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(f"has more than {MOST_CLASSES} classes, and an 8-bit label holds 255")
        return name


@dataclass(frozen=True)
class Numbers:
    """Class names -> values of the label: `names[i]` is i, and `colors[i]` its colour.

    `background` is the value of pixels that no shape covers, 255 where they are ignored.
    """

    names: list[str]
    colors: list[Colour]
    background: int


def number_annotated(
    annotations: Annotations, background: Background | None, usual: Sequence[Colour]
) -> Numbers:
    """Number the classes; the background comes first where the format lists none of its own.

    Args:
        background: as the user says, or None for what the format does.
        usual: 255 colours for classes without one.
    Raises:
        DataError: no class is named, or more than a label can hold.
    """
    names = list(annotations.classes)
    own = next((name for name in names if name.lower() in BACKGROUND_NAMES), None)
    chosen = background or ("class" if own else annotations.unlabelled)
    if chosen == "class" and own is None:
        own = "background"
        names = [own, *names]
    if not annotations.classes or len(names) > MOST_CLASSES:
        raise DataError(
            f"the annotations ({annotations.format}) name {len(annotations.classes)} classes; a "
            f"label holds from 1 to {MOST_CLASSES}, the background among them"
        )
    taken = set(annotations.classes.values())
    free = (color for color in usual if color not in taken)
    colors = []
    for name in names:
        color = annotations.classes.get(name)
        if color is None:
            color = (0, 0, 0) if name == own else next(free)
        colors.append(color)
    return Numbers(names, colors, names.index(own) if chosen == "class" and own else 255)
