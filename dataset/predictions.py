"""Where the predictions of a test lie."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..util.images import colorize, read_label, write_png
from .submission import SubmissionWriter


class PredictionFiles:
    """Where predictions lie: `gray/` (class indices) and `color/` below the result folder, and
    what a benchmark's server wants of them in `submission/`.

    Files are named like the images. Where two images of different folders share a name, the
    folders are kept.
    """

    def __init__(self, folder: Path, names: Sequence[str], colors: np.ndarray) -> None:
        self.gray, self.color = folder / "gray", folder / "color"
        self.colors = colors
        self.submission: SubmissionWriter | None = None
        stems = [PurePosixPath(name.replace(os.sep, "/")).with_suffix("") for name in names]
        flat = len({stem.name for stem in stems}) == len(stems)
        self.relative = {
            name: f"{stem.name if flat else str(stem).lstrip('/')}.png"
            for name, stem in zip(names, stems, strict=True)
        }

    def save(self, name: str, prediction: np.ndarray) -> None:
        """Write the (H, W) uint8 prediction of an image."""
        write_png(self.gray / self.relative[name], prediction)
        write_png(self.color / self.relative[name], colorize(prediction, self.colors))
        if self.submission is not None:
            self.submission.save(name, prediction)

    def read(self, name: str) -> np.ndarray:
        return read_label(self.gray / self.relative[name])
