"""Which annotation format files are of, by what is in them, and what they hold."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.errors import DataError
from ...util.images import IMAGE_SUFFIXES
from ..preparation.class_masks import read_class_masks
from ..preparation.match import files_below, refuse_archive
from . import coco, datumaro, json_per_image, label_studio, metadata, xml_files, yolo
from .model import Annotations
from .names import Names
from .parse import parse_json, read_text, read_xml, reading, start_of

HUGGING_FACE = "Hugging Face image folder"
Read = Callable[[Path, Any, Annotations], None]
SUFFIXES = (".json", ".jsonl", ".xml", ".txt", ".csv", ".parquet")
JSON_READERS: dict[str, Read] = {
    "COCO": coco.read_instances,
    "COCO panoptic": coco.read_panoptic,
    "LabelMe": json_per_image.read_labelme,
    "Cityscapes polygons": json_per_image.read_cityscapes,
    "Supervisely": json_per_image.read_supervisely,
    "Supervisely meta": json_per_image.read_supervisely_meta,
    "Datumaro": datumaro.read_datumaro,
    "Label Studio": label_studio.read_label_studio,
}
XML_READERS: dict[str, tuple[str, Read]] = {
    "annotations": ("CVAT for images", xml_files.read_cvat),
    "annotations with tracks": ("CVAT for video", xml_files.read_tracks),
    "annotation": ("Pascal VOC", xml_files.read_voc),
}
XML_ROOT = re.compile(rb"<annotations?[\s>]")
# whose files list no classes: these are put in the order of their names
WITHOUT_A_LIST = ("LabelMe", "Cityscapes polygons", "Pascal VOC", "Label Studio", HUGGING_FACE)
TABLES = (".jsonl", ".csv", ".parquet")
CVAT_MASKS = "SegmentationClass"


@dataclass(frozen=True)
class Masks:
    """Labels that are pictures: a folder of them, or pairs; `table` is a labelmap.txt."""

    format: str
    folder: Path
    pairs: Sequence[tuple[Path, Path]] = ()
    table: Path | None = None


def read_labels(labels: Path, images: Path, image_files: Sequence[Path]) -> Annotations | Masks:
    """Read whatever `labels`, a file or a folder, holds.

    Args:
        images: folder of the images, `image_files` all that are below it.
    Raises:
        DataError: a file is damaged, or there are none or several formats; the message names it.
    """
    refuse_archive(labels)
    if not labels.exists():
        raise DataError(f"{labels}: no such file or folder")
    folder = labels if labels.is_dir() else labels.parent
    if labels.is_dir() and (labels / "labelmap.txt").is_file() and (labels / CVAT_MASKS).is_dir():
        return Masks("CVAT masks", labels / CVAT_MASKS, table=labels / "labelmap.txt")
    files = annotation_files(labels) if labels.is_dir() else [labels]
    if labels.suffix.lower() in (".yaml", ".yml"):
        files = annotation_files(folder)
    found: dict[str, Annotations] = {}
    first: dict[str, Path] = {}
    masks: list[tuple[Path, Path]] = []
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    strange: list[Path] = []
    for path in files:
        if path.suffix.lower() == ".txt":
            continue
        if path.suffix.lower() in TABLES:
            rows = metadata.read_rows(path)
            with reading(path, "the file"):
                masks += metadata.read_masks(path, rows, Names(image_files, images))
            kind = None if masks else read_table(path, rows, found)
        else:
            kind = read_one(path, found)
        if kind is not None:
            first.setdefault(kind, path)
        elif not masks:
            strange.append(path)
    if masks:
        return Masks(HUGGING_FACE, folder, masks)
    if not found:
        add_yolo(texts, folder, found, first)
    if len(found) > 1:
        listed = ", ".join(f"{path} ({kind})" for kind, path in first.items())
        raise DataError(f"{labels}: has annotations of several formats: {listed}; name one of them")
    if not found:
        masks_of_classes = read_class_masks(labels, images, image_files)
        return masks_of_classes or as_masks(labels, [*strange, *texts])
    annotations = next(iter(found.values()))
    finish(annotations, folder, strange)
    return annotations


def annotation_files(folder: Path) -> list[Path]:
    """Files below a folder that may hold annotations, sorted; hidden ones are left out."""
    return sorted(path for path in files_below(folder) if may_annotate(path.name))


def may_annotate(name: str) -> bool:
    """Return whether a file in a folder may hold annotations; tables are called metadata."""
    path = Path(name.lower())
    if path.suffix in TABLES and path.stem != "metadata":
        return False
    return path.suffix in SUFFIXES


def read_table(
    path: Path, rows: Sequence[Mapping[str, Any]], found: dict[str, Annotations]
) -> str | None:
    """Read a table of objects; the format, or None where it names no images."""
    if not metadata.is_metadata(rows):
        return None
    with reading(path, "the file"):
        metadata.read_objects(path, rows, found.setdefault(HUGGING_FACE, Annotations(HUGGING_FACE)))
    return HUGGING_FACE


def read_one(path: Path, found: dict[str, Annotations]) -> str | None:
    """Read a file into the annotations of its format; the format, or None where it has none."""
    start = start_of(path)
    if start.startswith(b"<"):
        if XML_ROOT.search(start) is None:
            return None  # such as GDAL's .aux.xml beside a picture
        root = read_xml(path)
        tag = f"{root.tag} with tracks" if root.find("track") is not None else root.tag
        if tag not in XML_READERS:
            return None
        kind, read = XML_READERS[tag]
        with reading(path, "the file"):
            read(path, root, found.setdefault(kind, Annotations(kind)))
        return kind
    if not start.startswith((b"{", b"[")):
        return None
    content = parse_json(read_text(path), path)
    format_name = json_format(content, path)
    if format_name is None:
        return None
    kind = format_name.removesuffix(" meta")
    with reading(path, "the file"):
        JSON_READERS[format_name](path, content, found.setdefault(kind, Annotations(kind)))
    return kind


def json_format(content: Any, path: Path) -> str | None:
    """The key of `JSON_READERS` for a JSON's content.

    Raises:
        DataError: it is Label Studio's short form, which lacks what is needed.
    """
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], Mapping) else {}
        if "data" in first and "annotations" in first:
            return "Label Studio"
        if "annotator" in first or "annotation_id" in first:
            raise DataError(f"{path}: is Label Studio's JSON-MIN; export it as JSON")
        return None
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("shapes"), list):
        return "LabelMe"
    if "imgHeight" in content and "objects" in content:
        return "Cityscapes polygons"
    if isinstance(content.get("categories"), Mapping) and "items" in content:
        return "Datumaro"
    if isinstance(content.get("objects"), list) and isinstance(content.get("size"), Mapping):
        return "Supervisely"
    classes = content.get("classes")
    if isinstance(classes, list) and classes and isinstance(classes[0], Mapping):
        return "Supervisely meta" if "title" in classes[0] else None
    if "annotations" in content and "categories" in content:
        entries = content["annotations"]
        first = entries[0] if isinstance(entries, list) and entries else None
        panoptic = isinstance(first, Mapping) and "segments_info" in first
        return "COCO panoptic" if panoptic else "COCO"
    return None


def add_yolo(
    texts: Sequence[Path], folder: Path, found: dict[str, Annotations], first: dict[str, Path]
) -> None:
    """YOLO's labels among the texts: those that look like it, and empty ones beside them."""
    starts = {path: start_of(path) for path in texts if path.name not in yolo.NAME_FILES}
    full = [path for path, start in starts.items() if yolo.is_yolo(start)]
    if full:
        chosen = [path for path, start in starts.items() if path in set(full) or not start]
        found["YOLO"] = Annotations("YOLO")
        yolo.read_yolo(chosen, folder, found["YOLO"])
        first["YOLO"] = full[0]


def as_masks(labels: Path, strange: Sequence[Path]) -> Masks:
    """A folder of pictures without annotation files.

    Raises:
        DataError: there are no pictures either; the message names what there is.
    """
    pictures = labels.is_dir() and any(
        path.suffix.lower() in (*IMAGE_SUFFIXES, ".gif") for path in labels.rglob("*")
    )
    if strange and not pictures:
        raise DataError(
            f"{strange[0]}: is of no annotation format that is read here; export it as COCO JSON, "
            "or see docs/datasets.md"
        )
    return Masks("masks", labels)


def finish(annotations: Annotations, folder: Path, strange: Sequence[Path]) -> None:
    """Put classes without a list in order; say what was left out.

    LabelMe's labels.txt is a list, where it lies in the folder.
    """
    if annotations.format in WITHOUT_A_LIST:
        names = sorted(annotations.classes, key=str.casefold)
        listed = folder / "labels.txt"
        if annotations.format == "LabelMe" and listed.is_file():
            lines = [" ".join(line.split()) for line in read_text(listed).splitlines()]
            own = [line for line in lines if line and not line.startswith("__")]
            with reading(listed, "the names"):
                names = list(dict.fromkeys(map(annotations.add_class, [*own, *names])))
        annotations.classes = {name: annotations.classes[name] for name in names}
    if annotations.format == "Cityscapes polygons":
        json_per_image.as_official_cityscapes(annotations)
    if strange:
        annotations.notes.append(
            f"{len(strange)} file(s), such as {strange[0]}, are of no known format and left out"
        )
