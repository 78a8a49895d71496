"""Training from Python: `stripseg.train` builds the same config as a YAML file and runs it here."""

import logging
import os
from collections.abc import Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config.errors import ConfigError
from .config.load import (
    OWN_DATA,
    config_from,
    find_config,
    load_config,
    option_meant,
    options_ever_named,
    suggestion,
)
from .config.schema import Config
from .config.validate import check_files
from .dataset.build import official_splits
from .model.build import check_arch
from .training_run import OnEpoch, build_trainer, refuse_other_options
from .util.checkpoint import folder_lock, move_aside
from .util.distributed import process_group
from .util.precision import restored_numerics
from .util.training.epoch_log import read_epochs


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """Results of a run.

    Args:
        figures: of the last epoch, {"train": {"loss": ...}, "val": {"mIoU": ...}}.
        epochs: {epoch: figures} of all of them.
        folder: of the checkpoints and the log.
        best, last: checkpoints; `best` is None without a validation.
        config: of the run, every option filled in; `config.yaml` in the folder repeats it.
    """

    figures: dict[str, dict[str, float]]
    epochs: dict[int, dict[str, dict[str, float]]]
    folder: Path
    best: Path | None
    last: Path
    config: Config

    def __repr__(self) -> str:
        mean_iou = self.figures.get("val", {}).get("mIoU")
        reached = "" if mean_iou is None else f", val mIoU {mean_iou:.4f}"
        return f"TrainingResult({self.folder}: {len(self.epochs)} epochs{reached})"


def train(
    dataset: str | os.PathLike | Mapping[str, Any],
    experiment: str | None = None,
    *,
    device: str | torch.device | None = None,
    fresh: bool = False,
    on_epoch: OnEpoch | None = None,
    **options: Any,
) -> TrainingResult:
    """Train in this process, from where the run's folder says to the end, like `stripseg train`.

    The caller's random state, signal handlers, log handlers and numeric settings are as before
    afterwards.

    Args:
        dataset: with `experiment` the words of the command, such as "camvid", "spnet18"; alone the
            path of a YAML file, or a mapping {"DATA": {...}, "TRAIN": {...}, "TEST": {...}}.
        device: such as "cpu" or "cuda:1"; if None the one that TRAIN.train_gpu names, or the first
            GPU where there is one.
        fresh: from scratch; an earlier run's folder is moved aside, as by `--fresh`.
        on_epoch: called after each epoch with its number and figures.
        options: further options by their names, such as `epochs=50`, `data_root="data/camvid"`;
            `test__batch_size=4` for one of another section.
    Raises:
        ConfigError: a mistake in the options, in the words of the command, or `experiment` with a
            YAML file or mapping.
        TrainingError: the folder has a finished run of other options: `fresh`, or another
            `save_path`.
        StripsegError: whatever else ends the command with a message.
    """
    config = config_of(dataset, experiment, options)
    check_arch(config)
    check_files(config, "train", official_splits=official_splits(config))
    place = device_of(config) if device is None else process_group.named_device(device)
    folder = Path(config.TRAIN.save_path)
    with restored_settings(), folder_lock(folder):
        if fresh:
            move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(config, place, on_epoch=on_epoch)
        with closing(trainer.run_log):
            if trainer.step < trainer.total_steps:
                trainer.fit()
            else:
                refuse_other_options(trainer, again="train with fresh=True")
    epochs = read_epochs(folder)
    best = trainer.checkpoints.best if trainer.best_score >= 0 else folder / "none"
    return TrainingResult(
        figures=epochs[max(epochs)] if epochs else {},
        epochs=epochs,
        folder=folder,
        best=best if best.is_file() else None,
        last=trainer.checkpoints.last,
        config=trainer.config,
    )


def device_of(config: Config) -> torch.device:
    """The device that TRAIN.train_gpu names.

    Raises:
        ConfigError: it names several.
    """
    devices = process_group.choose_devices(config.TRAIN.train_gpu, key="TRAIN.train_gpu")
    if config.TRAIN.train_gpu is not None and len(devices) > 1:
        raise ConfigError(
            f"TRAIN.train_gpu {config.TRAIN.train_gpu}: stripseg.train runs on one device; name "
            "one, or use the command: stripseg train"
        )
    return devices[0]


def config_of(
    dataset: str | os.PathLike | Mapping[str, Any],
    experiment: str | None,
    options: Mapping[str, Any],
) -> Config:
    """The config that the arguments of `train` mean.

    Raises:
        ConfigError: a mistake in it.
    """
    words = [word for key, value in options.items() for word in (option_named(key), value)]
    is_file = not isinstance(dataset, Mapping) and Path(dataset).suffix in (".yaml", ".yml")
    if experiment is not None and (is_file or isinstance(dataset, Mapping)):
        given = str(dataset) if is_file else "the mapping"
        raise ConfigError(
            f"experiment {experiment!r}: {given} is a whole config already, and `experiment` goes "
            "with the name of a dataset. Leave it out; a name for the run is written into the "
            f"config, as `experiment: {experiment}` beside its sections"
        )
    if isinstance(dataset, Mapping):
        return config_from(dataset, words, source="the mapping given")
    if experiment is not None:
        return load_config(find_config(str(dataset), experiment), words)
    if not is_file:
        own = f". {OWN_DATA}, and then train('NAME', 'spnet18')" if os.path.isdir(dataset) else ""
        raise ConfigError(
            f"{dataset}: name an experiment, too, such as train('ade20k', 'spnet50'), or give the "
            f"path of a YAML file{own}"
        )
    return load_config(Path(dataset), words)


def option_named(key: str) -> str:
    """`TEST.batch_size` for the keyword `test__batch_size`, `TRAIN.epochs` for `epochs`.

    Raises:
        ConfigError: there is none of that name.
    """
    section, separator, name = key.partition("__")
    if not separator:
        if not options_ever_named(key):
            raise ConfigError(f"train: {key} is not an option{suggestion(key)}")
        return option_meant(key)
    return f"{section if section.lower() == 'distributed' else section.upper()}.{name}".replace(
        "distributed.", "Distributed."
    )


@contextmanager
def restored_settings():
    """Put back, at the end, what a run sets for its process."""
    logger = logging.getLogger("stripseg")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    logger.handlers = []  # the caller's stay open
    try:
        with restored_numerics(), torch.random.fork_rng():
            yield
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate
