"""A look at folders of images and labels: which belong together, and what the files hold."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ...config.errors import DataError
from ...util.images import (
    IMAGE_SUFFIXES,
    open_picture,
    read_image,
    read_label,
    stored_channels,
)

PIECE = 2**18  # pixels
COLOURS_AT_MOST = 4096  # of one label; a photograph has more

Kind = Literal["index", "grey_rgb", "colour"]


@dataclass
class Inspection:
    """What one pair holds, or its `problem`.

    Args:
        name: of the image, relative to its folder.
        size: (height, width) of the image, turned upright.
        channels: as stored.
        kind: "index": one value per pixel; "grey_rgb": three equal channels; "colour".
        values, counts: what occurs in the label and on how many pixels; colours as 0xRRGGBB.
        turned: the label fits the photo as it is stored, before it is turned upright.
        sums: (2, channels) mean and mean square of the image.
    """

    name: str
    image: Path
    label: Path
    size: tuple[int, int] = (0, 0)
    channels: int = 3
    kind: Kind = "index"
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    turned: bool = False
    sums: np.ndarray = field(default_factory=lambda: np.zeros((2, 3)))
    problem: str | None = None


def find_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted.

    Raises:
        DataError: there is none, or no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    for path in found:  # a list has a line for each, and a file in UTF-8 has the list
        name = str(path)
        if not name.isprintable() and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
            raise DataError(
                f"{name!a}: a list cannot hold this name: it has a tab, a line break or bytes "
                "that are not UTF-8, as in old archives; rename it (convmv does whole folders)"
            )
    if not found:
        raise DataError(f"{folder}: no image below it ({', '.join(IMAGE_SUFFIXES)})")
    return found


def match(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """(pairs, images without a label, labels without an image).

    A label belongs to the image of the same relative path, else of the same file name, both
    without what all images' or all labels' names end with (`_leftImg8bit`, `_mask`, `.png`).

    Raises:
        DataError: two labels would fit one image.
    """
    image_keys = keys_of(find_images(images), images)
    label_keys = keys_of(find_images(labels), labels)
    pairs: dict[Path, Path] = {}
    for level in (0, 1):  # the whole path, then the file's name
        by_key: dict[str, list[Path]] = {}
        for path, keys in label_keys.items():
            by_key.setdefault(keys[level], []).append(path)
        free = [path for path in image_keys if path not in pairs]
        wanted = [image_keys[path][level] for path in free]
        for path, key in zip(free, wanted, strict=True):
            candidates = by_key.get(key, [])
            if len(candidates) > 1 or (candidates and wanted.count(key) > 1):
                raise DataError(
                    f"{path}: several images or labels are called {key!r}, such as "
                    f"{candidates[0]}; give images and labels the same folders"
                )
            if candidates and candidates[0] not in pairs.values():
                pairs[path] = candidates[0]
    used = set(pairs.values())
    alone = [path for path in image_keys if path not in pairs]
    return sorted(pairs.items()), alone, [path for path in label_keys if path not in used]


def keys_of(paths: Sequence[Path], folder: Path) -> dict[Path, tuple[str, str]]:
    """path -> (relative path, file name), both without suffix and the ending that all share."""
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    length = len(common_ending(stems)) if len(stems) > 1 else 0
    short = [stem[: len(stem) - length] for stem in stems]
    return {path: (stem, stem.rpartition("/")[2]) for path, stem in zip(paths, short, strict=True)}


def common_ending(stems: Sequence[str]) -> str:
    """What all end with, from a `_` or `-` on: whole words, not digits that happen to be equal."""
    first = stems[0]
    starts = (found.start() for found in re.finditer("[_-]", first))
    shared = (first[s:] for s in starts if all(stem.endswith(first[s:]) for stem in stems))
    return next(shared, "")


def inspect_pairs(
    pairs: Sequence[tuple[Path, Path]], folder: Path, *, workers: int
) -> Iterator[Inspection]:
    """Every pair looked into, in order, by several processes."""
    jobs = [(path.relative_to(folder).as_posix(), path, label) for path, label in pairs]
    if workers <= 1:
        yield from map(inspect, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(inspect, jobs, chunksize=8)


def inspect(job: tuple[str, Path, Path]) -> Inspection:
    """Read one pair; what is wrong with it becomes its `problem`."""
    result = Inspection(*job)
    try:
        result.channels = stored_channels(result.image)
        image = read_image(result.image, result.channels if result.channels > 4 else 3)
        result.size = image.shape[:2]
        result.sums = moments(image)
        label, result.kind = read_any_label(result.label)
        result.values, result.counts = np.unique(label, return_counts=True)
        if result.kind == "colour" and len(result.values) > COLOURS_AT_MOST:
            raise DataError(
                f"{result.label}: has {len(result.values)} colours; a label has one per class (was "
                "it saved as JPEG, or smoothed?)"
            )
        if label.shape != result.size:
            result.turned = label.shape == result.size[::-1] and is_turned(result.image)
            if not result.turned:
                raise DataError(
                    f"{result.image} is {result.size[1]}x{result.size[0]} and its label "
                    f"{result.label} {label.shape[1]}x{label.shape[0]} pixels (width x height)"
                )
    except DataError as error:
        result.problem = str(error)
    return result


def moments(image: np.ndarray) -> np.ndarray:
    """(2, C): mean and mean square of each channel; in pieces, whose copies are small."""
    pixels = image.reshape(-1, image.shape[2])
    total = np.zeros((2, image.shape[2]))
    for start in range(0, len(pixels), PIECE):
        piece = pixels[start : start + PIECE].astype(np.int64)
        total += np.stack([piece.sum(axis=0), np.square(piece).sum(axis=0)])
    return total / len(pixels)


def read_any_label(path: Path) -> tuple[np.ndarray, Kind]:
    """(H, W) of indices, or of colours as 0xRRGGBB, and which of the two it is."""
    try:
        with open_picture(path) as picture:
            colour = picture.mode not in ("L", "P", "1", "I", "I;16", "I;16B", "F")
            rgb = np.array(picture.convert("RGB"), np.int32) if colour else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as a label image ({error})") from error
    if rgb is None:
        return read_label(path), "index"
    red, green, blue = np.moveaxis(rgb, 2, 0)
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red, "grey_rgb"
    return red << 16 | green << 8 | blue, "colour"


def is_turned(path: Path) -> bool:
    """Return whether the photo's EXIF entry asks for a quarter turn."""
    with open_picture(path) as picture:
        return picture.size != ImageOps.exif_transpose(picture).size
