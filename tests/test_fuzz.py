"""Damaged and made-up files end in the documented error, and never in another one.

`STRIPSEG_FUZZ` multiplies the number of mutations; docs/reliability.md has a long run's figures.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

from stripseg.config.errors import StripsegError
from stripseg.config.load import load_config
from stripseg.dataset.labels import choose_encoding, read_matlab_label
from stripseg.dataset.layout import read_ids
from stripseg.dataset.lists import Pair, read_list
from stripseg.dataset.preparation.match import inspect
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.images import read_image, read_label, stored_channels

CONFIG = Path(__file__).parents[1] / "config/ade20k/ade20k_pspnet50.yaml"
TIMES = int(os.environ.get("STRIPSEG_FUZZ", 1))
NOISE = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (40, 50, 3), np.uint8)
PHOTO = cv2.GaussianBlur(NOISE, (7, 7), 0)


def encoded(picture: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def bands() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.repeat(PHOTO, 2, axis=2), photometric="minisblack")
    return buffer.getvalue()


def palette() -> bytes:
    picture = Image.fromarray(NOISE[..., 0] % 9)
    picture.putpalette(list(range(30)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(30.0)}, "step": 3, "config": {"a": [1]}}, buffer)
    return buffer.getvalue()


def safetensors() -> bytes:
    return save_tensors({"a.weight": torch.arange(30.0), "a.bias": torch.zeros(2, 3)})


def matlab() -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"S": NOISE[..., 0] % 9}, do_compression=True)
    return buffer.getvalue()


def label(path: Path) -> None:
    choose_encoding([Pair("x", path, path)], None, classes=9).read(path)


def lists(path: Path) -> None:
    for split in ("train", "test"):
        read_list(path, path.parent, split=split)


READERS: dict[str, tuple[Callable[[], bytes], str, Callable[[Path], object], int]] = {
    "jpeg": (lambda: encoded(PHOTO, "JPEG"), "jpg", read_image, 150),
    "png": (lambda: encoded(PHOTO, "PNG"), "png", read_image, 150),
    "webp": (lambda: encoded(PHOTO, "WEBP"), "webp", read_image, 100),
    "bmp": (lambda: encoded(PHOTO, "BMP"), "bmp", read_image, 60),
    "tiff": (lambda: encoded(PHOTO, "TIFF"), "tif", read_image, 100),
    "bands": (bands, "tif", lambda path: read_image(path, 6), 150),
    "channels": (bands, "tif", stored_channels, 60),
    "label": (lambda: encoded(NOISE[..., 0] % 9, "PNG"), "png", label, 150),
    "palette": (palette, "png", read_label, 100),
    "matlab": (matlab, "mat", read_matlab_label, 150),
    "checkpoint": (checkpoint, "pth", read_checkpoint, 200),
    "safetensors": (safetensors, "safetensors", read_checkpoint, 150),
    "config": (CONFIG.read_bytes, "yaml", load_config, 150),
    "list": (lambda: b"a.jpg a.png\nb.jpg\tb.png\n", "txt", lists, 150),
    "json list": (lambda: b'{"fpath_img": "a", "fpath_segm": "b"}\n', "odgt", lists, 60),
    "ids": (lambda: b"2007_1\r\n2007_2\n", "txt", lambda path: read_ids(path, path.parent), 60),
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes overwritten, parts cut out, doubled or filled, the end lost."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(0, max(1, len(data))))
        length = int(rng.integers(1, 40))
        kind = int(rng.integers(0, 7))
        if kind == 0 and data:
            data[start] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[start : start + length] = rng.bytes(length)
        elif kind == 2:
            del data[start : start + length]
        elif kind == 3:
            data[start:start] = data[start : start + length]
        elif kind == 4:
            del data[start:]
        elif kind == 5:
            data[start : start + length] = bytes([255 * int(rng.integers(0, 2))]) * length
        else:
            data[start : start + 4] = struct.pack(">I", int(rng.choice([2**31 - 1, 2**16, 0])))
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_end_in_the_documented_error(name: str, tmp_path: Path) -> None:
    make, suffix, reader, count = READERS[name]
    content, rng = make(), np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    if name not in ("list", "json list"):  # these name files that are not there
        reader(path)
    refused = 0
    for _ in range(count * TIMES):
        path.write_bytes(mutated(content, rng))
        try:
            reader(path)
        except StripsegError:
            refused += 1
    assert refused > 0


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, end = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + end

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2**31 - 1), (0, 5)])
@pytest.mark.parametrize("reader", [read_image, read_label, stored_channels, "inspect"])
def test_absurd_sizes_are_refused_before_memory_is_asked_for(size, reader, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(*size))
    if reader == "inspect":
        assert inspect(("bomb.png", path, path)).problem
    else:
        with pytest.raises(StripsegError, match="bomb.png: "):
            reader(path)


def test_a_size_that_memory_might_hold_is_refused_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_of(2**15, 2**14))
    with pytest.raises(StripsegError, match="MAX_IMAGE_PIXELS"):
        read_image(path)
