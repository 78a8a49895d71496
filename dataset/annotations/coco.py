"""COCO's JSON: instances (polygons, run lengths, crowds) and panoptic (ids in PNGs)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...util.images import IMAGE_SUFFIXES
from .masks import IdPixels, runs_of
from .model import Annotations, Picture, Region, Shape
from .names import Names
from .parse import color, file_name, listing, mapping, points, reading, size_of, text
from .rasterize import Polygon


def read_instances(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """COCO JSON of objects; later annotations lie in front."""
    names = read_categories(path, content, found)
    pictures = read_images(path, content)
    unlisted = 0
    with reading(path, "'annotations'"):
        entries = listing(content["annotations"], "'annotations'")
    for index, entry in enumerate(entries):
        item = f"annotation {entry.get('id', index) if isinstance(entry, Mapping) else index}"
        with reading(path, item):
            picture = pictures.get(entry["image_id"])
            if picture is None:
                unlisted += 1
                continue
            regions = regions_of(entry.get("segmentation"), picture)
            if not regions:
                found.skipped["box without segmentation"] += 1
                continue
            if entry["category_id"] not in names:
                listed = ", ".join(map(repr, list(names)[:8]))
                raise ValueError(
                    f"has the category {entry['category_id']!r}, which is not listed: {listed}"
                )
            crowd = bool(entry.get("iscrowd", 0))
            name = names[entry["category_id"]]
            picture.shapes.append(Shape(name, regions, f"{item} of {path}", crowd))
    if unlisted:
        found.notes.append(f"{path}: {unlisted} annotation(s) are of images that it does not list")
    found.pictures += pictures.values()


def regions_of(segmentation: object, picture: Picture) -> list[Region]:
    """The polygons or the mask of one annotation; nothing where it has only a box."""
    if isinstance(segmentation, Mapping):
        height, width = listing(segmentation["size"], "'size'")
        size = size_of(height, width)
        if picture.size is not None and size != picture.size:
            raise ValueError(
                f"its mask is {size[1]}x{size[0]} and its image {picture.size[1]}x"
                f"{picture.size[0]} pixels (width x height); export it again"
            )
        return [runs_of(segmentation["counts"], *size)]
    rings = listing(segmentation, "'segmentation'")
    if rings and not isinstance(rings[0], list):
        rings = [rings]  # one polygon without the outer brackets
    return [Polygon(points(ring)) for ring in rings]


def read_panoptic(path: Path, content: Mapping[str, Any], found: Annotations) -> None:
    """COCO panoptic: each annotation is a PNG of segment ids beside the JSON or in a folder."""
    names = read_categories(path, content, found)
    images = read_images(path, content)
    beside = path.parent / path.stem
    folder = beside if beside.is_dir() else path.parent
    files = Names(sorted(p for p in folder.rglob("*.png")), folder)
    found.unlabelled = "ignore"
    with reading(path, "'annotations'"):
        entries = listing(content["annotations"], "'annotations'")
    for index, entry in enumerate(entries):
        with reading(path, f"annotation {index}"):
            name = file_name(entry["file_name"])
            image = images.get(entry.get("image_id"))
            png = files.find(name)
            if png is None:
                raise ValueError(f"names the picture {name}, which is not below {folder}")
            changed = png.stat().st_mtime_ns
            picture = image or Picture(str(Path(name).with_suffix("")), str(path), suffix=False)
            for segment in listing(entry["segments_info"], "'segments_info'"):
                region = IdPixels(png, int(segment["id"]), changed)
                item = f"segment {segment['id']} of {png}"
                crowd = bool(segment.get("iscrowd", 0))
                picture.shapes.append(Shape(names[segment["category_id"]], [region], item, crowd))
            if image is None:
                found.pictures.append(picture)
    found.pictures += images.values()


def read_categories(path: Path, content: Mapping[str, Any], found: Annotations) -> dict[Any, str]:
    """id -> class name, in order of the ids.

    Roboflow lists the project as a category, above all others: it is none of the classes.
    """
    names: dict[Any, str] = {}
    with reading(path, "'categories'"):
        entries = [mapping(e, "a category") for e in listing(content["categories"], "'categories'")]
        above = {entry.get("supercategory") for entry in entries}
        marked = [m for e in content["annotations"] for m in (e, *e.get("segments_info", ()))]
        used = {mark["category_id"] for mark in marked if "category_id" in mark}
        for entry in sorted(entries, key=lambda entry: int(entry["id"])):
            name = text(entry["name"], "a name")
            if entry["id"] in names:
                raise ValueError(
                    f"lists the id {entry['id']} as {names[entry['id']]!r} and as {name!r}; give "
                    "each category an id of its own"
                )
            top = entry.get("supercategory") in (None, "", "none")
            if top and name in above and entry["id"] not in used and len(entries) > 1:
                found.notes.append(f"the category {name!r} is that of the others, and no class")
                continue
            names[entry["id"]] = found.add_class(name, color(entry.get("color")))
    return names


def read_images(path: Path, content: Mapping[str, Any]) -> dict[Any, Picture]:
    """id -> picture without shapes."""
    pictures: dict[Any, Picture] = {}
    with reading(path, "'images'"):
        entries = listing(content.get("images"), "'images'")
    for index, entry in enumerate(entries):
        with reading(path, f"image {index}"):
            name = file_name(entry["file_name"])
            size = None
            if entry.get("height") and entry.get("width"):
                size = size_of(entry["height"], entry["width"])
            suffix = name.lower().endswith(IMAGE_SUFFIXES)
            if entry["id"] in pictures:
                raise ValueError(
                    f"has the id {entry['id']!r}, as {pictures[entry['id']].file} has; give each "
                    "image an id of its own"
                )
            pictures[entry["id"]] = Picture(name, str(path), size, suffix=suffix)
    return pictures
