"""The trials of a sweep: Optuna decides what to try and what to end, every trial is a training run.

The study is `study.db` (SQLite) in the sweep's folder. The process that runs a trial holds the lock
of the trial's folder, which ends with the process: a trial that is running in the study and not
locked was left behind, and the next worker continues it from its checkpoint.
"""

import hashlib
import json
import math
import os
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from ...config.errors import ConfigError, StripsegError, TrainingError
from ...config.load import load_config
from ...config.schema import Config
from ..checkpoint import folder_lock
from ..files import write_text
from ..seeds import derived_seed
from ..signals import STOPPED
from ..training.epoch_log import read_epochs
from .child_process import POLL, follow
from .sweep_file import Sweep

try:
    import optuna
    from optuna.trial import TrialState
except ImportError:
    optuna = None

DATABASE = "study.db"
LOCK_SECONDS = 120.0  # to wait for another worker that is taking a trial


@contextmanager
def waiting_lock(folder: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a folder, waiting for it if necessary.

    Raises:
        TrainingError: another process held it all the time.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder_lock(folder))
                break
            except TrainingError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


@dataclass
class Claim:
    """A trial that this process runs, until `lock` is closed."""

    trial: Any  # optuna.Trial
    values: dict[str, Any]  # {parameter: value}
    folder: Path
    continued: bool
    lock: ExitStack

    @property
    def number(self) -> int:
        return self.trial.number


class SweepStudy:
    """The Optuna study of a sweep in its folder; several processes may have it open at once.

    Raises:
        StripsegError: Optuna is not installed.
        ConfigError: the folder has the study of another sweep, or none and `create` is False.
    """

    def __init__(self, sweep: Sweep, folder: Path, *, create: bool = True) -> None:
        if optuna is None:
            raise StripsegError(
                "a sweep needs Optuna, which is not installed: pip install optuna matplotlib"
            )
        self.sweep = sweep
        self.folder = folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if not create and not (folder / DATABASE).is_file():
            raise ConfigError(f"{folder / DATABASE} does not exist: this sweep has no trials yet")
        with waiting_lock(folder):
            self.study = optuna.create_study(
                study_name=sweep.name,
                storage=optuna.storages.RDBStorage(
                    f"sqlite:///{(folder / DATABASE).absolute()}",
                    engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
                ),
                direction=sweep.metric.goal,
                pruner=pruner_of(sweep),
                load_if_exists=True,
            )
            self._check_identity()

    def _check_identity(self) -> None:
        """Compare what may not change while a study continues; the number of trials may."""
        config = load_config(self.sweep.config_path).model_dump(mode="json")
        identity = {
            "config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            "method": self.sweep.method,
            "metric": self.sweep.metric.model_dump(),
            "seed": self.sweep.seed,
            "parameters": {
                self.sweep.option_of(name): parameter.model_dump(exclude_unset=True)
                for name, parameter in self.sweep.parameters.items()
            },
        }
        known = self.study.user_attrs.get("sweep")
        if known is None:
            self.study.set_user_attr("sweep", identity)
        elif known != identity:
            changed = ", ".join(key for key in identity if known.get(key) != identity[key])
            other = f"a sweep with another {changed}"
            if known.keys() != identity.keys():
                other = "a former version of this program, which cannot be resumed"
            raise ConfigError(
                f"{self.folder} has the trials of {other}; give the file another name:, or move "
                "the folder away"
            )

    def trials(self, *states: str) -> list[Any]:
        """Return the trials (optuna.FrozenTrial) in their order, of all or of some states."""
        return self.study.get_trials(states=tuple(TrialState[s] for s in states) or None)

    def claim(self) -> Claim | None:
        """Return a trial to run, one that was left behind or a new one; None if all are taken."""
        with waiting_lock(self.folder):
            for frozen in self.trials("RUNNING"):
                try:
                    return self._claim(frozen.number, optuna.Trial, frozen._trial_id)
                except TrainingError:  # its worker is alive
                    continue
            begun = len(self.trials()) - len(self.trials("WAITING"))
            if begun >= self.sweep.trials:
                return None
            if self.sweep.method == "grid" and not self.trials("WAITING"):
                values = next(islice(self.sweep.combinations(), begun, None))
                self.study.enqueue_trial({name: choice(value) for name, value in values.items()})
            return self._claim(begun)

    def _claim(self, number: int, make: Any = None, trial_id: int | None = None) -> Claim:
        folder = self.folder / f"trial_{number:04d}"
        with ExitStack() as stack:
            stack.enter_context(folder_lock(folder))
            # a sampler per trial, so that a sweep that was stopped does not draw its numbers again
            seed = derived_seed(self.sweep.seed, number) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                bayes = self.sweep.method == "bayes"
                self.study.sampler = (
                    optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                    if bayes
                    else optuna.samplers.RandomSampler(seed=seed)
                )
            trial = self.study.ask() if make is None else make(self.study, trial_id)
            values = {name: self._suggest(trial, name) for name in self.sweep.varied}
            trial.set_user_attr("values", values)
            return Claim(trial, values, folder, make is not None, stack.pop_all())

    def _suggest(self, trial: Any, name: str) -> Any:
        """Draw the trial's value of a parameter, or return the one that it has already."""
        parameter = self.sweep.parameters[name]
        if parameter.is_range and self.sweep.method != "grid":
            low, high, log = parameter.low, parameter.high, parameter.is_log
            if parameter.kind == "int_uniform":
                return trial.suggest_int(name, int(low), int(high))
            return parameter.rounded(trial.suggest_float(name, low, high, log=log))
        values = parameter.grid() if self.sweep.method == "grid" else parameter.choices
        by_choice = {repr(choice(value)): value for value in values}
        return by_choice[repr(trial.suggest_categorical(name, [choice(v) for v in values]))]

    def report(self, claim: Claim, epoch: int, value: float) -> None:
        """Record the metric after an epoch, once."""
        if epoch not in self.study.trials[claim.number].intermediate_values:
            claim.trial.report(value, epoch)

    def finish(self, claim: Claim, state: str, *, value: float | None, error: str = "") -> None:
        """Record the outcome of a trial: COMPLETE with a value, PRUNED, or FAIL with an error."""
        if error:
            claim.trial.set_user_attr("error", error)
        self.study.tell(claim.trial, value, state=TrialState[state])


def pruner_of(sweep: Sweep) -> Any:
    early = sweep.early_terminate
    if early is None:
        return optuna.pruners.NopPruner()
    if early.type == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=early.first_epoch)
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=early.first_epoch, reduction_factor=early.eta
    )


def choice(value: Any) -> Any:
    """Return a value as Optuna stores a category: as it is, or lists and mappings as text."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value)


def write_yaml(
    path: Path, base: Config, options: Mapping[str, Any], *, experiment: str, comment: str = ""
) -> None:
    """Write a YAML of the base config with some options."""
    content: dict[str, Any] = {
        "base": os.path.relpath(Path(base.source).resolve(), path.parent.resolve()),
        "experiment": experiment,
        "DATA": {"dataset": base.dataset},  # the name of this file does not tell
    }
    for option, value in options.items():
        section, _, key = option.partition(".")
        content.setdefault(section, {})[key] = value
    write_text(path, comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@dataclass
class Outcome:
    """How a run ended: COMPLETE, PRUNED, FAIL, or STOPPED when it was asked to."""

    state: str
    value: float | None = None
    error: str = ""


def run_trial(
    command: Sequence[str],
    folder: Path,
    *,
    split: str,
    metric: str,
    epochs: int,
    on_epoch: Callable[[int, float], bool],
    stopping: Callable[[], bool],
) -> Outcome:
    """Start a trial's training run, or resume it, and follow it to its end.

    Args:
        command: starts it; it saves and ends with exit code 75 at SIGTERM.
        folder: the trial's; the run's own is `model` in it.
        split, metric: which figure of an epoch counts, such as ("val", "mIoU").
        epochs: that the run has.
        on_epoch: (epoch, value) -> whether the trial is to be pruned.
        stopping: whether this process is asked to end.
    """
    seen: dict[int, float] = {}
    pruned = False

    def should_end() -> bool:
        nonlocal pruned
        for epoch, figures in read_epochs(folder / "model").items():
            value = figures.get(split, {}).get(metric)
            if epoch not in seen and value is not None and not pruned:
                seen[epoch] = value
                pruned = on_epoch(epoch, value) and epoch < epochs
        return pruned or stopping()

    while True:  # the run of a worker that was killed may still be saving
        if stopping():
            return Outcome("STOPPED")
        try:
            with folder_lock(folder / "model"):
                break
        except TrainingError:
            time.sleep(POLL)
    output = folder / "output.txt"
    begin = output.stat().st_size if output.exists() else 0
    code = follow(command, output, end=should_end)
    should_end()
    if pruned:
        return Outcome("PRUNED")
    if code == STOPPED or (code and stopping()):
        return Outcome("STOPPED")
    if code:
        return Outcome("FAIL", error=what_went_wrong(output, begin, code))
    if not seen:
        return Outcome("FAIL", error=f"the run reports no {metric} of {split}")
    if max(seen) < epochs:
        return Outcome("FAIL", error=f"no {metric} of the last epoch, {epochs}")
    if not math.isfinite(seen[epochs]):
        return Outcome("FAIL", error=f"{metric} is {seen[epochs]} after epoch {epochs}")
    return Outcome("COMPLETE", seen[epochs])


def what_went_wrong(output: Path, begin: int, code: int) -> str:
    """Return one line: the error that a run printed, or the signal that ended it."""
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
    last = next((line for line in reversed(lines) if line), "no output")
    return f"exit code {code}: {last}"
