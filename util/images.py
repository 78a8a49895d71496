"""Pictures in and out: strict reading, atomic writing, colours and overlays."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..config.atomic import atomic_write
from ..config.errors import DataError

cv2.setNumThreads(0)  # loader workers are the parallelism; OpenCV's own threads fight them

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of any file OpenCV reads, turned upright as its EXIF entry says.

    Raises:
        DataError: the file is missing, no image, or ends early.
    """
    content = _read_bytes(path, "image")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: cannot be decoded as an image; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """(H, W) integer values as stored: grey values, or the indices of a palette PNG.

    Raises:
        DataError: the file is missing, damaged, or a colour picture.
    """
    content = _read_bytes(path, "label")
    try:
        picture = Image.open(io.BytesIO(content))
        label = np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as a label image ({error})") from error
    if picture.mode == "1":
        label = label.astype(np.uint8)
    if label.ndim != 2:
        raise DataError(
            f"{path}: is a colour picture (mode {picture.mode}); a label file holds one class "
            "index a pixel (8-bit grey or palette PNG)"
        )
    return label


def _read_bytes(path: Path, what: str) -> bytes:
    """The content of an image file that is whole: JPEG and PNG carry an end mark."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: {what} file does not exist; check DATA.data_root and the list"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {what} file cannot be read ({error.strerror})") from error
    if not content:
        raise DataError(f"{path}: {what} file is empty")
    # In JPEG data FF D9 ends an image and FF DA starts a scan; neither occurs inside a scan.
    end, scan = content.rfind(b"\xff\xd9"), content.rfind(b"\xff\xda")
    cut_jpeg = content[:2] == b"\xff\xd8" and end <= scan
    cut_png = content[:4] == b"\x89PNG" and content.rfind(b"IEND") < 0
    if cut_jpeg or cut_png:
        raise DataError(f"{path}: {what} file is truncated ({len(content)} bytes); copy it again")
    return content


def write_png(
    path: Path, picture: np.ndarray, colors: Sequence[Sequence[int]] | None = None
) -> None:
    """Write (H, W) uint8 or (H, W, 3) RGB as PNG, whole or not at all.

    `colors` give a (H, W) picture a palette.
    """
    image = Image.fromarray(picture)
    if colors is not None:
        palette = np.zeros(
            (256, 3), np.uint8
        )  # a shorter one would cut larger values to fewer bits
        palette[: len(colors)] = colors
        image.putpalette(palette.flatten().tolist())
    with atomic_write(path) as file:
        image.save(file, format="PNG")


def colorize(prediction: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """(H, W) classes -> (H, W, 3) RGB; values beyond the colours (ignored pixels) are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    return table[prediction]


def overlay(image: np.ndarray, prediction: np.ndarray, colors: np.ndarray, *, opacity: float = 0.5):
    """The colours of `prediction` laid over `image`: (H, W, 3) uint8."""
    blended = image * (1 - opacity) + colorize(prediction, colors) * opacity
    return blended.round().astype(np.uint8)
