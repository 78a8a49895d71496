"""Where a config becomes images with one label each: CIFAR's archives, or a folder per class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...config.errors import ConfigError, DataError
from ...config.schema import Config
from ..description import read_names
from .cifar import FOLDERS, SIDE, find_archive, read_cifar
from .images import (
    EvaluationImages,
    LabelledImages,
    MiddleCrop,
    PadAndCrop,
    ResizedCrop,
    TrainingImages,
    read_folders,
)

LOOKED_AT = 12  # images that are read before a run starts


def build_images(config: Config, split: str) -> LabelledImages:
    """The "train" or "val" images of `DATA.data_root`.

    Raises:
        DataError: neither archives nor class folders, or damaged ones.
        ConfigError: `DATA.classes` or `DATA.in_channels` does not fit them.
    """
    root, classes = Path(config.DATA.data_root), config.DATA.classes
    images: LabelledImages
    if find_archive(root, classes) is not None:
        images = read_cifar(root, split, classes=classes)
        if config.DATA.in_channels != 3:
            raise ConfigError(
                f"{config.source}: DATA.in_channels is {config.DATA.in_channels}, and the images "
                f"of {root} are RGB"
            )
    elif (root / split).is_dir():
        images = read_folders(root / split, channels=config.DATA.in_channels)
        known = {path.name for path in (root / "train").glob("*") if path.is_dir()}
        if known and known != set(images.classes):
            other = sorted(known.symmetric_difference(images.classes))
            raise ConfigError(
                f"{config.source}: {root / split} names other classes than train: {other[0]} is in "
                "one of them alone"
            )
    else:
        raise DataError(
            f"{root}: holds neither {' nor '.join(FOLDERS.values())} nor {split}/CLASS/ folders; "
            f"unpack the archive there, or set DATA.data_root"
        )
    if len(images.classes) != classes:
        raise ConfigError(
            f"{config.source}: DATA.classes is {classes}, and the {split} images of {root} have "
            f"{len(images.classes)} classes"
        )
    return images


def of_archive(config: Config) -> bool:
    return find_archive(Path(config.DATA.data_root), config.DATA.classes) is not None


def build_training_images(config: Config) -> TrainingImages:
    """The training images with the augmentation that `TRAIN` describes.

    Raises:
        ConfigError: a crop larger than CIFAR's padded images.
        DataError: as `build_images`, or an image of some that are looked at cannot be used.
    """
    train = config.TRAIN
    images, crop = build_images(config, "train"), (train.train_h, train.train_w)
    augment: PadAndCrop | ResizedCrop
    if of_archive(config):
        if max(crop) > SIDE + 2 * train.crop_padding:
            raise ConfigError(
                f"{config.source}: TRAIN.train_h and TRAIN.train_w must be at most "
                f"{SIDE + 2 * train.crop_padding}, CIFAR's images with TRAIN.crop_padding "
                f"{train.crop_padding}, usually {SIDE}"
            )
        augment = PadAndCrop(crop, train.crop_padding, train.flip_probability)
    else:
        augment = ResizedCrop(crop, tuple(train.crop_area), train.flip_probability)
        skip = train.bad_data == "skip"
        for index in [] if skip else np.linspace(0, len(images) - 1, LOOKED_AT).round():
            images.read(int(index))
    return TrainingImages(
        images,
        augment,
        seed=train.manual_seed or 0,
        crop=crop,
        channels=config.DATA.in_channels,
        skip_bad=train.bad_data == "skip",
    )


def build_evaluation_images(config: Config, split: str) -> EvaluationImages:
    """The images of a split as they are tested: CIFAR's as stored, others' middles."""
    images = build_images(config, split)
    test = config.TEST
    prepare = None if of_archive(config) else MiddleCrop((test.test_h, test.test_w))
    return EvaluationImages(images, prepare)


def class_names(config: Config, images: LabelledImages) -> Sequence[str]:
    """Those of `TEST.names_path`, else those that come with the images."""
    path = config.TEST.names_path
    return read_names(Path(path)) if path and Path(path).is_file() else images.classes


def class_images(images: LabelledImages) -> Tensor:
    """(K,) how many images each class has."""
    return torch.from_numpy(np.bincount(images.labels, minlength=len(images.classes)))
