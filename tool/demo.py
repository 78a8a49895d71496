"""Predict pictures: `python tool/demo.py DATASET EXPERIMENT --image FILE_OR_FOLDER`."""

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import DataError
from stripseg.dataset.build import build_classes
from stripseg.engine import load_engine
from stripseg.report.video import is_video
from stripseg.tool.predict import (
    SOME_FAILED,
    add_outline_options,
    images_of,
    outlines_of,
    write_place,
)
from stripseg.util.distributed import process_group
from stripseg.util.images import colorize, overlay, read_image, write_png
from stripseg.util.logger import progress, run_logger


def main(argv: Sequence[str]) -> Result:
    """Write gray, color and overlay pictures of an image or of a folder of images."""
    parser = command_line.config_parser("demo.py", __doc__)
    parser.add_argument("--image", required=True, help="an image, or a folder of images")
    parser.add_argument("--output", default=None, help="folder of the results (default: exp/demo)")
    add_outline_options(parser)
    options, config = command_line.parse_config(parser, argv)
    output = options.output = Path(options.output or "exp/demo")
    if is_video(Path(options.image)):
        raise DataError(
            f"--image {options.image}: is a video, which `stripseg predict "
            f"{config.TEST.model_path} {options.image}` takes"
        )
    if not Path(options.image).exists() and not glob.has_magic(options.image):
        raise DataError(f"--image {options.image}: no such file or folder")
    images = list(images_of([options.image], output))
    log = run_logger()
    classes = build_classes(config)
    colors = classes.colors
    outlines = outlines_of(options, classes.names, colors)
    device = process_group.choose_devices(config.TEST.test_gpu, key="TEST.test_gpu")[0]
    engine = load_engine(config, device)
    done, failed = [], []
    for path, name in progress(images, total=len(images), unit="image", what="predicting"):
        try:
            image = read_image(path, config.DATA.in_channels)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append({"image": path, "error": str(error)})
            continue
        prediction = engine.predict(image).byte().cpu().numpy()
        pictures = {
            "gray": prediction,
            "color": colorize(prediction, colors),
            "overlay": overlay(image, prediction, colors),
        }
        files = {kind: output / f"{name}_{kind}.png" for kind in pictures}
        for kind, picture in pictures.items():
            write_png(files[kind], picture)
        write_place(path, output / name, prediction)
        done.append({"image": path, "files": files})
        if outlines is not None:
            outlines.add(name, path, prediction)
    log.info(f"{len(done)} image(s): {output}/*_overlay.png, *_color.png and *_gray.png")
    if outlines is not None:
        log.info(outlines.summary())
    return Result({"results": done, "failed": failed}, SOME_FAILED if failed else 0)


if __name__ == "__main__":
    command_line.run_command(main)
