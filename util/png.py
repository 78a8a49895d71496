"""Optional: faster reading of large PNG files with ISA-L (`pip install 'stripseg[fast-png]'`).

ISA-L inflates three times as fast as the zlib that OpenCV is built with, which is where most of the
time of reading a photograph as PNG goes. OpenCV still reverses the filters. Without the package
isal `with_stored_data` returns its argument, and OpenCV does all the work. Training from a packed
copy (DATA.packed) reads no PNG file and needs none of this.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise

try:
    from isal import isal_zlib
except ImportError:  # the extra is not installed
    isal_zlib = None

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
LARGE_PNG = 2**18  # bytes of a file; smaller ones are not worth the detour
LARGEST = 2**30  # bytes of image data
LARGEST_WINDOW = 7  # in the first byte of zlib's header
STORED = 2**16 - 1  # bytes of a stored block, at most


def with_stored_data(content: bytes) -> bytes:
    """The same PNG with its image data stored, not compressed.

    Other files, interlaced ones and all in which anything is wrong come back as they are, for the
    decoder to judge.
    """
    if isal_zlib is None or not content.startswith(SIGNATURE):
        return content
    try:
        return stored(content)
    except (ValueError, IndexError, struct.error, isal_zlib.error):
        return content


def stored(content: bytes) -> bytes:
    """Raises what `with_stored_data` catches where the file is not as it must be."""
    chunks = list(chunks_of(content))
    places = [place for place, (kind, _) in enumerate(chunks) if kind == b"IDAT"]
    if not places or any(later != former + 1 for former, later in pairwise(places)):
        raise ValueError("no image data, or with something in between")
    data = b"".join(chunks[place][1] for place in places)
    if data[0] >> 4 > LARGEST_WINDOW:
        raise ValueError("a window that zlib refuses and ISA-L does not")
    inflate = isal_zlib.decompressobj()
    size = data_size(chunks[0])
    pixels = inflate.decompress(data, size + 1)
    if len(pixels) != size or not inflate.eof or inflate.unused_data:
        raise ValueError("more or less image data than the header says")
    chunks[places[0] : places[-1] + 1] = [(b"IDAT", uncompressed(pixels))]
    parts = [SIGNATURE]
    for kind, body in chunks:
        check = isal_zlib.crc32(body, isal_zlib.crc32(kind))
        parts += [struct.pack(">I4s", len(body), kind), body, struct.pack(">I", check)]
    return b"".join(parts)


def chunks_of(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, body) of each chunk up to the end mark, their checksums verified."""
    place, kind, view = len(SIGNATURE), b"", memoryview(content)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place)
        body = view[place + 8 : place + 8 + length]
        (check,) = struct.unpack_from(">I", content, place + 8 + length)
        if check != isal_zlib.crc32(body, isal_zlib.crc32(kind)):
            raise ValueError("a checksum is wrong")
        yield kind, body
        place += 12 + length


def data_size(header: tuple[bytes, memoryview]) -> int:
    """Bytes of the image data, filter marks included, by the first chunk."""
    kind, body = header
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", body)
    size = height * (1 + (width * depth * SAMPLES.get(color, 0) + 7) // 8)
    if kind != b"IHDR" or color not in SAMPLES or interlaced or size > LARGEST:
        raise ValueError("an unusual header")
    return size


def uncompressed(data: bytes) -> bytes:
    """`data` as a zlib stream of stored blocks."""
    parts, view = [b"\x78\x01"], memoryview(data)
    for start in range(0, len(data), STORED):
        block = view[start : start + STORED]
        last = start + STORED >= len(data)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack(">I", isal_zlib.adler32(data)))
    return b"".join(parts)
