"""Whether a config is possible: derived options, combinations, files that must exist."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigError
from .limits import SIDE
from .schema import AUTO, TIMM, Config, DataSection, Key, TestSection, TrainSection
from .types import DEPTHS

IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
LITE = r"tf_efficientnet_lite[0-4](\..+)?"  # trained with (x - 127) / 128
Problem = tuple[tuple[Key, ...], str]  # the options it is about, and the sentence
Missing = tuple[tuple[str, ...], str]  # the same with names such as DATA.data_root


def backbone_depth(name: Any) -> int | None:
    """The depth that a backbone's name ends with; None for networks of other families."""
    match = re.fullmatch(r"(?:resnet|pyconvresnet|pyconvhgresnet)(\d{1,4})[sd]?", str(name))
    return int(match[1]) if match else None


def fill_in(config: Config, dataset: str) -> Config:
    """Replace every derived option that was left empty; `dataset` is what the file's name says."""
    data = config.DATA
    mean, std = _normalisation(config.TRAIN)
    data = data.model_copy(
        update={
            "dataset": data.dataset or dataset,
            "mean": data.mean or of_channels(mean, data.in_channels),
            "std": data.std or of_channels(std, data.in_channels),
        }
    )
    results = Path("exp", data.dataset, config.experiment)
    train = config.TRAIN
    depth = backbone_depth(train.backbone)
    layers = train.layers or (depth if depth in DEPTHS else 50)
    train = train.model_copy(
        update={
            "layers": layers,
            "backbone": train.backbone or f"resnet{layers}",
            "stem": _stem(train),
            "dilate_first_block": _dilate_first_block(train),
            "save_path": train.save_path or str(results / "model"),
        }
    )
    test = config.TEST
    kind = "ms" if len(test.scales) > 1 else "ss"
    test = test.model_copy(
        update={
            "test_h": test.test_h or train.train_h,
            "test_w": test.test_w or train.train_w,
            "model_path": test.model_path or str(Path(train.save_path, "last.pth")),
            "save_folder": test.save_folder or str(results / "result" / test.split / kind),
        }
    )
    return config.model_copy(update={"DATA": data, "TRAIN": train, "TEST": test})


def _normalisation(train: TrainSection) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB images, as the weights to start from want them.

    They depend on options alone, not on which weights are on a machine, so that testing needs none.
    """
    name = str(train.backbone or "")
    if train.pretrained not in (AUTO, TIMM) or not name.startswith("timm/"):
        return IMAGENET_MEAN, IMAGENET_STD
    name = name.removeprefix("timm/")
    if re.fullmatch(LITE, name):
        return [127.0] * 3, [128.0] * 3
    try:
        import timm
    except ImportError:  # building the network says so
        return IMAGENET_MEAN, IMAGENET_STD
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = ([round(255 * v, 3) for v in values] for values in (known.mean, known.std))
    return mean, std


def of_channels(rgb: list[float], channels: int) -> list[float]:
    """The values of red, green and blue, or their average for each channel of another number."""
    return rgb if channels == 3 else [round(sum(rgb) / 3, 3)] * channels


def _stem(train: TrainSection) -> str:
    if str(train.stem) != "auto":
        return train.stem
    return "classic" if train.arch == "pyconvsegnet" else "deep"


def _dilate_first_block(train: TrainSection) -> bool:
    if train.dilate_first_block is not None:
        return train.dilate_first_block
    return train.arch in ("psp", "psa", "pyconvsegnet")


def problems(config: Config) -> Iterator[Problem]:
    """Everything in a filled-in config that cannot work together."""
    yield from _backbone(config.TRAIN)
    yield from _psa(config.TRAIN, config.TEST)
    yield from _channels(config.DATA)
    yield from _labels(config.DATA, config.TRAIN, classifies=config.classifies)
    yield from (_classification(config) if config.classifies else _mixing(config.TRAIN))
    yield from _losses(config.TRAIN)
    yield from _jitter(config.DATA, config.TRAIN)
    yield from _ranges(config.TRAIN)
    yield from _crops(config.TRAIN, config.TEST)
    yield from _memory(config.TRAIN)
    yield from _numerics(config.TRAIN)
    yield from _processes(config)


def _of(section: str, *keys: str) -> tuple[Key, ...]:
    return tuple((section, key) for key in keys)


def _backbone(train: TrainSection) -> Iterator[Problem]:
    depth = backbone_depth(train.backbone)
    if depth is not None and depth not in DEPTHS:
        yield (
            _of("TRAIN", "backbone", "layers"),
            f"TRAIN.backbone {train.backbone} does not exist; its depth must be one of "
            f"{', '.join(map(str, DEPTHS))}",
        )
    elif depth is not None and depth != train.layers:
        yield (
            _of("TRAIN", "backbone", "layers"),
            f"TRAIN.backbone {train.backbone} contradicts TRAIN.layers {train.layers}; "
            "leave one of them out",
        )
    if train.pretrained == TIMM and not train.backbone.startswith("timm/"):
        yield (
            _of("TRAIN", "pretrained", "backbone"),
            f"TRAIN.pretrained timm has no weights of TRAIN.backbone {train.backbone}; name a "
            "file, or take a backbone timm/NAME",
        )
    if train.drop_path and not train.backbone.startswith("timm/"):
        yield (
            _of("TRAIN", "drop_path", "backbone"),
            f"TRAIN.drop_path {train.drop_path:g} is for backbones of timm, not for "
            f"{train.backbone}; leave it out",
        )
    if train.attention == "strip_pool" and train.strip_pooling != "average":
        yield (
            _of("TRAIN", "strip_pooling", "attention"),
            f"TRAIN.strip_pooling {train.strip_pooling} is for SPNet's own modules; "
            "TRAIN.attention strip_pool averages, so leave one of them out",
        )
    blocks = 2 if depth == 18 else 3  # in the last stage of every ResNet we have
    if depth and isinstance(train.multi_grid, list) and len(train.multi_grid) != blocks:
        yield (
            _of("TRAIN", "multi_grid", "backbone", "layers"),
            f"TRAIN.multi_grid must have {blocks} dilations, one for each block of the last "
            f"stage of {train.backbone}, not {len(train.multi_grid)}",
        )


def _psa(train: TrainSection, test: TestSection) -> Iterator[Problem]:
    both = _of("TRAIN", "mask_h", "mask_w")
    if (train.mask_h is None) != (train.mask_w is None):
        yield both, "TRAIN.mask_h and TRAIN.mask_w must be given together, or both left empty"
    for key, size in (("mask_h", train.mask_h), ("mask_w", train.mask_w)):
        if size is not None and size % 2 == 0 and not train.compact:
            yield _of("TRAIN", key, "compact"), f"TRAIN.{key} must be odd, not {size}"
    crop, window = (train.train_h, train.train_w), (test.test_h, test.test_w)
    if train.arch == "psa" and train.compact and crop != window:
        yield (
            (
                *(("TEST", "test_h"), ("TEST", "test_w")),
                *_of("TRAIN", "compact", "train_h", "train_w", "arch"),
            ),
            f"TRAIN.compact has a mask of the training crop's size: TEST.test_h and TEST.test_w "
            f"must be {crop[0]} and {crop[1]}, not {window[0]} and {window[1]}",
        )


def _channels(data: DataSection) -> Iterator[Problem]:
    for key in ("mean", "std"):
        length = len(getattr(data, key))
        if length != data.in_channels:
            yield (
                (("DATA", key), ("DATA", "in_channels")),
                f"DATA.{key} must have one number for each of the {data.in_channels} "
                f"DATA.in_channels, not {length}",
            )
    if max(*data.mean, *data.std) < 1:
        of_unit_range = ["mean", "std"]
    elif max(data.std) < 1 <= max(data.mean):
        of_unit_range = ["std"]
    elif 0 < max(data.mean) < min(1, max(data.std) ** 2 / 255):  # none of 0 to 255 have these
        of_unit_range = ["mean"]
    else:
        return
    named = " and ".join(f"DATA.{key} {getattr(data, key)}" for key in of_unit_range)
    are, them = ("are", "both") if len(of_unit_range) > 1 else ("is", "it")
    yield (
        _of("DATA", *of_unit_range),
        f"{named} {are} for images of 0 to 1, but pixel values here are 0 to 255; multiply {them} "
        "by 255",
    )


def _labels(data: DataSection, train: TrainSection, *, classifies: bool) -> Iterator[Problem]:
    if not classifies and data.classes > 255:
        yield (
            _of("DATA", "classes"),
            (
                "DATA.classes must be a whole number from 1 to 255, not "
                f"{data.classes}; a classifier may have more"
            ),
        )
    elif not classifies and data.classes == 1:
        yield (
            _of("DATA", "classes"),
            "DATA.classes 1 leaves nothing to learn: every pixel is the one class; an object and "
            "its background are 2 classes, with labels 0 and 1",
        )
    elif not classifies and train.ignore_label < data.classes:
        yield (
            (("TRAIN", "ignore_label"), ("DATA", "classes")),
            f"TRAIN.ignore_label {train.ignore_label} is the id of a class; with DATA.classes "
            f"{data.classes} it must be {data.classes} or more, usually 255",
        )
    weights = train.class_weights
    if isinstance(weights, list) and len(weights) != data.classes:
        yield (
            (("TRAIN", "class_weights"), ("DATA", "classes")),
            f"TRAIN.class_weights must have one entry for each of the {data.classes} "
            f"DATA.classes, not {len(weights)}",
        )


def _classification(config: Config) -> Iterator[Problem]:
    """Options of segmentation that a classifier cannot honour, and impossible ones of its own."""
    train, data = config.TRAIN, config.DATA
    for section, key, wanted, reason in (
        ("TRAIN", "loss", "cross_entropy", "the other losses choose and compare pixels"),
        ("TRAIN", "rare_class_crop", 0, "it looks for pixels of a class"),
        ("TRAIN", "copy_paste", 0, "it pastes pixels of a class"),
        ("TRAIN", "decoder", "none", "it makes maps finer"),
        ("TRAIN", "align_corners", True, "it enlarges no maps"),
        ("TRAIN", "color_jitter", [0, 0, 0], "its augmentation is the one of its papers"),
        ("DATA", "packed", None, "packing is for images with label maps"),
        ("TEST", "has_prediction", False, "a classifier saves no images of labels"),
    ):
        value = getattr(getattr(config, section), key)
        if value != wanted:
            yield (
                ((section, key), ("TRAIN", "arch")),
                f"{section}.{key} {value} does not go with TRAIN.arch classifier: {reason}; leave "
                "it out",
            )
    if train.crop_area[0] > train.crop_area[1]:
        yield (
            (("TRAIN", "crop_area"),),
            f"TRAIN.crop_area {train.crop_area}: the first share must not be above the second",
        )
    if config.TEST.split == "test":
        yield (
            (("TEST", "split"), ("TRAIN", "arch")),
            "TEST.split test does not go with TRAIN.arch classifier: it has no labels; `val` is "
            "CIFAR's test batch",
        )
    if data.labels != "auto":
        yield (
            (("DATA", "labels"), ("TRAIN", "arch")),
            f"DATA.labels {data.labels} does not go with TRAIN.arch classifier: it is about label "
            "files; leave it out",
        )


def _mixing(train: TrainSection) -> Iterator[Problem]:
    for key in ("mixup", "cutmix"):
        if getattr(train, key):
            yield (
                _of("TRAIN", key, "arch"),
                f"TRAIN.{key} {getattr(train, key):g} mixes the classes of whole images: it needs "
                "TRAIN.arch classifier",
            )


def _losses(train: TrainSection) -> Iterator[Problem]:
    """Options that none of the losses in use looks at."""
    by_pixel = ("cross_entropy", "ohem", "boundary")
    for key, without, users in (
        ("label_smoothing", 0, by_pixel),
        ("class_weights", "none", (*by_pixel, "focal")),
    ):
        value = getattr(train, key)
        if value != without and train.losses.keys().isdisjoint(users):
            yield (
                _of("TRAIN", key, "loss"),
                f"TRAIN.{key} {value} has no effect with TRAIN.loss {' and '.join(train.losses)}: "
                f"it is for {', '.join(users)}; leave it out, or add one of these to TRAIN.loss",
            )


def _jitter(data: DataSection, train: TrainSection) -> Iterator[Problem]:
    if any(train.color_jitter) and data.in_channels != 3:
        yield (
            (("TRAIN", "color_jitter"), ("DATA", "in_channels")),
            f"TRAIN.color_jitter {train.color_jitter} is for RGB images, and DATA.in_channels is "
            f"{data.in_channels}; leave it out",
        )


def _ranges(train: TrainSection) -> Iterator[Problem]:
    for low, high in (("scale_min", "scale_max"), ("rotate_min", "rotate_max")):
        least, most = getattr(train, low), getattr(train, high)
        if least > most:
            yield (
                _of("TRAIN", low, high),
                f"TRAIN.{low} {least:g} must not be above TRAIN.{high} {most:g}",
            )
    if train.start_epoch >= train.epochs:
        yield (
            _of("TRAIN", "start_epoch", "epochs"),
            f"TRAIN.start_epoch {train.start_epoch} leaves nothing of TRAIN.epochs {train.epochs}",
        )
    if train.warmup_epochs >= train.epochs:
        yield (
            _of("TRAIN", "warmup_epochs", "epochs"),
            f"TRAIN.warmup_epochs {train.warmup_epochs} must be fewer than TRAIN.epochs "
            f"{train.epochs}",
        )
    if (train.schedule == "step") != bool(train.milestones):
        yield (
            _of("TRAIN", "schedule", "milestones"),
            f"TRAIN.schedule {train.schedule} and TRAIN.milestones {train.milestones} do not go "
            "together: `step` needs milestones, the others have none",
        )


def _crops(train: TrainSection, test: TestSection) -> Iterator[Problem]:
    stride = train.output_stride
    if test.base_size * max(test.scales) > SIDE:
        yield (
            _of("TEST", "base_size", "scales"),
            f"TEST.base_size {test.base_size} times {max(test.scales):g}, the largest of "
            f"TEST.scales, must not be above {SIDE} pixels",
        )
    for section, key, side in (
        ("TRAIN", "train_h", train.train_h),
        ("TRAIN", "train_w", train.train_w),
        ("TEST", "test_h", test.test_h),
        ("TEST", "test_w", test.test_w),
    ):
        follows = section == "TEST" and side == getattr(train, key.replace("test", "train"))
        if side < stride and not follows:  # one message is enough
            yield (
                ((section, key), ("TRAIN", "output_stride")),
                f"{section}.{key} {side} must not be smaller than TRAIN.output_stride {stride}",
            )


def _numerics(train: TrainSection) -> Iterator[Problem]:
    if train.deterministic and train.arch == "psp" and train.ppm_pooling == "max":
        yield (
            _of("TRAIN", "deterministic", "ppm_pooling"),
            "TRAIN.deterministic does not go with TRAIN.ppm_pooling max, whose backward pass has "
            "no deterministic algorithm on GPUs; set TRAIN.ppm_pooling average",
        )


def _memory(train: TrainSection) -> Iterator[Problem]:
    """Options that save memory, and that save time."""
    if train.batch_size == "auto" and train.accumulation_steps > 1:
        yield (
            _of("TRAIN", "batch_size", "accumulation_steps"),
            f"TRAIN.accumulation_steps {train.accumulation_steps} divides a batch that is too "
            "large for the memory, and TRAIN.batch_size auto is one that fits; give the batch as "
            "a number, or leave TRAIN.accumulation_steps out",
        )
    if train.activation_checkpointing and train.compile is True:
        yield (
            _of("TRAIN", "activation_checkpointing", "compile"),
            "TRAIN.activation_checkpointing and TRAIN.compile exclude each other: the compiler "
            "decides itself what the backward pass computes again; leave one of them out",
        )
    if train.activation_checkpointing and train.backbone.startswith("timm/"):
        yield (
            _of("TRAIN", "activation_checkpointing", "backbone"),
            f"TRAIN.activation_checkpointing works on ResNet and PyConvResNet, not on "
            f"{train.backbone}; leave it out, or divide the batch by TRAIN.accumulation_steps",
        )


def _processes(config: Config) -> Iterator[Problem]:
    options, train = config.Distributed, config.TRAIN
    if options.rank >= options.world_size:
        yield (
            _of("Distributed", "rank", "world_size"),
            f"Distributed.rank {options.rank} must be below Distributed.world_size "
            f"{options.world_size}: machines are numbered from 0",
        )
    gpus = len(train.train_gpu or [0]) if options.multiprocessing_distributed else 1
    processes = options.world_size * (options.processes or gpus)
    if train.batch_size == "auto":
        return
    if train.batch_size < processes:
        yield (
            (
                *_of("TRAIN", "batch_size", "train_gpu"),
                *_of("Distributed", "processes", "world_size", "multiprocessing_distributed"),
            ),
            f"TRAIN.batch_size {train.batch_size} leaves nothing for some of the {processes} "
            "processes; it counts the images of all of them together",
        )
    elif train.batch_size // processes < train.accumulation_steps:
        yield (
            (
                *_of("TRAIN", "accumulation_steps", "batch_size", "train_gpu"),
                *_of("Distributed", "processes", "world_size", "multiprocessing_distributed"),
            ),
            f"TRAIN.accumulation_steps {train.accumulation_steps} is more than the "
            f"{train.batch_size // processes} images that a process has of TRAIN.batch_size "
            f"{train.batch_size}; lower it, or raise the batch",
        )


def resolve_list(config: Config, path: str) -> Path:
    """A list as it stands if there is such a file, else the list of that name in DATA.data_root.

    `train_list: train.txt` thus follows `data_root`, and semseg's own paths keep their meaning.
    """
    as_it_stands = Path(os.path.expanduser(path))
    if os.path.isfile(as_it_stands):  # unlike Path.is_file, False for an impossible name
        return as_it_stands
    return Path(config.DATA.data_root) / as_it_stands


def check_files(
    config: Config, purpose: Literal["train", "test"], *, official_splits: Collection[str] = ()
) -> None:
    """ConfigError with one line for each file that the purpose needs and that is not there.

    A classifier needs no lists: the folder says what is in it. Neither does segmentation with a
    list named like one of `official_splits`.
    """
    no_folder = _data_root(config)
    missing = [*no_folder]
    for key, path in [] if config.classifies else _lists(config, purpose):
        if path is None or not no_folder:  # without the folder, its lists are missing anyway
            known = path is not None and Path(path).stem in official_splits
            missing += [] if known else _list(config, key, path, purpose)
    missing += _names(config)
    if missing:
        raise ConfigError("\n".join(f"{config.origin(*keys)}: {text}" for keys, text in missing))


def _lists(config: Config, purpose: str) -> list[tuple[str, str | None]]:
    if purpose == "test":
        return [("TEST.test_list", config.TEST.test_list)]
    lists = [("DATA.train_list", config.DATA.train_list)]
    return lists + [("DATA.val_list", config.DATA.val_list)] * config.TRAIN.evaluate


def _data_root(config: Config) -> list[Missing]:
    root = Path(config.DATA.data_root)
    if os.path.isdir(root):
        return []
    sentence = (
        f"DATA.data_root {root} is not a folder (looked for {root.absolute()}); "
        f"set DATA.data_root, or link it: ln -s /path/to/the/data {root}"
    )
    return [(("DATA.data_root",), sentence)]


def _list(config: Config, key: str, path: str | None, purpose: str) -> list[Missing]:
    if path is None:
        cure = "; or set TRAIN.evaluate False" if key == "DATA.val_list" else ""
        return [((key,), f"{key} is not set, and {purpose}ing needs it{cure}")]
    found = resolve_list(config, path)
    if os.path.isfile(found):
        return []
    sentence = (
        f"{key} {path} does not exist (looked for {found.absolute()}); "
        f"set {key}, or DATA.data_root, which is {config.DATA.data_root}"
    )
    return [((key,), sentence)]


def _names(config: Config) -> list[Missing]:
    path, classes = config.TEST.names_path, config.DATA.classes
    if path is None or not os.path.isfile(path):
        return []
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line for line in lines if not re.match(r"\s*(#\s|#?$)", line)]
    if len(names) == classes:
        return []
    sentence = (
        f"TEST.names_path {path} (looked for {Path(path).absolute()}) has {len(names)} lines, "
        f"but DATA.classes is {classes}; correct one of them"
    )
    return [(("TEST.names_path", "DATA.classes"), sentence)]
