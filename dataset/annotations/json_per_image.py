"""Formats of one JSON per image: LabelMe, Cityscapes' polygons, Supervisely."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..description import describe
from .masks import Bitmap
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

LABELME_IGNORED = "__ignore__"
CITYSCAPES_ENDING = "_polygons"
# helpers/labels.py of cityscapesScripts: what is none of the 19 evaluated classes
CITYSCAPES_VOID = {
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic"),
    *("ground", "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup"),
    *("caravan", "trailer", "license plate"),
}


def read_labelme(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """LabelMe: later shapes lie in front."""
    with reading(path, "the picture"):
        size = None
        if content.get("imageHeight") and content.get("imageWidth"):
            size = size_of(content["imageHeight"], content["imageWidth"])
        file = content.get("imagePath") or path.stem
        picture = Picture(file_name(file), str(path), size, suffix=file != path.stem)
        shapes = listing(content["shapes"], "'shapes'")
    check_count(len(shapes), path)
    for index, entry in enumerate(shapes, 1):
        item = f"shape {index}"
        with reading(path, item):
            name = text(mapping(entry, "a shape")["label"], "'label'")
            kind = entry.get("shape_type") or "polygon"
            regions = labelme_regions(kind, entry)
            if not regions:
                found.skipped[kind] += 1
                continue
            name = "" if name == LABELME_IGNORED else found.add_class(name)
            picture.shapes.append(Shape(name, regions, f"{item} of {path}"))
    found.pictures.append(picture)


def labelme_regions(kind: str, entry: Mapping[str, Any]) -> list[Region]:
    """The regions of a shape; nothing for a kind that is not known."""
    values = entry["points"]
    if kind == "polygon":
        return [Polygon(points(values))]
    if kind == "rectangle":
        corners = points(values, least=2)
        return [box(*corners.min(axis=0), *corners.max(axis=0))]
    if kind == "circle":
        center, edge = points(values, least=2)[:2]
        radius = float(np.hypot(*(edge - center)))
        return [Ellipse((center[0], center[1]), (radius, radius))]
    if kind in ("line", "linestrip"):
        return [Stroke(points(values, least=2), width_of(entry))]
    if kind in ("point", "points"):
        return [Stroke(point[None], width_of(entry)) for point in points(values, least=1)]
    if kind == "mask":
        left, top = np.floor(points(values, least=1)[0]).astype(int).tolist()
        return [Bitmap(text(entry["mask"], "'mask'"), top, left)]
    return []


def width_of(entry: Mapping[str, Any]) -> float | None:
    """The width of a line where the shape names one: `width` or `line_width`."""
    width = entry.get("width", entry.get("line_width"))
    if width is None:
        return None
    found = number(width, "the width")
    if found <= 0:
        raise ValueError(f"has the width {found:g}; it must be above 0")
    return found


def read_cityscapes(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """Cityscapes: later objects lie in front; a group (cargroup) has its class."""
    found.unlabelled = "ignore"
    name = path.stem.removesuffix(CITYSCAPES_ENDING)
    for quality in ("_gtFine", "_gtCoarse"):
        if name.endswith(quality):
            name = f"{name.removesuffix(quality)}_leftImg8bit"
    place = path.with_name(name).as_posix()
    with reading(path, "the picture"):
        size = size_of(content["imgHeight"], content["imgWidth"])
        entries = listing(content["objects"], "'objects'")
    check_count(len(entries), path)
    picture = Picture(place, str(path), size, suffix=False)
    for index, entry in enumerate(entries, 1):
        item = f"object {index}"
        with reading(path, item):
            if mapping(entry, "an object").get("deleted"):
                continue
            label = text(entry["label"], "'label'")
            label = found.add_class(label)
            polygon = Polygon(points(entry["polygon"]))
            picture.shapes.append(Shape(label, [polygon], f"{item} of {path}"))
    found.pictures.append(picture)


def as_official_cityscapes(found: Annotations) -> None:
    """Number the 19 classes as Cityscapes does where all names are its own; others are ignored."""
    official = describe("cityscapes")
    names: dict[str, str] = {}
    for name in found.classes:
        single = name.removesuffix("group")
        if name in official.names or single in official.names:
            names[name] = name if name in official.names else single
        elif name in CITYSCAPES_VOID:
            names[name] = ""
        else:
            return
    found.classes = dict(zip(official.names, map(tuple, official.colors), strict=True))
    for picture in found.pictures:
        picture.shapes = [
            Shape(names[shape.name], shape.regions, shape.item) for shape in picture.shapes
        ]
    found.notes.append("Cityscapes' names: its 19 classes in its order, all others are ignored")


def read_supervisely_meta(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """meta.json: the project's classes with their colours, in their order."""
    listed: dict[str, Any] = {}
    for index, entry in enumerate(listing(content["classes"], "'classes'"), 1):
        with reading(path, f"class {index}"):
            name = text(mapping(entry, "a class")["title"], "'title'")
            listed[name] = color(entry.get("color"))
            found.add_class(name, listed[name])


def read_supervisely(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """Supervisely: photo.jpg.json; later objects lie in front."""
    with reading(path, "the picture"):
        size = size_of(content["size"]["height"], content["size"]["width"])
        entries = listing(content["objects"], "'objects'")
    check_count(len(entries), path)
    picture = Picture(path.with_suffix("").as_posix(), str(path), size)
    for index, entry in enumerate(entries, 1):
        item = f"object {index}"
        with reading(path, item):
            kind = mapping(entry, "an object").get("geometryType")
            regions = supervisely_regions(kind, entry)
            if not regions:
                found.skipped[str(kind)] += 1
                continue
            name = found.add_class(text(entry["classTitle"], "'classTitle'"))
            picture.shapes.append(Shape(name, regions, f"{item} of {path}"))
    found.pictures.append(picture)


def supervisely_regions(kind: object, entry: Mapping[str, Any]) -> Sequence[Region]:
    """The regions of an object; nothing for a kind that is not known."""
    if kind == "bitmap":
        left, top = listing(entry["bitmap"]["origin"], "'origin'")
        return [Bitmap(text(entry["bitmap"]["data"], "'data'"), int(top), int(left))]
    if kind not in ("polygon", "rectangle", "line", "point"):
        return []
    outline = entry["points"]["exterior"]
    if kind == "polygon":
        holes = [points(ring) for ring in listing(entry["points"].get("interior"), "'interior'")]
        return [Polygon(points(outline), holes)]
    if kind == "rectangle":
        corners = points(outline, least=2)
        return [box(*corners.min(axis=0), *corners.max(axis=0))]
    return [Stroke(points(outline, least=2 if kind == "line" else 1))]
