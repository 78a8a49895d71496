"""XML: CVAT for images and for video 1.1, and Pascal VOC's with polygons."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ...config.limits import ANNOTATION_FRAMES, ANNOTATION_TRACKED, PIXELS
from .masks import Runs, check_area
from .model import Annotations, Picture, Region, Shape
from .parse import check_count, color, file_name, number, points, reading, size_of
from .rasterize import Ellipse, Polygon, Stroke, box

# attributes that move from one keyframe to the next in equal steps, as CVAT moves them
MOVING = ("xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "rotation")
MOVES = ("box", "ellipse", "polygon", "polyline", "points")


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


def read_tracks(path: Path, root: Element, found: Annotations) -> None:
    """A picture for each frame, called as CVAT exports it: frame_000012.

    A shape holds from its frame to the next one that is listed, and moves towards it; `outside`
    ends it. A larger z_order lies in front, then the later track.
    """
    add_cvat_labels(path, root, found)
    with reading(path, "the task"):
        if root.find("image") is not None:
            raise ValueError("holds images and tracks; export the tasks one by one")
        size, frames = task_of(root)
    tracks: list[tuple[str, str, dict[int, Element]]] = []
    for index, track in enumerate(root.iterfind("track")):
        item = f"track {track.get('id', index)}"
        with reading(path, item):
            label = found.add_class(required(track, "label"))
            shapes = {frame_number(shape): shape for shape in track if shape.get("frame")}
            tracks.append((item, label, dict(sorted(shapes.items()))))
    with reading(path, "the tracks"):
        frames = sorted({*frames, *(frame for _, _, shapes in tracks for frame in shapes)})
        if len(frames) > ANNOTATION_FRAMES or len(frames) * len(tracks) > ANNOTATION_TRACKED:
            raise ValueError(f"{len(tracks)} tracks of {len(frames)} frames: split the task")
    drawn: dict[int, list[tuple[float, Shape]]] = {frame: [] for frame in frames}
    for item, label, shapes in tracks:
        with reading(path, item):
            for frame, depth, tag, regions in shapes_of_track(shapes, frames):
                if not regions:
                    found.skipped[tag] += 1
                    continue
                where = f"frame {frame}, {item} of {path}"
                drawn[frame].append((depth, Shape(label, regions, where)))
    for frame, entries in drawn.items():
        picture = Picture(f"frame_{frame:06d}", str(path), size, suffix=False)
        entries.sort(key=lambda entry: entry[0])  # stable: the later track stays in front
        picture.shapes += [shape for _, shape in entries]
        found.pictures.append(picture)
    found.notes.append(
        f"{len(tracks)} tracks of a film; its frames are the images that are called frame_000000 "
        "and so on"
    )


def task_of(root: Element) -> tuple[tuple[int, int] | None, Sequence[int]]:
    """(height, width) and numbers of the frames, as far as the file says."""
    height, width = (root.findtext(f"meta//original_size/{name}") for name in ("height", "width"))
    size = size_of(height, width) if height and width else None
    start = int(root.findtext("meta//start_frame") or 0)
    stop = root.findtext("meta//stop_frame")
    step = (root.findtext("meta//frame_filter") or "step=1").partition("step=")[2]
    frames = range(start, int(stop) + 1, int(step or 1)) if stop else range(0)
    if min(start, int(step or 1) - 1) < 0 or len(frames) > ANNOTATION_FRAMES:
        raise ValueError(f"has frames {start} to {stop} by {step}; split the task")
    return size, frames


def frame_number(shape: Element) -> int:
    """The frame that a shape is listed for."""
    frame = int(required(shape, "frame"))
    if not 0 <= frame < 10**9:
        raise ValueError(f"frame {frame}: expected 0 or more")
    return frame


def shapes_of_track(
    shapes: dict[int, Element], frames: Sequence[int]
) -> Iterator[tuple[int, float, str, list[Region]]]:
    """(frame, z_order, kind, regions) wherever the track is visible; `shapes` in their order."""
    listed = list(shapes)
    place = -1
    for frame in frames:
        while place + 1 < len(listed) and listed[place + 1] <= frame:
            place += 1
        if place < 0 or shapes[listed[place]].get("outside") == "1":
            continue
        shape = shapes[listed[place]]
        if listed[place] < frame and place + 1 < len(listed):
            after = listed[place + 1]
            share = (frame - listed[place]) / (after - listed[place])
            shape = between(shape, shapes[after], share)
        depth = number(shape.get("z_order", 0), "z_order")
        yield frame, depth, shape.tag, cvat_regions(shape)


def between(first: Element, second: Element, share: float) -> Element:
    """The shape at a share of the way from one to the next; masks stay until the next one.

    Raises:
        ValueError: outlines of different numbers of points, which CVAT alone can match.
    """
    if first.tag != second.tag or first.tag not in MOVES:
        return first
    values = dict(first.attrib)
    for name in MOVING:
        if name in first.attrib and name in second.attrib:
            start, end = (number(shape.get(name), name) for shape in (first, second))
            if name == "rotation":  # the shorter way round
                end = start + (end - start + 180) % 360 - 180
            values[name] = repr(start + (end - start) * share)
    if "points" in first.attrib:
        start, end = (points(point_pairs(shape), least=1) for shape in (first, second))
        if len(start) != len(end):
            raise ValueError(
                f"has {len(start)} points in frame {first.get('frame')} and {len(end)} in frame "
                f"{second.get('frame')}, and no frame between them is listed: export the task "
                "again with a current version of CVAT, which lists every frame"
            )
        moved = start + (end - start) * share
        values["points"] = ";".join(f"{x!r},{y!r}" for x, y in moved.tolist())
    return Element(first.tag, values)


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
