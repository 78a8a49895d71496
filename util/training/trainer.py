"""The training loop: one path for CPU, one GPU and many processes."""

import time
from collections.abc import Callable, Iterator
from logging import Logger
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...config.errors import CheckpointError, TrainingError
from ..checkpoint import CheckpointFolder, check_training_state
from ..distributed import process_group
from ..distributed.watchdog import COMPUTING, READING, Watchdog
from ..logger import progress
from ..metrics import ConfusionMatrix
from ..normalization import Normalization
from ..seeds import derived_seed
from ..signals import Stopped, StopRequest
from .ema import WeightAverage
from .epoch_log import write_epoch
from .losses import SegmentationLoss
from .mixup import Mixture, mix
from .non_finite import NonFiniteGuard
from .optimizer import set_rate
from .prefetch import to_device
from .schedule import rate_at
from .settings import Batch, Loader, Scores, TrainerSettings
from .step import forward_backward
from .step_timer import StepClock


class Trainer:
    """Trains `network` and keeps its checkpoints; `fit` is the whole story.

    Args:
        network: the segmenter or classifier, wrapped for several processes where there are several.
        segmenter: the same without the wrapper: its tensors are what is saved.
        validate: () -> Scores, run between epochs; None trains without validation.
        board: a TensorBoard writer (`add_scalar`), or None.
        config: stored in every checkpoint.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        segmenter: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: SegmentationLoss,
        loader: Loader,
        settings: TrainerSettings,
        checkpoints: CheckpointFolder,
        log: Logger,
        validate: Callable[[], Scores] | None = None,
        board: Any = None,
        config: dict | None = None,
    ) -> None:
        self.network = network
        self.segmenter = segmenter
        self.optimizer = optimizer
        self.loss = loss
        self.loader = loader
        self.settings = settings
        self.checkpoints = checkpoints
        self.log = log
        self.validate = validate
        self.board = board
        self.config = config or {}
        device = settings.device
        self.step = 0  # optimizer steps done
        self.best_score = -1.0
        self.scaler = torch.amp.GradScaler(
            device.type,
            enabled=settings.dtype == torch.float16,
            init_scale=settings.loss_scale or 2.0**16,
            growth_interval=2**31 - 1 if settings.loss_scale else 2000,
        )
        self.confusion = self._new_confusion()
        # total, main, auxiliary, steps: since the last line of the log, and of this epoch
        self.loss_sums = torch.zeros(2, 4, device=device)
        self.normalize = Normalization(settings.mean, settings.std, device)
        self.guard = NonFiniteGuard(segmenter, optimizer, device)
        self.average = WeightAverage(segmenter, settings.average_decay)
        self.checkpoints.complain = log.error
        self.clock = StepClock(device)
        self.request = StopRequest()
        self.watchdog = Watchdog(
            minutes=settings.hung_after_minutes,
            complain=log.error,
            lost=lambda: self.request.ask("the end of its launcher"),
        )
        self.last_save = self.last_print = time.monotonic()

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.loader.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.loader.steps_per_epoch

    def fit(self, *, until: int | None = None) -> None:
        """Train from the current step to the end, or to step `until`.

        Raises:
            Stopped: a signal asked for it; everything is saved.
            TrainingError: too many steps in a row had to be skipped; the state is saved.
        """
        end = self.total_steps if until is None else min(self.total_steps, until)
        self.network.train()
        self.watchdog.note(self.step + 1, READING)
        with self.request, self.watchdog:
            self._steps(end)
            if self.step % self.loader.steps_per_epoch:
                self.save()
            self.checkpoints.finish()

    def _steps(self, end: int) -> None:
        batches = self.clock.waits(self.loader.batches(self.step, end))
        batches = self._watched(to_device(batches, self.settings.device))
        for batch in progress(
            batches, total=self.total_steps, start=self.step, unit="step", what="training"
        ):
            for problem in batch.problems:
                self.log.error(f"left out: {problem}")
            self.train_step(batch)
            every = self.settings.save_every_steps
            save_is_due = every is not None and self.step % every == 0
            if self.step % self.settings.print_every == 0 or self.step == end:
                save_is_due |= self._report()
            if self.step % self.loader.steps_per_epoch == 0:
                self._finish_epoch()
            elif save_is_due:
                self.save()
            if process_group.any_process(self.request.name is not None):
                self.save()
                self.checkpoints.finish()
                reason = self.request.name or "another process"
                raise Stopped(
                    f"stopped by {reason} after step {self.step} of {self.total_steps}; saved in "
                    f"{self.checkpoints.last}, the same command goes on from there"
                )

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the watchdog is told when this process waits for one and when it has one."""
        for batch in batches:
            self.watchdog.note(self.step + 1, COMPUTING)
            yield batch
            self.watchdog.note(self.step + 1, READING)

    def train_step(self, batch: Batch) -> None:
        """One optimizer step on one global batch."""
        settings = self.settings
        rate = rate_at(settings, self.step, self.loader.steps_per_epoch)
        set_rate(self.optimizer, rate)
        # dropout is a function of (seed, step, process), so resuming needs no generator state
        torch.manual_seed(derived_seed(settings.seed, self.step, process_group.rank()))
        image, label = batch.image.to(settings.device), batch.label.to(settings.device)
        self.guard.before_step()
        self.optimizer.zero_grad(set_to_none=True)
        with self.clock.computing():
            figures, prediction = forward_backward(
                self.network,
                self.loss,
                image,
                label,
                prepare=self._prepare,
                scaler=self.scaler,
                dtype=settings.dtype,
                parts=settings.accumulation_steps,
                mixture=self._mixture(image, label),
            )
            bad = self._update(figures[0])
        self.step += 1
        self.guard.note(self.step, batch.names, bad)
        with torch.no_grad():
            self.guard.keep_or_restore(bad)
            self.average.update(self.step)
            figures = torch.cat([figures, torch.ones_like(figures[:1])])
            self.loss_sums += torch.where(bad.bool(), torch.zeros_like(figures), figures)
            if prediction is not None:
                kept = torch.where(bad.bool(), settings.ignore_label, label)
                self.confusion.update(prediction, kept)

    def _mixture(self, image: Tensor, label: Tensor) -> Mixture | None:
        """Mixup or CutMix of this step, a function of (seed, step, process), if asked for."""
        s = self.settings
        if not (s.mixup or s.cutmix):
            return None
        generator = np.random.Generator(np.random.PCG64([s.seed, self.step, process_group.rank()]))
        return mix(image, label, mixup=s.mixup, cutmix=s.cutmix, generator=generator)

    def _prepare(self, image: Tensor) -> Tensor:
        """(N, C, H, W) pixels -> what the network sees."""
        image = self.normalize(image)
        if self.settings.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image

    def _update(self, loss: Tensor) -> Tensor:
        """Step the optimizer unless loss or gradients are not finite: 1.0 where it was skipped.

        With fp16 the gradient scaler skips steps as a matter of course; then only the loss counts.
        """
        scaled = self.scaler.is_enabled()
        bad = self.guard.judge(loss, gradients=not scaled)
        if scaled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = bad  # the fused kernels leave everything alone where it is 1
            self.optimizer.step()
        return bad

    def _report(self) -> bool:
        """One line, and the curves, of the steps since the last one; is a checkpoint due?

        Clocks differ between processes, so the main one's word travels with the sums.
        """
        due = torch.full_like(
            self.loss_sums[0, :1], self._save_is_due() and process_group.is_main()
        )
        sums = process_group.all_reduce_sum(torch.cat([self.loss_sums[0], due]))
        total, main, second = (sums[:3] / sums[3]).tolist()  # NaN: all were skipped
        self.loss_sums[0].zero_()
        steps = len(self.guard.seen)
        now = time.monotonic()
        seconds, self.last_print = (now - self.last_print) / max(steps, 1), now
        self._report_skipped()
        rate = self.optimizer.param_groups[0]["lr"]
        remaining = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.total_steps - self.step)))
        per_epoch = self.loader.steps_per_epoch
        self.log.info(
            f"epoch {(self.step - 1) // per_epoch + 1}/{self.settings.epochs} "
            f"step {(self.step - 1) % per_epoch + 1}/{per_epoch} loss {total:.4f} main {main:.4f} "
            f"auxiliary {second:.4f} lr {rate:.6f} {seconds:.3f} s/step remaining {remaining}"
        )
        self._draw("train_step", {"loss": total, "main": main, "auxiliary": second, "lr": rate})
        return bool(sums[4] > 0)

    def _report_skipped(self) -> None:
        """Name the steps that were skipped, and stop where there were too many in a row."""
        for complaint in self.guard.look():
            self.log.error(complaint)
        if self.guard.in_a_row > self.settings.skipped_in_a_row:
            self.save()
            self.checkpoints.finish()
            raise TrainingError(
                f"{self.guard.in_a_row} steps in a row were skipped up to step {self.step}, their "
                "loss or gradient is not finite; lower TRAIN.base_lr, or use TRAIN.precision bf16 "
                f"or fp32. {self.checkpoints.last} has the weights from before them"
            )

    def _finish_epoch(self) -> None:
        """Training figures, validation, checkpoints."""
        settings, epoch = self.settings, self.epoch
        if self.clock.active and (verdict := self.clock.conclude(self.segmenter, settings)):
            self.log.info(verdict)
        self.confusion.reduce()
        scores = self.confusion.scores()
        counted = scores.figures()
        if settings.classifies:
            counted = {"top1": scores.pixel_accuracy, "mAcc": scores.mean_accuracy}
        self._tell("train", counted)
        self.confusion = self._new_confusion()
        sums = process_group.all_reduce_sum(self.loss_sums[1].clone())
        self.loss_sums[1].zero_()
        figures = {"train": {"loss": float(sums[0] / sums[3]), **counted}}
        last = epoch == settings.epochs
        improved = False
        if self.validate and (epoch % settings.evaluate_every_epochs == 0 or last):
            with self.average.applied():
                scores = self.validate()
            self._tell("val", scores.figures())
            figures["val"] = scores.figures()
            improved = scores.score > self.best_score
            self.best_score = max(self.best_score, scores.score)
        if process_group.is_main():  # before the checkpoint: a resumed run does not come here again
            write_epoch(self.checkpoints.folder, epoch, figures, complain=self.log.error)
        due = epoch % settings.save_every_epochs == 0 or last
        if not (due or improved):
            return
        self.save(epoch=epoch if due else None, best=improved)
        if improved:
            self.log.info(f"best so far: {self.checkpoints.best}")
        self.last_print = time.monotonic()

    def _tell(self, split: str, figures: dict[str, float]) -> None:
        line = "/".join(f"{value:.4f}" for value in figures.values())
        self.log.info(f"epoch {self.epoch} {split} {'/'.join(figures)} {line}")
        self._draw(split, figures)

    def _draw(self, group: str, figures: dict[str, float]) -> None:
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(f"{group}/{name}", value, self.step)

    def _new_confusion(self) -> ConfusionMatrix:
        s = self.settings
        return ConfusionMatrix(s.classes, ignore_label=s.ignore_label, device=s.device)

    def _save_is_due(self) -> bool:
        minutes = self.settings.save_every_minutes
        return minutes is not None and time.monotonic() - self.last_save > 60 * minutes

    def save(self, *, epoch: int | None = None, best: bool = False) -> None:
        """Write `last.pth`: everything a run needs to go on as if never stopped."""
        counts = process_group.all_reduce_sum(self.confusion.counts.clone())
        sums = process_group.all_reduce_sum(self.loss_sums.clone())
        if process_group.is_main():
            self.checkpoints.save(
                {
                    **self.average.contents(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "step": self.step,
                    "epoch": self.epoch,
                    "steps_per_epoch": self.loader.steps_per_epoch,
                    "best_mean_iou": self.best_score,  # the key is older than classifiers
                    "confusion": counts,
                    "loss_sums": sums,
                    "config": self.config,
                },
                epoch=epoch,
                best=best,
            )
        self.last_save = time.monotonic()

    def resume(self, content: dict[str, Any], *, origin: str) -> None:
        """Go on from what `save` wrote; the weights are loaded by the caller.

        Raises:
            CheckpointError: the content is of another program, or of another length of epoch.
        """
        check_training_state(content, self.loader.steps_per_epoch, origin=origin)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{origin}: its optimizer does not fit ({error}); TRAIN.optimizer or the network "
                "changed. Set TRAIN.weight to it to start a new run from its weights"
            ) from error
        self.average.restore(content)
        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
        self.best_score = content["best_mean_iou"]
        share = process_group.is_main()  # sums over processes live on in one of them
        self.confusion.counts.copy_(content["confusion"] * share)
        self.loss_sums.copy_(content["loss_sums"] * share)
