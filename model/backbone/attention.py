"""Attention modules that keep a map's shape, (N,C,H,W) -> the same, and the choice among them.

Strip pooling, the module they are compared with, is in strip_pooling.py.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..layers import NormLayer
from ..strip_pooling import StripPoolingModule


class SqueezeAndExcitation(nn.Module):
    """SE (Hu et al., CVPR 2018): x * sigmoid(W2 relu(W1 mean(x))), eq. 2 to 4.

    `reduction` divides the channels between the two linear layers, which have biases.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, max(1, channels // reduction), 1)
        self.expand = nn.Conv2d(max(1, channels // reduction), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.expand(self.reduce(means).relu()).sigmoid()


class EfficientChannelAttention(nn.Module):
    """ECA (Wang et al., CVPR 2020): channels are weighted by themselves and their neighbours.

    Channel means -> 1-D convolution of `kernel_size` along the channels, no bias -> sigmoid.
    """

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3)).unsqueeze(1)  # (N, 1, C)
        return x * self.conv(means).sigmoid().transpose(1, 2).unsqueeze(3)


class GatedChannelTransformation(nn.Module):
    """GCT (Yang et al., CVPR 2020): channels compete; the identity until gamma or beta move.

    Args:
        norm: "l2", or "l1", whose `after_relu` says that the input has no negative values.
        epsilon: keeps roots and quotients finite.
    Raises:
        ValueError: another norm.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm: str = "l2",
        epsilon: float = 1e-5,
        after_relu: bool = False,
    ) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm must be 'l1' or 'l2', not {norm!r}")
        self.norm, self.epsilon, self.after_relu = norm, epsilon, after_relu
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "l2":
            embedding = (x.square().sum(dim=(2, 3), keepdim=True) + self.epsilon).sqrt()
            embedding = embedding * self.alpha
            mean = (embedding.square().mean(dim=1, keepdim=True) + self.epsilon).sqrt()
        else:
            size = x if self.after_relu else x.abs()
            embedding = size.sum(dim=(2, 3), keepdim=True) * self.alpha
            mean = embedding.abs().mean(dim=1, keepdim=True) + self.epsilon
        return x * (1 + torch.tanh(embedding * (self.gamma / mean) + self.beta))


def gate_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the momentum that the authors of CBAM and of triplet attention give it."""
    return nn.BatchNorm2d(channels, momentum=0.01)


class AttentionGate(nn.Module):
    """Z-pool (max and mean over dim 1) -> 7x7 convolution -> norm -> sigmoid weights."""

    def __init__(self, kernel_size: int = 7, *, norm_layer: NormLayer = gate_norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = norm_layer(1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)  # (N, 2, H, W)
        return x * self.bn(self.conv(pooled)).sigmoid()


class ConvolutionalBlockAttention(nn.Module):
    """CBAM (Woo et al., ECCV 2018): which channels matter, then which places, eq. 1 to 3.

    Channels: sigmoid(MLP(mean) + MLP(max)), the MLP shared, without biases in the authors' text.
    Places: sigmoid(7x7 convolution of the mean and maximum over the channels), with a norm as in
    the authors' program.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, norm_layer: NormLayer = gate_norm
    ) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.perceptron = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1, bias=False),
        )
        self.places = AttentionGate(norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        means = self.perceptron(x.mean(dim=(2, 3), keepdim=True))  # (N, C, 1, 1)
        maxima = self.perceptron(x.amax(dim=(2, 3), keepdim=True))
        return self.places(x * (means + maxima).sigmoid())


class TripletAttention(nn.Module):
    """Misra et al., WACV 2021, Fig. 3: the mean of gates over (H, C), (W, C) and (H, W).

    `spatial=False` leaves the third branch out.
    """

    def __init__(self, *, spatial: bool = True, norm_layer: NormLayer = gate_norm) -> None:
        super().__init__()
        self.channel_width = AttentionGate(norm_layer=norm_layer)
        self.channel_height = AttentionGate(norm_layer=norm_layer)
        self.height_width = AttentionGate(norm_layer=norm_layer) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.channel_width(x.transpose(1, 2)).transpose(1, 2),  # pools over the height
            self.channel_height(x.transpose(1, 3)).transpose(1, 3),  # pools over the width
        ]
        if self.height_width is not None:
            branches.append(self.height_width(x))
        return sum(branches) / len(branches)


def eca_kernel_size(channels: int) -> int:
    """ECA, eq. 12: k = |log2(C) / 2 + 1 / 2|, cut to a whole number and made odd by adding 1.

    >>> [eca_kernel_size(channels) for channels in (64, 128, 256, 512)]
    [3, 5, 5, 5]
    """
    kernel_size = int(abs(math.log2(channels) / 2 + 0.5))
    return kernel_size + 1 - kernel_size % 2


def build_attention(name: str, channels: int, norm_layer: NormLayer) -> nn.Module:
    """The module that `TRAIN.attention` names unless that is none, for (N, `channels`, H, W).

    Raises:
        ValueError: no attention has this name.
    """
    of_gate = gate_norm if norm_layer is nn.BatchNorm2d else norm_layer
    build: dict[str, Callable[[], nn.Module]] = {
        "strip_pool": lambda: StripPoolingModule(channels, norm_layer=norm_layer),
        "triplet": lambda: TripletAttention(norm_layer=of_gate),
        "eca": lambda: EfficientChannelAttention(eca_kernel_size(channels)),
        "gct": lambda: GatedChannelTransformation(channels),
        "gct_l1": lambda: GatedChannelTransformation(channels, norm="l1"),
        "se": lambda: SqueezeAndExcitation(channels),
        "cbam": lambda: ConvolutionalBlockAttention(channels, norm_layer=of_gate),
    }
    if name not in build:
        raise ValueError(f"attention must be one of none, {', '.join(build)}, not {name!r}")
    return build[name]()
