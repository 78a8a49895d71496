"""Pictures and a self-contained page of an explanation (explain.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..util.files import write_text
from ..util.images import as_rgb, overlay, write_png
from .explain import BranchNorms, Explanation, StripAttention, radius_holding, share_in_cross
from .html import jpeg
from .html import text as escaped
from .legend import INK, MARGIN, PAPER, captioned, font, line_height, with_legend
from .pictures import viridis

PANEL = 420  # pixels: the long side of one map
LETTERS = 14  # pixels
QUALITY = 90  # of JPEGs in the page; PNG would be six times as large
DIM, HEAT = 0.35, 0.65  # shares of the image and of a map's colour
CONTRAST = 0.6  # that the image keeps, so that bright sky does not wash colours out
DECADES = 3  # of the receptive field's logarithmic scale
NO_STRIPS = (
    "This network has no strip pooling: there are no attention maps and branches to show, and "
    "nothing to leave out."
)
LEFT_OUT = (
    "Without strip pooling, the strip pooling modules let everything through and the strip "
    "branches add nothing; the network was not trained again for that, so this is not what a "
    "network without them would learn."
)
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1a1a;--soft:#666;--line:#ddd}
@media(prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e8e8e8;--soft:#a0a0a0;--line:#333}}
body{font:16px/1.5 system-ui,sans-serif;max-width:1300px;margin:0 auto;padding:1rem;
background:var(--paper);color:var(--ink)}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .3rem;border-top:1px solid var(--line);
padding-top:1rem}
p{margin:.3rem 0 .8rem;color:var(--soft);max-width:75ch}
h1,h2,p{overflow-wrap:anywhere}
div{display:flex;flex-wrap:wrap;gap:.5rem;align-items:flex-start}
img{flex:1 1 290px;min-width:0;max-width:min(100%,420px);height:auto;border-radius:4px}
"""


@dataclass(frozen=True)
class Picture:
    """A picture with what it shows.

    Args:
        file: its name, without suffix.
        title: above it on the page.
        text: paragraphs below the title.
        parts: (H, W, 3) uint8 of one size, beside each other; on a narrow page below each other.
        legend: (h, W, 3), below them.
    """

    file: str
    title: str
    text: Sequence[str]
    parts: Sequence[np.ndarray]
    legend: np.ndarray | None = None

    @property
    def pixels(self) -> np.ndarray:
        """(H, W, 3): all of it in one picture."""
        gap = np.full((self.parts[0].shape[0], MARGIN, 3), 255, np.uint8)
        row = np.concatenate([piece for part in self.parts for piece in (gap, part)][1:], axis=1)
        if self.legend is None:
            return row
        margin = [(0, 0), (0, row.shape[1] - self.legend.shape[1]), (0, 0)]
        return np.concatenate([row, np.pad(self.legend, margin, constant_values=255)])


def write_explanation(explanation: Explanation, folder: Path, *, title: str) -> list[Path]:
    """Write a PNG for every question and explain.html with all of them; return their paths."""
    pictures = pictures_of(explanation)
    paths = []
    for picture in pictures:
        paths.append(folder / f"{picture.file}.png")
        write_png(paths[-1], picture.pixels)
    write_text(folder / "explain.html", page(explanation, pictures, title))
    return [*paths, folder / "explain.html"]


def pictures_of(explanation: Explanation) -> list[Picture]:
    """All pictures, in the order of the page."""
    return [
        prediction_picture(explanation),
        field_picture(explanation),
        *(
            attention_picture(explanation, module, number)
            for number, module in enumerate(explanation.attention, 1)
        ),
        *(
            branches_picture(explanation, module, number)
            for number, module in enumerate(explanation.branches, 1)
        ),
    ]


def prediction_picture(e: Explanation) -> Picture:
    shown = overlay(e.image, e.mask, e.colors)
    image = marked(fitted(as_rgb(e.image)), e)
    prediction = marked(fitted(shown), e)
    empty = np.zeros((0, image.shape[1], 3), np.uint8)
    row, column = e.pixel
    return Picture(
        "prediction",
        "Image and prediction",
        [
            f"The circle is the pixel explained: row {row}, column {column}, predicted as "
            f"{e.names[e.class_index]}. The image went through the network as a whole, "
            f"{e.image.shape[0]} x {e.image.shape[1]} pixels, without windows and mirroring."
        ],
        [
            captioned(image, "image", size=LETTERS),
            captioned(prediction, "prediction", size=LETTERS),
        ],
        with_legend(empty, e.mask, e.names, e.colors, size=LETTERS),
    )


def field_picture(e: Explanation) -> Picture:
    """The receptive fields, smoothed, each on a logarithmic scale up to its largest value."""
    named = {"with strip pooling" if e.has_strips else "effective receptive field": e.field}
    if e.field_without_strips is not None:
        named["without strip pooling"] = e.field_without_strips
    panels = []
    for name, field in named.items():
        smoothed = smooth(field)
        decades = np.log10(np.maximum(smoothed / (smoothed.max() or 1.0), 10.0**-DECADES))
        scale = (-DECADES, 0.0, f"1/{10**DECADES:,}", "largest")
        panels.append(captioned(marked(heat(e, decades, scale), e), name, size=LETTERS))
    lines = [spread_line(name, field, e) for name, field in named.items()]
    if e.has_strips:
        lines.append(LEFT_OUT)
    return Picture(
        "receptive_field",
        "Effective receptive field",
        [
            f"How much the score of {e.names[e.class_index]} at the circle changes with each pixel "
            "of the image: its absolute gradient, smoothed, on a logarithmic scale.",
            *lines,
        ],
        panels,
    )


def spread_line(name: str, field: np.ndarray, e: Explanation) -> str:
    half, most = (radius_holding(field, e.pixel, share) for share in (0.5, 0.9))
    reach = max(e.image.shape[:2]) // 40
    inside, area = share_in_cross(field, e.pixel, reach)
    return (
        f"{name.capitalize()}: half of the gradient lies within {half:.0f} pixels and nine tenths "
        f"within {most:.0f}; {inside:.0%} lies in the pixel's row and column ({reach} pixels to "
        f"either side, {area:.0%} of the area)."
    )


def attention_picture(e: Explanation, module: StripAttention, number: int) -> Picture:
    """The mean over channels and the channels that vary most, each on a scale of its own."""
    maps = {"mean of all channels": module.mean}
    maps |= {f"channel {index}": values for index, values in module.channels.items()}
    panels = [
        captioned(heat(e, values, extent(values)), name, size=LETTERS)
        for name, values in maps.items()
    ]
    return Picture(
        f"strip_pooling_{number:02}",
        f"Strip pooling module {number}: {module.name}",
        [
            "The weights that the module multiplies its input by, from 0 (nothing passes) to 1 "
            "(everything does): the mean over channels, and the channels that vary most over this "
            "image. Each map has a scale of its own, below it."
        ],
        panels,
    )


def branches_picture(e: Explanation, module: BranchNorms, number: int) -> Picture:
    """Norms of the two branches on one scale, and the share of the strips."""
    top = float(max(module.pyramid.max(), module.strips.max())) or 1.0
    scale = (0.0, top, "0", f"{top:.3g}")
    both = module.pyramid + module.strips
    share = module.strips / np.where(both > 0, both, 1.0)
    panels = {
        "pyramid pooling": heat(e, module.pyramid, scale),
        "strip pooling": heat(e, module.strips, scale),
        "share of the strips": heat(e, share, (0.0, 1.0, "0: pyramid", "1: strips")),
    }
    identity = float(module.identity.mean()) or 1.0
    return Picture(
        f"mixed_pooling_{number:02}",
        f"Mixed pooling module {number}: {module.name}",
        [
            "What each branch adds to the sum at every position, as its norm over channels. On "
            f"average pyramid pooling adds {module.pyramid.mean() / identity:.1%} and strip "
            f"pooling {module.strips.mean() / identity:.1%} of the norm of the module's own input."
        ],
        [captioned(panel, name, size=LETTERS) for name, panel in panels.items()],
    )


def extent(values: np.ndarray) -> tuple[float, float, str, str]:
    """(low, high, their labels) of a map, without its most extreme hundredths."""
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return low, high, f"{low:.3f}", f"{high:.3f}"


def heat(e: Explanation, values: np.ndarray, scale: tuple[float, float, str, str]) -> np.ndarray:
    """A (h, w) map in colours over the dimmed image, with its scale below it: (H, W, 3)."""
    low, high, low_label, high_label = scale
    image = fitted(as_rgb(e.image))
    size = image.shape[1], image.shape[0]
    values = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    grey = 100 + CONTRAST * (image.mean(axis=2, keepdims=True) - 128)
    blended = DIM * grey + HEAT * viridis(share)
    bar = scale_bar(size[0], low_label, high_label)
    return np.concatenate([blended.round().astype(np.uint8), bar])


def scale_bar(width: int, low: str, high: str) -> np.ndarray:
    """(h, width, 3): the colours from low to high between their labels."""
    strip = Image.new("RGB", (width, line_height(LETTERS) + MARGIN), PAPER)
    draw, letters = ImageDraw.Draw(strip), font(LETTERS)
    left = MARGIN + round(letters.getlength(low)) + MARGIN
    right = width - 2 * MARGIN - round(letters.getlength(high))
    draw.text((MARGIN, MARGIN // 2), low, INK, font=letters)
    draw.text((right + MARGIN, MARGIN // 2), high, INK, font=letters)
    if right > left:
        ramp = np.tile(np.linspace(0, 1, right - left, dtype=np.float32), (LETTERS, 1))
        strip.paste(Image.fromarray(viridis(ramp)), (left, MARGIN - 1))
    return np.array(strip)


def fitted(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) with the long side `PANEL`."""
    height, width = picture.shape[:2]
    scale = PANEL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=how)


def smooth(field: np.ndarray) -> np.ndarray:
    """The (H, W) field without its grain: a Gaussian of a hundredth of the long side."""
    return cv2.GaussianBlur(field.astype(np.float32), (0, 0), max(1.0, max(field.shape) / 100))


def marked(picture: np.ndarray, e: Explanation) -> np.ndarray:
    """The picture of the whole image with a circle around the pixel."""
    height, width = e.image.shape[:2]
    scale = PANEL / max(height, width)
    centre = round((e.pixel[1] + 0.5) * scale), round((e.pixel[0] + 0.5) * scale)
    drawn = picture.copy()
    for thickness, color in ((4, (0, 0, 0)), (2, (255, 255, 255))):
        cv2.circle(drawn, centre, 8, color, thickness, cv2.LINE_AA)
    return drawn


def page(explanation: Explanation, pictures: Sequence[Picture], title: str) -> str:
    """One HTML file with the pictures inside; it asks nothing of the network."""
    note = "" if explanation.has_strips else f"<p>{escaped(NO_STRIPS)}</p>"
    sections = "".join(map(section, pictures))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style>"
        f"<h1>{escaped(title)}</h1>{note}{sections}</html>\n"
    )


def section(picture: Picture) -> str:
    """Title, text and parts of a picture, which wrap on a narrow page."""
    title = escaped(picture.title)
    text = "".join(f"<p>{escaped(line)}</p>" for line in picture.text)
    pieces = [*picture.parts, *([] if picture.legend is None else [picture.legend])]
    images = "".join(f'<img alt="{title}" src="{jpeg(piece, QUALITY)}">' for piece in pieces)
    return f"<h2>{title}</h2>{text}<div>{images}</div>"
