"""Large PNG files are inflated by a faster library, and refused where they were refused before."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from stripseg.config.errors import DataError
from stripseg.util import images, png
from stripseg.util.images import read_image, read_label

pytestmark = pytest.mark.skipif(
    png.isal_zlib is None, reason="the extra fast-png (isal) is not installed"
)


@pytest.fixture(autouse=True)
def no_file_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE_PNG", 0)


def encoded(picture: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".png", picture, options)[1].tobytes()


def decoded(content: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


RANDOM = np.random.Generator(np.random.PCG64(0))
SMOOTH = cv2.resize(RANDOM.integers(0, 256, (7, 9, 4), np.uint8), (300, 211))
PICTURES = {
    "rgb": SMOOTH[..., :3],
    "rgba": SMOOTH,
    "grey": SMOOTH[..., 0],
    "noise": RANDOM.integers(0, 256, (200, 333, 3), np.uint8),
    "16 bits": SMOOTH[..., :3].astype(np.uint16) * 200,
    "one pixel": SMOOTH[:1, :1, 0],
    "more than one stored block": np.resize(SMOOTH[..., 0], (400, 3000)),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_the_pixels_are_the_same(picture: np.ndarray) -> None:
    content = encoded(picture)
    stored = png.with_stored_data(content)
    assert stored != content
    np.testing.assert_array_equal(decoded(stored), picture)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def file_of(*chunks: bytes) -> bytes:
    return png.SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def header(*, width: int = 3, color: int = 0, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, 2, 8, color, 0, 0, interlaced))


ROWS = b"\0\1\2\3\0\4\5\6"
DATA = zlib.compress(ROWS)


def test_other_chunks_and_parted_data_stay() -> None:
    text, time = chunk(b"tEXt", b"a\0b"), chunk(b"tIME", b"1234567")
    content = file_of(header(), text, chunk(b"IDAT", DATA[:4]), chunk(b"IDAT", DATA[4:]), time)
    stored = png.with_stored_data(content)
    assert stored.count(b"IDAT") == 1
    assert text in stored
    assert time in stored
    assert decoded(stored).tolist() == [[1, 2, 3], [4, 5, 6]]


BROKEN = {
    "interlaced": file_of(header(interlaced=1), chunk(b"IDAT", DATA)),
    "no such colour type": file_of(header(color=5), chunk(b"IDAT", DATA)),
    "no data": file_of(header()),
    "no header": file_of(chunk(b"IDAT", DATA)),
    "data apart": file_of(header(), chunk(b"IDAT", DATA[:4]), chunk(b"tEXt", b"a\0b"))
    + chunk(b"IDAT", DATA[4:]),
    "too little": file_of(header(width=4), chunk(b"IDAT", DATA)),
    "too much": file_of(header(width=2), chunk(b"IDAT", DATA)),
    "data ends early": file_of(header(), chunk(b"IDAT", DATA[:-5])),
    "something after the data": file_of(header(), chunk(b"IDAT", DATA + b"more")),
    "a window too large": file_of(
        header(), chunk(b"IDAT", bytes([0x88, 31 - 0x8800 % 31]) + DATA[2:])
    ),
    "empty data": file_of(header(), chunk(b"IDAT", b"")),
    "a wrong sum of the data": file_of(header(), chunk(b"IDAT", DATA[:-1] + b"?")),
    "a wrong sum of a chunk": file_of(header(), chunk(b"IDAT", DATA)[:-1] + b"?"),
    "a bomb": file_of(header(width=2**30), chunk(b"IDAT", DATA)),
    "cut": file_of(header(), chunk(b"IDAT", DATA))[:-20],
    "a JPEG": b"\xff\xd8" + bytes(100),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_whatever_is_unusual_is_left_to_the_decoder(content: bytes) -> None:
    assert png.with_stored_data(content) is content


def test_damage_is_seen_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files are read, to the same pixels, and the same files are refused."""

    def outcome(path: Path) -> object:
        try:
            return read_image(path).tobytes(), read_label(path).tobytes()
        except DataError as error:
            return str(error)

    whole, path = encoded(PICTURES["grey"]), tmp_path / "picture.png"
    for place in RANDOM.integers(0, len(whole), 150):
        path.write_bytes(whole[:place] + RANDOM.bytes(1) + whole[place + 1 :])
        ours = outcome(path)
        with monkeypatch.context() as patch:
            patch.setattr(png, "isal_zlib", None)
            assert outcome(path) == ours


def test_without_isal_opencv_reads_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, path = encoded(PICTURES["grey"]), tmp_path / "picture.png"
    path.write_bytes(content)
    monkeypatch.setattr(png, "isal_zlib", None)
    assert png.with_stored_data(content) is content
    np.testing.assert_array_equal(read_label(path), PICTURES["grey"])
