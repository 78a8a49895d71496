"""Test or validate a network: engine over samples, confusion matrix, saved predictions."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .inference import SlidingWindow
from .metrics import ConfusionMatrix, Scores


class EvaluationSample(Protocol):
    """What a dataset yields for testing."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray | None  # (H, W) uint8 train ids, None without ground truth
    name: str


@dataclass
class Evaluator:
    """Runs an engine over this process's share of the images and gathers the global figures.

    `on_prediction(sample, prediction)` sees every prediction, (H, W) uint8 on the host: to save it
    or to show it.
    """

    engine: SlidingWindow
    ignore_label: int = 255
    on_prediction: Callable[[EvaluationSample, np.ndarray], None] | None = None

    def run(self, samples: Iterable[EvaluationSample]) -> Scores:
        """The figures over all processes; every process must call it, each with its own share."""
        confusion = ConfusionMatrix(
            self.engine.settings.classes, ignore_label=self.ignore_label, device=self.engine.device
        )
        with evaluation_mode(self.engine.network):
            for sample in samples:
                prediction = self.engine.predict(sample.image)
                if sample.label is not None:
                    label = torch.from_numpy(sample.label).to(self.engine.device)
                    confusion.update(prediction, label)
                self._show(sample, prediction)
        confusion.reduce()
        return confusion.scores()

    def _show(self, sample: EvaluationSample, prediction: Tensor) -> None:
        if self.on_prediction is not None:
            self.on_prediction(sample, prediction.to(torch.uint8).cpu().numpy())


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation inside the block, and back to what it was."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
