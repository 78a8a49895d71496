"""Bilinear resizing as products with small matrices, for parts of a picture at a time."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


class Resampling:
    """Bilinear resizing of one side of a picture, from `source` to `target` pixels.

    Args:
        aligned: with aligned corners, as the networks of the family resize their logits; else
            between pixel centres without smoothing, as OpenCV's.
    """

    def __init__(self, source: int, target: int, *, aligned: bool) -> None:
        index = torch.arange(target, dtype=torch.float64)
        if aligned:
            position = index * ((source - 1) / max(target - 1, 1))
        else:
            position = ((index + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
        low = position.floor().long().clamp(max=source - 1)
        high = (low + 1).clamp(max=source - 1)
        self.low: list[int] = low.tolist()
        self.high: list[int] = high.tolist()
        share = (position - low).float()  # of the pixel `high`
        self._pairs = torch.stack([low, high], dim=1)
        self._weights = torch.stack([1 - share, share], dim=1)
        self._matrices: dict[tuple[int, int, torch.device], Tensor] = {}
        self._bags: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def span(self, first: int, end: int) -> slice:
        """The source pixels that target pixels first .. end - 1 are mixed from."""
        return slice(self.low[first], self.high[end - 1] + 1)

    def matrix(self, first: int, end: int, device: torch.device) -> Tensor:
        """(end - first, m): the shares of the m source pixels of `span` in those target pixels."""
        key = (first, end, device)
        if key not in self._matrices:
            span, index = self.span(first, end), torch.arange(end - first)
            matrix = torch.zeros(end - first, span.stop - span.start)
            for source, weight in zip((self._pairs - span.start).T, self._weights.T, strict=True):
                matrix[index, source[first:end]] += weight[first:end]
            self._matrices[key] = matrix.to(device)
        return self._matrices[key]

    def mix_columns(self, x: Tensor, weights: Tensor) -> Tensor:
        """(n, source, K), times `weights` (source,) -> (n, target, K).

        Each target column is the weighted sum of a bag of two: on CPUs that is six times as fast as
        interpolation, which works on two sides at once.
        """
        count, source, channels = x.shape
        pairs, shares = self.bags(x.device)
        shares = shares * weights[pairs]
        starts = torch.arange(count, device=x.device)[:, None, None] * source
        mixed = F.embedding_bag(
            (pairs + starts).view(-1, 2),
            x.reshape(-1, channels),
            per_sample_weights=shares.repeat(count, 1),
            mode="sum",
        )
        return mixed.view(count, -1, channels)

    def bags(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(target, 2) each: the two source pixels of a target pixel, and their shares in it."""
        if device not in self._bags:
            self._bags[device] = self._pairs.to(device), self._weights.to(device)
        return self._bags[device]


@lru_cache(64)
def resampling(source: int, target: int, *, aligned: bool) -> Resampling:
    """One of the resamplings used last; their matrices are made once."""
    return Resampling(source, target, aligned=aligned)


def half_pixel_resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear between pixel centres, without smoothing, as OpenCV's: (N,C,h,w) -> (N,C,*size)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
