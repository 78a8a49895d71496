"""Training steps of the trainer itself on random pictures, without a dataset."""

import logging
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stripseg.config.load import find_config, load_config
from stripseg.config.schema import Config
from stripseg.dataset.loader import Batch
from stripseg.model.build import build_network
from stripseg.util.checkpoint import CheckpointFolder
from stripseg.util.precision import choose_precision
from stripseg.util.training.losses import ignore_label_of, loss_of
from stripseg.util.training.optimizer import optimizer_of
from stripseg.util.training.parallelize import place_network
from stripseg.util.training.prefetch import Prefetcher, PreparedBatch
from stripseg.util.training.run_log import RunLog
from stripseg.util.training.step_timer import StepTimer
from stripseg.util.training.trainer import Trainer


class Endless:
    """In the place of a loader, for the schedule of the learning rate."""

    steps_per_epoch = 100


def config_of(
    *words: str, size: int, layers: int = 50, width: float = 1, dataset: str = "ade20k"
) -> Config:
    """ADE20K's SPNet by default, at a square crop."""
    shape = ["TRAIN.train_h", str(size), "TRAIN.train_w", str(size)]
    network = ["TRAIN.layers", str(layers), "TRAIN.width", str(width)]
    return load_config(find_config(dataset, "spnet50"), [*shape, *network, *words])


def trainer_of(config: Config, device: torch.device, network: nn.Module, folder: Path) -> Trainer:
    """The trainer of `network`, which goes to the device; nothing is read or written."""
    dtype = choose_precision(config.TRAIN.precision, device, key="TRAIN.precision")
    weights = config.TRAIN.class_weights
    placed = place_network(config, network, device, dtype=dtype)
    placed.train()
    return Trainer(
        config,
        device=device,
        dtype=dtype,
        network=placed,
        segmenter=network,
        optimizer=optimizer_of(config, network),
        loss=loss_of(config, None if weights == "none" else torch.tensor(weights)),
        loader=Endless(),
        checkpoints=CheckpointFolder(folder),
        run_log=RunLog(
            config,
            device,
            log=logging.getLogger("stripseg.benchmark"),
            folder=folder,
            steps_per_epoch=Endless.steps_per_epoch,
            ignore_label=ignore_label_of(config),
        ),
    )


def fresh_trainer(config: Config, device: torch.device, folder: Path) -> Trainer:
    """The same with a network of the same weights each time."""
    torch.manual_seed(0)
    return trainer_of(config, device, build_network(config), folder)


def random_batch(config: Config, images: int, *, seed: int, pin: bool = False) -> Batch:
    """Pictures with large shapes; labels follow the brightness, with three ignored rows."""
    height, width = config.TRAIN.train_h, config.TRAIN.train_w
    rng = torch.Generator().manual_seed(seed)
    shape = (images, config.DATA.in_channels, height // 16 + 1, width // 16 + 1)
    coarse = torch.randint(0, 256, shape, generator=rng).float()
    image = F.interpolate(coarse, (height, width), mode="bilinear").byte()
    label = (image.float().mean(1) * config.DATA.classes / 256).byte()
    label[:, :3] = config.TRAIN.ignore_label
    batch = Batch(image.contiguous(memory_format=torch.channels_last), label, ["a"] * images)
    return batch.pin_memory() if pin else batch


def prefetcher_of(config: Config, device: torch.device, dtype: torch.dtype) -> Prefetcher:
    timer = StepTimer(device, dtype=dtype)
    return Prefetcher(config, device, timer=timer, note=lambda *_: None)


def one_step(trainer: Trainer, batch: PreparedBatch) -> Tensor:
    """A step and its figures for the log; returns the (3,) losses."""
    figures = trainer.train_step(batch)
    trainer.run_log.add(batch, figures)
    return figures.losses


def step_after_step(trainer: Trainer, images: int) -> Callable[[], Tensor]:
    """A function that makes one more step each time, from pinned memory on a GPU."""
    config, device = trainer.config, trainer.device
    pin = device.type == "cuda"
    batches = [random_batch(config, images, seed=seed, pin=pin) for seed in range(2)]
    prefetcher = prefetcher_of(config, device, trainer.dtype)
    prepared: Iterator[PreparedBatch] = prefetcher.prepared(cycle(batches), first_step=0)
    return lambda: one_step(trainer, next(prepared))
