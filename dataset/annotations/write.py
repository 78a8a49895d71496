"""Masks of classes become polygons again, for annotation tools: COCO, LabelMe, CVAT, YOLO.

Outlines run between the centres of the pixels inside and those outside, so that drawing them by the
rule of `rasterize.py` gives the mask back. Pixels that touch at a corner only are separate objects.
"""

import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import yaml
from PIL import Image

from ...util.files import write_lines, write_text
from .model import BACKGROUND_NAMES, Colour

Format = Literal["coco", "labelme", "cvat", "yolo"]
TOLERANCE = 0.35  # pixels that an outline may be straightened by; centres are 0.35 off diagonals
# one step along each of the four sides of a pixel, clockwise: right, down, left, up (x, y)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


@dataclass(frozen=True)
class Part:
    """Connected pixels of one class, inside a box at row `top` and column `left`.

    Args:
        inside: (h, w) bool.
        outline, holes: (N, 2) x, y in the whole picture.
    """

    label: int
    top: int
    left: int
    inside: np.ndarray
    outline: np.ndarray
    holes: Sequence[np.ndarray]


@dataclass(frozen=True)
class Outlined:
    """The parts of one mask.

    Args:
        name: of its results, without suffix.
        size: (height, width).
    """

    name: str
    image: Path
    size: tuple[int, int]
    parts: list[Part]

    @property
    def file(self) -> str:
        """The image's name with its suffix, as it lies below its folder."""
        suffix = self.image.suffix
        return self.name if self.name.endswith(suffix) else f"{self.name}{suffix}"


def parts_of(mask: np.ndarray, skip: Sequence[int], min_area: int) -> tuple[list[Part], int]:
    """Parts of an (H, W) mask of class indices, and how many smaller than `min_area` pixels it has.

    Args:
        skip: classes that are not outlined.
    """
    parts, specks = [], 0
    for label in np.setdiff1d(np.unique(mask), skip).tolist():
        binary = (mask == label).astype(np.uint8)
        count, components, boxes, _ = cv2.connectedComponentsWithStats(binary, connectivity=4)
        for index in range(1, count):
            left, top, width, height, area = boxes[index].tolist()
            if area < min_area:
                specks += 1
                continue
            inside = components[top : top + height, left : left + width] == index
            outline, *holes = outlines(inside, np.array([left, top], np.float64))
            parts.append(Part(label, top, left, inside, outline, holes))
    return parts, specks


def outlines(inside: np.ndarray, corner: np.ndarray) -> list[np.ndarray]:
    """The outer outline of an (h, w) part in one piece, then those of its holes.

    Each is (N, 2) x, y; `corner` is that of the part in the picture.
    """
    padded = np.pad(inside, 1)
    middle = padded[1:-1, 1:-1]
    # sides of pixels with nothing beyond, walked with the pixel on the right
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    offsets = ((0, 0), (1, 0), (1, 1), (0, 1))  # where each side begins, from the pixel's corner
    sides: dict[tuple[int, int], list[int]] = {}
    for direction, (beyond, (x, y)) in enumerate(zip(neighbours, offsets, strict=True)):
        rows, columns = np.nonzero(middle & ~beyond)
        for start in zip((columns + x).tolist(), (rows + y).tolist(), strict=True):
            sides.setdefault(start, []).append(direction)
    rings = [straightened(ring) for ring in walks(sides)]
    areas = [signed_area(ring) for ring in rings]
    order = np.argsort([-area for area in areas], kind="stable")  # the outer one is clockwise
    return [rings[index] + corner for index in order]


def walks(sides: dict[tuple[int, int], list[int]]) -> Iterator[np.ndarray]:
    """Closed walks along {start of a side: directions}, which are used up.

    Each is (N, 2) x, y of the middles of its sides. Where two walks meet at a corner, each turns
    right, and so stays at its pixel.
    """
    while sides:
        start = place = next(iter(sides))
        first = direction = sides[start][0]
        middles = []
        while True:
            leaving = sides[place]
            leaving.remove(direction)
            if not leaving:
                del sides[place]
            step = STEPS[direction]
            middles.append((place[0] + step[0] / 2, place[1] + step[1] / 2))
            place = (place[0] + step[0], place[1] + step[1])
            turns = [(direction + turn) % 4 for turn in (1, 0, 3)]
            if place == start and (place not in sides or turns[0] == first):
                break
            direction = next(turn for turn in turns if turn in sides[place])
        yield np.array(middles)


def straightened(ring: np.ndarray) -> np.ndarray:
    """A ring with the points left out that lie within `TOLERANCE` of it without them."""
    simple = cv2.approxPolyDP(ring.astype(np.float32)[:, None], TOLERANCE, True)[:, 0]
    return simple.astype(np.float64) if len(simple) >= 3 else ring


def signed_area(ring: np.ndarray) -> float:
    """Twice the area of a ring, positive where it runs clockwise on the screen."""
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum())


def joined(part: Part) -> np.ndarray:
    """One ring of outline and holes, joined by cuts without width, for formats without holes."""
    ring = part.outline
    for hole in sorted(part.holes, key=lambda hole: float(hole[:, 0].min())):
        turned = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        near = int(np.abs(ring - turned[0]).sum(axis=1).argmin())
        ring = np.concatenate([ring[: near + 1], turned, turned[:1], ring[near:]])
    return ring


class AnnotationFile:
    """Writes predictions in one format below a folder: `add` each, then `close`.

    LabelMe and YOLO have a file for each image; COCO's annotations.json and CVAT's annotations.xml
    appear when it is closed. The class called background is not outlined.
    """

    def __init__(
        self,
        format_name: Format,
        folder: Path,
        names: Sequence[str],
        colors: Sequence[Colour],
        *,
        min_area: int,
    ) -> None:
        self.format = format_name
        self.folder = folder
        self.names = list(names)
        self.colors = [tuple(map(int, color)) for color in colors]
        self.min_area = min_area
        self.specks = 0
        self.background = next((n for n in names if n.lower() in BACKGROUND_NAMES), None)
        self._skip = [i for i, name in enumerate(names) if name.lower() in BACKGROUND_NAMES]
        self._kept: list[Outlined] = []

    def add(self, name: str, image: Path, mask: np.ndarray) -> None:
        """Outline a prediction.

        Args:
            name: of its results, without suffix.
            image: the file that was predicted.
            mask: (H, W) class indices.
        """
        parts, specks = parts_of(mask, self._skip, self.min_area)
        self.specks += specks
        outlined = Outlined(name, image, mask.shape, parts)
        if self.format == "labelme":
            path = self.folder / f"{name}.json"
            write_text(path, json_text(labelme(outlined, self.names, path.parent)))
        elif self.format == "yolo":
            write_lines(self.folder / "labels" / f"{name}.txt", yolo_lines(outlined))
        else:
            self._kept.append(outlined)

    def summary(self) -> str:
        """Write what is of all images; a line on what was left out and how to read it again."""
        path = self.close()
        words = "" if self.background else " --background ignore"
        return (
            f"{self.format}: {path}; left out: {self.specks} speck(s) of less than {self.min_area} "
            f"pixels (--min-area). Read by: stripseg prepare custom --labels {path}{words} ..."
        )

    def close(self) -> Path:
        """Write what is of all images; return the file or folder for `prepare custom --labels`."""
        if self.format == "coco":
            path = self.folder / "annotations.json"
            write_text(path, json_text(coco(self._kept, self.names, self.colors)))
            return path
        if self.format == "cvat":
            path = self.folder / "annotations.xml"
            write_lines(path, cvat_lines(self._kept, self.names, self.colors))
            return path
        if self.format == "yolo":
            content = {"names": dict(enumerate(self.names))}
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            write_text(self.folder / "data.yaml", text)
            return self.folder / "labels"
        write_lines(self.folder / "labels.txt", ["__ignore__", *self.names])
        return self.folder


def json_text(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False)


def coco(pictures: Sequence[Outlined], names: Sequence[str], colors: Sequence[Colour]) -> dict:
    """COCO's instances: polygons, and run lengths where there are holes."""
    images, annotations = [], []
    for image_id, picture in enumerate(pictures, 1):
        height, width = picture.size
        images.append({"id": image_id, "file_name": picture.file, "height": height, "width": width})
        for part in picture.parts:
            segmentation = (
                {"size": [height, width], "counts": column_runs(part, height, width)}
                if part.holes
                else [part.outline.ravel().tolist()]
            )
            box = [part.left, part.top, part.inside.shape[1], part.inside.shape[0]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": part.label + 1,
                    "segmentation": segmentation,
                    "area": int(part.inside.sum()),
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": index, "name": name, "color": list(color)}
        for index, (name, color) in enumerate(zip(names, colors, strict=True), 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def column_runs(part: Part, height: int, width: int) -> list[int]:
    """COCO's run lengths, column by column over the whole picture."""
    mask = np.zeros((height, width), bool)
    rows, columns = part.inside.shape
    mask[part.top : part.top + rows, part.left : part.left + columns] = part.inside
    return runs(mask.T.ravel())


def runs(flat: np.ndarray) -> list[int]:
    """Alternating lengths of False and True, False first."""
    changes = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return np.diff(changes, prepend=0).tolist()


def labelme(picture: Outlined, names: Sequence[str], folder: Path) -> dict:
    """LabelMe's JSON: polygons, and masks where there are holes."""
    shapes = []
    for part in picture.parts:
        shape = {"label": names[part.label], "group_id": None, "flags": {}}
        if part.holes:
            rows, columns = part.inside.shape
            corners = [[part.left, part.top], [part.left + columns - 1, part.top + rows - 1]]
            shape |= {"shape_type": "mask", "points": corners, "mask": png_text(part.inside)}
        else:
            shape |= {"shape_type": "polygon", "points": part.outline.tolist()}
        shapes.append(shape)
    height, width = picture.size
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": os.path.relpath(picture.image.absolute(), folder.absolute()),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def png_text(inside: np.ndarray) -> str:
    """An (h, w) bool mask as base64 of a PNG."""
    file = io.BytesIO()
    Image.fromarray(inside.astype(np.uint8)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def yolo_lines(picture: Outlined) -> Iterator[str]:
    """A line per part: its class, then x and y as shares; holes are cut open."""
    height, width = picture.size
    for part in picture.parts:
        shares = joined(part) / (width, height)
        yield f"{part.label} " + " ".join(f"{value:.8f}" for value in shares.ravel())


def cvat_lines(
    pictures: Sequence[Outlined], names: Sequence[str], colors: Sequence[Colour]
) -> Iterator[str]:
    """CVAT for images 1.1: polygons, and masks where there are holes."""
    yield '<?xml version="1.0" encoding="utf-8"?>'
    yield "<annotations>\n  <version>1.1</version>\n  <meta><task><labels>"
    for name, color in zip(names, colors, strict=True):
        label = quoteattr(name)[1:-1].replace('"', "&quot;")
        shown = "#{:02x}{:02x}{:02x}".format(*color)
        yield f"    <label><name>{label}</name><color>{shown}</color></label>"
    yield "  </labels></task></meta>"
    for index, picture in enumerate(pictures):
        height, width = picture.size
        file = quoteattr(picture.file)
        yield f'  <image id="{index}" name={file} width="{width}" height="{height}">'
        for part in picture.parts:
            label = f'label={quoteattr(names[part.label])} source="auto" occluded="0" z_order="0"'
            if part.holes:
                rows, columns = part.inside.shape
                lengths = ", ".join(map(str, runs(part.inside.ravel())))
                place = f'left="{part.left}" top="{part.top}" width="{columns}" height="{rows}"'
                yield f'    <mask {label} rle="{lengths}" {place}/>'
            else:
                pairs = ";".join(f"{x:g},{y:g}" for x, y in part.outline)
                yield f'    <polygon {label} points="{pairs}"/>'
        yield "  </image>"
    yield "</annotations>"
