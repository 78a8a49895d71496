"""The record of a training run: config.yaml, log lines, curves for trackers, epochs.jsonl."""

import time
from collections.abc import Callable, Mapping, Sequence
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ...config.errors import ConfigError
from ...config.schema import Config
from ...config.types import shown
from ..distributed import process_group
from ..files import write_text
from ..memory import peak_memory
from ..metrics import ConfusionMatrix
from .epoch_log import run_entry, write_epoch
from .losses import subsample_label
from .optimizer import lr_at
from .prefetch import PreparedBatch
from .step import StepFigures
from .trackers import Trackers, open_trackers


class RunLog:
    """Sums the figures of the steps on the device and reports them when that is due.

    Args:
        log: logger of the run.
        folder: of the run.
        ignore_label: label that counts nowhere.
        clock: seconds.
    Attributes:
        trackers: get the curves; None before `start`, and in processes other than the main one.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        *,
        log: Logger,
        folder: Path,
        steps_per_epoch: int,
        ignore_label: int = 255,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.train = config.TRAIN
        self.device = device
        self.classifies = config.classifies
        self.log = log
        self.folder = folder
        self.trackers: Trackers | None = None
        self.resumed_step: int | None = None
        self.steps_per_epoch = steps_per_epoch
        self.clock = clock
        self.confusion = ConfusionMatrix(
            config.DATA.classes, ignore_label=ignore_label, device=device, check=False
        )  # of this epoch
        # total, main, auxiliary, steps: since the last line of the log, and of this epoch
        self.loss_sums = torch.zeros(2, 4, device=device)
        self.unread: list[tuple[int, Sequence[str], Tensor]] = []  # step, images, skipped
        self.skipped_in_a_row = 0
        self.gradient_norm: Tensor | None = None  # of the last step
        self.epoch_steps = 0  # since the clock started
        self.epoch_seconds = 0.0
        self.restart_clock()

    def start(self) -> None:
        """Write `config.yaml` and open the trackers, before the first step.

        Raises:
            ConfigError: the file cannot be written, or a tracker's package is not installed.
        """
        if self.trackers is None and process_group.is_main():
            save_effective(self.config, self.folder / "config.yaml")
            self.trackers = open_trackers(
                self.config, self.folder, step=self.resumed_step, warn=self.log.warning
            )

    @torch.no_grad()
    def add(self, batch: PreparedBatch, figures: StepFigures) -> None:
        """Count a step, without waiting for the device."""
        for problem in batch.problems:
            self.log.error(f"left out: {problem}")
        self.unread.append((batch.step + 1, batch.names, figures.skipped))
        self.gradient_norm = figures.gradient_norm
        self.epoch_steps += 1
        skipped = figures.skipped.bool()
        sums = torch.cat([figures.losses, torch.ones_like(figures.losses[:1])])
        self.loss_sums += torch.where(skipped, torch.zeros_like(sums), sums)
        size, aligned = figures.prediction.shape[1:], self.train.align_corners
        label = subsample_label(batch.label, size, align_corners=aligned)
        kept = torch.where(skipped, self.confusion.ignore_label, label)
        self.confusion.update(figures.prediction, kept)

    def report(self, step: int, lr: float) -> None:
        """Log the means since the last report, draw them, and name the steps that were skipped."""
        sums = process_group.all_reduce_sum(self.loss_sums[0].clone())
        means = sums[:3] / sums[3]  # NaN: all were skipped
        norm = () if self.gradient_norm is None else (self.gradient_norm.float(),)
        total, main, second, *norm = torch.stack([*means, *norm]).tolist()  # one wait for all
        self.loss_sums[0].zero_()
        now = self.clock()
        seconds = (now - self.reported_at) / max(len(self.unread), 1)
        self.reported_at = now
        self._report_skipped()
        remaining = duration(seconds * (self.train.epochs * self.steps_per_epoch - step))
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        self.log.info(
            f"epoch {epoch + 1}/{self.train.epochs} step {position + 1}/{self.steps_per_epoch} "
            f"loss {total:.4f} main {main:.4f} auxiliary {second:.4f} lr {lr:.6f} "
            f"{seconds:.3f} s/step remaining {remaining}"
        )
        curves = {"loss": total, "main": main, "auxiliary": second, "lr": lr}
        if norm:
            curves["gradient_norm"] = norm[0]
        curves["images_per_second"] = self.train.batch_size / max(seconds, 1e-9)
        self.draw("train_step", curves | peak_memory(self.device), step)

    def _report_skipped(self) -> None:
        """Log the steps skipped since the last report, with their images."""
        if not self.unread:
            return
        verdicts = torch.stack([skipped for _, _, skipped in self.unread]).tolist()
        for (step, names, _), skipped in zip(self.unread, verdicts, strict=True):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            if skipped:
                self.log.error(
                    f"step {step} skipped: its loss or gradient is not finite; images of this "
                    f"process: {', '.join(names)}"
                )
        self.unread.clear()

    def training_figures(self, step: int) -> dict[str, float]:
        """Log and return the figures of the epoch that ends with `step`; the sums start again."""
        self.confusion.reduce()
        scores = self.confusion.scores()
        self.confusion.counts.zero_()
        sums = process_group.all_reduce_sum(self.loss_sums[1].clone())
        self.loss_sums[1].zero_()
        figures = scores.figures()
        if self.classifies:
            figures = {"top1": scores.pixel_accuracy, "mAcc": scores.mean_accuracy}
        self.epoch_seconds = self.clock() - self.epoch_began  # the device has been waited for
        self.report_epoch("train", figures, step)
        return {"loss": float(sums[0] / sums[3]), **figures}

    def report_epoch(self, split: str, figures: dict[str, float], step: int) -> None:
        """Log and draw the figures of an epoch."""
        line = "/".join(f"{value:.4f}" for value in figures.values())
        epoch = step // self.steps_per_epoch
        self.log.info(f"epoch {epoch} {split} {'/'.join(figures)} {line}")
        self.draw(split, figures, step)

    def write_epoch(self, step: int, figures: dict[str, dict[str, float]]) -> None:
        """Add {"train": {...}, "val": {...}} to epochs.jsonl."""
        if process_group.is_main():
            epoch = step // self.steps_per_epoch
            run = self._run_figures(step)
            write_epoch(self.folder, epoch, {**figures, **run}, warn=self.log.error)

    def _run_figures(self, step: int) -> dict[str, dict[str, float]]:
        """What the epoch that ends with `step` cost."""
        seconds = self.epoch_seconds / max(self.epoch_steps, 1)
        return run_entry(
            step=step,
            lr=lr_at(self.train, step - 1, self.steps_per_epoch),
            seconds_per_step=seconds,
            images_per_second=self.train.batch_size / max(seconds, 1e-9),
            **peak_memory(self.device),
        )

    def restart_clock(self) -> None:
        """Leave the time until now, such as that of a validation, out of the time per step."""
        self.reported_at = self.epoch_began = self.clock()
        self.epoch_steps = 0

    @property
    def is_watched(self) -> bool:
        """Whether anyone would see a curve or a picture."""
        return self.trackers is not None and self.trackers.active

    def draw(self, group: str, figures: Mapping[str, float], step: int) -> None:
        """Add {name: value} of a group to the curves."""
        if self.trackers is not None:
            self.trackers.scalars({f"{group}/{name}": v for name, v in figures.items()}, step)

    def show(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Give the trackers pictures, (H, W, 3) uint8 RGB, by their names."""
        if self.trackers is not None:
            self.trackers.images(pictures, step)

    def state_dict(self) -> dict[str, Tensor]:
        """Sums so far over all processes; every process must call it."""
        return {
            "confusion": process_group.all_reduce_sum(self.confusion.counts.clone()),
            "loss_sums": process_group.all_reduce_sum(self.loss_sums.clone()),
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Continue from a checkpoint; its sums are over all processes, so the main one has them."""
        self.resumed_step = content["step"]
        self.confusion.counts.copy_(content["confusion"] * process_group.is_main())
        self.loss_sums.copy_(content["loss_sums"] * process_group.is_main())

    def close(self) -> None:
        """Flush and close the trackers."""
        if self.trackers is not None:
            self.trackers.finish()


def save_effective(config: Config, path: str | Path) -> None:
    """Write every option with its value; load_config reads an equal config back."""
    path = Path(path)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    try:
        write_text(path, f"# every option of {shown(config.source)}\n{text}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def duration(seconds: float) -> str:
    """Format seconds as 01:02:03 or 2 d 01:02:03."""
    days, seconds = divmod(int(seconds), 24 * 3600)
    return f"{days} d " * bool(days) + time.strftime("%H:%M:%S", time.gmtime(seconds))
