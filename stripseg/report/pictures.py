"""The pictures of a report: thumbnails, layers of whole images, crops of doubtful labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..config.errors import DataError
from ..dataset.results import PredictionFiles
from ..dataset.segmentation import EvaluationSet, Sample
from ..util.images import as_rgb, overlay, shrunk
from .html import jpeg, palette_png
from .records import TestRecords

FULL, THUMBNAIL, CROP = 512, 150, 190  # pixels of the longer side
LAYERS = ("image", "label", "prediction", "errors")
WRONG, RIGHT, UNLABELLED = (213, 94, 0), (86, 180, 233), (128, 128, 128)
ERRORS = np.array([WRONG, RIGHT, UNLABELLED], np.uint8)


@dataclass(frozen=True)
class Shown:
    """An image of a test with its label and its prediction, all (H, W, ...) uint8."""

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


class TestPictures:
    """Reads the images, labels and saved predictions of a test again, as pictures.

    Args:
        records: of the test; a prediction that does not fit its image's record is another test's.
        colors: (K, 3) uint8 of the classes.
    """

    __test__ = False  # pytest would take the name for a test

    def __init__(
        self,
        records: TestRecords,
        dataset: EvaluationSet,
        files: PredictionFiles,
        colors: np.ndarray,
        ignore_label: int,
    ) -> None:
        self.records = records
        self.dataset = dataset
        self.files = files
        self.colors = np.asarray(colors, np.uint8)
        self.ignore_label = ignore_label

    def read(self, index: int) -> Shown | None:
        """An image by its place in the list; None where its prediction was not saved."""
        if not self.records.facts.get("predictions", True):
            return None
        sample = self.dataset[index]
        if not isinstance(sample, Sample) or sample.label is None:
            return None
        try:
            prediction = self.files.read(sample.name)
        except DataError:
            return None
        if prediction.shape != sample.label.shape:
            return None
        right = sum(row[2] for row in self.records.images[index].counts if row[0] == row[1])
        hits = (prediction == sample.label) & (sample.label != self.ignore_label)
        if int(hits.sum()) != right:
            return None
        return Shown(as_rgb(sample.image), sample.label, prediction)

    def thumbnail(self, shown: Shown) -> str:
        """The image under the colours of its prediction."""
        image = shrunk(shown.image, THUMBNAIL)
        prediction = shrunk(shown.prediction, THUMBNAIL, exact=True)
        return jpeg(overlay(image, prediction, self.colors), quality=60)

    def layers(self, shown: Shown) -> list[str]:
        """One data URI for each of `LAYERS`."""
        label, prediction = (
            shrunk(part, FULL, exact=True) for part in (shown.label, shown.prediction)
        )
        return [
            jpeg(shrunk(shown.image, FULL)),
            palette_png(label, self.colors),
            palette_png(prediction, self.colors),
            palette_png(errors_of(label, prediction, self.ignore_label), ERRORS),
        ]

    def crop(self, shown: Shown, box: Sequence[int]) -> np.ndarray:
        """(h, w, 3): the region (top, left, bottom, right) with some of its surroundings."""
        top, left, bottom, right = box
        margin = max(12, (bottom - top) // 2, (right - left) // 2)
        y, x = max(0, top - margin), max(0, left - margin)
        part = shown.image[y : bottom + margin, x : right + margin].copy()
        factor = CROP / max(part.shape[:2])
        part = cv2.resize(part, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        corners = ((left - x, top - y), (right - x, bottom - y))
        scaled = [tuple(int(value * factor) for value in corner) for corner in corners]
        cv2.rectangle(part, *scaled, WRONG, 2)
        return part


def errors_of(label: np.ndarray, prediction: np.ndarray, ignore_label: int) -> np.ndarray:
    """(H, W) uint8 indices of `ERRORS`: 0 where the prediction is wrong, 1 right, 2 unlabelled."""
    picture = (label == prediction).astype(np.uint8)
    picture[label == ignore_label] = 2
    return picture


def viridis(share: np.ndarray) -> np.ndarray:
    """(H, W) of 0..1 -> (H, W, 3) RGB."""
    colored = cv2.applyColorMap((share * 255).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(colored, cv2.COLOR_BGR2RGB)


def unique(indices: Iterable[int]) -> list[int]:
    """The first occurrence of each, in order."""
    return list(dict.fromkeys(indices))
