"""Train, test and show a result on the built-in dataset: `stripseg demo [KEY VALUE ...]`.

Renders the scenes below dataset/shapes/data, trains SPNet-18 for a few minutes on the CPU, tests it
and writes one prediction as a picture: everything in the current folder.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stripseg import command_line
from stripseg.config.load import find_config, load_config
from stripseg.trained_network import load
from stripseg.util.images import as_rgb, colorize, read_image, read_label, write_png

DATA = Path("dataset/shapes/data")


def main(argv: Sequence[str]) -> int | None:
    """Prepare, train and test as commands of their own; then draw one prediction."""
    parser = argparse.ArgumentParser(
        prog="stripseg demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="KEY VALUE", help="options of the config")
    words = parser.parse_args(list(argv)).words
    config = load_config(find_config("shapes", "spnet18"), words)
    for name, arguments in (
        ("prepare", ["shapes", str(DATA)]),
        ("train", ["shapes", "spnet18", *words]),
        ("test", ["shapes", "spnet18", *words]),
    ):
        program = str(Path(__file__).with_name(f"{name}.py"))
        code = subprocess.run([sys.executable, "-u", program, *arguments])
        if code.returncode:
            return code.returncode
    picture = Path("exp/demo.png")
    draw(load(config.TEST.model_path), Path(config.DATA.data_root), picture)
    print(f"an image, its label and its prediction: {picture}")
    print(f"your own images: stripseg predict {config.TEST.model_path} PHOTO.jpg")
    return None


def draw(trained, root: Path, path: Path) -> None:
    """The first validation image, its label and its prediction side by side."""
    image, label = (root / "val.txt").read_text(encoding="utf-8").splitlines()[0].split()
    pixels = read_image(root / image)
    row = [
        as_rgb(pixels),
        colorize(read_label(root / label).astype(np.uint8), trained.colors),
        colorize(trained.predict(pixels).mask, trained.colors),
    ]
    write_png(path, np.concatenate(row, axis=1))


if __name__ == "__main__":
    command_line.run_command(main)
