"""Networks from a config."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from ..config.errors import ConfigError
from ..config.schema import CLASSIFIER, Config, TrainSection
from ..config.types import nearest
from .backbone.pyconv import PyConvResNet
from .backbone.resnet import DEPTHS, ResNet
from .backbone.timm_backbone import TimmBackbone
from .classifier import ImageClassifier
from .decoder import Decoder, take_off_classifier
from .fcn import FCNHead
from .layers import NormLayer, group_norm
from .psanet import PSANetHead
from .pspnet import PSPNetHead
from .pyconvsegnet import PyConvSegNetHead
from .segmenter import Segmenter
from .spnet import SPNetHead
from .strip_pooling import PointwiseControl, StripPoolingModule

MULTI_GRID = (4, 8, 16)
DIRECTIONS = {0: ("collect",), 1: ("distribute",), 2: ("collect", "distribute")}  # by psa_type


def spnet_options(train: TrainSection) -> dict:
    return {
        "mixed_pooling_modules": train.mixed_pooling_modules,
        "pool_sizes": train.mixed_pooling_sizes,
        "branches": train.mixed_pooling_branches,
        "pooling": train.strip_pooling,
    }


def pspnet_options(train: TrainSection) -> dict:
    return {
        "pyramid_pooling": train.use_ppm,
        "bins": train.ppm_bins,
        "pooling": train.ppm_pooling,
        "reduction": train.ppm_reduction,
    }


def psanet_options(train: TrainSection) -> dict:
    return {
        "directions": DIRECTIONS[train.psa_type],
        "mask_size": psanet_mask_size(train),
        "compact": train.compact,
        "shrink_factor": train.shrink_factor,
        "normalization_factor": train.normalization_factor,
        "softmax": train.psa_softmax,
    }


def no_options(train: TrainSection) -> dict:
    return {}


# TRAIN.arch -> (head, its options); a new head is one line here: docs/new_head.md
HEADS: dict[str, tuple[type[nn.Module], Callable[[TrainSection], dict]]] = {
    "spnet": (SPNetHead, spnet_options),
    "psp": (PSPNetHead, pspnet_options),
    "psa": (PSANetHead, psanet_options),
    "pyconvsegnet": (PyConvSegNetHead, no_options),
    "fcn": (FCNHead, no_options),
}


def build_network(config: Config) -> Segmenter | ImageClassifier:
    """The network that `TRAIN` describes, a segmenter or a classifier, with fresh weights.

    Raises:
        ConfigError: a backbone that does not exist, impossible blocks, or sizes that do not go
            with `TRAIN.align_corners`.
    """
    if config.classifies:
        return build_classifier(config)
    network = build_segmenter(config)
    check_sizes(config, network.backbone)
    return network


def check_sizes(config: Config, backbone: nn.Module) -> None:
    """Check that the strides divide crop and window where logits are not enlarged by corners.

    Raises:
        ConfigError: they do not, and logits would lie beside the pixels that they belong to.
    """
    if config.TRAIN.align_corners:
        return
    stride = largest_stride(config, backbone)
    for key in ("TRAIN.train_h", "TRAIN.train_w", "TEST.test_h", "TEST.test_w"):
        section, name = key.split(".")
        if (side := getattr(getattr(config, section), name)) % stride:
            below = side // stride * stride
            sizes = f"{below} or {below + stride}" if below else f"{stride}"
            raise ConfigError(
                f"{config.origin(key)}: {key} {side} must be a multiple of {stride}, the largest "
                f"stride of {config.TRAIN.backbone}, with TRAIN.align_corners False: take {sizes}, "
                "or TRAIN.align_corners True"
            )


def largest_stride(config: Config, backbone: nn.Module) -> int:
    """What sizes must be multiples of where logits are not enlarged by corners."""
    return int(getattr(backbone, "multiple", config.TRAIN.output_stride))


def build_classifier(config: Config) -> ImageClassifier:
    """`TRAIN.backbone` as an image classifier.

    Raises:
        ConfigError: a backbone that does not exist, or an option that it does not have.
    """
    try:
        backbone = any_backbone(config)
    except ValueError as error:
        raise ConfigError(f"{config.source}: TRAIN: {error}") from error
    network = ImageClassifier(backbone, config.DATA.classes, dropout=config.TRAIN.dropout)
    freeze_unused(network, image_shape(config))
    return network


def build_segmenter(config: Config) -> Segmenter:
    """The segmentation network that `TRAIN` describes, with fresh weights.

    Raises:
        ConfigError: a backbone that does not exist, impossible blocks, a decoder without an early
            stage, or a classifier.
    """
    check_arch(config)
    check_segments(config)
    train, classes = config.TRAIN, config.DATA.classes
    options = {"dropout": train.dropout, "norm_layer": norm_layer_of(train)}
    head_class, head_options = HEADS[train.arch]
    try:
        backbone = any_backbone(config)
        if train.arch == "psa" and isinstance(backbone, TimmBackbone):
            train = train.model_copy(update={"output_stride": backbone.strides[-1]})
        head = head_class(backbone.channels, classes, **head_options(train), **options)
        decoder = None
        if train.decoder != "none":
            check_early_stage(backbone, train.backbone)
            channels = take_off_classifier(head)
            decoder = Decoder(channels, backbone.channels[0], classes, **options)
    except ValueError as error:
        raise ConfigError(f"{config.source}: TRAIN: {error}") from error
    auxiliary = None
    if train.aux_weight > 0:
        auxiliary = FCNHead(backbone.channels, classes, stage=2, **options)
    network = Segmenter(
        backbone,
        head,
        auxiliary,
        decoder=decoder,
        strip_pooling=stage_modules(config, backbone.channels),
        zoom_factor=train.zoom_factor,
        align_corners=train.align_corners,
    )
    freeze_unused(network, image_shape(config))
    return network


def stage_modules(config: Config, channels: Sequence[int]) -> dict[str, nn.Module]:
    """{stage: strip pooling module} of `TRAIN.spm_stages`, for features of so many `channels`.

    Raises:
        ConfigError: nothing looks at the features of a stage.
    """
    train = config.TRAIN
    if train.arch != "spnet":
        return {}
    seen = {
        4: "",
        3: "" if train.aux_weight > 0 else "TRAIN.aux_weight above 0",
        1: "" if train.decoder != "none" else "a TRAIN.decoder",
    }
    for stage in train.spm_stages:
        if missing := seen.get(stage, "no option"):
            raise ConfigError(
                f"{config.source}: TRAIN.spm_stages: nothing looks at the features of stage "
                f"{stage}" + (f"; only {missing} does" if stage in seen else "; leave it out")
            )
    module = strip_module_of(train)
    return {
        str(stage): module(channels[stage - 1], norm_layer=norm_layer_of(train))
        for stage in sorted(set(train.spm_stages))
    }


def check_early_stage(backbone: nn.Module, name: str) -> None:
    """Check that the first feature map is finer than the last one.

    Raises:
        ValueError: it is not, as in a plain vision transformer.
    """
    if isinstance(backbone, TimmBackbone) and backbone.strides[0] == backbone.strides[-1]:
        raise ValueError(
            f"backbone {name} has all its maps at stride {backbone.strides[0]}, and a decoder "
            "needs a finer one; leave TRAIN.decoder out, or take another backbone"
        )


def image_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of a training crop."""
    return config.DATA.in_channels, config.TRAIN.train_h, config.TRAIN.train_w


def freeze_unused(network: Segmenter | ImageClassifier, shape: Sequence[int]) -> None:
    """Freeze the parameters that no output of `network` in training depends on.

    A backbone may have branches that lead to none of the features in use, as HRNet does.
    `DistributedDataParallel` would wait for their gradients. They stay in the state_dict. ResNets
    have no such branches.

    Args:
        shape: (C, H, W) of an image; it is tried out without data (meta tensors).
    """
    if isinstance(network.backbone, ResNet):
        return
    try:
        gradients = gradients_on_paper(network, shape)
    except Exception:  # a backbone of one's own may do what meta tensors cannot
        if isinstance(network.backbone, TimmBackbone):
            raise
        return
    learning = [p for p in network.parameters() if p.requires_grad]
    for parameter, gradient in zip(learning, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def gradients_on_paper(
    network: Segmenter | ImageClassifier, shape: Sequence[int]
) -> Sequence[Tensor | None]:
    """Of the parameters that learn the gradients, without data; None where no output needs one."""
    hollow = deepcopy(network).to("meta").train()
    with torch.enable_grad():
        output = hollow(torch.empty(2, *shape, device="meta"))
        total = sum(logits.sum() for logits in output if logits is not None)
        learning = [p for p in hollow.parameters() if p.requires_grad]
        return torch.autograd.grad(total, learning, allow_unused=True)


def check_arch(config: Config) -> None:
    """Check that `TRAIN.arch` has a head.

    Raises:
        ConfigError: it does not.
    """
    arch, known = config.TRAIN.arch, (*HEADS, CLASSIFIER)
    if arch not in known:
        likely = nearest(arch, known)
        raise ConfigError(
            f"{config.source}: TRAIN.arch must be one of {', '.join(known)}, not {arch!r}"
            + (f"; did you mean {likely}?" if likely else "")
        )


def check_segments(config: Config) -> None:
    """Check that the config describes a segmentation network.

    Raises:
        ConfigError: it classifies whole images.
    """
    if config.classifies:
        raise ConfigError(
            f"{config.source}: TRAIN.arch {CLASSIFIER} names the class of a whole image; this "
            f"needs a segmentation network: {', '.join(HEADS)}"
        )


def norm_layer_of(train: TrainSection) -> NormLayer:
    return nn.BatchNorm2d if train.norm == "batch" else group_norm


def any_backbone(config: Config) -> nn.Module:
    """`TRAIN.backbone`, from this package or timm.

    Raises:
        ValueError: a backbone that is not known, or an option that it does not have.
    """
    train = config.TRAIN
    if train.backbone.startswith("timm/"):
        return timm_backbone(config)
    return build_backbone(train, in_channels=config.DATA.in_channels)


def build_backbone(train: TrainSection, *, in_channels: int = 3) -> nn.Module:
    """`TRAIN.backbone` with the dilation, multi-grid and strip pooling that `TRAIN` asks for.

    Raises:
        ValueError: a backbone that is not known, or an option that it does not have.
    """
    common = {
        "in_channels": in_channels,
        "width": train.width,
        "output_stride": train.output_stride,
        "dilate_first_block": train.dilate_first_block,
        "multi_grid": multi_grid_of(train),
        "strip_pooling": strip_pooling_of(train),
        "strip_module": strip_module_of(train),
        "attention": train.attention,
        "norm_layer": norm_layer_of(train),
        "activation_checkpointing": train.activation_checkpointing,
    }
    known = own_backbones(train.stem)
    if train.backbone not in known:
        raise ValueError(
            f"backbone {train.backbone!r} is not known; available: {', '.join(known)}, and "
            "timm/NAME for those of timm"
        )
    if train.stem == "cifar" and train.backbone not in (f"resnet{depth}" for depth in DEPTHS):
        raise ValueError(f"stem 'cifar' goes with resnet18 and its depths, not {train.backbone}")
    return known[train.backbone](**common)


def own_backbones(stem: str = "auto") -> dict[str, Callable[..., nn.Module]]:
    """{name: constructor} of the backbones that are not timm's."""
    known: dict[str, Callable[..., nn.Module]] = {}
    for depth in DEPTHS:
        known[f"resnet{depth}"] = partial(ResNet, depth, stem=stem)
        known[f"resnet{depth}s"] = partial(ResNet, depth, stem="deep")
        known[f"resnet{depth}d"] = partial(
            ResNet, depth, stem="deep", stem_width=32, average_down=True
        )
        known[f"pyconvresnet{depth}"] = partial(PyConvResNet, depth)
        known[f"pyconvhgresnet{depth}"] = partial(PyConvResNet, depth, high_groups=True)
    return known


def timm_backbone(config: Config) -> nn.Module:
    """A timm network as it is: without strip pooling modules, multi-grid or other norms."""
    train, test = config.TRAIN, config.TEST
    if train.attention != "none":
        raise ValueError(f"backbone {train.backbone} takes no attention; leave TRAIN.attention out")
    if train.width != 1:
        raise ValueError(f"backbone {train.backbone} has timm's width; TRAIN.width must be 1")
    if train.norm != "batch":
        raise ValueError(f"backbone {train.backbone} keeps timm's norms; TRAIN.norm must be batch")
    return TimmBackbone(
        train.backbone.removeprefix("timm/"),
        in_channels=config.DATA.in_channels,
        output_stride=train.output_stride,
        drop_path=train.drop_path,
        sizes=((train.train_h, train.train_w), (test.test_h, test.test_w)),
    )


def multi_grid_of(train: TrainSection) -> Sequence[int] | None:
    multi_grid = train.multi_grid
    if multi_grid is None:
        multi_grid = train.arch == "spnet"
    if isinstance(multi_grid, bool):
        return MULTI_GRID if multi_grid else None
    return multi_grid


def strip_pooling_of(train: TrainSection) -> Sequence[str | Sequence[int]]:
    with_strips = train.arch == "spnet" and train.spm_on
    return train.spm_blocks if with_strips else ["none"] * 4


def strip_module_of(train: TrainSection) -> Callable[..., nn.Module]:
    """What stands in the backbone's blocks that carry a strip pooling module."""
    if train.spm_control:
        return PointwiseControl
    return partial(StripPoolingModule, pooling=train.strip_pooling)


def psanet_mask_size(train: TrainSection) -> tuple[int, int]:
    """As given, or what the training crop needs: all of the map, twice over unless compact.

    Compact masks have the map's size whatever is given, as in semseg.
    """
    if train.mask_h is not None and train.mask_w is not None and not train.compact:
        return train.mask_h, train.mask_w
    shrunk = [
        ((side - 1) // train.output_stride) // train.shrink_factor + 1
        for side in (train.train_h, train.train_w)
    ]
    height, width = shrunk if train.compact else [2 * side - 1 for side in shrunk]
    return height, width
