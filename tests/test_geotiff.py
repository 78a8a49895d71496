"""GeoTIFF: windows of large rasters, and predictions that keep their place on earth."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from stripseg.config.errors import DataError
from stripseg.dataset.preparation.rasters import opened, windows_of
from stripseg.tool import predict, prepare
from stripseg.util.geotiff import place_of
from stripseg.util.images import read_image, read_label

HEIGHT, WIDTH = 130, 250
CLASSES = np.zeros((HEIGHT, WIDTH), np.uint8)
CLASSES[20:70, 30:200] = 1
CLASSES[80:, 100:] = 2
KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632)  # UTM zone 32N
PLACE = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500_000.0, 5_400_000.0, 0.0), True),
    (34735, 3, len(KEYS), KEYS, True),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raster and its classes."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8)
    write("im/a.tif", pixels)
    write("ma/a.tif", CLASSES)
    return tmp_path


def write(path: str, pixels: np.ndarray, place: list = PLACE) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=kind, extratags=place, metadata=None)


def run(*words: str) -> None:
    where = ["--images", "im", "--labels", "ma", "--name", "mine", "--workers", "1"]
    prepare.main(["custom", *where, *words])


@pytest.mark.parametrize(("height", "width", "side"), [(130, 250, 100), (64, 64, 64), (1, 65, 64)])
def test_windows_cover_all_and_do_not_overlap(height: int, width: int, side: int) -> None:
    covered = np.zeros((height, width), int)
    for left, top, across, down in windows_of(height, width, side):
        assert max(across, down) <= side
        covered[top : top + down, left : left + across] += 1
    assert (covered == 1).all()


def test_rasters_are_cut_with_their_place(home: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    run("--windows", "100")
    lines = [
        line
        for part in ("train", "val")
        for line in Path(f"dataset/mine/{part}.txt").read_text().splitlines()
    ]
    assert len(lines) == 6
    whole = read_image(Path("im/a.tif"))
    folder = Path("dataset/mine/windows")
    for line in lines:
        image, label = (folder / name for name in line.split("\t"))
        top, left = map(int, image.stem.split("_")[-2:])
        found = read_label(label)
        place = slice(top, top + found.shape[0]), slice(left, left + found.shape[1])
        assert np.array_equal(found, CLASSES[place])
        assert np.array_equal(read_image(image), whole[place])
        with rasterio.open(image) as window:
            assert window.crs.to_epsg() == 32632
            assert window.transform * (0, 0) == (500_000 + left / 2, 5_400_000 - top / 2)


def nodata(value: int) -> list:
    text = f"{value}\0"
    return [*PLACE, (42113, 2, len(text), text, True)]


def windows() -> np.ndarray:
    """All labels of the windows that are listed."""
    found = [
        read_label(Path("dataset/mine/windows", line.split("\t")[1])).ravel()
        for part in ("train", "val")
        for line in Path(f"dataset/mine/{part}.txt").read_text().splitlines()
    ]
    return np.concatenate(found)


def test_pixels_without_data_are_ignored(home: Path, capsys) -> None:
    """Of the image and of the label; windows that hold nothing else are left out."""
    pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :90] = 0  # one window of three, and a part of the next
    write("im/a.tif", pixels, nodata(0))
    labels = CLASSES + 1
    labels[100:, 200:] = 0
    write("ma/a.tif", labels, nodata(0))
    run("--windows", "90")
    said = "have no data and are ignored (255): ma/a.tif and others declare 0"
    assert said in capsys.readouterr().err
    expected = labels.copy()
    expected[:, :90] = 0
    counts = np.bincount(windows(), minlength=256)
    assert counts[:3].tolist() == [np.count_nonzero(expected == value) for value in (1, 2, 3)]


def test_a_class_of_the_value_of_pixels_without_data_asks(home: Path) -> None:
    pytest.importorskip("rasterio")
    pixels = np.full((HEIGHT, WIDTH, 3), 9, np.uint8)
    pixels[:9] = 0
    write("im/a.tif", pixels, nodata(0))
    write("ma/a.tif", (CLASSES > 0).astype(np.uint8) * 255)
    with pytest.raises(DataError, match=r"ma/a.tif: has the value 255, and .* --ignore VALUE"):
        run("--windows", "100")
    run("--windows", "100", "--ignore", "254")
    assert set(np.unique(windows())) == {0, 1, 255}


def test_nodata_of_a_label_that_is_not_cut_is_named(home: Path, capsys) -> None:
    write("ma/a.tif", CLASSES, nodata(0))
    run()
    warning = "1 label(s), such as ma/a.tif, declare 0 as nodata, and it is taken for a class"
    assert warning in capsys.readouterr().err
    run("--ignore", "0")
    assert warning not in capsys.readouterr().err


def test_rasters_of_two_places_are_refused(home: Path) -> None:
    pytest.importorskip("rasterio")
    moved = [PLACE[0], (*PLACE[1][:3], (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), True), PLACE[2]]
    write("ma/a.tif", CLASSES, moved)
    with pytest.raises(DataError, match=r"im/a.tif and ma/a.tif lie at different places.*gdalwarp"):
        run("--windows", "100")


def test_a_missing_package_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(DataError, match=r"needs rasterio: pip install 'stripseg\[geo\]'"):
        run("--windows", "100")


def test_predictions_lie_where_their_image_lies(home: Path) -> None:
    predict.write_place(Path("im/a.tif"), home / "out/a", CLASSES)
    assert np.array_equal(read_label(Path("out/a_gray.tif")), CLASSES)
    assert place_of(Path("out/a_gray.tif")) == place_of(Path("im/a.tif"))
    assert [tag[:4] for tag in place_of(Path("im/a.tif"))] == [tag[:4] for tag in PLACE]
    write("im/b.tif", CLASSES, [])  # a TIFF without a place has none to keep
    predict.write_place(Path("im/b.tif"), home / "out/b", CLASSES)
    assert not Path("out/b_gray.tif").exists()


def test_a_file_that_names_others_is_no_raster(home: Path) -> None:
    """GDAL recognizes a virtual raster by its content, whatever the suffix."""
    pytest.importorskip("rasterio")
    Path("im/a.tif").rename("other.tif")
    Path("im/a.tif").write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><VRTRasterBand dataType="Byte" '
        'band="1"><SimpleSource><SourceFilename>other.tif</SourceFilename></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(DataError, match=r"im/a.tif"):
        run("--windows", "100")


VIRTUAL_MASK = (
    f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><Metadata><MDI '
    'key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata><VRTRasterBand dataType="Byte" band="1">'
    '<SimpleSource><SourceFilename relativeToVRT="0">ma/a.tif</SourceFilename><SourceBand>1'
    "</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
)


@pytest.mark.parametrize("suffix", [".msk", ".MSK"])
def test_files_beside_a_raster_are_not_read(suffix: str, home: Path) -> None:
    """GDAL would open a mask beside it with any driver; it finds one in capitals, too."""
    pytest.importorskip("rasterio")
    Path(f"im/a.tif{suffix}").write_text(VIRTUAL_MASK)
    if Path("im/a.tif.msk").exists():
        with pytest.raises(DataError, match=r"a.tif.msk: says which pixels .*INTERNAL_MASK YES"):
            opened(Path("im/a.tif"))
    else:
        with opened(Path("im/a.tif")) as raster:
            assert raster.dataset_mask().all()


def test_a_mask_in_a_raster_is_honoured_and_nodata_beside_it_asked_about(home: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open("im/a.tif", "r+") as raster:
        raster.write_mask(CLASSES > 0)
    with opened(Path("im/a.tif")) as raster:
        assert np.array_equal(raster.dataset_mask() > 0, CLASSES > 0)
    Path("im/a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>0</NoDataValue></PAMRasterBand>'
        "</PAMDataset>"
    )
    with pytest.raises(DataError, match=r"a.tif.aux.xml: says which pixels"):
        opened(Path("im/a.tif"))


@pytest.mark.parametrize("name", ["a.tfw", "a.tif.aux.xml"])
def test_a_place_beside_a_raster_that_has_none_is_asked_about(name: str, home: Path) -> None:
    """Pairs from different places would be cut as if they lay on each other."""
    rasterio = pytest.importorskip("rasterio")
    text = "<PAMDataset><GeoTransform>5e5,1,0,54e5,0,-1</GeoTransform></PAMDataset>"
    Path(f"im/{name}").write_text(text if name.endswith("xml") else "1\n0\n0\n-1\n5e5\n54e5\n")
    placed = {"transform": rasterio.Affine(1, 0, 5, 0, -1, 5), "crs": "EPSG:25832"}
    for place in ({}, placed):
        size = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
        with rasterio.open("im/b.tif", "w", **size, **place) as raster:
            raster.write(np.zeros((1, 8, 8), np.uint8))
        Path("im/b.tif").replace("im/a.tif")
        if place:
            opened(Path("im/a.tif")).close()  # it has one of its own
        else:
            with pytest.raises(DataError, match=f"{name}: says where a.tif lies"):
                opened(Path("im/a.tif"))
