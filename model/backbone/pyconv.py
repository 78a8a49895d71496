"""Pyramidal convolution and the residual networks made of it.

Duta, Liu, Zhu, Shao: "Pyramidal Convolution: Rethinking Convolutional Neural Networks for Visual
Recognition", arXiv 2006.11538.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..layers import NormLayer
from ..strip_pooling import StripPoolingModule
from .resnet import ResNet, last_strides

KERNELS = (3, 5, 7, 9)
SPLITS = {1: (1,), 2: (2, 2), 3: (4, 4, 2), 4: (4, 4, 4, 4)}  # level i has out_channels / split
GROUPS = ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1,))  # of each stage's levels (Table 1)
HIGH_GROUPS = ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32,))  # PyConvHGResNet


class PyramidalConvolution(nn.Module):
    """PyConv (Fig. 1b): parallel convolutions of growing kernel and group count, concatenated.

    (N, C, H, W) -> (N, out_channels, H / stride, W / stride). Level i has a kernel of 3 + 2 i and
    `groups[i]` groups, fewer where they do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        splits = SPLITS[len(groups)]
        widths = [out_channels // split for split in splits]
        widths[0] += out_channels - sum(widths)  # what does not divide goes to the smallest kernel
        self.levels = nn.ModuleList(
            nn.Conv2d(
                in_channels,
                width,
                kernel,
                stride,
                padding=kernel // 2 * dilation,
                dilation=dilation,
                groups=math.gcd(group, in_channels, width),
                bias=False,
            )
            for kernel, group, width in zip(KERNELS, groups, widths, strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([level(x) for level in self.levels], dim=1)


class PyConvResNet(ResNet):
    """ResNet whose spatial convolutions are pyramidal (Sec. 4.1): the four stage features.

    The 7x7 stem has no max-pool, the first stage strides in its place. A strided stage's shortcut
    is a 3x3 max-pool and a 1x1 projection. Depths 18 and 34 have blocks of a PyConv and a 1x1.

    Args:
        high_groups: PyConvHGResNet, which trades groups for twice the inner width.
        others: as for `ResNet`.
    Raises:
        ValueError: as `ResNet`; or depth 18 or 34 with `high_groups`.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        in_channels: int = 3,
        high_groups: bool = False,
        width: float = 1.0,
        output_stride: int = 8,
        dilate_first_block: bool = True,
        multi_grid: Sequence[int] | None = None,
        strip_pooling: Sequence[str | Sequence[int]] = ("none", "none", "none", "none"),
        strip_module: Callable[..., nn.Module] = StripPoolingModule,
        attention: str = "none",
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_checkpointing: bool = False,
    ) -> None:
        if high_groups and depth < 50:
            raise ValueError(f"PyConvHGResNet has depths 50, 101 and 152, not {depth}")
        self.high_groups = high_groups
        super().__init__(
            depth,
            in_channels=in_channels,
            stem="classic",
            width=width,
            output_stride=output_stride,
            dilate_first_block=dilate_first_block,
            multi_grid=multi_grid,
            strip_pooling=strip_pooling,
            strip_module=strip_module,
            attention=attention,
            norm_layer=norm_layer,
            activation_checkpointing=activation_checkpointing,
        )

    def build_stem(self, in_channels: int, stem: str, width: int) -> nn.Sequential:
        return super().build_stem(in_channels, stem, width)[:-1]

    def stage_strides(self) -> tuple[int, int, int, int]:
        return 2, 2, *last_strides(self.output_stride)

    def width(self, stage: int) -> int:
        return super().width(stage) * (2 if self.high_groups else 1)

    def spatial_convolution(
        self, stage: int, in_channels: int, out_channels: int, *, stride: int, dilation: int
    ) -> nn.Module:
        groups = (HIGH_GROUPS if self.high_groups else GROUPS)[stage]
        pyramid = PyramidalConvolution(
            in_channels, out_channels, groups, stride=stride, dilation=dilation
        )
        return pyramid if len(groups) > 1 else pyramid.levels[0]

    def second_convolution(self, channels: int, *, dilation: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 1, bias=False)

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if in_channels == out_channels:
            return nn.Identity() if stride == 1 else nn.Sequential(max_pool(stride))
        return nn.Sequential(max_pool(stride), *self._projection(in_channels, out_channels))


def max_pool(stride: int) -> nn.MaxPool2d:
    """3x3; at stride 1, where dilation has replaced the stride, it is still there."""
    return nn.MaxPool2d(3, stride, padding=1)
