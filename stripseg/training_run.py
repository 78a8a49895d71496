"""Build a training run from a config: plan it, build its parts, restore its trainer."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .batch_size import settle_batch_size
from .config.compatibility import check_same_network
from .config.errors import CheckpointError, TrainingError
from .config.schema import AUTO, TIMM, Config
from .dataset.build import build_training_set
from .dataset.classification.build import build_training_images, class_images
from .dataset.classification.images import EvaluationImages, TrainingImages
from .dataset.loader import TrainingLoader, build_training_loader, class_pixels
from .dataset.preparation.check import refuse_bad_data
from .dataset.segmentation import EvaluationSet, TrainingSet
from .engine import check_same_classes, names_in
from .model.build import build_network
from .model.pretrained import load_named_weights
from .model.weights import load_weights
from .model_card import card_of_run
from .util.checkpoint import CheckpointFolder, read_checkpoint
from .util.distributed import process_group
from .util.files import link_or_copy
from .util.logger import counted, run_logger
from .util.memory import explained_out_of_memory, training_remedies
from .util.precision import choose_precision, set_numerics
from .util.training.losses import SegmentationLoss, balanced_class_weights, loss_of
from .util.training.optimizer import optimizer_of
from .util.training.parallelize import check_batch_norm, place_network
from .util.training.run_log import RunLog
from .util.training.trainer import Trainer
from .validation import validation_data, validation_protocol, validator

# options of TRAIN that change nothing about what is learnt
WITHOUT_EFFECT = (
    "train_gpu",
    "workers",
    "resume",
    "save_path",
    "print_freq",
    "keep_last",
    "save_freq",
    "save_steps",
    "save_minutes",
    "compile",
    "channels_last",
    "activation_checkpointing",
    "trackers",
    "tensorboard",
    "sample_predictions",
)

OnEpoch = Callable[[int, dict[str, dict[str, float]]], None]


@dataclass(frozen=True)
class Plan:
    """What is settled before anything is built.

    Args:
        config: with a number for `TRAIN.batch_size`.
        dtype: of the network's arithmetic.
        images: of the training list; a few have been checked.
        validation: images to validate on, or None.
        checkpoints: the run's folder.
        checkpoint: content of the one to resume from, or None.
        origin: its path.
        card: the model card, as plain values.
    """

    config: Config
    device: torch.device
    dtype: torch.dtype
    images: TrainingSet | TrainingImages
    validation: EvaluationSet | EvaluationImages | None
    checkpoints: CheckpointFolder
    checkpoint: dict[str, Any] | None
    origin: str
    card: dict[str, Any]
    log: logging.Logger


@dataclass(frozen=True)
class Parts:
    """Network, optimizer, loss and batches of a run."""

    segmenter: nn.Module
    network: nn.Module  # the same, compiled and one of several processes where these are wanted
    optimizer: torch.optim.Optimizer
    loss: SegmentationLoss
    loader: TrainingLoader


def build_trainer(
    config: Config, device: torch.device, *, on_epoch: OnEpoch | None = None
) -> Trainer:
    """Return the trainer of a run, restored from the checkpoint in its folder if there is one."""
    return build_planned(plan_run(config, device), on_epoch=on_epoch)


def plan_run(config: Config, device: torch.device) -> Plan:
    """Try out the data, find the checkpoint to resume from, and settle the batch size."""
    folder = Path(config.TRAIN.save_path)
    log = start_log(config, folder)
    set_numerics(deterministic=config.TRAIN.deterministic)
    dtype = choose_precision(config.TRAIN.precision, device, key="TRAIN.precision")
    checkpoints = CheckpointFolder(folder, keep=config.TRAIN.keep_last, warn=log.error)
    images, validation = training_data(config), validation_data(config)
    origin, checkpoint = find_resume(config, checkpoints, log)
    if config.TRAIN.batch_size == "auto":
        with torch.random.fork_rng(devices=[]):
            trial = build_network(config)
        config = settle_batch_size(
            config,
            trial,
            images=len(images),
            device=device,
            dtype=dtype,
            resumed=checkpoint,
            log=log,
        )
    return Plan(
        config=config,
        device=device,
        dtype=dtype,
        images=images,
        validation=validation,
        checkpoints=checkpoints,
        checkpoint=checkpoint,
        origin=str(origin),
        card=card_of_run(config, images).as_dict(),
        log=log,
    )


def build_planned(plan: Plan, *, on_epoch: OnEpoch | None = None) -> Trainer:
    """Build the parts and the trainer; restore it from the plan's checkpoint.

    Args:
        on_epoch: called after each epoch with its number and {"train": {...}, "val": {...}}.
    Raises:
        OutOfMemoryError: the network and what training adds to it do not fit the device.
    """
    config, log = plan.config, plan.log
    with explained_out_of_memory(
        training_remedies(config.TRAIN),
        phase="building the network",
        last=plan.checkpoints.last,
    ):
        parts = build_parts(plan)
        run_log = RunLog(
            config,
            plan.device,
            log=log,
            folder=plan.checkpoints.folder,
            steps_per_epoch=parts.loader.steps_per_epoch,
            ignore_label=parts.loss.ignore_label,
        )
        trainer = Trainer(
            config,
            device=plan.device,
            dtype=plan.dtype,
            network=parts.network,
            segmenter=parts.segmenter,
            optimizer=parts.optimizer,
            loss=parts.loss,
            loader=parts.loader,
            checkpoints=plan.checkpoints,
            run_log=run_log,
            validate=validator(
                config, plan.validation, parts.segmenter, plan.device, plan.dtype, run_log=run_log
            ),
            card=plan.card,
            protocol=validation_protocol(config),
            on_epoch=on_epoch,
        )
        if plan.checkpoint is not None:
            trainer.load_state_dict(plan.checkpoint, origin=plan.origin)
    if plan.checkpoint is not None:
        log.info(f"resuming from {plan.origin} at step {trainer.step} of {trainer.total_steps}")
        if trainer.step < trainer.total_steps:
            for key, before, now in changed_options(plan.checkpoint, config):
                log.warning(f"warning: TRAIN.{key} is {now} from here on; it was {before}")
    describe_run(plan, parts)
    return trainer


def changed_options(content: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
    """[(key of TRAIN, value in the checkpoint, value now)] of options that training depends on."""
    stored = (content.get("config") or {}).get("TRAIN") or {}
    given = config.model_dump(mode="json")["TRAIN"]
    return [
        (key, stored[key], value)
        for key, value in given.items()
        if key in stored and key not in WITHOUT_EFFECT and stored[key] != value
    ]


def refuse_other_options(trainer: Trainer, *, again: str) -> None:
    """Check that a run that is finished already was trained with these options.

    Args:
        again: how to train from scratch, for the message.
    Raises:
        TrainingError: it was not, so that its figures are not theirs.
    """
    last = trainer.checkpoints.last
    changed = changed_options(read_checkpoint(last), trainer.config) if last.is_file() else []
    if changed:
        key, before, now = changed[0]
        raise TrainingError(
            f"{last}: this run is finished, with another TRAIN.{key} ({before}, now {now}); "
            f"{again}, or give another save_path"
        )


def build_parts(plan: Plan) -> Parts:
    """Build the network, with initial weights or the checkpoint's, optimizer, loss and loader."""
    config = plan.config
    loader = build_training_loader(
        config,
        plan.images,
        pin_memory=plan.device.type == "cuda",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.TRAIN.manual_seed or 0)
        segmenter = build_network(config)
    check_batch_norm(config, segmenter)
    if plan.checkpoint is None:
        initialise_weights(config, segmenter, plan.log)
    else:
        restore_weights(config, segmenter, plan.checkpoint, origin=plan.origin)
    steps = config.TRAIN.epochs * loader.steps_per_epoch
    network = place_network(config, segmenter, plan.device, dtype=plan.dtype, steps=steps)
    return Parts(
        segmenter=segmenter,
        network=network,
        optimizer=optimizer_of(config, segmenter),
        loss=loss_of(config, weights_of_classes(config, plan.images, plan.log)),
        loader=loader,
    )


def training_data(config: Config) -> TrainingSet | TrainingImages:
    """Build the training images; a few are read, to find bad data before a run starts.

    Raises:
        DataError: they do not exist or cannot be used.
    """
    if config.classifies:
        return build_training_images(config)
    training_set = build_training_set(config)
    refuse_bad_data(training_set, config, "training")
    return training_set


def start_log(config: Config, folder: Path) -> logging.Logger:
    """The run's logger, with a log file in its folder."""
    log = run_logger(folder / f"train-{time.strftime('%Y%m%d_%H%M%S')}.log")
    for notice in config.notices:
        log.info(f"note: {notice}")
    return log


def describe_run(plan: Plan, parts: Parts) -> None:
    config, loader = plan.config, parts.loader
    train = config.TRAIN
    millions = sum(p.numel() for p in parts.segmenter.parameters()) / 1e6
    plan.log.info(
        f"{train.arch} on {train.backbone}, {millions:.2f}M parameters, {config.DATA.classes} "
        f"classes; {counted(len(loader.dataset), 'image')}, "
        f"{counted(loader.steps_per_epoch, 'step')} per epoch of batch {train.batch_size}, "
        f"{counted(train.epochs, 'epoch')}; {counted(process_group.world_size(), 'process')} on "
        f"{plan.device.type}, {str(plan.dtype).removeprefix('torch.')}"
    )


def find_resume(
    config: Config, checkpoints: CheckpointFolder, log: logging.Logger
) -> tuple[Path, dict[str, Any] | None]:
    """(path, content) of the checkpoint that `TRAIN.resume` means; no content: from scratch."""
    wanted = config.TRAIN.resume
    if wanted == "none":
        return checkpoints.last, None
    if wanted != "auto":
        return Path(wanted), read_checkpoint(wanted)
    found = checkpoints.newest_good()
    if found is None:
        return checkpoints.last, None
    path, content, warnings_ = found
    for warning in warnings_:
        log.warning(f"warning: {warning}")
    if warnings_ and process_group.is_main():
        link_or_copy(path, checkpoints.last)  # also where all its epochs are done already
    return path, content


def restore_weights(config: Config, segmenter: nn.Module, content: dict, *, origin: str) -> None:
    """Load the weights of a checkpoint of exactly this network.

    Raises:
        CheckpointError: it belongs to another network.
    """
    try:
        check_same_network(content, config, origin=origin)
        check_same_classes(names_in(content), config, origin=origin)
        report = load_weights(segmenter, content, origin=origin, exact=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; to train from scratch: --fresh, or another TRAIN.save_path"
        ) from error
    if report.new or report.unused:
        raise CheckpointError(
            f"{origin}: was trained with{'out' * bool(report.new)} an auxiliary head; set "
            f"TRAIN.aux_weight {'0' if report.new else 'above 0'} to resume it"
        )


def initialise_weights(config: Config, segmenter: nn.Module, log: logging.Logger) -> None:
    """Load `TRAIN.pretrained` and `TRAIN.weight`, in this order; log if there are none."""
    train = config.TRAIN
    loaded = False
    for key in ("pretrained", "weight"):
        path = getattr(train, key)
        if path is None:
            continue
        if key == "pretrained" and path in (AUTO, TIMM):
            loaded |= load_by_word(config, segmenter, log)
            continue
        if not Path(path).expanduser().is_file():
            if not train.pretrained_optional:
                raise CheckpointError(
                    f"TRAIN.{key}: {path} does not exist; put the weights there, or set "
                    "TRAIN.pretrained_optional true to train from scratch"
                )
            log.info(f"TRAIN.{key}: {path} not found (TRAIN.pretrained_optional is true)")
            continue
        report = load_weights(segmenter, read_checkpoint(path), origin=str(path), exact=False)
        log.info(f"TRAIN.{key}: {path}: {report}")
        loaded = True
    if not loaded:
        log.info("no pretrained weights: training from scratch")


def load_by_word(config: Config, segmenter: nn.Module, log: logging.Logger) -> bool:
    """Load the weights of `TRAIN.pretrained` auto or timm; log what was taken, return whether.

    Raises:
        CheckpointError: there are none, and they are not optional.
    """
    train, data = config.TRAIN, config.DATA
    try:
        taken = load_named_weights(segmenter, train.backbone, str(train.pretrained))
    except CheckpointError as error:
        if not train.pretrained_optional:
            raise
        log.info(f"{error} (TRAIN.pretrained_optional is true)")
        return False
    log.info(f"TRAIN.pretrained {train.pretrained}: {taken}; mean {data.mean}, std {data.std}")
    return True


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
    """Return the (K,) pixels, or images, of each class."""
    if isinstance(dataset, TrainingImages):
        return class_images(dataset.images)
    workers = process_group.share_of_workers(workers)
    return class_pixels(dataset.pairs, dataset.encoding, workers=workers)
