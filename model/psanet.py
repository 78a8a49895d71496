"""The PSANet head: point-wise spatial attention (Zhao et al., ECCV 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import NormLayer, conv_norm, resize


def collect_attention(mask: Tensor, mask_height: int, mask_width: int) -> Tensor:
    """Re-index over-complete masks: what every position takes from every other (Sec. 3.3).

    (N, mask_height * mask_width, h, w) -> (N, h w sources, h w targets). The mask of a target is
    centred on it; the entry for a source is the one at their offset, and zero outside the mask.
    One gather; beside the result of N (h w)^2 entries it holds (h w)^2 indices.
    """
    height, width = mask.shape[-2:]
    rows, inside_rows = relative_index(height, mask_height, mask.device)
    columns, inside_columns = relative_index(width, mask_width, mask.device)
    index = rows[:, None, :, None] * mask_width + columns[None, :, None, :]
    inside = inside_rows[:, None, :, None] & inside_columns[None, :, None, :]
    positions = height * width
    index, inside = (x.reshape(positions, positions) for x in (index, inside))
    gathered = mask.flatten(2).gather(1, index.expand(mask.shape[0], -1, -1))
    return gathered * inside


def relative_index(length: int, mask_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index into a mask centred on the target and whether it is inside: (sources, targets) each."""
    position = torch.arange(length, device=device)
    index = position[:, None] - position[None, :] + (mask_length - 1) // 2
    inside = (index >= 0) & (index < mask_length)
    return index.clamp(0, mask_length - 1), inside


class PointwiseSpatialAttention(nn.Module):
    """One branch of Fig. 3: predicts a mask for every position and aggregates the map with it.

    (N, C, h, w) -> (N, C / 4, h', w'), where h' = (h - 1) // shrink_factor + 1.

    Args:
        direction: "collect" (a position's mask weighs what it takes from the others) or
            "distribute" (what it gives to them).
        mask_size: (height, width) of the mask, odd; twice the shrunk map less one covers all. With
            `compact` exactly the shrunk map, whose positions it lists in order.
        normalization_factor: divides the result; None is the size of the mask.
        softmax: over the sources of every position.
    """

    def __init__(
        self,
        channels: int,
        direction: str,
        *,
        mask_size: tuple[int, int],
        compact: bool = False,
        shrink_factor: int = 2,
        normalization_factor: float | None = 1.0,
        softmax: bool = True,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if direction not in ("collect", "distribute"):
            raise ValueError(f"direction must be 'collect' or 'distribute', not {direction!r}")
        inner = channels // 4
        self.direction = direction
        self.mask_size = tuple(mask_size)
        self.compact = compact
        self.shrink_factor = shrink_factor
        entries = mask_size[0] * mask_size[1]
        self.normalization_factor = normalization_factor or entries
        self.softmax = softmax
        self.reduce = conv_norm(channels, inner, 1, norm_layer)
        self.predict = nn.Sequential(
            *conv_norm(inner, inner, 1, norm_layer), nn.Conv2d(inner, entries, 1, bias=False)
        )

    def attention(self, x: Tensor) -> Tensor:
        """(N, C / 4, h', w') -> (N, h' w' sources, h' w' targets)."""
        mask = self.predict(x)
        if self.compact:
            if tuple(x.shape[-2:]) != self.mask_size:
                raise ValueError(
                    f"a compact mask of {self.mask_size} positions meets a map of "
                    f"{tuple(x.shape[-2:])}; compact PSANet works at its training size only"
                )
            attention = mask.flatten(2)
        else:
            attention = collect_attention(mask, *self.mask_size)
        if self.direction == "distribute":
            attention = attention.transpose(1, 2)
        return attention.softmax(dim=1) if self.softmax else attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        height, width = ((side - 1) // self.shrink_factor + 1 for side in x.shape[-2:])
        x = resize(x, (height, width))
        gathered = x.flatten(2) @ self.attention(x) / self.normalization_factor
        return gathered.unflatten(2, (height, width))


class PSANetHead(nn.Module):
    """Attention beside the last stage's map, then classifier: features -> (N, K, h, w).

    Args:
        directions: of the branches, side by side ("bi-direction" has both).
        mask_size, compact, shrink_factor, normalization_factor, softmax: of
            `PointwiseSpatialAttention`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        directions: Sequence[str] = ("collect", "distribute"),
        mask_size: tuple[int, int],
        compact: bool = False,
        shrink_factor: int = 2,
        normalization_factor: float | None = 1.0,
        softmax: bool = True,
        dropout: float = 0.1,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        width, inner = channels[-1], channels[-1] // 4
        self.attention = nn.ModuleList(
            PointwiseSpatialAttention(
                width,
                direction,
                mask_size=mask_size,
                compact=compact,
                shrink_factor=shrink_factor,
                normalization_factor=normalization_factor,
                softmax=softmax,
                norm_layer=norm_layer,
            )
            for direction in directions
        )
        self.project = conv_norm(inner * len(directions), width, 1, norm_layer)
        self.conv = conv_norm(2 * width, inner, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inner, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        context = torch.cat([branch(x) for branch in self.attention], dim=1)
        context = resize(self.project(context), x.shape[-2:])
        return self.classifier(self.dropout(self.conv(torch.cat([x, context], dim=1))))
