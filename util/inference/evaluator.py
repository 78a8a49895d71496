"""Test or validate a network: engine over samples, confusion matrix, saved predictions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import ConfusionMatrix, Scores
from .sliding_window import SlidingWindow


class EvaluationSample(Protocol):
    """What a dataset yields for testing."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray | None  # (H, W) uint8 train ids, None without ground truth
    name: str
    index: int


@dataclass
class Evaluator:
    """Runs an engine over this process's share of the images and counts hits and misses.

    Args:
        together: images of one group, by index, share forward passes.
        on_predictions: called with the samples of a group and their predictions, (H, W) uint8 on
            the host, to save or to show them: while the device works on the group after it.
    """

    engine: SlidingWindow
    confusion: ConfusionMatrix
    together: int = 1
    on_predictions: Callable[[Sequence[EvaluationSample], Sequence[np.ndarray]], None] | None = None

    def run(self, samples: Iterable[EvaluationSample]) -> None:
        """Predict and count the samples, which come in list order."""
        before: Callable[[], None] = nothing
        with evaluation_mode(self.engine.network):
            for _, group in groupby(samples, lambda sample: sample.index // self.together):
                after = self._evaluate(list(group))
                before()
                before = after
        before()

    def _evaluate(self, group: Sequence[EvaluationSample]) -> Callable[[], None]:
        """Set the device to work on a group; what is returned delivers its predictions."""
        predictions = self.engine.predict_group([sample.image for sample in group])
        for sample, prediction in zip(group, predictions, strict=True):
            if sample.label is not None:
                label = torch.from_numpy(sample.label).to(self.confusion.counts.device)
                self.confusion.update(prediction.to(label.device), label)
        if self.on_predictions is None:
            return nothing
        copies = [HostCopy(prediction.to(torch.uint8)) for prediction in predictions]
        return lambda: self.on_predictions(group, [copy.array() for copy in copies])

    def scores(self) -> Scores:
        """The figures over all processes; every process must call it, once."""
        self.confusion.reduce()
        return self.confusion.scores()


class HostCopy:
    """A tensor on its way to the host's memory, which the device's later work does not hold up."""

    def __init__(self, tensor: Tensor) -> None:
        self.copy, self.event = tensor, None
        if tensor.device.type == "cuda":
            self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.copy.copy_(tensor, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def array(self) -> np.ndarray:
        """The values, once they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.copy.numpy()


def nothing() -> None:
    """There is nothing to deliver."""


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation inside the block, and back to what it was."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
