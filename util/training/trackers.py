"""Where the curves of a run go besides its folder's records: TensorBoard, Weights & Biases, MLflow.

A tracker gets a thread of its own, so that it cannot slow a run; one that raises or hangs is
switched off with a warning, and the run goes on.
"""

import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...config.errors import ConfigError, first_line
from ...config.schema import Config
from ..files import write_text

PROJECT = "stripseg"  # W&B's project, MLflow's experiment
MOST_WAITING = 1000  # calls that a slow tracker may be behind
PATIENCE = 60.0  # seconds that one call, or the end of a run, may take
MLFLOW_BATCH = 100  # parameters or metrics in a request
ID = "tracker_id"  # file in a run's folder: what W&B and MLflow know it by
TEXT = 500  # characters of an option's value that MLflow and W&B are given
FIGURES_OF_HPARAMS = ("val/mIoU", "val/mAcc", "val/allAcc", "val/top1")
LAST = None  # in a queue: nothing comes after it


class Tracker(Protocol):
    """What records a run's curves and pictures; the calls come one after the other."""

    def start(self, options: Mapping[str, Any]) -> None:
        """Begin, with every option of the run: {"TRAIN.base_lr": 0.01, ...}."""

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Record {"val/mIoU": 0.5, ...} after a step."""

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Record pictures, (H, W, 3) uint8 RGB, by their names."""

    def finish(self) -> None:
        """Write everything and close."""


class Guarded:
    """A tracker on a thread of its own; the first error, or a call that hangs, is its end.

    Args:
        name: for the warning.
        warn: is called once with the reason why the tracker is off.
        patience: seconds that one call, or `finish`, may take.
        clock: seconds.
    """

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        *,
        warn: Callable[[str], None],
        patience: float = PATIENCE,
        most_waiting: int = MOST_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.warn = warn
        self.patience = patience
        self.clock = clock
        self.off = False
        self.tracker = tracker
        self.busy_since: float | None = None
        self.lock = threading.Lock()
        self.calls: queue.Queue = queue.Queue(most_waiting)
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def call(self, method: str, *arguments: Any) -> None:
        """Have a method called, without waiting for it."""
        since = self.busy_since
        if since is not None and self.clock() - since > self.patience:
            self._switch_off(f"has not answered for {self.patience:g} s")
        if self.off:
            return
        try:
            self.calls.put_nowait((method, arguments))
        except queue.Full:
            self._switch_off(f"is {self.calls.maxsize} calls behind")

    def finish(self) -> None:
        """Wait for the calls so far, and close the tracker, within its patience."""
        self.call("finish")
        if self.off:
            return
        try:
            self.calls.put(LAST, timeout=self.patience)
            self.thread.join(self.patience)
        except queue.Full:
            pass
        if self.thread.is_alive():
            self._switch_off(f"could not finish within {self.patience:g} s")

    def _work(self) -> None:
        while not self.off and (entry := self.calls.get()) is not LAST:
            method, arguments = entry
            self.busy_since = self.clock()
            try:
                getattr(self.tracker, method)(*arguments)
            except Exception as error:  # of a service, a network, a disk: whatever they raise
                reason = first_line(error)[:TEXT]
                self._switch_off(f"failed ({type(error).__name__}: {reason})")
            self.busy_since = None

    def _switch_off(self, reason: str) -> None:
        with self.lock:
            first, self.off = not self.off, True
        if first:
            self.warn(f"tracker {self.name} {reason}; it is off from here on, the run continues")


class Trackers:
    """All trackers of a run; none in processes other than the main one."""

    def __init__(self, guarded: Sequence[Guarded] = ()) -> None:
        self.guarded = guarded

    @property
    def active(self) -> bool:
        """Whether anyone would see a picture."""
        return any(not one.off for one in self.guarded)

    def start(self, options: Mapping[str, Any]) -> None:
        self._call("start", dict(options))

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        self._call("scalars", dict(figures), step)

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        self._call("images", dict(pictures), step)

    def _call(self, method: str, *arguments: Any) -> None:
        for one in self.guarded:
            one.call(method, *arguments)

    def finish(self) -> None:
        for one in self.guarded:
            one.finish()


class TensorBoard:
    """Event files in the run's folder; a resumed run overwrites what came after step `step`."""

    def __init__(self, config: Config, folder: Path, step: int | None) -> None:
        self.folder = folder
        self.step = step

    def start(self, options: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        step = self.step
        self.writer = SummaryWriter(
            str(self.folder),
            purge_step=step + 1 if step else None,
            # its files are named by the second, and one of the same name would be overwritten
            filename_suffix=f".{time.time_ns()}",
        )
        # in the run's own file: `add_hparams` would make a second run in a folder below it
        for summary in hparams(plain(options), dict.fromkeys(FIGURES_OF_HPARAMS, 0.0)):
            self.writer.file_writer.add_summary(summary)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def finish(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of https://wandb.ai; WANDB_PROJECT, WANDB_MODE and the other variables count."""

    def __init__(self, config: Config, folder: Path, step: int | None) -> None:
        try:
            import wandb
        except ImportError:
            raise missing("wandb", "wandb") from None
        self.wandb = wandb
        self.name = name_of(config)
        self.folder = folder
        self.id = identity(folder, step)

    def start(self, options: Mapping[str, Any]) -> None:
        environment = self.wandb.Settings()
        self.run = self.wandb.init(
            project=environment.project or PROJECT,
            name=self.name,
            id=self.id,
            resume="allow",
            dir=str(self.folder),
            config=plain(options),
        )

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log(dict(figures), step=step)

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        self.run.log({name: self.wandb.Image(p) for name, p in pictures.items()}, step=step)

    def finish(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says; a resumed one is continued."""

    def __init__(self, config: Config, folder: Path, step: int | None) -> None:
        try:
            import mlflow
        except ImportError:
            raise missing("mlflow", "mlflow") from None
        self.mlflow = mlflow
        self.name = name_of(config)
        self.id = identity(folder, step)

    def start(self, options: Mapping[str, Any]) -> None:
        self.client = self.mlflow.MlflowClient()
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        earlier = self.client.search_runs(
            [experiment], f"tags.stripseg = '{self.id}'", max_results=1
        )
        tags = {"stripseg": self.id}
        run = earlier[0] if earlier else self.client.create_run(experiment, None, tags, self.name)
        self.run_id = run.info.run_id
        if not earlier:  # a parameter that is there already cannot be changed
            parameter = self.mlflow.entities.Param
            given = [parameter(key, str(value)[:TEXT]) for key, value in options.items()]
            for first in range(0, len(given), MLFLOW_BATCH):
                self.client.log_batch(self.run_id, params=given[first : first + MLFLOW_BATCH])

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        metric, now = self.mlflow.entities.Metric, round(1000 * time.time())
        values = [metric(allowed_by_mlflow(k), v, now, step) for k, v in figures.items()]
        for first in range(0, len(values), MLFLOW_BATCH):
            self.client.log_batch(self.run_id, metrics=values[first : first + MLFLOW_BATCH])

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for name, picture in pictures.items():
            file = f"{allowed_by_mlflow(name)}_{step:08d}.png"
            self.client.log_image(self.run_id, picture, file)

    def finish(self) -> None:
        self.client.set_terminated(self.run_id)


KINDS: dict[str, Callable[[Config, Path, int | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def open_trackers(
    config: Config, folder: Path, *, step: int | None, warn: Callable[[str], None]
) -> Trackers:
    """Start the trackers of `TRAIN.trackers`; the main process alone does.

    Args:
        folder: of the run.
        step: that the run resumes from.
        warn: is called once for a tracker that fails.
    Raises:
        ConfigError: the package of one is not installed.
    """
    made = {name: KINDS[name](config, folder, step) for name in wanted(config)}
    trackers = Trackers([Guarded(tracker, name, warn=warn) for name, tracker in made.items()])
    trackers.start(flat_options(config))
    return trackers


def wanted(config: Config) -> list[str]:
    """Names of the trackers of a run, each once; `TRAIN.tensorboard` False leaves that one out."""
    names = dict.fromkeys(config.TRAIN.trackers)
    return [name for name in names if name != "tensorboard" or config.TRAIN.tensorboard]


def flat_options(config: Config) -> dict[str, Any]:
    """{"TRAIN.base_lr": 0.01, ...} of every option."""
    tree = config.model_dump(mode="json")
    sections = {name: part for name, part in tree.items() if isinstance(part, dict)}
    return {f"{name}.{key}": v for name, part in sections.items() for key, v in part.items()}


def plain(options: Mapping[str, Any]) -> dict[str, str | bool | int | float]:
    """Options with values that a table can hold: lists and empty ones as text."""
    return {
        key: value if isinstance(value, bool | int | float) else str(value)[:TEXT]
        for key, value in options.items()
    }


def identity(folder: Path, step: int | None) -> str:
    """What W&B and MLflow know a run by: the same when it resumes, from `step`, else a new one."""
    path = folder / ID
    if step is not None and path.is_file():
        known = path.read_text(encoding="ascii", errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{16}", known):
            return known
    new = secrets.token_hex(8)
    write_text(path, new + "\n")
    return new


def name_of(config: Config) -> str:
    return f"{config.DATA.dataset}/{config.experiment}"


def allowed_by_mlflow(name: str) -> str:
    """A name of MLflow: other characters than letters, digits and `_-. /` become `_`."""
    return re.sub(r"[^\w\-. /]", "_", name)


def missing(name: str, package: str) -> ConfigError:
    return ConfigError(
        f"TRAIN.trackers {name}: the package {package} is not installed: pip install {package}, or "
        f"leave {name} out of TRAIN.trackers"
    )
