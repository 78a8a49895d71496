"""Damaged and made-up files end in the documented error, and never in another one.

`STRIPSEG_FUZZ` multiplies the number of mutations; docs/reliability.md has a long run's figures.
"""

import functools
import io
import json
import os
import pickle
import resource
import struct
import sys
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
from stripseg.dataset.classification.cifar import read_archive
from stripseg.dataset.description import read_colors, read_names
from stripseg.dataset.labels import choose_encoding, read_matlab_label
from stripseg.dataset.layout import read_ids
from stripseg.dataset.lists import Pair, read_list
from stripseg.dataset.preparation.custom import read_table
from stripseg.dataset.preparation.match import inspect
from stripseg.dataset.results import ProgressJournal
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.experiments.study import read_study
from stripseg.util.experiments.sweep_file import read_sweep
from stripseg.util.images import read_image, read_label, stored_channels
from stripseg.util.training.epoch_log import read_epochs
from tests.test_packed import make_pairs, open_packed, write_packed

CONFIGS = Path(__file__).parents[1] / "config"
CONFIG = CONFIGS / "ade20k/ade20k_pspnet50.yaml"
STUDY = b"name: a\nconfigs: [shapes10 resnet18]\nvary:\n  base_lr: [0.1, 0.2]\nseeds: [0, 1]\n"
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


def struct_of_matlab() -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"GTcls": {"Segmentation": NOISE[..., 0] % 9}}, do_compression=True)
    return buffer.getvalue()


def pages() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([PHOTO] * 2), ome=True, photometric="rgb")
    return buffer.getvalue()


def archive() -> bytes:
    content = {b"data": NOISE[:, :, 0], b"labels": [1, 2, 3], b"filenames": [b"a.png"]}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.", b"numpy.core.")


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
    "pages": (pages, "ome.tif", read_image, 100),
    "label": (lambda: encoded(NOISE[..., 0] % 9, "PNG"), "png", label, 150),
    "palette": (palette, "png", read_label, 100),
    "matlab": (matlab, "mat", read_matlab_label, 150),
    "struct": (struct_of_matlab, "mat", read_matlab_label, 100),
    "archive": (archive, "bin", read_archive, 200),
    "checkpoint": (checkpoint, "pth", read_checkpoint, 200),
    "safetensors": (safetensors, "safetensors", read_checkpoint, 150),
    "config": (CONFIG.read_bytes, "yaml", load_config, 150),
    "list": (lambda: b"a.jpg a.png\nb.jpg\tb.png\n", "txt", lists, 150),
    "json list": (lambda: b'{"fpath_img": "a", "fpath_segm": "b"}\n', "odgt", lists, 60),
    "names": (lambda: b"road\nsky, blue\n", "txt", read_names, 60),
    "colors": (lambda: b"128 64 0\n1 2 3\n", "txt", read_colors, 60),
    "table": (lambda: b"128 64 0 road\nsky,1,2,3\ncar:4,5,6::\n", "txt", read_table, 100),
    "sweep": ((CONFIGS / "sweeps/shapes_rate.yaml").read_bytes, "yaml", read_sweep, 100),
    "study": (lambda: STUDY, "yaml", read_study, 100),
    "ids": (lambda: b"2007_1\r\n2007_2\n", "txt", lambda path: read_ids(path, path.parent), 60),
}


# every change of a PNG breaks a checksum, and the lists name files that are not there
NEVER_READ = {"png", "label", "palette", "list", "json list"}


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


def read_and_refused(
    name: str, content: bytes, path: Path, reader: Callable[[Path], object], count: int
) -> tuple[int, int]:
    """How many of `count` mutations are read, and how many end in the documented error."""
    rng, refused = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))), 0
    for _ in range(count * TIMES):
        path.write_bytes(mutated(content, rng))
        try:
            reader(path)
        except StripsegError:
            refused += 1
    return count * TIMES - refused, refused


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_end_in_the_documented_error(name: str, tmp_path: Path) -> None:
    make, suffix, reader, count = READERS[name]
    content, path = make(), tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    if name not in ("list", "json list"):  # these name files that are not there
        reader(path)
    read, refused = read_and_refused(name, content, path, reader, count)
    assert refused > 0
    assert read > 0 or name in NEVER_READ, "a reader that refuses everything is none"


def test_a_mutated_index_of_a_packed_copy(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "data", count=2)
    write_packed(pairs, tmp_path / "packed")
    path = tmp_path / "packed/train.json"

    def look(path: Path) -> None:
        packed = open_packed(pairs, path.parent)
        for index in range(len(packed)):
            packed.read(index)

    look(path)
    assert read_and_refused("packed", path.read_bytes(), path, look, 150)[1] > 100


def test_damaged_records_of_earlier_epochs_and_images_are_left_out(tmp_path: Path) -> None:
    """No line of them is worth a run, nor a test."""
    journal = ProgressJournal(tmp_path, {})
    journal.add({"name": f"{index}.png", "counts": [1, 2]} for index in range(4))
    journal._file.close()
    path = tmp_path / ".journal/done-0.txt"

    def look(_: Path) -> None:
        journal = ProgressJournal(tmp_path, {})
        journal._file.close()

    assert read_and_refused("journal", path.read_bytes(), path, look, 100)[1] == 0
    path = tmp_path / "epochs.jsonl"
    lines = [json.dumps({"epoch": e, "val": {"mIoU": 0.5}}).encode() + b"\n" for e in range(4)]
    look = functools.partial(lambda folder, _: read_epochs(folder), tmp_path)
    assert read_and_refused("epochs", b"".join(lines), path, look, 100)[1] == 0


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


def tiff_of(width: int, height: int) -> bytes:
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (279, 4, 1),
    ]
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


def bmp_of(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1000, 0, 0, 54) + header + bytes(1000)


def gif_of(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("tif", tiff_of(60_000, 60_000)),
        ("bmp", bmp_of(60_000, 60_000)),
        ("gif", gif_of(60_000, 60_000)),
    ],
    ids=["tif", "bmp", "gif"],
)
@pytest.mark.parametrize("reader", [read_image, read_label])
def test_so_are_those_of_other_formats(
    reader: Callable[[Path], object], suffix: str, content: bytes, tmp_path: Path
) -> None:
    """A WebP cannot claim more pixels than are allowed."""
    path, before = tmp_path / f"bomb.{suffix}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(content)
    with pytest.raises(StripsegError, match=f"bomb.{suffix}: "):
        reader(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000 or sys.platform != "linux"  # KiB; an image of this size takes GiB
