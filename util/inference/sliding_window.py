"""Sliding-window inference at several scales: the one engine of test, validation and demo."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..memory import free_memory, is_out_of_memory
from ..normalization import Normalization
from ..precision import autocast
from .resampling import half_pixel_resize, resampling
from .score_map import ScoreMap, Window, scaled_size

CHUNK = 2**21, 2**28  # bytes of scores at a time: on the CPU they stay in cache; elsewhere
STRIP = 64  # rows of the image finished at a time where its scores do not fit in memory at once


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
        score_bytes: memory that score maps may take before images are done strip by strip; None
            is a quarter of what is free.
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
    score_bytes: int | None = None


def usual_batch_size(device: torch.device) -> int:
    """Windows in a forward pass: on the CPU more than two take memory and save no time."""
    return 2 if device.type == "cpu" else InferenceSettings.batch_size


class SlidingWindow:
    """Image -> class probabilities or classes, computed and accumulated where the network runs.

    For each scale the image is resized (bilinear, half-pixel centres), padded with the mean up to
    the window, and cut into overlapping windows. The softmax scores of all windows and mirrored
    windows are averaged, cut back, resized to the image and averaged over the scales. This is the
    procedure of the semseg family; scores are averaged, not logits.

    The windows of all scales, and of all images given at once, share forward passes. Where memory
    does not suffice the engine falls back by itself: fewer windows in a pass, then strips of the
    image, then scores on the host; `complain` hears of it once.

    The network may be any module that maps (N,C,h,w) to logits (N,K,h',w') or to a tuple that
    begins with them; smaller logits are resized to the window before the softmax. One that has
    `coarse_logits` is asked for logits at the network's own resolution.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: InferenceSettings,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        complain: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.network = network
        self.logits = getattr(network, "coarse_logits", network)
        self.settings = settings
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.normalize = Normalization(settings.mean, settings.std, self.device)
        self.complain = complain
        self.windows_at_once = max(1, settings.batch_size // (1 + settings.flip))
        self.in_strips = False
        self.scores_on = self.device
        self.budget = settings.score_bytes or free_memory(self.device) // 4

    def predict(self, image: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (H, W) int64 class indices."""
        return self.predict_together([image])[0]

    def predict_together(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Predict several images, whose windows share forward passes."""
        return self._within_memory(
            lambda: [
                torch.cat([scores.argmax(dim=2) for scores in parts])
                for parts in self._finished(images)
            ]
        )

    def probabilities(self, image: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (K, H, W) float32, summing to 1 over K."""

        def whole() -> Tensor:
            parts = next(iter(self._finished([image])))
            return torch.cat(list(parts)).permute(2, 0, 1).contiguous()

        return self._within_memory(whole)

    @torch.inference_mode()
    def _within_memory(self, work: Callable[[], Any]) -> Any:
        """`work()`, done again with less memory as long as there is not enough.

        Raises:
            RuntimeError: the network is in training mode; its batch norm would see the images.
        """
        if self.network.training:
            raise RuntimeError("call network.eval() before inference")
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                remedy = self._fall_back()
                if remedy is None:
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.complain(f"out of memory on {self.device}: goes on with {remedy}")

    def _fall_back(self) -> str | None:
        """Take the next step to less memory and name it; None if there is none left."""
        if self.windows_at_once > 1:
            self.windows_at_once //= 2
            return f"{self.windows_at_once} windows in a forward pass"
        if not self.in_strips:
            self.in_strips = True
            return "images strip by strip"
        if self.scores_on.type != "cpu":
            self.scores_on = torch.device("cpu")
            return "scores in the host's memory"
        return None

    def _finished(self, images: Sequence[np.ndarray]) -> Iterator[Iterator[Tensor]]:
        """For each image its scores (n, W, K), from the first row to the last."""
        maps = [self._score_maps(image) for image in images]
        needs = [sum(scores.bytes() for scores in of_image) for of_image in maps]
        if not self.in_strips and sum(needs) <= self.budget:
            self._run(
                [w for of_image in maps for m in of_image for w in m.windows_until(m.size[0])]
            )
        for index, image in enumerate(images):
            of_image, maps[index] = maps[index], []  # its memory is free when it is done
            strips = self.in_strips or needs[index] > self.budget
            yield self._rows(of_image, image.shape[:2], STRIP if strips else image.shape[0])

    def _score_maps(self, image: np.ndarray) -> list[ScoreMap]:
        settings = self.settings
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        pixels = pixels.permute(2, 0, 1).unsqueeze(0).float()  # (1, C, H, W)
        maps = []
        for scale in settings.scales:
            size = scaled_size(image.shape[:2], scale, settings.base_size)
            maps.append(
                ScoreMap(
                    self.normalize(half_pixel_resize(pixels, size))[0],
                    settings.crop,
                    settings.classes,
                    stride_rate=settings.stride_rate,
                    weight=1 / (len(settings.scales) * (1 + settings.flip)),
                    device=self.scores_on,
                )
            )
        return maps

    def _rows(self, maps: list[ScoreMap], size: Sequence[int], strip: int) -> Iterator[Tensor]:
        """Finish an image of `size`: compute the windows that are due, mix the scales."""
        rows = self._lines(self.scores_on, size[1])
        for start in range(0, size[0], strip):
            stop = min(start + strip, size[0])
            due = [m.windows_until(m.source_rows(start, stop, size[0]).stop - 1) for m in maps]
            self._run([window for of_map in due for window in of_map])
            for first in range(start, stop, rows):
                end = min(first + rows, stop)
                total = maps[0].resized(first, end, size)
                for scores in maps[1:]:
                    total += scores.resized(first, end, size)
                yield total
            if stop < size[0]:
                for scores in maps:
                    scores.forget(scores.source_rows(stop, stop + 1, size[0]).start)

    def _run(self, windows: Sequence[Window]) -> None:
        """The network on windows of any maps, a batch at a time."""
        for start in range(0, len(windows), self.windows_at_once):
            chunk = windows[start : start + self.windows_at_once]
            pixels = torch.stack([window.pixels(self.settings.crop) for window in chunk])
            if self.settings.flip:
                pixels = torch.cat([pixels, pixels.flip(-1)])
            with autocast(self.device, self.dtype):
                output = self.logits(pixels.contiguous(memory_format=self.memory_format))
            logits = (output if isinstance(output, Tensor) else output[0]).float()
            if self.settings.flip:
                logits = torch.cat([logits[: len(chunk)], logits[len(chunk) :].flip(-1)])
            for index, window in enumerate(chunk):
                self._add(window, logits[index :: len(chunk)].to(self.scores_on))

    def _add(self, window: Window, logits: Tensor) -> None:
        """Resize the logits (1 or 2, K, h', w') of a window to it, and add their softmax."""
        (height, width), (low_height, low_width) = self.settings.crop, logits.shape[-2:]
        logits = logits.contiguous(memory_format=torch.channels_last)
        if low_width != width:
            size = (low_height, width)
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
        lines = logits.permute(0, 2, 3, 1).flatten(2)  # (1 or 2, h', width K)
        mixing = resampling(low_height, height, aligned=True)
        rows = self._lines(logits.device, 2 * width)
        for first in range(0, height, rows):
            end = min(first + rows, height)
            if low_height == height:
                mixed = lines[:, first:end]
            else:
                matrix = mixing.matrix(first, end, lines.device)
                mixed = matrix @ lines[:, mixing.span(first, end)]
            scores = mixed.reshape(len(lines), end - first, width, -1).softmax(dim=3)
            total = scores[0]
            for mirrored in scores[1:]:
                total += mirrored
            window.scores.add(window.row + first, window.column, total)

    def _lines(self, device: torch.device, width: int) -> int:
        """How many lines of this width are computed at a time."""
        chunk = CHUNK[device.type != "cpu"]
        return max(1, chunk // (4 * self.settings.classes * width))
