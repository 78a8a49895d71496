"""Parquet files that hold their pictures, as on the Hugging Face hub, into folders of files."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...config.errors import DataError
from ...util.files import write_changed
from ...util.images import IMAGE_SUFFIXES
from ..annotations.metadata import opened_parquet, rows_inside
from .custom import part_of

IMAGE_NAMES = ("image", "img", "picture", "photo", "pixel_values", "input")
LABEL_NAMES = (
    *("label", "mask", "annotation", "segmentation", "segmentation_mask", "semantic_segmentation"),
    *("labels", "masks", "seg", "gt", "target", "output"),
)
SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
    b"GIF8": ".gif",
}


def tables_with_pictures(labels: Path) -> list[Path]:
    """The parquet files that `labels` is or holds; nothing where pictures lie beside them.

    Tables called metadata name pictures that are files.
    """
    if labels.is_file():
        found = [labels] if labels.suffix.lower() == ".parquet" else []
    else:
        found = sorted(labels.rglob("*.parquet"))
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in labels.rglob("*")):
            found = []
    return [path for path in found if path.stem.lower() != "metadata"]


def unpack(tables: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """(folder of the images, folder of the labels), with folders train, val, test as files say.

    Pictures are written as they are, and those of an earlier call removed.

    Raises:
        DataError: a table is damaged or lacks pictures, or pyarrow is not installed.
    """
    images, labels = folder / "images", folder / "labels"
    kept = set()
    for table in tables:
        part = part_of(f"{table.stem}/") or "all"
        stem = re.sub(r"[^\w.-]", "_", table.stem)
        for number, pictures in enumerate(rows_of(table)):
            for place, content in zip((images, labels), pictures, strict=True):
                target = place / part / f"{stem}_{number:06d}{suffix_of(table, number, content)}"
                kept.add(target)
                write_changed(target, content)
    for path in (path for path in folder.rglob("*") if path.is_file() and path not in kept):
        path.unlink()
    return images, labels


def rows_of(table: Path) -> Iterator[tuple[bytes, bytes]]:
    """The image and the label of every row, as the files they were."""
    with opened_parquet(table) as file:
        columns = columns_of(table, file.schema_arrow)
        for row in rows_inside(table, file, columns):
            image, label = (bytes_of(row[name], table, name) for name in columns)
            yield image, label


def columns_of(table: Path, schema: Any) -> tuple[str, str]:
    """The names of the columns that hold images and labels.

    Raises:
        DataError: they cannot be told.
    """
    held = [field.name for field in schema if "binary" in str(field.type)]
    label = next((name for name in held if name.lower() in LABEL_NAMES), None)
    others = [name for name in held if name != label]
    image = next((name for name in others if name.lower() in IMAGE_NAMES), None)
    if image is None and len(others) == 1:
        image = others[0]
    if image is None or label is None:
        raise DataError(
            f"{table}: of its columns {', '.join(schema.names)} those with pictures are "
            f"{', '.join(held) or 'none'}; an image and its label are expected, called image and "
            "label: rename them"
        )
    return image, label


def bytes_of(value: Any, table: Path, column: str) -> bytes:
    """The content of a picture."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(
            f"{table}: column {column} holds no picture but {str(value)[:60]}; names of files are "
            "read from a table called metadata.parquet beside them"
        )
    return content


def suffix_of(table: Path, row: int, content: bytes) -> str:
    suffix = next((name for mark, name in SUFFIXES.items() if content.startswith(mark)), None)
    if suffix is None:
        raise DataError(f"{table}, row {row}: holds a picture of no format that is read here")
    return suffix
