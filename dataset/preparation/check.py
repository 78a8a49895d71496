"""The dataset doctor: reads what a training run will read, and says what is wrong with it."""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ...config.errors import DataError
from ...config.schema import Config
from ...util.distributed import process_group
from ...util.images import LabelFile, stored_channels, stored_size
from ..description import default_colors
from ..labels import LabelEncoding, read_stored
from ..lists import Pair
from ..loader import class_pixels
from ..segmentation import EvaluationSet, TrainingSet, read_pair
from .class_numbering import MOST_LEVELS, counted_objects, named
from .label_colours import differing_palettes
from .label_geometry import Geometry, judgements, measure
from .match import (
    darkness,
    is_tiff,
    orientation_of,
    refuse_pages,
)

QUICK = 12  # pairs that a training run looks at before it starts
USUAL_PALETTE = 21  # classes, PASCAL VOC's
LEVELS_FROM = 64  # grey levels, of a label that is drawn in these
NEAR = 3  # differing bits of 64 up to which two pictures look alike


@dataclass
class Examination:
    """What one pair holds: `error`, or everything else.

    Args:
        size: (height, width).
        pixels: (256,) of each train id; 255 is ignored.
        digest: of the image file; equal files have equal ones.
        look: 64 bits that differ little for pictures that look alike.
        geometry, palette, orientation, dropped: of the label its geometry and the colours of its
            palette, of the image EXIF's orientation and bands that are not read; where a thorough
            look was asked for.
        pair: the files.
    """

    split: str
    name: str
    error: str | None = None
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    dark: int | None = None  # of an image that looks black, what hardly any value is above
    digest: str = ""
    look: int = 0
    geometry: Geometry | None = None
    palette: dict[int, int] = field(default_factory=dict)
    orientation: int = 1
    dropped: int = 0
    pair: Pair | None = None

    @property
    def label(self) -> str:
        """What messages call the label."""
        return str(self.pair.label) if self.pair and self.pair.label else self.name


@dataclass(frozen=True)
class Finding:
    """One thing to know, with the files it is about."""

    severity: Literal["error", "warning"]
    kind: str
    message: str
    files: tuple[str, ...] = ()


def examine(
    split: str, pairs: Sequence[Pair], encoding: LabelEncoding, *, channels: int, workers: int
) -> Iterator[Examination]:
    """Every pair of a split, in order, by several processes."""
    look_at = partial(
        examine_pair, split=split, encoding=encoding, channels=channels, thorough=True
    )
    if workers <= 1:
        yield from map(look_at, pairs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(look_at, pairs, chunksize=8)


def refuse_bad_data(
    dataset: TrainingSet | EvaluationSet,
    config: Config,
    use: Literal["training", "validation", "testing"],
) -> None:
    """Look at a few pairs, evenly spaced, before a run starts.

    Images to validate on need only be readable: they may lack any class. Where training skips bad
    data (`TRAIN.bad_data`), they are refused only if none of them can be read.

    Raises:
        DataError: one of them cannot be used; the message names the command that checks all.
    """
    command = f"stripseg check {config.command_arguments()}"
    skip = use == "training" and config.TRAIN.bad_data == "skip"
    chosen = np.unique(np.linspace(0, len(dataset) - 1, QUICK).round().astype(int))
    pixels, drawn = np.zeros(256, np.int64), True
    skipped = 0
    for index in chosen:
        pair = dataset.pairs[index]
        seen = examine_pair(pair, split="", encoding=dataset.encoding, channels=dataset.channels)
        skipped += bool(seen.error)
        if seen.error and not (skip and skipped < len(chosen) and cannot_be_read(pair, dataset)):
            raise DataError(f"{seen.error} To see all that is wrong with the data: {command}")
        if seen.error:
            continue
        pixels += seen.pixels
        drawn &= bool(seen.pixels[0] and seen.pixels[255])
    if use == "validation":
        return
    if not pixels[: dataset.encoding.classes].any() and skipped < len(chosen):
        more = class_pixels(dataset.pairs, dataset.encoding)  # few images may be labelled
        if not more.any():
            raise DataError(
                f"{dataset.pairs[chosen[0]].label} and others: every pixel of all labels that were "
                f"looked at is ignored, so that nothing would be learnt. To look at all: {command}"
            )
    if (reason := mask_of_two_values(pixels, dataset.encoding, drawn=drawn)) is not None:
        raise DataError(f"{dataset.pairs[chosen[0]].label} and others: {reason}")
    doubt = doubt_of_classes(pixels[: dataset.encoding.classes])
    if doubt and use == "training" and process_group.is_main():
        print(
            f"warning: {len(chosen)} of {len(dataset)} labels were looked at: {doubt}? "
            f"To look at all: {command}",
            file=sys.stderr,
        )


def doubt_of_classes(pixels: np.ndarray) -> str | None:
    """A doubt about the (K,) pixels of each class in some labels, or None."""
    present = np.flatnonzero(pixels).tolist()
    if len(present) == 1:
        return f"all pixels are of class {present[0]} or ignored: is that the right list"
    if len(present) > 1 and present == list(range(1, len(pixels))):
        return "every class but 0 occurs: do ids count from 1 (`stripseg prepare custom`)"
    return None


def cannot_be_read(pair: Pair, dataset: TrainingSet | EvaluationSet) -> bool:
    """Return whether training would leave the pair out, where bad data are skipped."""
    try:
        read_pair(pair, dataset.encoding, 0, channels=dataset.channels)
    except DataError:
        return True
    return False


def examine_pair(
    pair: Pair,
    *,
    split: str,
    encoding: LabelEncoding,
    channels: int,
    thorough: bool = False,
) -> Examination:
    """What a pair holds; a thorough look measures the label's geometry, too."""
    result = Examination(split, pair.name, pair=pair)
    lossy = None
    try:
        if channels in (1, 3):  # other numbers of bands are read from all pages
            refuse_pages(pair.image)
        stored = None
        if pair.label is not None and pair.label.suffix != ".mat":
            stored = LabelFile(pair.label)
            stored.refuse_pages()
        if stored is not None and (lossy := stored.lossy_format()):
            raise DataError(
                f"{pair.label}: is a {lossy}, which changes the values of a label. Take the "
                "original PNG files, or `stripseg prepare custom ... --snap`."
            )
        sample = read_pair(pair, encoding, 0, channels=channels)
    except DataError as error:
        result.error = f"{error}{'' if lossy else likely_cause(pair, encoding)}"
        return result
    result.size = sample.image.shape[:2]
    label = np.where(sample.label == encoding.ignore_label, 255, sample.label)
    result.pixels = np.bincount(label.ravel(), minlength=256)
    result.digest = hashlib.sha256(pair.image.read_bytes()).hexdigest()
    result.look = look(sample.image)
    result.dark = darkness(sample.image, pair.image)
    if thorough:
        result.geometry = measure(sample.image, label, 255)
        if stored is not None and pair.label.suffix.lower() == ".png":
            result.palette = stored.palette(np.flatnonzero(result.pixels[:255]))
        result.orientation = orientation_of(pair.image)
        if is_tiff(pair.image):
            result.dropped = max(0, stored_channels(pair.image) - channels)
    return result


def look(image: np.ndarray) -> int:
    """64 bits: where brightness rises from left to right on a grid of 8 x 9."""
    grey = image.mean(axis=2).astype(np.float32)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def likely_cause(pair: Pair, encoding: LabelEncoding) -> str:
    """What a label with values outside the classes most likely is, as a sentence or nothing."""
    try:
        label = read_stored(pair.label) if pair.label else np.zeros((0, 0), np.uint8)
        height, width = stored_size(pair.image)
    except DataError:
        return ""
    if label.shape == (height, width) != (width, height) and orientation_of(pair.image) >= 5:
        return (
            ". The label has the size of the photo before its EXIF orientation turns it: "
            "`stripseg prepare custom`, or `stripseg check ... --fix FOLDER`, turns the label, too"
        )
    values = set(np.unique(label).tolist())
    strange = {v for v in values if v >= len(encoding.table) or encoding.table[v] < 0}
    if not strange:
        return ""
    if max(values) >= 1000:
        return " They look like instance ids (class * 1000 + instance): take the label ids."
    classes = encoding.classes
    palette = default_colors(max(classes, USUAL_PALETTE))
    greys = {(299 * r + 587 * g + 114 * b + 500) // 1000 for r, g, b in palette}
    if values - {0, 255} <= {grey + d for grey in greys for d in (-1, 0, 1)} and max(values) > 34:
        return " They look like a palette PNG that was saved as grey: take the original files."
    if classes == 19 and max(values - {255}, default=0) <= 33:
        return " They look like Cityscapes' labelIds; DATA.dataset cityscapes reads these, too."
    if strange == {classes}:
        return (
            f" Either there are {classes + 1} classes, and DATA.classes is too small, or these are "
            "labels that count from 1, with 0 for unlabelled (ADE20K's are such): subtract 1 and "
            f"make 0 {encoding.ignore_label}, or name the dataset in DATA.dataset."
        )
    if len(values) <= MOST_LEVELS and max(values) >= LEVELS_FROM:
        return (
            " Codes of classes become ids by `stripseg prepare custom ... --values "
            f"{named(sorted(values))}`."
        )
    return ""


def diagnose(
    found: Sequence[Examination], names: Sequence[str], *, crop: tuple[int, int]
) -> list[Finding]:
    """What the examinations of all splits show, errors first."""
    findings = [
        *(Finding("error", "unusable", item.error, (item.name,)) for item in found if item.error),
        *duplicates([item for item in found if not item.error]),
        *(
            Finding("error", "ignored", f"{item.name}: every pixel is ignored", (item.name,))
            for item in found
            if not item.error and item.pixels[:255].sum() == 0
        ),
        *binary_masks(found, names),
        *objects(found),
        *photos(found, names),
        *dark_images(found),
        *absent_classes(found, names),
        *small_images(found, crop),
        *geometry(found),
        *names_of_one_thing(names),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def geometry(found: Sequence[Examination]) -> Iterator[Finding]:
    """What the labels' geometry says about how they were made."""
    parts = [(item.name, item.geometry) for item in found if item.geometry is not None]
    for kind, message, files in judgements(parts):
        yield Finding("warning", kind, message, files)


def names_of_one_thing(names: Sequence[str]) -> Iterator[Finding]:
    """Classes of one name, or whose names differ in case, blanks, hyphens or a plural alone."""
    known: dict[str, str] = {}
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Finding("warning", "names", f"two classes are called {name!r}: is one to be both")
        plain = "".join(sign for sign in name.casefold() if sign.isalnum()).removesuffix("s")
        if plain and known.setdefault(plain, name) != name:
            yield Finding(
                "warning",
                "names",
                f"the classes {known[plain]!r} and {name!r} may be one thing under two names",
            )


def mask_of_two_values(pixels: np.ndarray, encoding: LabelEncoding, *, drawn: bool) -> str | None:
    """What is wrong with masks of 0 and 255 where 255 is ignored; None where nothing is.

    `drawn`: each label has both values, which tells with more than two classes, too.
    """
    only_background = pixels[0] and pixels[255] and not pixels[1:255].any()
    if encoding.kind != "train_id" or not only_background:
        return None
    if encoding.classes != 2 and not drawn:
        return None
    return (
        f"labels hold 0 and {encoding.ignore_label} alone, and {encoding.ignore_label} is ignored: "
        "only class 0 would be learnt. Masks of 0 and 255 become 0 and 1 by `stripseg prepare "
        "custom`"
    )


def binary_masks(found: Sequence[Examination], names: Sequence[str]) -> Iterator[Finding]:
    """Two classes of which only the first occurs, beside ignored pixels."""
    pixels = sum((i.pixels for i in found), np.zeros(256, np.int64))
    if len(names) == 2 and pixels[0] and pixels[255] and not pixels[1:255].any():
        yield Finding(
            "error",
            "binary",
            "labels hold 0 and the ignored value alone, so that only class 0 would be learnt. "
            "Masks of 0 and 255 become 0 and 1 by `stripseg prepare custom`",
        )


def objects(found: Sequence[Examination]) -> Iterator[Finding]:
    """Labels that seem to number objects."""
    values = [np.flatnonzero(i.pixels[:255]).tolist() for i in found if not i.error]
    if (largest := counted_objects(values)) is not None:
        yield Finding(
            "warning",
            "objects",
            f"every label counts 1, 2, 3, ... anew, to {largest} at most: are these numbers of "
            "objects (instances)? `stripseg prepare custom ... --values "
            f"0=background,1-{largest}=object` makes one class of them",
        )


def photos(found: Sequence[Examination], names: Sequence[str]) -> Iterator[Finding]:
    """Photos that are turned or lose bands, and palettes that give an index several colours."""
    good = [item for item in found if not item.error]
    turned = [item for item in good if item.orientation > 1]
    if turned:
        yield Finding(
            "warning",
            "turned",
            f"{len(turned)} photo(s) are turned upright by their EXIF orientation: do the labels "
            "fit the upright photo? (`stripseg prepare custom ... --turn-labels` turns them)",
            tuple(item.name for item in turned),
        )
    dropped = [item for item in good if item.dropped]
    if dropped:
        yield Finding(
            "warning",
            "bands",
            f"{len(dropped)} image(s) have more bands than DATA.in_channels, and the last "
            f"{dropped[0].dropped} are not read",
            tuple(item.name for item in dropped),
        )
    if (differing := differing_palettes(good)) is not None:
        first, second, value = differing
        yield Finding(
            "warning",
            "palettes",
            f"the palettes of the labels differ: class {names[value]} has one colour in {first} "
            f"and another in {second}; is it one class? `stripseg prepare custom` goes by colour",
            (first, second),
        )


def dark_images(found: Sequence[Examination]) -> Iterator[Finding]:
    dark = [item for item in found if not item.error and item.dark is not None]
    if dark:
        yield Finding(
            "warning",
            "dark",
            f"{len(dark)} image(s) look black, hardly any value is above {dark[0].dark} of 255 "
            "(10-, 12- or 14-bit data in 16-bit files? scale it to 16 bits)",
            tuple(item.name for item in dark),
        )


def duplicates(found: Sequence[Examination]) -> Iterator[Finding]:
    """Pictures that occur twice, equal or alike; an equal one in two splits is an error."""
    equal: dict[str, list[Examination]] = defaultdict(list)
    for item in found:
        equal[item.digest].append(item)
    unique = [group[0] for group in equal.values()]
    same = [group for group in equal.values() if len(group) > 1]
    for groups, what in ((same, "equal"), (list(alike(unique)), "look alike")):
        by_splits: dict[tuple[str, ...], list[Sequence[Examination]]] = defaultdict(list)
        for group in groups:
            by_splits[tuple(sorted({item.split for item in group}))].append(group)
        for splits, members in by_splits.items():
            leak = len(splits) > 1
            tested = {i.name for group in members for i in group if i.split != "train"}
            of = sum(item.split in splits and item.split != "train" for item in found)
            share = f"; {len(tested)} of {of} figures would tell of known pictures" if leak else ""
            yield Finding(
                "error" if leak and what == "equal" else "warning",
                "leak" if leak else "duplicate",
                f"{len(members)} time(s) pictures {'are ' * (what == 'equal')}{what} "
                f"{'across' if leak else 'within'} {' and '.join(splits)}"
                + (" (neighbouring frames of a film?)" if what != "equal" else "")
                + share,
                tuple(" = ".join(f"{i.split}: {i.name}" for i in group) for group in members),
            )


def alike(items: Sequence[Examination]) -> Iterator[tuple[Examination, Examination]]:
    """Pairs whose looks differ in at most `NEAR` bits; flat pictures say nothing.

    Looks that differ in three bits agree in one of four quarters: only such pairs are compared.
    """
    seen: set[tuple[int, int]] = set()
    for quarter in range(4):
        groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            if 4 <= item.look.bit_count() <= 60:
                groups[item.look >> 16 * quarter & 0xFFFF].append(index)
        for members in groups.values():
            for position, first in enumerate(members[:200]):
                for second in members[position + 1 : 200]:
                    differing = (items[first].look ^ items[second].look).bit_count()
                    if differing <= NEAR and (first, second) not in seen:
                        seen.add((first, second))
                        yield items[first], items[second]


def absent_classes(found: Sequence[Examination], names: Sequence[str]) -> Iterator[Finding]:
    for split in dict.fromkeys(item.split for item in found):
        pixels = split_pixels(found, split)[: len(names)]
        absent = [name for name, count in zip(names, pixels, strict=True) if count == 0]
        if absent:
            shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if absent[8:] else "")
            yield Finding("warning", "absent", f"never occurs in {split}: {shown}")


def small_images(found: Sequence[Examination], crop: tuple[int, int]) -> Iterator[Finding]:
    sizes = [item.size for item in found if not item.error and item.split == "train"]
    small = sum(h < crop[0] and w < crop[1] for h, w in sizes)
    if sizes and small > len(sizes) / 2:
        yield Finding(
            "warning",
            "crop",
            f"{small} of {len(sizes)} training images are smaller than the crop of "
            f"{crop[0]}x{crop[1]} (height x width): most of a crop is padding; lower TRAIN.train_h "
            "and TRAIN.train_w",
        )


def split_pixels(found: Iterable[Examination], split: str) -> np.ndarray:
    """(256,) pixels of each train id in a split."""
    return sum((i.pixels for i in found if i.split == split), np.zeros(256, np.int64))


def kept_pairs(
    found: Sequence[Examination], corrected: Collection[Path | None] = ()
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """({split: pairs}, {reason: how many are left out}): what is certainly better left out.

    Pairs that cannot be used, labels that are ignored entirely, pictures that occur again in their
    split, and training pictures that another split has. Labels that are `corrected` can be used.
    """
    digests = {id(item): item.digest for item in found}
    for item in found:
        if item.error and item.pair is not None and item.pair.label in corrected:
            digests[id(item)] = hashlib.sha256(item.pair.image.read_bytes()).hexdigest()
    tested = {digests[id(item)] for item in found if item.split != "train"} - {""}
    kept: dict[str, list[Pair]] = {item.split: [] for item in found}
    reasons: dict[str, int] = defaultdict(int)
    seen: set[tuple[str, str]] = set()
    for item in found:
        digest = digests[id(item)]
        as_read = item.pair is None or item.pair.label not in corrected
        if as_read and item.error:
            reason = "cannot be used"
        elif as_read and item.pixels[:255].sum() == 0:
            reason = "entirely ignored"
        elif (item.split, digest) in seen:
            reason = "there twice"
        elif item.split == "train" and digest in tested:
            reason = "also tested"
        else:
            kept[item.split].append(item.pair)
            seen.add((item.split, digest))
            continue
        reasons[reason] += 1
    return kept, dict(reasons)
