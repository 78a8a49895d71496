"""Images in and out: strict reading, atomic writing, normalisation, colours and overlays."""

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..config.errors import DataError
from ..config.limits import PIXELS
from .files import atomic_write
from .png import LARGE_PNG, with_stored_data

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# what Pillow may open: the suffixes above, and GIF and PPM of older label sets. It knows forty more
# formats, and one of them, EPS, starts Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
PACKED_GREY = {b"\x02\x00": 85, b"\x04\x00": 17}  # depth and colour type of a PNG
GREY_8_BIT = (
    b"\x08\x00"  # depth and colour type in a PNG's header; OpenCV loses a palette's indices
)
GDAL_NODATA = 42113  # a tag of TIFF
ORIENTATION = 0x0112  # of EXIF
FILMS = (".gif", ".webp", ".png")  # formats that may hold several pictures
DEFLATE = (8, 32946)  # TIFF's compressions that carry a checksum
PIECE = 2**16  # compressed bytes that are checked together: what they inflate to is not kept
INFLATED = 2**20  # bytes, at most, that are inflated at once
FILLED_UP = 2**24  # bytes: some writers fill the last strip up to the rows that they declare
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and big, of either byte order
OTHER_MARKS = (  # the first bytes of FORMATS besides TIFF and WebP
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"BM",
    b"GIF8",
    *(b"P%d" % kind for kind in range(1, 7)),
)
Image.MAX_IMAGE_PIXELS = (
    2**27
)  # Pillow refuses twice this: OpenCV's limit, set in stripseg/__init__
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


def is_known(content: bytes) -> bool:
    """Return whether a file's first bytes are those of one of `FORMATS`.

    OpenCV knows others as well (JPEG 2000, HDR, PFM, PAM, Sun raster, AVIF), each with a decoder
    that nobody asked for.
    """
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return webp or content[:4] in TIFF_MARKS or content.startswith(OTHER_MARKS)


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """(H, W, channels) uint8; of 16-bit files the high byte, which OpenCV may round.

    Three channels are RGB and one is grey, of any file of `FORMATS` and turned upright as its EXIF
    entry says. Other numbers must be the file's own: RGBA, or the bands of a TIFF in their order.

    Raises:
        DataError: the file is missing, no image, ends early, or has another number of channels.
    """
    return decode_image(_read_bytes(path, "image"), channels, origin=path)


def decode_image(content: bytes, channels: int = 3, *, origin: Path) -> np.ndarray:
    """The same for the bytes of a file; `origin` is its name, for messages."""
    path = origin
    if content[:4] in TIFF_MARKS:
        _refuse_inks(path, content)
    if channels not in (1, 3):
        return _read_channels(path, content, channels)
    if content[:4] in TIFF_MARKS:
        bands, ragged = _tiff_bands(path, content)
        if bands > 3:  # OpenCV takes a fourth band for alpha and multiplies the others by it
            return np.ascontiguousarray(_read_channels(path, content, bands)[..., :channels])
        if ragged:
            image = _read_channels(path, content, bands)
            if bands == channels:
                return image
            if bands == 3:
                return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
            return np.repeat(image[..., :1], channels, axis=2)
    direct = DECODES_TO_RGB and content.startswith((b"\x89PNG", b"\xff\xd8"))
    color = cv2.IMREAD_COLOR_RGB if direct else cv2.IMREAD_COLOR
    flag = color if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = _decode(path, content, flag, what="an image")
    if channels == 1:
        return image[..., None]
    return image if direct else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode(path: Path, content: bytes, flag: int, *, what: str) -> np.ndarray:
    """OpenCV's reading of a file's content, where it is of one of `FORMATS`."""
    if not is_known(content):
        raise DataError(
            f"{path}: cannot be decoded as {what}: it is none of {', '.join(FORMATS)}, whatever "
            "its name says; replace or remove it"
        )
    if len(content) >= LARGE_PNG:
        content = with_stored_data(content)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error as error:  # a picture of absurd size
        raise DataError(f"{path}: cannot be decoded as {what} ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: cannot be decoded as {what}; replace or remove it")
    return image


def _refuse_inks(path: Path, content: bytes) -> None:
    """Raises DataError for a TIFF of CMYK, whose bands are ink, not light."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            inks = page.photometric == tifffile.PHOTOMETRIC.SEPARATED
            cmyk = inks and page.samplesperpixel == 4 and page.tags.valueof("InkSet", 1) == 1
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error
    if cmyk:
        raise DataError(f"{path}: holds CMYK, inks for print; save it as RGB")


def _tiff_bands(path: Path, content: bytes) -> tuple[int, bool]:
    """The bands of a TIFF, and whether it has 16 bits and tiles that reach beyond its sides.

    Of such tiles OpenCV 5.0 reads pixels of other places.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            kind, bands = page.dtype, int(page.samplesperpixel)
            ragged = page.is_tiled and bool(
                page.imagelength % page.tilelength or page.imagewidth % page.tilewidth
            )
            _refuse_damaged_parts([page], content)
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error
    if kind is not None and (kind.kind not in "ub" or kind.itemsize > 2):
        raise DataError(
            f"{path}: holds numbers of type {kind}, whose range is not known; scale them to 8 or "
            "16 bits without sign"
        )
    return bands, ragged and kind is not None and kind.itemsize == 2


def _refuse_damaged_parts(
    pages: Sequence[tifffile.TiffPage | tifffile.TiffFrame], content: bytes
) -> None:
    """Raises ValueError where strips or tiles lie beyond the file's end, or fail their checksum.

    OpenCV and libtiff fill what they cannot read, and say so on a line of the terminal alone. Parts
    that share bytes, or inflate to more than their pixels, would keep every decoder busy for hours.
    """
    parts = [
        (start, size, page.keyframe)  # which has the tags that a frame shares with it
        for page in pages
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)
        if size  # none: sparse
    ]
    parts.sort(key=lambda part: part[:2])
    if any(first[0] + first[1] > second[0] for first, second in pairwise(parts)):
        raise ValueError("its strips or tiles share bytes of the file; save it again")
    for page in {page.keyframe for page in pages}:
        if page.imagewidth * page.imagelength > PIXELS:
            raise ValueError(f"claims to hold {page.imagewidth}x{page.imagelength} pixels")
    for start, size, page in parts:
        if start + size > len(content):
            raise ValueError("ends early; copy it again")
        if page.compression in DEFLATE:
            pixels = prod(page.chunks) * max(1, (page.bitspersample + 7) // 8)
            _refuse_damaged_deflate(content, start, start + size, max(2 * pixels, FILLED_UP))


def _refuse_damaged_deflate(content: bytes, start: int, end: int, most: int) -> None:
    """Raises ValueError where these bytes inflate to more than `most`, or are cut or damaged."""
    inflate = zlib.decompressobj()
    for place in range(start, end, PIECE):
        piece = content[place : min(place + PIECE, end)]
        while piece and not inflate.eof:
            most -= len(inflate.decompress(piece, INFLATED))
            piece = inflate.unconsumed_tail
            if most < 0:
                raise ValueError("its compressed data hold more than its pixels; save it again")
        if inflate.eof:
            return
    inflate.flush()  # what the last piece left over: less than a window
    if not inflate.eof:
        raise ValueError("ends within its compressed data; copy it again")


def _read_channels(path: Path, content: bytes, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 of a TIFF with its bands, planar or interleaved, or of RGBA."""
    try:
        if content[:4] in TIFF_MARKS:
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                if file.series[0].size > PIXELS:
                    raise ValueError(f"claims to hold {file.series[0].size} values")
                _refuse_damaged_parts(
                    [page for page in file.series[0].pages if page is not None], content
                )
                image, axes = file.series[0].asarray(), file.series[0].axes
            if channels == 1 and image.ndim == 2:
                image = image[..., None]
            # the axis that the file calls samples or channels, else the last or first that fits
            likely = [axes.find("S"), axes.find("C"), image.ndim - 1, 0]
            fitting = [a for a in likely if a >= 0 and image.shape[a] == channels]
            if image.ndim == 3 and fitting:
                image = np.moveaxis(image, fitting[0], -1)
        else:
            image = np.atleast_3d(np.array(open_picture(io.BytesIO(content))))
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        cure = ": pip install imagecodecs" if "imagecodecs" in str(error) else ""
        raise DataError(f"{path}: cannot be decoded as an image ({error}){cure}") from error
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


def stored_pages(path: Path) -> int:
    """Pages of a TIFF that are as large as its first and hold a whole image each; frames of a film.

    Raises:
        DataError: the TIFF is damaged. Of other files the reader tells best what is wrong.
    """
    if not path.is_file():
        return 1
    try:
        with open(path, "rb") as file:
            mark = file.read(4)
        if mark in TIFF_MARKS:
            with tifffile.TiffFile(path) as file:
                return _pages_of(file)
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error
    try:
        with open_picture(path) as picture:
            return _pages_of(picture)
    except Exception:  # its reader tells best what is wrong
        return 1


def _pages_of(file: tifffile.TiffFile | Image.Image) -> int:
    """The same of an open file."""
    if isinstance(file, Image.Image):
        return getattr(file, "n_frames", 1)
    first = file.pages[0].shape
    return sum(page.shape == first and not page.is_mask for page in file.pages)


def stored_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file by its header, without reading the rest.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with open(path, "rb") as file:
            mark = file.read(4)
        if mark in TIFF_MARKS:
            with tifffile.TiffFile(path) as file:
                page = file.pages[0]
                return int(page.imagelength), int(page.imagewidth)
        with open_picture(path) as picture:
            return picture.height, picture.width
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error


def stored_pixels(path: Path) -> int:
    """Height times width of an image file by its header.

    Raises:
        DataError: the file is missing or no image.
    """
    height, width = stored_size(path)
    return height * width


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture to look at: the first three channels, or one grey one, as (H, W, 3)."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def shrunk(picture: np.ndarray, side: int, *, exact: bool = False) -> np.ndarray:
    """(H, W, ...) with the long side at most `side`; `exact` keeps values instead of averaging."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_NEAREST_EXACT if exact else cv2.INTER_AREA
    return cv2.resize(picture, size, interpolation=how)


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
        self.content = _read_bytes(path, "label")
        self.tiff: tifffile.TiffFile | None = None
        if self.content[:4] in TIFF_MARKS:
            with self.decoding():
                self.tiff = tifffile.TiffFile(io.BytesIO(self.content))
                _refuse_damaged_parts([self.tiff.pages[0]], self.content)

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
            try:
                return open_picture(io.BytesIO(self.content))
            except OSError:
                bands = 1 if self.tiff is None else self.tiff.pages[0].samplesperpixel
                if bands > 1:
                    raise DataError(
                        f"{self.path}: has {bands} bands; a label has one index per pixel"
                    ) from None
                raise

    def orientation(self) -> int:
        """EXIF's orientation of a PNG or WebP, which is not applied to labels; else 1."""
        if b"eXIf" not in self.content and self.content[:4] != b"RIFF":
            return 1
        with self.decoding():
            value = self.picture.getexif().get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1

    @cached_property
    def is_wide(self) -> bool:
        """Return whether it is a TIFF of numbers that Pillow has no mode for.

        These are of 64 bits, or floats of 16.
        """
        kind = None if self.tiff is None else self.tiff.pages[0].dtype
        return kind is not None and (kind.itemsize == 8 or kind == np.float16)

    def values(self) -> np.ndarray:
        """(H, W) integers: grey values, or a palette's indices.

        Raises:
            DataError: it is a colour picture, is damaged, or holds numbers that are not whole.
        """
        if self.content.startswith(b"\x89PNG") and self.content[24:26] == GREY_8_BIT:
            # strictly: Pillow fills some of what it cannot read with zeros
            grey = _decode(self.path, self.content, cv2.IMREAD_UNCHANGED, what="a label image")
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
        assert self.tiff is not None, "only a TIFF is wide"
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
        if np.isnan(label).any():
            raise DataError(
                f"{self.path}: holds NaN, not a number; write a whole number in its place, such as "
                "255 for pixels that are to be ignored"
            )
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
                count = _pages_of(self.tiff if self.tiff is not None else self.picture)
            refuse_several(self.path, count)


def refuse_several(path: Path, count: int) -> None:
    """Raises DataError where an image or label file has more than one page."""
    if count > 1:
        raise DataError(
            f"{path}: has {count} pages, and only the first would be read; save each as a file of "
            "its own"
        )


def _read_bytes(path: Path, what: str) -> bytes:
    """The content of an image file that is whole: JPEG and PNG carry an end mark."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: {what} file does not exist; check the path, or DATA.data_root and the list"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {what} file cannot be read ({error.strerror})") from error
    if not content:
        raise DataError(f"{path}: {what} file is empty")
    if content.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path}: holds a pointer of Git LFS and not the {what}: `git lfs pull` fetches it"
        )
    if content[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path}: holds a web page and not the {what}; download it again")
    if _is_cut(content):
        raise DataError(f"{path}: {what} file is truncated ({len(content)} bytes); copy it again")
    return content


def _is_cut(content: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end mark, or a WebP is shorter than it says.

    The mark is searched from the end of the file.
    """
    if content[:2] == b"\xff\xd8":
        # In JPEG data FF D9 ends an image and FF DA starts a scan; neither occurs inside a scan.
        end = content.rfind(b"\xff\xd9")
        cut = end < 0 or content.find(b"\xff\xda", end) >= 0
        return cut and not _jpeg_ends(content)  # bytes may follow: a motion photo has a film there
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    return content[:4] == b"\x89PNG" and content.rfind(b"IEND") < 0


def _jpeg_ends(content: bytes) -> bool:
    """Return whether the markers of a JPEG lead to its end mark."""
    place = 2
    while (place := content.find(b"\xff", place)) >= 0 and place + 1 < len(content):
        marker = content[place + 1]
        if marker == 0xD9:
            return True
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # data, fill, restarts
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


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


class Normalization:
    """(N, C, H, W) pixels of 0..255 -> float32, minus `mean`, divided by `std`.

    Args:
        mean, std: one value per channel, in pixel units.
        device: where the images will be.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (mean, std)
        )

    def __call__(self, image: Tensor) -> Tensor:
        return (image.float() - self.mean) / self.std


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device; a GPU's copy is from pinned memory, and the host does not wait for it.

    On the CPU the tensor and the array are the same memory, where the array can be written to.
    """
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cuda":
        with suppress(RuntimeError):  # no memory left to pin: a copy that blocks the host
            tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
