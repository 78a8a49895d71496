"""python -m tests.faults.bit_flips: of how many damaged pictures the damage goes unnoticed.

A bit of the picture data is flipped, 30 times per format. A format without checksums cannot tell
other values from damaged ones; no reader can.
"""

import io
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from stripseg.config.errors import DataError
from stripseg.util.images import read_image

FLIPS = 30
FORMATS: dict[str, dict] = {
    "PNG": {"format": "PNG"},
    "TIFF, deflate": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    "TIFF, LZW": {"format": "TIFF", "compression": "tiff_lzw"},
    "TIFF, not compressed": {"format": "TIFF"},
    "JPEG": {"format": "JPEG", "quality": 90},
    "WebP, lossless": {"format": "WEBP", "lossless": True},
    "WebP, lossy": {"format": "WEBP", "quality": 90},
    "BMP": {"format": "BMP"},
}


def main() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (120, 160, 3), np.uint8)
    picture = Image.fromarray(cv2.GaussianBlur(noise, (9, 9), 0))
    print("format, refused, read without a change, read with other pixels")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in FORMATS.items():
            buffer = io.BytesIO()
            picture.save(buffer, **options)
            found = outcomes(buffer.getvalue(), Path(folder, "a"), rng)
            print(f"{name}: {found['refused']}, {found['equal']}, {found['other']}", flush=True)


def outcomes(content: bytes, path: Path, rng: np.random.Generator) -> Counter[str]:
    """How often a file with one flipped bit is refused, read as before, or read as another."""
    path.write_bytes(content)
    before = read_image(path)
    found: Counter[str] = Counter()
    for place in rng.choice(data_of(content), FLIPS):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found["equal" if np.array_equal(read_image(path), before) else "other"] += 1
        except DataError:
            found["refused"] += 1
    return found


def data_of(content: bytes) -> range:
    """The places of the compressed pixels in a file."""
    if content.startswith(b"\x89PNG"):
        return range(content.index(b"IDAT") + 4, content.rindex(b"IEND") - 8)
    if content[:2] == b"II":
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            return range(page.dataoffsets[0], page.dataoffsets[-1] + page.databytecounts[-1])
    if content[:2] == b"\xff\xd8":
        return range(content.rindex(b"\xff\xda") + 14, len(content) - 2)
    if content[:2] == b"BM":
        return range(int.from_bytes(content[10:14], "little"), len(content))
    return range(30, len(content))  # WebP: container and the picture's own header come first


if __name__ == "__main__":
    main()
