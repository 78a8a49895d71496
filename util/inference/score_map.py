"""The scores of one image at one scale: summed from windows, averaged, resized to the image.

Memory is laid out (rows, columns, classes), so that everything a pixel needs lies together: on two
CPU cores this is several times faster than class planes. Rows come into being when their first
window is due and are forgotten when the image has used them, so that an image of any height needs
only a strip of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .resampling import resampling


@dataclass(frozen=True)
class Window:
    """Where a window lies in the padded image of its score map: first row and first column."""

    scores: "ScoreMap"
    row: int
    column: int

    def pixels(self, crop: Sequence[int]) -> Tensor:
        """(C, *crop)."""
        rows = slice(self.row, self.row + crop[0])
        return self.scores.image[:, rows, self.column : self.column + crop[1]]


class ScoreMap:
    """Sums of window scores for one scaled image.

    Args:
        image: (C, h, w), scaled and normalised.
        crop: (height, width) of the windows; a smaller image is padded evenly with zeros, the mean.
        classes: K.
        stride_rate: step between windows as a share of the window.
        weight: factor of every score, such as one over the number of scales and mirrorings.
        device: where the scores are kept.
    """

    def __init__(
        self,
        image: Tensor,
        crop: tuple[int, int],
        classes: int,
        *,
        stride_rate: float,
        weight: float,
        device: torch.device,
    ) -> None:
        self.size = image.shape[-2:]
        pad_height, pad_width = (max(c - s, 0) for c, s in zip(crop, self.size, strict=True))
        self.top, self.left = pad_height // 2, pad_width // 2
        self.image = F.pad(
            image, (self.left, pad_width - self.left, self.top, pad_height - self.top)
        )
        self.crop = crop
        self.classes = classes
        self.device = device
        self.rows = window_starts(self.image.shape[1], crop[0], stride_rate)
        self.columns = window_starts(self.image.shape[2], crop[1], stride_rate)
        self.row_weights = weight / visits(self.image.shape[1], self.rows, crop[0]).to(device)
        across = 1 / visits(self.image.shape[2], self.columns, crop[1]).to(device)
        self.column_weights = across[self.left : self.left + self.size[1]]
        self.queued = 0  # rows of windows handed out
        self.first = 0  # row of the padded image that `sums` begins with
        self.sums = torch.empty(0, self.image.shape[2], classes, device=device)

    def bytes(self) -> int:
        """Memory of all rows together."""
        return 4 * self.classes * self.image.shape[1] * self.image.shape[2]

    def windows_until(self, last: int) -> list[Window]:
        """The windows not handed out yet that cover rows of the scaled image up to `last`."""
        before = self.queued
        while self.queued < len(self.rows) and self.rows[self.queued] <= last + self.top:
            self.queued += 1
        due = self.rows[before : self.queued]
        if due:
            self._extend(due[-1] + self.crop[0])
        return [Window(self, row, column) for row in due for column in self.columns]

    def _extend(self, end: int) -> None:
        """Have sums for all rows before `end`."""
        kept, shape = len(self.sums), (end - self.first, *self.sums.shape[1:])
        longer = torch.zeros(shape, device=self.device)
        longer[:kept] = self.sums
        self.sums = longer

    def add(self, row: int, column: int, scores: Tensor) -> None:
        """Add (n, w, K) scores to the rows from `row` on, in the padded image."""
        first = row - self.first
        self.sums[first : first + scores.shape[0], column : column + scores.shape[1]] += scores

    def source_rows(self, first: int, end: int, height: int) -> slice:
        """The rows of the scaled image that rows first .. end - 1 of `height` are mixed from."""
        return resampling(self.size[0], height, aligned=False).span(first, end)

    def resized(self, first: int, end: int, size: Sequence[int]) -> Tensor:
        """(end - first, W, K): the averages, resized to `size` (H, W), of the rows asked for.

        Bilinear between pixel centres without smoothing, as OpenCV's.
        """
        span = self.source_rows(first, end, size[0])
        start, stop = span.start + self.top, span.stop + self.top
        rows = self.sums[start - self.first : stop - self.first]
        rows = rows[:, self.left : self.left + self.size[1]]
        mixing = resampling(self.size[0], size[0], aligned=False).matrix(first, end, self.device)
        mixed = mixing * self.row_weights[start:stop] @ rows.reshape(len(rows), -1)
        mixed = mixed.view(end - first, self.size[1], self.classes)
        columns = resampling(self.size[1], size[1], aligned=False)
        return columns.mix_columns(mixed, self.column_weights)

    def forget(self, row: int) -> None:
        """Give back the memory of the rows of the scaled image before `row`."""
        first = min(row + self.top, self.first + len(self.sums))
        if first > self.first:
            self.sums = self.sums[first - self.first :].clone()
            self.first = first


def scaled_size(size: Sequence[int], scale: float, base_size: int) -> tuple[int, int]:
    """(height, width) with the longer side at round(scale * base_size), the other in proportion.

    Rounding is Python's, half to even, as in the semseg family.
    """
    height, width = size
    long_side = max(1, round(scale * (base_size or max(size))))
    if height > width:
        return long_side, max(1, round(long_side / height * width))
    return max(1, round(long_side / width * height)), long_side


def window_starts(side: int, crop: int, stride_rate: float) -> list[int]:
    """First pixels of the windows along one side; the last window is shifted back inside."""
    stride = math.ceil(crop * stride_rate)
    count = math.ceil((side - crop) / stride) + 1
    return [min(index * stride, side - crop) for index in range(count)]


def visits(side: int, starts: Sequence[int], crop: int) -> Tensor:
    """(side,): how many windows cover each pixel along one side."""
    covered = torch.zeros(side)
    for start in starts:
        covered[start : start + crop] += 1
    return covered
