"""A look at folders of images and labels: which belong together, and what the files hold."""

import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image

from ...config.errors import DataError
from ...util.geotiff import is_tiff
from ...util.images import (
    FILMS,
    IMAGE_SUFFIXES,
    ORIENTATION,
    TIFF_MARKS,
    LabelFile,
    open_picture,
    read_image,
    refuse_several,
    stored_channels,
    stored_pages,
)

PIECE = 2**18  # pixels
COLOURS_AT_MOST = 4096  # of one label; a photograph has more
LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
OTHER_PICTURES = (  # which are not read, and would be missed in silence
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif", ".gif", ".ppm", ".pgm", ".pnm", ".tga"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".psd", ".exr", ".hdr"),
    *(".npy", ".npz", ".mat", ".nii", ".gz", ".dcm", ".ecw", ".nc", ".h5", ".hdf5"),
)
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
DARK = 15  # of an image that looks black hardly any value is larger: 12-bit data in a 16-bit file
DARK_OF_16_BITS = 64  # the same for 14-bit data, whose 63.99 is rounded
SAMPLED = 2**18  # pixels that tell how bright an image is
MOST = 0.8  # share of the files that what is called shared is shared by
LABEL_WORDS = (
    *("mask", "masks", "label", "labels", "lab", "gt", "groundtruth", "seg", "segmentation"),
    *("annotation", "annotations", "ann"),
)
IMAGE_WORDS = ("image", "images", "img", "imgs", "photo", "photos", "jpegimages")

Kind = Literal["index", "grey_rgb", "colour"]
Keys = tuple[str, str, str, str]


@dataclass
class Inspection:
    """What one pair holds, or its `problem`.

    Args:
        name: of the image, relative to its folder.
        size: (height, width) of the image, turned upright.
        channels: as stored.
        kind: "index": one value per pixel; "grey_rgb": three equal channels; "colour".
        values, counts: what occurs in the label and on how many pixels; colours as 0xRRGGBB.
        solid: of these the pixels whose four neighbours have the same value.
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
    solid: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    lossy: str | None = None  # the label's format, where it changes values
    palette: dict[int, int] = field(default_factory=dict)  # of the label: index -> 0xRRGGBB
    by_palette: bool = False  # values are the palette's colours
    nodata: int | None = None  # a value that the label declares to stand for no data
    alpha: bool = False  # values are the alpha channel's
    bands: int = 3  # to train with: of a TIFF with more than three, all of them
    orientation: int = 1  # of EXIF
    own_turn: int = 1  # the label's own, which is the photo's or not applied
    dark: int | None = None  # of an image that looks black, what hardly any value is above


def unread_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, list[Path]]:
    """{suffix: files} below a folder that may well be images or labels, and are not read."""
    found: dict[str, list[Path]] = {}
    for path in files_below(folder):
        suffix = path.suffix.lower()
        if suffix in OTHER_PICTURES and suffix not in suffixes:
            found.setdefault(suffix, []).append(path)
    return dict(sorted(found.items()))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file; hidden files and folders are left out, links followed, but not in circles."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if may_enter(Path(place, name)))
        yield from (Path(place, name) for name in files if not name.startswith("."))


def refuse_archive(path: Path) -> None:
    """Raises DataError for an archive that has to be unpacked first."""
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        raise DataError(f"{path}: is an archive; unpack it, and name the folder")


def may_enter(folder: Path) -> bool:
    """Return whether a folder is to be looked into: not hidden, and no link to one around it."""
    if folder.name.startswith((".", "__")):
        return False
    return not (folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()))


def find_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Every image below a folder, sorted; hidden files and folders are left out, links followed.

    Raises:
        DataError: there is none, or no such folder.
    """
    refuse_archive(folder)
    if not folder.is_dir():
        wrong = "is a file; name the folder that it is in" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {wrong}")
    found = [path for path in files_below(folder) if path.suffix.lower() in suffixes]
    for path in found:  # a list has a line for each, and a file in UTF-8 has the list
        name = str(path)
        if not name.isprintable() and re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
            raise DataError(
                f"{name!a}: a list cannot hold this name: it has a tab, a line break, "
                "another control character or bytes that are not UTF-8, as in old archives; rename "
                "it (convmv does whole folders)"
            )
    if not found:
        for path in files_below(folder):
            refuse_archive(path)
        others = [paths[0] for paths in unread_files(folder, suffixes).values()]
        also = f"; {others[0]} is of another format: save these as PNG" if others else ""
        raise DataError(f"{folder}: no image below it ({', '.join(suffixes)}){also}")
    return sorted(found)


def match(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """(pairs, images without a label, labels without an image).

    A label belongs to the image of the same relative path, else of the same file name, both
    without what all images' or all labels' names end with (`_leftImg8bit`, `_mask`, `.png`). One
    image alone and one label alone belong together, whatever they are called, and so do files
    whose names differ in a number alone (7.jpg, mask007.png) where every number has a partner.

    Raises:
        DataError: two labels would fit one image.
    """
    if images.resolve() == labels.resolve():
        return match_within(images)
    image_files = outside(find_images(images), images, labels)
    label_files = outside(find_images(labels, LABEL_SUFFIXES), labels, images)
    keys = keys_of(image_files, images), keys_of(label_files, labels, labels=True)
    pairs, alone, unused = pair_up(*keys)
    if alone and unused and (numbered := by_number((image_files, images), (label_files, labels))):
        first, second = numbered[0]
        warn(f"{first} and {second}, and so on, are paired by the numbers in their names")
        return numbered, [], []
    warn_of_beginnings(pairs, *keys)
    only = len(image_files) == len(label_files) == 1 and not pairs
    if only and subfolder(image_files[0], images) == subfolder(label_files[0], labels):
        print(f"pairs: {alone[0]} and {unused[0]} belong together, the only files of their folders")
        return [(alone[0], unused[0])], [], []
    return pairs, alone, unused


def warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def by_number(
    images: tuple[Sequence[Path], Path], labels: tuple[Sequence[Path], Path]
) -> list[tuple[Path, Path]]:
    """Pairs of equal numbers, (files, their folder) each; none unless all files have a partner."""
    first, second = numbers_in(*images), numbers_in(*labels)
    if first is None or second is None or first.keys() != second.keys():
        return []
    return [(first[key], second[key]) for key in sorted(first)]


def numbers_in(files: Sequence[Path], folder: Path) -> dict[tuple[str, int], Path] | None:
    """{(subfolder, number): file} where the names differ in one number alone."""
    found: dict[tuple[str, int], Path] = {}
    around = set()
    for path in files:
        parts = re.fullmatch(r"(\D*)(\d{1,18})(\D*)", path.stem)
        if parts is None:
            return None
        around.add((parts[1], parts[3]))
        found[str(subfolder(path, folder)), int(parts[2])] = path
    return found if len(around) == 1 and len(found) == len(files) else None


def warn_of_beginnings(
    pairs: Sequence[tuple[Path, Path]], images: dict[Path, Keys], labels: dict[Path, Keys]
) -> None:
    """Warn where all images begin with one name and all labels with another, as of two places."""
    for image, label in pairs:
        first, second = (
            keys[2].casefold().removesuffix(keys[3]) for keys in (images[image], labels[label])
        )
        if first != second and is_a_name(first) and is_a_name(second):
            warn(
                f"{image} and {label}, and so on, are paired although all images begin with "
                f"{first!r} and all labels with {second!r}; are these the right folders?"
            )
            return


def is_a_name(beginning: str) -> bool:
    """Return whether a beginning has a word that does not merely say image or label."""
    words = re.split("[-_. ]", beginning)
    return any(word and word not in (*LABEL_WORDS, *IMAGE_WORDS) for word in words)


def subfolder(path: Path, folder: Path) -> Path:
    return path.relative_to(folder).parent


def outside(files: Sequence[Path], folder: Path, other: Path) -> list[Path]:
    """Files that are not in `other`, where that lies in their folder, as masks beside photos do."""
    if not other.resolve().is_relative_to(folder.resolve()):
        return list(files)
    inner = folder / other.resolve().relative_to(folder.resolve())
    return [path for path in files if not path.is_relative_to(inner)]


def pair_up(
    image_keys: dict[Path, Keys], label_keys: dict[Path, Keys]
) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """What `match` returns, by the keys of `keys_of`."""
    pairs: dict[Path, Path] = {}
    folders = {folder_of(keys) for keys in image_keys.values()}
    # the whole path with its suffix (a.jpg, a.jpg.png), without, the file's name, its end
    for level in range(4):
        by_key: dict[str, list[Path]] = {}
        for path, keys in label_keys.items():
            by_key.setdefault(keys[level], []).append(path)
        free = [path for path in image_keys if path not in pairs]
        wanted = [image_keys[path][level] for path in free]
        for path, key in zip(free, wanted, strict=True):
            here = folder_of(image_keys[path])
            candidates = [
                label
                for label in by_key.get(key, [])
                if level < 2 or may_hold(folder_of(label_keys[label]), here, folders)
            ]
            if len(candidates) > 1 or (candidates and wanted.count(key) > 1):
                raise DataError(
                    f"{path}: several images or labels are called {key!r}, such as "
                    f"{candidates[0]}; give images and labels the same folders. Masks of one class "
                    "each must be put into one label"
                )
            if candidates and candidates[0] not in pairs.values():
                pairs[path] = candidates[0]
    used = set(pairs.values())
    alone = [path for path in image_keys if path not in pairs]
    return sorted(pairs.items()), alone, [path for path in label_keys if path not in used]


def folder_of(keys: Keys) -> str:
    return keys[1].rpartition("/")[0]


def may_hold(label_folder: str, image_folder: str, folders: Collection[str]) -> bool:
    """Return whether labels of a folder may be of images of another, by their file names alone.

    A folder of labels that is called like one of images belongs to that one (train, val).
    """
    if label_folder not in folders:
        return True
    first, second = (f"/{folder}/".replace("//", "/") for folder in (label_folder, image_folder))
    return first.startswith(second) or second.startswith(first)


def match_within(folder: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """The same for images and labels in one folder.

    They are told apart by a word of the file's name or of a folder's, such as `_mask`, or as
    a.jpg and a.png.

    Raises:
        DataError: nothing tells them apart.
    """
    found = find_images(folder, LABEL_SUFFIXES)
    labels = [path for path in found if is_called_label(path.relative_to(folder))]
    images = [path for path in found if path not in set(labels)]
    if not labels:
        photos = [path for path in found if path.suffix.lower() in (".jpg", ".jpeg")]
        stems = Counter(path.with_suffix("") for path in photos)
        others = Counter(path.with_suffix("") for path in found if path not in set(photos))
        if stems == others and max(stems.values(), default=2) == 1:
            images, labels = photos, [path for path in found if path not in set(photos)]
    pairs: list[tuple[Path, Path]] = []
    if len(images) == len(labels) == 1:
        return [(images[0], labels[0])], [], []
    if images and labels:
        keys = (
            keys_of(images, folder, within=True),
            keys_of(labels, folder, labels=True, within=True),
        )
        pairs, alone, unused = pair_up(*keys)
    if not pairs and images and labels:
        raise DataError(
            f"{folder}: no image has a label: their names differ, such as {images[0]} and "
            f"{labels[0]}; give a label the name of its image. Masks of one object each must be "
            "put into one label"
        )
    if not pairs:
        raise DataError(
            f"{folder}: images and labels are in one folder, and no names such as a.jpg and "
            "a_mask.png tell them apart; give two folders"
        )
    return pairs, alone, unused


def is_called_label(path: Path) -> bool:
    """Return whether a word of the name, the first or the last, or a folder says so."""
    words = re.split("[-_. ]", path.stem.lower())
    named = (words[0], words[-1], *(part.lower() for part in path.parts[:-1]))
    return any(word in LABEL_WORDS for word in named)


def keys_of(
    paths: Sequence[Path], folder: Path, *, labels: bool = False, within: bool = False
) -> dict[Path, Keys]:
    """path -> four keys, from the most to the least exact; see `match`.

    The relative path with its suffix (of a label without its own: a.jpg.png belongs to a.jpg); the
    path and the file name without suffix and the ending that all share; the name without the
    beginning that all share, too, in small letters. Accents count as equal however they are stored.
    `within` one folder images/a.jpg belongs to masks/a.png.
    """
    whole = [
        Path(unicodedata.normalize("NFC", path.relative_to(folder).as_posix())) for path in paths
    ]
    if within:
        words = {*LABEL_WORDS, *IMAGE_WORDS}
        whole = [
            Path(*(part for part in path.parts[:-1] if part.lower() not in words), path.name)
            for path in whole
        ]
    exact = [(path.with_suffix("") if labels else path).as_posix() for path in whole]
    stems = []
    for path in whole:
        stem = path.with_suffix("")
        doubled = labels and stem.suffix.lower() in IMAGE_SUFFIXES
        stems.append((stem.with_suffix("") if doubled else stem).as_posix())
    ending = common_ending(stems)
    if len(stems) == 1 and labels and (word := re.search("[_-]([a-zA-Z]+)$", stems[0])):
        ending = word[0] if word[1].lower() in LABEL_WORDS else ""
    short = [stem.removesuffix(ending) for stem in stems]
    names = [stem.rpartition("/")[2] for stem in short]
    begin = common_beginning(names) if len(names) > 1 else 0
    ends = (name[begin:].casefold() for name in names)
    return dict(zip(paths, zip(exact, short, names, ends, strict=True), strict=True))


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
        stored = LabelFile(result.label)
        stored.refuse_pages()
        result.channels = stored_channels(result.image)
        bands = result.channels not in (1, 3) if is_tiff(result.image) else result.channels > 4
        result.bands = result.channels if bands else 3
        if result.bands in (1, 3):
            refuse_pages(result.image)
        image = read_image(result.image, result.bands)
        result.dark = darkness(image, result.image)
        result.orientation = orientation_of(result.image)
        result.size = image.shape[:2]
        result.sums = moments(image)
        label, result.kind = read_any_label(stored, alpha=result.alpha)
        result.lossy = stored.lossy_format()
        result.values, result.counts = np.unique(label, return_counts=True)
        if result.kind == "index" and not alpha:
            result.palette = stored.palette(result.values)
            result.nodata = next((v for v in result.values.tolist() if v == stored.nodata()), None)
        result.solid = solid_pixels(label, result.values)
        if result.kind == "colour" and len(result.values) > COLOURS_AT_MOST and not snap:
            raise DataError(
                f"{result.label}: has {len(result.values)} colours; a label has one per class (was "
                "it saved as JPEG, or smoothed?)"
            )
        result.own_turn = stored.orientation()
        if result.own_turn == result.orientation > 1 and result.orientation < 5:
            result.turned = label.shape == result.size  # both are shown upright
        if label.shape != result.size:
            result.turned = label.shape == result.size[::-1] and result.orientation >= 5
            if not result.turned:
                raise DataError(
                    f"{result.image} is {result.size[1]}x{result.size[0]} and its label "
                    f"{result.label} {label.shape[1]}x{label.shape[0]} pixels (width x height)"
                )
    except DataError as error:
        result.problem = str(error)
    return result


def solid_pixels(label: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each value the pixels whose four neighbours have it, too: what is drawn has such ones.

    Noise and smoothed edges have none, or few.
    """
    inner = label[1:-1, 1:-1]
    same = (label[:-2, 1:-1] == inner) & (label[2:, 1:-1] == inner)
    same &= (label[1:-1, :-2] == inner) & (label[1:-1, 2:] == inner)
    found, counts = np.unique(inner[same], return_counts=True)
    solid = np.zeros(len(values), np.int64)
    solid[np.searchsorted(values, found)] = counts
    return solid


def darkness(image: np.ndarray, path: Path) -> int | None:
    """What hardly any value is above, of an image that looks black; None of others."""
    step = max(1, int((image.shape[0] * image.shape[1] / SAMPLED) ** 0.5))
    bright = int(np.percentile(image[::step, ::step], 99.9))
    return bright if bright <= (DARK_OF_16_BITS if has_16_bits(path) else DARK) else None


def moments(image: np.ndarray) -> np.ndarray:
    """(2, C): mean and mean square of each channel; in pieces, whose copies are small."""
    pixels = image.reshape(-1, image.shape[2])
    total = np.zeros((2, image.shape[2]))
    for start in range(0, len(pixels), PIECE):
        piece = pixels[start : start + PIECE].astype(np.int64)
        total += np.stack([piece.sum(axis=0), np.square(piece).sum(axis=0)])
    return total / len(pixels)


def read_any_label(
    file: LabelFile, *, alpha: bool = False, by_palette: bool = False
) -> tuple[np.ndarray, Kind]:
    """(H, W) of indices, or of colours as 0xRRGGBB, and which of the two it is.

    Args:
        alpha: the label is the alpha channel.
        by_palette: of a palette image the colours, not the indices.
    Raises:
        DataError: the file cannot be read, or everything it shows is in its alpha channel.
    """
    if not alpha and file.is_wide:
        return file.values(), "index"
    picture = file.picture
    indexed = picture.mode in ("L", "P", "1", "I", "I;16", "I;16B", "F")
    clear = picture.mode == "P" and "transparency" in picture.info
    with_alpha = picture.mode in ("RGBA", "LA", "PA") or (alpha and clear)
    colour = not indexed or (by_palette and picture.mode == "P")
    with file.decoding():
        rgb = np.array(picture.convert("RGB"), np.int32) if colour else None
        opacity = np.array(picture.convert("RGBA").getchannel("A")) if with_alpha else None
    if alpha:
        if opacity is None:
            raise DataError(
                f"{file.path}: has no alpha channel, and --alpha says the label is there"
            )
        return opacity, "index"
    if rgb is None:
        return file.values(), "index"
    red, green, blue = np.moveaxis(rgb, 2, 0)
    packed = red << 16 | green << 8 | blue
    if opacity is not None and opacity.min() != opacity.max():
        refuse_alpha(file.path, packed, opacity)
    if not by_palette and np.array_equal(red, green) and np.array_equal(green, blue):
        return red, "grey_rgb"
    return packed, "colour"


def refuse_alpha(path: Path, packed: np.ndarray, opacity: np.ndarray) -> None:
    """Raises DataError where a varying alpha channel tells more than the colours do."""
    colours = np.unique(packed)
    if len(colours) == 1:
        why = "its alpha channel varies and its colour does not"
    elif len(colours) > 255:
        why = f"its alpha channel varies, and it has {len(colours)} colours"
    else:
        both = np.intersect1d(packed[opacity == 0], packed[opacity == 255])
        if len(both) == 0:
            return
        color = int(both[0])
        rgb = color >> 16, color >> 8 & 255, color & 255
        why = "the colour {} {} {} is transparent in some places and opaque in others".format(*rgb)
    raise DataError(
        f"{path}: {why}: is the label in alpha? Then say so with --alpha, else save it without "
        "an alpha channel"
    )


def has_16_bits(path: Path) -> bool:
    """Return whether a PNG or TIFF stores 16 bits per value."""
    with open(path, "rb") as file:
        start = file.read(25)
    if start[:4] in TIFF_MARKS:
        with tifffile.TiffFile(path) as file:
            return file.pages[0].dtype == np.uint16
    return start.startswith(b"\x89PNG") and start[24] == 16


def refuse_pages(path: Path) -> None:
    """Raises DataError for an image of several pages of one size, of which one would be read."""
    if is_tiff(path) or path.suffix.lower() in FILMS:
        refuse_several(path, stored_pages(path))


def orientation_of(path: Path) -> int:
    """The photo's EXIF orientation, 1 for upright."""
    if is_tiff(path) and stored_channels(path) > 3:
        return 1  # bands are read as they are stored
    try:
        with open_picture(path) as picture:
            value = picture.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1  # of bands that Pillow does not open
    return value if value in range(1, 9) else 1
