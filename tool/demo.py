"""Predict pictures: `python tool/demo.py DATASET EXPERIMENT --image FILE_OR_FOLDER`."""

from collections.abc import Sequence
from pathlib import Path

from stripseg import command_line
from stripseg.build import load_engine
from stripseg.config.errors import DataError
from stripseg.dataset.build import build_classes
from stripseg.util.distributed import process_group
from stripseg.util.images import IMAGE_SUFFIXES, colorize, overlay, read_image, write_png
from stripseg.util.logger import progress, run_logger


def main(argv: Sequence[str]) -> int | None:
    """Write gray, color and overlay pictures of an image or of a folder of images."""
    parser = command_line.argument_parser("demo.py", __doc__)
    parser.add_argument("--image", required=True, help="an image, or a folder of images")
    parser.add_argument("--output", default=None, help="folder of the results (default: exp/demo)")
    options, config = command_line.parse_config(parser, argv)
    images = images_below(Path(options.image))
    output = Path(options.output or "exp/demo")
    log = run_logger()
    colors = build_classes(config).colors
    device = process_group.choose_devices(config.TEST.test_gpu, key="TEST.test_gpu")[0]
    engine = load_engine(config, device)
    root = Path(options.image) if Path(options.image).is_dir() else Path(options.image).parent
    for path in progress(images, total=len(images), unit="image", what="predicting"):
        image = read_image(path, config.DATA.in_channels)
        prediction = engine.predict(image).byte().cpu().numpy()
        name = path.relative_to(root).with_suffix("")
        write_png(output / f"{name}_gray.png", prediction)
        write_png(output / f"{name}_color.png", colorize(prediction, colors))
        write_png(output / f"{name}_overlay.png", overlay(image, prediction, colors))
    log.info(f"{len(images)} image(s): {output}/*_overlay.png, *_color.png and *_gray.png")
    return None


def images_below(path: Path) -> list[Path]:
    """The image itself, or the images below a folder, sorted.

    Raises:
        DataError: there is no image.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"--image {path}: no such file or folder")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"--image {path}: no image below it ({', '.join(IMAGE_SUFFIXES)})")
    return found


if __name__ == "__main__":
    command_line.run_command(main)
