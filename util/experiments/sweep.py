"""The trials of a sweep: Optuna decides what to try and what to end, every trial is a training run.

The study is `study.db` (SQLite) in the sweep's folder. A worker locks the folder of its trial, and
the lock is freed when the worker dies. A trial marked RUNNING whose folder is not locked was
interrupted: it is queued again with the same values, and continues from its checkpoint.
"""

import hashlib
import json
import math
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ...config.errors import ConfigError, StripsegError, TrainingError, first_line
from ...config.load import load_config
from ..checkpoint import folder_lock
from ..files import write_text
from ..seeds import derived_seed
from ..signals import STOPPED
from ..training.epoch_log import read_epochs
from .child_process import PATIENCE, follow
from .run_file import own_options
from .sweep_file import Sweep

try:
    import optuna
    from optuna.trial import TrialState
except ImportError:  # read_sweep says so
    optuna = None

DATABASE = "study.db"
LOCK_SECONDS = 120.0  # to wait for another worker that is taking a trial


class TrialOutcome(NamedTuple):
    """How a run ended: COMPLETE, PRUNED, FAIL, or STOPPED when it was asked to."""

    state: str
    value: float | None = None
    error: str = ""


class SweepStudy:
    """The Optuna study of a sweep in its folder; several workers may use it at once.

    Raises:
        ConfigError: the folder has the study of another sweep, or none and `create` is False.
    """

    def __init__(self, sweep: Sweep, folder: Path, *, create: bool = True) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.sweep, self.folder, self.base = sweep, folder, load_config(sweep.config)
        path = folder / DATABASE
        if not create and not path.is_file():
            raise ConfigError(f"{path} does not exist: this sweep has no trials yet")
        with folder_lock(folder, wait=LOCK_SECONDS):
            self.study = optuna.create_study(
                study_name=sweep.name,
                storage=optuna.storages.RDBStorage(
                    f"sqlite:///{path.absolute()}",
                    engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
                ),
                direction=sweep.metric.goal,
                pruner=pruner_of(sweep),
                load_if_exists=True,
            )
            self._check_identity()

    def _check_identity(self) -> None:
        """Compare what may not change while a study continues; the number of trials may."""
        config = json.dumps(self.base.model_dump(mode="json"), sort_keys=True)
        names = {"method", "metric", "seed", "parameters"}
        identity = self.sweep.model_dump(mode="json", include=names)
        identity["config"] = hashlib.sha256(config.encode()).hexdigest()
        known = self.study.user_attrs.get("identity", {})
        changed = [key for key in identity if known.get(key) != identity[key]]
        if not self.study.user_attrs:
            self.study.set_user_attr("identity", identity)
        elif changed:
            raise ConfigError(
                f"{self.folder} has the trials of a sweep with another {', '.join(changed)}, or of "
                "a former version; give the file another name:, or move the folder away"
            )

    def runs(self) -> dict[int, Any]:
        """Return {number in the sweep: optuna.FrozenTrial}, the latest of a continued trial."""
        return {trial.user_attrs["run"]: trial for trial in self.study.get_trials(deepcopy=False)}

    def folder_of(self, run: int) -> Path:
        return self.folder / f"trial_{run:04d}"

    @contextmanager
    def claim(self) -> Iterator[Any]:
        """Hold an optuna.Trial that was left behind or a new one; None if all are taken."""
        with ExitStack() as stack:
            with folder_lock(self.folder, wait=LOCK_SECONDS):
                run = self._enqueue()
                trial = None if run is None else self._ask(run)
                if trial is not None:
                    stack.enter_context(folder_lock(self.folder_of(run)))
            yield trial

    def _enqueue(self) -> int | None:
        """Let the next trial be one that was left behind, or a new one; None if all are taken."""
        runs = self.runs()
        for run, former in runs.items():
            if former.state is TrialState.WAITING:  # its worker was killed right here
                return run
        for run, former in runs.items():
            if former.state is TrialState.RUNNING and not in_use(self.folder_of(run)):
                self.study.enqueue_trial(former.params, user_attrs={"run": run})
                self.study.tell(former.number, state=TrialState.FAIL)
                return run
        run = len(runs)
        if run >= self.sweep.trials:
            return None
        chosen = self.sweep.combination(run) if self.sweep.method == "grid" else {}
        self.study.enqueue_trial(chosen, user_attrs={"run": run})
        return run

    def _ask(self, run: int) -> Any:
        """Take the waiting trial, with a sampler of its own: a resumed sweep repeats no samples."""
        seed = derived_seed(self.sweep.seed, run) % 2**32
        self.study.sampler = (
            optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if self.sweep.method == "bayes"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        return self.study.ask({name: p.space for name, p in self.sweep.varied.items()})

    def write_yaml(
        self, path: Path, options: Mapping[str, Any], *, experiment: str, comment: str = ""
    ) -> None:
        """Write a YAML of the sweep's config with some options."""
        content: dict[str, Any] = {
            "base": os.path.relpath(self.sweep.config.resolve(), path.parent.resolve()),
            "experiment": experiment,
            "DATA": {"dataset": self.base.DATA.dataset},  # which the name of this file does not say
        }
        for option, value in options.items():
            section, _, key = option.partition(".")
            content.setdefault(section, {})[key] = value
        write_text(path, comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def finish(self, trial: Any, outcome: TrialOutcome) -> None:
        """Record how a trial ended."""
        trial.set_user_attr("error", outcome.error)
        self.study.tell(trial, outcome.value, state=TrialState[outcome.state])


def in_use(folder: Path) -> bool:
    """Return whether somebody runs the trial of this folder."""
    try:
        with folder_lock(folder):
            return False
    except TrainingError:
        return True


def pruner_of(sweep: Sweep) -> Any:
    """W&B's hyperband has one bracket, which is Optuna's successive halving."""
    early = sweep.early_terminate
    if early is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=early.min_iter, reduction_factor=early.eta
    )


def run_trial(
    study: SweepStudy,
    trial: Any,
    command: Sequence[str],
    *,
    stopping: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> TrialOutcome:
    """Start a trial's training run, or resume it, and follow it to its end.

    Args:
        command: trains a `--config`; it saves and ends with exit code 75 at SIGTERM.
        stopping: whether this process is asked to end.
        environment: variables that the run has beside those of this process.
    """
    folder, metric = study.folder_of(trial.user_attrs["run"]), study.sweep.metric.name
    path, output = folder / "trial.yaml", folder / "output.txt"
    chosen = ", ".join(f"{name} {value}" for name, value in trial.params.items())
    say(trial, f"{'continues' if path.exists() else 'starts'}: {chosen or 'no choices'}")
    options = study.sweep.options(trial.params) | own_options(folder)
    if environment and "CUDA_VISIBLE_DEVICES" in environment:  # those are this run's
        options["TRAIN.train_gpu"] = None
    study.write_yaml(path, options, experiment=f"{study.sweep.name}_{folder.name}")
    try:
        config = load_config(path)
    except StripsegError as error:  # values that do not go together
        return TrialOutcome("FAIL", error=first_line(error))
    split = "val" if config.TRAIN.evaluate and (metric != "loss" or config.classifies) else "train"
    epochs = config.TRAIN.epochs
    seen: dict[int, float] = {}
    pruned = False

    def should_end() -> bool:
        nonlocal pruned
        for epoch, figures in read_epochs(folder / "model").items():
            value = figures.get(split, {}).get(metric)
            if epoch not in seen and value is not None and not pruned:
                seen[epoch] = value
                say(trial, f"epoch {epoch} {metric} {value:.4f}")
                trial.report(value, epoch)
                pruned = epoch < epochs and trial.should_prune()
        return pruned or stopping()

    with folder_lock(folder / "model", wait=PATIENCE):
        pass  # the run of a worker that was killed may still be saving
    begin = output.stat().st_size if output.exists() else 0
    command = [*command, "--config", str(path)]
    code = follow(command, output, end=should_end, environment=environment)
    should_end()
    if pruned:
        return TrialOutcome("PRUNED")
    if code == STOPPED or (code and stopping()):
        return TrialOutcome("STOPPED")
    if code:
        text = output.read_bytes()[begin:].decode(errors="replace")
        return TrialOutcome("FAIL", error=what_went_wrong(text, code))
    value = seen.get(epochs)
    if value is None or not math.isfinite(value):
        return TrialOutcome("FAIL", error=f"{metric} of {split} is {value} after epoch {epochs}")
    return TrialOutcome("COMPLETE", value)


def say(trial: Any, text: str) -> None:
    print(f"trial {trial.user_attrs['run']}: {text}", flush=True)


def what_went_wrong(output: str, code: int) -> str:
    """Return one line: the error that a run printed, or the signal that ended it."""
    if code < 0:
        more = ", which a machine out of memory sends" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{more}"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    for pattern in (r"error: .+", r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Interrupt)\b.*"):
        if found := list(filter(re.compile(pattern).fullmatch, lines)):
            return found[-1].removeprefix("error: ")
    return f"exit code {code}: {lines[-1]}"
