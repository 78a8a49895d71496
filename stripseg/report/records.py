"""What a test keeps of every image: `per_image.jsonl` beside `metrics.json`.

The first line says what the file is, then comes one JSON object per image: its confusion counts,
which sum to the figures of the test exactly, and how its errors lie: by distance to a boundary, by
size and elongation of the objects, by the network's confidence.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..config.errors import DataError
from ..util.files import atomic_write

NAME = "per_image.jsonl"
VERSION = 1
BOUNDARY_SHARE = 0.02  # of the diagonal: how wide a boundary is (Cheng et al., CVPR 2021)
DISTANCES = (
    3,
    8,
    16,
    32,
)  # pixels to the nearest boundary: the upper ends of all bins but the last
SIZES = (32**2, 96**2)  # pixels of an object: small, medium, large as in COCO
ELONGATIONS = (2, 4, 8)  # area of an object over its greatest width squared; a square has 1
BINS = 15  # of confidence
SURE = 242  # of 255, a probability of 0.95
SUSPECTS, SUSPECT_PIXELS = 3, 32  # most of an image, and the fewest pixels of one


@dataclass(frozen=True)
class ImageRecord:
    """The test of one image. Rows of integers, all of them pixels of labelled parts.

    Attributes:
        name: as the list has it.
        size: (height, width).
        counts: rows (label, prediction, pixels), those that are not 0.
        boundary: rows (class, intersection, union) of the boundaries of label and prediction.
        distance: a row (pixels, errors) for each bin of `DISTANCES`.
        sizes, elongations: a row (objects, pixels, pixels predicted right) for each bin.
        calibration: a row (pixels, right ones, sum of confidence) for each of `BINS` equal bins;
            empty where the confidence is not known.
        suspects: rows (label, prediction, pixels, top, left, bottom, right) of regions where the
            network is sure of another class than the label, far from boundaries, the largest first.
        label: CRC-32 of the label's pixels, which tells whether two tests had the same label.
    """

    name: str
    size: tuple[int, int]
    counts: list[list[int]] = field(default_factory=list)
    boundary: list[list[int]] = field(default_factory=list)
    distance: list[list[int]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    elongations: list[list[int]] = field(default_factory=list)
    calibration: list[list[float]] = field(default_factory=list)
    suspects: list[list[int]] = field(default_factory=list)
    label: int = 0

    def iou(self) -> dict[int, float]:
        """{class: IoU} of the classes in the image's label or prediction."""
        hits: dict[int, int] = {}
        union: dict[int, int] = {}
        for label, prediction, pixels in self.counts:
            for index in {label, prediction}:
                union[index] = union.get(index, 0) + pixels
            if label == prediction:
                hits[label] = pixels
        return {index: hits.get(index, 0) / pixels for index, pixels in sorted(union.items())}

    @property
    def mean_iou(self) -> float:
        """Of the classes in the image; 0 where nothing is labelled."""
        own = self.iou().values()
        return sum(own) / len(own) if own else 0.0

    @property
    def pixel_accuracy(self) -> float:
        total = sum(row[2] for row in self.counts)
        return sum(row[2] for row in self.counts if row[0] == row[1]) / total if total else 0.0


def examine(
    name: str,
    label: np.ndarray | None,
    prediction: np.ndarray,
    confidence: np.ndarray | None,
    counts: np.ndarray | None,
    *,
    ignore_label: int,
    thorough: bool = True,
) -> ImageRecord:
    """The record of an image.

    Args:
        label, prediction: (H, W) uint8 classes; without a label the record is empty.
        confidence: (H, W) uint8 probability of each predicted class, 255 is 1; or None.
        counts: (K, K) pixels of each label and prediction.
        thorough: how the errors lie, too; this is what takes time.
    """
    size = prediction.shape[:2]
    if label is None:
        return ImageRecord(name, size)
    rows, columns = np.nonzero(counts)
    pairs = np.stack([rows, columns, counts[rows, columns]], 1).tolist()
    record = ImageRecord(name, size, pairs, label=zlib.crc32(np.ascontiguousarray(label)))
    if not thorough:
        return record
    labelled = label != ignore_label
    wrong = (label != prediction) & labelled
    shown = np.where(labelled, prediction, ignore_label).astype(np.uint8)
    inside, inside_shown = boundary_distance(label), boundary_distance(shown)
    sizes, elongations = objects_of(label, wrong, inside, ignore_label)
    sure = confidence is not None
    contradicted = wrong & (inside > 3) & (confidence >= SURE) if sure else None
    return replace(
        record,
        boundary=boundary_overlap(label, shown, inside, inside_shown, ignore_label),
        distance=errors_by_distance(inside[labelled], wrong[labelled]),
        sizes=sizes,
        elongations=elongations,
        calibration=calibration_of(confidence[labelled], wrong[labelled]) if sure else [],
        suspects=suspects_of(label, prediction, contradicted) if sure else [],
    )


def boundary_distance(classes: np.ndarray) -> np.ndarray:
    """(H, W) uint8: pixels (chessboard) from each to the nearest one of another value, 255 at most.

    1 at a boundary. Unlabelled pixels are another value; the image's border is not a boundary.
    """
    around = np.ones((3, 3), np.uint8)
    interior = (cv2.dilate(classes, around) == cv2.erode(classes, around)).view(np.uint8)
    if interior.all():
        return np.full(classes.shape, 255, np.uint8)
    return np.minimum(cv2.distanceTransform(interior, cv2.DIST_C, 3) + 1, 255).astype(np.uint8)


def boundary_overlap(
    label: np.ndarray,
    shown: np.ndarray,
    inside: np.ndarray,
    inside_shown: np.ndarray,
    ignore_label: int,
) -> list[list[int]]:
    """Rows (class, intersection, union) of what lies within the boundary's width of a boundary."""
    width = min(254, max(1, round(BOUNDARY_SHARE * float(np.hypot(*label.shape)))))
    near = (inside <= width) & (label != ignore_label)
    near_shown = (inside_shown <= width) & (shown != ignore_label)
    both = near & near_shown & (label == shown)
    hits, ours, theirs = (
        np.bincount(part, minlength=256) for part in (label[both], label[near], shown[near_shown])
    )
    union = ours + theirs - hits
    (present,) = np.nonzero(union)
    return np.stack([present, hits[present], union[present]], 1).tolist()


def errors_by_distance(inside: np.ndarray, wrong: np.ndarray) -> list[list[int]]:
    """A row (pixels, errors) for each bin of `DISTANCES`."""
    farthest = DISTANCES[-1] + 1
    at = np.minimum(inside, farthest).astype(np.int64)
    counts = np.bincount(at + (farthest + 1) * wrong, minlength=2 * (farthest + 1))
    right, errors = counts.reshape(2, -1)
    ends = [0, *(end + 1 for end in DISTANCES)]
    return [
        [int(total), int(missed)]
        for total, missed in zip(
            np.add.reduceat(right + errors, ends), np.add.reduceat(errors, ends), strict=True
        )
    ]


def objects_of(
    label: np.ndarray, wrong: np.ndarray, inside: np.ndarray, ignore_label: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows (objects, pixels, right pixels) by size and by elongation.

    An object is a connected region of one class. Its width is that of the widest square inside.
    """
    sizes = np.zeros((len(SIZES) + 1, 3), np.int64)
    elongations = np.zeros((len(ELONGATIONS) + 1, 3), np.int64)
    for index in np.unique(label):
        if index == ignore_label:
            continue
        mask = label == index
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        mask = mask[box]
        count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions = regions[mask] - 1
        area = np.bincount(regions, minlength=count - 1)
        right = area - np.bincount(regions[wrong[box][mask]], minlength=count - 1)
        reach = greatest(regions, inside[box][mask], count - 1)
        across = np.minimum(2 * reach - 1, np.sqrt(area))
        rows_of = np.stack([np.ones_like(area), area, right], 1)
        np.add.at(sizes, np.digitize(area, SIZES), rows_of)
        np.add.at(elongations, np.digitize(area / across**2, ELONGATIONS), rows_of)
    return sizes.tolist(), elongations.tolist()


def greatest(regions: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(count,): the greatest uint8 value in each region."""
    if count > 4096:  # the table below would be larger than the image
        result = np.zeros(count, np.int64)
        np.maximum.at(result, regions, values)
        return result
    table = np.bincount(regions * 256 + values, minlength=count * 256).reshape(count, 256)
    return 255 - (table[:, ::-1] > 0).argmax(1)


def calibration_of(confidence: np.ndarray, wrong: np.ndarray) -> list[list[float]]:
    """A row (pixels, right ones, sum of confidence) for each bin."""
    values = np.arange(256)
    counts = np.bincount(confidence + np.int64(256) * wrong, minlength=512).reshape(2, 256)
    bins = np.minimum(values * BINS // 255, BINS - 1)
    pixels, right, total = (
        np.bincount(bins, weights=weights, minlength=BINS)
        for weights in (counts.sum(0), counts[0], counts.sum(0) * values / 255)
    )
    return [
        [int(count), int(hits), round(float(sum_), 3)]
        for count, hits, sum_ in zip(pixels, right, total, strict=True)
    ]


def suspects_of(label: np.ndarray, prediction: np.ndarray, sure: np.ndarray) -> list[list[int]]:
    """The largest regions of the mask, each with the classes that most of it has."""
    _, regions, facts, _ = cv2.connectedComponentsWithStats(sure.astype(np.uint8), connectivity=8)
    found = []
    order = np.argsort(-facts[1:, cv2.CC_STAT_AREA], kind="stable")[:SUSPECTS] + 1
    for index in order:
        left, top, width, height, area = (int(value) for value in facts[index])
        if area < SUSPECT_PIXELS:
            break
        box = (slice(top, top + height), slice(left, left + width))
        mask = regions[box] == index
        pair = label[box][mask].astype(np.int64) * 256 + prediction[box][mask]
        most = int(np.bincount(pair).argmax())
        found.append([most // 256, most % 256, area, top, left, top + height, left + width])
    return found


def sum_of(records: Iterable[ImageRecord], classes: int) -> np.ndarray:
    """(K, K) int64: the confusion counts of all images together."""
    total = np.zeros((classes, classes), np.int64)
    for record in records:
        for label, prediction, pixels in record.counts:
            total[label, prediction] += pixels
    return total


@dataclass(frozen=True)
class TestRecords:
    """A whole `per_image.jsonl`.

    Attributes:
        facts: of the test: class names and colours, protocol, checkpoint.
        images: in the order of the list.
    """

    __test__ = False  # pytest would take the name for a test

    facts: Mapping[str, Any]
    images: Sequence[ImageRecord]

    @property
    def names(self) -> list[str]:
        """Of the classes, in index order."""
        return list(self.facts["classes"])


def write_records(folder: Path, records: TestRecords) -> Path:
    """Write the file of a test's folder; return its path."""
    path = folder / NAME
    about = {"stripseg": "per-image record", "version": VERSION, "images": len(records.images)}
    first = {**about, **records.facts}
    with atomic_write(path) as file:
        for line in (first, *map(asdict, records.images)):
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return path


def read_records(path: Path) -> TestRecords:
    """Read the file, or that of a test's folder.

    Raises:
        DataError: there is none, it is damaged, or of a later version.
    """
    path = path / NAME if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found; expected the folder of a test (or its {NAME}), which every test "
            "with labels writes: run `stripseg test` again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    lines = text.splitlines()
    facts = parsed(path, 1, lines[0] if lines else "")
    if facts.get("stripseg") != "per-image record":
        raise DataError(f"{path}: is not the per-image record of a test")
    if facts.get("version") != VERSION:
        raise DataError(
            f"{path}: has version {facts.get('version')!r}, and this stripseg reads {VERSION}"
        )
    names = facts.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}, line 1: `classes` must be the names of the classes")
    colors = facts.get("colors", [[0, 0, 0]] * len(names))
    if np.shape(colors) != (len(names), 3) or not np.isin(colors, range(256)).all():
        raise DataError(f"{path}, line 1: `colors` must have [red, green, blue] for each class")
    if facts.get("images") != len(lines) - 1 or len(lines) < 2:
        raise DataError(
            f"{path}: has {len(lines) - 1} images, and line 1 promises {facts.get('images')}; the "
            "file is damaged"
        )
    images = [
        record_from(parsed(path, number, line), len(names), f"{path}, line {number}")
        for number, line in enumerate(lines[1:], 2)
    ]
    return TestRecords(facts, images)


def parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: is not JSON ({error}); the file is damaged"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path}, line {number}: expected an object; the file is damaged")
    return content


ROWS = {  # field -> columns of a row
    "counts": 3,
    "boundary": 3,
    "distance": 2,
    "sizes": 3,
    "elongations": 3,
    "calibration": 3,
    "suspects": 7,
}
BINNED = {
    "distance": len(DISTANCES) + 1,
    "sizes": len(SIZES) + 1,
    "elongations": len(ELONGATIONS) + 1,
    "calibration": BINS,
}
OF_CLASSES = {"counts": 2, "boundary": 1, "suspects": 2}  # leading columns that are class indices


def record_from(content: Mapping[str, Any], classes: int, origin: str) -> ImageRecord:
    """The record of one line.

    Raises:
        DataError: a field is missing, unknown, or holds something else than its rows.
    """
    size, name = content.get("size"), content.get("name")
    known = {"name", "size", "label", *ROWS}
    fits = (
        content.keys() == known
        and isinstance(name, str)
        and type(content["label"]) is int
        and isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
        and all(rows_fit(content[key], key, classes) for key in ROWS)
    )
    if not fits:
        raise DataError(f"{origin}: is not the record of an image; the file is damaged")
    return ImageRecord(**{**content, "size": tuple(size)})


def rows_fit(rows: Any, key: str, classes: int) -> bool:
    """Return whether a field's value is a list of rows of numbers that can be used."""
    if not isinstance(rows, list) or (rows and key in BINNED and len(rows) != BINNED[key]):
        return False
    kinds = (int, float) if key == "calibration" else (int,)
    return all(
        isinstance(row, list)
        and len(row) == ROWS[key]
        and all(type(value) in kinds and 0 <= value < 2**53 for value in row)
        and all(value < classes for value in row[: OF_CLASSES.get(key, 0)])
        and (key != "counts" or row[2] > 0)
        for row in rows
    )
