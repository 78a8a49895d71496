"""Evaluation of networks that classify whole images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..distributed import process_group
from ..images import upload
from ..metrics import ConfusionMatrix
from .evaluator import EvaluationSample, evaluation_mode

WIDEST = 20  # classes of the largest confusion matrix that is shown as text


@dataclass(frozen=True)
class ClassificationScores:
    """Figures of a test; fractions are in [0, 1], class lists in index order.

    `top5` counts an image whose class is among the five likeliest (all of fewer than five);
    `confusion[i][j]` is the count of images of class i that were taken for class j.
    """

    top1: float
    top5: float
    loss: float
    accuracy: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def score(self) -> float:
        """The figure by which the best of several networks is chosen."""
        return self.top1

    @property
    def images(self) -> tuple[int, ...]:
        """Count of images per class."""
        return tuple(sum(row) for row in self.confusion)

    def figures(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}

    def as_dict(self, names: Sequence[str]) -> dict:
        """For `metrics.json`."""
        return {
            **self.figures(),
            "classes": [
                {"index": i, "name": names[i], "accuracy": accuracy, "images": images}
                for i, (accuracy, images) in enumerate(zip(self.accuracy, self.images, strict=True))
            ],
            "confusion": [list(row) for row in self.confusion],
        }


class ClassificationEvaluator:
    """Runs a network over this process's share of the images and counts hits.

    Args:
        network: (N, C, H, W) -> an output whose `logits` are (N, K).
        prepare: (N, C, H, W) uint8 pixels on the device -> what the network sees.
        images_per_batch: images of one group, by index, share a forward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        images_per_batch: int = 1,
    ) -> None:
        self.network = network
        self.prepare = prepare
        self.device = device
        self.dtype = dtype
        self.images_per_batch = images_per_batch
        self.confusion = ConfusionMatrix(classes, ignore_label=-1, device=device, check=False)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top-5 hits, images

    def run(self, samples: Iterable[EvaluationSample]) -> None:
        """Predict and count the samples, which come group after group."""
        with evaluation_mode(self.network):
            for _, group in groupby(samples, lambda sample: sample.index // self.images_per_batch):
                self._evaluate(list(group))

    @torch.inference_mode()
    def _evaluate(self, group: Sequence[EvaluationSample]) -> None:
        image = upload(np.stack([sample.image for sample in group]), self.device)
        label = upload(np.array([int(sample.label) for sample in group]), self.device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            logits = self.network(self.prepare(image.permute(0, 3, 1, 2))).logits
        logits = logits.float()
        likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
        self.confusion.update(likeliest[:, 0], label)
        self.sums[0] += F.cross_entropy(logits, label, reduction="none").double().sum()
        self.sums[1] += (likeliest == label[:, None]).any(1).sum()
        self.sums[2] += len(group)

    def scores(self) -> ClassificationScores:
        """The figures over all processes; every process must call it, once."""
        self.confusion.reduce()
        loss, hits, images = process_group.all_reduce_sum(self.sums).tolist()
        counted = self.confusion.scores()
        return ClassificationScores(
            top1=counted.pixel_accuracy,
            top5=hits / max(images, 1),
            loss=loss / max(images, 1),
            accuracy=counted.accuracy,
            confusion=tuple(tuple(row) for row in self.confusion.counts.tolist()),
        )


def classification_table(scores: ClassificationScores, names: Sequence[str]) -> str:
    """Return accuracy per class, the confusion matrix unless it is too wide, and the figures."""
    width = max([len(name) for name in names] + [10])
    lines = [f"{'class':<{width + 5}}{'accuracy':>10}{'images':>10}"]
    for index, (name, accuracy, images) in enumerate(
        zip(names, scores.accuracy, scores.images, strict=True)
    ):
        lines.append(f"{index:>3}  {name:<{width}}{accuracy:>10.4f}{images:>10,}")
    if len(names) <= WIDEST:
        lines.append("a row for each class, a column for what it was taken for:")
        lines.append(" " * 5 + "".join(f"{index:>6}" for index in range(len(names))))
        for index, row in enumerate(scores.confusion):
            lines.append(f"{index:>3}  " + "".join(f"{count:>6}" for count in row))
    figures = scores.figures()
    values = "/".join(f"{value:.4f}" for value in figures.values())
    lines.append(f"{'/'.join(figures)} {values}")
    return "\n".join(lines)
