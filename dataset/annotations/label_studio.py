"""Label Studio's JSON export: polygons, brushes, rectangles, ellipses, key points in percent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np

from .masks import Brush, check_area
from .model import Annotations, Picture, Region, Shape
from .parse import check_count, file_name, listing, mapping, number, points, reading, size_of
from .rasterize import Ellipse, Polygon, Stroke

PICTURE_KEYS = ("image", "img", "picture", "photo")


def read_label_studio(path: Path, content: Sequence[Any], found: Annotations) -> None:
    """A list of tasks; of several annotations of one task the first that was not cancelled.

    A task without one was not annotated, so that nothing is known of its picture.
    """
    several = skipped = 0
    for index, task in enumerate(content):
        number_of = task.get("id", index) if isinstance(task, Mapping) else index
        with reading(path, f"task {number_of}"):
            data = mapping(mapping(task, "a task")["data"], "'data'")
            key = next((key for key in PICTURE_KEYS if key in data), None)
            address = data[key] if key else next(iter(data.values()), None)
            picture = Picture(file_of(file_name(address)), str(path))
            given = [
                entry
                for entry in listing(task["annotations"], "'annotations'")
                if not entry.get("was_cancelled")
            ]
            several += len(given) > 1
            skipped += not given
            results = listing(given[0].get("result"), "'result'") if given else ()
        if not given:
            continue
        check_count(len(results), path)
        add_results(path, number_of, results, picture, found)
        found.pictures.append(picture)
    if skipped:
        found.notes.append(f"{path}: {skipped} task(s) are not annotated, or were skipped")
    if several:
        found.notes.append(f"{path}: {several} task(s) have several annotations; the first counts")


def file_of(address: str) -> str:
    """The file in an address: of /data/local-files/?d=a/b.jpg and s3://bucket/a/b.jpg, too."""
    parts = urlparse(address)
    if query := parse_qs(parts.query).get("d"):
        return query[0]
    return parts.path if parts.scheme in ("http", "https", "s3", "gs") else address


def add_results(
    path: Path, task: object, results: Sequence[Any], picture: Picture, found: Annotations
) -> None:
    """The shapes of one annotation; parts of one region (outline, class) share an id."""
    regions: dict[Any, dict[str, Any]] = {}
    for index, entry in enumerate(results):
        with reading(path, f"task {task}, result {index}"):
            if not isinstance(mapping(entry, "a result").get("value"), Mapping):
                continue
            if "original_width" not in entry:
                continue  # a choice or a text about the whole image
            kept = regions.setdefault(entry.get("id", index), {"entry": entry, "label": None})
            labels = [v for k, v in entry["value"].items() if k.endswith("labels") and v]
            if labels and kept["label"] is None:
                kept["label"] = str(listing(labels[0], "the labels")[0])
    for key, kept in regions.items():
        item = f"task {task}, region {key}"
        with reading(path, item):
            entry = kept["entry"]
            size = size_of(entry["original_height"], entry["original_width"])
            drawn = regions_of(entry["value"], size)
            if not drawn or kept["label"] is None:
                kind = entry.get("type", "region") if not drawn else "region without a class"
                found.skipped[str(kind)] += 1
                continue
            picture.size = picture.size or size
            name = found.add_class(kept["label"])
            picture.shapes.append(Shape(name, drawn, f"{item} of {path}"))


def regions_of(value: Mapping[str, Any], size: tuple[int, int]) -> list[Region]:
    """The region of a result's value; nothing for a kind that is not known."""
    height, width = size
    scale = np.array([width, height]) / 100
    if "rle" in value:
        check_area(height, width)
        code = listing(value["rle"], "'rle'")
        if not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in code):
            raise ValueError("its brush code is not bytes; export it again")
        return [Brush(bytes(code), height, width)]
    if "points" in value:
        return [Polygon(points(value["points"]) * scale)]
    if not {"x", "y", "width"} <= value.keys() and not {"x", "y", "radiusX"} <= value.keys():
        return []
    x, y = number(value["x"], "'x'") * scale[0], number(value["y"], "'y'") * scale[1]
    angle = number(value.get("rotation") or 0, "'rotation'")
    if "radiusX" in value:
        radii = [number(value[key], key) for key in ("radiusX", "radiusY")] * scale
        return [Ellipse((float(x), float(y)), (float(radii[0]), float(radii[1])), angle)]
    if "height" not in value:  # a key point: its width is that of the dot
        return [Stroke(np.array([[x, y]]), number(value["width"], "'width'") * scale[0])]
    wide, high = [number(value[key], key) for key in ("width", "height")] * scale
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    corners = np.array([(0, 0), (wide, 0), (wide, high), (0, high)])
    return [Polygon(corners @ np.array([[cos, sin], [-sin, cos]]) + (x, y))]  # about its corner
