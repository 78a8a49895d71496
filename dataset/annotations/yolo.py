"""YOLO segmentation: one text per image, `class x1 y1 x2 y2 ...` in shares of width and height."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...config.errors import ConfigError, DataError
from ...config.yaml_file import read_yaml
from ...util.images import IMAGE_SUFFIXES
from ..description import listed_names
from .model import Annotations, Picture, Shape
from .parse import check_count, points, read_text, reading
from .rasterize import Polygon

NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
LINE = re.compile(r"\d+(\s+[-+0-9.eE]+){4,}")  # a class and at least the four numbers of a box
BEYOND = 0.5  # share of a side that a drawn point may lie outside of its picture
LEVELS = 3  # folders from the labels upwards in which the class names are looked for


def is_yolo(start: bytes) -> bool:
    """Return whether the first line of a file is one of YOLO's; a long one may be cut."""
    first = start.partition(b"\n")[0].strip()
    return LINE.fullmatch(first.decode("ascii", "replace")) is not None


def read_yolo(paths: Sequence[Path], root: Path, found: Annotations) -> None:
    """The texts below `root`; later lines lie in front. An empty text: nothing to see.

    Raises:
        DataError: no class names, or a line that is not `class x y x y x y ...`.
    """
    source, names = class_names(root)
    with reading(source, "the names"):
        names = [found.add_class(name) for name in names]
    for path in paths:
        place = path.relative_to(root).with_suffix("").as_posix()
        suffix = place.lower().endswith(IMAGE_SUFFIXES)  # photo.jpg.txt
        picture = Picture(place, str(path), suffix=suffix)
        lines = [line.split() for line in read_text(path).splitlines()]
        check_count(len(lines), path)
        for number, words in enumerate(lines, 1):
            if not words:
                continue
            if len(words) == 5:
                found.skipped["box (class and 4 numbers)"] += 1
                continue
            with reading(path, f"line {number}"):
                index = int(words[0])
                if not 0 <= index < len(names):
                    raise ValueError(f"has the class {index}, and {source} names {len(names)}")
                if len(words) % 2 == 0:
                    raise ValueError("has an odd number of coordinates; export it again")
                outline = points(list(map(float, words[1:])))
                if outline.min() < -BEYOND or outline.max() > 1 + BEYOND:
                    raise ValueError(
                        f"has the coordinate {outline.flat[np.abs(outline).argmax()]:g}; expected "
                        "shares of the picture, 0 to 1 (are these pixels, or keypoints?)"
                    )
                polygon = Polygon(outline, relative=True)
                item = f"line {number} of {path}"
                picture.shapes.append(Shape(names[index], [polygon], item))
        found.pictures.append(picture)


def class_names(root: Path) -> tuple[Path, list[str]]:
    """The file with the class names, in the folder of the labels or above it, and the names.

    Raises:
        DataError: there is none, or it names no classes.
    """
    for folder in [root.absolute(), *root.absolute().parents][:LEVELS]:
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            try:
                names = read_yaml(path).get("names")
            except ConfigError:
                continue
            if isinstance(names, dict) and all(isinstance(key, int) for key in names):
                missing = sorted(set(range(len(names))) - set(names))
                if missing:
                    raise DataError(f"{path}: names no class {missing[0]}; number them from 0")
                names = [names[index] for index in range(len(names))]
            if isinstance(names, list) and names:
                return path, list(map(str, names))
        for path in (folder / name for name in NAME_FILES):
            if path.is_file():
                lines = [line.strip() for line in read_text(path).splitlines()]
                return path, listed_names(lines, path)
    raise DataError(
        f"{root}: has YOLO's labels, and neither data.yaml with `names:` nor classes.txt is there "
        "or in the two folders above; put one there"
    )
