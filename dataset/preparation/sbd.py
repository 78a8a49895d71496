"""PASCAL VOC 2012's larger training list, train_aug: VOC's own labels and SBD's (Hariharan et al.,
"Semantic Contours from Inverse Detectors", ICCV 2011)."""

from collections.abc import Iterator
from pathlib import Path

from ...config.errors import DataError
from ...util.files import write_lines
from ...util.images import read_label, write_png
from ..description import describe
from ..labels import read_matlab_label
from ..layout import read_ids

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

    Labels that are there already are kept, so that a stopped run continues.
    """
    colors = describe("voc2012").colors
    ids = train_aug_ids(voc, sbd)
    for name in ids:
        target = voc / "SegmentationClassAug" / f"{name}.png"
        if not target.is_file():
            voc_label, sbd_label = (
                voc / "SegmentationClass" / f"{name}.png",
                sbd / "cls" / f"{name}.mat",
            )
            if not (voc_label.is_file() or sbd_label.is_file()):
                raise DataError(f"{name}: neither {voc_label} nor {sbd_label} exists")
            label = read_label(voc_label) if voc_label.is_file() else read_matlab_label(sbd_label)
            write_png(target, label.astype("uint8"), colors)
        yield name
    write_lines(voc / SETS / "train_aug.txt", ids)
