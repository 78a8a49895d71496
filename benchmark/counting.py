"""Confusion matrix: 150 classes, a 2048 x 1024 prediction."""

from collections.abc import Iterator

import numpy as np
import torch

from stripseg.util.metrics import ConfusionMatrix

from . import textbook
from .rows import Row, rate_row, seconds_of

CLASSES = 150


def measure(device: str = "cpu", *, rounds: int = 7) -> Iterator[Row]:
    rng = np.random.Generator(np.random.PCG64(0))
    label = rng.integers(0, CLASSES, (1024, 2048), np.uint8)
    label[rng.random(label.shape) < 0.1] = 255
    prediction = rng.integers(0, CLASSES, label.shape, np.uint8)
    prediction[::2] = np.minimum(label[::2], CLASSES - 1)
    ours = ConfusionMatrix(CLASSES, device=device, check=False)
    on_device = torch.from_numpy(prediction).to(device).long(), torch.from_numpy(label).to(device)

    def update() -> None:
        ours.update(*on_device)

    def histograms() -> tuple[np.ndarray, ...]:
        return textbook.areas(on_device[0].cpu().numpy(), label, CLASSES)

    update()
    counts = ours.counts.cpu().numpy()
    intersection, _, labelled = histograms()
    equal = (counts.diagonal() == intersection).all() and (counts.sum(1) == labelled).all()
    times = seconds_of(update, histograms, rounds=rounds, device=device)
    yield rate_row(
        "confusion matrix, 2048x1024",
        times,
        unit="image/s",
        wanted={"cpu": 5, "cuda": 10}[device],
        agreement="equal" if equal else "DIFFERENT",
    )
