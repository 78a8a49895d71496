"""Large rasters, such as GeoTIFF orthophotos, cut into windows that training can read."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...config.errors import DataError
from ...util.files import write_changed

HOW_TO_GET_RASTERIO = "cutting rasters needs rasterio: pip install 'stripseg[geo]'"


def cut_pairs(
    pairs: Sequence[tuple[Path, Path]], images: Path, folder: Path, side: int
) -> Iterator[tuple[Path, Path]]:
    """(image, label) windows of every pair, below `folder`/images and `folder`/labels.

    Windows of one raster are about equal and do not overlap; those without data are left out.

    Raises:
        DataError: rasterio is not installed, or two rasters of a pair do not cover each other.
    """
    try:
        import rasterio  # the extra `geo`
        import rasterio.windows
    except ImportError:
        raise DataError(f"--windows {side}: {HOW_TO_GET_RASTERIO}") from None
    kept = set()
    for image_path, label_path in pairs:
        try:
            with rasterio.open(image_path) as image, rasterio.open(label_path) as label:
                refuse_other_places(image, label, image_path, label_path)
                stem = image_path.relative_to(images).with_suffix("").as_posix()
                for window in windows_of(image.height, image.width, side):
                    place = rasterio.windows.Window(*window)
                    if not image.dataset_mask(window=place).any():
                        continue
                    name = f"{stem}_{window[1]:06d}_{window[0]:06d}.tif"
                    targets = folder / "images" / name, folder / "labels" / name
                    for source, target in zip((image, label), targets, strict=True):
                        write_window(source, place, target)
                        kept.add(target)
                    yield targets
        except rasterio.errors.RasterioError as error:
            raise DataError(
                f"{image_path} and {label_path}: cannot be read as rasters ({error})"
            ) from error
    for path in (path for path in folder.rglob("*.tif") if path not in kept):
        path.unlink()  # of an earlier call


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


def write_window(source: Any, window: Any, target: Path) -> None:
    """A part of a raster as a GeoTIFF with its own place, unless it is there and the same."""
    from rasterio.io import MemoryFile

    profile = {
        "driver": "GTiff",
        "height": window.height,
        "width": window.width,
        "count": source.count,
        "dtype": source.dtypes[0],
        "crs": source.crs,
        "transform": source.window_transform(window),
        "photometric": "RGB" if source.count == 3 else "MINISBLACK",
        "interleave": "pixel",
        "compress": "deflate",
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as written:
            written.write(source.read(window=window))
        content = memory.read()
    write_changed(target, content)
