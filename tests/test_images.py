"""Pictures in and out: what is damaged is named, what is written is whole."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from stripseg.config.errors import DataError
from stripseg.util.images import as_rgb, colorize, overlay, read_image, read_label, write_png

COLORS = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0]], np.uint8)


@pytest.fixture
def photo() -> np.ndarray:
    noise = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (40, 60, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_pictures_are_read_as_rgb(photo: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(photo).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path), photo)


def test_a_grey_photo_gets_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))


def test_a_photo_is_turned_upright(photo: np.ndarray, tmp_path: Path) -> None:
    """Phones store the sensor's picture and a note on how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(photo).save(tmp_path / "phone.jpg", exif=exif, quality=100, subsampling=0)
    upright = read_image(tmp_path / "phone.jpg")
    assert upright.shape == (60, 40, 3)
    assert np.abs(upright.astype(int) - np.rot90(photo, -1)).mean() < 2


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_picture_is_named(photo, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(photo).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"cut.{suffix}: image file is truncated \(\d+ bytes\)"):
        read_image(path)
    with pytest.raises(DataError, match=rf"cut.{suffix}: label file is truncated"):
        read_label(path)


def test_bytes_after_the_picture_do_no_harm(photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0" * 40)
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; check the path, or DATA.data_root"),
        (b"", "is empty"),
        (b"hello", "cannot be dec"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, read, content, message: str) -> None:
    path = tmp_path / "file.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.png: .*{message}"):
        read(path)


def test_a_palette_label_is_read_as_indices(tmp_path: Path) -> None:
    """Read as a grey picture it would hold the brightness of its colours."""
    label = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    write_png(tmp_path / "label.png", label, COLORS)
    assert Image.open(tmp_path / "label.png").mode == "P"
    assert np.array_equal(read_label(tmp_path / "label.png"), label)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "transparent"])
def test_labels_of_any_kind_of_png_are_pillows(tmp_path: Path, mode: str) -> None:
    """Plain grey goes through OpenCV, which is faster, and everything else must not."""
    values = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (31, 45), np.uint8)
    picture = Image.fromarray(values > 99 if mode == "1" else values)
    options = {"transparency": 3} if mode == "transparent" else {}
    if mode == "P":
        picture.putpalette(list(range(255, -1, -1)) * 3)
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 7)
    picture.save(tmp_path / "label.png", **options)
    read = read_label(tmp_path / "label.png")
    assert np.array_equal(read, np.array(Image.open(tmp_path / "label.png"))), f"PNG of mode {mode}"
    assert read.ndim == 2, f"PNG of mode {mode}"


def test_a_damaged_grey_label_is_refused(tmp_path: Path) -> None:
    """Whichever byte it is; Pillow alone reads zeros in place of some rows."""
    label = np.repeat(np.arange(30, dtype=np.uint8)[None], 20, axis=0)
    write_png(tmp_path / "label.png", label)
    content = (tmp_path / "label.png").read_bytes()
    for place in range(content.index(b"IDAT") + 4, content.index(b"IEND") - 8):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        (tmp_path / "label.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"label\.png: cannot be decoded as a label"):
            read_label(tmp_path / "label.png")


def test_damaged_data_of_a_deflate_tiff_are_refused(photo: np.ndarray, tmp_path: Path) -> None:
    """Its strips have checksums, which libtiff reports on a line of the terminal alone."""
    path = tmp_path / "a.tif"
    for pixels, read in ((photo, read_image), (photo[..., 0], read_label)):
        tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=8)
        content = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            start, size = page.dataoffsets[2], page.databytecounts[2]
        assert np.array_equal(read(path), pixels)
        for place in range(start + 2, start + size, max(1, size // 9)):
            damaged = bytearray(content)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"a\.tif: cannot be decoded as an? (label )?image"):
                read(path)


@pytest.mark.parametrize("lossless", [True, False])
def test_a_cut_webp_is_refused(photo: np.ndarray, tmp_path: Path, lossless: bool) -> None:
    """By the length that it tells: libwebp fills what is missing."""
    path = tmp_path / "a.webp"
    Image.fromarray(photo).save(path, lossless=lossless)
    content = path.read_bytes()
    assert read_image(path).shape == photo.shape
    for length in (len(content) - 2, len(content) // 2, 40):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"a\.webp: image file is truncated \({length} bytes"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_colours_have_opencvs_order_of_every_file_type(photo, tmp_path: Path, suffix: str) -> None:
    Image.fromarray(photo).save(tmp_path / f"a.{suffix}")
    expected = cv2.imread(str(tmp_path / f"a.{suffix}"), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), expected), f"RGB of {suffix}"


def test_a_cmyk_jpeg_is_read_as_opencv_reads_it(photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "a.jpg")
    expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(read_image(tmp_path / "a.jpg"), expected)


def test_a_black_and_white_label_is_read_as_indices(tmp_path: Path) -> None:
    label = np.array([[True, False, True]])
    Image.fromarray(label).save(tmp_path / "mask.png")
    assert read_label(tmp_path / "mask.png").tolist() == [[1, 0, 1]]


def test_a_colour_picture_is_no_label(photo: np.ndarray, tmp_path: Path) -> None:
    write_png(tmp_path / "color.png", photo)
    with pytest.raises(DataError, match=r"color.png: is a colour picture \(mode RGB\)"):
        read_label(tmp_path / "color.png")


def test_a_written_picture_is_read_back(photo: np.ndarray, tmp_path: Path) -> None:
    write_png(tmp_path / "deep" / "folder" / "photo.png", photo)
    assert np.array_equal(read_image(tmp_path / "deep" / "folder" / "photo.png"), photo)


def test_an_interrupted_writing_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gray.png"
    write_png(path, np.zeros((4, 4), np.uint8))
    before = path.read_bytes()

    def stopped(self, file, **options) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_png(path, np.ones((4, 4), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_colours_are_those_of_the_classes_and_black_beyond() -> None:
    picture = colorize(np.array([[0, 2, 255]], np.uint8), COLORS)
    assert picture.tolist() == [[[10, 20, 30], [0, 255, 0], [0, 0, 0]]]


def test_an_overlay_is_half_picture_half_colour() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    assert overlay(image, np.array([[0, 1]]), COLORS).tolist() == [[[55, 60, 65], [150, 100, 75]]]


def bands(count: int, dtype=np.uint8) -> np.ndarray:
    values = np.random.Generator(np.random.PCG64(2)).integers(0, 256, (20, 30, count))
    return (values.astype(np.uint16) * 257 if dtype == np.uint16 else values).astype(dtype)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("count", [2, 4, 5, 13])
def test_the_bands_of_a_tiff_keep_their_order(tmp_path: Path, count: int, planes: str) -> None:
    image = bands(count)
    stored = np.moveaxis(image, -1, 0) if planes == "separate" else image
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planes)
    assert np.array_equal(read_image(tmp_path / "a.tif", count), image)


def test_sixteen_bits_become_the_high_eight(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", bands(5, np.uint16), photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "a.tif", 5), bands(5))
    cv2.imwrite(str(tmp_path / "b.png"), bands(1, np.uint16))
    assert np.array_equal(read_image(tmp_path / "b.png", 1), bands(1))


def test_alpha_is_a_channel_where_four_are_wanted(tmp_path: Path) -> None:
    Image.fromarray(bands(4), "RGBA").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 4), bands(4))
    assert np.array_equal(read_image(tmp_path / "a.png"), bands(4)[..., :3])


def test_another_number_of_channels_is_named(photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: is of shape \(40, 60, 3\).*in_channels is 5"):
        read_image(tmp_path / "a.png", 5)


def test_damaged_bands_are_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", bands(5), photometric="minisblack")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:900])
    with pytest.raises(DataError, match="a.tif: cannot be decoded as an image"):
        read_image(tmp_path / "a.tif", 5)
    tifffile.imwrite(tmp_path / "b.tif", bands(5).astype(np.float32), photometric="minisblack")
    with pytest.raises(DataError, match="b.tif: has values of type float32; store 8 or 16 bits"):
        read_image(tmp_path / "b.tif", 5)


@pytest.mark.parametrize(("count", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
def test_pictures_of_any_channels_can_be_looked_at(count: int, shown: list[int]) -> None:
    assert np.array_equal(as_rgb(bands(count)), bands(count)[..., shown])


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_bands_that_are_pages(name: str, compression: str | None, tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (6, 40, 30), np.uint8)
    options = {"photometric": "minisblack", "compression": compression}
    tifffile.imwrite(tmp_path / name, bands, metadata={"axes": "CYX"}, **options)
    assert np.array_equal(read_image(tmp_path / name, 6), np.moveaxis(bands, 0, -1))


@pytest.mark.parametrize("shape", [(70, 100), (64, 96), (70, 100, 3)])
def test_sixteen_bits_in_tiles_that_reach_beyond_the_sides(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """OpenCV 5.0 reads most of their pixels from other places."""
    values = np.random.default_rng(0).integers(0, 65536, shape, np.uint16)
    kind = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(64, 64), photometric=kind)
    expected = np.broadcast_to(np.atleast_3d(values >> 8), (*shape[:2], 3))
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)
    if len(shape) == 2:
        assert np.array_equal(read_image(tmp_path / "a.tif", 1), expected[..., :1])
