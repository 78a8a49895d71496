"""Annotations become label files: matched with the images, drawn, turned upright, written once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...config.errors import DataError
from ...util.files import write_text
from ...util.images import stored_size, write_png
from ...util.logger import visible
from ..preparation.custom import TURNS
from ..preparation.match import orientation_of
from .model import Canvas, Colour, Numbers, Picture
from .parse import size_of
from .rasterize import Crowd, Overlap, draw_label

RECORD = ".converted.json"  # image -> [digest of what its label was drawn from, empty shapes]


@dataclass(frozen=True)
class Drawing:
    """How shapes become pixels.

    Args:
        line_width: of lines and points without one, in pixels.
        stored: coordinates refer to the photos as stored, before EXIF turns them upright.
    """

    overlap: Overlap = "last"
    crowd: Crowd = "ignore"
    line_width: float = 10.0
    stored: bool = False


@dataclass(frozen=True)
class Job:
    """One picture to draw: shapes of `picture` over `image`, into `target`."""

    image: Path
    picture: Picture
    target: Path
    before: tuple[str, int] | None  # what the record says of `target`, where it is there


@dataclass(frozen=True)
class Drawn:
    """What became of a job: a digest, shapes without a pixel, or the problem."""

    image: Path
    target: Path
    digest: str = ""
    empty: int = 0
    written: bool = False
    problem: str | None = None


def convert(
    matched: dict[Path, Picture],
    folder: Path,
    images: Path,
    numbers: Numbers,
    drawing: Drawing,
    *,
    workers: int,
) -> Iterator[Drawn]:
    """Draw every picture that has changed since the last call; labels are PNGs below `folder`.

    Args:
        matched: image -> its shapes.
        images: folder of the images; labels have the same relative paths.
    """
    record = read_record(folder)
    jobs = []
    for image, picture in matched.items():
        name = image.relative_to(images).as_posix()
        target = folder / f"{name}.png"
        before = record.get(name) if target.is_file() else None
        jobs.append(Job(image, picture, target, before))
    draw = partial(draw_picture, numbers=numbers, drawing=drawing)
    now: dict[str, tuple[str, int]] = {}
    try:
        for drawn in run(draw, jobs, workers):
            if drawn.problem is None:
                name = drawn.image.relative_to(images).as_posix()
                now[name] = drawn.digest, drawn.empty
            yield drawn
    finally:
        write_text(folder / RECORD, json.dumps(now))


def run(draw: partial, jobs: Sequence[Job], workers: int) -> Iterator[Drawn]:
    """Every job in order, by several processes."""
    if workers <= 1:
        yield from map(draw, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw, jobs, chunksize=8)


def draw_picture(job: Job, *, numbers: Numbers, drawing: Drawing) -> Drawn:
    """Draw and write one label; what is wrong becomes its `problem`."""
    try:
        upright, orientation = size_and_orientation(job.image)
        stored = upright[::-1] if orientation >= 5 else upright
        frame, turned = frame_of(job, upright, stored, orientation, drawing)
        digest = digest_of(job.picture, frame, orientation if turned else 1, numbers, drawing)
        if job.before is not None and job.before[0] == digest:
            return Drawn(job.image, job.target, *job.before)
        values = {name: index for index, name in enumerate(numbers.names)}
        label, empty = draw_label(
            job.picture.shapes,
            Canvas(*frame, drawing.line_width),
            values,
            background=numbers.background,
            overlap=drawing.overlap,
            crowd=drawing.crowd,
        )
        if turned:
            label = np.array(Image.fromarray(label).transpose(TURNS[orientation]))
        write_png(job.target, label, numbers.colors)
    except DataError as error:
        return Drawn(job.image, job.target, problem=str(error))
    except ValueError as error:
        return Drawn(job.image, job.target, problem=f"{job.image}: {visible(str(error))}")
    return Drawn(job.image, job.target, digest, empty, written=True)


def size_and_orientation(image: Path) -> tuple[tuple[int, int], int]:
    """(height, width) as displayed, and EXIF's orientation, without decoding the image.

    Raises:
        DataError: the image is damaged, or claims an absurd size.
    """
    orientation = orientation_of(image)
    height, width = stored_size(image)
    try:
        height, width = size_of(height, width)
    except ValueError as error:
        raise DataError(f"{image}: {error}") from None
    return ((width, height) if orientation >= 5 else (height, width)), orientation


def frame_of(
    job: Job,
    upright: tuple[int, int],
    stored: tuple[int, int],
    orientation: int,
    drawing: Drawing,
) -> tuple[tuple[int, int], bool]:
    """The (height, width) that the coordinates refer to, and whether the label is turned after.

    That of the picture as displayed, unless the annotations' own size is that of the stored one.

    Raises:
        DataError: the annotations are of another size than the image.
    """
    own = job.picture.size
    as_stored = (drawing.stored and own is None) or (
        own == stored and (drawing.stored or own != upright)
    )
    frame = stored if as_stored else upright
    if own not in (None, frame):
        raise DataError(
            f"{job.image}: is {upright[1]}x{upright[0]} and its annotations in "
            f"{job.picture.origin} are for {own[1]}x{own[0]} pixels (width x height); take the "
            "image that was annotated"
        )
    return frame, as_stored and orientation > 1


def read_record(folder: Path) -> dict[str, tuple[str, int]]:
    """What the last call drew; empty where it cannot be read."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {name: (str(digest), int(empty)) for name, (digest, empty) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def digest_of(
    picture: Picture,
    frame: tuple[int, int],
    turn: int,
    numbers: Numbers,
    drawing: Drawing,
) -> str:
    """What a label depends on, as one word; `turn` is the orientation that it is turned by."""
    digest = hashlib.sha256()
    colors: list[Colour] = numbers.colors
    content = [
        [frame, turn, numbers.names, colors, numbers.background, drawing],
        *([shape.name, shape.crowd, list(shape.regions)] for shape in picture.shapes),
    ]
    for part in parts_of(content):
        digest.update(part)
    return digest.hexdigest()


def parts_of(value: object) -> Iterator[bytes]:
    """The bytes of plain values, arrays and dataclasses, each with its type and length."""
    if isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value):
        yield type(value).__name__.encode()
        for part in fields(value):
            yield from parts_of(getattr(value, part.name))
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for part in value:
            yield from parts_of(part)
    else:
        yield f"{value!r};".encode()
