"""Pictures in and out: strict reading, atomic writing, colours and overlays."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from ..config.errors import DataError
from ..config.limits import PIXELS
from .files import atomic_write
from .png import with_stored_data

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# what Pillow may open: the suffixes above, and GIF and PPM of older label sets. It knows forty more
# formats, and one of them, EPS, starts Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and big, of either byte order
GREY_8_BIT = (
    b"\x08\x00"  # depth and colour type in a PNG's header; OpenCV loses a palette's indices
)
DECODES_TO_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")  # OpenCV 4.11 and later: without a second pass


def open_picture(source: Path | BinaryIO) -> Image.Image:
    """Open a file of `FORMATS`, whatever its suffix says; Pillow's only entrance.

    Raises:
        OSError: it is of none of them, or damaged.
    """
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:  # whose message is the address of a buffer
        raise OSError(f"not a picture that can be read: {', '.join(FORMATS)}") from None


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """(H, W, channels) uint8; of 16-bit files the high byte.

    Three channels are RGB and one is grey, of any file OpenCV reads and turned upright as its EXIF
    entry says. Other numbers must be the file's own: RGBA, or the bands of a TIFF in their order.

    Raises:
        DataError: the file is missing, no image, ends early, or has another number of channels.
    """
    content = _read_bytes(path, "image")
    if channels not in (1, 3):
        return _read_channels(path, content, channels)
    direct = DECODES_TO_RGB and content.startswith((b"\x89PNG", b"\xff\xd8"))
    color = cv2.IMREAD_COLOR_RGB if direct else cv2.IMREAD_COLOR
    flag = color if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = _decode(path, content, flag, "an image")
    if channels == 1:
        return image[..., None]
    return image if direct else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode(path: Path, content: bytes, flag: int, what: str) -> np.ndarray:
    """OpenCV's reading of a file's content."""
    try:
        image = cv2.imdecode(np.frombuffer(with_stored_data(content), np.uint8), flag)
    except cv2.error as error:  # a picture of absurd size
        raise DataError(f"{path}: cannot be decoded as {what} ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: cannot be decoded as {what}; replace or remove it")
    return image


def _read_channels(path: Path, content: bytes, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 of a TIFF with its bands, planar or interleaved, or of RGBA."""
    try:
        if content[:4] in TIFF_MARKS:
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                if file.series[0].size > PIXELS:
                    raise ValueError(f"claims to hold {file.series[0].size} values")
                image, axes = file.series[0].asarray(), file.series[0].axes
            # the axis that the file calls samples or channels, else the last or first that fits
            likely = [axes.find("S"), axes.find("C"), image.ndim - 1, 0]
            fitting = [a for a in likely if a >= 0 and image.shape[a] == channels]
            if image.ndim == 3 and fitting:
                image = np.moveaxis(image, fitting[0], -1)
        else:
            image = np.atleast_3d(np.array(open_picture(io.BytesIO(content))))
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error
    if image.ndim != 3 or image.shape[2] != channels:
        raise DataError(
            f"{path}: is of shape {image.shape} (height, width, channels), and DATA.in_channels is "
            f"{channels}"
        )
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{path}: has values of type {image.dtype}; store 8 or 16 bits a channel")
    return np.ascontiguousarray(image)


def stored_channels(path: Path) -> int:
    """How many channels an image file has, without decoding it; a palette counts as three.

    Raises:
        DataError: the file is missing or no image.
    """
    content = _read_bytes(path, "image")
    try:
        if content[:4] in TIFF_MARKS:
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                return int(file.pages[0].samplesperpixel)
        with open_picture(io.BytesIO(content)) as picture:
            return 3 if picture.mode == "P" else len(picture.getbands())
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error


def stored_pixels(path: Path) -> int:
    """Height times width of an image file by its header, without reading the rest.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with open(path, "rb") as file:
            mark = file.read(4)
        if mark in TIFF_MARKS:
            with tifffile.TiffFile(path) as file:
                page = file.pages[0]
                return int(page.imagelength) * int(page.imagewidth)
        with open_picture(path) as picture:
            return picture.width * picture.height
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture to look at: the first three channels, or one grey one, as (H, W, 3)."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def read_label(path: Path) -> np.ndarray:
    """(H, W) integer values as stored: grey values, or the indices of a palette PNG.

    Raises:
        DataError: the file is missing, damaged, or a colour picture.
    """
    content = _read_bytes(path, "label")
    if content.startswith(b"\x89PNG") and content[24:26] == GREY_8_BIT:
        # strictly: Pillow fills some of what it cannot read with zeros
        grey = _decode(path, content, cv2.IMREAD_UNCHANGED, "a label image")
        if grey.ndim == 2:
            return grey
    try:
        picture = open_picture(io.BytesIO(content))
        label = np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded as a label image ({error})") from error
    if picture.mode == "1":
        label = label.astype(np.uint8)
    if label.ndim != 2:
        raise DataError(
            f"{path}: is a colour picture (mode {picture.mode}); a label file holds one class "
            "index per pixel (8-bit grey or palette PNG)"
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
    if _is_cut(content):
        raise DataError(f"{path}: {what} file is truncated ({len(content)} bytes); copy it again")
    return content


def _is_cut(content: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end mark, searched from the end of the file."""
    if content[:2] == b"\xff\xd8":
        # In JPEG data FF D9 ends an image and FF DA starts a scan; neither occurs inside a scan.
        end = content.rfind(b"\xff\xd9")
        return end < 0 or content.find(b"\xff\xda", end) >= 0
    return content[:4] == b"\x89PNG" and content.rfind(b"IEND") < 0


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
    """The colours of `prediction` laid over `image` of any channels: (H, W, 3) uint8."""
    blended = as_rgb(image) * (1 - opacity) + colorize(prediction, colors) * opacity
    return blended.round().astype(np.uint8)
