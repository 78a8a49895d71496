"""Large rasters, such as GeoTIFF orthophotos, cut into windows that training can read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config.errors import DataError
from ...util.files import write_changed

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

WORLD_FILES = (".tfw", ".tifw", ".wld", ".TFW")  # where a raster lies, in six numbers
HOW_TO_GET_RASTERIO = "cutting rasters needs rasterio: pip install 'stripseg[geo]'"


@dataclass
class Cut:
    """What the windows hold, counted while they are cut.

    Args:
        ignore: value that pixels without data get in the label.
        given: the user has said that it means ignored.
    """

    ignore: int
    given: bool = False
    windows: int = 0
    pixels: int = 0
    without_data: int = 0
    example: Path | None = None  # a raster with such pixels
    nodata: float | None = None  # the value that a label declares to be none


def cut_pairs(
    pairs: Sequence[tuple[Path, Path]], images: Path, folder: Path, side: int, cut: Cut
) -> None:
    """Write windows of every pair below `folder`/images and `folder`/labels.

    Windows of one raster are about equal and do not overlap; those without data are left out.
    Pixels without data in the image or its label (their nodata values, masks or alpha) become
    `cut.ignore` in the label.

    Raises:
        DataError: rasterio is not installed, two rasters of a pair do not cover each other, or
            the value of pixels without data is a class.
    """
    try:
        import rasterio  # the extra `geo`
        import rasterio.windows
    except ImportError:
        raise DataError(f"--windows {side}: {HOW_TO_GET_RASTERIO}") from None
    kept = set()
    for image_path, label_path in pairs:
        try:
            with opened(image_path) as image, opened(label_path) as label:
                refuse_other_places(image, label, image_path, label_path)
                stem = image_path.relative_to(images).with_suffix("").as_posix()
                for window in windows_of(image.height, image.width, side):
                    place = rasterio.windows.Window(*window)
                    valid = (image.dataset_mask(window=place) > 0) & (
                        label.dataset_mask(window=place) > 0
                    )
                    if not valid.any():
                        continue
                    name = f"{stem}_{window[1]:06d}_{window[0]:06d}.tif"
                    targets = folder / "images" / name, folder / "labels" / name
                    kept.update(targets)
                    write_window(image, image.read(window=place), place, targets[0])
                    values = label.read(window=place)
                    if not valid.all():
                        values = without_data(values, valid, label, label_path, cut)
                    write_window(label, values, place, targets[1])
                    cut.windows += 1
                    cut.pixels += valid.size
        except rasterio.errors.RasterioError as error:
            raise DataError(
                f"{image_path} and {label_path}: cannot be read as rasters ({error})"
            ) from error
    if cut.without_data and not cut.given:
        refuse_second_meaning(pairs, cut)
    for path in (path for path in folder.rglob("*.tif") if path not in kept):
        path.unlink()  # of an earlier call


def without_data(
    values: np.ndarray, valid: np.ndarray, label: Any, path: Path, cut: Cut
) -> np.ndarray:
    """(bands, H, W) label values with `cut.ignore` where there is no data."""
    if len(values) > 1:
        raise DataError(
            f"{path}: is a label in colours, and it or its image has pixels without data, which "
            "no colour stands for; save it as one band of class ids (gdal_calc, rgb2pct)"
        )
    cut.without_data += int(np.count_nonzero(~valid))
    cut.example = cut.example or path
    if label.nodata is not None:
        cut.nodata = label.nodata
    kind = np.result_type(values.dtype, np.min_scalar_type(cut.ignore))
    return np.where(valid, values, cut.ignore).astype(kind)


def said_of(cut: Cut) -> str:
    """What became of pixels without data, and how to have it otherwise."""
    share = cut.without_data / cut.pixels
    text = f"{share:.2%} of the pixels have no data and are ignored ({cut.ignore})"
    if cut.nodata is None:
        return f"{text}: {cut.example} or its image, and others"
    return (
        f"{text}: {cut.example} and others declare {cut.nodata:g} as nodata. If {cut.nodata:g} is "
        f"a class: gdal_edit.py -unsetnodata {cut.example}"
    )


def opened(path: Path) -> "DatasetReader":
    """A raster as GeoTIFF alone: GDAL also reads formats that name other files or hosts.

    It would read the files beside a raster in any of them: these are left alone.

    Raises:
        DataError: a file beside it says which pixels have no data, or where it lies if it does not
            say so itself.
    """
    import rasterio

    mask, facts = (path.with_name(path.name + suffix) for suffix in (".msk", ".aux.xml"))
    for beside in (mask, facts):
        if beside.is_file() and (beside == mask or b"<NoDataValue" in beside.read_bytes()):
            raise DataError(
                f"{beside}: says which pixels of {path.name} have no data, and files beside a "
                "raster are not read; store it in the raster (gdal_translate --config "
                f"GDAL_TIFF_INTERNAL_MASK YES {path.name} NEW.tif), or remove {beside.name}"
            )
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        raster = rasterio.open(path, driver="GTiff")
    if raster.transform.is_identity:
        worlds = [path.with_suffix(suffix) for suffix in WORLD_FILES]
        places = [facts] * (facts.is_file() and b"<GeoTransform" in facts.read_bytes())
        places += [world for world in worlds if world.is_file()]
        if places:
            raster.close()
            raise DataError(
                f"{places[0]}: says where {path.name} lies, and files beside a raster are not "
                f"read; store it in the raster (gdal_translate {path.name} NEW.tif), or remove "
                f"{places[0].name}"
            )
    return raster


def refuse_second_meaning(pairs: Sequence[tuple[Path, Path]], cut: Cut) -> None:
    """Raises DataError where a label uses the value of pixels without data for something else."""
    for _, path in pairs:
        with opened(path) as label:
            for _, window in label.block_windows(1):
                values = label.read(1, window=window)
                if ((values == cut.ignore) & (label.read_masks(1, window=window) > 0)).any():
                    raise DataError(
                        f"{path}: has the value {cut.ignore}, and {cut.example} or its image has "
                        f"pixels without data, which {cut.ignore} would stand for. If it means "
                        f"ignored: --ignore {cut.ignore}; if it is a class: --ignore VALUE, one "
                        "that is no class"
                    )


def windows_of(height: int, width: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, width, height) of equal parts of at most `side` pixels."""
    rows, columns = (
        np.linspace(0, length, -(-length // side) + 1).round().astype(int)
        for length in (height, width)
    )
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield int(left), int(top), int(right - left), int(bottom - top)


def refuse_other_places(image: Any, label: Any, image_path: Path, label_path: Path) -> None:
    """Raises DataError for rasters of other sizes or places."""
    if image.shape != label.shape:
        raise DataError(
            f"{image_path} is {image.width}x{image.height} and its label {label_path} "
            f"{label.width}x{label.height} pixels (width x height); bring them onto one grid with "
            "gdalwarp"
        )
    if image.crs is None or label.crs is None:
        return
    if image.crs != label.crs or not image.transform.almost_equals(label.transform, 1e-6):
        raise DataError(
            f"{image_path} and {label_path} lie at different places ({image.crs}, "
            f"{tuple(image.bounds)}, and {label.crs}, {tuple(label.bounds)}); bring them onto one "
            "grid with gdalwarp"
        )


def write_window(source: Any, values: np.ndarray, window: Any, target: Path) -> None:
    """A part of a raster, (bands, H, W), as a GeoTIFF with its place; left alone if it is there."""
    from rasterio.io import MemoryFile

    profile = {
        "driver": "GTiff",
        "height": window.height,
        "width": window.width,
        "count": source.count,
        "dtype": values.dtype,
        "crs": source.crs,
        "transform": source.window_transform(window),
        "photometric": "RGB" if source.count == 3 else "MINISBLACK",
        "interleave": "pixel",
        "compress": "deflate",
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as written:
            written.write(values)
        content = memory.read()
    write_changed(target, content)
