"""The place on earth that a GeoTIFF carries, kept in what is predicted from it."""

from pathlib import Path

import numpy as np
import tifffile

from .files import atomic_write

# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory and its numbers and texts
PLACE_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
Tag = tuple[int, int, int, object, bool]


def is_tiff(path: Path) -> bool:
    """Return whether the file's name says that it is a TIFF."""
    return path.suffix.lower() in (".tif", ".tiff")


def place_of(path: Path) -> list[Tag]:
    """The tags that say where a TIFF lies; none of other files and TIFFs that do not say."""
    if not is_tiff(path):
        return []
    try:
        with tifffile.TiffFile(path) as file:
            tags = [file.pages[0].tags.get(code) for code in PLACE_TAGS]
            found = [t for t in tags if t is not None]
            return [(t.code, int(t.dtype), t.count, t.value, True) for t in found]
    except Exception:  # tifffile raises whatever it likes; the picture itself has been read
        return []


def write_geotiff(path: Path, classes: np.ndarray, place: list[Tag]) -> None:
    """Write (H, W) uint8 classes as a compressed TIFF at a place, whole or not at all."""
    with atomic_write(path) as file:
        tifffile.imwrite(
            file,
            classes,
            photometric="minisblack",
            compression="zlib",
            extratags=place,
            metadata=None,
        )
