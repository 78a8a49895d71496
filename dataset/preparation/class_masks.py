"""Masks of one class each: several label files of one picture, by folders or endings of names.

`road/p0.png` and `car/p0.png`, `p0_road.png` and `p0_car.png`, or `p0/road.png` and `p0/car.png`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from ...config.errors import DataError
from ...util.images import LabelFile
from ..annotations.model import (
    BACKGROUND_NAMES,
    MOST_CLASSES,
    Annotations,
    Canvas,
    Patch,
    Picture,
    Shape,
)
from .match import LABEL_SUFFIXES, files_below, keys_of, read_any_label

FORMAT = "masks of one class each"
LOOKED_AT = 8  # pictures
MOST_COMMON = 0.02  # share of a mask: an edge that two people drew
Found = dict[Path, dict[str, Path]]  # image -> {class: its mask}


@dataclass(frozen=True)
class MaskFile:
    """The pixels of a mask that are not 0; `changed` is the time of the file's last change."""

    path: Path
    changed: int

    def draw(self, canvas: Canvas) -> Patch:
        inside = self.read()
        if inside.shape != (canvas.height, canvas.width):
            raise ValueError(
                f"{self.path} is {inside.shape[1]}x{inside.shape[0]} and the picture "
                f"{canvas.width}x{canvas.height} pixels (width x height)"
            )
        return Patch(0, 0, inside)

    def read(self) -> np.ndarray:
        """(H, W) bool; ValueError where it has other values than 0 and one more."""
        file = LabelFile(self.path)
        file.refuse_pages()
        label, _ = read_any_label(file)
        values = np.unique(label)
        if len(values) > 2 or (len(values) == 2 and values[0] != 0):
            if (lossy := file.lossy_format()) is not None:
                raise ValueError(
                    f"{self.path} is a {lossy}, which changes values; take the original mask, or "
                    "save it as a PNG of 0 and 255"
                )
            listed = ", ".join(map(str, values[:8].tolist())) + ", ..." * (len(values) > 8)
            raise ValueError(
                f"{self.path} has the values {listed}; a mask of one class has 0 and one other. If "
                "a picture has several kinds of labels, put those that are meant into a folder of "
                "their own"
            )
        return label != 0


def read_class_masks(labels: Path, images: Path, image_files: Sequence[Path]) -> Annotations | None:
    """The masks below a folder; None where they are not of one class each.

    Classes are in the order of their names, which is also the order of drawing.

    Raises:
        DataError: there are several masks of a picture, and nothing says of which classes.
    """
    if not labels.is_dir() or labels.resolve() == images.resolve():
        return None
    files = sorted(p for p in files_below(labels) if p.suffix.lower() in LABEL_SUFFIXES)
    found = by_class(files, labels, image_files, images)
    if found is None:
        return None
    names = {name for masks in found.values() for name in masks}
    plain = {re.sub(r"[-_. ]*\d+$", "", name) for name in names}
    image, several = next((i, m) for i, m in found.items() if len(m) > 1)
    if len(plain) < len(names) or "" in plain or len(names) >= MOST_CLASSES:
        first, second = list(several.values())[:2]
        raise DataError(
            f"{image}: has several masks, such as {first} and {second}, and their names are no "
            "classes; are these objects? Put those of one class into one mask, and call it like "
            f"the picture: {labels}/{image.stem}.png, or {labels}/CLASS/{image.stem}.png for "
            "several classes"
        )
    annotations = Annotations(FORMAT)
    background = [name for name in names if name.lower() in BACKGROUND_NAMES]
    for name in background + sorted(names - set(background), key=str.casefold):
        annotations.add_class(name)
    for image, masks in sorted(found.items()):
        name = image.relative_to(images).as_posix()
        picture = Picture(name, str(next(iter(masks.values()))))
        for number in annotations.classes:
            if (path := masks.get(number)) is not None:
                region = MaskFile(path, path.stat().st_mtime_ns)
                picture.shapes.append(Shape(number, [region], str(path)))
        annotations.pictures.append(picture)
    return annotations


def by_class(
    files: Sequence[Path], labels: Path, image_files: Sequence[Path], images: Path
) -> Found | None:
    """Which mask is of which picture and class; None where that is not certain.

    All files must fit one of the three ways to call them, some picture must have several masks, and
    every class several pictures, where there are several. A file that is called like a picture is
    the label of that one.
    """
    by_name = {keys[1].casefold(): path for path, keys in keys_of(image_files, images).items()}
    if len(by_name) < len(image_files):
        return None
    places = {
        path: PurePosixPath(path.relative_to(labels).as_posix()).with_suffix("") for path in files
    }
    if any(str(place).casefold() in by_name for place in places.values()):
        return None
    for divide in (class_folder, picture_folder, ending):
        found: Found = {}
        for path, place in places.items():
            name, image = divide(place, by_name)
            if image is None or name in found.setdefault(image, {}):
                break
            found[image][name] = path
        else:
            counts = [
                sum(name in m for m in found.values()) for name in set().union(*found.values())
            ]
            if found and max(map(len, found.values())) > 1 and min(counts) >= min(2, len(found)):
                return found
    return None


def class_folder(place: PurePosixPath, images: Mapping[str, Path]) -> tuple[str, Path | None]:
    """road/p0: the class and the picture."""
    return place.parts[0], images.get("/".join(place.parts[1:]).casefold())


def picture_folder(place: PurePosixPath, images: Mapping[str, Path]) -> tuple[str, Path | None]:
    """p0/road."""
    return place.name, images.get(str(place.parent).casefold())


def ending(place: PurePosixPath, images: Mapping[str, Path]) -> tuple[str, Path | None]:
    """p0_road; of pictures that begin alike, that of the longest name."""
    text = str(place)
    for end in range(len(text) - 1, 0, -1):
        if text[end] in "_-. " and (image := images.get(text[:end].casefold())) is not None:
            return text[end + 1 :], image
    return "", None


def refuse_overlap(pictures: Sequence[Picture]) -> None:
    """Look at a few pictures; masks that lie over each other are a question of which is in front.

    Raises:
        DataError: more than `MOST_COMMON` of a mask is in another one; `--overlap` answers.
    """
    for picture in pictures[:LOOKED_AT]:
        try:
            masks = [
                (shape, region.read())
                for shape in picture.shapes
                for region in shape.regions
                if isinstance(region, MaskFile)
            ]
        except (ValueError, DataError):
            continue  # told where it is drawn
        for (first, mask), (second, other) in combinations(masks, 2):
            smaller = max(1, min(mask.sum(), other.sum()))
            if mask.shape != other.shape or (mask & other).sum() <= MOST_COMMON * smaller:
                continue
            raise DataError(
                f"{first.item} and {second.item} have {(mask & other).sum() / smaller:.0%} of the "
                f"smaller one in common: which is in front, {first.name} or {second.name}? Say "
                "--overlap last (the later of the names), first or smallest. If both show one "
                "thing, as drawn by two people, take one of them"
            )
