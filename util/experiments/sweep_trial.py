"""One trial of a sweep: a training run as a process of its own, followed epoch by epoch."""

import math
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...config.errors import TrainingError
from ...config.schema import Config
from ..checkpoint import folder_lock
from ..files import write_text
from ..signals import STOPPED
from ..training.epoch_log import read_epochs
from .child_process import POLL, follow

OUTPUT = "output.txt"  # all that the run said


@dataclass
class Outcome:
    """How a run ended: COMPLETE, PRUNED, FAIL, or STOPPED when it was asked to."""

    state: str
    value: float | None = None
    error: str = ""


def write_trial_yaml(path: Path, base: Config, options: Mapping[str, Any], experiment: str) -> None:
    """A YAML of the base config with a trial's options, and the trial's own folders."""
    content: dict[str, Any] = {
        "base": os.path.relpath(Path(base.source).resolve(), path.parent.resolve()),
        "experiment": experiment,
        "DATA": {"dataset": base.dataset},  # the name of this file does not tell
    }
    for option, value in options.items():
        section, _, key = option.partition(".")
        content.setdefault(section, {})[key] = value
    content.setdefault("TRAIN", {}).update(save_path=str(path.parent / "model"), resume="auto")
    result = {"save_folder": str(path.parent / "result"), "model_path": None}
    content.setdefault("TEST", {}).update(result)
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


class TrialRun:
    """The training run of a trial.

    Args:
        command: starts it; it saves and ends with exit code 75 at SIGTERM.
        folder: the trial's; the run's own is `model` in it.
        split, metric: of which figures of an epoch which one counts, ("val", "mIoU").
        epochs: that the run has.
        on_epoch: (epoch, value) -> is the trial without hope?
        stopping: is this process asked to end?
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        split: str,
        metric: str,
        epochs: int,
        on_epoch: Callable[[int, float], bool],
        stopping: Callable[[], bool],
    ) -> None:
        self.command = list(command)
        self.folder = folder
        self.split = split
        self.metric = metric
        self.epochs = epochs
        self.on_epoch = on_epoch
        self.stopping = stopping
        self.seen: dict[int, float] = {}
        self.hopeless = False

    def run(self) -> Outcome:
        """Start the run, or go on with it, and follow it to its end."""
        if not self._wait_for_folder():
            return Outcome("STOPPED")
        output = self.folder / OUTPUT
        begin = output.stat().st_size if output.exists() else 0
        code = follow(self.command, output, end=self._should_end)
        self._look()
        if self.hopeless:
            return Outcome("PRUNED")
        if code and self.stopping():
            return Outcome("STOPPED")
        return self._outcome(code, begin)

    def _wait_for_folder(self) -> bool:
        """Until the run that a killed worker left has saved and ended; False if asked to stop."""
        while not self.stopping():
            try:
                with folder_lock(self.folder / "model"):
                    return True
            except TrainingError:
                time.sleep(POLL)
        return False

    def _should_end(self) -> bool:
        self._look()
        return self.hopeless or self.stopping()

    def _look(self) -> None:
        """Report the epochs that are new; is the trial without hope after one of them?"""
        for epoch, figures in read_epochs(self.folder / "model").items():
            value = figures.get(self.split, {}).get(self.metric)
            if epoch in self.seen or value is None or self.hopeless:
                continue
            self.seen[epoch] = value
            self.hopeless = self.on_epoch(epoch, value) and epoch < self.epochs

    def _outcome(self, code: int, begin: int) -> Outcome:
        if code == STOPPED:  # by a signal to all processes of a job, of which ours is yet to come
            return Outcome("STOPPED")
        if code:
            return Outcome("FAIL", error=what_went_wrong(self.folder / OUTPUT, begin, code))
        if not self.seen:
            known = sorted({name for figures in self._figures() for name in figures})
            return Outcome("FAIL", error=f"the run reports no {self.metric}, only {known}")
        if max(self.seen) < self.epochs:
            return Outcome("FAIL", error=f"no {self.metric} of the last epoch, {self.epochs}")
        value = self.seen[max(self.seen)]
        if not math.isfinite(value):
            return Outcome("FAIL", error=f"{self.metric} is {value} after epoch {max(self.seen)}")
        return Outcome("COMPLETE", value)

    def _figures(self) -> list[dict[str, float]]:
        epochs = read_epochs(self.folder / "model").values()
        return [entry.get(self.split, {}) for entry in epochs]


def what_went_wrong(output: Path, begin: int, code: int) -> str:
    """One line: the error that a run printed, or the signal that ended it."""
    with open(output, "rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    for pattern in (r"error: .+", r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b.*"):
        for line in reversed(lines):
            if re.fullmatch(pattern, line):
                return line.removeprefix("error: ")
    if code < 0:
        more = ", which a machine out of memory sends" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{more}"
    last = next((line for line in reversed(lines) if line), "it said nothing")
    return f"exit code {code}: {last}"
