"""Two parts of the report: where errors lie, and whether confidence can be believed."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .charts import reliability_chart
from .html import bar, jpeg, percent, table, text
from .intervals import iou_of, tallies
from .pictures import Shown, TestPictures
from .records import DISTANCES, ELONGATIONS, SIZES, ImageRecord, TestRecords

MOST_SUSPECTS = 12
ABOUT = 0.01  # between confidence and accuracy, below which nothing is made of it


def breakdown_section(records: TestRecords) -> str:
    """Where errors lie: near boundaries, in small objects, in long ones, in small images."""
    distance = summed(records.images, "distance", 2)
    parts = ["<section id=where><h2>Where errors lie</h2>"]
    if len(distance) and distance.sum():
        errors, pixels = distance.sum(0)[1], distance[:, 0].sum()
        near = distance[0][1] / max(1, errors)
        parts.append(
            f"<p><b>{percent(near)} of all errors</b> lie within {DISTANCES[0]} pixels of a "
            f"boundary of the label, where {percent(distance[0][0] / pixels)} of the pixels "
            "are.</p>"
        )
        rows = [
            [label, percent(row[0] / pixels), percent(row[1] / max(1, errors)),
             percent(row[1] / row[0]) if row[0] else "", bar(row[1] / row[0] if row[0] else 0)]
            for label, row in zip(range_names(DISTANCES, "px", first=1), distance, strict=True)
        ]  # fmt: skip
        head = ["distance to a boundary", "pixels", "errors", "error rate", ""]
        parts.append("<div class=columns><div>" + table(head, rows, numbers=4) + "</div>")
        side = [round(size**0.5) for size in SIZES]
        sizes = [f"below {side[0]} x {side[0]} px", f"to {side[1]} x {side[1]} px", "larger"]
        parts.append(object_table("size of an object", sizes, summed(records.images, "sizes", 3)))
        longs = range_names(ELONGATIONS, "", first=1, whole=False)
        longs[-1] += ": thin and long"
        parts.append(
            object_table("elongation", longs, summed(records.images, "elongations", 3)) + "</div>"
        )
        parts.append(
            "<p class=faint>An object is a connected region of one class in the label. Elongation "
            "is its area over its greatest width squared: 1 for a square, 10 for a strip ten times "
            "as long as wide. Found is the share of its pixels that are predicted right.</p>"
        )
    parts.append(image_sizes(records))
    return "".join([*parts, "</section>"])


def range_names(ends: Sequence[int], unit: str, *, first: int, whole: bool = True) -> list[str]:
    """Names of bins: "1 to 3 px", "4 to 8 px", "9 px and more"; "1 to 2", "2 and more"."""
    starts = [first, *(end + whole for end in ends)]
    names = [
        f"{start} to {end} {unit}".strip() for start, end in zip(starts[:-1], ends, strict=True)
    ]
    return [*names, f"{starts[-1]} {unit}".strip() + " and more"]


def object_table(what: str, names: Sequence[str], rows: np.ndarray) -> str:
    lines = [
        [name, f"{int(count):,}", percent(right / pixels) if pixels else "",
         bar(right / pixels if pixels else 0)]
        for name, (count, pixels, right) in zip(names, rows, strict=True)
    ]  # fmt: skip
    return "<div>" + table([what, "objects", "found", ""], lines, numbers=3) + "</div>"


def image_sizes(records: TestRecords) -> str:
    """Figures of small, medium and large images, where they differ."""
    areas = np.array([image.size[0] * image.size[1] for image in records.images])
    if len(set(areas)) < 3:
        return "<p class=faint>The images differ too little in size for a table by size.</p>"
    limits = np.unique(np.quantile(areas, [0, 1 / 3, 2 / 3, 1]))
    rows = []
    for low, high in pairwise(limits):
        last = high == limits[-1]
        chosen = [
            image
            for image, area in zip(records.images, areas, strict=True)
            if low <= area < high or (last and area == high)
        ]
        own = tallies(chosen, len(records.names), "none") if chosen else None
        if own is None or not own.occurring.any():
            continue
        iou = iou_of(*(part.sum(0) for part in (own.hits, own.labelled, own.predicted)))
        mean, count = iou[own.occurring].mean(), int(own.occurring.sum())
        size = f"{low / 1e6:.2f} to {high / 1e6:.2f} Mpx"
        rows.append([size, str(len(chosen)), str(count), f"{mean:.3f}"])
    return "<h3>By image size</h3>" + table(
        ["size", "images", "classes in them", "their mean IoU"], rows, numbers=3
    )


def calibration_section(records: TestRecords, pictures: TestPictures) -> str:
    """Whether confidence can be believed, and labels that the network doubts."""
    bins = summed(records.images, "calibration", 3)
    parts = ["<section id=calibration><h2>Confidence</h2>"]
    if not len(bins) or not bins[:, 0].sum():
        parts.append(
            "<p>Saved predictions do not tell how sure the network was; test with the network for "
            "this part.</p>"
        )
        return "".join([*parts, "</section>"])
    total = bins[:, 0].sum()
    gaps = np.abs(bins[:, 1] - bins[:, 2]).sum()
    mean, right = bins[:, 2].sum() / total, bins[:, 1].sum() / total
    lean = "surer than it should be" if mean > right else "less sure than it could be"
    if abs(mean - right) < ABOUT:
        lean = "on average about as sure as it should be"
    parts.append(
        f"<div class=columns>{reliability_chart(bins.tolist())}<div>"
        f"<p><b>Expected calibration error {gaps / total:.4f}.</b></p>"
        f"<p>The network claims {percent(mean)} on average and is right in {percent(right)}: it is "
        f"{lean}.</p><p class=faint>Darker bars hold more pixels. The error is the mean gap of "
        "confidence and accuracy over 15 equal bins (Guo et al., ICML 2017).</p></div></div>"
    )
    return "".join([*parts, suspects(records, pictures), "</section>"])


def suspects(records: TestRecords, pictures: TestPictures) -> str:
    """Regions where the network is sure of another class than the label."""
    found = [(row, index) for index, image in enumerate(records.images) for row in image.suspects]
    found.sort(key=lambda entry: -entry[0][2])
    shown: dict[int, Shown | None] = {}
    figures = []
    for row, index in found[:MOST_SUSPECTS]:
        if index not in shown:
            shown[index] = pictures.read(index)
        if shown[index] is None:
            continue
        label, prediction, pixels, *box = row
        part = pictures.crop(shown[index], box)
        figures.append(
            f"<figure><img loading=lazy alt='' width={part.shape[1]} height={part.shape[0]} "
            f'src="{jpeg(part)}">'
            f"<figcaption>labelled <b>{text(records.names[label])}</b>, the network is sure of "
            f"<b>{text(records.names[prediction])}</b> ({pixels:,} pixels)<br><span class=faint>"
            f"{text(records.images[index].name.rpartition('/')[2])}</span></figcaption></figure>"
        )
    intro = (
        "<h3>Labels to look at</h3><p>Regions away from boundaries where the network is at least "
        f"95 % sure of another class than the label: {len(found)} in all. Some are its mistakes, "
        "some are the label's.</p>"
    )
    return intro + (f"<div class=columns>{''.join(figures)}</div>" if figures else "")


def summed(images: Sequence[ImageRecord], field: str, columns: int) -> np.ndarray:
    """The rows of a field, summed over the images."""
    rows = [getattr(image, field) for image in images if getattr(image, field)]
    return np.sum(rows, axis=0) if rows else np.zeros((0, columns))
