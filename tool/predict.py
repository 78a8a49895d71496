"""Segment images with a trained network: `stripseg predict NETWORK IMAGE [IMAGE ...]`.

NETWORK is a checkpoint (.pth), an export (.onnx), a folder that save_pretrained wrote, or hf://OWNER/NAME.
IMAGE is a file, a folder or a quoted glob. For photo.jpg, photo_gray.png (class indices),
photo_color.png and photo_overlay.png are written. Of street.mp4 (or .avi, .mov, .mkv, .webm) and
of a camera, street_overlay.mp4 is written, with a legend.

    stripseg predict exp/camvid/spnet18/model/best.pth photos/ --output segmented
    stripseg predict best.onnx street.jpg --scales 0.75 1 1.25 --flip
    stripseg predict best.pth photos/ --format cvat      # outlines, to correct in CVAT
    stripseg predict best.pth street.mp4 --side-by-side --classes car bicyclist
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import ConfigError, DataError
from stripseg.config.types import nearest
from stripseg.dataset.annotations.write import AnnotationFile, Format
from stripseg.report.legend import OverlayStyle
from stripseg.report.video import is_video, overlay_video
from stripseg.trained_network import Prediction, load, sources_of
from stripseg.util.geotiff import place_of, write_geotiff
from stripseg.util.images import write_png
from stripseg.util.logger import progress, run_logger

SOME_FAILED = 1
KINDS = ("gray", "color", "overlay")


def main(argv: Sequence[str]) -> Result:
    """Load, predict, write; an image that cannot be read is named, and the others go on."""
    options = parser().parse_args(list(argv))
    videos = videos_of(options)
    words = [word for word in options.image if not is_video(Path(word))]
    images = list(images_of(words, options.output))
    if not options.image and not videos:
        raise DataError("name an image, a folder, a video, or --camera 0")
    if not images and not videos:
        raise DataError(f"{' '.join(words)}: nothing to predict but results of earlier calls")
    if not 0 <= options.opacity <= 1:
        raise ConfigError(f"--opacity {options.opacity:g}: expected a number from 0 to 1")
    log = run_logger()
    trained = load(options.network, device=options.device)
    style = style_of(options, trained.names)
    engine = trained.engine(
        scales=options.scales,
        flip=options.flip,
        window=tuple(options.window) if options.window else None,
    )
    outlines = outlines_of(options, trained.names, trained.colors)
    done, failed = [], []
    for path, target in progress(images, total=len(images), unit="image", what="predicting"):
        try:
            prediction = trained.predict_with(engine, path)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append({"image": path, "error": str(error)})
            continue
        written = write(prediction, options.output / target, options.kinds, style)
        if "gray" in options.kinds:
            write_place(path, options.output / target, prediction.mask)
        if outlines is not None:
            outlines.add(target, path, prediction.mask)
        log.info(f"{path} -> {common_name(written)}")
        pixels = pixels_of(prediction) if options.json else {}
        done.append({"image": path, "files": written, "pixels": pixels})
    if outlines is not None:
        log.info(outlines.summary())
    for target, source in videos.items():
        look = replace(style, legend=True)
        try:
            count = overlay_video(
                trained, engine, source, target, look, most=options.frames, warn=log.warning
            )
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append({"video": source, "error": str(error)})
            continue
        log.info(f"{source} -> {target}, {count} frames")
        done.append({"video": source, "file": target, "frames": count})
    if failed:
        total = len(images) + len(videos)
        print(f"{len(failed)} of {total} images could not be predicted", file=sys.stderr)
    return Result({"results": done, "failed": failed}, SOME_FAILED if failed else 0)


def parser() -> argparse.ArgumentParser:
    parser = command_line.command_parser("stripseg predict", __doc__)
    parser.add_argument("network", help="checkpoint, export, folder, or hf://OWNER/NAME")
    parser.add_argument("image", nargs="*", help="image or video file, folder, or quoted glob")
    parser.add_argument("--camera", type=int, help="number of a camera, from 0; Ctrl-C ends it")
    parser.add_argument("--frames", type=int, help="of a video or camera, to take at most")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    how = parser.add_argument_group("how to predict (default: as the network's config tests)")
    how.add_argument("--scales", type=float, nargs="+", help="such as 0.75 1 1.25")
    how.add_argument("--flip", action=argparse.BooleanOptionalAction, help="average with mirrored")
    how.add_argument("--window", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, default=Path("exp/predict"), help="folder")
    results.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to write")
    results.add_argument("--opacity", type=float, default=0.5, help="of colours over the image")
    results.add_argument("--classes", nargs="+", metavar="NAME", help="show only these in overlays")
    results.add_argument("--side-by-side", action="store_true", help="image beside its overlay")
    results.add_argument("--legend", action="store_true", help="names of classes below overlays")
    add_outline_options(parser)
    return parser


def add_outline_options(parser: argparse.ArgumentParser) -> None:
    """Outlines for annotation tools, besides the pictures."""
    results = parser.add_argument_group("outlines for annotation tools, besides the pictures")
    results.add_argument("--format", choices=get_args(Format), help="write polygons as well")
    results.add_argument(
        "--min-area", type=int, default=16, help="pixels of the smallest object outlined: 16"
    )


def outlines_of(
    options: argparse.Namespace, names: Sequence[str], colors: np.ndarray
) -> AnnotationFile | None:
    """What --format asks for.

    Raises:
        ConfigError: --min-area is below 1.
    """
    if options.min_area < 1:
        raise ConfigError(f"--min-area {options.min_area}: expected at least 1 pixel")
    if options.format is None:
        return None
    return AnnotationFile(
        options.format, options.output, names, colors.tolist(), min_area=options.min_area
    )


def videos_of(options: argparse.Namespace) -> dict[Path, Path | int]:
    """{file of the overlay: video file or number of a camera}.

    Raises:
        ConfigError: a number of frames below 1.
        DataError: two videos would share their results.
    """
    if options.frames is not None and options.frames < 1:
        raise ConfigError(f"--frames {options.frames}: expected a whole number, 1 or more")
    videos: dict[Path, Path | int] = {}
    for path in filter(is_video, map(Path, options.image)):
        target = options.output / f"{path.stem}_overlay.mp4"
        if videos.setdefault(target, path) != path:
            raise DataError(f"{path} and {videos[target]}: would share their results; rename one")
    if options.camera is not None:
        videos[options.output / f"camera{options.camera}_overlay.mp4"] = options.camera
    return videos


def images_of(words: Sequence[str], output: Path) -> Iterator[tuple[Path, str]]:
    """(file, name of its results without suffix); results of an earlier call are left out.

    Raises:
        DataError: a word names nothing, or two images would share their results.
    """
    taken: dict[str, Path] = {}
    for word in words:
        many = sources_of(word)
        root = Path(word) if Path(word).is_dir() else None
        for path in [Path(word)] if many is None else many:
            if is_result(path, output):
                continue
            inside = path.relative_to(root) if root else Path(path.name)
            name = str(inside.with_suffix(""))
            if name in taken and taken[name] != path:
                name = str(inside)  # a.jpg and a.png: the suffix tells them apart
            if taken.setdefault(name, path) != path:
                raise DataError(f"{path} and {taken[name]}: would share their results; rename one")
            yield path, name


def is_result(path: Path, output: Path) -> bool:
    """Return whether a file is what an earlier call wrote: its name says so, and its place."""
    ours = path.name.endswith((*(f"_{kind}.png" for kind in KINDS), "_gray.tif"))
    return ours and path.resolve().is_relative_to(output.resolve())


def write_place(image: Path, stem: Path, classes: np.ndarray) -> None:
    """Of a GeoTIFF the classes as a TIFF at the same place on earth, too."""
    if place := place_of(image):
        write_geotiff(stem.with_name(f"{stem.name}_gray.tif"), classes.astype(np.uint8), place)


def style_of(options: argparse.Namespace, names: Sequence[str]) -> OverlayStyle:
    """How overlays look.

    Raises:
        ConfigError: `--classes` names one that the network does not know.
    """
    chosen = None if options.classes is None else tuple(index_of(n, names) for n in options.classes)
    return OverlayStyle(options.opacity, chosen, options.side_by_side, options.legend)


def index_of(name: str, names: Sequence[str]) -> int:
    likely = nearest(name, names)
    if likely is not None and likely.lower() == name.lower():
        return list(names).index(likely)
    known = f"did you mean {likely}?" if likely else f"there are {', '.join(names)}"
    raise ConfigError(f"--classes {name}: the network has no such class; {known}")


def pixels_of(prediction: Prediction) -> dict[str, int]:
    """{name: pixels} of the classes in a prediction."""
    counts = np.bincount(prediction.mask.ravel(), minlength=len(prediction.names))
    pairs = zip(prediction.names, counts.tolist(), strict=True)
    return {name: count for name, count in pairs if count}


def write(
    prediction: Prediction, stem: Path, kinds: Sequence[str], style: OverlayStyle
) -> dict[str, Path]:
    """Write the pictures asked for; return {kind: file}."""
    made = {
        "gray": lambda: prediction.mask.astype(np.uint8),
        "color": lambda: np.asarray(prediction.colored()),
        "overlay": lambda: style.draw(
            prediction.image, prediction.mask, prediction.names, prediction.colors
        ),
    }
    files = {kind: stem.with_name(f"{stem.name}_{kind}.png") for kind in kinds}
    for kind, file in files.items():
        write_png(file, made[kind]())
    return files


def common_name(files: Mapping[str, Path]) -> str:
    """`photo_{gray,color}.png` of several files, the path of a single one."""
    first = next(iter(files.values()))
    if len(files) == 1:
        return str(first)
    stem = str(first).removesuffix(f"_{next(iter(files))}.png")
    return f"{stem}_{{{','.join(files)}}}.png"


if __name__ == "__main__":
    command_line.run_command(main)
