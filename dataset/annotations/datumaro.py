"""Datumaro's JSON: items with polygons, masks, boxes, lines and ellipses, by z_order."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .masks import runs_of
from .model import Annotations, Picture, Region, Shape
from .parse import (
    check_count,
    color,
    file_name,
    listing,
    mapping,
    number,
    points,
    reading,
    size_of,
    text,
)
from .rasterize import Ellipse, Polygon, Stroke, box

AREAS = ("polygon", "mask", "ellipse")


def read_datumaro(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """Items with annotations; a larger z_order lies in front, then the later one."""
    names = read_categories(path, content, found)
    with reading(path, "'items'"):
        items = listing(content["items"], "'items'")
    for index, entry in enumerate(items):
        with reading(path, f"item {index}"):
            identity = file_name(mapping(entry, "an item")["id"])
            image = entry.get("image") or {}
            size = size_of(*image["size"]) if image.get("size") else None
            name = file_name(image.get("path") or identity)
            picture = Picture(name, str(path), size, suffix=name != identity)
            given = [
                mapping(a, "an annotation")
                for a in listing(entry.get("annotations"), "'annotations'")
            ]
            check_count(len(given), path)
            given.sort(key=lambda a: number(a.get("z_order", 0), "'z_order'"))
            groups = Counter(a["group"] for a in given if a.get("group") and a["type"] in AREAS)
        for place, annotation in enumerate(given):
            item = f"item {identity}, annotation {annotation.get('id', place)}"
            with reading(path, item):
                kind = annotation["type"]
                if kind == "bbox" and groups[annotation.get("group")]:
                    continue  # the box around a polygon or mask
                regions = regions_of(kind, annotation)
                if not regions:
                    found.skipped[str(kind)] += 1
                    continue
                crowd = bool((annotation.get("attributes") or {}).get("is_crowd"))
                label = names[int(annotation["label_id"])]
                picture.shapes.append(Shape(label, regions, f"{item} of {path}", crowd))
        found.pictures.append(picture)


def read_categories(path: Path, content: Mapping[str, Any], found: Annotations) -> dict[int, str]:
    """label_id -> class name; the colours of the mask categories, where there are any."""
    with reading(path, "'categories'"):
        categories = mapping(content["categories"], "'categories'")
        colormap = mapping(categories.get("mask") or {}, "'mask'").get("colormap")
        colors = {
            entry["label_id"]: color([entry["r"], entry["g"], entry["b"]])
            for entry in listing(colormap, "'colormap'")
        }
        labels = listing(mapping(categories["label"], "'label'")["labels"], "'labels'")
        return {
            index: found.add_class(text(entry["name"], "a name"), colors.get(index))
            for index, entry in enumerate(labels)
        }


def regions_of(kind: object, entry: Mapping[str, Any]) -> list[Region]:
    """The region of an annotation; nothing for a kind that is not known."""
    if kind == "polygon":
        return [Polygon(points(entry["points"]))]
    if kind == "mask":
        height, width = entry["rle"]["size"]
        return [runs_of(entry["rle"]["counts"], *size_of(height, width))]
    if kind == "bbox":
        left, top, width, height = (number(v, "'bbox'") for v in entry["bbox"])
        return [box(left, top, left + width, top + height)]
    if kind == "polyline":
        return [Stroke(points(entry["points"], least=2))]
    if kind == "points":
        return [Stroke(point[None]) for point in points(entry["points"], least=1)]
    if kind == "ellipse":
        (left, top), (right, bottom) = points(entry["points"], least=2)
        center = (left + right) / 2, (top + bottom) / 2
        return [Ellipse(center, ((right - left) / 2, (bottom - top) / 2))]
    return []
