"""What the training loop is given: plain settings, and what it asks of batches and loaders."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Batch(Protocol):
    """What the loader yields: this process's share of a global batch."""

    image: Tensor  # (N, C, H, W) uint8
    label: Tensor  # (N, H, W) uint8, or (N,) int64 where whole images are classified
    names: list[str]
    problems: list[str]  # of images that were left out


class Loader(Protocol):
    """Batches of the run from a global step on, epoch after epoch without an end."""

    steps_per_epoch: int

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]: ...


class Scores(Protocol):
    """What a validation gives: figures for the log, and the one by which the best is chosen."""

    @property
    def score(self) -> float: ...

    def figures(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class TrainerSettings:
    """Plain values of the loop; schedule.py makes rates of `base_rate` to `warmup_epochs`."""

    classes: int
    epochs: int
    base_rate: float
    schedule: str = "poly"
    power: float = 0.9
    milestones: tuple[int, ...] = ()
    rate_decay: float = 0.1
    warmup_epochs: int = 0
    classifies: bool = False
    mixup: float = 0
    cutmix: float = 0
    average_decay: float = 0
    ignore_label: int = 255
    seed: int = 0
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    accumulation_steps: int = 1
    loss_scale: float | None = None
    print_every: int = 10
    save_every_epochs: int = 1
    save_every_minutes: float | None = 10
    save_every_steps: int | None = None
    evaluate_every_epochs: int = 1
    skipped_in_a_row: int = 10
    hung_after_minutes: float = 30
