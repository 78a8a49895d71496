"""What `stripseg check` saw, as one page: findings, class frequencies, co-occurrence, places."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..dataset.preparation.check import Examination, Finding, split_pixels
from ..dataset.preparation.label_geometry import GRID
from .charts import scatter_chart
from .html import bar, matrix, page, percent, png, shade, sortable, swatch, table, text
from .page import MOST_CLASSES
from .pictures import viridis

FILES_SHOWN = 20


def dataset_page(
    title: str,
    found: Sequence[Examination],
    findings: Sequence[Finding],
    names: Sequence[str],
    colors: np.ndarray,
) -> str:
    """The whole page.

    Args:
        found: all pairs of all splits, examined thoroughly.
        names, colors: of the classes.
    """
    errors = sum(finding.severity == "error" for finding in findings)
    splits = list(dict.fromkeys(item.split for item in found))
    pairs = ", ".join(f"{sum(i.split == s for i in found)} of {text(s)}" for s in splits)
    body = [
        f"<header><h1>{text(title)}</h1><p class=verdict>{errors} errors, "
        f"{len(findings) - errors} warnings <small>{pairs}</small></p></header>",
        findings_section(findings),
        classes_section(found, splits, names, colors),
        together_section(found, names),
        places_section(found, names, colors),
        sizes_section(found, splits),
    ]
    return page(f"{title}: dataset", "\n".join(body), {})


def findings_section(findings: Sequence[Finding]) -> str:
    """What is wrong, errors first, with the files it is about."""
    if not findings:
        return "<section><h2>Findings</h2><p>Nothing looks wrong.</p></section>"
    parts = []
    for finding in findings:
        sign = "down" if finding.severity == "error" else "faint"
        files = "".join(f"<li>{text(file)}</li>" for file in finding.files[:FILES_SHOWN])
        more = len(finding.files) - FILES_SHOWN
        files += f"<li>and {more} more</li>" if more > 0 else ""
        opened = f"<details><summary>{len(finding.files)} files</summary><ul>{files}</ul></details>"
        parts.append(
            f"<li><b class={sign}>{finding.severity}</b> {text(finding.message)}"
            f"{opened if finding.files else ''}</li>"
        )
    return f"<section><h2>Findings</h2><ul>{''.join(parts)}</ul></section>"


def classes_section(
    found: Sequence[Examination], splits: Sequence[str], names: Sequence[str], colors: np.ndarray
) -> str:
    """Share of the pixels and number of files of every class in every split."""
    head, rows = ["class"], []
    for split in splits:
        head += [f"{split}: pixels", "", f"{split}: files"]
    pixels = {split: split_pixels(found, split) for split in splits}
    for index, name in enumerate(names):
        cells = [(name, swatch(colors[index]) + text(name))]
        for split in splits:
            share = pixels[split][index] / max(pixels[split].sum(), 1)
            largest = pixels[split][: len(names)].max() / max(pixels[split].sum(), 1)
            files = sum(bool(i.pixels[index]) for i in found if i.split == split)
            cells += [
                (share, f"{100 * share:.2f} %"),
                (share, bar(share / max(largest, 1e-9))),
                (files, f"{files:,}"),
            ]
        rows.append(cells)
    ignored = ", ".join(
        f"{percent(pixels[s][255] / max(pixels[s].sum(), 1))} of {text(s)}" for s in splits
    )
    return (
        f"<section><h2>Classes</h2>{sortable(head, rows)}"
        f"<p class=faint>Ignored: {ignored}.</p></section>"
    )


def together_section(found: Sequence[Examination], names: Sequence[str]) -> str:
    """Of the images that hold a class (row), how many hold another (column)."""
    holds = np.array([item.pixels[: len(names)] > 0 for item in found if not item.error])
    if not len(holds):
        return ""
    counts = holds.T.astype(np.int64) @ holds.astype(np.int64)
    chosen = sorted(np.argsort(-np.diag(counts), kind="stable")[:MOST_CLASSES].tolist())
    chosen = [index for index in chosen if counts[index, index]]
    lines = [
        "".join(share_cell(counts[row, column] / counts[row, row]) for column in chosen)
        for row in chosen
    ]
    return (
        "<section><h2>Together</h2><p>Of the images that hold a class (row), how many hold "
        f"another, in percent.</p>{matrix([names[index] for index in chosen], lines)}</section>"
    )


def share_cell(share: float) -> str:
    return (
        f'<td style="{shade("0,114,178", share, round(share, 2))}">'
        f"<span class=cell>{100 * share:.0f}</span></td>"
    )


def places_section(found: Sequence[Examination], names: Sequence[str], colors: np.ndarray) -> str:
    """Where in the image each class occurs."""
    sums = np.zeros((len(names), GRID, GRID))
    for item in found:
        if item.geometry is not None:
            for index, share in item.geometry.places.items():
                sums[index] += share
    figures = []
    for index, name in enumerate(names):
        if sums[index].any():
            figures.append(
                f'<figure><img alt="" src="{heat(sums[index], colors[index])}">'
                f"<figcaption>{text(name)}</figcaption></figure>"
            )
    if not figures:
        return ""
    return (
        "<section><h2>Places</h2><p>Where in the image each class lies: the brighter, the more "
        f"often.</p><div class=columns>{''.join(figures)}</div></section>"
    )


def heat(share: np.ndarray, color: np.ndarray) -> str:
    """A grid as a picture, from black to white."""
    scaled = (255 * share / share.max()).astype(np.uint8)
    large = cv2.resize(scaled, (120, 120), interpolation=cv2.INTER_CUBIC)
    shown = viridis(large / 255)
    shown[-6:] = color
    return png(shown)


def sizes_section(found: Sequence[Examination], splits: Sequence[str]) -> str:
    """Height and width of the images."""
    series = {
        split: sorted({i.size[::-1] for i in found if i.split == split and not i.error})
        for split in splits
    }
    rows = []
    for split in splits:
        sizes = [i.size for i in found if i.split == split and not i.error]
        if sizes:
            low, mid, high = np.percentile(np.array(sizes), [0, 50, 100], axis=0).astype(int)
            rows.append([text(split), *(f"{h} x {w}" for h, w in (low, mid, high))])
    chart = scatter_chart("width and height of the images", series)
    return (
        f"<section><h2>Sizes</h2><div class=columns>{chart}<div>"
        f"{table(['', 'smallest', 'middle', 'largest'], rows, numbers=3)}</div></div></section>"
    )
