"""See a dataset: `stripseg browse DATASET EXPERIMENT [--count N] [--output FILE.png|.html]`.

Writes a contact sheet: images with their labels laid over, as stored and as training sees them.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import ConfigError
from stripseg.config.validate import check_files
from stripseg.dataset.build import Classes, build_classes, build_training_set, official_splits
from stripseg.dataset.segmentation import TrainingSet, read_pair
from stripseg.util.files import atomic_write
from stripseg.util.images import as_rgb, colorize, write_png

TILE = 240  # height of an image on the sheet, pixels
GAP = 6
BLACK = np.zeros(3, np.uint8)


def main(argv: Sequence[str]) -> Result:
    """Choose images, draw them, write the sheet."""
    parser = command_line.config_parser("stripseg browse", __doc__)
    parser.add_argument("--count", type=int, default=8, help="images on the sheet")
    parser.add_argument("--crops", type=int, default=3, help="augmented crops of each image")
    parser.add_argument("--output", type=Path, default=None, help="a .png or .html file")
    options, config = command_line.parse_config(parser, argv)
    output = options.output or Path("exp", config.DATA.dataset, "browse.html")
    if output.suffix not in (".png", ".html"):
        raise ConfigError(f"--output {output}: a sheet is a .png or .html file")
    check_files(config, "train", official_splits=official_splits(config))
    dataset, classes = build_training_set(config), build_classes(config)
    count = max(1, min(options.count, len(dataset)))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int))
    rows = {
        dataset.pairs[index].name: images(dataset, int(index), classes, options.crops)
        for index in chosen
    }
    if output.suffix == ".png":
        write_png(output, stacked([side_by_side(row) for row in rows.values()], axis=0))
    else:
        with atomic_write(output) as file:
            file.write(page(rows, dataset, classes).encode(errors="backslashreplace"))
    print(f"{len(rows)} of {len(dataset)} training images: {output}")
    return Result({"file": output, "shown": list(rows), "images": len(dataset)})


def images(dataset: TrainingSet, index: int, classes: Classes, crops: int) -> list[np.ndarray]:
    """The image, the same with its label, and crops of several epochs with their labels."""
    sample = read_pair(dataset.pairs[index], dataset.encoding, index, channels=dataset.channels)
    row = [as_rgb(sample.image), with_label(sample.image, sample.label, classes)]
    for epoch in range(crops):
        crop = dataset[epoch, index]
        row.append(with_label(crop.image, crop.label, classes))
    return row


def with_label(image: np.ndarray, label: np.ndarray, classes: Classes) -> np.ndarray:
    """The label's colours over the image, borders of regions drawn; ignored pixels are striped."""
    blended = as_rgb(image) * 0.45 + colorize(label, classes.colors) * 0.55
    rows, columns = np.indices(label.shape)
    stripes = (label >= len(classes.names)) & ((rows + columns) % 8 < 2)
    blended[stripes] = 255
    edge = np.zeros(label.shape, bool)
    edge[1:] |= label[1:] != label[:-1]
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    blended[edge] = BLACK
    return blended.round().astype(np.uint8)


def side_by_side(row: Sequence[np.ndarray]) -> np.ndarray:
    """Images at one height in a row."""
    scaled = [
        cv2.resize(p, (max(1, round(p.shape[1] * TILE / p.shape[0])), TILE), interpolation=3)
        for p in row
    ]
    return stacked(scaled, axis=1)


def stacked(parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """Images after one another with gaps, padded with white across."""
    other = 1 - axis
    longest = max(part.shape[other] for part in parts)
    padded = []
    for part in parts:
        margins = [[0, 0], [0, 0], [0, 0]]
        margins[axis][1], margins[other][1] = GAP, longest - part.shape[other]
        padded.append(np.pad(part, margins, constant_values=255))
    return np.concatenate(padded, axis=axis)


def page(rows: dict[str, list[np.ndarray]], dataset: TrainingSet, classes: Classes) -> str:
    """One HTML file with the images inside."""
    swatches = "".join(
        f'<span><i style="background:rgb({r},{g},{b})"></i>{html.escape(name)}</span>'
        for name, (r, g, b) in zip(classes.names, classes.colors.tolist(), strict=True)
    )
    body = "".join(
        f"<h2>{html.escape(name)}</h2><p>{''.join(map(inline, row))}</p>"
        for name, row in rows.items()
    )
    return f"""<!doctype html><meta charset="utf-8"><title>training images</title>
<style>body{{font:14px sans-serif}} h2{{font-size:14px}} img{{height:{TILE}px;margin-right:{GAP}px}}
i{{display:inline-block;width:1em;height:1em;margin:0 .3em 0 1em;border:1px solid}}</style>
<p>As stored, with its label, then crops as training sees them. White stripes are ignored pixels.
{len(dataset)} images in all.</p><p>{swatches}</p>{body}"""


def inline(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


if __name__ == "__main__":
    command_line.run_command(main)
