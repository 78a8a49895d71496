"""A decoder for thin and small things: an early stage beside the head's features.

Chen et al.: "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation"
(DeepLabv3+), ECCV 2018, Sec. 3.1 and Fig. 2.
"""

import torch
from torch import Tensor, nn

from .layers import NormLayer, conv_norm, resize

EARLY_CHANNELS, CHANNELS = 48, 256  # the paper's Tables 1 and 2


class Decoder(nn.Module):
    """Head's features (N, C, h, w), early stage (N, E, H, W) -> logits (N, K, H, W).

    A 1x1 convolution takes the early stage to 48 channels (E if it has fewer), so that it does not
    outweigh the resized features beside it; two 3x3 convolutions of 256 channels (C if there are
    fewer) and the classifier follow.
    """

    def __init__(
        self,
        channels: int,
        early_channels: int,
        classes: int,
        *,
        dropout: float = 0.1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        reduced, inner = min(EARLY_CHANNELS, early_channels), min(CHANNELS, channels)
        self.reduce = conv_norm(early_channels, reduced, 1, norm_layer)
        self.fuse = nn.Sequential(
            conv_norm(channels + reduced, inner, 3, norm_layer),
            conv_norm(inner, inner, 3, norm_layer),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, classes, 1)

    def forward(self, features: Tensor, early: Tensor, *, align_corners: bool = True) -> Tensor:
        enlarged = resize(features, early.shape[-2:], align_corners=align_corners)
        both = torch.cat([enlarged, self.reduce(early)], dim=1)
        return self.classifier(self.dropout(self.fuse(both)))


def take_off_classifier(head: nn.Module) -> int:
    """Leave out the classifier of `head`, with its dropout: it then returns features.

    Returns:
        Their channels.
    Raises:
        ValueError: the head has no convolution `classifier`.
    """
    classifier = getattr(head, "classifier", None)
    if not isinstance(classifier, nn.Conv2d):
        raise ValueError(
            f"decoder needs a head whose last layer is a convolution `classifier`, and "
            f"{type(head).__name__} has none; leave TRAIN.decoder out"
        )
    head.classifier = head.dropout = nn.Identity()
    return classifier.in_channels
