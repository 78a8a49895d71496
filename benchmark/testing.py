"""Sliding-window testing: SPNet-50, 150 classes, ADE20K-sized images."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch import nn

from stripseg.config.load import find_config, load_config
from stripseg.model.build import build_segmenter
from stripseg.util.inference.sliding_window import (
    InferenceSettings,
    SlidingWindow,
    usual_batch_size,
)
from stripseg.util.precision import PRECISIONS, has_native_bfloat16

from . import textbook
from .apart import Apart
from .rows import Row, rate_row, seconds_of

SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
CROP, BASE_SIZE, CLASSES = 480, 512, 150
SIZE = 512, 683  # height and width of the picture


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with large shapes and fine grain, like a photograph."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return np.clip(smooth + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def spnet50(dataset: str = "ade20k") -> nn.Module:
    """As released, at fixed random weights whose scores are not all alike."""
    torch.manual_seed(0)
    network = build_segmenter(load_config(find_config(dataset, "spnet50"))).eval()
    nn.init.normal_(network.head.classifier.weight, std=0.2)
    return network


def engine(
    network: nn.Module, scales: tuple[float, ...], dtype: torch.dtype, device: str
) -> SlidingWindow:
    settings = InferenceSettings(
        CLASSES,
        window=(CROP, CROP),
        base_size=BASE_SIZE,
        scales=scales,
        batch_size=usual_batch_size(torch.device(device)),
    )
    return SlidingWindow(network, settings, device=device, dtype=dtype)


def measure(device: str = "cpu", *, rounds: int = 2) -> Iterator[Row]:
    """Rows for six scales and for one, in the precisions the device is good at."""
    network = spnet50().to(device, memory_format=torch.channels_last)
    wanted = {"cpu": {6: (4, 1.5), 1: (3, None)}, "cuda": {6: (40, None), 1: (20, None)}}[device]
    for scales in (SIX_SCALES, (1.0,)):
        goals = dict(zip(("bf16", "fp32"), wanted[len(scales)], strict=True))
        if not has_native_bfloat16(torch.device(device)):
            del goals["bf16"]
        yield from rows_of(network, scales, goals, device, rounds)


def plain_test(
    scales: tuple[float, ...], device: str
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """The baseline's test of one picture, and the (H, W, K) scores it found."""
    network, image = spnet50().to(device), picture(*SIZE)
    options = {"classes": CLASSES, "crop": CROP, "base_size": BASE_SIZE, "scales": scales}
    found: list[np.ndarray] = []

    def test() -> None:
        found[:] = [textbook.test_image(network, image, device=device, **options)]

    return test, lambda: found[0]


def rows_of(
    network: nn.Module,
    scales: tuple[float, ...],
    goals: dict[str, float | None],
    device: str,
    rounds: int,
) -> Iterator[Row]:
    """Each precision of `goals` against the textbook, on one picture."""
    image = picture(*SIZE)
    engines = [engine(network, scales, PRECISIONS[name], device) for name in goals]
    with Apart(plain_test, scales, device) as baseline:
        *ours, theirs = seconds_of(
            *[lambda tester=tester: tester.predict(image).cpu() for tester in engines],
            baseline,
            rounds=rounds,
            device=device,
        )
        expected = baseline.result()
    for (precision, goal), tester, seconds in zip(goals.items(), engines, ours, strict=True):
        scores = tester.probabilities(image).permute(1, 2, 0).cpu().numpy()
        yield rate_row(
            f"test, {len(scales)} scale{'s' * (len(scales) > 1)} + flip, {precision}",
            (seconds, theirs),
            unit="image/s",
            wanted=goal,
            agreement=agreement(scores, expected),
        )


def agreement(ours: np.ndarray, expected: np.ndarray) -> str:
    largest = np.abs(ours - expected).max()
    same = (ours.argmax(2) == expected.argmax(2)).mean()
    return f"scores within {largest:.1g}, {100 * same:.2f} % of the pixels alike"
