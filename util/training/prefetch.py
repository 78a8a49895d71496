"""From the loader's batches to what a training step takes: on the device, mixed, normalised."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...config.schema import Config
from ..distributed import process_group
from ..distributed.watchdog import COMPUTING, READING
from ..images import Normalization
from .mixup import mix
from .step_timer import StepTimer


class LoadedBatch(Protocol):
    """What the loader yields: this process's share of a global batch."""

    image: Tensor  # (N, C, H, W) uint8
    label: Tensor  # (N, H, W) uint8, or (N,) int64 where whole images are classified
    names: list[str]
    problems: list[str]  # of images that were left out


@dataclass(frozen=True)
class PreparedBatch:
    """What a training step takes.

    Args:
        step: that it is for, counted from 0.
        image: (N, C, H, W) normalised, float32.
        label: (N, H, W) or (N,).
        partner: labels of the images that were mixed in, or None where none were. A pixel or image
            counts `share` as its `label` and the rest as its `partner`.
        names, problems: as loaded.
    """

    step: int
    image: Tensor
    label: Tensor
    partner: Tensor | None
    share: float
    names: list[str]
    problems: list[str]


class Prefetcher:
    """Prepares batches while the device computes.

    Kernels are only queued, so the host asks for the next batch while a GPU still computes, and a
    copy on a stream of its own proceeds meanwhile. It needs batches in pinned memory.

    Args:
        timer: measures how long each batch is waited for.
        note: called with (step, phase) of this process, for the watchdog.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        *,
        timer: StepTimer,
        note: Callable[[int, int], None],
    ) -> None:
        self.train = config.TRAIN
        self.device = device
        self.timer = timer
        self.note = note
        self.normalize = Normalization(config.DATA.mean, config.DATA.std, device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepared(
        self, loaded: Iterator[LoadedBatch], *, first_step: int
    ) -> Iterator[PreparedBatch]:
        """Yield the batches from step `first_step` on, counted from 0."""
        step = first_step
        while True:
            self.note(step + 1, READING)
            asked = self.timer.clock()
            batch = next(loaded, None)
            if batch is None:
                return
            self.timer.batch_came(asked)
            self.note(step + 1, COMPUTING)
            yield self.prepare(batch, step)
            step += 1

    def prepare(self, batch: LoadedBatch, step: int) -> PreparedBatch:
        """Move, mix and normalise a batch; mixing is a function of (seed, step, process)."""
        image, label = self._move(batch.image, batch.label)
        partner, share = None, 1.0
        if self.train.mixup or self.train.cutmix:
            key = [self.train.manual_seed or 0, step, process_group.rank()]
            image, partner, share = mix(
                image,
                label,
                mixup=self.train.mixup,
                cutmix=self.train.cutmix,
                generator=np.random.Generator(np.random.PCG64(key)),
            )
        image = self.normalize(image)
        if self.train.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return PreparedBatch(step, image, label, partner, share, batch.names, batch.problems)

    def _move(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if self.stream is None:
            return image.to(self.device), label.to(self.device)
        with torch.cuda.stream(self.stream):
            image = image.to(self.device, non_blocking=True)
            label = label.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in (image, label):
            tensor.record_stream(computing)  # its memory is not given away before that is done
        return image, label
