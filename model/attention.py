"""Attention modules that keep a map's shape: ECA, GCT and triplet attention, (N,C,H,W) -> the same.

Strip pooling, the module they are compared with, is in strip_pooling.py.
"""

import torch
from torch import Tensor, nn


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


class AttentionGate(nn.Module):
    """Z-pool (max and mean over dim 1) -> 7x7 convolution -> norm -> sigmoid weights."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)
        return x * self.bn(self.conv(pooled)).sigmoid()


class TripletAttention(nn.Module):
    """Misra et al., WACV 2021, Fig. 3: the mean of gates over (H, C), (W, C) and (H, W).

    `spatial=False` leaves the third branch out.
    """

    def __init__(self, *, spatial: bool = True) -> None:
        super().__init__()
        self.channel_width = AttentionGate()
        self.channel_height = AttentionGate()
        self.height_width = AttentionGate() if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.channel_width(x.transpose(1, 2)).transpose(1, 2),  # pools over the height
            self.channel_height(x.transpose(1, 3)).transpose(1, 3),  # pools over the width
        ]
        if self.height_width is not None:
            branches.append(self.height_width(x))
        return sum(branches) / len(branches)
