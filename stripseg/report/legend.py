"""Overlays, legends and text in pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..util.images import as_rgb, overlay
from ..util.logger import visible

PAPER, INK = (255, 255, 255), (20, 20, 20)
MARGIN = 6  # pixels
LONGEST = 60  # characters of a name
LINES = 3  # of a video's legend: the classes of the largest areas


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def line_height(size: int) -> int:
    return round(1.35 * size)


def text_size(picture: np.ndarray) -> int:
    """A size of letters that can be read in a picture, pixels."""
    return int(np.clip(min(picture.shape[:2]) / 28, 11, 32))


def captioned(picture: np.ndarray, text: str, *, size: int = 14) -> np.ndarray:
    """The (H, W, 3) picture below a line of text."""
    strip = Image.new("RGB", (picture.shape[1], line_height(size) + MARGIN), PAPER)
    ImageDraw.Draw(strip).text((MARGIN, MARGIN // 2), visible(text), INK, font=font(size))
    return np.concatenate([np.array(strip), picture])


def legend(
    width: int, names: Sequence[str], colors: Sequence[Sequence[int]], *, size: int = 14
) -> np.ndarray:
    """(h, width, 3): a swatch and a name for every class, in as many lines as it takes."""
    letters, height = font(size), line_height(size)
    places, x, y = [], MARGIN, MARGIN // 2
    for name in names:
        text = visible(name)[:LONGEST]
        wide = height + MARGIN + round(letters.getlength(text)) + 2 * MARGIN
        if x > MARGIN and x + wide > width:
            x, y = MARGIN, y + height
        places.append((x, y, text))
        x += wide
    strip = Image.new("RGB", (width, y + height + MARGIN // 2 if names else 0), PAPER)
    draw = ImageDraw.Draw(strip)
    side = height - 4
    for (x, y, text), color in zip(places, colors, strict=True):
        draw.rectangle((x, y + 2, x + side, y + side), tuple(map(int, color)), INK)
        draw.text((x + height + MARGIN // 2, y), text, INK, font=letters)
    return np.array(strip).reshape(-1, width, 3)


def with_legend(
    picture: np.ndarray,
    mask: np.ndarray,
    names: Sequence[str],
    colors: np.ndarray,
    *,
    size: int | None = None,
) -> np.ndarray:
    """The (H, W, 3) picture with the classes of the (h, w) mask below it, the largest first."""
    counts = np.bincount(mask.ravel(), minlength=len(names))[: len(names)]
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    strip = legend(
        picture.shape[1],
        [names[index] for index in present],
        [colors[index] for index in present],
        size=size or text_size(picture),
    )
    return np.concatenate([picture, strip])


@dataclass(frozen=True)
class OverlayStyle:
    """How a prediction is laid over its image.

    Args:
        opacity: of the colours, 0 to 1.
        classes: indices of those that are shown; None shows all.
        side_by_side: the image itself to the left.
        legend: the classes present, below.
    """

    opacity: float = 0.5
    classes: tuple[int, ...] | None = None
    side_by_side: bool = False
    legend: bool = False

    def draw(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        names: Sequence[str],
        colors: np.ndarray,
        *,
        steady: bool = False,
    ) -> np.ndarray:
        """The picture, (h, w, 3), of an (H, W, C) image and its (H, W) mask.

        Args:
            steady: the same size for every mask, for the frames of a video.
        """
        plain = as_rgb(image)
        shown = overlay(image, mask, colors, opacity=self.opacity)
        hidden = None if self.classes is None else ~np.isin(mask, self.classes)
        if hidden is not None:
            shown[hidden] = plain[hidden]
        picture = np.concatenate([plain, shown], axis=1) if self.side_by_side else shown
        if not self.legend:
            return picture
        present = mask if hidden is None else mask[~hidden]
        complete = with_legend(picture, present, names, colors)
        return self._steadied(complete, picture, names) if steady else complete

    def _steadied(
        self, complete: np.ndarray, picture: np.ndarray, names: Sequence[str]
    ) -> np.ndarray:
        """The picture with a legend of as many lines as all classes take, at most `LINES`."""
        size = text_size(picture)
        possible = names if self.classes is None else [names[index] for index in self.classes]
        whole = legend(picture.shape[1], possible, [PAPER] * len(possible), size=size)
        most = LINES * line_height(size) + 2 * (MARGIN // 2)
        height = picture.shape[0] + min(len(whole), most)
        missing = max(0, height - len(complete))
        return np.pad(complete[:height], [(0, missing), (0, 0), (0, 0)], constant_values=255)
