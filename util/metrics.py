"""The confusion matrix and the figures that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.errors import DataError
from .distributed import process_group


@dataclass(frozen=True)
class Scores:
    """Figures of a test. Class lists are in index order; fractions are in [0, 1].

    `mean_iou` is that of semseg and SPNet: the plain mean over all classes, a class that occurs
    neither in label nor prediction counting 0. `mean_iou_present` leaves such classes out.
    """

    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    mean_iou_present: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]

    @property
    def score(self) -> float:
        """The figure by which the best of several networks is chosen."""
        return self.mean_iou

    def figures(self) -> dict[str, float]:
        """For the log, under the family's names."""
        return {
            "mIoU": self.mean_iou,
            "mAcc": self.mean_accuracy,
            "allAcc": self.pixel_accuracy,
        }

    def as_dict(self, names: Sequence[str]) -> dict:
        """For `metrics.json`, under the family's names mIoU, mAcc and allAcc."""
        return {
            **self.figures(),
            "mIoU_present": self.mean_iou_present,
            "classes": [
                {"index": i, "name": names[i], "iou": iou, "accuracy": accuracy, "pixels": pixels}
                for i, (iou, accuracy, pixels) in enumerate(
                    zip(self.iou, self.accuracy, self.pixels, strict=True)
                )
            ],
        }


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, kept on the device.

    Args:
        classes: K.
        ignore_label: label of pixels that are not counted.
        device: where labels and predictions are.
        check: check every value before it is counted, which synchronises with a GPU; False where
            values were checked when they were read.
    """

    def __init__(
        self,
        classes: int,
        *,
        ignore_label: int = 255,
        device: torch.device | str = "cpu",
        check: bool = True,
    ):
        self.classes = classes
        self.check = check
        self.ignore_label = ignore_label
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Add predictions and labels of equal shape, with integer values.

        Returns their own counts, (K, K): a row for each label.

        Raises:
            DataError: with `check`, the shapes differ, or a value is not a class.
        """
        if self.check:
            self._check(prediction, label)
        # one more row for what is ignored; narrow integers halve the passes over memory
        narrow = torch.int16 if (self.classes + 1) * self.classes < 2**15 else torch.int32
        rows = torch.where(label == self.ignore_label, self.classes, label.to(narrow))
        pairs = rows.mul_(self.classes).add_(prediction.to(narrow)).flatten()
        bins = (self.classes + 1) * self.classes
        # bincount would wait for a GPU to learn the largest value
        count = counts_by_addition if pairs.is_cuda else counts_by_bins
        counted = count(pairs, bins)
        counted = counted[: -self.classes].view(self.classes, self.classes)
        self.counts += counted
        return counted

    def _check(self, prediction: Tensor, label: Tensor) -> None:
        if prediction.shape != label.shape:
            raise DataError(
                f"predictions are {tuple(prediction.shape)} and labels {tuple(label.shape)}; their "
                "shapes must be equal"
            )
        for what, values in (("prediction", prediction), ("label", label)):
            if values.is_floating_point() or values.dtype == torch.bool:
                raise DataError(f"{what}s are {values.dtype}; expected integers, class indices")
            wrong = (values < 0) | (values >= self.classes)
            if what == "label":
                wrong &= values != self.ignore_label
            if wrong.any():
                raise DataError(
                    f"{what} value {int(values[wrong][0])} is outside the {self.classes} classes"
                )

    def reduce(self) -> None:
        """Sum over all processes, once, at the end."""
        process_group.all_reduce_sum(self.counts)

    def scores(self) -> Scores:
        """The figures of everything counted so far (I / (U + 1e-10), as the family has it)."""
        return scores_of(self.counts)


def counts_by_bins(values: Tensor, bins: int) -> Tensor:
    """(n,) values of 0 .. bins - 1 -> (bins,): how often each occurs."""
    return torch.bincount(values, minlength=bins)


def counts_by_addition(values: Tensor, bins: int) -> Tensor:
    """The same without synchronising with the device."""
    counted = torch.zeros(bins, dtype=torch.int64, device=values.device)
    return counted.index_add_(0, values.int(), torch.ones_like(values, dtype=torch.int64))


def scores_of(counts: Tensor) -> Scores:
    """The figures of (K, K) counts, a row for each label."""
    counts = counts.cpu().double()
    hits, labelled, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    union = labelled + predicted - hits
    iou = hits / (union + 1e-10)
    accuracy = hits / (labelled + 1e-10)
    present = union > 0
    return Scores(
        mean_iou=iou.mean().item(),
        mean_accuracy=accuracy.mean().item(),
        pixel_accuracy=(hits.sum() / (labelled.sum() + 1e-10)).item(),
        mean_iou_present=iou[present].mean().item() if present.any() else 0.0,
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        pixels=tuple(int(v) for v in labelled.tolist()),
    )


def check_prediction(prediction: Tensor, classes: int, *, origin: str) -> None:
    """Raises DataError when a saved prediction holds a value that is not a class."""
    if prediction.numel() and int(prediction.max()) >= classes:
        raise DataError(
            f"{origin}: prediction value {int(prediction.max())} is outside the {classes} classes; "
            "it was written for another dataset, or in the test server's encoding"
        )


def score_table(scores: Scores, names: Sequence[str]) -> str:
    """Return the table of figures per class and the means, as text."""
    width = max([len(name) for name in names] + [10])
    lines = [f"{'class':<{width + 5}}{'IoU':>8}{'accuracy':>10}{'pixels':>14}"]
    for index, name in enumerate(names):
        lines.append(
            f"{index:>3}  {name:<{width}}{scores.iou[index]:>8.4f}{scores.accuracy[index]:>10.4f}"
            f"{scores.pixels[index]:>14,}"
        )
    lines.append(
        f"mIoU/mAcc/allAcc {scores.mean_iou:.4f}/{scores.mean_accuracy:.4f}/"
        f"{scores.pixel_accuracy:.4f}  (mIoU of the classes present "
        f"{scores.mean_iou_present:.4f})"
    )
    return "\n".join(lines)
