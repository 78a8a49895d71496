"""A training run from a config: its data, network, trainer, and where it goes on from."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from .batch_size import settle_batch_size
from .build import ignored, loss_of, optimizer_of
from .config.compatibility import check_same_network
from .config.errors import CheckpointError, ConfigError
from .config.schema import Config
from .config.types import shown
from .dataset.build import build_training_loader, build_training_set
from .dataset.classification.build import build_training_images, class_images
from .dataset.classification.images import TrainingImages
from .dataset.loader import TrainingLoader, class_pixels
from .dataset.preparation.check import refuse_bad_data
from .dataset.segmentation import TrainingSet
from .model.build import build_network
from .model.weights import load_weights
from .util.checkpoint import CheckpointFolder, link_or_copy, read_checkpoint
from .util.distributed import process_group
from .util.files import atomic_write
from .util.logger import run_logger
from .util.training.losses import balanced_class_weights
from .util.training.optimizer import choose_precision
from .util.training.parallelize import check_batch_norm, place_network
from .util.training.settings import TrainerSettings
from .util.training.trainer import Trainer
from .validation import validator


def build_trainer(config: Config, device: torch.device) -> Trainer:
    """Everything a run needs, resumed where its folder says; same on every process."""
    train = config.TRAIN
    folder = Path(train.save_path)
    log = start_log(config, folder)
    dtype = choose_precision(train.precision, device, key="TRAIN.precision")
    seed = train.manual_seed or 0
    torch.manual_seed(seed)
    segmenter = build_network(config)
    training_set = training_data(config)
    checkpoints = CheckpointFolder(folder, keep=train.keep_last)
    resumed = find_resume(config, checkpoints, log)
    config = settle_batch_size(
        config,
        segmenter,
        images=len(training_set),
        device=device,
        dtype=dtype,
        resumed=resumed[1] if resumed else None,
        log=log,
    )
    if process_group.is_main():
        save_effective(config, folder / "config.yaml")
    loader = build_training_loader(
        config,
        training_set,
        rank=process_group.rank(),
        world_size=process_group.world_size(),
    )
    loader.pin_memory = device.type == "cuda"
    check_batch_norm(config, segmenter)
    if resumed is None:
        initialise_weights(config, segmenter, log)
    else:
        origin, content = resumed
        restore_weights(config, segmenter, content, origin=str(origin))
    network = place_network(config, segmenter, device, dtype=dtype)
    trainer = Trainer(
        network=network,
        segmenter=segmenter,
        optimizer=optimizer_of(config, segmenter),
        loss=loss_of(config, weights_of_classes(config, training_set, log)),
        loader=loader,
        settings=trainer_settings(config, device, dtype),
        checkpoints=checkpoints,
        log=log,
        config=config.model_dump(mode="json"),
    )
    if resumed is not None:
        trainer.resume(content, origin=str(origin))
        log.info(f"resuming from {origin} at step {trainer.step} of {trainer.total_steps}")
    trainer.board = open_board(config, folder, trainer.step)
    if train.evaluate:
        trainer.validate = validator(config, segmenter, device, dtype, trainer)
    describe_run(config, segmenter, loader, device, dtype, log)
    return trainer


def training_data(config: Config) -> TrainingSet | TrainingImages:
    """What `DATA` and `TRAIN` describe; some of it is read, to find bad data before a run starts.

    Raises:
        DataError: it is not there or cannot be used.
    """
    if config.classifies:
        return build_training_images(config)
    training_set = build_training_set(config)
    refuse_bad_data(training_set, command=f"python tool/check.py --config {config.source}")
    return training_set


def start_log(config: Config, folder: Path) -> logging.Logger:
    """The run's logger, with a log file in its folder."""
    log = run_logger(folder / f"train-{time.strftime('%Y%m%d_%H%M%S')}.log")
    for notice in config.notices:
        log.info(f"note: {notice}")
    return log


def describe_run(
    config: Config,
    segmenter: nn.Module,
    loader: TrainingLoader,
    device: torch.device,
    dtype: torch.dtype,
    log: logging.Logger,
) -> None:
    train = config.TRAIN
    millions = sum(p.numel() for p in segmenter.parameters()) / 1e6
    log.info(
        f"{train.arch} on {train.backbone}, {millions:.2f}M parameters, {config.DATA.classes} "
        f"classes; {len(loader.dataset)} images, {loader.steps_per_epoch} steps an epoch of batch "
        f"{train.batch_size}, {train.epochs} epochs; {process_group.world_size()} process(es) on "
        f"{device.type}, {str(dtype).removeprefix('torch.')}"
    )


def find_resume(
    config: Config, checkpoints: CheckpointFolder, log: logging.Logger
) -> tuple[Path, dict[str, Any]] | None:
    """(path, content) of the checkpoint that `TRAIN.resume` means, or None to start anew."""
    wanted = config.TRAIN.resume
    if wanted == "none":
        return None
    if wanted != "auto":
        return Path(wanted), read_checkpoint(wanted)
    found = checkpoints.newest_good()
    if found is None:
        return None
    path, content, warnings_ = found
    for warning in warnings_:
        log.warning(f"warning: {warning}")
    if warnings_ and process_group.is_main():
        link_or_copy(path, checkpoints.last)  # also where all its epochs are done already
    return path, content


def restore_weights(config: Config, segmenter: nn.Module, content: dict, *, origin: str) -> None:
    """The weights of a checkpoint of this very network.

    Raises:
        CheckpointError: it is one of another network.
    """
    try:
        check_same_network(content, config, origin=origin)
        report = load_weights(segmenter, content, origin=origin, exact=True)
    except CheckpointError as error:
        anew = "; to train anew: --fresh, or another TRAIN.save_path"
        raise CheckpointError(f"{error}{anew}") from error
    if report.new or report.unused:
        raise CheckpointError(
            f"{origin}: was trained with{'out' * bool(report.new)} an auxiliary head; set "
            f"TRAIN.aux_weight {'0' if report.new else 'above 0'} to go on with it"
        )


def initialise_weights(config: Config, segmenter: nn.Module, log: logging.Logger) -> None:
    """Load `TRAIN.pretrained` and `TRAIN.weight`, in this order, or say that there are none."""
    train = config.TRAIN
    loaded = False
    for key in ("pretrained", "weight"):
        path = getattr(train, key)
        if path is None:
            continue
        if not Path(path).expanduser().is_file():
            if not train.pretrained_optional:
                raise CheckpointError(
                    f"TRAIN.{key}: {path} does not exist; put the weights there, or set "
                    "TRAIN.pretrained_optional true to train from scratch"
                )
            log.info(f"TRAIN.{key}: {path} is not there (TRAIN.pretrained_optional allows that)")
            continue
        report = load_weights(segmenter, read_checkpoint(path), origin=str(path), exact=False)
        log.info(f"TRAIN.{key}: {path}: {report}")
        loaded = True
    if not loaded:
        log.info("no pretrained weights: training from scratch")


def weights_of_classes(
    config: Config, dataset: TrainingSet | TrainingImages, log: logging.Logger
) -> Tensor | None:
    train = config.TRAIN
    if train.class_weights == "none":
        return None
    if train.class_weights != "auto":
        return torch.tensor(train.class_weights)
    weights = balanced_class_weights(class_counts(dataset, train.workers))
    log.info("class weights from the data: " + " ".join(f"{w:.3f}" for w in weights.tolist()))
    return weights


def class_counts(dataset: TrainingSet | TrainingImages, workers: int) -> Tensor:
    """(K,) pixels, or images, of each class."""
    if isinstance(dataset, TrainingImages):
        return class_images(dataset.images)
    workers = process_group.share_of_workers(workers)
    return class_pixels(dataset.pairs, dataset.encoding, workers=workers)


def trainer_settings(config: Config, device: torch.device, dtype: torch.dtype) -> TrainerSettings:
    train = config.TRAIN
    scale = config.Distributed.loss_scale
    return TrainerSettings(
        classes=config.DATA.classes,
        epochs=train.epochs,
        base_rate=train.base_lr,
        schedule=train.schedule,
        power=train.power,
        milestones=tuple(train.milestones),
        rate_decay=train.rate_decay,
        warmup_epochs=train.warmup_epochs,
        classifies=config.classifies,
        mixup=train.mixup,
        cutmix=train.cutmix,
        average_decay=train.average_decay,
        ignore_label=ignored(config),
        seed=train.manual_seed or 0,
        mean=tuple(config.DATA.mean),
        std=tuple(config.DATA.std),
        device=device,
        dtype=dtype,
        channels_last=train.channels_last,
        accumulation_steps=train.accumulation_steps,
        loss_scale=scale if isinstance(scale, float) else None,
        print_every=train.print_freq,
        save_every_epochs=train.save_freq,
        save_every_minutes=train.save_minutes,
        save_every_steps=train.save_steps,
        skipped_in_a_row=train.skipped_steps,
        hung_after_minutes=config.Distributed.timeout_minutes,
        evaluate_every_epochs=train.evaluate_freq,
    )


def open_board(config: Config, folder: Path, step: int):
    """A TensorBoard writer in the run's folder; a resumed run overwrites what came after it."""
    if not (config.TRAIN.tensorboard and process_group.is_main()):
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def save_effective(config: Config, path: str | Path) -> None:
    """Write every option with its value; load_config reads an equal config back."""
    path = Path(path)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    try:
        with atomic_write(path) as file:
            file.write(f"# every option of {shown(config.source)}\n{text}".encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
