"""A sweep's trials in an Optuna study: who may run which next, what came of each.

The study is a file `study.db` (SQLite) in the sweep's folder. Who runs a trial holds the lock of
the trial's folder, which ends with its process: a trial that is running in the study and not
locked was left behind, and the next worker goes on with it.
"""

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.errors import ConfigError, StripsegError, TrainingError
from ..checkpoint import folder_lock
from ..seeds import derived_seed
from .sweep_file import Sweep
from .sweep_parameters import Parameter

try:
    import optuna
    from optuna.trial import TrialState
except ImportError:
    optuna = None

DATABASE = "study.db"
PATIENCE = 120.0  # seconds to wait for another worker that is taking a trial


@dataclass
class Claim:
    """A trial that this process runs; `release` gives its lock back."""

    trial: Any  # optuna.Trial
    values: dict[str, Any]  # {parameter: value}
    folder: Path
    continued: bool
    release: ExitStack

    @property
    def number(self) -> int:
        return self.trial.number


@contextmanager
def patient_lock(folder: Path, *, seconds: float) -> Iterator[None]:
    """The lock of a folder, waited for.

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


class SweepStudy:
    """The study of a sweep in its folder; several processes may have it open at once.

    Raises:
        StripsegError: Optuna is not installed.
        ConfigError: the folder has a study of other parameters, or none and `create` is False.
    """

    def __init__(self, sweep: Sweep, folder: Path, *, create: bool = True) -> None:
        if optuna is None:
            raise StripsegError("a sweep needs Optuna, which is not installed: pip install optuna")
        self.sweep = sweep
        self.folder = folder
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        if not create and not (folder / DATABASE).is_file():
            raise ConfigError(f"{folder / DATABASE} does not exist: this sweep has no trials yet")
        with patient_lock(folder, seconds=PATIENCE):
            self.study = self._open()

    def _open(self) -> Any:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{(self.folder / DATABASE).absolute()}",
            engine_kwargs={"connect_args": {"timeout": PATIENCE}},
        )
        study = optuna.create_study(
            study_name=self.sweep.name,
            storage=storage,
            direction="maximize" if self.sweep.maximize else "minimize",
            pruner=self._pruner(),
            load_if_exists=True,
        )
        identity = self.sweep.identity()
        known = study.user_attrs.get("sweep")
        if known is None:
            study.set_user_attr("sweep", identity)
        elif known != identity:
            changed = ", ".join(key for key in identity if known.get(key) != identity[key])
            raise ConfigError(
                f"{self.folder} has the trials of a sweep with another {changed}; give the file "
                "another name: or move the folder away"
            )
        return study

    def _pruner(self) -> Any:
        stopping = self.sweep.stopping
        if stopping is None:
            return optuna.pruners.NopPruner()
        if stopping.type == "median":
            return optuna.pruners.MedianPruner(n_warmup_steps=stopping.min_iter)
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=stopping.min_iter, reduction_factor=stopping.eta
        )

    def _sampler(self, number: int) -> Any:
        """Of one trial only, so that a sweep that was stopped does not draw its numbers again."""
        seed = derived_seed(self.sweep.seed, number) % 2**32
        if self.sweep.method == "bayes":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    def trials(self, *states: str) -> list[Any]:
        """The trials as they stand (optuna.FrozenTrial), in their order; of some states only."""
        wanted = tuple(TrialState[state] for state in states) if states else None
        return self.study.get_trials(states=wanted)

    def trial_folder(self, number: int) -> Path:
        return self.folder / f"trial_{number:04d}"

    def claim(self) -> Claim | None:
        """A trial to run: one that was left behind, else a new one; None where all are taken."""
        with patient_lock(self.folder, seconds=PATIENCE):
            for frozen in self.trials("RUNNING"):
                with ExitStack() as stack:
                    try:
                        stack.enter_context(folder_lock(self.trial_folder(frozen.number)))
                    except TrainingError:  # its worker is alive
                        continue
                    self.study.sampler = self._sampler(frozen.number)
                    trial = optuna.trial.Trial(self.study, frozen._trial_id)
                    return self._claimed(trial, stack.pop_all(), continued=True)
            begun = [t for t in self.trials() if t.state is not TrialState.WAITING]
            if len(begun) >= self.sweep.trials:
                return None
            self.study.sampler = self._sampler(len(begun))
            if self.sweep.method == "grid" and not self.trials("WAITING"):
                values = self.sweep.combination(len(begun))
                self.study.enqueue_trial({name: choice(value) for name, value in values.items()})
            trial = self.study.ask()
            with ExitStack() as stack:
                stack.enter_context(folder_lock(self.trial_folder(trial.number)))
                return self._claimed(trial, stack.pop_all(), continued=False)

    def _claimed(self, trial: Any, stack: ExitStack, *, continued: bool) -> Claim:
        with stack:
            values = {p.name: self._suggest(trial, p) for p in self.sweep.varied}
            trial.set_user_attr("values", values)
            folder = self.trial_folder(trial.number)
            return Claim(trial, values, folder, continued, stack.pop_all())

    def _suggest(self, trial: Any, parameter: Parameter) -> Any:
        """The trial's value of a parameter; the one it has already where it has one."""
        name = parameter.name
        if parameter.is_range and self.sweep.method != "grid":
            low, high, log = parameter.low, parameter.high, parameter.kind.log
            if parameter.kind.whole:
                return trial.suggest_int(name, int(low), int(high), log=log)
            return parameter.rounded(trial.suggest_float(name, low, high, log=log))
        values = parameter.grid() if self.sweep.method == "grid" else parameter.values
        by_choice = {repr(choice(value)): value for value in values}
        return by_choice[repr(trial.suggest_categorical(name, [choice(v) for v in values]))]

    def report(self, claim: Claim, epoch: int, value: float) -> None:
        """Tell the metric after an epoch, once."""
        if epoch not in self.study.trials[claim.number].intermediate_values:
            claim.trial.report(value, epoch)

    def finish(self, claim: Claim, state: str, *, value: float | None, error: str = "") -> None:
        """What came of a trial: COMPLETE with a value, PRUNED, or FAIL with an error."""
        if error:
            claim.trial.set_user_attr("error", error)
        self.study.tell(claim.trial, value, state=TrialState[state])


def choice(value: Any) -> Any:
    """A value as Optuna stores a category: as it is, or lists and mappings as text."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value)
