"""The one place where a config becomes a network."""

from functools import partial

from torch import nn

from ..config.errors import ConfigError
from ..config.schema import Config
from .fcn import FCNHead
from .layers import NormLayer, group_norm
from .resnet import DEPTHS, ResNet
from .segmenter import Segmenter
from .spnet import SPNetHead

HEADS = {"spnet": SPNetHead, "fcn": FCNHead}


def build_segmenter(config: Config) -> Segmenter:
    """The network that `TRAIN` describes, with fresh weights.

    Raises:
        ConfigError: an architecture or backbone that is not built yet, or impossible blocks.
    """
    train = config.TRAIN
    norm_layer: NormLayer = nn.BatchNorm2d if train.norm == "batch" else group_norm
    if train.arch not in HEADS:
        raise ConfigError(
            f"{config.source}: TRAIN.arch {train.arch!r} cannot be built by this version; "
            f"it builds {', '.join(HEADS)}"
        )
    try:
        backbone = build_backbone(config, norm_layer)
    except ValueError as error:
        raise ConfigError(f"{config.source}: TRAIN: {error}") from error
    options = {"dropout": train.dropout, "norm_layer": norm_layer}
    head_class = partial(HEADS[train.arch], backbone.channels, config.DATA.classes, **options)
    if train.arch == "spnet":
        head_class = partial(
            head_class,
            mixed_pooling_modules=train.mixed_pooling_modules,
            pool_sizes=train.mixed_pooling_sizes,
        )
    auxiliary = None
    if train.aux_weight > 0:
        auxiliary = FCNHead(backbone.channels, config.DATA.classes, stage=2, **options)
    return Segmenter(backbone, head_class(), auxiliary, zoom_factor=train.zoom_factor)


def build_backbone(config: Config, norm_layer: NormLayer) -> ResNet:
    """ResNet of the asked depth, dilation and strip pooling."""
    train = config.TRAIN
    if train.backbone not in {f"resnet{depth}" for depth in DEPTHS}:
        names = ", ".join(f"resnet{depth}" for depth in DEPTHS)
        raise ValueError(f"backbone {train.backbone!r} is not known; there are {names}")
    multi_grid = train.multi_grid
    if multi_grid is None:
        multi_grid = train.arch == "spnet"
    if isinstance(multi_grid, bool):
        multi_grid = [4, 8, 16] if multi_grid else None
    with_strips = train.arch == "spnet" and train.spm_on
    return ResNet(
        int(train.backbone.removeprefix("resnet")),
        stem=train.stem,
        output_stride=train.output_stride,
        multi_grid=multi_grid,
        strip_pooling=train.spm_blocks if with_strips else ["none"] * 4,
        norm_layer=norm_layer,
    )
