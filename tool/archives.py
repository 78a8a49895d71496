"""CIFAR's archives: `prepare.py shapes10|digits|cifar10|cifar100 ROOT`.

shapes10 writes the built-in set of ten classes, digits scikit-learn's handwriting. cifar10 and
cifar100 look through the authors' archives, unpacked in ROOT; with --download torchvision fetches
them first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stripseg.config.errors import DataError
from stripseg.dataset.classification.cifar import FOLDERS, PUBLISHED, find_archive, read_cifar
from stripseg.dataset.classification.digits import write_digits
from stripseg.dataset.generated.shapes10 import write_shapes10

NAMES = ("shapes10", "digits", *FOLDERS)
INCOMPLETE = 1


def main(argv: Sequence[str]) -> int | None:
    """Write or check an archive; 1 if an official one is not whole."""
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=NAMES)
    parser.add_argument("root", type=Path, help="folder of the data")
    parser.add_argument("--download", action="store_true", help="cifar10, cifar100: fetch it")
    parser.add_argument("--train", type=int, default=5000, help="shapes10: training images")
    parser.add_argument("--val", type=int, default=1000, help="shapes10: validation images")
    parser.add_argument("--seed", type=int, default=0, help="shapes10: another set")
    options = parser.parse_args(argv)
    name, root = options.dataset, options.root
    if name == "shapes10":
        if min(options.train, options.val) < 5:
            parser.error("--train and --val are 5 images or more: there are five training files")
        folder = write_shapes10(root, train=options.train, val=options.val, seed=options.seed)
        print(f"{folder}: {options.train} training and {options.val} validation images")
        print(f"now: sh tool/train.sh shapes10 resnet18 DATA.data_root {root}")
        return None
    if name == "digits":
        print(f"{write_digits(root)}: handwritten digits")
        print(f"now: sh tool/train.sh digits resnet18 DATA.data_root {root}")
        return None
    if options.download:
        download(name, root)
    return check(name, root)


def check(name: str, root: Path) -> int | None:
    """Read all of an official archive and say what is in it; 1 if it is not whole.

    Raises:
        DataError: it is not there, or a file is missing or damaged.
    """
    classes = 10 if name == "cifar10" else 100
    found = find_archive(root, classes)
    if found is None or found[0] != name:
        raise DataError(
            f"{root}: holds no {FOLDERS[name]}; unpack {name}'s archive for Python there, or let "
            "--download fetch it"
        )
    incomplete = False
    for split, expected in PUBLISHED.items():
        images = read_cifar(root, split, classes=classes)
        whole = len(images) == expected
        incomplete |= not whole
        verdict = "as published" if whole else f"NOT WHOLE, published are {expected}"
        used = len(np.unique(images.labels))
        print(f"{split}: {len(images)} images of {used} classes ({verdict})")
    print(f"DATA.data_root: {root}")
    return INCOMPLETE if incomplete else None


def download(name: str, root: Path) -> None:
    """Fetch and unpack an archive with torchvision, which checks its MD5.

    Raises:
        DataError: there is no torchvision, or the download failed.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError("--download needs torchvision: pip install torchvision") from error
    root.mkdir(parents=True, exist_ok=True)
    fetch = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        fetch(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root}: the download of {name} failed: {error}") from error
