"""Sliding-window inference at several scales: the one engine of test, validation and demo."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...config.errors import ConfigError, first_line
from ..images import Normalization, upload
from ..memory import free_memory, is_out_of_memory
from .score_map import (
    ScoreMap,
    Window,
    fusible_window_scores,
    half_pixel_resize,
    resized_rows,
    scaled_size,
    window_scores,
)

CHUNK = 2**21, 2**29  # bytes of scores computed at a time: on the CPU, to stay in cache; elsewhere
STRIP = 64  # image rows per strip, where the scores of the whole image do not fit in memory


@dataclass(frozen=True)
class InferenceSettings:
    """How an image is tested.

    Args:
        classes: number of classes K.
        window: (height, width) in pixels.
        base_size: length of the image's longer side at scale 1; 0 keeps the image's own.
        scales: factors on `base_size`; the scores of all of them are averaged.
        flip: average with the mirrored windows.
        mean, std: of each channel, in 0..255 units.
        batch_size: windows in one forward pass (a mirrored window counts as one).
        stride_rate: step between windows as a fraction of the window.
        score_bytes: memory that score maps may take before images are done strip by strip; None
            is a quarter of what is free.
    Raises:
        ConfigError: a value that no image can be predicted with.
    """

    classes: int
    window: tuple[int, int]
    base_size: int = 0
    scales: Sequence[float] = (1.0,)
    flip: bool = True
    mean: Sequence[float] = (123.675, 116.28, 103.53)
    std: Sequence[float] = (58.395, 57.12, 57.375)
    batch_size: int = 8
    stride_rate: float = 2 / 3
    score_bytes: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.scales, self.flip, self.base_size, self.window)
        object.__setattr__(self, "scales", tuple(np.atleast_1d(self.scales).tolist()))


def check_settings(
    scales: Any = None,
    flip: Any = None,
    base_size: Any = None,
    window: Any = None,
    *,
    smallest: int = 1,
) -> None:
    """Raises ConfigError for a value that no image can be predicted with; None is "not given".

    Args:
        smallest: side of a window.
    """
    if scales is not None:
        values = np.atleast_1d(scales)
        numbers = values.ndim == 1 and values.size and values.dtype.kind in "iuf"
        if not numbers or not all(0 < value < 100 for value in values):
            raise ConfigError(
                f"scales {scales!r}: expected numbers above 0, such as (0.75, 1, 1.25)"
            )
    if flip is not None and not isinstance(flip, bool | np.bool_):
        raise ConfigError(f"flip {flip!r}: expected True or False")
    if base_size is not None and not is_whole(base_size, at_least=0):
        raise ConfigError(
            f"base_size {base_size!r}: expected the longer side in pixels, or 0 for the image's own"
        )
    if window is not None:
        pair = isinstance(window, Sequence | np.ndarray) and len(window) == 2
        if not pair or not all(is_whole(side, at_least=smallest) for side in window):
            raise ConfigError(
                f"window {window!r}: expected (height, width), both {smallest} or more"
            )


def is_whole(value: Any, *, at_least: int) -> bool:
    """Return whether a value is a whole number, of Python or NumPy, and not too small."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and value >= at_least


def usual_batch_size(device: torch.device) -> int:
    """Windows in a forward pass: on the CPU more than two take memory and save no time."""
    return 2 if device.type == "cpu" else InferenceSettings.batch_size


class Portions(NamedTuple):
    """How much is computed at a time; `remedy` describes it in a warning."""

    windows_per_pass: int
    in_strips: bool
    scores_on: torch.device
    remedy: str


def ever_smaller_portions(windows: int, device: torch.device) -> list[Portions]:
    """What to try one after the other: fewer windows, then strips, then scores on the host."""
    counts = [windows >> times for times in range(windows.bit_length())]
    portions = [Portions(n, False, device, f"{n} windows in a forward pass") for n in counts]
    portions.append(Portions(1, True, device, "images strip by strip"))
    if device.type != "cpu":
        host = torch.device("cpu")
        portions.append(Portions(1, True, host, "scores in the host's memory"))
    return portions


class CompiledOrPlain:
    """What torch.compile makes of `work`; from its first failure on `plain`, which gives the same.

    Compilation happens at the first call.

    Args:
        warn: told of the failure, once.
    """

    def __init__(self, work: Callable, plain: Callable, warn: Callable[[str], None]) -> None:
        self.work = work
        self.compiled: Callable | None = None
        self.failed = False
        self.plain = plain
        self.warn = warn

    def __call__(self, *given: Any, **options: Any) -> Any:
        if not self.failed:
            try:  # torch.compile itself fails with a Python that it does not know
                self.compiled = self.compiled or torch.compile(self.work)
                return self.compiled(*given, **options)
            except Exception as error:  # those of the compiler have no common base class
                if is_out_of_memory(error):
                    raise
                reason = first_line(error)
                self.warn(f"warning: TEST.compile: not possible ({reason}); continuing without it")
                self.failed = True
        return self.plain(*given, **options)


class SlidingWindow:
    """Image -> class probabilities or classes, computed and accumulated where the network runs.

    For each scale the image is resized (bilinear, half-pixel centres), padded with the mean up to
    the window, and cut into overlapping windows. The softmax scores of all windows and mirrored
    windows are averaged, cut back, resized to the image and averaged over the scales. This is the
    procedure of the semseg family; scores are averaged, not logits.

    The windows of all scales, and of all images of a group, share forward passes. Where memory
    does not suffice the engine falls back by itself: fewer windows per pass, then scores for a
    strip of rows at a time (the resized image stays whole), then scores on the host; `warn` (by
    default the log) is called once for each step. It keeps these settings for images of at least
    half as many pixels; smaller ones get the usual settings.

    The network may be any module that maps (N,C,h,w) to logits (N,K,h',w') or to a tuple that
    begins with them; smaller logits are resized to the window before the softmax, with aligned
    corners unless the network says otherwise (`align_corners`). One that has `coarse_logits` is
    asked for logits at the network's own resolution.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: InferenceSettings,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.network = network
        self.logits = getattr(network, "coarse_logits", network)
        self.align_corners = bool(getattr(network, "align_corners", True))
        self.settings = settings
        self.device = torch.device(device)
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.normalize = Normalization(settings.mean, settings.std, self.device)
        self.warn = warn or logging.getLogger("stripseg").warning
        self.window_scores: Callable[..., Tensor] = window_scores
        windows = max(1, settings.batch_size // (1 + settings.flip))
        self.all_portions = ever_smaller_portions(windows, self.device)
        self.portions = self.all_portions[0]
        self.too_large: list[tuple[int, int]] = []  # pixels, and the portions that were too large
        self.budget = settings.score_bytes or free_memory(self.device) // 4

    def compile(self, *, network: bool = False) -> None:
        """Let torch.compile make one kernel of what follows the network: resizing, softmax, sum.

        That takes some seconds at the first image. Where it fails, `warn` is told why, and the
        engine goes on without it. Scores are the same but for rounding.

        Args:
            network: compile the network as well, which takes a minute.
        """
        self.window_scores = CompiledOrPlain(fusible_window_scores, window_scores, self.warn)
        if network:
            self.logits = CompiledOrPlain(self.logits, self.logits, self.warn)

    def predict(self, image: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (H, W) int64 class indices."""
        return self.predict_group([image])[0]

    def predict_group(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Predict several images, whose windows share forward passes."""
        return self._within_memory(images, lambda scores: scores.argmax(dim=2))

    def predict_with_confidence(self, images: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """For each image of a group, (H, W): int64 classes and the uint8 probability of each.

        255 is a probability of 1. The classes are those of `predict_group`.
        """

        def read(scores: Tensor) -> Tensor:
            largest, classes = scores.max(dim=2)
            return classes * 256 + (largest * 255 + 0.5).to(torch.int64).clamp_(0, 255)

        return [(both >> 8, (both & 255).byte()) for both in self._within_memory(images, read)]

    def probabilities(self, image: np.ndarray) -> Tensor:
        """(H, W, C) uint8 -> (K, H, W) float32, summing to 1 over K."""
        (scores,) = self._within_memory([image], lambda scores: scores)
        return scores.permute(2, 0, 1).contiguous()

    @torch.no_grad()  # in inference mode `autocast` would convert the weights at every pass
    def _within_memory(
        self, images: Sequence[np.ndarray], read: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """`_run`, repeated with less memory as long as there is not enough.

        Raises:
            RuntimeError: the network is in training mode; its batch norm would see the images.
            TypeError: an image is not an (H, W, C) array of uint8.
        """
        for image in images:
            if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8:
                shown = getattr(image, "shape", ""), getattr(image, "dtype", type(image).__name__)
                raise TypeError(
                    "an image must be an (H, W, C) array of uint8, RGB, values 0 to 255, not "
                    f"{shown[0]} {shown[1]}".replace("  ", " ")
                )
        if self.network.training:
            raise RuntimeError("call network.eval() before inference")
        pixels = sum(image.shape[0] * image.shape[1] for image in images)
        known = [index + 1 for large, index in self.too_large if 2 * pixels >= large]
        index = max(known, default=0)
        while True:
            self.portions = self.all_portions[index]
            try:
                return self._run(images, read)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or index + 1 == len(self.all_portions):
                    raise
            self.too_large.append((pixels, index))
            index += 1
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            remedy = self.all_portions[index].remedy
            self.warn(f"out of memory on {self.device}: continuing with {remedy}")

    def _run(self, images: Sequence[np.ndarray], read: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """For each image the results of `read` on its scores (n, W, K), joined over the rows."""
        with self._one_conversion():
            maps = [self._score_map(image) for image in images]
            if self.portions.in_strips or sum(scores.nbytes for scores in maps) > self.budget:
                return [self._run_alone(maps.pop(0), read) for _ in images]
            self._add_windows([(m, window) for m in maps for window in m.windows(0, m.size[0])])
            return [torch.cat(self._read(maps.pop(0), read)) for _ in images]

    def _one_conversion(self) -> torch.autocast:
        """Inside, the first forward pass converts the weights to `dtype` for all of them.

        `autocast` forgets what it has converted at the end of the outermost context.
        """
        return torch.autocast(self.device.type, self.dtype, enabled=False)

    def _run_alone(self, scores: ScoreMap, read: Callable[[Tensor], Tensor]) -> Tensor:
        """One image without the others of its group; in strips if its scores do not fit."""
        height = scores.size[0]
        strip = STRIP if self.portions.in_strips or scores.nbytes > self.budget else height
        parts = []
        for first in range(0, height, strip):
            last = min(first + strip, height)
            self._add_windows([(scores, window) for window in scores.windows(first, last)])
            parts += self._read(scores, read, first, last)
        return torch.cat(parts)

    def _score_map(self, image: np.ndarray) -> ScoreMap:
        """The empty score map of an image, which is resized to every scale."""
        settings, size = self.settings, image.shape[:2]
        pixels = upload(np.ascontiguousarray(image), self.device)
        pixels = pixels.permute(2, 0, 1).unsqueeze(0).float()  # (1, C, H, W)
        sizes = [scaled_size(size, scale, settings.base_size) for scale in settings.scales]
        return ScoreMap(
            [self.normalize(half_pixel_resize(pixels, scaled))[0] for scaled in sizes],
            size,
            settings.window,
            settings.classes,
            stride_rate=settings.stride_rate,
            weight=1 / (len(settings.scales) * (1 + settings.flip)),
            device=self.portions.scores_on,
        )

    def _add_windows(self, windows: Sequence[tuple[ScoreMap, Window]]) -> None:
        """Run the network on windows of any maps, a batch at a time, and add their scores."""
        at_once, scores_on = self.portions.windows_per_pass, self.portions.scores_on
        for start in range(0, len(windows), at_once):
            batch = windows[start : start + at_once]
            logits = self._logits(torch.stack([window.pixels for _, window in batch]))
            for index, (scores, window) in enumerate(batch):
                self._add(scores, window, logits[index :: len(batch)].to(scores_on))

    def _logits(self, pixels: Tensor) -> Tensor:
        """(n, C, h, w) -> (n or 2n, K, h', w'); the second half is of the mirrored windows."""
        count = len(pixels)
        if self.settings.flip:
            pixels = torch.cat([pixels, pixels.flip(-1)])
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            output = self.logits(pixels.contiguous(memory_format=self.memory_format))
        if not isinstance(output, Tensor | tuple | list):
            raise TypeError(
                f"the network returned a {type(output).__name__}; wrap it in a function that "
                "returns the logits, (N, K, h, w)"
            )
        logits = (output if isinstance(output, Tensor) else output[0]).float()
        if logits.shape[1] != self.settings.classes:
            raise ValueError(
                f"the network gives {logits.shape[1]} classes, and InferenceSettings.classes is "
                f"{self.settings.classes}"
            )
        if self.settings.flip:
            logits = torch.cat([logits[:count], logits[count:].flip(-1)])
        return logits

    def _add(self, scores: ScoreMap, window: Window, logits: Tensor) -> None:
        """Resize the logits (1 or 2, K, h', w') of a window to it, and add their softmax."""
        height, width = self.settings.window
        chunks = list(self._chunks(0, height, 2 * width, logits.device))
        work, aligned = self.window_scores, self.align_corners
        compiled = isinstance(work, CompiledOrPlain) and not work.failed
        compiled &= logits.device == self.device
        if compiled or (logits.is_cuda and len(chunks) == 1):
            logits = logits.contiguous(memory_format=torch.channels_last)
            size = self.settings.window
            scores.add(window, self.window_scores(logits, size, align_corners=aligned))
            return
        parts = resized_rows(logits, self.settings.window, chunks, align_corners=aligned)
        for (first, _), part in zip(chunks, parts, strict=True):
            softmax = part.softmax(dim=3)
            total = softmax[0]
            for mirrored in softmax[1:]:
                total += mirrored
            scores.add(window, total, first=first)

    def _read(
        self,
        scores: ScoreMap,
        read: Callable[[Tensor], Tensor],
        first: int = 0,
        last: int | None = None,
    ) -> list[Tensor]:
        """`read` on the rows first .. last - 1 (by default all), a few at a time."""
        last = scores.size[0] if last is None else last
        chunks = self._chunks(first, last, scores.size[1], self.portions.scores_on)
        return [read(scores.rows(*chunk)) for chunk in chunks]

    def _chunks(
        self, first: int, last: int, width: int, device: torch.device
    ) -> Iterator[tuple[int, int]]:
        """Split rows first .. last - 1 of `width` pixels into ranges that suit the device."""
        count = max(1, CHUNK[device.type != "cpu"] // (4 * self.settings.classes * width))
        for start in range(first, last, count):
            yield start, min(start + count, last)
