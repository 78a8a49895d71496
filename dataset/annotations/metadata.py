"""Hugging Face image folders: metadata.jsonl, metadata.csv or metadata.parquet.

A row names its image in `file_name` and has either a mask's file (`mask_file_name` or a
similar name) or `objects` with COCO's polygons.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...config.errors import DataError
from ...config.limits import PARQUET_BYTES, PARQUET_TIMES
from ...util.images import IMAGE_SUFFIXES
from .model import Annotations, Picture, Shape
from .names import Names
from .parse import (
    file_name,
    listing,
    mapping,
    parse_json,
    points,
    read_text,
    reading,
    size_of,
)
from .rasterize import Polygon

IMAGE_COLUMNS = ("file_name", "image_file_name", "input_file_name")
MASK_COLUMNS = tuple(
    f"{word}{ending}"
    for ending in ("_file_name", "")
    for word in ("mask", "label", "annotation", "segmentation", "segmentation_mask", "output")
)
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
CLASS_COLUMNS = ("category", "categories", "label", "labels", "class", "classes")
HOW_TO_GET_PARQUET = "needs pyarrow: pip install pyarrow"
ROW_BYTES = 64  # of a row beside its values
MOST_ROWS = 1024  # read at once


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a table by its suffix.

    Raises:
        DataError: it is damaged, or needs a package that is not installed.
    """
    if path.suffix.lower() == ".parquet":
        return parquet_rows(path)
    content = read_text(path)
    if path.suffix.lower() == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(content, newline="")))
        except csv.Error as error:
            raise DataError(f"{path}: is not a table ({error}); export it again") from None
    rows = []
    for line_number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            row = parse_json(line, path)
            with reading(path, f"line {line_number}"):
                rows.append(mapping(row, "a line"))
    return rows


def parquet_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a parquet file of names; pictures inside it are refused."""
    with opened_parquet(path) as file:
        inside = [field.name for field in file.schema_arrow if has_bytes(field.type)]
        if inside:
            raise DataError(
                f"{path}: holds its pictures itself (column {inside[0]}); write them to files "
                "first: for each row `row['image'].save(...)` with the package datasets"
            )
        return list(rows_inside(path, file))


@contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """A parquet file, as pyarrow opens it; what pyarrow raises becomes a DataError."""
    try:
        import pyarrow.parquet  # the extra `parquet`
    except ImportError:
        raise DataError(f"{path}: reading parquet {HOW_TO_GET_PARQUET}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: is not parquet, or ends early ({error}); copy it again") from None


def rows_inside(
    path: Path, file: Any, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of an open parquet file: many may have a value that is stored once.

    So many are read at once as have room in `PARQUET_BYTES`, were each the largest value there can
    be.

    Raises:
        DataError: they are far larger than the file.
    """
    most = max(PARQUET_BYTES, PARQUET_TIMES * path.stat().st_size)
    groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
    inflated = [
        group.column(index).total_uncompressed_size
        for group in groups
        for index in range(group.num_columns)
    ]
    too_large = DataError(
        f"{path}: holds more than {most} bytes in a file of {path.stat().st_size}, which no table "
        "of names or pictures does"
    )
    if sum(inflated) > most:
        raise too_large
    together = min(max(PARQUET_BYTES // max(inflated, default=1), 1), MOST_ROWS)
    read = 0
    for batch in file.iter_batches(together, columns=columns):
        read += batch.num_rows * ROW_BYTES + sum(map(decoded_bytes, batch.columns))
        if read > most:
            raise too_large
        yield from batch.to_pylist()


def decoded_bytes(column: Any) -> int:
    """Bytes of a pyarrow.Array; of one with a dictionary, those of the values that it uses."""
    decode = getattr(column, "dictionary_decode", None)
    return (decode() if decode else column).nbytes


def has_bytes(kind: Any) -> bool:
    """Return whether a column of this pyarrow.DataType holds pictures."""
    return "binary" in str(kind).partition("<")[0] or (
        str(kind).startswith("struct<") and kind.get_field_index("bytes") >= 0
    )


def is_metadata(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the rows name images."""
    return bool(rows) and image_column(rows[0]) is not None


def image_column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in IMAGE_COLUMNS if name in row), None)


def mask_column(row: Mapping[str, Any]) -> str | None:
    """The column that names a mask's file; one called label may hold a class instead."""
    return next((n for n in MASK_COLUMNS if str(row.get(n)).lower().endswith(MASK_SUFFIXES)), None)


def read_masks(
    path: Path, rows: Sequence[Mapping[str, Any]], images: Names
) -> list[tuple[Path, Path]]:
    """(image, mask) of every row; nothing where the rows name no masks.

    Raises:
        DataError: a row names files that are not there.
    """
    if not is_metadata(rows) or mask_column(rows[0]) is None:
        return []
    masks = Names(sorted(p for p in path.parent.rglob("*") if p.is_file()), path.parent)
    pairs = []
    for number, row in enumerate(rows, 1):
        with reading(path, f"row {number}"):
            image = images.find(file_name(row[image_column(row) or ""]), near=str(path.parent))
            mask = masks.find(file_name(row[mask_column(row) or ""]))
            if image is None or mask is None:
                missing = row[(image_column if image is None else mask_column)(row) or ""]
                raise ValueError(f"names {missing}, which is not there; correct the name")
            pairs.append((image, mask))
    return pairs


def read_objects(path: Path, rows: Sequence[Mapping[str, Any]], found: Annotations) -> None:
    """Rows with `objects`: columns, or a list of objects, of COCO's segmentation and a class."""
    for number, row in enumerate(rows, 1):
        with reading(path, f"row {number}"):
            name = file_name(row[image_column(row) or ""])
            size = None
            if row.get("height") and row.get("width"):
                size = size_of(row["height"], row["width"])
            picture = Picture(name, str(path), size)
            objects = row.get("objects")
            if isinstance(objects, str):  # a csv holds it as JSON
                objects = parse_json(objects, path) if objects.strip() else []
            entries = as_list(objects)
        for index, entry in enumerate(entries, 1):
            item = f"row {number}, object {index}"
            with reading(path, item):
                rings = listing(entry.get("segmentation"), "'segmentation'")
                if not rings:
                    found.skipped["box without segmentation"] += 1
                    continue
                if not isinstance(rings[0], list):
                    rings = [rings]
                given = [entry[name] for name in CLASS_COLUMNS if entry.get(name) is not None]
                if not given:
                    raise ValueError(f"has no class; expected a column {CLASS_COLUMNS[0]!r}")
                label = found.add_class(given[0])
                regions = [Polygon(points(ring)) for ring in rings]
                picture.shapes.append(Shape(label, regions, f"{item} of {path}"))
        found.pictures.append(picture)


def as_list(objects: Any) -> list[Mapping[str, Any]]:
    """{column: [values]} or [{column: value}] as the latter."""
    if not objects:
        return []
    if isinstance(objects, Mapping):
        columns = {key: value for key, value in objects.items() if isinstance(value, list)}
        count = max(map(len, columns.values()), default=0)
        return [
            {key: value[index] for key, value in columns.items() if index < len(value)}
            for index in range(count)
        ]
    return [mapping(entry, "an object") for entry in listing(objects, "'objects'")]
