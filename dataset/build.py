"""From a config to its data: lists, labels, names of classes."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.errors import ConfigError
from ..config.schema import Config
from ..config.validate import resolve_list
from .augmentation import Augmentation
from .description import (
    DatasetDescription,
    available,
    colors_of,
    describe,
    read_colors,
    read_names,
)
from .labels import LabelEncoding, choose_encoding
from .layout import official_pairs, read_ids
from .lists import Pair, read_list
from .packed.reader import PackedPairs
from .segmentation import EvaluationSet, TrainingSet


@dataclass(frozen=True)
class Classes:
    """Names and (K, 3) uint8 colours in index order."""

    names: Sequence[str]
    colors: np.ndarray


def description_of(config: Config) -> DatasetDescription | None:
    """The catalog's entry of the config's dataset; None for a dataset of the user's own."""
    return describe(config.DATA.dataset) if config.DATA.dataset in available() else None


def build_classes(config: Config) -> Classes:
    """Names and colours: the files of `TEST`, else those beside the data, else the catalog's.

    Raises:
        ConfigError: the catalog's class count disagrees with `DATA.classes`.
        DataError: a names or colours file is malformed or of another length.
    """
    count = config.DATA.classes
    description = description_of(config)
    names_file = first_file(config.TEST.names_path, Path(config.DATA.data_root) / "names.txt")
    colors_file = first_file(config.TEST.colors_path, Path(config.DATA.data_root) / "colors.txt")
    if names_file:
        names = read_names(names_file)
    elif description:
        names = list(description.names)
    else:
        names = [f"class {index}" for index in range(count)]
    if len(names) != count:
        origin = names_file or f"the catalog's {config.DATA.dataset}"
        raise ConfigError(
            f"{config.origin('DATA.classes', 'TEST.names_path')}: DATA.classes is {count}, and "
            f"{origin} names {len(names)} classes"
        )
    colors = colors_of(names)
    if colors_file:
        colors = read_colors(colors_file)
    elif description:
        colors = list(description.colors)
    if len(colors) < count:
        raise ConfigError(
            f"{config.origin('DATA.classes', 'TEST.colors_path')}: DATA.classes is {count}, and "
            f"{colors_file} has {len(colors)} colours"
        )
    return Classes(names, np.array(colors[:count], np.uint8))


def first_file(*candidates: str | Path | None) -> Path | None:
    """The first of the paths that is a file."""
    for candidate in candidates:
        if candidate is not None and Path(candidate).expanduser().is_file():
            return Path(candidate).expanduser()
    return None


def build_pairs(
    config: Config, list_path: str, *, split: str, check_files: bool = True
) -> list[Pair]:
    """The pairs of a list of the config; all files are present, unless `check_files` is False.

    For a dataset whose official layout the catalog knows, the list may be missing, and its name
    then says the official split (`val.txt`); or it may hold bare ids, as PASCAL VOC's do.
    """
    root, path = Path(config.DATA.data_root), resolve_list(config, list_path)
    if path.stem in official_splits(config):
        ids = read_ids(path, root) if path.is_file() else None
        if ids is not None or not path.is_file():
            labelled = split != "test"
            description = describe(config.DATA.dataset)
            return official_pairs(description, root, path.stem, ids=ids, with_labels=labelled)
    outside = config.DATA.outside_root
    return read_list(path, root, split=split, check_files=check_files, outside=outside)


def official_splits(config: Config) -> Collection[str]:
    """The splits of the dataset whose official layout the catalog knows."""
    description = description_of(config)
    return description.layout if description else ()


def build_training_set(config: Config) -> TrainingSet:
    """The training images with the augmentation that `TRAIN` describes."""
    train = config.TRAIN
    pairs = build_pairs(config, config.DATA.train_list, split="train")
    augmentation = Augmentation(
        crop=(train.train_h, train.train_w),
        scale=(train.scale_min, train.scale_max),
        rotation=(train.rotate_min, train.rotate_max),
        rotate_probability=train.rotate_probability,
        blur_probability=train.blur_probability,
        flip_probability=train.flip_probability,
        rare_class_probability=train.rare_class_crop,
        color_jitter=tuple(train.color_jitter),
        fill=config.DATA.mean,
        ignore_label=train.ignore_label,
    )
    encoding = label_encoding(config, pairs)
    return TrainingSet(
        pairs,
        encoding,
        augmentation,
        seed=train.manual_seed or 0,
        channels=config.DATA.in_channels,
        skip_bad=train.bad_data == "skip",
        copy_paste=train.copy_paste,
        packed=open_packed(config, "train", pairs, encoding),
    )


def open_packed(
    config: Config, part: str, pairs: Sequence[Pair], encoding: LabelEncoding
) -> PackedPairs | None:
    """The packed copy of "train" or "val" in `DATA.packed`; None if the files are to be read."""
    if config.DATA.packed is None:
        return None
    out = shlex.quote(config.DATA.packed)
    command = f"stripseg prepare pack {config.command_arguments()} --out {out}"
    return PackedPairs(
        Path(config.DATA.packed),
        part,
        pairs,
        encoding,
        channels=config.DATA.in_channels,
        command=command,
    )


def build_evaluation_set(config: Config, list_path: str | None, *, split: str) -> EvaluationSet:
    """Whole images, with labels unless the split is "test".

    Raises:
        ConfigError: no list is named.
    """
    if list_path is None:
        raise ConfigError(f"{config.source}: TEST.test_list: name the list of images to test on")
    pairs = build_pairs(config, list_path, split=split)
    encoding = None if split == "test" else label_encoding(config, pairs)
    return EvaluationSet(pairs, encoding, channels=config.DATA.in_channels)


def build_validation_set(config: Config) -> EvaluationSet:
    """The images of the validation during training, packed if the training images are."""
    pairs = build_pairs(config, config.DATA.val_list, split="val")
    encoding = label_encoding(config, pairs)
    packed = open_packed(config, "val", pairs, encoding)
    return EvaluationSet(pairs, encoding, channels=config.DATA.in_channels, packed=packed)


def label_encoding(config: Config, pairs: Sequence[Pair]) -> LabelEncoding:
    """How this config's label files are read."""
    return choose_encoding(
        pairs,
        description_of(config),
        declared=config.DATA.labels,
        classes=config.DATA.classes,
        ignore_label=config.TRAIN.ignore_label,
    )
