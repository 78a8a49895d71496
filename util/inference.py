"""Sliding-window inference at several scales: the one engine of test, validation and demo."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .normalization import Normalization
from .optimization import autocast


@dataclass(frozen=True)
class InferenceSettings:
    """How an image is tested.

    Args:
        classes: number of classes K.
        crop: window (height, width) in pixels.
        base_size: length of the image's longer side at scale 1; 0 keeps the image's own.
        scales: factors on `base_size`; the scores of all of them are averaged.
        flip: average with the mirrored windows.
        mean, std: of each channel, in 0..255 units.
        batch_size: windows in one forward pass (a mirrored window counts as one).
        stride_rate: step between windows as a share of the window.
    """

    classes: int
    crop: tuple[int, int]
    base_size: int = 0
    scales: Sequence[float] = (1.0,)
    flip: bool = True
    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)
    batch_size: int = 8
    stride_rate: float = 2 / 3


class SlidingWindow:
    """Image -> class probabilities or classes, computed and accumulated where the network runs.

    For each scale the image is resized (bilinear, half-pixel centres), padded with the mean up to
    the window, and cut into overlapping windows. The softmax scores of all windows and mirrored
    windows are averaged, cut back, resized to the image and averaged over the scales. This is the
    procedure of the semseg family; scores are averaged, not logits.

    The network may be any module that maps (N,C,h,w) to logits (N,K,h',w') or to a tuple that
    begins with them; smaller logits are resized to the window before the softmax.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: InferenceSettings,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ) -> None:
        self.network = network
        self.settings = settings
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.normalize = Normalization(settings.mean, settings.std, self.device)

    def predict(self, image: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (H, W) int64 class indices on the device."""
        return self.probabilities(image).argmax(dim=0)

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (K, H, W) float32 on the device, summing to 1 over K.

        The network must be in evaluation mode, or its batch norm would see the test images.
        """
        if self.network.training:
            raise RuntimeError("call network.eval() before inference")
        size = image.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        pixels = pixels.permute(2, 0, 1).unsqueeze(0).float()  # (1, C, H, W)
        total = torch.zeros(self.settings.classes, *size, device=self.device)
        for scale in self.settings.scales:
            scaled = half_pixel_resize(pixels, scaled_size(size, scale, self.settings.base_size))
            scores = self._slide(self.normalize(scaled))
            total += half_pixel_resize(scores.unsqueeze(0), size)[0]
        return total / len(self.settings.scales)

    def _slide(self, image: Tensor) -> Tensor:
        """(1, C, h, w) normalised -> (K, h, w) scores averaged over all windows."""
        height, width = image.shape[-2:]
        crop_height, crop_width = self.settings.crop
        pad_height, pad_width = max(crop_height - height, 0), max(crop_width - width, 0)
        top, left = pad_height // 2, pad_width // 2
        # zero is the mean after normalisation
        image = F.pad(image, (left, pad_width - left, top, pad_height - top))
        rate = self.settings.stride_rate
        rows = window_starts(image.shape[-2], crop_height, rate)
        columns = window_starts(image.shape[-1], crop_width, rate)
        total = torch.zeros(self.settings.classes, *image.shape[-2:], device=self.device)
        for (y, x), scores in self._scored_windows(image, [(y, x) for y in rows for x in columns]):
            total[:, y : y + crop_height, x : x + crop_width] += scores
        total /= self._visits(image.shape[-2:], rows, columns)
        return total[:, top : top + height, left : left + width]

    def _scored_windows(
        self, image: Tensor, corners: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Each window's corner with its scores (K, h, w), mirrored windows turned back."""
        crop_height, crop_width = self.settings.crop
        jobs = [
            (y, x, mirror) for y, x in corners for mirror in (False, True)[: 1 + self.settings.flip]
        ]
        for start in range(0, len(jobs), self.settings.batch_size):
            chunk = jobs[start : start + self.settings.batch_size]
            windows = []
            for y, x, mirror in chunk:
                window = image[0, :, y : y + crop_height, x : x + crop_width]
                windows.append(window.flip(-1) if mirror else window)
            scores = self._scores(torch.stack(windows))
            for (y, x, mirror), score in zip(chunk, scores, strict=True):
                yield (y, x), score.flip(-1) if mirror else score

    def _scores(self, windows: Tensor) -> Tensor:
        """(N, C, h, w) -> softmax scores (N, K, h, w) in float32."""
        windows = windows.contiguous(memory_format=self.memory_format)
        with autocast(self.device, self.dtype):
            output = self.network(windows)
        logits = output if isinstance(output, Tensor) else output[0]
        logits = logits.float()
        if logits.shape[-2:] != windows.shape[-2:]:
            logits = F.interpolate(
                logits, size=windows.shape[-2:], mode="bilinear", align_corners=True
            )
        return logits.softmax(dim=1)

    def _visits(self, size: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """(h, w): how many windows, mirrored ones included, cover each pixel."""
        down = torch.zeros(size[0], device=self.device)
        across = torch.zeros(size[1], device=self.device)
        for y in rows:
            down[y : y + self.settings.crop[0]] += 1
        for x in columns:
            across[x : x + self.settings.crop[1]] += 1
        return torch.outer(down, across) * (1 + self.settings.flip)


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


def half_pixel_resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear between pixel centres, without smoothing, as OpenCV's: (N,C,h,w) -> (N,C,*size)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
