"""Text and legends drawn into pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..util.experiments.report import visible

PAPER, INK = (255, 255, 255), (20, 20, 20)
MARGIN = 6  # pixels
LONGEST = 60  # characters of a name


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
    picture: np.ndarray, mask: np.ndarray, names: Sequence[str], colors: np.ndarray
) -> np.ndarray:
    """The (H, W, 3) picture with the classes of the (h, w) mask below it, the largest first."""
    counts = np.bincount(mask.ravel(), minlength=len(names))[: len(names)]
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    strip = legend(
        picture.shape[1],
        [names[index] for index in present],
        [colors[index] for index in present],
        size=text_size(picture),
    )
    return np.concatenate([picture, strip])
