"""CVAT for video 1.1: tracks, whose shapes move between keyframes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ...config.limits import ANNOTATION_FRAMES, ANNOTATION_TRACKED
from .model import Annotations, Picture, Region, Shape
from .parse import number, points, reading, size_of
from .xml_files import add_cvat_labels, cvat_regions, point_pairs, required

# attributes that move from one keyframe to the next in equal steps, as CVAT moves them
MOVING = ("xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "rotation")
MOVES = ("box", "ellipse", "polygon", "polyline", "points")


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
