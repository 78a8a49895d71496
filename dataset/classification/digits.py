"""Handwritten digits that scikit-learn ships, written as CIFAR-10's archives.

1,797 images of 8x8 by 13 people (Alpaydin and Kaynak, UCI 1998, the test part), nearest neighbour
to 32x32: the smallest real set of ten classes that needs no download.
"""

from pathlib import Path

import numpy as np

from ...config.errors import StripsegError
from .cifar import SIDE, write_cifar10

TRAIN = 1347  # in the order of the file, which goes by writer: validation is mostly by other people
BRIGHTEST = 16


def write_digits(root: Path) -> Path:
    """Write the set as CIFAR-10's archives below `root`; the folder.

    Raises:
        StripsegError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise StripsegError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    digits = load_digits()
    small = np.rint(digits.images * (255 / BRIGHTEST)).astype(np.uint8)
    factor = SIDE // small.shape[1]
    images = small.repeat(factor, 1).repeat(factor, 2)[..., None].repeat(3, -1)
    parts = {"train": slice(TRAIN), "val": slice(TRAIN, None)}
    splits = {name: (images[part], digits.target[part]) for name, part in parts.items()}
    return write_cifar10(root, splits, [str(digit) for digit in range(10)])
