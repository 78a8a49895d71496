"""XML: CVAT for images 1.1, and Pascal VOC's with polygons."""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ...config.limits import PIXELS
from .masks import Runs, check_area
from .model import Annotations, Picture, Region, Shape
from .parse import check_count, color, file_name, number, points, reading, size_of
from .rasterize import Ellipse, Polygon, Stroke, box


def read_cvat(path: Path, root: Element, found: Annotations) -> None:
    """CVAT for images 1.1: a larger z_order lies in front, then the later shape."""
    add_cvat_labels(path, root, found)
    for index, image in enumerate(root.iterfind("image")):
        with reading(path, f"image {image.get('name', index)}"):
            name = file_name(required(image, "name"))
            size = size_of(required(image, "height"), required(image, "width"))
            shapes = [shape for shape in image if shape.tag != "tag"]
            shapes.sort(key=lambda shape: number(shape.get("z_order", 0), "z_order"))
        check_count(len(shapes), path)
        picture = Picture(name, str(path), size)
        for place, shape in enumerate(shapes, 1):
            item = f"image {name}, {shape.tag} {place}"
            with reading(path, item):
                regions = cvat_regions(shape)
                if not regions:
                    found.skipped[shape.tag] += 1
                    continue
                label = found.add_class(required(shape, "label"))
                picture.shapes.append(Shape(label, regions, f"{item} of {path}"))
        found.pictures.append(picture)


def add_cvat_labels(path: Path, root: Element, found: Annotations) -> None:
    """The classes of CVAT's head, which both of its formats have."""
    for index, label in enumerate(root.iterfind("meta//labels/label"), 1):
        with reading(path, f"label {index}"):
            found.add_class(label.findtext("name") or "", color(label.findtext("color")))


def required(element: Element, name: str) -> str:
    """An attribute that must be there; KeyError where it is not."""
    return element.attrib[name]


def cvat_regions(shape: Element) -> list[Region]:
    """The region of a shape; nothing for a kind that is not known."""

    def value(name: str) -> float:
        return number(required(shape, name), name)

    angle = number(shape.get("rotation", 0), "rotation")
    if shape.tag == "box":
        return [box(*(value(name) for name in ("xtl", "ytl", "xbr", "ybr")), angle)]
    if shape.tag == "ellipse":
        return [Ellipse((value("cx"), value("cy")), (value("rx"), value("ry")), angle)]
    if shape.tag == "mask":
        height, width = size_of(required(shape, "height"), required(shape, "width"))
        check_area(height, width)
        counts = np.array(required(shape, "rle").split(","), np.int64)
        counts = np.clip(counts, -1, PIXELS + 1)
        left, top = int(value("left")), int(value("top"))
        return [Runs(counts, height, width, top, left, by_columns=False)]
    if shape.tag not in ("polygon", "polyline", "points"):
        return []
    pairs = point_pairs(shape)
    if shape.tag == "polygon":
        return [Polygon(points(pairs))]
    if shape.tag == "polyline":
        return [Stroke(points(pairs, least=2))]
    return [Stroke(point[None]) for point in points(pairs, least=1)]


def point_pairs(shape: Element) -> list[list[str]]:
    """The points of a shape as CVAT writes them: x,y;x,y;..."""
    return [pair.split(",") for pair in required(shape, "points").split(";")]


def read_voc(path: Path, root: Element, found: Annotations) -> None:
    """Pascal VOC with <polygon>: <x1>, <y1>, <x2>, ... or <pt><x/><y/></pt>; later ones in front.

    An object with only a box has no outline, and is counted as skipped.
    """
    with reading(path, "the picture"):
        place = root.find("size")
        size = None
        if place is not None and (place.findtext("height") or "0") != "0":
            size = size_of(place.findtext("height"), place.findtext("width"))
        name = file_name(root.findtext("filename") or path.stem)
        picture = Picture(name, str(path), size, suffix=name != path.stem)
        objects = root.findall("object")
    check_count(len(objects), path)
    for index, entry in enumerate(objects, 1):
        item = f"object {index}"
        with reading(path, item):
            label = found.add_class(entry.findtext("name") or "")
            regions = [Polygon(voc_points(polygon)) for polygon in entry.iterfind("polygon")]
            if not regions:
                found.skipped["box without polygon"] += 1
                continue
            picture.shapes.append(Shape(label, regions, f"{item} of {path}"))
    found.pictures.append(picture)


def voc_points(polygon: Element) -> np.ndarray:
    """(N, 2) of both ways to write them."""
    if polygon.find("pt") is not None:
        pairs = [(pt.findtext("x"), pt.findtext("y")) for pt in polygon.iterfind("pt")]
    else:
        count = sum(child.tag.startswith("x") for child in polygon)
        pairs = [
            (polygon.findtext(f"x{i}"), polygon.findtext(f"y{i}")) for i in range(1, count + 1)
        ]
    return points([(number(x, "x"), number(y, "y")) for x, y in pairs])
