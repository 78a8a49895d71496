"""The scores of one image: summed from windows, averaged, resized to the image.

Memory is laid out (rows, columns, classes), so that everything a pixel needs lies together: on two
CPU cores this is several times faster than class planes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import upload


@dataclass(frozen=True)
class Window:
    """A window of the padded image at one scale.

    Args:
        pixels: (C, *window), what the network sees.
        scale: index of the scale.
        row, column: the window's first pixel in the padded image.
    """

    pixels: Tensor
    scale: int
    row: int
    column: int


class ScoreMap:
    """The class scores of one image, averaged over windows and scales.

    Ask for `windows`, `add` the scores of each, then read `rows`. An image whose scores do not fit
    in memory is done strip by strip, from top to bottom: each call of `windows` allocates the sums
    that its rows need and evicts those of the rows above them.

    Args:
        images: the image at each scale, (C, h, w), normalised.
        size: (H, W) of the image itself.
        window: (height, width); a smaller image is padded evenly with zeros, the mean.
        classes: K.
        stride_rate: step between windows as a share of the window.
        weight: factor of every score, such as one over the number of scales and mirrorings.
        device: where the scores are kept.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        size: tuple[int, int],
        window: tuple[int, int],
        classes: int,
        *,
        stride_rate: float,
        weight: float,
        device: torch.device,
    ) -> None:
        self.size = size
        self.nbytes = 0  # of the scores of the whole image
        self._scales = []
        for image in images:
            scale = _ScaleSums(image, size, window, classes, stride_rate, weight, device)
            self._scales.append(scale)
            self.nbytes += 4 * classes * scale.image.shape[1] * scale.image.shape[2]

    def windows(self, first: int, last: int) -> list[Window]:
        """Return the windows that rows first .. last - 1 need and no earlier call returned.

        Rows before `first` cannot be read any more.
        """
        return [
            Window(scale.pixels(row, column), index, row, column)
            for index, scale in enumerate(self._scales)
            for row in scale.prepare(first, last)
            for column in scale.columns
        ]

    def add(self, window: Window, scores: Tensor, *, first: int = 0) -> None:
        """Add the (n, w, K) scores of a window's rows from its row `first` on."""
        self._scales[window.scale].add(window.row + first, window.column, scores)

    def rows(self, first: int, last: int) -> Tensor:
        """(last - first, W, K): the scores of rows first .. last - 1 of the image."""
        total = self._scales[0].resized(first, last)
        for scale in self._scales[1:]:
            total += scale.resized(first, last)
        return total


class _ScaleSums:
    """Sums of window scores at one scale, for a range of rows; see `ScoreMap`."""

    def __init__(
        self,
        image: Tensor,
        target: tuple[int, int],
        window: tuple[int, int],
        classes: int,
        stride_rate: float,
        weight: float,
        device: torch.device,
    ) -> None:
        height, width = image.shape[-2:]
        pad_height, pad_width = max(window[0] - height, 0), max(window[1] - width, 0)
        self.top, self.left = pad_height // 2, pad_width // 2
        self.image = F.pad(
            image, (self.left, pad_width - self.left, self.top, pad_height - self.top)
        )
        self.width = width
        self.window = window
        self.classes = classes
        self.device = device
        self.row_mixing = resampling(height, target[0], aligned=False)
        self.column_mixing = resampling(width, target[1], aligned=False)
        self.window_rows = window_starts(self.image.shape[1], window[0], stride_rate)
        self.columns = window_starts(self.image.shape[2], window[1], stride_rate)
        visits_down = visits(self.image.shape[1], self.window_rows, window[0])
        visits_across = visits(self.image.shape[2], self.columns, window[1])
        self.row_weights = weight / upload(visits_down, device)
        across = 1 / upload(visits_across, device)
        self.column_weights = across[self.left : self.left + width]
        self.returned = 0  # rows of windows that `prepare` has returned
        self.start = 0  # row of the padded image that `sums` begins with
        self.sums = torch.empty(0, self.image.shape[2], classes, device=device)

    def pixels(self, row: int, column: int) -> Tensor:
        return self.image[:, row : row + self.window[0], column : column + self.window[1]]

    def prepare(self, first: int, last: int) -> list[int]:
        """First rows of the windows that rows first .. last - 1 of the target still need."""
        needed = self.row_mixing.span(first, last)
        before = self.returned
        while (
            self.returned < len(self.window_rows)
            and self.window_rows[self.returned] < needed.stop + self.top
        ):
            self.returned += 1
        due = self.window_rows[before : self.returned]
        end = self.start + len(self.sums)
        self._keep(min(needed.start + self.top, end), due[-1] + self.window[0] if due else end)
        return due

    def _keep(self, start: int, end: int) -> None:
        """Have sums for the rows start .. end - 1 of the padded image, and for no others."""
        kept = self.sums[start - self.start :]
        if len(kept) != len(self.sums) or end - start != len(kept):
            self.sums = torch.zeros(end - start, *kept.shape[1:], device=self.device)
            self.sums[: len(kept)] = kept
            self.start = start

    def add(self, row: int, column: int, scores: Tensor) -> None:
        """Add (n, w, K) scores to the rows from `row` on, in the padded image."""
        first = row - self.start
        place = self.sums[first : first + scores.shape[0], column : column + scores.shape[1]]
        place.add_(scores)  # `+=` would write the slice a second time

    def resized(self, first: int, last: int) -> Tensor:
        """(last - first, W, K): the averages, resized to the target, of the rows asked for.

        Bilinear between pixel centres without smoothing, as OpenCV's.
        """
        span = self.row_mixing.span(first, last)
        start, stop = span.start + self.top, span.stop + self.top
        rows = self.sums[start - self.start : stop - self.start]
        rows = rows[:, self.left : self.left + self.width]
        mixed = self.row_mixing.mix_rows(rows, self.row_weights[start:stop], first, last)
        return self.column_mixing.mix_columns(mixed, self.column_weights)


def scaled_size(size: Sequence[int], scale: float, base_size: int) -> tuple[int, int]:
    """(height, width) with the longer side at round(scale * base_size), the other in proportion.

    Rounding is Python's, half to even, as in the semseg family.
    """
    height, width = size
    long_side = max(1, round(scale * (base_size or max(size))))
    if height > width:
        return long_side, max(1, round(long_side / height * width))
    return max(1, round(long_side / width * height)), long_side


def window_starts(side: int, window: int, stride_rate: float) -> list[int]:
    """First pixels of the windows along one side; the last window is shifted back inside."""
    stride = math.ceil(window * stride_rate)
    count = math.ceil((side - window) / stride) + 1
    return [min(index * stride, side - window) for index in range(count)]


def visits(side: int, starts: Sequence[int], window: int) -> np.ndarray:
    """(side,) float32: how many windows cover each pixel along one side."""
    covered = np.zeros(side, np.float32)
    for start in starts:
        covered[start : start + window] += 1
    return covered


class Resampling:
    """Bilinear resizing of one side of an image, from `source` to `target` pixels.

    Its tables are made on the host and go to a device once.

    Args:
        aligned: with aligned corners, as the networks of the family resize their logits; else
            between pixel centres without smoothing, as OpenCV's.
    """

    def __init__(self, source: int, target: int, *, aligned: bool) -> None:
        index = np.arange(target, dtype=np.float64)
        if aligned:
            position = index * ((source - 1) / max(target - 1, 1))
        else:
            position = ((index + 0.5) * (source / target) - 0.5).clip(0, source - 1)
        low = np.minimum(np.floor(position).astype(np.int64), source - 1)
        high = np.minimum(low + 1, source - 1)
        self.low: list[int] = low.tolist()
        self.high: list[int] = high.tolist()
        share = (position - low).astype(np.float32)  # of the pixel `high`
        self._pairs = np.stack([low, high], axis=1)
        self._weights = np.stack([1 - share, share], axis=1)
        self._matrices: dict[tuple[int, int, torch.device], Tensor] = {}
        self._bags: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def span(self, first: int, end: int) -> slice:
        """The source pixels that target pixels first .. end - 1 are mixed from."""
        return slice(self.low[first], self.high[end - 1] + 1)

    def matrix(self, first: int, end: int, device: torch.device) -> Tensor:
        """(end - first, m): the shares of the m source pixels of `span` in those target pixels."""
        key = (first, end, device)
        if key not in self._matrices:
            span, index = self.span(first, end), np.arange(end - first)
            matrix = np.zeros((end - first, span.stop - span.start), np.float32)
            for source, weight in zip((self._pairs - span.start).T, self._weights.T, strict=True):
                matrix[index, source[first:end]] += weight[first:end]
            self._matrices[key] = upload(matrix, device)
        return self._matrices[key]

    def mix_rows(self, x: Tensor, weights: Tensor, first: int, end: int) -> Tensor:
        """(m, w, K) of the m source rows of `span`, times `weights` (m,) -> (end - first, w, K)."""
        mix = self.rows_in_pairs if x.is_cuda else self.rows_by_product
        return mix(x.reshape(len(x), -1), weights, first, end).view(-1, *x.shape[1:])

    def rows_by_product(self, x: Tensor, weights: Tensor, first: int, end: int) -> Tensor:
        """`mix_rows` of (m, w K) as a matrix product, which is fast on the CPU."""
        return self.matrix(first, end, x.device) * weights @ x

    def rows_in_pairs(self, x: Tensor, weights: Tensor, first: int, end: int) -> Tensor:
        """The same as weighted sums of two rows, for GPUs: nearly all of the matrix is zero."""
        pairs, shares = (table[first:end] for table in self.bags(x.device))
        pairs = pairs - self.low[first]
        return F.embedding_bag(pairs, x, per_sample_weights=shares * weights[pairs], mode="sum")

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
            self._bags[device] = upload(self._pairs, device), upload(self._weights, device)
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


def resized_window(logits: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Logits (n, K, h', w') of a window -> (n, *size, K): both sides at once, for GPUs.

    Args:
        align_corners: the network's.
    """
    logits = logits.contiguous(memory_format=torch.channels_last)
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = F.interpolate(
            logits, size=tuple(size), mode="bilinear", align_corners=align_corners
        )
    return logits.permute(0, 2, 3, 1)


def window_scores(logits: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Logits (n, K, h', w') of a window and its mirror image -> (*size, K), summed softmax."""
    softmax = resized_window(logits, size, align_corners=align_corners).softmax(dim=3)
    total = softmax[0]
    for mirrored in softmax[1:]:
        total += mirrored
    return total


def fusible_window_scores(
    logits: Tensor, size: tuple[int, int], *, align_corners: bool = True
) -> Tensor:
    """`window_scores` for a compiler: parts of one shape, (*size, K), become a single kernel."""
    parts = [
        resized_window(one[None], size, align_corners=align_corners)[0].softmax(dim=2)
        for one in logits
    ]
    return sum(parts[1:], start=parts[0])


def resized_rows(
    logits: Tensor,
    size: tuple[int, int],
    chunks: Iterable[tuple[int, int]],
    *,
    align_corners: bool = True,
) -> Iterator[Tensor]:
    """`resized_window`, some rows at a time: columns by interpolation, rows by a product.

    Args:
        chunks: (first, last + 1) of each range.
        align_corners: the network's.
    """
    (height, width), (low_height, low_width) = size, logits.shape[-2:]
    logits = logits.contiguous(memory_format=torch.channels_last)
    if low_width != width:
        columns = (low_height, width)
        logits = F.interpolate(logits, size=columns, mode="bilinear", align_corners=align_corners)
    rows = logits.permute(0, 2, 3, 1).flatten(2)  # (n, h', width K)
    mixing = resampling(low_height, height, aligned=align_corners)
    for first, end in chunks:
        if low_height == height:
            mixed = rows[:, first:end]
        else:
            matrix = mixing.matrix(first, end, rows.device)
            mixed = matrix @ rows[:, mixing.span(first, end)]
        yield mixed.reshape(len(rows), end - first, width, -1)
