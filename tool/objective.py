"""What training minimizes, and with which optimizer, as a config says."""

import torch
from torch import Tensor, nn

from stripseg.config.classification import IGNORED
from stripseg.config.schema import Config
from stripseg.util.losses import SegmentationLoss
from stripseg.util.optimization import build_optimizer


def optimizer_of(config: Config, segmenter: nn.Module) -> torch.optim.Optimizer:
    train = config.TRAIN
    return build_optimizer(
        segmenter,
        segmenter.new_layers(),
        base_rate=train.base_lr,
        new_layer_factor=train.head_lr_factor,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        name=train.optimizer,
    )


def loss_of(config: Config, class_weights: Tensor | None = None) -> SegmentationLoss:
    train = config.TRAIN
    return SegmentationLoss(
        ignore_label=ignored(config),
        auxiliary_weight=train.aux_weight,
        class_weights=class_weights,
        ohem_threshold=train.ohem_threshold if train.loss == "ohem" else None,
        ohem_min_kept=train.ohem_min_kept,
        label_smoothing=train.label_smoothing,
    )


def ignored(config: Config) -> int:
    """The label that counts nowhere."""
    return IGNORED if config.classifies else config.TRAIN.ignore_label
