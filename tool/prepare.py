"""Prepare data: `python tool/prepare.py shapes OUT` writes the built-in dataset below OUT."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stripseg.dataset.shapes import write_shapes
from stripseg.tool import common


def main(argv: Sequence[str]) -> int | None:
    """Write a dataset in the layout that training reads."""
    parser = argparse.ArgumentParser(prog="prepare.py", description=__doc__)
    parser.add_argument("dataset", choices=["shapes"], help="shapes: the built-in dataset")
    parser.add_argument("root", type=Path, help="folder to write to, made if need be")
    options = parser.parse_args(argv)
    write_shapes(options.root)
    print(f"{options.root}: images/, labels/, train.txt, val.txt, names.txt, colors.txt")
    return None


if __name__ == "__main__":
    common.run_command(main)
