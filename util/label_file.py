"""A label file, read once: its values as they are stored, and what its header says of them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from ..config.errors import DataError
from ..config.limits import PIXELS
from .images import (
    TIFF_MARKS,
    decode_strictly,
    open_picture,
    pages_of,
    read_bytes,
    refuse_damaged_parts,
)

PACKED_GREY = {b"\x02\x00": 85, b"\x04\x00": 17}  # depth and colour type of a PNG
GREY_8_BIT = (
    b"\x08\x00"  # depth and colour type in a PNG's header; OpenCV loses a palette's indices
)
GDAL_NODATA = 42113  # a tag of TIFF
FILMS = (".gif", ".webp", ".png")  # formats that may hold several pictures


def read_label(path: Path) -> np.ndarray:
    """(H, W) integer values as stored: grey values, or the indices of a palette PNG.

    Raises:
        DataError: the file is missing, damaged, or a colour picture.
    """
    return LabelFile(path).values()


class LabelFile:
    """The content of a label file; each decoder opens it once.

    Raises:
        DataError: it is missing, empty, cut, or a TIFF with damaged parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_bytes(path, "label")
        self.tiff: tifffile.TiffFile | None = None
        if self.content[:4] in TIFF_MARKS:
            with self.decoding():
                self.tiff = tifffile.TiffFile(io.BytesIO(self.content))
                refuse_damaged_parts(self.tiff.pages[0], self.content)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """What a decoder raises becomes a DataError that names the file."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # decoders raise whatever they like on damaged bytes
            raise DataError(f"{self.path}: cannot be decoded as a label image ({error})") from error

    @cached_property
    def picture(self) -> Image.Image:
        """Pillow's view of the file, not decoded yet."""
        with self.decoding():
            return open_picture(io.BytesIO(self.content))

    @cached_property
    def is_wide(self) -> bool:
        """Return whether it is a TIFF of numbers that Pillow has no mode for.

        These are of 64 bits, or floats of 16.
        """
        kind = self.tiff and self.tiff.pages[0].dtype
        return kind is not None and (kind.itemsize == 8 or kind == np.float16)

    def values(self) -> np.ndarray:
        """(H, W) integers: grey values, or a palette's indices.

        Raises:
            DataError: it is a colour picture, is damaged, or holds numbers that are not whole.
        """
        if self.content.startswith(b"\x89PNG") and self.content[24:26] == GREY_8_BIT:
            # strictly: Pillow fills some of what it cannot read with zeros
            grey = decode_strictly(
                self.path, self.content, cv2.IMREAD_UNCHANGED, what="a label image"
            )
            if grey.ndim == 2:
                return grey
        return self.whole(self.wide_values() if self.is_wide else self.values_of_picture())

    def values_of_picture(self) -> np.ndarray:
        """(H, W) as Pillow reads them, corrected where it changes what is stored."""
        picture = self.picture
        with self.decoding():
            label = np.array(picture)
        if picture.mode == "1":
            label = label.astype(np.uint8)
        if self.content.startswith(b"\x89PNG") and self.content[24:26] in PACKED_GREY:
            label = label // PACKED_GREY[self.content[24:26]]  # 2 and 4 bits stretched to 0..255
        inverted = {"1": 1, "L": 255}.get(picture.mode)  # what Pillow takes from: white is zero
        if inverted and self.tiff is not None and self.tiff.pages[0].photometric == 0:
            label = inverted - label
        if label.ndim != 2:
            raise DataError(
                f"{self.path}: is a colour picture (mode {picture.mode}); a label file holds one "
                "class index per pixel (8-bit grey or palette PNG). `stripseg prepare custom` "
                "turns colours into indices"
            )
        return label

    def wide_values(self) -> np.ndarray:
        """(H, W) of a TIFF of 64-bit numbers or 16-bit floats."""
        page = self.tiff.pages[0]
        with self.decoding():
            if page.size > PIXELS:
                raise ValueError(f"claims to hold {page.size} values")
            label = page.asarray()
        if label.ndim != 2:
            bands = label.shape[2:]
            raise DataError(f"{self.path}: has {bands} bands; a label has one index per pixel")
        return label

    def whole(self, label: np.ndarray) -> np.ndarray:
        """Floats as integers; DataError where they are not whole."""
        if label.dtype.kind != "f":
            return label
        if not np.array_equal(label, np.round(label)):
            raise DataError(
                f"{self.path}: holds values that are not whole ({label.dtype}); a label file holds "
                "one class index per pixel"
            )
        return label.astype(np.int64)

    def palette(self, values: np.ndarray) -> dict[int, int]:
        """The palette's colours, 0xRRGGBB, of these indices; empty for a file without one."""
        if self.is_wide or self.picture.mode != "P":
            return {}
        colors = np.array(self.picture.getpalette("RGB"), np.int64).reshape(-1, 3)
        packed = colors @ np.array([1 << 16, 1 << 8, 1])
        return {int(value): int(packed[value]) for value in values if value < len(packed)}

    def nodata(self) -> float | None:
        """The value that a GeoTIFF declares to stand for no data."""
        tag = self.tiff.pages[0].tags.get(GDAL_NODATA) if self.tiff is not None else None
        try:
            return None if tag is None else float(tag.value)
        except (TypeError, ValueError):
            return None

    def lossy_format(self) -> str | None:
        """The format of a file that changes values, by its content; None of one that keeps them."""
        if self.content.startswith(b"\xff\xd8"):
            return "JPEG"
        if self.content[:4] == b"RIFF" and self.content[8:12] == b"WEBP":
            kind = self.content[12:16]
            extended = kind == b"VP8X" and b"VP8 " in self.content[16:]
            return "lossy WebP" if extended or kind == b"VP8 " else None
        return None

    def refuse_pages(self) -> None:
        """Raises DataError for a file of several pages of one size, of which one would be read."""
        if self.tiff is not None or self.path.suffix.lower() in FILMS:
            with self.decoding():
                count = pages_of(self.tiff if self.tiff is not None else self.picture)
            refuse_several(self.path, count)


def refuse_several(path: Path, count: int) -> None:
    """Raises DataError where an image or label file has more than one page."""
    if count > 1:
        raise DataError(
            f"{path}: has {count} pages, and only the first would be read; save each as a file of "
            "its own"
        )
