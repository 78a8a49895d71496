"""Test or validate a network: engine over samples, confusion matrix, saved predictions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..images import upload
from ..memory import HostCopy
from ..metrics import ConfusionMatrix, Scores
from .sliding_window import SlidingWindow


class EvaluationSample(Protocol):
    """What a dataset yields for testing."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray | None  # (H, W) uint8 train ids, None without ground truth
    name: str
    index: int


@dataclass(frozen=True)
class ImageResult:
    """What is known of one image after its test, on the host.

    Attributes:
        prediction: (H, W) uint8 classes.
        confidence: (H, W) uint8: the probability of each pixel's class; 255 is 1.
        counts: (K, K) int64, pixels of each label (row) and prediction; None without a label.
    """

    sample: EvaluationSample
    prediction: np.ndarray
    confidence: np.ndarray
    counts: np.ndarray | None


def every(_: EvaluationSample) -> bool:
    """Accept every sample."""
    return True


@dataclass(frozen=True)
class Evaluator:
    """Runs an engine over this process's share of the images and counts hits and misses.

    Args:
        group_size: images of one group, by index, share forward passes.
        on_predictions: called with the wanted samples of a group and their predictions, (H, W)
            uint8 on the host, to show them: while the device works on the next group.
        wanted: which samples `on_predictions` wants; the others' predictions stay on the device.
        on_results: called with everything about the images of a group, at the same time.
    """

    engine: SlidingWindow
    confusion: ConfusionMatrix
    group_size: int = 1
    on_predictions: Callable[[Sequence[EvaluationSample], Sequence[np.ndarray]], None] | None = None
    wanted: Callable[[EvaluationSample], bool] = every
    on_results: Callable[[Sequence[ImageResult]], None] | None = None

    def run(self, samples: Iterable[EvaluationSample]) -> None:
        """Predict and count the samples, which come in list order."""
        deliver_last: Callable[[], None] = nothing
        with evaluation_mode(self.engine.network):
            for _, group in groupby(samples, lambda sample: sample.index // self.group_size):
                deliver = self._evaluate(list(group))
                deliver_last()
                deliver_last = deliver
        deliver_last()

    def _evaluate(self, group: Sequence[EvaluationSample]) -> Callable[[], None]:
        """Queue a group on the device, and return what delivers its predictions.

        The labels are uploaded first: a copy behind the network's work would wait for it.
        """
        device = self.confusion.counts.device
        labels = [
            None if sample.label is None else upload(sample.label, device) for sample in group
        ]
        predictions, confidences = self._predict([sample.image for sample in group])
        results, wanted = [], []
        for sample, label, prediction, confidence in zip(
            group, labels, predictions, confidences, strict=True
        ):
            counts = None
            if label is not None:
                counts = self.confusion.update(prediction.to(device), label)
            if self.on_predictions is not None and self.wanted(sample):
                wanted.append((sample, HostCopy(prediction.to(torch.uint8))))
            if self.on_results is not None:
                copies = (prediction.to(torch.uint8), confidence, counts)
                results.append((sample, [None if c is None else HostCopy(c) for c in copies]))

        def deliver() -> None:
            if wanted:
                self.on_predictions(
                    [sample for sample, _ in wanted], [copy.array() for _, copy in wanted]
                )
            if results:
                self.on_results(
                    [
                        ImageResult(sample, *(copy and copy.array() for copy in copies))
                        for sample, copies in results
                    ]
                )

        return deliver

    def _predict(
        self, images: Sequence[np.ndarray]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """The classes of each image, and their confidence where `on_results` wants it."""
        if self.on_results is None:
            return self.engine.predict_group(images), [None] * len(images)
        pairs = self.engine.predict_with_confidence(images)
        return [classes for classes, _ in pairs], [confidence for _, confidence in pairs]

    def scores(self) -> Scores:
        """The figures over all processes; every process must call it, once."""
        self.confusion.reduce()
        return self.confusion.scores()


def nothing() -> None:
    """Deliver nothing."""


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation inside the block, and back to what it was."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
