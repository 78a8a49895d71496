"""A number in place of `TRAIN.batch_size auto`, before training starts."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from .build import loss_of, optimizer_of
from .config.errors import TrainingError
from .config.schema import Config
from .util.distributed import process_group
from .util.normalization import Normalization
from .util.training.auto_batch_size import (
    CPU_MOST,
    Fits,
    Step,
    agreed_share,
    fits_cpu,
    fits_gpu,
)
from .util.training.ema import EMA
from .util.training.prefetch import PreparedBatch
from .util.training.step import TrainingStep


def settle_batch_size(
    config: Config,
    segmenter: nn.Module,
    *,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
    resumed: Mapping[str, Any] | None,
    log: logging.Logger,
    fits: Fits | None = None,
) -> Config:
    """The config with a number for `TRAIN.batch_size auto`: the resumed run's, or a found one.

    Args:
        segmenter: stays as it is; a copy is tried out.
        images: in the training list: no batch can have more.
        resumed: content of the checkpoint that the run resumes from, if any.
        fits: whether a step with this many images per process fits. By default it is tried out.
    Raises:
        TrainingError: not even the smallest batch fits.
    """
    train = config.TRAIN
    if train.batch_size != "auto":
        return config
    before = ((resumed or {}).get("config") or {}).get("TRAIN", {}).get("batch_size")
    if isinstance(before, int):
        log.info(f"TRAIN.batch_size auto: {before}, as in the run that is resumed")
        return with_batch_size(config, before)
    processes = process_group.world_size()
    least = 2 if train.norm == "batch" else 1  # one image may leave batch norm a single value
    most = images if device.type == "cuda" else min(images, CPU_MOST)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        fits = fits or fits_on(device, trial_step(config, segmenter, device, dtype), least)
        share = agreed_share(fits, least=least, most=max(least, most // processes))
    if share == 0:
        raise TrainingError(
            f"TRAIN.batch_size auto: a step with {least} images of {train.train_h}x{train.train_w} "
            f"does not fit the memory; lower TRAIN.train_h and TRAIN.train_w, or set "
            "TRAIN.activation_checkpointing true or TRAIN.precision bf16"
        )
    batch = share * processes
    log.info(
        f"TRAIN.batch_size auto: {batch}, {share} a process; TRAIN.base_lr stays {train.base_lr:g}"
    )
    return with_batch_size(config, batch)


def fits_on(device: torch.device, step: Step, least: int) -> Fits:
    if device.type == "cuda":
        return fits_gpu(step, device)
    with process_group.alone():
        return fits_cpu(step, least=least)


def with_batch_size(config: Config, batch: int) -> Config:
    train = config.TRAIN.model_copy(update={"batch_size": batch})
    return config.model_copy(update={"TRAIN": train})


def trial_step(
    config: Config, segmenter: nn.Module, device: torch.device, dtype: torch.dtype
) -> Step:
    """images -> nothing: one training step on random data, by a copy of the network."""
    train = config.TRAIN
    network = deepcopy(segmenter).to(device).train()
    if train.channels_last:
        network.to(memory_format=torch.channels_last)
    train_step = TrainingStep(
        network,
        optimizer=optimizer_of(config, network),
        loss=loss_of(config),
        dtype=dtype,
        ema=EMA(network, train.average_decay) if train.average_decay else None,
    )
    normalize = Normalization(config.DATA.mean, config.DATA.std, device)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format

    def step(images: int) -> None:
        size = (train.train_h, train.train_w)
        shape = (images, config.DATA.in_channels, *size)
        image = torch.randint(256, shape, dtype=torch.uint8, device=device)
        image = normalize(image).contiguous(memory_format=layout)
        shape = (images,) if config.classifies else (images, *size)
        label = torch.randint(config.DATA.classes, shape, device=device)
        train_step(PreparedBatch(0, image, label, partner=None, share=1.0, names=[], problems=[]))

    return step
