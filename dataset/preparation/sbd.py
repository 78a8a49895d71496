"""PASCAL VOC 2012's larger training list, train_aug: VOC's own labels and SBD's (Hariharan et al.,
"Semantic Contours from Inverse Detectors", ICCV 2011)."""

from collections.abc import Iterator
from pathlib import Path

from ...config.errors import DataError
from ...util.files import atomic_write
from ...util.images import read_label, write_png
from ..description import describe
from ..layout import read_ids
from ..matlab import read_matlab_label

SETS = Path("ImageSets/Segmentation")


def train_aug_ids(voc: Path, sbd: Path) -> list[str]:
    """Every image that VOC trains on or SBD labels, without VOC's validation images.

    Args:
        voc: VOCdevkit/VOC2012.
        sbd: benchmark_RELEASE/dataset.
    Raises:
        DataError: a list is missing.
    """
    chosen = {name for file in ("train.txt", "val.txt") for name in read_ids(sbd / file) or ()}
    chosen |= set(read_ids(voc / SETS / "train.txt") or ())
    return sorted(chosen - set(read_ids(voc / SETS / "val.txt") or ()))


def write_train_aug(voc: Path, sbd: Path) -> Iterator[str]:
    """Write `SegmentationClassAug/` and, when it is whole, `train_aug.txt`; yields each id.

    Labels that are there already are kept, so that a stopped run goes on.
    """
    colors = describe("voc2012").colors
    ids = train_aug_ids(voc, sbd)
    for name in ids:
        target = voc / "SegmentationClassAug" / f"{name}.png"
        if not target.is_file():
            own, theirs = voc / "SegmentationClass" / f"{name}.png", sbd / "cls" / f"{name}.mat"
            if not (own.is_file() or theirs.is_file()):
                raise DataError(f"{name}: neither {own} nor {theirs} exists")
            label = read_label(own) if own.is_file() else read_matlab_label(theirs)
            write_png(target, label.astype("uint8"), colors)
        yield name
    with atomic_write(voc / SETS / "train_aug.txt") as file:
        file.write(("\n".join(ids) + "\n").encode())
