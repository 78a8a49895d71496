"""The PyConvSegNet head (Duta et al., arXiv 2006.11538, Sec. 4.2, Fig. 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbone.pyconv import PyramidalConvolution
from .layers import NormLayer, conv_norm, grid_average_pool, resize

GROUPS = (1, 4, 8, 16)


def pyramidal_block(in_channels: int, norm_layer: NormLayer) -> nn.Sequential:
    """1x1 to a quarter of the channels, PyConv of four levels, 1x1; each with norm and ReLU."""
    width = in_channels // 4
    return nn.Sequential(
        conv_norm(in_channels, width, 1, norm_layer),
        nn.Sequential(
            PyramidalConvolution(width, width, GROUPS), norm_layer(width), nn.ReLU(inplace=True)
        ),
        conv_norm(width, width, 1, norm_layer),
    )


class PyConvSegNetHead(nn.Module):
    """Local and global pyramidal block, merged: last stage (N, C, h, w) -> (N, K, h, w).

    The global block works on the map averaged to `global_bins` x `global_bins`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        global_bins: int = 9,
        dropout: float = 0.1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.global_bins = global_bins
        self.local_context = pyramidal_block(channels[-1], norm_layer)
        self.global_context = pyramidal_block(channels[-1], norm_layer)
        inner = channels[-1] // 8
        self.merge = conv_norm(2 * (channels[-1] // 4), inner, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        pooled = self.global_context(grid_average_pool(x, self.global_bins))
        context = [self.local_context(x), resize(pooled, x.shape[-2:])]
        return self.classifier(self.dropout(self.merge(torch.cat(context, dim=1))))
