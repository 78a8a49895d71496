"""A look at folders of images and labels: which belong together, and what the files hold."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
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
    stored_pages,
)

PIECE = 2**18  # pixels
COLOURS_AT_MOST = 4096  # of one label; a photograph has more
LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
ORIENTATION = 0x0112  # of EXIF
DARK = 15  # largest value of an image that looks black: 12-bit data in a 16-bit file
MOST = 0.8  # share of the files that what is called shared is shared by
LABEL_WORDS = ("mask", "masks", "label", "labels", "gt", "seg", "segmentation", "annotation", "lab")

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
    lossy: bool = False  # the label is a JPEG
    palette: dict[int, int] = field(default_factory=dict)  # of the label: index -> 0xRRGGBB
    by_palette: bool = False  # values are the palette's colours
    alpha: bool = False  # values are the alpha channel's
    bands: int = 3  # to train with: of a TIFF with more than three, all of them
    orientation: int = 1  # of EXIF
    peak: int = 255  # largest value of the image as it is read


def find_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Every image below a folder, sorted; hidden files and folders are left out, links followed.

    Raises:
        DataError: there is none, or no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found += [
            Path(place, name)
            for name in files
            if Path(name).suffix.lower() in suffixes and not name.startswith(".")
        ]
    for path in found:  # a list has a line for each, and a file in UTF-8 has the list
        name = str(path)
        if not name.isprintable() and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
            raise DataError(
                f"{name!a}: a list cannot hold this name: it has a tab, a line break or bytes "
                "that are not UTF-8, as in old archives; rename it (convmv does whole folders)"
            )
    if not found:
        raise DataError(f"{folder}: no image below it ({', '.join(suffixes)})")
    return sorted(found)


def match(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """(pairs, images without a label, labels without an image).

    A label belongs to the image of the same relative path, else of the same file name, both
    without what all images' or all labels' names end with (`_leftImg8bit`, `_mask`, `.png`).

    Raises:
        DataError: two labels would fit one image.
    """
    if images.resolve() == labels.resolve():
        return match_within(images)
    image_keys = keys_of(find_images(images), images)
    label_keys = keys_of(find_images(labels, LABEL_SUFFIXES), labels, labels=True)
    pairs: dict[Path, Path] = {}
    # the whole path with its suffix (a.jpg, a.jpg.png), without, the file's name, its end
    for level in range(4):
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


def match_within(folder: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """The same for images and labels in one folder, told apart by a word such as `_mask`.

    Raises:
        DataError: no such word.
    """
    found = find_images(folder, LABEL_SUFFIXES)
    labels, images = {}, {}
    for path in found:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        key, _, word = re.sub("[-_]", "_", stem).rpartition("_")
        if word.lower() in LABEL_WORDS:
            labels[key] = path
        else:
            images.setdefault(key, path)
            images[re.sub("[-_]", "_", stem)] = path
    pairs = [(images[key], label) for key, label in labels.items() if key in images]
    if not pairs:
        raise DataError(
            f"{folder}: images and labels are in one folder, and no names such as a.jpg and "
            "a_mask.png tell them apart; give two folders"
        )
    used = {path for pair in pairs for path in pair}
    alone = [p for p in found if p not in used and p not in labels.values()]
    return sorted(pairs), alone, [p for p in labels.values() if p not in used]


def keys_of(
    paths: Sequence[Path], folder: Path, *, labels: bool = False
) -> dict[Path, tuple[str, str, str, str]]:
    """path -> four keys, from the most to the least exact; see `match`.

    The relative path with its suffix (of a label without its own: a.jpg.png belongs to a.jpg); the
    path and the file name without suffix and the ending that all share; the name without the
    beginning that all share, too.
    """
    whole = [path.relative_to(folder) for path in paths]
    exact = [(path.with_suffix("") if labels else path).as_posix() for path in whole]
    stems = []
    for path in whole:
        stem = path.with_suffix("")
        doubled = labels and stem.suffix.lower() in IMAGE_SUFFIXES
        stems.append((stem.with_suffix("") if doubled else stem).as_posix())
    ending = common_ending(stems)
    short = [stem.removesuffix(ending) for stem in stems]
    names = [stem.rpartition("/")[2] for stem in short]
    begin = common_beginning(names) if len(names) > 1 else 0
    keys = zip(exact, short, names, (name[begin:] for name in names), strict=True)
    return dict(zip(paths, keys, strict=True))


def common_ending(stems: Sequence[str]) -> str:
    """What nearly all end with, from a `_` or `-` on; one stray file does not count.

    Whole words, not digits that happen to be equal.
    """
    counts: Counter[str] = Counter()
    for stem in stems:
        counts.update({stem[found.start() :] for found in re.finditer("[_-]", stem)})
    shared = [ending for ending, count in counts.items() if count >= max(2, MOST * len(stems))]
    return max(shared, key=len, default="")


def common_beginning(names: Sequence[str]) -> int:
    """Characters that all begin with, up to a `_` or `-`."""
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    shared = first[:length]
    return max(shared.rfind("_"), shared.rfind("-")) + 1


def inspect_pairs(
    pairs: Sequence[tuple[Path, Path]],
    folder: Path,
    *,
    workers: int,
    alpha: bool = False,
    snap: bool = False,
) -> Iterator[Inspection]:
    """Every pair looked into, in order, by several processes; `alpha`: labels are in alpha."""
    look = partial(inspect, alpha=alpha, snap=snap)
    jobs = [(path.relative_to(folder).as_posix(), path, label) for path, label in pairs]
    if workers <= 1:
        yield from map(look, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(look, jobs, chunksize=8)


def inspect(job: tuple[str, Path, Path], *, alpha: bool = False, snap: bool = False) -> Inspection:
    """Read one pair; what is wrong with it becomes its `problem`."""
    result = Inspection(*job, alpha=alpha)
    try:
        refuse_pages(result.label)
        result.channels = stored_channels(result.image)
        tiff = result.image.suffix.lower() in (".tif", ".tiff")
        bands = result.channels not in (1, 3) if tiff else result.channels > 4
        result.bands = result.channels if bands else 3
        if result.bands in (1, 3):
            refuse_pages(result.image)
        image = read_image(result.image, result.bands)
        result.peak = int(image.max())
        result.orientation = orientation_of(result.image)
        result.size = image.shape[:2]
        result.sums = moments(image)
        label, result.kind = read_any_label(result.label, alpha=result.alpha)
        result.lossy = is_jpeg(result.label)
        if result.kind == "index":
            result.palette = palette_of(result.label, np.unique(label))
        result.values, result.counts = np.unique(label, return_counts=True)
        if result.kind == "colour" and len(result.values) > COLOURS_AT_MOST and not snap:
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


def read_any_label(
    path: Path, *, alpha: bool = False, by_palette: bool = False
) -> tuple[np.ndarray, Kind]:
    """(H, W) of indices, or of colours as 0xRRGGBB, and which of the two it is.

    Args:
        alpha: the label is the alpha channel.
        by_palette: of a palette image the colours, not the indices.
    Raises:
        DataError: the file cannot be read, or everything it shows is in its alpha channel.
    """
    try:
        with open_picture(path) as picture:
            indexed = picture.mode in ("L", "P", "1", "I", "I;16", "I;16B", "F")
            with_alpha = picture.mode in ("RGBA", "LA", "PA")
            colour = not indexed or (by_palette and picture.mode == "P")
            rgb = np.array(picture.convert("RGB"), np.int32) if colour else None
            opacity = np.array(picture.getchannel("A")) if with_alpha else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as a label image ({error})") from error
    if alpha:
        if opacity is None:
            raise DataError(f"{path}: has no alpha channel, and --alpha says the label is there")
        return opacity, "index"
    if rgb is None:
        return read_label(path), "index"
    constant = (rgb == rgb[:1, :1]).all()
    if constant and opacity is not None and opacity.min() != opacity.max():
        raise DataError(
            f"{path}: its alpha channel varies and its colour does not: is the label in alpha? "
            "Then say so with --alpha"
        )
    red, green, blue = np.moveaxis(rgb, 2, 0)
    if not by_palette and np.array_equal(red, green) and np.array_equal(green, blue):
        return red, "grey_rgb"
    return red << 16 | green << 8 | blue, "colour"


def palette_of(path: Path, values: np.ndarray) -> dict[int, int]:
    """The palette's colours, 0xRRGGBB, of these indices; empty for a file without one."""
    with open_picture(path) as picture:
        entries = picture.getpalette("RGB") if picture.mode == "P" else None
    if entries is None:
        return {}
    colors = np.array(entries, np.int64).reshape(-1, 3)
    packed = colors @ np.array([1 << 16, 1 << 8, 1])
    return {int(value): int(packed[value]) for value in values if value < len(packed)}


def is_jpeg(path: Path) -> bool:
    """Return whether the file's content is a JPEG, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\xff\xd8"


def refuse_pages(path: Path) -> None:
    """Raises DataError for a TIFF of several pages of one size, of which only one would be read."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return
    count = stored_pages(path)
    if count > 1:
        raise DataError(
            f"{path}: has {count} pages, and only the first would be read; save each as a file of "
            "its own"
        )


def orientation_of(path: Path) -> int:
    """The photo's EXIF orientation, 1 for upright."""
    try:
        with open_picture(path) as picture:
            value = picture.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1  # of bands that Pillow does not open
    return value if value in range(1, 9) else 1


def is_turned(path: Path) -> bool:
    """Return whether the photo's EXIF entry asks for a quarter turn."""
    with open_picture(path) as picture:
        return picture.size != ImageOps.exif_transpose(picture).size
