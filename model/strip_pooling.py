"""The two modules of SPNet: strip pooling module (SPM) and mixed pooling module (MPM).

Hou, Zhang, Cheng, Feng: "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing", CVPR 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import NormLayer, conv_norm, grid_average_pool, resize

SHORT_RANGE = ("reduce_short", "full", "pooled", "fuse_short")  # parts of the branches
LONG_RANGE = ("reduce_long", "columns", "rows", "fuse_long")


def pool_rows(x: Tensor, pooling: str = "average") -> Tensor:
    """y^h (eq. 2), the mean of every row, or its "max": (N, C, H, W) -> (N, C, H, 1)."""
    return pool_strips(x, 3, pooling)


def pool_columns(x: Tensor, pooling: str = "average") -> Tensor:
    """y^v (eq. 3), the mean of every column, or its "max": (N, C, H, W) -> (N, C, 1, W)."""
    return pool_strips(x, 2, pooling)


def pool_strips(x: Tensor, dim: int, pooling: str) -> Tensor:
    """`x.mean(dim, keepdim=True)`, or `amax` for "max", for dim 2 or 3.

    Of channels-last maps on the CPU, `mean` takes twenty times as long as average pooling with the
    strip as kernel; of planes it is the faster one.
    """
    if pooling == "max":
        return x.amax(dim, keepdim=True)
    if not (x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)):
        return x.mean(dim, keepdim=True)
    height, width = x.shape[2:]
    return F.avg_pool2d(x, (height, 1) if dim == 2 else (1, width))


class StripConvolution(nn.Conv2d):
    """1-D convolution along a pooled strip: (N, C, L, 1) or (N, C, 1, L) -> the same shape.

    Computed as one matrix product over the neighbours of every element. It equals the 3x1 (1x3)
    convolution whose weights it holds, which is slower on CPUs in bfloat16, where a map one pixel
    wide suits it badly (`python -m benchmark.strip_convolution`).
    """

    def __init__(self, channels: int, *, along: str, kernel_size: int = 3) -> None:
        shape = (kernel_size, 1) if along == "height" else (1, kernel_size)
        super().__init__(channels, channels, shape, padding="same", bias=False)

    def forward(self, strip: Tensor) -> Tensor:
        if strip.shape[1] != self.in_channels:  # a matrix product would only say that it is odd
            raise ValueError(
                f"a map of {strip.shape[1]} channels is given to a module of {self.in_channels}"
            )
        elements = strip.flatten(2).transpose(1, 2)  # (N, L, C)
        length, reach = elements.shape[1], max(self.kernel_size) // 2
        padded = F.pad(elements, (0, 0, reach, reach))
        neighbours = [padded[:, i : i + length] for i in range(2 * reach + 1)]
        weight = self.weight.flatten(2).transpose(1, 2).flatten(1)  # (C, 3 C)
        out = F.linear(torch.cat(neighbours, dim=2), weight, self.bias)  # (N, L, C)
        # strides of a true channels-last map: with others, PyTorch's batch norm on CPU gives
        # wrong gradients for a batch of one (reshape after transpose would make such strides)
        return out.unflatten(1, strip.shape[2:]).permute(0, 3, 1, 2)


def strip_conv_norm(channels: int, along: str, norm_layer: NormLayer) -> nn.Sequential:
    return nn.Sequential(StripConvolution(channels, along=along), norm_layer(channels))


class StripPoolingModule(nn.Module):
    """SPM (Sec. 3.1, Fig. 2): every position is scaled by attention from its row and its column.

    (N, C, H, W) -> (N, C, H, W). 7 C^2 + 5 C parameters with batch norm. `pooling` is "average", as
    in the paper, or "max". `SPBlock` in the authors' code.
    """

    def __init__(
        self, channels: int, *, pooling: str = "average", norm_layer: NormLayer = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.rows = strip_conv_norm(channels, "height", norm_layer)
        self.columns = strip_conv_norm(channels, "width", norm_layer)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def attention(self, x: Tensor) -> Tensor:
        """The weights in (0, 1), shape (N, C, H, W), that `forward` multiplies by."""
        rows = self.rows(pool_rows(x, self.pooling))  # (N, C, H, 1)
        columns = self.columns(pool_columns(x, self.pooling))  # (N, C, 1, W)
        return torch.sigmoid(self.fuse(F.relu(rows + columns)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class PointwiseControl(nn.Module):
    """For ablations: what an SPM is without its strips, with about as many parameters.

    (N, C, H, W) -> (N, C, H, W), every position scaled by attention from itself alone, through 1x1
    convolutions of C, 3 C, C and C channels: 7 C^2 + 9 C parameters with batch norm.
    """

    def __init__(self, channels: int, *, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        self.widen = conv_norm(channels, 3 * channels, 1, norm_layer)
        self.narrow = conv_norm(3 * channels, channels, 1, norm_layer)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fuse(self.narrow(self.widen(x))))


class MixedPoolingModule(nn.Module):
    """MPM (Sec. 3.2, Fig. 3): short-range pyramid pooling beside long-range strip pooling.

    (N, C, H, W) -> (N, C, H, W), C a multiple of 4. `StripPooling` in the authors' code.

    Args:
        pool_sizes: the grids of the pyramid.
        branches: "both" as in the paper, or "short" or "long" range alone.
        pooling: of the strips, "average" as in the paper, or "max".
    """

    def __init__(
        self,
        channels: int,
        pool_sizes: Sequence[int] = (20, 12),
        *,
        branches: str = "both",
        pooling: str = "average",
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels must be a multiple of 4, not {channels}")
        if branches not in ("both", "short", "long"):
            raise ValueError(f"branches must be both, short or long, not {branches!r}")
        inner = channels // 4
        self.pool_sizes = tuple(pool_sizes)
        self.branches = ("short", "long") if branches == "both" else (branches,)
        self.pooling = pooling
        self.reduce_short = conv_norm(channels, inner, 1, norm_layer)
        self.reduce_long = conv_norm(channels, inner, 1, norm_layer)
        self.full = conv_norm(inner, inner, 3, norm_layer, relu=False)
        self.pooled = nn.ModuleList(
            conv_norm(inner, inner, 3, norm_layer, relu=False) for _ in self.pool_sizes
        )
        self.columns = strip_conv_norm(inner, "width", norm_layer)
        self.rows = strip_conv_norm(inner, "height", norm_layer)
        self.fuse_short = conv_norm(inner, inner, 3, norm_layer)
        self.fuse_long = conv_norm(inner, inner, 3, norm_layer)
        for unused in {"both": (), "short": LONG_RANGE, "long": SHORT_RANGE}[branches]:
            delattr(self, unused)
        self.expand = conv_norm(len(self.branches) * inner, channels, 1, norm_layer, relu=False)
        # start near the identity, as residual branches do (Goyal et al., 2017, Sec. 5.1): from
        # scratch a full-strength branch slows the first epochs. Not zero: all need a gradient.
        norm = self.expand[1]
        assert isinstance(norm.weight, Tensor)
        nn.init.constant_(norm.weight, 0.1)

    def short_range(self, x: Tensor) -> Tensor:
        """Fig. 3b, left: a 3x3 convolution at full size and on each pooled grid."""
        x = self.reduce_short(x)
        total = self.full(x)
        for size, convolution in zip(self.pool_sizes, self.pooled, strict=True):
            total = total + resize(convolution(grid_average_pool(x, size)), x.shape[-2:])
        return self.fuse_short(F.relu(total))

    def long_range(self, x: Tensor) -> Tensor:
        """Fig. 3b, right: means over whole columns and whole rows, expanded by broadcasting."""
        x = self.reduce_long(x)
        columns = self.columns(pool_columns(x, self.pooling))  # (N, C/4, 1, W), along the width
        rows = self.rows(pool_rows(x, self.pooling))  # (N, C/4, H, 1)
        return self.fuse_long(F.relu(columns + rows))

    def forward(self, x: Tensor) -> Tensor:
        """ReLU(x + expand(concat(short range, long range)))."""
        computed = {"short": self.short_range, "long": self.long_range}
        mixed = self.expand(torch.cat([computed[branch](x) for branch in self.branches], dim=1))
        return F.relu(x + mixed)
