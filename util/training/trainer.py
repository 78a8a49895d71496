"""The training loop: one path for CPU, one GPU and many processes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from ...config.errors import CheckpointError, TrainingError
from ...config.schema import Config
from ..checkpoint import CheckpointFolder, check_training_state
from ..distributed import process_group
from ..distributed.watchdog import EVALUATING, READING, Watchdog
from ..logger import progress
from ..memory import explained_out_of_memory, training_remedies, validation_remedies
from ..seeds import derived_seed
from ..signals import Stopped, StopRequest
from .ema import EMA
from .losses import SegmentationLoss
from .optimizer import load_optimizer_state, lr_at, set_lr
from .prefetch import LoadedBatch, Prefetcher
from .run_log import RunLog
from .step import TrainingStep
from .step_timer import StepTimer


class Loader(Protocol):
    """Batches of the run from a global step on, epoch after epoch without an end."""

    steps_per_epoch: int

    def batches(self, first_step: int, last_step: int) -> Iterator[LoadedBatch]: ...


class ValidationScores(Protocol):
    """What a validation gives: figures for the log, and the one by which the best is chosen."""

    @property
    def score(self) -> float: ...

    def figures(self) -> dict[str, float]: ...


# (step, note) -> scores; `note` is called with the name of each image
Validate = Callable[[int, Callable[[str], None]], ValidationScores]


class Trainer:
    """The training loop (`fit`) with its state (`state_dict`) and checkpoints.

    Args:
        network: the segmenter or classifier, wrapped for several processes where there are several.
        segmenter: the same without the wrapper: its tensors are what is saved.
        dtype: of the network's arithmetic.
        validate: run between epochs; None trains without validation.
        card: plain values that every checkpoint carries (the model card); the figures of the last
            validation are added as `figures`.
        protocol: of the validation, for these figures.
        on_epoch: called after each epoch with its number and {"train": {...}, "val": {...}}, by
            every process.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device,
        dtype: torch.dtype,
        network: nn.Module,
        segmenter: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: SegmentationLoss,
        loader: Loader,
        checkpoints: CheckpointFolder,
        run_log: RunLog,
        validate: Validate | None = None,
        card: Mapping[str, Any] | None = None,
        protocol: Mapping[str, Any] | None = None,
        on_epoch: Callable[[int, dict[str, dict[str, float]]], None] | None = None,
    ) -> None:
        train, scale = config.TRAIN, config.Distributed.loss_scale
        self.config = config
        self.train = train
        self.device = device
        self.dtype = dtype
        self.network = network
        self.segmenter = segmenter
        self.optimizer = optimizer
        self.loader = loader
        self.checkpoints = checkpoints
        self.run_log = run_log
        self.validate = validate
        self.card = dict(card or {})
        self.protocol = dict(protocol or {})
        self.on_epoch = on_epoch
        self.step = train.start_epoch * loader.steps_per_epoch  # optimizer steps done
        self.best_score = -1.0
        self.former_best = -1.0
        self.ema = EMA(segmenter, train.average_decay) if train.average_decay else None
        self.train_step = TrainingStep(
            network,
            optimizer=optimizer,
            loss=loss,
            dtype=dtype,
            accumulation_steps=train.accumulation_steps,
            loss_scale=scale if isinstance(scale, float) else None,
            ema=self.ema,
            clip_grad_norm=train.clip_grad_norm,
        )
        self.last_save = time.monotonic()

    @property
    def total_steps(self) -> int:
        return self.train.epochs * self.loader.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.loader.steps_per_epoch

    def fit(self, *, until: int | None = None) -> None:
        """Train from the current step to the end, or to step `until`.

        Raises:
            ConfigError: the run's record cannot be started.
            Stopped: a signal asked for it; everything is saved.
            TrainingError: too many steps in a row had to be skipped, and the state is saved; or
                the last state could not be saved.
            OutOfMemoryError: a step does not fit the memory; the newest checkpoint stays.
        """
        end = self.total_steps if until is None else min(self.total_steps, until)
        self.run_log.start()
        request = StopRequest()
        watchdog = Watchdog(
            minutes=self.config.Distributed.timeout_minutes,
            warn=self.run_log.log.error,
            lost=lambda: request.ask("the end of its launcher"),
        )
        generators = [self.device] if self.device.type == "cuda" else []
        explained = explained_out_of_memory(
            training_remedies(self.train), phase="training", last=self.checkpoints.last
        )
        self.network.train()
        watchdog.note(self.step + 1, READING)
        with request, watchdog, torch.random.fork_rng(generators), explained:
            try:
                self._steps(end, request, watchdog)
                if self.step % self.loader.steps_per_epoch:
                    self.save()
            finally:
                self.checkpoints.finish()
        if process_group.any_process(self.checkpoints.failure is not None):
            raise TrainingError(
                f"{self._unsaved()}. Make room on the disk and run the same command to resume"
            )

    def _unsaved(self) -> str:
        """Say that the state could not be saved."""
        reason = self.checkpoints.failure or "see the main process"
        kept = f"{self.checkpoints.folder} holds no checkpoint"
        if any(self.checkpoints.candidates()):
            kept = f"the checkpoints in {self.checkpoints.folder} are of earlier steps"
        return (
            f"the state after step {self.step} of {self.total_steps} could not be saved "
            f"({reason}); {kept}"
        )

    def _steps(self, end: int, request: StopRequest, watchdog: Watchdog) -> None:
        train, per_epoch = self.train, self.loader.steps_per_epoch
        timer = StepTimer(self.device, dtype=self.dtype, passes=train.accumulation_steps)
        prefetcher = Prefetcher(self.config, self.device, timer=timer, note=watchdog.note)
        loaded = self.loader.batches(self.step, end)
        batches = prefetcher.prepared(loaded, first_step=self.step)
        bar = {"total": self.total_steps, "start": self.step, "unit": "step", "what": "training"}
        for batch in progress(batches, **bar, lines=False):  # the log has lines of its own
            lr = lr_at(train, self.step, per_epoch)
            set_lr(self.optimizer, lr)
            # dropout is a function of (seed, step, process), so resuming needs no generator state
            seed = derived_seed(train.manual_seed or 0, self.step, process_group.rank())
            torch.manual_seed(seed)
            with timer.computing():
                figures = self.train_step(batch)
            self.step += 1
            self.run_log.add(batch, figures)
            if self.step % train.print_freq == 0 or self.step == end:
                self.run_log.report(self.step, lr)
                self._stop_if_diverged()
            if self.step % per_epoch == 0:
                if timer.active and (line := timer.conclude(self.segmenter)):
                    self.run_log.log.info(line)
                self._finish_epoch(watchdog)
            elif self._save_is_due():
                self.save()
            self._stop_if_asked(request)

    def _finish_epoch(self, watchdog: Watchdog) -> None:
        """Training figures, validation, checkpoints."""
        train, epoch = self.train, self.epoch
        figures = {"train": self.run_log.training_figures(self.step)}
        last = epoch == train.epochs
        improved = False
        if self.validate is not None and (epoch % train.evaluate_freq == 0 or last):
            scores = self._validate(partial(watchdog.note, self.step, EVALUATING))
            figures["val"] = scores.figures()
            self.run_log.report_epoch("val", figures["val"], self.step)
            self.card["figures"] = {
                "epoch": epoch,
                "val": figures["val"],
                "protocol": self.protocol,
            }
            self._forget_lost_best()
            improved = scores.score > self.best_score
            if improved:
                self.former_best, self.best_score = self.best_score, scores.score
        # before the checkpoint: a resumed run does not repeat this
        self.run_log.write_epoch(self.step, figures)
        due = epoch % train.save_freq == 0 or last
        if due or improved:
            self.save(epoch=epoch if due else None, best=improved)
        if improved:
            self.run_log.log.info(f"best so far: {self.checkpoints.best}")
        if self.on_epoch is not None:
            self.on_epoch(epoch, figures)
        self.run_log.restart_clock()

    def _validate(self, note: Callable[[str], None]) -> ValidationScores:
        """Validate the weights to use: the averaged ones where there are any."""
        explained = explained_out_of_memory(
            validation_remedies(self.train), phase="validating", last=self.checkpoints.last
        )
        with explained, nullcontext() if self.ema is None else self.ema.applied():
            return self.validate(self.step, note)

    def _stop_if_diverged(self) -> None:
        """Save and stop if more than `TRAIN.skipped_steps` steps in a row were skipped.

        Raises:
            TrainingError: they were.
        """
        count = self.run_log.skipped_in_a_row
        if count > self.train.skipped_steps:
            self.save()
            self.checkpoints.finish()
            raise TrainingError(
                f"{count} steps in a row were skipped up to step {self.step}, their loss or "
                "gradient is not finite; lower TRAIN.base_lr, or use TRAIN.precision bf16 or fp32. "
                f"{self.checkpoints.last} has the weights from before them"
            )

    def _stop_if_asked(self, request: StopRequest) -> None:
        """Save and stop if any process has received a signal.

        Raises:
            Stopped: one has.
        """
        if process_group.any_process(request.name is not None):
            self.save()
            self.checkpoints.finish()
            stopped = f"stopped by {request.name or 'another process'}"
            if self.checkpoints.failure is not None:
                raise Stopped(f"{stopped}: {self._unsaved()}; run the same command to resume")
            raise Stopped(
                f"{stopped} after step {self.step} of {self.total_steps}; saved in "
                f"{self.checkpoints.last}, run the same command to resume"
            )

    def _save_is_due(self) -> bool:
        """Return whether to save within an epoch; the same in every process.

        Clocks differ between processes, so the main one's decides, when a line of the log is due.
        """
        train = self.train
        if train.save_steps is not None and self.step % train.save_steps == 0:
            return True
        if train.save_minutes is None or self.step % train.print_freq:
            return False
        late = time.monotonic() - self.last_save > 60 * train.save_minutes
        return process_group.any_process(late and process_group.is_main())

    def _forget_lost_best(self) -> None:
        """Let the best score be that of `best.pth`, where a better one could not be written."""
        if process_group.any_process(self.checkpoints.lost_best()):
            self.best_score = self.former_best

    def save(self, *, epoch: int | None = None, best: bool = False) -> None:
        """Write `last.pth`; keep it as an epoch's and as the best one where these say so."""
        if not best:
            self._forget_lost_best()
        content = self.state_dict()
        if process_group.is_main():
            self.checkpoints.save(content, epoch=epoch, best=best)
        self.last_save = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue as if never stopped; every process must call it.

        `state_dict` in it has the weights to use: the averaged ones where there are any, and
        `training_weights` those that training continues with.
        """
        weights = {"state_dict": self.segmenter.state_dict()}
        if self.ema is not None:
            weights = {"state_dict": self.ema.tensors, "training_weights": weights["state_dict"]}
        return {
            **weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "steps_per_epoch": self.loader.steps_per_epoch,
            "best_mean_iou": self.best_score,  # the key is older than classifiers
            **self.run_log.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "card": self.card,
        }

    def load_state_dict(self, content: dict[str, Any], *, origin: str) -> None:
        """Restore what `state_dict` returned; its `state_dict` is in the network already.

        Raises:
            CheckpointError: the content is of another program, or of another length of epoch.
        """
        check_training_state(content, self.loader.steps_per_epoch, origin=origin)
        try:
            load_optimizer_state(self.optimizer, content["optimizer"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{origin}: its optimizer does not fit ({error}); TRAIN.optimizer or the network "
                "changed, or an earlier version began the run. Set TRAIN.weight to it to start a "
                "new run from its weights"
            ) from error
        if self.ema is not None:
            self.ema.load_state_dict(content["state_dict"])
        if "training_weights" in content:
            self.segmenter.load_state_dict(content["training_weights"])
        # a fixed scale is the config's; a run in another precision than fp16 has saved none
        if self.train_step.loss_scale is None and content["scaler"]:
            self.train_step.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
        self.best_score = content["best_mean_iou"]
        if "figures" in content.get("card", {}):
            self.card["figures"] = content["card"]["figures"]
        self.run_log.load_state_dict(content)
