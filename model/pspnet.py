"""The PSPNet head: pyramid pooling (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import NormLayer, conv_norm, grid_average_pool, resize


class PyramidPoolingModule(nn.Module):
    """Fig. 3c: the map pooled to grids of several sizes, each resized back and concatenated.

    (N, C, H, W) -> (N, 2 C, H, W), or (N, C (1 + bins), H, W) without reduction.

    Args:
        bins: sides of the grids.
        pooling: "average" or "max".
        reduction: a 1x1 convolution takes each grid to C / number of grids channels.
    Raises:
        ValueError: `pooling` is something else.
    """

    def __init__(
        self,
        channels: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        *,
        pooling: str = "average",
        reduction: bool = True,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if pooling not in ("average", "max"):
            raise ValueError(f"pooling must be 'average' or 'max', not {pooling!r}")
        self.bins = tuple(bins)
        self.pool = grid_average_pool if pooling == "average" else F.adaptive_max_pool2d
        reduced = channels // len(self.bins)
        self.reduce = nn.ModuleList(
            conv_norm(channels, reduced, 1, norm_layer) if reduction else nn.Identity()
            for _ in self.bins
        )
        self.out_channels = channels + len(self.bins) * (reduced if reduction else channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [x]
        for size, reduce in zip(self.bins, self.reduce, strict=True):
            levels.append(resize(reduce(self.pool(x, size)), x.shape[-2:]))
        return torch.cat(levels, dim=1)


class PSPNetHead(nn.Module):
    """Pyramid pooling and classifier on the last stage: features -> (N, K, h, w).

    `pyramid_pooling=False` leaves the pyramid out: the dilated FCN that the paper starts from.
    The width before the classifier is a quarter of the stage's (512 on ResNet-50).
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        pyramid_pooling: bool = True,
        bins: Sequence[int] = (1, 2, 3, 6),
        pooling: str = "average",
        reduction: bool = True,
        dropout: float = 0.1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        width, inner = channels[-1], channels[-1] // 4
        self.pyramid: nn.Module = nn.Identity()
        if pyramid_pooling:
            self.pyramid = PyramidPoolingModule(
                width, bins, pooling=pooling, reduction=reduction, norm_layer=norm_layer
            )
            width = self.pyramid.out_channels
        self.conv = conv_norm(width, inner, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.conv(self.pyramid(features[-1]))))
