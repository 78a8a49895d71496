"""Pages that are one file: text is escaped, pictures are inside, nothing is fetched."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
from PIL import Image

ASSETS = Path(__file__).with_name("assets")
text = html.escape  # every string that is not ours goes through this


def page(title: str, body: str, data: Any = None) -> str:
    """A whole page in the look of our reports; `data` is what its scripts read."""

    def asset(kind: str) -> str:
        return (ASSETS / f"report.{kind}").read_text(encoding="utf-8")

    return Template(asset("html")).substitute(
        title=text(title),
        style=asset("css"),
        script=asset("js"),
        body=body,
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def jpeg(image: np.ndarray, quality: int = 75) -> str:
    """An (H, W, 3) uint8 RGB image as a data URI."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    return data_uri("jpeg", data.tobytes())


def png(image: np.ndarray) -> str:
    """An (H, W, 3) or (H, W, 4) uint8 RGB(A) image as a data URI, without loss."""
    order = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, data = cv2.imencode(".png", cv2.cvtColor(image, order), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return data_uri("png", data.tobytes())


def palette_png(indices: np.ndarray, colors: np.ndarray) -> str:
    """(H, W) uint8 indices in the (K, 3) uint8 colours, as a data URI; what has none is grey."""
    palette = np.full((256, 3), 128, np.uint8)
    palette[: len(colors)] = colors
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data_uri("png", data.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def table(head: list[str], rows: list[list[str]], *, numbers: int = 0) -> str:
    """A table of cells that are HTML already; the last `numbers` columns are right-aligned."""
    first = len(head) - numbers

    def cells(row: list[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if index >= first else ''}>{cell}</{tag}>"
            for index, cell in enumerate(row)
        )

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f"<div class=wide><table><thead><tr>{cells(head, 'th')}</tr></thead>{lines}</table></div>"
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def bar(share: float) -> str:
    """A share of 0 to 1 as a bar."""
    return f'<span class=bar><span style="width:{100 * min(max(share, 0), 1):.1f}%"></span></span>'


def swatch(color: Sequence[int]) -> str:
    """A small square of an RGB colour."""
    return f'<span class=swatch style="background:rgb({",".join(map(str, color))})"></span>'


LONG = 24  # letters of a name, from which on it takes more than one line
Cell = tuple[float | str | None, str]  # what a column is sorted by, and the HTML


def figure_cell(value: float | None) -> Cell:
    return (None, "") if value is None else (float(value), f"{value:.3f}")


def sortable(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table whose headings are buttons."""
    heads = "".join(
        f"<th scope=col{' class=number' if index else ''}>"
        + (f"<button type=button>{text(name)}</button></th>" if name else "</th>")
        for index, name in enumerate(head)
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{cell_class(index, key)} "
            f'data-value="{text(str("" if key is None else key))}">{shown}</td>'
            for index, (key, shown) in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=wide><table class=sortable><thead><tr>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def cell_class(column: int, key: float | str | None) -> str:
    if column:
        return " class=number"
    return " class=long" if len(str(key)) > LONG else ""


def matrix(names: Sequence[str], rows: Sequence[str]) -> str:
    """A square table with the names at two sides; `rows` are the cells of each, as HTML."""
    head = "".join(f"<th scope=col>{text(name)}</th>" for name in names)
    lines = "".join(
        f"<tr><th scope=row>{text(name)}</th>{cells}</tr>"
        for name, cells in zip(names, rows, strict=True)
    )
    return (
        f"<div class=wide><table id=matrix><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def shade(color: str, share: float, strength: float) -> str:
    """The style of a matrix cell: `color` (r,g,b) at a strength, with white ink on dark cells."""
    ink = ";color:#fff" if share > 0.6 else ""
    return f"background:rgba({color},{strength}){ink}"
