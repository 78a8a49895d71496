"""Regions that are stored as pixels: run lengths of three kinds, small PNGs, pictures of ids."""

import base64
import binascii
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...config.limits import PIXELS
from ...util.images import open_picture
from .model import Canvas, Patch

NOT_BASE64 = "its picture is not base64 text; export it again"


@dataclass(frozen=True)
class Runs:
    """Alternating lengths of pixels outside and inside, of a rectangle (height, width) at `top`
    and `left`; `by_columns` as COCO counts, else by rows as CVAT does."""

    counts: np.ndarray
    height: int
    width: int
    top: int = 0
    left: int = 0
    by_columns: bool = True

    def draw(self, canvas: Canvas) -> Patch:
        area = self.height * self.width
        if self.counts.min(initial=0) < 0 or int(self.counts.sum()) != area:
            raise ValueError(
                f"its run lengths add up to {int(self.counts.sum())} pixels and not to the "
                f"{self.width}x{self.height} of its mask; export it again"
            )
        odd = np.arange(len(self.counts)) % 2 == 1
        flat = np.repeat(odd, self.counts)
        shape = (self.width, self.height) if self.by_columns else (self.height, self.width)
        inside = flat.reshape(shape).T if self.by_columns else flat.reshape(shape)
        return placed(inside, self.top, self.left, canvas)


@dataclass(frozen=True)
class Bitmap:
    """A small picture as base64 of a PNG (or of one packed by zlib), its corner at (left, top)."""

    text: str
    top: int
    left: int

    def draw(self, canvas: Canvas) -> Patch:
        try:
            content = base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(NOT_BASE64) from None
        if not content.startswith(b"\x89PNG"):
            content = inflated(content)
        try:
            with open_picture(io.BytesIO(content)) as picture:
                check_area(picture.height, picture.width)
                transparent = "A" in picture.getbands() or "transparency" in picture.info
                grey = (
                    picture.convert("RGBA").getchannel("A") if transparent else picture.convert("L")
                )
                inside = np.array(grey) > 0
        except Exception as error:  # decoders raise whatever they like on damaged bytes
            raise ValueError(f"its picture cannot be decoded ({error}); export it again") from None
        return placed(inside, self.top, self.left, canvas)


@dataclass(frozen=True)
class Brush:
    """Label Studio's brush: bytes of a bit code of the picture's RGBA, whose alpha is the mask."""

    code: bytes
    height: int
    width: int

    def draw(self, canvas: Canvas) -> Patch:
        check_area(self.height, self.width)
        alpha = brush_values(np.frombuffer(self.code, np.uint8), self.height * self.width * 4)
        return placed(alpha.reshape(self.height, self.width, 4)[..., 3] > 0, 0, 0, canvas)


@dataclass(frozen=True)
class IdPixels:
    """The pixels of one id (red + 256 green + 65536 blue) in a PNG, as COCO panoptic has them.

    `changed` is the time of the file's last change, so that another content is another region.
    """

    path: Path
    id: int
    changed: int

    def draw(self, canvas: Canvas) -> Patch:
        ids = read_ids(self.path, self.changed)
        if ids.shape != (canvas.height, canvas.width):
            raise ValueError(
                f"{self.path} is {ids.shape[1]}x{ids.shape[0]} and the picture "
                f"{canvas.width}x{canvas.height} pixels (width x height)"
            )
        return Patch(0, 0, ids == self.id)


def check_area(height: int, width: int) -> None:
    """Raises ValueError for a mask that is larger than any image may be."""
    if not (0 < height <= PIXELS and 0 < width <= PIXELS and height * width <= PIXELS):
        raise ValueError(f"its mask claims {width}x{height} pixels; a picture has at most {PIXELS}")


def placed(inside: np.ndarray, top: int, left: int, canvas: Canvas) -> Patch:
    """A mask at its place, cut to the canvas."""
    first, column = min(max(top, 0), canvas.height), min(max(left, 0), canvas.width)
    cut = inside[max(-top, 0) :, max(-left, 0) :]
    return Patch(first, column, cut[: canvas.height - first, : canvas.width - column])


def runs_of(counts: object, height: int, width: int) -> Runs:
    """COCO's run lengths of a whole picture: a list of numbers, or its compressed text.

    Raises:
        ValueError: the text is damaged, or the mask absurdly large.
    """
    check_area(height, width)
    if isinstance(counts, bytes | str):
        numbers = np.array(decompressed(counts), np.int64)
    elif isinstance(counts, Sequence):
        numbers = np.array(counts)
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            raise ValueError("its run lengths are not whole numbers; export it again")
        numbers = numbers.astype(np.int64)
    else:
        raise ValueError("its 'counts' are neither numbers nor text; export it again")
    return Runs(np.clip(numbers, -1, PIXELS + 1), height, width)


def decompressed(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths: five bits per character, from the third run on differences.

    Read here and not by pycocotools, which leaves pixels undefined where runs are missing.

    Raises:
        ValueError: a character that does not occur, or an end within a number.
    """
    content = text.encode("ascii", "replace") if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for byte in content:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 35:
            raise ValueError("its compressed run lengths are damaged; export it again")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths end within a number; export it again")
    return runs


def inflated(content: bytes) -> bytes:
    """The PNG that zlib has packed.

    Raises:
        ValueError: the bytes are something else, or far too many.
    """
    unpacker = zlib.decompressobj()
    try:
        png = unpacker.decompress(content, PIXELS)
    except zlib.error:
        raise ValueError(
            "its picture is neither a PNG nor packed by zlib; export it again"
        ) from None
    if unpacker.unconsumed_tail:
        raise ValueError(f"its picture has more than {PIXELS} bytes; export it again")
    return png


def brush_values(code: np.ndarray, expected: int) -> np.ndarray:
    """The (expected,) uint8 values of Label Studio's bit code.

    32 bits: how many values; 5: bits of a value, less one; 4 times 4: bits of a length, less one.
    Then pieces: one bit (repeated?), two bits (which of the four), the length less one, and one
    value or all of them.

    Raises:
        ValueError: another number of values, or an early end.
    """
    bits = np.unpackbits(code)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise ValueError("its brush code ends early; export it again")
        place += count
        return int("".join(map(str, bits[place - count : place])), 2)

    count, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if count != expected or word != 8:
        raise ValueError(
            f"its brush code holds {count} values of {word} bits and the picture needs {expected} "
            "of 8; export it again"
        )
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        repeated = take(1)
        length = take(lengths[take(2)]) + 1
        if done + length > count:
            raise ValueError("its brush code holds more values than it says; export it again")
        if repeated:
            values[done : done + length] = take(word)
        elif place + length * word > len(bits):
            raise ValueError("its brush code ends early; export it again")
        else:
            values[done : done + length] = np.packbits(bits[place : place + length * word])
            place += length * word
        done += length
    return values


@lru_cache(maxsize=1)
def read_ids(path: Path, changed: int) -> np.ndarray:
    """(H, W) int32 ids of a panoptic PNG; the last one read is kept for its other segments.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with open_picture(path) as picture:
            check_area(picture.height, picture.width)
            if picture.mode in ("L", "P", "I", "I;16"):
                return np.array(picture, np.int32)
            pixels = np.array(picture.convert("RGB"), np.int32)
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise ValueError(f"{path} cannot be decoded ({error}); export it again") from None
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
