"""How much a .mat file holds, found out before a reader asks for the memory."""

import math
import struct
import zlib
from pathlib import Path

from ..config.limits import MATLAB_BYTES, MATLAB_PARTS

HEADER = 128  # bytes; its last two tell the byte order
COMPRESSED = 15  # miCOMPRESSED, the only kind of element that is larger inside than outside
MATRIX = 14  # miMATRIX: an array, whose parts follow its tag
CELL, STRUCT, OBJECT, CHAR, OPAQUE = 1, 2, 3, 4, 17  # classes of arrays
STEP = 2**20


def refuse_bomb(path: Path) -> None:
    """Inflate a file of version 5 to 7.2 and look at the sizes that its arrays claim to have.

    Raises:
        ValueError: it holds more than `MATLAB_BYTES`, or more than `MATLAB_PARTS`.
        zlib.error, struct.error: it is damaged.
    """
    total = parts = 0
    with open(path, "rb") as file:
        order = "<" if file.read(HEADER)[-2:] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            content = file.read(min(size, MATLAB_BYTES + 1))
            if kind == COMPRESSED:
                content = inflated(content, MATLAB_BYTES - total)
            else:
                content = tag + content
            total += len(content)
            if total > MATLAB_BYTES:
                raise ValueError(f"holds more than {MATLAB_BYTES} bytes")
            parts += parts_of(content, order, MATLAB_PARTS - parts)


def inflated(data: bytes, largest: int) -> bytes:
    """The content of a compressed element, which ends soon after `largest` bytes."""
    content, inflate = bytearray(), zlib.decompressobj()
    while data and not inflate.eof and len(content) <= largest:
        content += inflate.decompress(data, STEP)
        data = inflate.unconsumed_tail
    return bytes(content)


def parts_of(content: bytes, order: str, most: int) -> int:
    """How many elements, cells and fields there are, by the sizes that arrays claim.

    scipy makes an object for each, and goes one call deeper for each cell in a cell. It goes
    through the elements in the same order, so that no array is hidden from this.

    Raises:
        ValueError: they are more than `most`, or an array claims more characters than bytes.
    """
    parts = at = 0
    while at + 8 <= len(content):
        kind, start, size, at = element(content, at, order)
        parts += 1
        if kind == MATRIX and size == 0:  # an empty array
            at = start
        elif kind == MATRIX:
            count, kind, at = claimed(content, start, order)
            if kind in (CELL, STRUCT, OBJECT):
                parts += count
            elif kind == CHAR and count > len(content):
                raise ValueError(f"claims to hold {count} characters in {len(content)} bytes")
        if parts > most:
            raise ValueError(f"claims to hold more than {MATLAB_PARTS} elements, cells and fields")
    return parts


def claimed(content: bytes, at: int, order: str) -> tuple[int, int, int]:
    """(values or fields that the array at `at` claims to have, its class, where they are)."""
    kind = struct.unpack_from(f"{order}I", content, at + 8)[0] & 0xFF
    at += 16
    if kind == OPAQUE:  # of one value; what follows are elements
        return 1, kind, at
    _, start, size, at = element(content, at, order)
    count = math.prod(struct.unpack_from(f"{order}{size // 4}I", content, start))
    for _ in range(2 if kind == OBJECT else 1):  # its name, the name of its class
        at = element(content, at, order)[3]
    if kind in (STRUCT, OBJECT):
        _, start, _, at = element(content, at, order)
        (length,) = struct.unpack_from(f"{order}i", content, start)
        _, _, size, at = element(content, at, order)
        if length < 1:
            raise ValueError(f"a struct's names have {length} characters")
        count = max(count, 1) * max(size // length, 1)
    return count, kind, at


def element(content: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """(kind, start of its data, their bytes, start of the next) of the element at `at`."""
    kind, size = struct.unpack_from(f"{order}II", content, at)
    if kind >> 16:  # up to four bytes inside the tag
        return kind & 0xFFFF, at + 4, kind >> 16, at + 8
    return kind, at + 8, size, at + 8 + size + -size % 8
