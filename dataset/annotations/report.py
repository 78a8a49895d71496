"""What is said of annotations before they are drawn: one line per decision."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...util.logger import visible
from .convert import Drawing
from .model import Annotations, Numbers, Picture
from .rasterize import Stroke

NAMED = 3  # files of a list that are named
IN_FRONT = {
    "last": "the one drawn later",
    "first": "the one drawn first",
    "smallest": "the smaller one",
}


def said_of(
    annotations: Annotations,
    numbers: Numbers,
    drawing: Drawing,
    matched: Mapping[Path, Picture],
    *,
    unused: int,
) -> Iterator[str]:
    """The format, and what becomes of overlaps, the rest, crowds, lines and unknown shapes.

    Args:
        matched: image -> its shapes; `unused` entries have no image.
    """
    shapes = [shape for picture in matched.values() for shape in picture.shapes]
    yield f"{annotations.format}: {len(shapes)} shapes on {len(matched)} images"
    yield from annotations.notes
    if (again := len(annotations.pictures) - unused - len(matched)) > 0:
        yield f"{again} image(s) are in another file, too; the shapes are put together"
    yield f"where shapes overlap, {IN_FRONT[drawing.overlap]} is in front (--overlap)"
    if numbers.background == 255:
        yield "pixels without a shape are ignored, 255 (--background class for a class)"
    else:
        name = numbers.names[numbers.background]
        yield (
            f"pixels without a shape are class {numbers.background}, {name!r} (--background ignore "
            "for 255)"
        )
    if crowds := sum(shape.crowd for shape in shapes):
        become = "ignored, 255, below all others" if drawing.crowd == "ignore" else "of their class"
        yield f"{crowds} crowd(s) are {become} (--crowd)"
    lines = sum(
        isinstance(region, Stroke) and region.width is None
        for shape in shapes
        for region in shape.regions
    )
    if lines:
        yield f"{lines} line(s) and point(s) are {drawing.line_width:g} pixels wide (--line-width)"
    for kind, count in sorted(annotations.skipped.items()):
        yield f"left out, as it cannot be drawn: {count} x {visible(kind)}"
    bare = [image.name for image, picture in matched.items() if not picture.shapes]
    if bare:
        more = f" and {len(bare) - NAMED} more" if len(bare) > NAMED else ""
        yield f"{len(bare)} image(s) without a shape: {', '.join(bare[:NAMED])}{more}"
